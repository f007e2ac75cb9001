"""The stage `generate`: let a model write programs.

Owns loading the model, the requests (one a problem and sample), where a completion's text ends, and `completions.parquet`.
The form of a prompt and its stop strings are `data.prompts`', its tokens `data.tokens`', the loop `decoding`'s; whether a
program is any good is for the stage `judge`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mlops_tasks.config import EvaluationSet, Protocol, Settings
from mlops_tasks.data.problems import chosen, read_problems
from mlops_tasks.data.prompts import STOPS, cut_at_stop, prompts_sha256, render_prompt, shots_of
from mlops_tasks.data.tokens import encode_prompt, end_of_sequence
from mlops_tasks.errors import UserError
from mlops_tasks.evaluation.decoding import Completed, Request, Sampling, decode
from mlops_tasks.logs import watched
from mlops_tasks.machine import accelerator
from mlops_tasks.pretrained import load_model, load_tokenizer
from mlops_tasks.stage import Attempt

log = logging.getLogger(__name__)

_COMPLETIONS = pa.schema(
    {
        "problem_id": pa.string(),
        "sample": pa.int32(),
        "prompt": pa.string(),
        "completion": pa.string(),
        "num_tokens": pa.int32(),
        "stopped": pa.bool_(),
    }
)


class GenerateConfig(Settings):
    """The part of the recipe that `generate` is keyed by; see `mlops_tasks.config.Evaluation`."""

    protocol: Protocol
    num_samples: int
    temperature: float
    top_p: float
    max_new_tokens: int
    precision: Literal["float32", "bfloat16"]
    problems: EvaluationSet
    seed: int | None
    """None where nothing is drawn."""


@dataclass(frozen=True)
class Writer:
    """A model and its tokenizer, ready to write."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def max_positions(self) -> int | None:
        """Longest sequence that the model takes; None: no limit is known."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a completion: the one that training teaches, and what the model itself declares."""
        declared = self.model.generation_config.eos_token_id if self.model.generation_config else None
        ids = declared if isinstance(declared, list) else [declared]
        return frozenset(int(one) for one in (*ids, end_of_sequence(self.tokenizer)) if one is not None)


def generate(attempt: Attempt) -> dict[str, Any]:
    """Write `num_samples` completions for each problem of a split.

    Raises:
        UserError: a model that cannot be loaded or decoded, or a prompt that leaves it no room.
    """
    started = time.monotonic()
    config = GenerateConfig.model_validate(attempt.config)
    data = attempt.inputs["data"]
    problems = chosen(read_problems(data.path(f"{config.problems.split}.parquet")), config.problems)
    shots = shots_of(read_problems(data.path("prompt.parquet")), config.protocol)
    prompts = {problem.id: render_prompt(problem, config.protocol, shots) for problem in problems}
    writer = load(attempt.inputs["model"].folder("model"), precision=config.precision)
    rows = write(writer, prompts, config, batch_size=attempt.environment.generate.batch_size)
    table = pa.Table.from_pylist(rows, schema=_COMPLETIONS)
    pq.write_table(table, attempt.folder / "completions.parquet", compression="zstd")
    seconds = time.monotonic() - started
    num_tokens = sum(row["num_tokens"] for row in rows)
    log.info("wrote %d completions of %d problems: %d tokens in %.1f s", len(rows), len(problems), num_tokens, seconds)
    return {
        **config.model_dump(include={"protocol", "num_samples", "temperature", "top_p", "precision"}),
        "prompt_sha256": prompts_sha256(list(prompts.values())),
        "num_problems": len(problems),
        "tokens": num_tokens,
        "seconds": seconds,
        "stopped_share": sum(row["stopped"] for row in rows) / max(1, len(rows)),
        "device": str(writer.model.device),
    }


def load(folder: Path, *, precision: Literal["float32", "bfloat16"]) -> Writer:
    """Read a model and its tokenizer from a folder, and nothing from anywhere else.

    Raises:
        UserError: the folder holds no complete causal language model with a tokenizer.
    """
    tokenizer = load_tokenizer(folder)
    model: Any = load_model(folder, dtype=precision)
    return Writer(model.to(accelerator()), tokenizer)


def write(writer: Writer, prompts: dict[str, str], config: GenerateConfig, *, batch_size: int) -> list[dict[str, Any]]:
    """Complete each prompt `num_samples` times.

    Args:
        prompts: text by problem id.
        batch_size: completions under way at one time.

    Returns:
        Rows of `completions.parquet`, in order of prompt and sample.

    Raises:
        UserError: a prompt leaves no room in the model's positions.
    """
    requests = list(_requests(writer, prompts, config))
    done = decode(
        writer.model,
        requests,
        sampling=Sampling(config.temperature, config.top_p, config.seed or 0),
        end_ids=writer.end_ids,
        batch_size=batch_size,
        is_enough=_StopWatch(writer.tokenizer, config.protocol),
    )
    rows = {
        (one.request.problem_id, one.request.sample): _row(writer.tokenizer, prompts, one, config.protocol)
        for one in watched(done, "completions", len(requests), unit="completion")
    }
    return [rows[request.problem_id, request.sample] for request in requests]


def _requests(writer: Writer, prompts: dict[str, str], config: GenerateConfig) -> Iterator[Request]:
    num_shortened = 0
    for problem_id, prompt in prompts.items():
        ids = tuple(encode_prompt(prompt, writer.tokenizer))
        room = _room(writer, problem_id, len(ids), config)
        num_shortened += room < config.max_new_tokens
        for sample in range(config.num_samples):
            yield Request(problem_id, sample, ids, room)
    if num_shortened:
        log.warning(
            "%d prompts leave less than %d tokens of the model's %d positions; their completions end there",
            num_shortened, config.max_new_tokens, writer.max_positions,
        )  # fmt: skip


def _room(writer: Writer, problem_id: str, num_prompt_tokens: int, config: GenerateConfig) -> int:
    if writer.max_positions is None:
        return config.max_new_tokens
    room = min(config.max_new_tokens, writer.max_positions - num_prompt_tokens)
    if room < 1:
        raise UserError(
            f"The prompt of problem {problem_id} has {num_prompt_tokens} tokens in the protocol {config.protocol}, and the model "
            f"takes {writer.max_positions} in all, so it could write nothing. Use a shorter protocol (evaluation.protocol) or a "
            "model with more positions."
        )
    return room


class _StopWatch:
    """Notices a stop string as soon as it is complete."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, protocol: Protocol) -> None:
        self.tokenizer, self.protocol = tokenizer, protocol
        # No token is shorter than a byte, so a stop string that has just ended lies in so many tokens.
        self.num_tail_tokens = max(len(stop.encode()) for stop in STOPS[protocol]) + 1

    def __call__(self, token_ids: list[int]) -> bool:
        return cut_at_stop(_text(self.tokenizer, token_ids[-self.num_tail_tokens :]), self.protocol)[1]


def _text(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    text = tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _row(
    tokenizer: PreTrainedTokenizerBase, prompts: dict[str, str], done: Completed, protocol: Protocol
) -> dict[str, Any]:
    # Decoded behind the prompt, as it was written: on its own, some tokenizers drop the first token's space.
    prompt_ids = list(done.request.prompt_ids)
    text = _text(tokenizer, prompt_ids + done.token_ids)[len(_text(tokenizer, prompt_ids)) :]
    completion, is_stopped = cut_at_stop(text, protocol)
    return {
        "problem_id": done.request.problem_id,
        "sample": done.request.sample,
        "prompt": prompts[done.request.problem_id],
        "completion": completion,
        "num_tokens": len(done.token_ids),
        "stopped": is_stopped or done.is_ended,
    }
