"""Leases: of several processes that want one result, one works and the others wait for it.

Thrift, not safety: a commit is safe without. Owns who works, for how long that holds without a sign of life, and the fencing token,
by which a process that was thought dead is told from the one that took its place. What is worked on is `stage`'s.

    <prefix>/lease.json                who holds it, the token, and a beat that rises with every renewal
    <prefix>/checkpoints/latest.json   what only a holder may move, with the token under which it last was

No two clocks are compared: whoever waits sees the file unchanged for a whole term on its own monotonic clock, or knows that the
holder's process, on this machine, is gone.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mlops_tasks.config.environment import LeaseTerms
from mlops_tasks.errors import DataError, Unavailable, WmtpError
from mlops_tasks.store import Store

log = logging.getLogger(__name__)

POINTER = "checkpoints/latest.json"

THREAD_NAME = "wmtp-lease"
"""Of the thread that renews; it is asleep whenever this process forks."""

_SECONDS_BETWEEN_LINES = 60.0
_SECONDS_TO_END = 10.0
_renewing = threading.Lock()
_paused: list[bool] = []


def _pause() -> None:
    # A renewal that hangs must not keep this process from forking.
    _paused.append(_renewing.acquire(timeout=_SECONDS_TO_END))


def _resume() -> None:
    if _paused.pop():
        _renewing.release()


os.register_at_fork(before=_pause, after_in_parent=_resume, after_in_child=_resume)


@contextmanager
def held(
    store: Store, prefix: str, *, terms: LeaseTerms, run: str, is_done: Callable[[], bool]
) -> Iterator[Lease | None]:
    """Hold the lease of a prefix, or wait until its result is there.

    Args:
        store: where the result will be committed.
        prefix: of the result.
        terms: how long without a sign of life, and how long to wait.
        run: told to those who wait.
        is_done: whether the result is there, asked while another process holds the lease.

    Yields:
        The lease, or None if another process has made the result.

    Raises:
        Unavailable: another process holds it for longer than this one may wait.
    """
    lease = _acquired(store, prefix, terms, run, is_done)
    if lease is None:
        yield None
        return
    try:
        yield lease
    finally:
        lease.release()


def require(store: Store, prefix: str, token: int) -> None:
    """Refuse to go on if another process took over since, also where the lease was removed in between and tokens began anew.

    Raises:
        Unavailable: it did.
    """
    now = _read(store, prefix)
    if now is not None and now[1]["token"] != token:
        raise Unavailable(
            f"{store.uri}/{prefix}: this process was out of touch for too long, and {_whom(now[1])} has taken over (token "
            f"{now[1]['token']} against {token}). Nothing more is written here; start the task again to wait for the result."
        )


def point(store: Store, prefix: str, value: Mapping[str, Any], *, token: int) -> None:
    """Move the pointer of a prefix to a value, by compare-and-swap and never to a lower token.

    Raises:
        Unavailable: another process took over since.
    """
    name = f"{prefix}/{POINTER}"
    new = json.dumps({**value, "token": token}).encode()
    while not store.backend.create(name, new):
        now = store.backend.read(name)
        if now is None:
            continue
        if json.loads(now)["token"] > token:
            raise Unavailable(
                f"{store.uri}/{prefix}: another process has taken over, and its checkpoints count. Start the task again to wait for "
                "the result."
            )
        if store.backend.swap(name, new, over=now):
            return


def pointed(store: Store, prefix: str) -> dict[str, Any] | None:
    """Where the pointer of a prefix is, or None."""
    found: dict[str, Any] | None = store.read_json(f"{prefix}/{POINTER}")
    return found


class Lease:
    """A lease that this process holds, renewed by a thread."""

    def __init__(self, store: Store, prefix: str, terms: LeaseTerms, state: dict[str, Any]) -> None:
        self._store, self._prefix, self._terms = store, prefix, terms
        self._state = state
        self._is_over = threading.Event()
        self._is_lost = False
        self._thread = threading.Thread(target=self._renew, name=THREAD_NAME, daemon=True)
        self._thread.start()

    @property
    def token(self) -> int:
        """Higher than that of every process that held it before."""
        return int(self._state["token"])

    def release(self) -> None:
        """Let the next one in at once."""
        self._is_over.set()
        self._thread.join(_SECONDS_TO_END)
        if not self._is_lost and not self._thread.is_alive():
            with suppress(WmtpError, OSError):  # then it runs out by itself
                self._tell(holder=None)

    def _renew(self) -> None:
        with suppress(OSError):  # only Linux tells a thread's name to others
            Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(THREAD_NAME)
        wait = self._terms.ttl_seconds / 3
        while not self._is_over.wait(wait):
            with _renewing:
                try:
                    self._is_lost = not self._beat()
                except (WmtpError, OSError) as error:
                    log.warning("the lease of %s cannot be renewed now: %s", self._prefix, error)
                    continue
                if self._is_lost:
                    log.warning("the lease of %s is lost: another process took this one for dead", self._prefix)
                    return

    def _beat(self) -> bool:
        """A sign of life; False if another process holds the lease."""
        return self._tell(beat=self._state["beat"] + 1)

    def _tell(self, **changes: Any) -> bool:
        """Write what changed, over the last that we wrote; False if another process holds the lease."""
        backend, name, me = self._store.backend, _name(self._prefix), self._state["holder"]
        over, new = _bytes(self._state), {**self._state, **changes}
        while not backend.swap(name, _bytes(new), over=over):
            found = _read(self._store, self._prefix)
            if found is None:  # removed by hand, and nobody came since: it is still ours
                if backend.create(name, _bytes(new)):
                    break
                continue
            over, state = found
            if state == new:
                break
            # An earlier one of ours may have come through although its reply did not.
            if state["holder"] != me:
                return False
        self._state = new
        return True


def _acquired(store: Store, prefix: str, terms: LeaseTerms, run: str, is_done: Callable[[], bool]) -> Lease | None:
    started = said = time.monotonic()
    seen, since = b"", started
    while True:
        found = _read(store, prefix)
        mine = {
            "holder": uuid.uuid4().hex, "token": _next_token(store, prefix, found), "beat": 0, "run": run,
            "ttl_seconds": terms.ttl_seconds, **_this_process(),
        }  # fmt: skip
        now = time.monotonic()
        if found is None:
            if store.backend.create(_name(prefix), _bytes(mine)):
                return Lease(store, prefix, terms, mine)
            continue
        data, state = found
        if data != seen:
            seen, since = data, now
        # Another environment may have other terms: it is the holder's that it renews by.
        ttl = max(terms.ttl_seconds, state.get("ttl_seconds", 0.0))
        if state["holder"] is None or now - since > ttl or _is_gone(state):
            if store.backend.swap(_name(prefix), _bytes(mine), over=data):
                return Lease(store, prefix, terms, mine)
            continue
        if is_done():
            return None
        if terms.wait_seconds is not None and now - started >= terms.wait_seconds:
            raise Unavailable(
                f"{store.uri}/{prefix} is held by {_whom(state)}, and this process waits {terms.wait_seconds:g} s for it "
                "(lease.wait_seconds in the environment file, where it is a stage's). Run this again later."
            )
        if said == started or now - said >= _SECONDS_BETWEEN_LINES:
            said = now
            log.info("waits: %s/%s is held by %s", store.uri, prefix, _whom(state))
        time.sleep(min(1.0, terms.ttl_seconds / 10))


def _next_token(store: Store, prefix: str, found: tuple[bytes, dict[str, Any]] | None) -> int:
    if found is not None:
        return 1 + int(found[1]["token"])
    # Somebody removed the lease by hand: the pointer still knows how far the tokens had come.
    return 1 + int((pointed(store, prefix) or {"token": 0})["token"])


def _read(store: Store, prefix: str) -> tuple[bytes, dict[str, Any]] | None:
    data = store.backend.read(_name(prefix))
    if data is None:
        return None
    try:
        state: dict[str, Any] = json.loads(data)
        assert {"holder", "token", "beat"} <= state.keys()
    except (ValueError, AssertionError, AttributeError) as error:
        raise DataError(
            f"{store.uri}/{_name(prefix)} is no lease ({data[:40]!r}). Remove it when nobody works on this key."
        ) from error
    return data, state


def _name(prefix: str) -> str:
    return f"{prefix}/lease.json"


def _bytes(state: dict[str, Any]) -> bytes:
    return json.dumps(state, indent=1, sort_keys=True).encode()


def _whom(state: dict[str, Any]) -> str:
    return f"process {state.get('pid')} on {state.get('host')} for {state.get('run')}"


def _this_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "machine": _machine(), "born": _born(os.getpid())}


def _machine() -> str | None:
    """What this boot of this machine, and this process's view of its processes, are called; None where nothing tells."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _born(pid: int) -> str | None:
    """When a process was started, in the kernel's ticks; None if there is no such process."""
    try:
        # The name in parentheses may hold anything, so count from its end.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def _is_gone(state: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that is not there any more."""
    here = _machine()
    return here is not None and state.get("machine") == here and _born(int(state["pid"])) != state.get("born")
