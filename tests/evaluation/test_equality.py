"""Comparisons that a program cannot answer itself."""

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from mlops_tasks.evaluation.equality import NAME, compile_test, judged_equal


class AlwaysEqual:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


class AlwaysEqualList(list[Any]):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


@dataclass
class Point:
    x: int


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (AlwaysEqual(), 7),
        (7, AlwaysEqual()),
        (AlwaysEqualList(), [1]),
        ([AlwaysEqual()], [1]),
        ({"a": (AlwaysEqual(),)}, {"a": (1,)}),
        (deque([AlwaysEqual()]), deque([1])),
    ],
)
def test_an_object_that_equals_everything_equals_nothing_plain(given: object, expected: object) -> None:
    assert given == expected
    assert not judged_equal(given, expected)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (1, 1.0),
        ([1, (2, {3})], [1, (2, {3})]),
        (Counter("aab"), {"a": 2, "b": 1}),
        (OrderedDict(a=1), {"a": 1}),
        (Fraction(1, 2), 0.5),
        (Decimal("0.5"), 0.5),
        (Point(1), Point(1)),
        ([Point(1)], [Point(1)]),
    ],
)
def test_values_that_are_equal_stay_equal(left: object, right: object) -> None:
    assert judged_equal(left, right)


def test_values_that_differ_stay_different() -> None:
    assert not judged_equal([1, 2], [1, 3])
    assert not judged_equal(Point(1), Point(2))


def test_only_plain_equality_is_rewritten() -> None:
    asked: list[tuple[object, object]] = []

    def note(left: object, right: object) -> bool:
        asked.append((left, right))
        return left == right

    source = "assert 1 + 1 == 2\nassert 1 < 2 < 3 and 3 != 4 and 5 == 5\nassert not (1 == 2)"
    exec(compile_test(source, "<test>"), {NAME: note})
    assert asked == [(2, 2), (5, 5), (1, 2)]


def test_a_failing_test_fails_on_its_own_line() -> None:
    with pytest.raises(AssertionError, match="not that") as raised:
        exec(compile_test("x = 1\nassert x == 2, 'not that'", "<test>"), {NAME: judged_equal})
    assert raised.traceback[-1].frame.code.raw.co_filename == "<test>"
    assert raised.traceback[-1].lineno + 1 == 2
