"""Values that travel, and bytes that are none."""

import json
import math
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import pytest

from mlops_tasks.evaluation.values import MalformedError, Node, Reader, encode


def refuse(value: Any) -> Node:
    raise TypeError(f"not plain: {value!r}")


def travelled(*values: Any) -> list[Any]:
    graph, _ = encode(values, refuse)
    return Reader(json.loads(json.dumps(graph)), refuse).items


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, 0, -1, 2**63, 10**1000, -(10**1000), 0.1, -0.0, math.inf, 1j, complex(-0.0, 2)),
        *("", "a\0b", "\ud800", "ä" * 10, b"", b"\xff\0", bytearray(b"ab"), int, ValueError, type(None), Decimal),
        *([], [1, [2, (3, {4, frozenset({5})})]], (), ((),), set(), {"a": {1: [None]}}, {(1, 2): 3}),
        *(deque([1, 2], maxlen=3), Counter("aab"), OrderedDict(b=1, a=2), defaultdict(list, {"a": [1]}), range(5, 0, -2)),
        *(Decimal("1.50"), Fraction(-1, 3), date(2024, 2, 29), time(1, 2, 3, 4), timedelta(-1, 5, 7)),
        *(PurePosixPath("/a//b"), PurePosixPath(), PureWindowsPath("c:/a")),
        *(datetime(2024, 2, 29, 12, tzinfo=UTC), {1: 2}.keys(), {1: 2}.items()),
    ],
)  # fmt: skip
def test_a_plain_value_arrives_as_it_was(value: Any) -> None:
    (made,) = travelled(value)
    assert type(made) is type(value)
    assert made == value
    assert repr(made) == repr(value)


def test_what_is_one_object_stays_one() -> None:
    inner: list[Any] = [1]
    inner.append(inner)
    first, second, pair = travelled(inner, {"a": inner}, (inner, inner))
    assert first[1] is first
    assert second["a"] is first
    assert pair[0] is pair[1] is first


def test_depth_costs_no_recursion() -> None:
    deep: Any = ()
    for _ in range(100_000):
        deep = (deep,)
    (made,) = travelled(deep)
    depth = 0
    while made:
        (made,), depth = made, depth + 1
    assert depth == 100_000


def test_a_factory_comes_along() -> None:
    (made,) = travelled(defaultdict(int))
    assert made["new"] == 0


def test_objects_that_a_reader_has_are_changed_in_place() -> None:
    outer: list[Any] = [[3, 1], {"a": 1}]
    _, there = encode([outer], refuse)
    here = Reader(encode([[[3, 1], {"a": 1}]], refuse)[0], refuse)
    here.items[0][0].sort()
    here.items[0][1]["b"] = 2
    graph, _ = encode([here.items[0]], refuse, here.objects)
    first, second = outer
    assert Reader(graph, refuse, there).items[0] is outer
    assert (first, second) == ([1, 3], {"a": 1, "b": 2})


class Liar(int):
    pass


@pytest.mark.parametrize(
    "value", [Liar(3), print, object(), iter([]), [Liar(3)], defaultdict(print), type("T", (), {})]
)
def test_what_is_not_plain_is_left_to_the_caller(value: Any) -> None:
    with pytest.raises(TypeError, match="not plain"):
        encode([value], refuse)
    graph, _ = encode([value], lambda other: ["seen", type(other).__name__])
    assert any(node is not None and node[0] == "seen" for node in graph["nodes"])


@pytest.mark.parametrize(
    "graph",
    [
        {},
        {"items": [], "nodes": 3},
        {"items": [[0]], "nodes": []},
        {"items": [[-1]], "nodes": [["list", []]]},
        {"items": [{"a": 1}], "nodes": []},
        {"items": [], "nodes": [["tuple", [[0]]]]},
        {"items": [], "nodes": [["tuple", [[1]]], ["frozenset", [[0]]]]},
        {"items": [], "nodes": [["set", [[1]]], ["list", []]]},
        {"items": [], "nodes": [["int", "zz"]]},
        {"items": [], "nodes": [["int", 1, 2, 3]]},
        {"items": [], "nodes": [["Fraction", "0x1", "0x0"]]},
        {"items": [], "nodes": [["dict", None, [1]]]},
        {"items": [], "nodes": [["defaultdict", "eval", []]]},
        {"items": [], "nodes": [["type", "builtins.eval"]]},
        {"items": [], "nodes": [["type", "os.system"]]},
        {"items": [], "nodes": [["pickle", "gASVAA=="]]},
        {"items": [], "nodes": [[["list"], []]]},
        {"items": [], "nodes": [[]]},
        {"items": [], "nodes": [None]},
    ],
)
def test_bytes_that_are_no_values_are_refused(graph: Any) -> None:
    def resolve(node: Node) -> Any:
        raise MalformedError(f"no such kind: {node[0]}")

    with pytest.raises(MalformedError, match=r"\w"):
        Reader(graph, resolve)


def test_an_object_of_another_kind_is_not_changed() -> None:
    mine: list[Any] = [1]
    with pytest.raises(MalformedError, match="another kind"):
        Reader({"items": [], "nodes": [["dict", None, ["a", 1]]]}, refuse, [mine])
    assert mine == [1]


def test_an_integer_has_no_most_digits() -> None:
    assert travelled(7**9999) == [7**9999]
