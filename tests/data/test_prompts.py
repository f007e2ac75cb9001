"""Prompts, character for character."""

from __future__ import annotations

import hashlib

import pytest

from mlops_tasks.data.problems import Problem
from mlops_tasks.data.prompts import (
    completion_text,
    cut_at_stop,
    prompts_sha256,
    render_prompt,
    shots_of,
)
from mlops_tasks.data.protocols import protocol_named
from mlops_tasks.errors import UserError


def problem(problem_id: str, name: str, *, num_tests: int = 3, ending: str = "") -> Problem:
    return Problem(
        id=problem_id,
        prompt=f"Write a function to {name}.",
        solution=f"def {name}(x):\n    return x{ending}",
        tests=tuple(f"assert {name}({n}) == {n}" for n in range(num_tests)),
        entry_point=name,
        split="prompt",
        source="own",
        licence="unknown",
    )


SHOTS = [problem("4", "four"), problem("2", "two"), problem("3", "three"), problem("5", "five")]


def test_docstring_prompt_holds_the_description_and_the_first_test() -> None:
    asked = problem("700", "keep")
    assert render_prompt(asked, "docstring-0shot") == '"""\nWrite a function to keep.\nassert keep(0) == 0\n"""\n'
    assert completion_text(asked, "docstring-0shot") == "def keep(x):\n    return x\n"


def test_begin_done_prompt_solves_problems_2_3_and_4_first() -> None:
    asked = problem("700", "keep")
    shots = shots_of(SHOTS, "begin-done-3shot")
    assert [shot.id for shot in shots] == ["2", "3", "4"]
    expected = "".join(
        f"You are an expert Python programmer, and here is your task: Write a function to {name}. "
        f"Your code should pass these tests:\n\nassert {name}(0) == 0\nassert {name}(1) == 1\nassert {name}(2) == 2\n"
        f"[BEGIN]\n{answer}"
        for name, answer in [
            *((name, f"def {name}(x):\n    return x\n[DONE]\n\n") for name in ("two", "three", "four")),
            ("keep", ""),
        ]
    )
    assert render_prompt(asked, "begin-done-3shot", shots) == expected
    assert completion_text(asked, "begin-done-3shot") == "def keep(x):\n    return x\n[DONE]"


def test_begin_done_prompt_shows_three_tests_at_most() -> None:
    shots = shots_of(SHOTS, "begin-done-3shot")
    assert "keep(2)" in render_prompt(problem("700", "keep", num_tests=5), "begin-done-3shot", shots)
    assert "keep(3)" not in render_prompt(problem("700", "keep", num_tests=5), "begin-done-3shot", shots)
    assert "keep(0)" in render_prompt(problem("700", "keep", num_tests=1), "begin-done-3shot", shots)


def test_blank_lines_at_the_end_of_a_solution_are_not_learnt() -> None:
    assert completion_text(problem("1", "keep", ending=" \n\n \n"), "docstring-0shot") == "def keep(x):\n    return x\n"


def test_docstring_prompt_needs_no_shots_and_begin_done_names_the_missing_ones() -> None:
    assert shots_of([], "docstring-0shot") == ()
    with pytest.raises(UserError, match=r"has no 3, 4 there \(it has 2\)"):
        shots_of([problem("2", "two")], "begin-done-3shot")


def test_a_completion_ends_at_the_earliest_stop() -> None:
    text = "def f():\n    return 1\nprint(f())\nassert f()\n"
    assert cut_at_stop(text, "docstring-0shot") == ("def f():\n    return 1", True)
    assert cut_at_stop("def f():\n    if x:\n        print(x)\n", "docstring-0shot")[1] is False
    assert cut_at_stop("x = 1\n[DONE]\n[BEGIN]", "begin-done-3shot") == ("x = 1\n", True)


def test_a_learnt_completion_is_not_cut_before_its_end() -> None:
    asked = problem("700", "keep")
    assert cut_at_stop(completion_text(asked, "docstring-0shot"), "docstring-0shot")[1] is False
    assert cut_at_stop(completion_text(asked, "begin-done-3shot"), "begin-done-3shot") == (
        "def keep(x):\n    return x\n",
        True,
    )
    assert protocol_named("begin-done-3shot").stops == ("[DONE]",)


def test_prompt_hash_tells_other_prompts_and_another_order_apart() -> None:
    assert prompts_sha256(["a", "b"]) == hashlib.sha256(b'["a", "b"]').hexdigest()
    assert len({prompts_sha256(prompts) for prompts in (["a", "b"], ["b", "a"], ["ab"], ["a", "b", ""])}) == 4
