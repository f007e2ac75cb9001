"""What makes two problems equal."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlops_tasks.data.contamination import contaminated_pairs
from mlops_tasks.data.problems import Problem
from mlops_tasks.data.sources.mbpp import read_mbpp

CODE = "def f(x):\n    return x"


def problem(problem_id: str, split: str, text: str, code: str) -> Problem:
    return Problem.model_validate(
        {
            "id": problem_id,
            "prompt": text,
            "solution": code,
            "tests": ("assert f(1) == 1",),
            "entry_point": "f",
            "split": split,
            "source": "own",
            "licence": "unknown",
        }
    )


def pairs(*problems: Problem) -> list[str]:
    return [str(pair) for pair in contaminated_pairs(problems)]


def test_the_same_text_in_other_case_and_spacing_is_a_pair() -> None:
    found = pairs(
        problem("1", "train", "Add  ONE.\n", CODE), problem("2", "test", "add one.", "def f(x):\n    return 1")
    )
    assert found == ["1 (train) and 2 (test) have the same text"]


@pytest.mark.parametrize(
    "code",
    [
        "def f(x): return x  # a comment",
        'def f(x):\n\t"""A docstring."""\n\n\treturn (x)',
        '"""A docstring of the module."""\ndef f(x):\n    return x',
    ],
)
def test_the_same_code_in_another_layout_is_a_pair(code: str) -> None:
    assert pairs(problem("1", "train", "One.", code), problem("2", "validation", "Two.", CODE)) == [
        "1 (train) and 2 (validation) have the same code"
    ]


@pytest.mark.parametrize("code", ["def g(x):\n    return x", "def f(y):\n    return y", "def f(x):\n    return -x"])
def test_code_with_other_names_or_operators_is_no_pair(code: str) -> None:
    assert pairs(problem("1", "train", "One.", code), problem("2", "test", "Two.", CODE)) == []


def test_a_function_of_nothing_but_a_docstring_can_be_compared() -> None:
    only = 'def f(x):\n    """Nothing."""'
    assert pairs(problem("1", "train", "One.", only), problem("2", "test", "Two.", only)) != []


def test_only_training_problems_are_held_against_validation_and_test() -> None:
    same = [problem(str(number), split, "One.", CODE) for number, split in enumerate(("prompt", "test", "validation"))]
    assert pairs(*same) == []
    assert pairs(problem("7", "train", "One.", CODE), problem("8", "train", "One.", CODE), same[0]) == []


def test_every_pair_is_listed() -> None:
    held = [problem("1", "test", "One.", CODE), problem("2", "validation", "One.", CODE)]
    found = pairs(*held, problem("7", "train", "One.", "def f(x):\n    return 2"))
    assert found == ["7 (train) and 1 (test) have the same text", "7 (train) and 2 (validation) have the same text"]


def test_problems_of_another_snapshot_count_whatever_they_are_for() -> None:
    reference = [problem("1", "train", "one", CODE), problem("2", "train", "two", "def f(x):\n    return 2")]
    data = [problem("7", "train", "seven", CODE), problem("8", "prompt", "TWO", "def f(x):\n    return 8")]
    assert [str(pair) for pair in contaminated_pairs(reference, data)] == [
        "2 (train) and 8 (prompt) have the same text",
        "1 (train) and 7 (train) have the same code",
    ]
    assert contaminated_pairs(reference) == []


def test_published_mbpp_has_these_pairs(mbpp_folder: Path) -> None:
    found = {
        (pair.train.id, pair.other.id, pair.equal) for pair in contaminated_pairs(read_mbpp(mbpp_folder / "mbpp.jsonl"))
    }
    assert found == {
        ("602", "217", "text"),
        ("704", "248", "text"),
        ("872", "216", "text"),
        ("625", "591", "code"),
        ("699", "595", "code"),
        ("704", "248", "code"),
    }
