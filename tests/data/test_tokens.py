"""Tokens: the exact boundary, the mask, packing, folds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mlops_tasks.config.sources import Text
from mlops_tasks.data.problems import Problem
from mlops_tasks.data.prompts import completion_text, render_prompt
from mlops_tasks.data.sources.mbpp import read_mbpp
from mlops_tasks.data.tokens import (
    Example,
    encode,
    encode_prompts,
    end_of_sequence,
    fold_of,
    lay_out,
    pack,
    padding_id,
    to_batch,
)
from mlops_tasks.errors import UserError

END, PAD, START = 0, 1, 2


def byte_tokenizer(*, adds_start: bool = False, merges: Sequence[tuple[str, str]] = ()) -> PreTrainedTokenizerBase:
    """A token a byte, and the merges asked for; `</s>` is 0, `<pad>` 1, `<s>` 2."""
    pieces = ["</s>", "<pad>", "<s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    bpe = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, list(merges)))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(["</s>", "<pad>", "<s>"])
    if adds_start:
        bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", START)])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe, eos_token="</s>", pad_token="<pad>", bos_token="<s>"
    )


def problem(problem_id: str = "601", solution: str = "def f(x):\n    return x") -> Problem:
    return Problem(
        id=problem_id,
        prompt="Write f.",
        solution=solution,
        tests=("assert f(1) == 1",),
        entry_point="f",
        split="train",
        source="own",
        licence="unknown",
    )


def example(problem_id: str, length: int, num_prompt: int = 1) -> Example:
    ids = np.arange(length) + 100 * int(problem_id)
    return Example(problem_id, ids, np.arange(length) >= num_prompt)


def test_sample_contains_the_code_of_the_solution_as_its_targets() -> None:
    tokenizer = byte_tokenizer()
    [encoded], _ = encode([problem()], tokenizer, Text())
    assert tokenizer.decode(encoded.token_ids[encoded.is_target][:-1]) == "def f(x):\n    return x\n"
    assert tokenizer.decode(encoded.token_ids[~encoded.is_target]) == '"""\nWrite f.\nassert f(1) == 1\n"""\n'


def test_every_solution_of_mbpp_is_in_its_sample(mbpp_folder: Path) -> None:
    problems = read_mbpp(mbpp_folder / "mbpp.jsonl")
    tokenizer = byte_tokenizer()
    examples, too_long = encode(problems, tokenizer, Text(max_length=8192))
    assert (len(examples), too_long) == (974, [])
    for asked, encoded in zip(problems, examples, strict=True):
        assert asked.solution.rstrip() in tokenizer.decode(encoded.token_ids[encoded.is_target])


def test_the_end_of_sequence_is_learnt_once_and_last() -> None:
    [encoded], _ = encode([problem()], byte_tokenizer(), Text())
    assert encoded.token_ids[-1] == END and bool(encoded.is_target[-1])
    assert np.count_nonzero(encoded.token_ids == END) == 1


def test_no_token_spans_the_boundary_of_prompt_and_completion() -> None:
    tokenizer = byte_tokenizer(merges=[("Ċ", "d")])  # a line end and the d of def
    text = render_prompt(problem(), "docstring-0shot") + completion_text(problem(), "docstring-0shot")
    assert tokenizer.convert_tokens_to_ids("Ċd") in tokenizer(text)["input_ids"]
    [encoded], _ = encode([problem()], tokenizer, Text())
    assert tokenizer.convert_tokens_to_ids("Ċd") not in encoded.token_ids
    assert tokenizer.decode(encoded.token_ids[encoded.is_target][:3]) == "def"


def test_a_prompt_at_generation_is_the_prompt_that_was_learnt() -> None:
    for tokenizer in (byte_tokenizer(), byte_tokenizer(adds_start=True)):
        [encoded], _ = encode([problem()], tokenizer, Text())
        prompt = encode_prompts([render_prompt(problem(), "docstring-0shot")], tokenizer)[0]
        assert prompt == encoded.token_ids[~encoded.is_target].tolist()


def test_start_token_is_there_once_only_if_the_tokenizer_adds_it() -> None:
    assert START not in encode_prompts(["a"], byte_tokenizer())[0]
    assert encode_prompts(["a"], byte_tokenizer(adds_start=True))[0][0] == START
    [encoded], _ = encode([problem()], byte_tokenizer(adds_start=True), Text())
    assert np.count_nonzero(encoded.token_ids == START) == 1


def test_the_name_of_a_special_token_in_a_program_is_only_text() -> None:
    tokenizer = byte_tokenizer()
    [encoded], _ = encode([problem(solution="f = lambda x: '</s><pad>'")], tokenizer, Text())
    assert np.count_nonzero(encoded.token_ids == END) == 1 and PAD not in encoded.token_ids
    assert "'</s><pad>'" in tokenizer.decode(encoded.token_ids[encoded.is_target][:-1])


def test_an_example_over_max_length_is_left_out_by_id() -> None:
    tokenizer = byte_tokenizer()
    [short], _ = encode([problem()], tokenizer, Text())
    longer = problem("602", "def f(x):\n    return x + 0")
    examples, too_long = encode([problem(), longer], tokenizer, Text(max_length=len(short)))
    assert [one.problem_id for one in examples] == ["601"] and too_long == ["602"]


def test_a_tokenizer_without_end_of_sequence_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="has no eos_token"):
        end_of_sequence(tokenizer)


def test_padding_falls_back_to_the_end_of_sequence() -> None:
    tokenizer = byte_tokenizer()
    assert padding_id(tokenizer) == PAD
    tokenizer.pad_token = None
    assert padding_id(tokenizer) == END


def test_first_fit_fills_the_earliest_row_with_room() -> None:
    rows = pack([example("1", 5), example("2", 4), example("3", 3), example("4", 1)], 8)
    assert [[one.problem_id for one in row.examples] for row in rows] == [["1", "3"], ["2", "4"]]
    assert [len(row) for row in rows] == [8, 5]


def test_an_example_longer_than_a_row_cannot_be_packed() -> None:
    with pytest.raises(AssertionError, match="9 tokens do not fit 8"):
        pack([example("1", 9)], 8)


def test_packed_rows_as_tensors_worked_by_hand() -> None:
    batch = to_batch(pack([example("1", 3, num_prompt=2), example("2", 2), example("3", 4)], 6), pad_id=9)
    assert batch.input_ids.tolist() == [[100, 101, 102, 200, 201], [300, 301, 302, 303, 9]]
    assert batch.is_target.tolist() == [[False, False, True, False, True], [False, True, True, True, False]]
    assert batch.document_ids.tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, -1]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]]
    assert batch.input_ids.dtype == batch.document_ids.dtype == batch.position_ids.dtype == torch.int64


def test_padding_is_told_by_document_id_though_pad_and_end_are_one_token() -> None:
    [encoded], _ = encode([problem()], byte_tokenizer(), Text())
    batch = to_batch(pack([encoded], 512), pad_id=END, width=512)
    used = batch.document_ids == 0
    assert int(used.sum()) == len(encoded)
    assert bool(batch.is_target[0, len(encoded) - 1]) and not bool(batch.is_target[~used].any())


def test_a_width_adds_padding_and_nothing_else() -> None:
    rows = pack([example("1", 3), example("2", 4)], 8)
    narrow, wide = to_batch(rows, pad_id=9), to_batch(rows, pad_id=9, width=10)
    for name in ("input_ids", "is_target", "document_ids", "position_ids"):
        assert torch.equal(getattr(narrow, name), getattr(wide, name)[:, :7])
    assert wide.position_ids[0, 7:].tolist() == [0, 1, 2]


def test_values_lie_as_their_tokens_do() -> None:
    rows = pack([example("1", 3), example("2", 2)], 6)
    laid_out = lay_out(rows, {"1": np.array([1.0, 2.0, 3.0]), "2": np.array([4.0, 5.0]), "9": np.array([6.0])}, width=6)
    assert laid_out.tolist() == [[1, 2, 3, 4, 5, 0]] and laid_out.dtype == torch.float32
    with pytest.raises(AssertionError, match="problem 2: 1 values, 2 tokens"):
        lay_out(rows, {"1": np.zeros(3), "2": np.zeros(1)})


def test_a_batch_moves_whole() -> None:
    batch = to_batch(pack([example("1", 3)], 3), pad_id=0).to("meta")
    assert {tensor.device.type for tensor in vars(batch).values()} == {"meta"}


def test_fold_is_the_hash_of_seed_and_id() -> None:
    assert fold_of(7, "601", 5) == int(hashlib.sha256(b"7:601").hexdigest(), 16) % 5
    folds = [fold_of(0, str(number), 2) for number in range(601, 975)]
    assert 150 < sum(folds) < 224
    assert folds != [fold_of(1, str(number), 2) for number in range(601, 975)]
