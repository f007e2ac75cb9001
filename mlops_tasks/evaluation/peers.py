"""Two processes that call each other's functions: a program, and the judge that runs its tests.

Owns the channel, and the program's end of it. Values travel as `values` writes them; what the judge holds in place of a program's
objects, and who decides what of them, is `remotes`'; that the two are confined is `confinement`'s. Only the standard library is
imported here.

The judge asks anything. The program asks in turn only for calls of functions and for the items of iterators that a test passed
to it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NoReturn

from mlops_tasks.evaluation.values import MODULES, TYPES, MalformedError, Node, Reader, encode

MESSAGE_BYTES = 64 << 20
"""The largest message that is read."""
ENDED, TAMPERED = "ended", "wrote to the judge's own channel"
_HEADER = struct.Struct(">I")


class Gone(BaseException):
    """The other process ended, or wrote what no peer writes."""


class Peer(ABC):
    """One end of the channel.

    Args:
        reader, writer: open pipes.
        operations: what the other end may ask.
    """

    def __init__(self, reader: int, writer: int, operations: Mapping[str, Callable[..., Any]]) -> None:
        self._reader, self._writer, self._operations = reader, writer, operations
        self._mine: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._theirs: dict[int, Any] = {}
        self._their_numbers: dict[int, int] = {}
        self.trouble: str | None = None
        """Why nothing can be asked any more."""
        self.turns = 0
        """How often the other end got to run code of its own."""

    @abstractmethod
    def describe(self, value: Any) -> list[Any]:
        """What the other end is told of an object that is referred to: the parts of a node behind its number.

        Raises:
            TypeError: it is not to be referred to.
        """

    @abstractmethod
    def stand_in(self, number: int, *about: Any) -> Any:
        """What to hold in place of an object that the other end describes so."""

    @abstractmethod
    def note(self, reader: Reader) -> None:
        """Take note of what a message of the other end speaks of."""

    def ask(self, operation: str, *args: Any, **named: Any) -> Any:
        """Have the other end do something and return what it returns.

        What it changes in lists, sets, dicts and the like that it was passed changes here too.

        Raises:
            Gone: it cannot answer any more.
            BaseException: what was raised there, as the nearest class that both ends have.
        """
        self.turns += operation in _RUN_CODE
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
        self.turns += 1

    def _told(self, error: BaseException, asked: dict[str, Any], objects: Sequence[Any]) -> bytes:
        try:
            text = str(error)
        except BaseException:
            text = ""
        told = [type(error), (text[:1000],), text[:1000]]
        for items in ([type(error), error.args, text], told):
            with contextlib.suppress(TypeError, OverflowError):  # of arguments that cannot travel
                return self._reply(items, asked, objects, is_raised=True)
        return self._reply(told, asked, (), is_raised=True)

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
        about = self.describe(value)
        number = self._numbers.setdefault(id(value), len(self._mine))
        if number == len(self._mine):
            self._mine.append(value)
        if isinstance(value, type) and issubclass(value, BaseException):
            bases = tuple(base for base in value.__bases__ if issubclass(base, BaseException))
            return ["exception", number, value.__name__, bases]
        return ["mine", number, *about]

    def _read(self, message: dict[str, Any], before: Sequence[Any]) -> Reader:
        try:
            reader = Reader(message["graph"], self._resolve, before)
        except MalformedError:
            return self._give_up(TAMPERED)
        self.note(reader)
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
        number, *about = payload
        if number not in self._theirs:
            made = _made_class(*about) if kind == "exception" else self.stand_in(number, *about)
            self._theirs[number] = made
            self._their_numbers[id(made)] = number
        return self._theirs[number]

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


def call(function: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
    """Call a function."""
    return function(*args, **named)


class ProgramEnd(Peer):
    """The program's end: any object may be referred to, and what a test passed is a function or an iterator."""

    def describe(self, value: Any) -> list[Any]:
        kind = type(value)  # what it says of its class means nothing
        known = set().union(*map(vars, kind.__mro__))
        name = str(getattr(value, "__name__", ""))
        return [name, f"{kind.__module__}.{kind.__qualname__}", sorted(METHODS & known), tuple(plain_form(value))]

    def stand_in(self, number: int, *about: Any) -> Any:
        name, is_iterator = about
        if is_iterator:
            return _Items(self)

        def function(*args: Any, **named: Any) -> Any:
            return self.ask("call", function, *args, **named)

        function.__name__ = function.__qualname__ = name or "function"
        return function

    def note(self, reader: Reader) -> None:
        """It is all the same here."""


class _Items(Iterator[Any]):
    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def __next__(self) -> Any:
        return self._peer.ask("next", self)


METHODS = frozenset(
    [
        *("__call__", "__iter__", "__next__", "__len__", "__getitem__", "__contains__", "__reversed__"),
        *("__int__", "__float__", "__complex__", "__index__", "__round__", "__abs__"),
    ]
)
"""Special methods that the judge's stand-in has only where the object has them."""
_RUN_CODE = frozenset(["call", "next", "setattr", "delattr", "setitem", "delitem"])

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


def plain_form(value: Any) -> list[Any]:
    """The plain value that an object of a derived class is, in a list; an empty one where it is none."""
    for base, form in _BASES.items():
        if issubclass(type(value), base):
            return [form(value)]
    return []
