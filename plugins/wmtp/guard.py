"""Runs one command so that nothing of it outlives whoever asked: `guard.py GRACE_SECONDS COMMAND…`.

The guard's standard input is a pipe that only the asker holds and never writes to. When it closes (the asker closed it,
raised, was interrupted or was killed), the command's group gets SIGTERM, has the grace to write a checkpoint, and what is
still there then is killed. When the command ends by itself, what it left behind is killed at once. Either way that includes
processes in sessions of their own, and only then the guard ends, with the command's exit code.

A script of the standard library alone, because it stands beside every task: it starts in a hundredth of a second.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_IS_LINUX = sys.platform == "linux"


def main() -> int:
    """Run the command of the command line; the return value is its exit code, 128 + N for signal N."""
    grace_seconds, command = float(sys.argv[1]), sys.argv[2:]
    # Orphans of the command become children of the guard, so that it can find and end them.
    if _IS_LINUX:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    # Ending the command is the pipe's business; the guard stays until all is gone. A handler, because an ignored signal
    # would be inherited by the command.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        process_group=0,
        preexec_fn=_die_with_the_guard if _IS_LINUX else None,  # noqa: PLW1509  no thread has been started yet
    )
    is_asked = threading.Event()
    threading.Thread(target=_end_with_the_asker, args=(child, grace_seconds, is_asked), daemon=True).start()
    code = child.wait()
    while is_asked.is_set() and _is_any_left(child.pid):
        time.sleep(0.2)  # they had SIGTERM too, and the grace is theirs as well
    _clear_up(child.pid)
    return code if code >= 0 else 128 - code


def _end_with_the_asker(child: "subprocess.Popen[bytes]", grace_seconds: float, is_asked: threading.Event) -> None:
    while os.read(0, 1):
        pass
    is_asked.set()
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    time.sleep(grace_seconds)
    is_asked.clear()
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def _die_with_the_guard() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _is_any_left(group: int) -> bool:
    """Whether a process of the group, or an orphan of it in another one, is still there."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    if _IS_LINUX:
        return bool(_children())
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, 0)
        return True
    return False


def _clear_up(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
    # Killing a child makes its own children ours, so look again until there is none. Elsewhere than on Linux a process
    # that left the group cannot be found.
    while children := _children() if _IS_LINUX else []:
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        for child in children:
            with suppress(ChildProcessError):
                os.waitpid(child, 0)


def _children() -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it ended while we looked
                # The name in parentheses may hold anything, so count from its end: state, parent.
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid():
                    found.append(int(entry.name))
    return found


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))


if __name__ == "__main__":
    sys.exit(main())
