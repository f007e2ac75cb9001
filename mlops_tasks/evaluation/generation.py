"""The stage `generate`: let a model write programs.

Owns loading the model, the requests (one a problem and sample), where a completion's text ends, and the files
`completions.parquet` and `likelihoods.parquet` (how well the model knows each reference solution). Completions are put away while
it writes, so a killed stage goes on where it was. The form of a prompt and its stop strings are `data.prompts`', its tokens
`data.tokens`', the loop `decoding`'s; whether a program is any good is for the stage `judge`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mlops_tasks.config.evaluation import EvaluationSet
from mlops_tasks.config.settings import Settings
from mlops_tasks.config.sources import ProtocolId
from mlops_tasks.data.problems import Problem, chosen, read_problems
from mlops_tasks.data.prompts import (
    completion_text,
    cut_at_stop,
    is_chat,
    prompts_sha256,
    render_prompt,
    require_kind,
    shots_of,
)
from mlops_tasks.data.protocols import protocol_named
from mlops_tasks.data.tokens import encode_plain, encode_prompts, end_of_sequence
from mlops_tasks.errors import UserError
from mlops_tasks.evaluation.decoding import Completed, Request, Sampling, decode
from mlops_tasks.evaluation.likelihood import Known, solution_bits
from mlops_tasks.evaluation.metrics import bits_per_byte
from mlops_tasks.evaluation.speculation import Speculation
from mlops_tasks.logs import ProgressBar
from mlops_tasks.machine import accelerator
from mlops_tasks.model import HEADS_FILE, MtpModel
from mlops_tasks.parts import Parts
from mlops_tasks.pretrained import load_model, load_tokenizer
from mlops_tasks.stage import Attempt

log = logging.getLogger(__name__)

COMPLETIONS = pa.schema(
    {
        "problem_id": pa.string(),
        "sample": pa.int32(),
        "prompt": pa.string(),
        "completion": pa.string(),
        "num_tokens": pa.int32(),
        "stopped": pa.bool_(),
    }
)
_LIKELIHOODS = pa.schema({"problem_id": pa.string(), "bits": pa.float64(), "num_bytes": pa.int32()})
_BITS_DECIMALS = 3  # of a solution, which has hundreds: what another batch size changes is far below

Row = Mapping[str, Any]
"""Of `completions.parquet`."""


class Writing(Settings):
    """How a model is asked, and how it chooses what it writes; see `mlops_tasks.config.evaluation.Evaluation`."""

    protocol: ProtocolId
    num_samples: int
    temperature: float
    top_p: float
    max_new_tokens: int
    precision: Literal["float32", "bfloat16"]
    seed: int | None
    """None where nothing is drawn."""


class GenerateConfig(Writing):
    """The part of the recipe that `generate` is keyed by."""

    problems: EvaluationSet


@dataclass(frozen=True)
class Writer:
    """A model and its tokenizer, ready to write."""

    mtp: MtpModel
    """With the heads that were trained with it, if there are any."""
    tokenizer: PreTrainedTokenizerBase

    @property
    def model(self) -> PreTrainedModel:
        """The plain model."""
        return self.mtp.base

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


def generate(attempt: Attempt, on_row: Callable[[Row], None] = lambda row: None) -> dict[str, Any]:
    """Write `num_samples` completions for each problem of a split.

    Args:
        on_row: told each row as soon as it is there; changes nothing.

    Raises:
        UserError: a model that cannot be loaded or decoded, a protocol that does not fit the problems or the tokenizer, or a
            prompt that leaves the model no room.
    """
    started = time.monotonic()
    config = GenerateConfig.model_validate(attempt.config)
    data, batch_size = attempt.inputs["data"], attempt.environment.generate.batch_size
    problems = chosen(read_problems(data.path(f"{config.problems.split}.parquet")), config.problems)
    require_kind(problems, config.protocol)
    shots = shots_of(read_problems(data.path("prompt.parquet")), config.protocol)
    writer = load(attempt.inputs["model"].folder("model"), precision=config.precision, heads=_heads(attempt))
    prompts = {problem.id: render_prompt(problem, config.protocol, shots, writer.tokenizer) for problem in problems}
    identity = ("problem_id", "sample")
    parts = Parts(attempt.store, attempt.prefix, COMPLETIONS, identity=identity, token=attempt.token)
    earlier = parts.read()
    speculation = Speculation(attempt.environment.generate.speculation)
    loaded = time.monotonic()
    rows = write(
        writer, prompts, config, batch_size=batch_size, speculation=speculation, earlier=earlier, on_row=on_row, put_away=parts.add
    )  # fmt: skip
    num_new_tokens = sum(row["num_tokens"] for row in rows) - sum(row["num_tokens"] for row in earlier)
    tokens_per_second = num_new_tokens / (time.monotonic() - loaded)
    writing_seconds = time.monotonic() - started
    known = likelihoods(writer, problems, prompts, config.protocol, batch_size=batch_size)
    for name, table, schema in (("completions", rows, COMPLETIONS), ("likelihoods", known, _LIKELIHOODS)):
        path = attempt.folder / f"{name}.parquet"
        pq.write_table(pa.Table.from_pylist(table, schema=schema), path, compression="zstd")
    seconds = time.monotonic() - started
    num_tokens = sum(row["num_tokens"] for row in rows)
    log.info("wrote %d completions of %d problems: %d tokens in %.1f s", len(rows), len(problems), num_tokens, seconds)
    return {
        **config.model_dump(include={"protocol", "num_samples", "temperature", "top_p", "precision"}),
        "prompt_sha256": prompts_sha256(list(prompts.values())),
        "num_problems": len(problems),
        "tokens": num_tokens,
        "tokens_per_second": tokens_per_second,
        **speculation.metrics(),
        "seconds": seconds,
        "writing_seconds": writing_seconds,
        "num_resumed": len(earlier),
        "bits_per_byte": bits_per_byte(known),
        "stopped_share": sum(row["stopped"] for row in rows) / max(1, len(rows)),
        "device": str(writer.model.device),
    }


def _heads(attempt: Attempt) -> Path | None:
    """The heads that were trained with the model. They are in no key, for what they guess changes no completion."""
    model = attempt.inputs["model"]
    return model.path(HEADS_FILE) if HEADS_FILE in model.names else None


def load(folder: Path, *, precision: Literal["float32", "bfloat16"], heads: Path | None = None) -> Writer:
    """Read a model and its tokenizer from a folder, and nothing from anywhere else.

    Args:
        heads: the file of heads that were trained with it.

    Raises:
        UserError: the folder holds no complete causal language model with a tokenizer, or the heads are of another model.
    """
    tokenizer = load_tokenizer(folder)
    base = load_model(folder, dtype=precision)
    mtp = MtpModel.with_saved_heads(base, heads) if heads else MtpModel(base, num_heads=1, seed=0)
    return Writer(mtp.to(accelerator()), tokenizer)


def write(
    writer: Writer,
    prompts: dict[str, str],
    config: Writing,
    *,
    batch_size: int,
    speculation: Speculation | None = None,
    earlier: Sequence[Row] = (),
    on_row: Callable[[Row], None] = lambda row: None,
    put_away: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Complete each prompt `num_samples` times.

    Args:
        prompts: text by problem id.
        batch_size: completions under way at one time.
        speculation: see `decode`.
        earlier: completions that an attempt before this one has made.
        on_row: told each row, those of an earlier attempt too.
        put_away: told each row that this attempt made.

    Returns:
        Rows of `completions.parquet`, in order of prompt and sample.

    Raises:
        UserError: a prompt leaves no room in the model's positions.
        Unavailable: another process took over.
    """
    rows: dict[tuple[str, int], Row] = {(row["problem_id"], row["sample"]): row for row in earlier}
    for row in rows.values():
        on_row(row)
    requests = list(_requests(writer, prompts, config))
    if rows:
        log.info("goes on from an earlier attempt: %d of %d completions are there", len(rows), len(requests))
    done = decode(
        writer.mtp,
        [one for one in requests if (one.problem_id, one.sample) not in rows],
        sampling=Sampling(config.temperature, config.top_p, config.seed or 0),
        end_ids=writer.end_ids,
        batch_size=batch_size,
        is_enough=_StopWatch(writer.tokenizer, config.protocol),
        speculation=speculation,
    )
    with ProgressBar("completions", len(requests), unit="completion", done=len(rows)) as progress:
        for one in done:
            row = _row(writer.tokenizer, prompts, one, config.protocol)
            rows[one.request.problem_id, one.request.sample] = row
            on_row(row)
            put_away(row)
            progress.advance()
    return [rows[request.problem_id, request.sample] for request in requests]


def _requests(writer: Writer, prompts: dict[str, str], config: Writing) -> Iterator[Request]:
    num_shortened = 0
    encoded = encode_prompts(list(prompts.values()), writer.tokenizer, is_chat=is_chat(config.protocol))
    for problem_id, ids in zip(prompts, map(tuple, encoded), strict=True):
        room = _room(writer, problem_id, len(ids), config)
        num_shortened += room < config.max_new_tokens
        for sample in range(config.num_samples):
            yield Request(problem_id, sample, ids, room)
    if num_shortened:
        log.warning(
            "%d prompts leave less than %d tokens of the model's %d positions; their completions end there",
            num_shortened, config.max_new_tokens, writer.max_positions,
        )  # fmt: skip


def _room(writer: Writer, problem_id: str, num_prompt_tokens: int, config: Writing) -> int:
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

    def __init__(self, tokenizer: PreTrainedTokenizerBase, protocol: ProtocolId) -> None:
        self.tokenizer, self.protocol = tokenizer, protocol
        self.stops = protocol_named(protocol).stops
        # No token is shorter than a byte, so a stop string that has just ended lies in so many tokens.
        self.num_tail_tokens = max((len(stop.encode()) for stop in self.stops), default=0) + 1

    def __call__(self, token_ids: list[int]) -> bool:
        tail = _text(self.tokenizer, token_ids[-self.num_tail_tokens :])
        # The whole is decoded only where it may be done: a fence may open or close a block.
        return (
            any(stop in tail for stop in self.stops) and cut_at_stop(_text(self.tokenizer, token_ids), self.protocol)[1]
        )


def _text(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    text = tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _row(
    tokenizer: PreTrainedTokenizerBase, prompts: dict[str, str], done: Completed, protocol: ProtocolId
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


def likelihoods(
    writer: Writer, problems: Sequence[Problem], prompts: Mapping[str, str], protocol: ProtocolId, *, batch_size: int
) -> list[dict[str, Any]]:
    """How well the model knows what it should write: rows of `likelihoods.parquet`, in the order of the problems.

    Measured are the tokens of the protocol's answer up to its stop string, without the end of sequence. A solution that the model
    has no positions for has no bits.
    """
    texts = [cut_at_stop(completion_text(problem, protocol), protocol)[0] for problem in problems]
    asked = encode_prompts([prompts[problem.id] for problem in problems], writer.tokenizer, is_chat=is_chat(protocol))
    knowns = [Known(*pair) for pair in zip(asked, encode_plain(texts, writer.tokenizer), strict=True)]
    fits = [writer.max_positions is None or known.num_tokens <= writer.max_positions for known in knowns]
    bits = iter(
        solution_bits(
            writer.model, [one for one, is_short in zip(knowns, fits, strict=True) if is_short], batch_size=batch_size
        )
    )
    return [
        {
            "problem_id": problem.id,
            "bits": round(next(bits), _BITS_DECIMALS) if is_short else None,
            "num_bytes": len(text.encode()),
        }
        for problem, text, is_short in zip(problems, texts, fits, strict=True)
    ]
