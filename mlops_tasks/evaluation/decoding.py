"""Decoding many prompts at once: a batch from which finished rows leave and which waiting prompts join.

Owns the loop, the key/value cache and the choice of a token; which prompts there are and what becomes of the text is
`generation`'s. Any transformers causal LM whose layers all are attention (full or sliding) can be decoded.

All rows end at the same column of the cache and are padded on the left, so a step appends one column for all. A row joins by
being prefilled on its own and copied beside the others, and rows leave in groups: both copy the cache once, in `_joined`.

Shape letters: B rows, S column of the cache, V vocabulary.
"""

from __future__ import annotations

import hashlib
import inspect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from mlops_tasks.errors import UserError

_SPARE_COLUMNS = 64  # the cache grows by so many, so that a step writes one column and copies none
_REPACK_SHARE = 8  # rows join and leave when this part of the batch is free; each time costs a copy of the cache


@dataclass(frozen=True)
class Request:
    """One completion to make."""

    problem_id: str
    sample: int
    prompt_ids: tuple[int, ...]
    max_new_tokens: int


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen."""

    temperature: float
    """0: the most likely one."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability."""
    seed: int = 0


@dataclass
class Completed:
    """A request and the tokens that were made for it, without the end of sequence."""

    request: Request
    token_ids: list[int] = field(default_factory=list)
    is_ended: bool = False
    """By an end-of-sequence token."""


def decode(
    model: PreTrainedModel,
    requests: Sequence[Request],
    *,
    sampling: Sampling,
    end_ids: frozenset[int],
    batch_size: int,
    is_enough: Callable[[list[int]], bool] = lambda token_ids: False,
) -> Iterator[Completed]:
    """Complete requests, in the order in which they are done.

    Args:
        end_ids: tokens that end a completion.
        batch_size: rows decoded at one time; what a row becomes does not depend on it, up to floating-point order.
        is_enough: asked after each token with the row's tokens; True ends the row.

    Raises:
        UserError: the model keeps a state other than attention's.
    """
    _require_attention(model)
    # The longest first: rows of like length share a prefill, and no long straggler is left at the end.
    waiting = deque(sorted(requests, key=lambda one: len(one.prompt_ids), reverse=True))
    batch = _Batch(model, sampling, end_ids, is_enough)
    least = max(1, batch_size // _REPACK_SHARE)
    while waiting or batch.num_alive:
        room = batch_size - batch.num_alive
        if waiting and room >= least:
            yield from batch.admit([waiting.popleft() for _ in range(min(room, len(waiting)))])
        elif batch.num_rows - batch.num_alive >= least:
            batch.drop_finished()
        if batch.num_alive:
            yield from batch.step()


class _Row:
    """A request under way."""

    def __init__(self, request: Request, sampling: Sampling) -> None:
        self.completed = Completed(request)
        self.is_alive = True
        # A stream of its own: what is drawn for a row depends on nothing else in the batch.
        name = f"{sampling.seed}:{request.problem_id}:{request.sample}"
        self.draws = np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(name.encode()).digest())))

    @property
    def num_tokens(self) -> int:
        return len(self.completed.request.prompt_ids) + len(self.completed.token_ids)

    def accept(self, token: int, end_ids: frozenset[int], is_enough: Callable[[list[int]], bool]) -> None:
        """Append a token, or end."""
        if token in end_ids:
            self.completed.is_ended = True
            self.is_alive = False
            return
        made = self.completed.token_ids
        made.append(token)
        self.is_alive = len(made) < self.completed.request.max_new_tokens and not is_enough(made)


class _Batch:
    """Rows that are decoded together, with their cache."""

    def __init__(
        self,
        model: PreTrainedModel,
        sampling: Sampling,
        end_ids: frozenset[int],
        is_enough: Callable[[list[int]], bool],
    ) -> None:
        self.model, self.sampling, self.end_ids, self.is_enough = model, sampling, end_ids, is_enough
        accepted = inspect.signature(model.forward).parameters
        self.takes_positions = "position_ids" in accepted
        self.takes_logits_to_keep = "logits_to_keep" in accepted
        self.rows: list[_Row] = []
        self.cache = DynamicCache()
        self.mask_BS = torch.zeros(0, 0, dtype=torch.bool, device=model.device)

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    @property
    def num_alive(self) -> int:
        return sum(row.is_alive for row in self.rows)

    def admit(self, requests: Sequence[Request]) -> list[Completed]:
        """Take requests in; returns those that their first token ends."""
        rows = [_Row(request, self.sampling) for request in requests]
        prompts = list(dict.fromkeys(request.prompt_ids for request in requests))
        cache, mask_BS, logits_BV = self._prefill(prompts)
        place = {prompt: index for index, prompt in enumerate(prompts)}
        of_prompt = [place[request.prompt_ids] for request in requests]  # samples of one prompt share its prefill
        finished = self._extend(rows, logits_BV[of_prompt])
        joining = [index for index, row in enumerate(rows) if row.is_alive]
        self._repack(_Part(cache, mask_BS, [of_prompt[index] for index in joining]), [rows[index] for index in joining])
        return finished

    def drop_finished(self) -> None:
        """Take finished rows out of the cache."""
        self._repack(None, [])

    @torch.inference_mode()
    def step(self) -> list[Completed]:
        """One token for each row; returns the rows that it ends."""
        device = self.model.device
        last_B1 = torch.tensor([[row.completed.token_ids[-1]] for row in self.rows], device=device)
        position_B1 = torch.tensor([[row.num_tokens - 1] for row in self.rows], device=device)
        self.mask_BS = torch.cat([self.mask_BS, self.mask_BS.new_ones(len(self.rows), 1)], dim=1)
        return self._extend(self.rows, self._forward(last_B1, self.mask_BS, position_B1, self.cache))

    @torch.inference_mode()
    def _prefill(self, prompts: Sequence[tuple[int, ...]]) -> tuple[DynamicCache, torch.Tensor, torch.Tensor]:
        width = max(map(len, prompts))
        ids_BS = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask_BS = torch.tensor([[False] * (width - len(prompt)) + [True] * len(prompt) for prompt in prompts])
        positions_BS = (mask_BS.cumsum(dim=1) - 1).clamp(min=0)
        device = self.model.device
        cache = DynamicCache()
        mask_BS = mask_BS.to(device)
        return cache, mask_BS, self._forward(ids_BS.to(device), mask_BS, positions_BS.to(device), cache)

    def _forward(
        self, ids_BS: torch.Tensor, mask_BS: torch.Tensor, positions_BS: torch.Tensor, cache: DynamicCache
    ) -> torch.Tensor:
        """Logits [B, V] after the last column, in float32."""
        arguments: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
        if self.takes_positions:
            arguments["position_ids"] = positions_BS
        if self.takes_logits_to_keep:
            arguments["logits_to_keep"] = 1
        logits: torch.Tensor = self.model(input_ids=ids_BS, attention_mask=mask_BS, **arguments).logits
        return logits[:, -1].float()

    def _extend(self, rows: Sequence[_Row], logits_BV: torch.Tensor) -> list[Completed]:
        """Choose and append a token for each row that is alive; returns the rows that it ends."""
        alive = [row for row in rows if row.is_alive]
        tokens = choose(logits_BV, draws=[row.draws.random() for row in rows], sampling=self.sampling)
        for row, token in zip(rows, tokens, strict=True):
            if row.is_alive:
                row.accept(token, self.end_ids, self.is_enough)
        return [row.completed for row in alive if not row.is_alive]

    @torch.inference_mode()
    def _repack(self, joining: _Part | None, rows: Sequence[_Row]) -> None:
        staying = [index for index, row in enumerate(self.rows) if row.is_alive]
        parts = [_Part(self.cache, self.mask_BS, staying)] if staying else []
        parts += [joining] if joining is not None and joining.chosen else []
        self.rows = [self.rows[index] for index in staying] + list(rows)
        if parts:
            self.cache, self.mask_BS = _joined(parts)


@dataclass(frozen=True)
class _Part:
    """Some rows of a cache."""

    cache: DynamicCache
    mask_BS: torch.Tensor
    chosen: list[int]

    @property
    def first(self) -> int:
        """The first column that any of the rows uses."""
        return int(self.mask_BS[self.chosen].any(dim=0).int().argmax())


class _SpareLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of a layer at the front of tensors that have columns to spare."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, num_columns: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys, values)
        self._columns = keys, values
        self._show(num_columns)

    def _show(self, num_columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = (columns[:, :, :num_columns] for columns in self._columns)
        self.keys, self.values = keys, values
        return keys, values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        missing = end - self._columns[0].shape[2]
        if missing > 0:
            keys, values = (pad(columns, (0, 0, 0, missing + _SPARE_COLUMNS)) for columns in self._columns)
            self._columns = keys, values
        for columns, states in zip(self._columns, (key_states, value_states), strict=True):
            columns[:, :, start:end] = states
        return self._show(end)


def _joined(parts: Sequence[_Part]) -> tuple[DynamicCache, torch.Tensor]:
    """The chosen rows of all parts, ending at one column, without columns that none of them uses."""
    firsts = [part.first for part in parts]
    widths = [part.mask_BS.shape[1] - first for part, first in zip(parts, firsts, strict=True)]
    num_columns = max(widths)
    cache = DynamicCache()
    for layers in zip(*(part.cache.layers for part in parts), strict=True):
        keys, values = (
            torch.cat(
                [
                    # Zeros, not what happens to be in memory: a masked NaN is still NaN.
                    pad(getattr(layer, name)[part.chosen, :, first:], (0, 0, num_columns - width, _SPARE_COLUMNS))
                    for layer, part, first, width in zip(layers, parts, firsts, widths, strict=True)
                ]
            )
            for name in ("keys", "values")
        )
        cache.layers.append(_SpareLayer(keys, values, num_columns))
    mask_BS = torch.cat(
        [
            pad(part.mask_BS[part.chosen, first:], (num_columns - width, 0))
            for part, first, width in zip(parts, firsts, widths, strict=True)
        ]
    )
    return cache, mask_BS


def choose(logits_BV: torch.Tensor, *, draws: Sequence[float], sampling: Sampling) -> list[int]:
    """One token a row.

    Args:
        logits_BV: float32 [B, V].
        draws: a number in [0, 1) a row; the row's token is where the cumulative probability, in order of token id, passes it.

    Example:
        probabilities 0.5, 0.3, 0.2 and top_p 0.7 leave tokens 0 and 1 with 0.625 and 0.375; the draw 0.7 gives token 1.
    """
    if sampling.temperature == 0:
        return logits_BV.argmax(dim=-1).tolist()
    # In float64, or the tail of a large vocabulary is lost in the sum; Apple's GPUs have none.
    logits_BV = logits_BV.cpu() if logits_BV.device.type == "mps" else logits_BV
    p_BV = torch.softmax(logits_BV.double() / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        sorted_BV, order_BV = p_BV.sort(dim=-1, descending=True, stable=True)
        is_out_BV = sorted_BV.cumsum(dim=-1) - sorted_BV >= sampling.top_p  # what came before was enough
        p_BV = p_BV.masked_fill(torch.zeros_like(is_out_BV).scatter(1, order_BV, is_out_BV), 0.0)
    cumulative_BV = p_BV.cumsum(dim=-1)
    marks_B1 = torch.tensor(draws, dtype=torch.float64, device=p_BV.device)[:, None] * cumulative_BV[:, -1:]
    return torch.searchsorted(cumulative_BV, marks_B1, right=True)[:, 0].tolist()


def _require_attention(model: PreTrainedModel) -> None:
    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
    other = sorted(kind.__name__ for kind in kinds - {DynamicLayer, DynamicSlidingWindowLayer})
    if other:
        raise UserError(
            f"The model {model.name_or_path} ({model.config.model_type}) keeps {', '.join(other)} between tokens; only attention "
            "layers can be decoded in batches here. Evaluate a model whose layers are all attention, such as a Llama, Qwen2 or "
            "GPT-2."
        )
