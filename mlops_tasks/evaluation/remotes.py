"""What a judge holds in place of a program's objects, and who decides what of them.

Owns the judge's end of the channel and the rule of who has a say; the table in docs/sandbox.md is that rule in words. Only the
standard library is imported here.

An object of a class that derives from a plain immutable type arrives as an instance of that type: what the type can do, the judge
does. Everything else arrives as a `Remote`. What a program is never asked is to compare with a value of the test. Where
its own answer may decide, because it was shown something that may be the expected value or because it can answer each
look anew, `JudgeEnd.leaned_on_program` says so.
"""

from __future__ import annotations

import functools
import operator
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from mlops_tasks.evaluation.peers import METHODS, Peer, call, plain_form
from mlops_tasks.evaluation.values import MalformedError, Reader

FOR_PROGRAMS: dict[str, Callable[..., Any]] = {"call": call, "next": next}
"""What a program may ask of the objects that a test passed to it."""

FOR_JUDGES: dict[str, Callable[..., Any]] = {
    **FOR_PROGRAMS,
    **{name: getattr(operator, name) for name in ["eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"]},
    **{name: getattr(operator, name) for name in ["and_", "or_", "xor", "lshift", "rshift", "neg", "pos", "abs", "invert"]},
    **{name: getattr(operator, name) for name in ["getitem", "setitem", "delitem", "index", "truth"]},
    **{one.__name__: one for one in (getattr, setattr, delattr, iter, len, str, repr, format, hash, int, float, complex, round)},
    **{one.__name__: one for one in (isinstance, issubclass, reversed)},
    "plain": plain_form,
}  # fmt: skip
"""What a judge may ask of a program's objects."""

_IMMUTABLE = (int, float, complex, str, bytes, tuple, frozenset)
_LOOKS: dict[type, frozenset[str]] = {
    list: frozenset(["index", "count", "copy"]),
    set: frozenset(name for name in dir(frozenset) if not name.startswith("_")),
    dict: frozenset(["get", "keys", "values", "items", "copy"]),
}
"""Methods that change nothing, of the types that can change."""

# What `isinstance` may be told of an object; none of these is the type of a value.
_CLASSES: dict[str, type] = {
    f"{one.__module__}.{one.__qualname__}": one
    for one in (types.GeneratorType, types.FunctionType, types.MethodType, map, filter, zip, enumerate, re.Match, re.Pattern)
}  # fmt: skip


class JudgeEnd(Peer):
    """The judge's end: functions and iterators of a test may be referred to, and its other objects are refused.

    Under test is what a test names, what that has for attributes, and what a class among it makes (a name with a capital: the
    test's author says that it is one). To call such a thing is to give it its input; to pass something to anything else, that is
    to an answer, may be to show what was expected.
    """

    def __init__(self, reader: int, writer: int) -> None:
        super().__init__(reader, writer, FOR_PROGRAMS)
        self._under_test: dict[int, bool] = {}
        """Numbers of objects, and whether each is a class."""
        self._unfinished: set[int] = set()
        self._has_leaned = False
        self._derived: dict[tuple[type, str], type] = {}
        self.input_has_names = False
        """Whether a test has names of its own, by which it may use again what it passed."""

    @property
    def leaned_on_program(self) -> bool:
        """Whether the program had a say since `begin`.

        An iterator that was not read to its end knows how far it was read, and so perhaps where the test found what it sought.
        """
        return self._has_leaned or bool(self._unfinished)

    def begin(self) -> None:
        """Forget who had a say until now."""
        self._has_leaned = False
        self._unfinished.clear()

    def lean(self) -> None:
        """Note that the program has a say."""
        self._has_leaned = True

    def names(self, wanted: Iterable[str]) -> dict[str, Any]:
        """What the program binds at its top of the names that a test has."""
        told = self.ask("names", *sorted(wanted)) if wanted else {}
        found = {name: told[name] for name in wanted if name in told} if type(told) is dict else {}
        for name, value in found.items():
            self.put_under_test(value, is_class=name.lstrip("_")[:1].isupper())
        return found

    def put_under_test(self, value: Any, *, is_class: bool = False) -> None:
        """Have an object under test until it is an answer."""
        if isinstance(value, Remote):
            self._under_test[self._their_numbers[id(value)]] = is_class

    def is_under_test(self, value: Remote) -> bool:
        """Whether what it is passed is its input."""
        return self._their_numbers.get(id(value)) in self._under_test

    def call(self, function: Remote, args: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """Have the program call one of its functions."""
        passed = [*args, *named.values()]
        is_answer = not self.is_under_test(function)
        if (is_answer and passed) or any(isinstance(one, Remote) and not form_of(one) for one in passed):
            self.lean()
        is_class = self._under_test.get(self._their_numbers.get(id(function), -1), False)
        made = self.ask("call", function, *args, **named)
        if is_class:
            self.put_under_test(made)
        return made

    def read_on(self, iterator: Remote) -> Any:
        """The next item."""
        number = self._their_numbers[id(iterator)]
        self._unfinished.add(number)
        try:
            return self.ask("next", iterator)
        except StopIteration:
            self._unfinished.discard(number)
            raise

    def describe(self, value: Any) -> list[Any]:
        is_iterator = hasattr(type(value), "__next__")
        if not (is_iterator or callable(value)):
            raise TypeError(
                f"a test passes an object of type {type(value).__name__} to the program; it can pass plain values only"
            )
        return [str(getattr(value, "__name__", "")), is_iterator]

    def stand_in(self, number: int, *about: Any) -> Any:
        name, class_name, methods, form = about
        kind = type(form[0]) if form else None
        if kind in _IMMUTABLE:
            key = kind, class_name.rpartition(".")[2]
            if key not in self._derived:
                self._derived[key] = _derived_class(self, *key)
            return self._derived[key](form[0])
        if kind is not None and kind not in _LOOKS:
            raise MalformedError(f"no class derives from {kind}")
        known = _Known(self, str(name), kind or _CLASSES.get(class_name), [*form], self.turns)
        return _remote_class(METHODS.intersection(methods))(known)

    def note(self, reader: Reader) -> None:
        for one in (reader.objects[index] for index in reader.mentioned):
            if isinstance(one, Remote):
                self._under_test.pop(self._their_numbers[id(one)], None)
        # A list that the test named may be in what it expects, too.
        is_answered = len(reader.items) == 1 and reader.items[0] is not None
        if self.input_has_names and reader.changed and is_answered:
            self.lean()

    def _told(self, error: BaseException, asked: dict[str, Any], objects: Sequence[Any]) -> bytes:
        # A check of the test's own that the program calls: it may try until nothing is raised.
        self._has_leaned |= isinstance(error, AssertionError)
        return super()._told(error, asked, objects)


def _derived_class(peer: Peer, base: type, name: str) -> type:
    """A plain type, with the attributes and the text that the program's class adds."""

    def attribute(self: Any, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return peer.ask("getattr", self, name)

    def text(operation: str) -> Callable[[Any], str]:
        return lambda self: str(peer.ask(operation, self))

    added = {"__slots__": (), "__getattr__": attribute, "__str__": text("str"), "__repr__": text("repr")}
    return type(name, (base,), added)


@dataclass
class _Known:
    """What the judge knows of an object of the program's own."""

    peer: JudgeEnd
    name: str
    kind: type | None
    """What it is an instance of, where that is a class of Python's own."""
    form: list[Any]
    """The list, set or dict that it is, in a list; an empty one: it is none."""
    turn: int
    """When that was read."""
    has_been_read: bool = False
    """Whether a loop has begun on it."""


class Remote:
    """An object of the program's own: a function, an instance of its class, a generator.

    To call it, take its attributes, its text or its number is to ask the program for a value, which is then judged here.
    One of a class that derives from a list, set or dict has its content besides (its form), which is read again
    only after the program ran code: comparisons, items and the like are made on that. Without one it equals nothing that the
    test made. For whatever else is asked of it the program has a say.
    """

    __slots__ = ("__known", "__weakref__")

    def __init__(self, known: _Known) -> None:
        object.__setattr__(self, "_Remote__known", known)

    @property  # type: ignore[misc]  # what `isinstance` asks
    def __class__(self) -> Any:
        known = self.__known
        if not known.form:
            known.peer.lean()
        return known.kind or Remote

    def __getattr__(self, name: str) -> Any:
        if name in {"__name__", "__qualname__"}:
            return self.__known.name
        if name.startswith("__") and name.endswith("__") and name not in {"__dict__", "__doc__", "__annotations__"}:
            raise AttributeError(name)
        peer, form = self.__known.peer, form_of(self)
        if form and name in _LOOKS[type(form[0])]:
            return getattr(form[0], name)
        value = peer.ask("getattr", self, name)
        if peer.is_under_test(self):
            peer.put_under_test(value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        _write(self, "setattr", name, value)

    def __delattr__(self, name: str) -> None:
        _write(self, "delattr", name)

    def __setitem__(self, key: Any, value: Any) -> None:
        _write(self, "setitem", key, value)

    def __delitem__(self, key: Any) -> None:
        _write(self, "delitem", key)

    def __repr__(self) -> str:
        return str(self.__known.peer.ask("repr", self))

    def __hash__(self) -> int:
        self.__known.peer.lean()
        return int(self.__known.peer.ask("hash", self))

    def __bool__(self) -> bool:
        form = form_of(self)
        return bool(form[0]) if form else _judged("truth", self)

    def __instancecheck__(self, value: Any) -> bool:
        return _judged("isinstance", value, self)

    def __subclasscheck__(self, value: Any) -> bool:
        return _judged("issubclass", value, self)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a test cannot copy an object of the program's own")


def _known(value: Remote) -> _Known:
    known: _Known = object.__getattribute__(value, "_Remote__known")
    return known


def form_of(value: Any) -> list[Any]:
    """The plain value that something is, in a list; an empty one where it is none."""
    if not isinstance(value, Remote):
        return [value]
    known = _known(value)
    if known.form and known.turn != known.peer.turns:
        found = known.peer.ask("plain", value)
        if type(found) is list and [type(one) for one in found] == [known.kind]:
            known.form = found
        known.turn = known.peer.turns
    return known.form


def _judged(operation: str, *operands: Any) -> bool:
    peer = next(_known(one).peer for one in operands if isinstance(one, Remote))
    peer.lean()
    return bool(peer.ask(operation, *operands) is True)


def _write(self: Remote, operation: str, *args: Any) -> None:
    peer = _known(self).peer
    if not peer.is_under_test(self):
        peer.lean()
    peer.ask(operation, self, *args)


def _call(self: Remote, /, *args: Any, **named: Any) -> Any:
    return _known(self).peer.call(self, args, named)


def _iter(self: Remote) -> Any:
    known = _known(self)
    if form := form_of(self):
        return iter(form[0])
    if known.has_been_read or not hasattr(type(self), "__next__"):
        known.peer.lean()  # it may be another sequence each time
    known.has_been_read = True
    return known.peer.ask("iter", self)


def _next(self: Remote) -> Any:
    return _known(self).peer.read_on(self)


def _contains(self: Remote, item: Any) -> bool:
    if form := form_of(self):
        return item in form[0]
    _known(self).peer.lean()
    return any(item is one or item == one for one in _known(self).peer.ask("iter", self))


def _getitem(self: Remote, key: Any) -> Any:
    form = form_of(self)
    if form and not (type(form[0]) is dict and key not in form[0]):  # of a missing key its class may know more
        return form[0][key]
    _known(self).peer.lean()
    return _known(self).peer.ask("getitem", self, key)


def _compared(operation: str) -> Callable[[Remote, Any], Any]:
    def compare(self: Remote, other: Any) -> Any:
        mine, other_form = form_of(self), form_of(other)
        if mine and other_form:
            return getattr(operator, operation)(mine[0], other_form[0])
        _known(self).peer.lean()
        if not (mine or other_form):
            return _known(self).peer.ask(operation, self, other)
        return operation == "ne" if operation in {"eq", "ne"} else NotImplemented

    return compare


def _combined(operation: str, *, is_reflected: bool = False) -> Callable[[Remote, Any], Any]:
    def combine(self: Remote, other: Any) -> Any:
        mine, other_form = form_of(self), form_of(other)
        if mine and other_form:
            left, right = (other_form[0], mine[0]) if is_reflected else (mine[0], other_form[0])
            return getattr(operator, operation)(left, right)
        if not isinstance(other, Remote) or is_reflected:
            return NotImplemented
        _known(self).peer.lean()
        return _known(self).peer.ask(operation, self, other)

    return combine


def _sized(operation: str) -> Callable[[Remote], Any]:
    def ask(self: Remote) -> Any:
        if form := form_of(self):
            return FOR_JUDGES[operation](form[0])
        _known(self).peer.lean()
        return _known(self).peer.ask(operation, self)

    return ask


def _asked(operation: str) -> Callable[..., Any]:
    """What takes a plain value from an object."""

    def ask(self: Remote, *args: Any) -> Any:
        return _known(self).peer.ask(operation, self, *args)

    return ask


for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Remote, f"__{_name}__", _compared(_name))
for _name in (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
):
    _operation = f"{_name}_" if _name in {"and", "or"} else _name
    setattr(Remote, f"__{_name}__", _combined(_operation))
    setattr(Remote, f"__r{_name}__", _combined(_operation, is_reflected=True))
for _name in ("str", "format", "neg", "pos", "invert"):
    setattr(Remote, f"__{_name}__", _asked(_name))

_METHODS: dict[str, Any] = {
    "__call__": _call,
    "__iter__": _iter,
    "__next__": _next,
    "__contains__": _contains,
    "__getitem__": _getitem,
    **{f"__{name}__": _sized(name) for name in ("len", "reversed")},
    **{f"__{name}__": _asked(name) for name in ("int", "float", "complex", "index", "round", "abs")},
}


@functools.cache
def _remote_class(methods: frozenset[str]) -> type[Remote]:
    """A `Remote` with those special methods besides, so that the judge's Python sees what the object can do."""
    return type("Remote", (Remote,), {"__slots__": (), **{name: _METHODS[name] for name in methods}})
