"""From problems to tensors: encoding, the mask of the prompt, packing.

Owns which token is a target (completion and end of sequence) and which document a token of a packed row belongs to. The
text comes from `prompts`; what a model does with document ids is `model`'s, shifting targets is `loss`'s.

Shape letters: B packed rows, S position.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

from mlops_tasks.config.sources import Text
from mlops_tasks.data.problems import Problem
from mlops_tasks.data.prompts import completion_text, is_chat, render_prompt, require_kind
from mlops_tasks.errors import UserError

NO_DOCUMENT = -1


@dataclass(frozen=True, eq=False)
class Example:
    """One problem as tokens: prompt, completion, end of sequence."""

    problem_id: str
    token_ids: npt.NDArray[np.int64]
    is_target: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, eq=False)
class Row:
    """Examples that share a row, in order; example i is document i."""

    examples: tuple[Example, ...]

    def __len__(self) -> int:
        return sum(len(example) for example in self.examples)


@dataclass(frozen=True, eq=False)
class Batch:
    """Packed rows as tensors of shape [B, S], padded on the right."""

    input_ids: torch.Tensor
    """int64; padding is any valid id."""
    is_target: torch.Tensor
    """bool; False in prompts and padding."""
    document_ids: torch.Tensor
    """int64, 0.. in each row; -1 is padding, and nothing else says what is padding."""
    position_ids: torch.Tensor
    """int64, from 0 in each document, and from 0 in the padding."""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        return Batch(
            self.input_ids.to(device),
            self.is_target.to(device),
            self.document_ids.to(device),
            self.position_ids.to(device),
        )


def encode(
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    text: Text,
    shots: Sequence[Problem] = (),
) -> tuple[list[Example], list[str]]:
    """Turn problems into examples, in the given order.

    Args:
        shots: what `prompts.shots_of` returned for `text.prompt`.

    Returns:
        The examples of at most `text.max_length` tokens, and the ids of the problems whose example is longer.

    Raises:
        UserError: the tokenizer has no end-of-sequence token, so that no model could learn to stop, or the text format cannot
            ask for these problems.
    """
    require_kind(problems, text.prompt)
    # Two encodings, so that no token spans the boundary: a token that is half prompt could be neither masked nor learnt.
    rendered = [render_prompt(problem, text.prompt, shots, tokenizer) for problem in problems]
    prompts = encode_prompts(rendered, tokenizer, is_chat=is_chat(text.prompt))
    completions = encode_plain([completion_text(problem, text.prompt) for problem in problems], tokenizer)
    end = [end_of_sequence(tokenizer)]
    encoded = [
        _example(problem.id, prompt, completion + end)
        for problem, prompt, completion in zip(problems, prompts, completions, strict=True)
    ]
    too_long = [example.problem_id for example in encoded if len(example) > text.max_length]
    return [example for example in encoded if len(example) <= text.max_length], too_long


def encode_prompts(
    prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, is_chat: bool = False
) -> list[list[int]]:
    """The tokens that completions are learnt after, and that generation starts from.

    Args:
        is_chat: the prompts are a chat template's, whose special tokens, the first one too, are written out in them.
    """
    if is_chat:
        return [list(tokenizer(prompt, add_special_tokens=False)["input_ids"]) for prompt in prompts]
    start = _start(tokenizer)
    return [start + prompt for prompt in encode_plain(prompts, tokenizer)]


def end_of_sequence(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends every completion.

    Raises:
        UserError: the tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"The tokenizer {tokenizer.name_or_path!r} has no eos_token, so a model cannot learn where a program ends. "
            "Set eos_token in its tokenizer_config.json."
        )
    return int(tokenizer.eos_token_id)


def pack(examples: Sequence[Example], max_length: int) -> list[Row]:
    """Put each example into the first row that has room for it, in the given order.

    Args:
        max_length: longest row in tokens; no example is longer.

    Example:
        lengths 5, 4, 3, 1 with `max_length` 8 give the rows [5, 3] and [4, 1].
    """
    rows: list[list[Example]] = []
    room: list[int] = []
    for example in examples:
        assert len(example) <= max_length, (
            f"problem {example.problem_id}: {len(example)} tokens do not fit {max_length}"
        )
        fits = next((index for index, left in enumerate(room) if left >= len(example)), None)
        if fits is None:
            rows.append([example])
            room.append(max_length - len(example))
        else:
            rows[fits].append(example)
            room[fits] -= len(example)
    return [Row(tuple(row)) for row in rows]


def to_batch(rows: Sequence[Row], *, pad_id: int, width: int | None = None) -> Batch:
    """Lay rows out as tensors.

    Args:
        pad_id: id that fills the rest of a row; it may be any token's, since `document_ids` tells padding.
        width: S; None: the longest row.
    """
    columns = max(len(row) for row in rows) if width is None else width
    shape = (len(rows), columns)
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    is_target = np.zeros(shape, dtype=np.bool_)
    document_ids = np.full(shape, NO_DOCUMENT, dtype=np.int64)
    position_ids = np.zeros(shape, dtype=np.int64)
    for b, row in enumerate(rows):
        at = 0
        for document, example in enumerate(row.examples):
            here = slice(at, at + len(example))
            input_ids[b, here] = example.token_ids
            is_target[b, here] = example.is_target
            document_ids[b, here] = document
            position_ids[b, here] = np.arange(len(example))
            at += len(example)
        position_ids[b, at:] = np.arange(columns - at)
    return Batch(*(torch.from_numpy(array) for array in (input_ids, is_target, document_ids, position_ids)))


def lay_out(
    rows: Sequence[Row],
    values: Mapping[str, npt.NDArray[Any]],
    *,
    width: int | None = None,
    dtype: type[np.float32 | np.int32] = np.float32,
) -> torch.Tensor:
    """Lay values per token, such as scores, out as the tokens of `to_batch` lie.

    Args:
        values: by problem id, one value a token of the example.
        width: S; None: the longest row.
        dtype: of the result.

    Returns:
        [B, S], 0 in the padding.
    """
    columns = max(len(row) for row in rows) if width is None else width
    laid_out = np.zeros((len(rows), columns), dtype=dtype)
    for b, row in enumerate(rows):
        at = 0
        for example in row.examples:
            mine = values[example.problem_id]
            assert len(mine) == len(example), f"problem {example.problem_id}: {len(mine)} values, {len(example)} tokens"
            laid_out[b, at : at + len(example)] = mine
            at += len(example)
    return torch.from_numpy(laid_out)


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """An id to fill rows with: the pad token if there is one, else the end of sequence."""
    return end_of_sequence(tokenizer) if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def fold_of(seed: int, problem_id: str, num_folds: int) -> int:
    """The fold of a problem, from 0: SHA-256 of seed and id, modulo the number of folds."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{problem_id}".encode()).digest()) % num_folds


def _example(problem_id: str, prompt: list[int], completion: list[int]) -> Example:
    return Example(
        problem_id=problem_id,
        token_ids=np.array(prompt + completion, dtype=np.int64),
        is_target=np.arange(len(prompt) + len(completion)) >= len(prompt),
    )


def encode_plain(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Tokens of texts in which nothing is a special token, whatever it looks like."""
    if not texts:
        return []
    # A program that holds the text of a special token must not become that token.
    return [
        list(ids) for ids in tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    ]


def _start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The beginning of sequence, if this tokenizer puts one before a text."""
    first = tokenizer("a")["input_ids"][:1]
    return (
        [int(tokenizer.bos_token_id)]
        if tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id]
        else []
    )
