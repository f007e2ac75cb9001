"""Values as they travel between a program and its judge: a closed set of plain types, in JSON.

Owns the form; who may ask what of whom is `peers`'s. Never pickle: whoever reads a value runs no code for it, and makes nothing
but what is written here, whatever the bytes say. A graph of values is a flat table of nodes, so that depth costs no
recursion, and what is one object in two places stays one object.

An item is a scalar as JSON has it, or `[index]` of a node. A node is a kind and what it is made of. Only the standard library is
imported here.
"""

from __future__ import annotations

import builtins
import collections
import datetime
import decimal
import fractions
import json
import pathlib
import queue
import re
import statistics
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Node = list[Any]
Graph = dict[str, Any]

_INLINE_BITS = 1024
_SCALARS = (type(None), bool, str, float)


class MalformedError(Exception):
    """Bytes that are no values."""


def _exceptions(*modules: Any) -> list[type]:
    found = [value for module in modules for value in vars(module).values()]
    return [one for one in found if isinstance(one, type) and issubclass(one, BaseException)]


_NAMED: tuple[type, ...] = (
    *(int, float, complex, bool, str, bytes, bytearray, list, tuple, set, frozenset, dict, range, object, type(None)),
    *(Counter, OrderedDict, defaultdict, deque, decimal.Decimal, fractions.Fraction),
    *(
        datetime.date,
        datetime.datetime,
        datetime.time,
        datetime.timedelta,
        pathlib.PurePosixPath,
        pathlib.PureWindowsPath,
    ),
    *_exceptions(builtins, decimal, statistics, json, re, queue),
)
TYPES: dict[str, type] = {f"{one.__module__}.{one.__qualname__}": one for one in _NAMED}
"""Types that are values: whoever reads one means its own."""
_TYPE_NAMES = {one: name for name, one in TYPES.items()}

MODULES = frozenset(
    [
        "bisect",
        "cmath",
        "collections",
        "copy",
        "datetime",
        "decimal",
        "fractions",
        "functools",
        "heapq",
        "itertools",
        "json",
        "math",
        "operator",
        "random",
        "re",
        "statistics",
        "string",
        "typing",
    ]
)
"""Modules that are values in the same way."""

# How each immutable kind is written, and made again from what was written; its items are under "of".
_ATOMS: dict[type, tuple[Callable[[Any], list[Any]], Callable[..., Any]]] = {
    int: (lambda value: [hex(value)], lambda text: int(text, 16)),
    complex: (lambda value: [value.real, value.imag], complex),
    bytes: (lambda value: [value.hex()], bytes.fromhex),
    range: (lambda value: [hex(value.start), hex(value.stop), hex(value.step)], lambda *ends: range(*(int(end, 16) for end in ends))),
    decimal.Decimal: (lambda value: [str(value)], decimal.Decimal),
    fractions.Fraction: (
        lambda value: [hex(value.numerator), hex(value.denominator)],
        lambda above, below: fractions.Fraction(int(above, 16), int(below, 16)),
    ),
    datetime.date: (lambda value: [value.isoformat()], datetime.date.fromisoformat),
    datetime.datetime: (lambda value: [value.isoformat()], datetime.datetime.fromisoformat),
    datetime.time: (lambda value: [value.isoformat()], datetime.time.fromisoformat),
    datetime.timedelta: (lambda value: [value.days, value.seconds, value.microseconds], datetime.timedelta),
    pathlib.PurePosixPath: (lambda value: [str(value)], pathlib.PurePosixPath),
    pathlib.PureWindowsPath: (lambda value: [str(value)], pathlib.PureWindowsPath),
}  # fmt: skip
_VIEWS = {type({}.keys()): "keys", type({}.values()): "values", type({}.items()): "items"}
_FROZEN: dict[type, str] = {tuple: "tuple", frozenset: "frozenset"}
_MAPPINGS: tuple[type, ...] = (dict, Counter, OrderedDict, defaultdict)
_SEQUENCES: tuple[type, ...] = (list, set, deque, bytearray)
_KINDS = {one.__name__: one for one in (*_ATOMS, *_FROZEN, *_MAPPINGS, *_SEQUENCES)}
_FACTORIES = (int, float, str, list, tuple, set, dict, bool)


def is_mutable(value: Any) -> bool:
    """Whether a plain value can change in the hands of whoever it is passed to."""
    return type(value) in _MAPPINGS or type(value) in _SEQUENCES


def encode(roots: Sequence[Any], refer: Callable[[Any], Node], before: Sequence[Any] = ()) -> tuple[Graph, list[Any]]:
    """Write values.

    Args:
        roots: what to write.
        refer: the node for what is not plain; a tuple of values may be its last part. It may raise.
        before: objects that the reader has, as nodes 0, 1, …: those that can change are written as they are now.

    Returns:
        The graph, and the object of each node.
    """
    objects = list(before)
    places = {id(value): index for index, value in enumerate(objects)}

    def item(value: Any) -> Any:
        kind = type(value)
        if kind in _SCALARS or (kind is int and value.bit_length() <= _INLINE_BITS):
            return value
        place = places.setdefault(id(value), len(objects))
        if place == len(objects):
            objects.append(value)  # and so kept: an id means nothing after its object
        return [place]

    items = [item(value) for value in roots]
    nodes: list[Node | None] = []
    while len(nodes) < len(objects):
        value = objects[len(nodes)]
        is_old = len(nodes) < len(before)
        nodes.append(None if is_old and not is_mutable(value) else _node(value, item, refer))
    return {"items": items, "nodes": nodes}, objects


def _node(value: Any, item: Callable[[Any], Any], refer: Callable[[Any], Node]) -> Node:
    kind = type(value)
    if kind in _ATOMS:
        return [kind.__name__, *_ATOMS[kind][0](value)]
    if kind in (bytearray, deque, *_FROZEN, list, set):
        limit = [value.maxlen] if kind is deque else []
        return [kind.__name__, *limit, value.hex() if kind is bytearray else [item(one) for one in value]]
    if kind in _MAPPINGS and (factory := getattr(value, "default_factory", None)) in (None, *_FACTORIES):
        return [kind.__name__, factory and factory.__name__, [item(one) for pair in value.items() for one in pair]]
    if kind in _VIEWS:
        return ["view", _VIEWS[kind], [item(one) for one in value]]
    *about, last = ["type", _TYPE_NAMES[value]] if kind is type and value in _TYPE_NAMES else refer(value)
    return [*about, [item(one) for one in last] if type(last) is tuple else last]


class Reader:
    """Makes values of a graph.

    Args:
        resolve: what a node that `refer` wrote stands for.
        before: the objects of the first nodes; those that can change are brought to what the graph says.

    Raises:
        MalformedError: the graph is none.
    """

    def __init__(self, graph: Graph, resolve: Callable[[Node], Any], before: Sequence[Any] = ()) -> None:
        self._resolve = resolve
        self.mentioned: set[int] = set()
        """Nodes that an item or another node refers to."""
        try:
            self._nodes: list[Any] = graph["nodes"]
            self._made: dict[int, Any] = dict(enumerate(before))
            fills = [index for index, node in enumerate(self._nodes) if node is not None and self._prepare(index, node)]
            for index in range(len(self._nodes)):
                self._make(index)
            for index in fills:
                self._fill(self._made[index], self._nodes[index])
            self.changed: list[Any] = [self._made[index] for index in fills if index < len(before)]
            self.items: list[Any] = [self._item(one) for one in graph["items"]]
            self.objects: list[Any] = [self._made[index] for index in range(len(self._nodes))]
        except (MalformedError, MemoryError):
            raise
        except Exception as error:
            raise MalformedError(f"{type(error).__name__}: {error}") from None

    def _prepare(self, index: int, node: Node) -> bool:
        """An empty object for what is filled later, so that values may hold each other; whether this is one."""
        kind = _KINDS.get(node[0])
        if kind not in _MAPPINGS and kind not in _SEQUENCES:
            return False
        if index not in self._made:
            self._made[index] = deque(maxlen=node[1]) if kind is deque else kind()
            if kind is defaultdict and node[1] is not None:
                self._made[index].default_factory = TYPES[f"builtins.{node[1]}"]
        if type(self._made[index]) is not kind:
            raise MalformedError(f"node {index} was another kind of object")
        return True

    def _make(self, index: int) -> None:
        """Everything else, its parts first."""
        waiting, begun = [index], set()
        while waiting:
            at = waiting[-1]
            missing = [] if at in self._made else [part for part in self._parts(at) if part not in self._made]
            if missing and at in begun:
                raise MalformedError(f"node {at} holds itself")
            begun.add(at)
            waiting += missing
            if not missing:
                waiting.pop()
                if at not in self._made:
                    self._made[at] = self._value(self._nodes[at])

    def _parts(self, index: int) -> Iterable[int]:
        last = self._nodes[index][-1]
        return [one[0] for one in last if type(one) is list] if type(last) is list else []

    def _value(self, node: Node) -> Any:
        kind, *payload = node
        if _KINDS.get(kind) in _ATOMS:
            return _ATOMS[_KINDS[kind]][1](*payload)
        if _KINDS.get(kind) in _FROZEN:
            return _KINDS[kind](self._item(one) for one in payload[0])
        if kind == "view":
            return self._view(*payload)
        if kind == "type":
            return TYPES[payload[0]]
        if payload and type(payload[-1]) is list:
            payload[-1] = [self._item(one) for one in payload[-1]]
        return self._resolve([kind, *payload])

    def _view(self, name: str, items: list[Any]) -> Any:
        values = [self._item(one) for one in items]
        if name == "values":
            return dict(enumerate(values)).values()
        return dict(values).items() if name == "items" else dict.fromkeys(values).keys()

    def _item(self, item: Any) -> Any:
        if type(item) is list:
            self.mentioned.add(item[0])
            return self._made[item[0]]
        if type(item) in _SCALARS or type(item) is int:
            return item
        raise MalformedError("an item is neither scalar nor node")

    def _fill(self, value: Any, node: Node) -> None:
        if type(value) is bytearray:
            value[:] = bytes.fromhex(node[1])
            return
        parts = [self._item(one) for one in node[-1]]
        value.clear()
        if type(value) in _MAPPINGS:
            value.update(collections.OrderedDict(zip(parts[::2], parts[1::2], strict=True)))
        elif type(value) is set:
            value.update(parts)
        else:
            value.extend(parts)
