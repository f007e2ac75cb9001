"""Mutants: what one mistake is, and that nothing else of a program changes."""

from __future__ import annotations

import ast
import difflib

import numpy as np
import pytest

from mlops_tasks.scoring.mutations import Mutant, mutants

COUNT_ABOVE = '''def count_above(numbers, limit):
    """How many are above 3?"""
    total = 0  # starts at 0
    for number in numbers:
        if number > limit and number != 7:
            total += 1
    return total
'''


def all_mutants(source: str) -> list[Mutant]:
    return mutants(source, count=1000, rng=np.random.default_rng(0))


def edits(source: str, mistake: str) -> set[tuple[str, str]]:
    """The lines that a mutant lacks and those that it has instead."""
    found = set()
    for mutant in all_mutants(source):
        if mutant.mistake == mistake:
            lines = list(difflib.ndiff(source.splitlines(), mutant.solution.splitlines()))
            gone, new = ("".join(line[2:].strip() for line in lines if line.startswith(sign)) for sign in "-+")
            found.add((gone, new))
    return found


def test_operators_are_swapped_one_at_a_time() -> None:
    line = "if number > limit and number != 7:"
    assert edits(COUNT_ABOVE, "operator") == {
        (line, "if number >= limit and number != 7:"),
        (line, "if number > limit or number != 7:"),
        (line, "if number > limit and number == 7:"),
        ("total += 1", "total -= 1"),
    }


def test_constants_are_off_by_one_and_texts_and_comments_are_left_alone() -> None:
    line = "if number > limit and number != 7:"
    assert edits(COUNT_ABOVE, "constant") == {
        ("total = 0  # starts at 0", "total = 1  # starts at 0"),
        ("total = 0  # starts at 0", "total = -1  # starts at 0"),
        (line, line.replace("7", "6")),
        (line, line.replace("7", "8")),
        ("total += 1", "total += 0"),
        ("total += 1", "total += 2"),
    }


def test_a_line_is_dropped_and_the_only_one_of_a_block_becomes_pass() -> None:
    assert edits(COUNT_ABOVE, "line") == {
        ("total = 0  # starts at 0", ""),
        ("total += 1", "pass"),
        ("return total", ""),
    }


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = (a) + (b)\n", {"x = (a) - (b)\n"}),
        ("x = a is  not b\n", {"x = a is b\n"}),
        ("x = a not in b\n", {"x = a in b\n"}),
        ("x = a < b <= c\n", {"x = a <= b <= c\n", "x = a < b < c\n"}),
        ("ä = 'ö'; x = ä ** b\n", {"ä = 'ö'; x = ä * b\n"}),
        ("x = f'{a + b}' + c\n", {"x = f'{a + b}' - c\n"}),
        ("x = (a  # a + b\n     * b)\n", {"x = (a  # a + b\n     + b)\n"}),
    ],
)
def test_an_operator_is_found_wherever_it_stands(source: str, expected: set[str]) -> None:
    assert {one.solution for one in all_mutants(source) if one.mistake == "operator"} == expected


def test_an_operator_that_is_in_a_comment_first_makes_no_mutant_that_is_the_same_program() -> None:
    source = "x = (a  # * b\n     * b)\n"
    assert all_mutants(source) == [Mutant("pass\n", "line")]


def test_every_mutant_parses_and_differs_from_the_original_and_from_the_others() -> None:
    found = all_mutants(COUNT_ABOVE)
    assert len(found) == len({one.solution for one in found}) == 13
    trees = {ast.dump(ast.parse(one.solution)) for one in found}
    assert len(trees) == 13
    assert ast.dump(ast.parse(COUNT_ABOVE)) not in trees


def test_the_draw_is_a_function_of_the_seed() -> None:
    one, same, other = (mutants(COUNT_ABOVE, count=4, rng=np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one == same
    assert len(one) == len(other) == 4
    assert one != other


def test_a_program_without_anything_to_get_wrong_has_no_mutants() -> None:
    assert all_mutants('def f(a):\n    """Nothing."""\n') == []
