"""A bad network in front of a good server: a proxy that spoils a seeded share of all requests, and counts what it did.

The client's `Host` header goes through as it is: S3's signature covers it, and the server checks it against what it receives. A request has
a connection of its own to the server, so that the end of a reply is where the server closes, however it is framed.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import BinaryIO

_PIECE = 2**16
# Of one request; the client gives up after eight.
_MOST_IN_A_ROW = 5

KINDS = (
    "500",
    "503",
    "slow_down",
    "cut_before",
    "cut_request",
    "cut_reply",
    "lose_reply",
    "delay",
    "stale_list",
)
_ANSWERS = {
    "500": ("500 Internal Server Error", "InternalError"),
    "503": ("503 Service Unavailable", "ServiceUnavailable"),
    "slow_down": ("503 Slow Down", "SlowDown"),
}


class _Cut(Exception):
    """The connection is to be broken off here."""


@dataclass
class _Request:
    head: bytes
    stream: BinaryIO

    def __post_init__(self) -> None:
        lines = self.head.split(b"\r\n")
        self.line = lines[0].decode("latin-1")
        self.fields = [line for line in lines[1:] if line]
        self.method, self.target, _ = self.line.split(" ", 2)
        self.is_chunked = self.value("transfer-encoding").lower() == "chunked"
        self.length = int(self.value("content-length") or 0)

    @property
    def is_listing(self) -> bool:
        return self.method == "GET" and "list-type=2" in self.target

    @property
    def waits(self) -> bool:
        """For `100 Continue`, before it sends its body."""
        return self.value("expect").lower() == "100-continue"

    def value(self, name: str) -> str:
        start = f"{name}:".encode()
        return next(
            (line[len(start) :].decode("latin-1").strip() for line in self.fields if line.lower().startswith(start)), ""
        )

    def head_for_server(self) -> bytes:
        kept = [line for line in self.fields if line.lower().partition(b":")[0] not in (b"expect", b"connection")]
        return b"\r\n".join([self.line.encode("latin-1"), *kept, b"Connection: close", b"", b""])

    def body(self) -> Iterator[bytes]:
        """Pieces of the body as they are on the wire."""
        if self.is_chunked:
            yield from self._chunks()
            return
        left = self.length
        while left:
            piece = self.stream.read(min(left, _PIECE))
            if not piece:
                raise _Cut
            left -= len(piece)
            yield piece

    def _chunks(self) -> Iterator[bytes]:
        while True:
            yield (line := self.stream.readline())
            size = int(line.partition(b";")[0] or b"0", 16)
            yield self.stream.read(size + 2)
            if size == 0:
                return


@dataclass
class FaultProxy:
    """Listens on `endpoint` while its context lasts."""

    server: tuple[str, int]
    rate: float
    """Share of the requests that something happens to, below 1 never to one too often in a row; may be changed at any time."""
    seed: int = 0
    kinds: Sequence[str] = KINDS
    done: Counter[str] = field(default_factory=Counter)
    """How many of each kind, and `requests` in all."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()
        self._listings: dict[str, bytes] = {}
        self._in_a_row: Counter[str] = Counter()
        self._clients: set[socket.socket] = set()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    @classmethod
    @contextmanager
    def before(cls, endpoint: str, rate: float, seed: int = 0, kinds: Sequence[str] = KINDS) -> Iterator[FaultProxy]:
        """Stand in front of the server at `http://host:port`."""
        host, _, port = endpoint.removeprefix("http://").partition(":")
        proxy = cls((host, int(port)), rate, seed, kinds)
        with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
            proxy._listener = listener
            thread = threading.Thread(target=proxy._accept, daemon=True)
            thread.start()
            try:
                yield proxy
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                thread.join()
                for client in list(proxy._clients):
                    _close(client)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._clients.add(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            with suppress(OSError, ValueError), client.makefile("rb", _PIECE) as stream:
                while (head := _head(stream)) and self._handle(client, _Request(head, stream)):
                    pass
        except _Cut:
            self._break(client)
        finally:
            _close(client)
            self._clients.discard(client)

    def _handle(self, client: socket.socket, request: _Request) -> bool:
        """Serve one request; whether the connection may be used again."""
        fault = self._draw(request)
        if fault in _ANSWERS:
            return self._refuse(client, request, *_ANSWERS[fault])
        if fault == "cut_before":
            raise _Cut
        if fault == "stale_list":
            client.sendall(self._listings[request.target])
            return False
        if fault == "delay":
            time.sleep(self._between(0, 1))
        if request.waits:
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        with socket.create_connection(self.server) as server:
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._send(server, request, is_cut=fault == "cut_request")
            with server.makefile("rb", _PIECE) as reply:
                return self._reply(client, request, reply, fault)

    def _draw(self, request: _Request) -> str | None:
        with self._lock:
            self.done["requests"] += 1
            num_before = self._in_a_row.pop(request.line, 0)
            if self._random.random() >= self.rate or (num_before >= _MOST_IN_A_ROW and self.rate < 1):
                return None
            fault = self._random.choice(self.kinds)
            if fault == "cut_request" and not request.length:
                fault = "cut_before"
            if fault == "stale_list" and request.target not in self._listings:
                return None
            self.done[fault] += 1
            self._in_a_row[request.line] = num_before + 1
            return fault

    def _between(self, low: float, high: float) -> float:
        with self._lock:
            return self._random.uniform(low, high)

    def _refuse(self, client: socket.socket, request: _Request, status: str, code: str) -> bool:
        if not request.waits:
            for _ in request.body():
                pass
        body = (
            f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>on purpose</Message></Error>'
        )
        if request.method == "HEAD":
            body = ""
        client.sendall(
            f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        return not request.waits

    def _send(self, server: socket.socket, request: _Request, *, is_cut: bool) -> None:
        server.sendall(request.head_for_server())
        left = self._between(0, request.length) if is_cut else float("inf")
        for piece in request.body():
            if len(piece) > left:
                server.sendall(piece[: int(left)])
                raise _Cut
            server.sendall(piece)
            left -= len(piece)

    def _reply(self, client: socket.socket, request: _Request, reply: BinaryIO, fault: str | None) -> bool:
        lines = _head(reply).split(b"\r\n")
        kept = [line for line in lines if not line.lower().startswith(b"connection:")]
        head = b"\r\n".join(kept)
        names = {line.partition(b":")[0].lower() for line in kept}
        if fault == "lose_reply":
            while reply.read(_PIECE):
                pass
            raise _Cut
        if fault == "cut_reply":
            self._cut(client, head, reply)
        if request.is_listing:
            whole = head + reply.read()
            if head.startswith(b"HTTP/1.1 200"):
                self._listings[request.target] = whole
            client.sendall(whole)
        else:
            client.sendall(head)
            while piece := reply.read(_PIECE):
                client.sendall(piece)
        is_framed = bool({b"content-length", b"transfer-encoding"} & names) or b" 204 " in lines[0]
        return is_framed or request.method == "HEAD"

    def _cut(self, client: socket.socket, head: bytes, reply: BinaryIO) -> None:
        """Let a part of a reply through: half of the time, of its head."""
        within = self._between(0, 1)
        if within < 0.5:
            client.sendall(head[: int(2 * within * len(head))])
            raise _Cut
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 200
        )
        client.sendall(head)
        left = int((2 * within - 1) * length)
        while left > 0 and (piece := reply.read(min(left, _PIECE))):
            client.sendall(piece)
            left -= len(piece)
        raise _Cut

    def _break(self, client: socket.socket) -> None:
        """Close in one of the two ways in which connections end."""
        if self._between(0, 1) < 0.5:  # reset, instead of an orderly end
            with suppress(OSError):
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _head(stream: BinaryIO) -> bytes:
    lines: list[bytes] = []
    while (line := stream.readline(_PIECE)) not in (b"\r\n", b""):
        lines.append(line)
    return b"".join(lines) + b"\r\n" if lines else b""


def _close(client: socket.socket) -> None:
    with suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)
    client.close()
