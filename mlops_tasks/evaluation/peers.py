"""Two processes that call each other's functions: a program, and the judge that runs its tests.

Owns the channel, the questions that one may ask about the other's objects, and `Remote`, what the judge holds in place of an object of
the program's own. Values travel as `values` writes them; that the two are confined is `confinement`'s. Only the standard
library is imported here.

The judge asks anything. The program asks in turn only for calls of functions and for the items of iterators that a test passed
to it. What a program is never asked is to compare: see `Remote`.
"""

from __future__ import annotations

import importlib
import json
import operator
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NoReturn

from mlops_tasks.evaluation.values import MODULES, TYPES, MalformedError, Node, Reader, encode

MESSAGE_BYTES = 64 << 20
"""The largest message that is read."""
ENDED, TAMPERED = "ended", "wrote to the judge's own channel"
_HEADER = struct.Struct(">I")

# A plain value of an object whose class derives from a plain type: the program's own methods have no say in it.
_BASES: dict[type, Callable[[Any], Any]] = {
    int: int.__index__,
    float: float.__float__,
    complex: lambda value: complex(complex.__getattribute__(value, "real"), complex.__getattribute__(value, "imag")),
    str: lambda value: str.__getitem__(value, slice(None)),
    bytes: lambda value: bytes.__getitem__(value, slice(None)),
    tuple: lambda value: tuple(tuple.__iter__(value)),
    list: lambda value: list(list.__iter__(value)),
    frozenset: lambda value: frozenset(frozenset.__iter__(value)),
    set: lambda value: set(set.__iter__(value)),
    dict: lambda value: dict(dict.items(value)),
}


def _plain_form(value: Any) -> list[Any]:
    for base, form in _BASES.items():
        if issubclass(type(value), base):  # what it says of its class means nothing
            return [form(value)]
    return []


def _call(function: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
    return function(*args, **named)


FOR_PROGRAMS: dict[str, Callable[..., Any]] = {"call": _call, "next": next}
"""What a program may ask of the objects that a test passed to it."""

FOR_JUDGES: dict[str, Callable[..., Any]] = {
    **FOR_PROGRAMS,
    **{name: getattr(operator, name) for name in ["eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"]},
    **{name: getattr(operator, name) for name in ["and_", "or_", "xor", "lshift", "rshift", "neg", "pos", "abs", "invert", "contains"]},
    **{name: getattr(operator, name) for name in ["getitem", "setitem", "delitem", "index", "truth"]},
    **{one.__name__: one for one in (getattr, setattr, delattr, iter, len, str, repr, format, hash, int, float, complex, round)},
    **{one.__name__: one for one in (isinstance, issubclass, reversed)},
    "plain": _plain_form,
}  # fmt: skip
"""What a judge may ask of a program's objects."""


class Gone(BaseException):
    """The other process ended, or wrote what no peer writes."""


class Peer:
    """One end of the channel.

    Args:
        reader, writer: open pipes.
        operations: what the other end may ask.
        stand_in: what to hold in place of an object of the other end, by its number, kind and name.
        offers_all: whether any object may be referred to; else functions and iterators only, and others are refused.
    """

    def __init__(
        self,
        reader: int,
        writer: int,
        operations: Mapping[str, Callable[..., Any]],
        stand_in: Callable[[Peer, int, str, str], Any],
        *,
        offers_all: bool,
    ) -> None:
        self._reader, self._writer = reader, writer
        self._operations, self._stand_in, self._offers_all = operations, stand_in, offers_all
        self._mine: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._theirs: dict[int, Any] = {}
        self._their_numbers: dict[int, int] = {}
        self.trouble: str | None = None
        """Why nothing can be asked any more."""
        self.leaned_on_program = False
        """Whether the other end was asked for a judgement, and not for a value; whoever reads this sets it back."""

    def ask(self, operation: str, *args: Any, **named: Any) -> Any:
        """Have the other end do something and return what it returns.

        What it changes in lists, sets, dicts and the like that it was passed changes here too.

        Raises:
            Gone: it cannot answer any more.
            BaseException: what was raised there, as the nearest class that both ends have.
        """
        graph, objects = encode([*args, *named.values()], self._refer)
        self._send(_packed({"ask": operation, "names": list(named), "graph": graph}))
        while "ask" in (message := self._receive()):
            self._answer(message)
        items = self._read(message, objects).items
        if message["raised"] is True:
            error = _made_error(*items)
            if isinstance(error, StopIteration) and operation != "next":
                # It would end whatever loop of the test the call stands in, and that with no test failed.
                raise RuntimeError("the program raised StopIteration") from error
            raise error
        return items[0]

    def serve(self) -> None:
        """Answer until the other end is gone."""
        while True:
            self._answer(self._receive())

    def _answer(self, message: dict[str, Any]) -> None:
        reader = self._read(message, ())
        first_named = len(reader.items) - len(message["names"])
        named = dict(zip(message["names"], reader.items[first_named:], strict=True))
        try:
            value = self._operations[message["ask"]](*reader.items[:first_named], **named)
            reply = self._reply([value], message, reader.objects)
        except Gone:
            raise
        except BaseException as error:
            reply = self._told(error, message, reader.objects)
        self._send(reply)

    def _told(self, error: BaseException, asked: dict[str, Any], objects: Sequence[Any]) -> bytes:
        try:
            text = str(error)
        except BaseException:
            text = ""
        try:
            return self._reply([type(error), error.args, text], asked, objects, is_raised=True)
        except (TypeError, OverflowError):  # of arguments that cannot travel
            return self._reply([type(error), (text[:1000],), text[:1000]], asked, (), is_raised=True)

    def _reply(
        self, items: list[Any], asked: dict[str, Any], objects: Sequence[Any], *, is_raised: bool = False
    ) -> bytes:
        graph, _ = encode(items, self._refer, objects)
        old = asked["graph"]["nodes"] if objects else []
        graph["nodes"] = [None if at < len(old) and node == old[at] else node for at, node in enumerate(graph["nodes"])]
        return _packed({"raised": is_raised, "graph": graph})

    def _refer(self, value: Any) -> Node:
        if (number := self._their_numbers.get(id(value))) is not None:
            return ["yours", number]
        if isinstance(value, ModuleType) and value.__name__ in MODULES:
            return ["module", value.__name__]
        is_iterator = hasattr(type(value), "__next__")
        if not (self._offers_all or is_iterator or callable(value)):
            raise TypeError(
                f"a test passes an object of type {type(value).__name__} to the program; it can pass plain values only"
            )
        number = self._numbers.setdefault(id(value), len(self._mine))
        if number == len(self._mine):
            self._mine.append(value)
        if isinstance(value, type) and issubclass(value, BaseException):
            bases = tuple(base for base in value.__bases__ if issubclass(base, BaseException))
            return ["exception", number, value.__name__, bases]
        kind = "iterator" if is_iterator else "function" if callable(value) else "object"
        return ["mine", number, kind, str(getattr(value, "__name__", ""))]

    def _read(self, message: dict[str, Any], before: Sequence[Any]) -> Reader:
        try:
            reader = Reader(message["graph"], self._resolve, before)
        except MalformedError:
            return self._give_up(TAMPERED)
        fits = (1, 3)[message["raised"]] == len(reader.items) if "raised" in message else True
        return reader if fits else self._give_up(TAMPERED)

    def _resolve(self, node: Node) -> Any:
        kind, *payload = node
        if kind == "module" and payload[0] in MODULES:
            return importlib.import_module(payload[0])
        if kind == "yours":
            return self._mine[payload[0]]
        if kind not in {"mine", "exception"} or type(payload[0]) is not int:
            raise MalformedError(f"no such kind: {kind}")
        if payload[0] not in self._theirs:
            number, *about = payload
            made = _made_class(*about) if kind == "exception" else self._stand_in(self, number, *map(str, about))
            self._theirs[number] = made
            self._their_numbers[id(made)] = number
        return self._theirs[payload[0]]

    def _send(self, data: bytes) -> None:
        view = memoryview(_HEADER.pack(len(data)) + data)
        try:
            while view:
                view = view[os.write(self._writer, view) :]
        except OSError:
            self._give_up(ENDED)

    def _receive(self) -> dict[str, Any]:
        (size,) = _HEADER.unpack(self._exactly(_HEADER.size))
        if size > MESSAGE_BYTES:
            self._give_up(TAMPERED)
        try:
            message: dict[str, Any] = json.loads(self._exactly(size))
        except (ValueError, RecursionError):
            self._give_up(TAMPERED)
        return message if _is_message(message) else self._give_up(TAMPERED)

    def _exactly(self, size: int) -> bytes:
        found = bytearray()
        while len(found) < size:
            try:
                chunk = os.read(self._reader, min(size - len(found), 1 << 20))
            except OSError:
                chunk = b""
            if not chunk:
                self._give_up("ended")
            found += chunk
        return bytes(found)

    def _give_up(self, trouble: str) -> NoReturn:
        self.trouble = self.trouble or trouble
        raise Gone(trouble)


def _packed(message: dict[str, Any]) -> bytes:
    data = json.dumps(message, check_circular=False).encode()
    if len(data) > MESSAGE_BYTES:
        raise OverflowError(f"{len(data)} bytes of values are more than the {MESSAGE_BYTES} that one call may carry")
    return data


def _is_message(message: Any) -> bool:
    if type(message) is not dict or type(message.get("graph")) is not dict:
        return False
    if "ask" in message:
        names = message.get("names")
        return type(message["ask"]) is str and type(names) is list and all(type(name) is str for name in names)
    return type(message.get("raised")) is bool


def _made_class(name: str, bases: Sequence[type]) -> type:
    """A class in place of an exception of the other end's."""
    if not all(isinstance(base, type) and issubclass(base, BaseException) for base in bases):
        raise MalformedError("an exception derives from exceptions")

    def text(self: BaseException) -> str:
        return self.__dict__.get("told") or BaseException.__str__(self)

    return type(str(name), tuple(bases), {"__module__": "builtins", "__str__": text})


def _made_error(kind: Any, args: Any, text: Any) -> BaseException:
    if not (isinstance(kind, type) and issubclass(kind, BaseException) and type(args) is tuple):
        return RuntimeError("the program raised what is no exception")
    try:
        error = kind(*args)
    except Exception:  # it has arguments of its own
        error = kind.__new__(kind, *args)
    if kind not in TYPES.values():
        error.__dict__["told"] = text
    return error


def function_of_judge(peer: Peer, _number: int, kind: str, name: str) -> Any:
    """What a program holds in place of a function or an iterator that a test passed to it."""
    if kind == "iterator":
        return _Items(peer)

    def function(*args: Any, **named: Any) -> Any:
        return peer.ask("call", function, *args, **named)

    function.__name__ = function.__qualname__ = name or "function"
    return function


class _Items(Iterator[Any]):
    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def __next__(self) -> Any:
        return self._peer.ask("next", self)


def object_of_program(peer: Peer, _number: int, _kind: str, name: str) -> Remote:
    """What a judge holds in place of an object of the program's that is no plain value."""
    return Remote(peer, name)


class Remote:
    """An object of the program's own: a function, an instance of its class, a generator.

    To call it, take its attributes or items, its length, its text or its number is to ask the program for a value, which is then
    judged here. To compare it with a value of the test, or to take one from it, would be to show the answer and ask whether it is
    right: it is done here on the value that the object is (a named tuple is a tuple), and where it is none, it equals nothing.
    Two objects of the program's that are compared with each other, and an object's truth, are the program's to judge, and
    noted as that.
    """

    __slots__ = ("__name", "__peer", "__weakref__")

    def __init__(self, peer: Peer, name: str) -> None:
        object.__setattr__(self, "_Remote__peer", peer)
        object.__setattr__(self, "_Remote__name", name)

    def __getattr__(self, name: str) -> Any:
        if name in {"__name__", "__qualname__"}:
            return self.__name
        if name.startswith("__") and name.endswith("__") and name not in {"__dict__", "__doc__", "__annotations__"}:
            raise AttributeError(name)
        return self.__peer.ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__peer.ask("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        self.__peer.ask("delattr", self, name)

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self.__peer.ask("call", self, *args, **named)

    def __repr__(self) -> str:
        return str(self.__peer.ask("repr", self))

    def __bool__(self) -> bool:
        return self.__judged("truth")

    def __hash__(self) -> int:
        form = _form(self)
        return hash(form[0]) if form else int(self.__peer.ask("hash", self))

    def __contains__(self, item: Any) -> bool:
        return any(item is one or item == one for one in self.__peer.ask("iter", self))

    def __instancecheck__(self, value: Any) -> bool:
        return self.__judged("isinstance", value, self)

    def __subclasscheck__(self, value: Any) -> bool:
        return self.__judged("issubclass", value, self)

    def __judged(self, operation: str, *operands: Any) -> bool:
        self.__peer.leaned_on_program = True
        return bool(self.__peer.ask(operation, *(operands or (self,))) is True)


def _form(value: Any) -> list[Any]:
    """The plain value that something is, in a list; an empty one where it is none."""
    if type(value) is not Remote:
        return [value]
    form = peer_of(value).ask("plain", value)
    return form if type(form) is list and type(next(iter(form), None)) is not Remote else []


def peer_of(value: Remote) -> Peer:
    """Whom a stand-in asks."""
    peer: Peer = object.__getattribute__(value, "_Remote__peer")
    return peer


def _compared(operation: str) -> Callable[[Remote, Any], Any]:
    def compare(self: Remote, other: Any) -> Any:
        mine, other_form = _form(self), _form(other)
        if mine and other_form:
            return getattr(operator, operation)(mine[0], other_form[0])
        if type(other) is Remote and not (mine or other_form):
            peer_of(self).leaned_on_program = True
            return peer_of(self).ask(operation, self, other)
        if operation in {"eq", "ne"}:
            return operation == "ne"
        return NotImplemented

    return compare


def _combined(operation: str, *, is_reflected: bool = False) -> Callable[[Remote, Any], Any]:
    def combine(self: Remote, other: Any) -> Any:
        mine, other_form = _form(self), _form(other)
        if mine and other_form:
            left, right = (other_form[0], mine[0]) if is_reflected else (mine[0], other_form[0])
            return getattr(operator, operation)(left, right)
        if type(other) is not Remote or is_reflected:
            return NotImplemented
        peer_of(self).leaned_on_program = True
        return peer_of(self).ask(operation, self, other)

    return combine


def _asked(operation: str) -> Callable[..., Any]:
    def ask(self: Remote, *args: Any) -> Any:
        return peer_of(self).ask(operation, self, *args)

    return ask


_COMPARED = ("eq", "ne", "lt", "le", "gt", "ge")
_COMBINED = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift", "rshift")
_ASKED = (
    *("iter", "next", "len", "str", "format", "int", "float", "complex", "index", "round", "reversed"),
    *("neg", "pos", "abs", "invert", "getitem", "setitem", "delitem"),
)
for _name in _COMPARED:
    setattr(Remote, f"__{_name}__", _compared(_name))
for _name in _COMBINED:
    _operation = f"{_name}_" if _name in {"and", "or"} else _name
    setattr(Remote, f"__{_name}__", _combined(_operation))
    setattr(Remote, f"__r{_name}__", _combined(_operation, is_reflected=True))
for _name in _ASKED:
    setattr(Remote, f"__{_name}__", _asked(_name))
