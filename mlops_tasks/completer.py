"""The model as MLflow serves it: prompts in, completions out.

This file is kept beside the weights in MLflow and run from there, so it imports nothing of this package, and has no dataclass: MLflow
does not enter it in `sys.modules`, where a dataclass looks its annotations up. A prompt becomes the tokens that the model was trained
behind (`data.tokens`). How a benchmark words its prompts and cuts its completions is `evaluation`'s, and heads 2..H are not used here.

Shape letters: B rows, S position.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import mlflow.models
import pandas as pd  # type: ignore[import-untyped]
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.pyfunc.model import PythonModel
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

if TYPE_CHECKING:
    from torch import Tensor

SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec("string", "prompt")]),
    outputs=Schema([ColSpec("string", "completion"), ColSpec("string", "finish_reason")]),
    params=ParamSchema(
        [
            ParamSpec("max_new_tokens", "long", None),
            ParamSpec("stop", "string", [], shape=(-1,)),
            ParamSpec("temperature", "double", 0.0),
            ParamSpec("top_p", "double", 1.0),
            ParamSpec("seed", "long", None),
        ]
    ),
)
"""MLflow holds a request against it and fills in what is not given."""

_MAX_ROWS = 32
_USUAL_LIMIT = 256
_SEEDS = 2**63
_TEMPERATURES = (0.01, 10.0)  # below it logits overflow


class Wanted(NamedTuple):
    """What a request asks for, of each of its prompts."""

    max_new_tokens: int | None
    """None: 256, or as many as the context has room for."""
    stop: list[str]
    """A completion ends before the first of these."""
    temperature: float
    """0: the likeliest token each time."""
    top_p: float
    """Only the likeliest tokens that together have this probability."""
    seed: int | None
    """None: another draw each time."""


class Completer(PythonModel):
    """Completes the prompts of a table, those of one length limit together."""

    def load_context(self, context: Any) -> None:
        """Load weights and tokenizer from the files beside this one; nothing is fetched."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        folder = context.artifacts["model"]
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu")
        declared = self.model.generation_config.eos_token_id
        ends = [*(declared if isinstance(declared, list) else [declared]), self.tokenizer.eos_token_id]
        self.end_ids = sorted({int(end) for end in ends if end is not None})
        # Never read, for the mask leaves it out; a tokenizer's own may be an id that the model has no row for.
        self.pad_id = next(iter(self.end_ids), 0)
        # Habits of the base, such as a repetition penalty, are not what the model was measured with.
        plain = GenerationConfig(eos_token_id=self.end_ids or None, pad_token_id=self.pad_id)  # type: ignore[no-untyped-call]
        self.model.generation_config = plain
        self.max_positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        self.is_chat = bool((context.model_config or {}).get("is_chat"))
        self._alone = threading.Lock()  # the server answers in several threads, and share one random stream

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Complete each row's `prompt`.

        Args:
            context: MLflow's.
            model_input: a column `prompt`.
            params: all that `SIGNATURE` names.

        Returns:
            `completion`, and `finish_reason`: "stop" (the model ended it, or a stop string) or "length" (the limit or the model's
            last position).

        Raises:
            MlflowException: the request cannot be answered; the server makes a 400 of it.
        """
        import torch

        wanted = Wanted(**(params or {}))
        self._check(wanted)
        prompts = self._encoded(list(model_input["prompt"]))
        done: dict[int, tuple[str, str]] = {}
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with self._alone, torch.random.fork_rng(devices):  # the caller's random stream goes on as it was
            torch.manual_seed(secrets.randbits(63) if wanted.seed is None else wanted.seed)
            for limit, places in self._batches(prompts, wanted):
                found = self._complete([prompts[place] for place in places], limit, wanted)
                done |= dict(zip(places, found, strict=True))
        return pd.DataFrame([done[place] for place in range(len(prompts))], columns=["completion", "finish_reason"])

    def _check(self, wanted: Wanted) -> None:
        limit, most = wanted.max_new_tokens, self.max_positions
        if limit is not None and not 1 <= limit <= (most or limit):
            bounds = f"from 1 to {most}, the model's context" if most else "1 or more"
            raise _refused(f"max_new_tokens is {limit}; it must be {bounds}.")
        low, high = _TEMPERATURES
        if wanted.temperature is None or not (wanted.temperature == 0 or low <= wanted.temperature <= high):
            raise _refused(f"temperature is {wanted.temperature}; it must be 0 (greedy) or from {low} to {high}.")
        if wanted.top_p is None or not 0 < wanted.top_p <= 1:
            raise _refused(f"top_p is {wanted.top_p}; it must be above 0 and at most 1.")
        if wanted.seed is not None and not 0 <= wanted.seed < _SEEDS:
            raise _refused(f"seed is {wanted.seed}; it must be from 0 to {_SEEDS - 1}.")
        if not all(wanted.stop):
            raise _refused(
                f"stop is {wanted.stop}; leave out what is empty, for it would end every completion at once."
            )

    def _encoded(self, prompts: Sequence[Any]) -> list[list[int]]:
        if not prompts:
            raise _refused("The request has no prompt. Send one or more rows with a column `prompt`.")
        for row, prompt in enumerate(prompts):
            if not isinstance(prompt, str) or not prompt:
                raise _refused(f"The prompt of row {row} is {prompt!r}; it must be a text that is not empty.")
        # A chat template writes its special tokens out. In any other prompt nothing is one, whatever it looks like.
        plain = self.tokenizer(list(prompts), add_special_tokens=False, split_special_tokens=not self.is_chat)
        encoded = [[*self._start(), *ids] for ids in plain["input_ids"]]
        for row, ids in enumerate(encoded):
            if self.max_positions is not None and len(ids) >= self.max_positions:
                raise _refused(
                    f"The prompt of row {row} has {len(ids)} tokens, and the model's context of {self.max_positions} leaves no room to "
                    f"write. Shorten it to {self.max_positions - 1} tokens or less."
                )
        return encoded

    def _start(self) -> list[int]:
        """The beginning of sequence, if this tokenizer puts one before a text."""
        first = self.tokenizer.bos_token_id
        return [] if self.is_chat or first is None or self.tokenizer("a")["input_ids"][0] != first else [int(first)]

    def _batches(self, prompts: Sequence[Sequence[int]], wanted: Wanted) -> Iterator[tuple[int, list[int]]]:
        """Places of prompts to complete together, with how many tokens each may get."""
        limit = wanted.max_new_tokens or _USUAL_LIMIT
        by_limit: dict[int, list[int]] = {}
        for place, ids in enumerate(prompts):
            room = limit if self.max_positions is None else self.max_positions - len(ids)
            by_limit.setdefault(min(limit, room), []).append(place)
        for limit, places in by_limit.items():
            for first in range(0, len(places), _MAX_ROWS):
                yield limit, places[first : first + _MAX_ROWS]

    def _complete(self, prompts: Sequence[list[int]], limit: int, wanted: Wanted) -> list[tuple[str, str]]:
        import torch

        # Padded on the left, so that all rows write at the same place; generate counts positions by the mask.
        width = max(map(len, prompts))
        padded_BS = [[self.pad_id] * (width - len(ids)) + ids for ids in prompts]
        mask_BS = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
        drawn = {"temperature": wanted.temperature, "top_p": wanted.top_p, "top_k": 0} if wanted.temperature else {}
        try:
            generated_BS = self.model.generate(
                input_ids=torch.tensor(padded_BS, device=self.model.device),
                attention_mask=torch.tensor(mask_BS, device=self.model.device),
                max_new_tokens=limit,
                do_sample=wanted.temperature > 0,
                stopping_criteria=self._stopping(width, wanted.stop),
                **drawn,
            )
        except torch.OutOfMemoryError as error:
            raise _refused(
                f"{len(prompts)} prompts of up to {width} tokens with {limit} new ones do not fit the memory of {self.model.device}. "
                "Send fewer or shorter ones, or lower max_new_tokens."
            ) from error
        written = generated_BS[:, width:].tolist()
        return [self._ended(ids, new, wanted.stop) for ids, new in zip(prompts, written, strict=True)]

    def _stopping(self, width: int, stop: Sequence[str]) -> Any:
        from transformers import StoppingCriteriaList

        if not stop:
            return None
        # No token is shorter than a byte, so a stop string that has just ended lies in so many tokens.
        tail = max(len(one.encode()) for one in stop) + 1

        def is_done(ids_BS: Tensor, scores: Any, **kwargs: Any) -> Tensor:
            texts = [self._text(row[-tail:]) for row in ids_BS[:, width:].tolist()]
            return ids_BS.new_tensor([any(one in text for one in stop) for text in texts]).bool()

        return StoppingCriteriaList([is_done])

    def _ended(self, prompt: list[int], new: list[int], stop: Sequence[str]) -> tuple[str, str]:
        """A completion without what ended it, and why it ended."""
        end = next((place for place, one in enumerate(new) if one in self.end_ids), None)
        # Decoded behind the prompt, as it was written: on its own, some tokenizers drop the first token's space.
        text = self._text(prompt + new[:end])[len(self._text(prompt)) :]
        cut = min((text.find(one) for one in stop if one in text), default=None)
        return text[:cut], "length" if end is None and cut is None else "stop"

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _refused(message: str) -> MlflowException:
    refused: MlflowException = MlflowException.invalid_parameter_value(message)
    return refused


mlflow.models.set_model(Completer())
