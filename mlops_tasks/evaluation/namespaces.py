"""Namespaces of a worker's own: no host process, no network and no mount but its own is there at all.

Owns entering them and the folder that a program may write to. They come on top of what `confinement` refuses, and many container
runtimes do not grant them: then a worker goes without and says so. As root no user namespace is needed, but it does no harm; for an
ordinary user it is what allows the others. Only the standard library is imported here.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from dataclasses import dataclass

FOLDER_BYTES = 16 << 20
FOLDER_FILES = 256
"""What a program may write, in a file system in memory that ends with it."""

# linux/sched.h
_MOUNTS, _HOST_NAME, _IPC, _USERS, _PROCESSES, _NETWORK = 1 << 17, 1 << 26, 1 << 27, 1 << 28, 1 << 29, 1 << 30
# linux/mount.h and linux/prctl.h
_NO_SETUID, _NO_DEVICES, _NO_EXEC, _RECURSIVE, _PRIVATE = 2, 4, 8, 1 << 14, 1 << 18
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4


@dataclass(frozen=True)
class Spaces:
    """Which namespaces a worker is in: all, or none and why."""

    refusal: str = ""

    @property
    def are_own(self) -> bool:
        """Whether it is in its own."""
        return not self.refusal

    def describe(self) -> str:
        """For the log and the manifest."""
        return (
            f"no namespaces ({self.refusal})"
            if self.refusal
            else "own user, process, mount, network and ipc namespaces"
        )


def enter() -> Spaces:
    """Go on in a process of new namespaces, if this system grants them. Call it with one thread and nothing buffered."""
    refusal = _refusal()
    if refusal:
        return Spaces(refusal)
    user, group, outside = os.getuid(), os.getgid(), os.getpid()
    _unshare(user, group)
    inside = os.fork()
    if inside != 0:
        for standard in (0, 1):
            os.close(standard)  # their ends are to be seen when the one inside ends
        os._exit(os.waitstatus_to_exitcode(os.waitpid(inside, 0)[1]) & 0xFF)
    # Its parent is not in its namespace, and so has no number there.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if not _is_there(outside):
        os._exit(0)
    _mount("none", "/", "", _RECURSIVE | _PRIVATE, "")
    return Spaces()


def be_unreadable() -> None:
    """Let no process of the same user read this one's memory."""
    if sys.platform == "linux":
        _prctl(_PR_SET_DUMPABLE, 0)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, where it can."""
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)


def mount_folder() -> None:
    """Put an empty file system over the current folder, for this process alone; it is gone when the process is.

    Raises:
        OSError: the system does not grant it.
    """
    _check(_libc().unshare(_MOUNTS), "unshare")
    options = f"size={FOLDER_BYTES},nr_inodes={FOLDER_FILES},mode=700"
    place = os.getcwd()
    _mount("tmpfs", place, "tmpfs", _NO_SETUID | _NO_DEVICES | _NO_EXEC, options)
    os.chdir(place)


def _refusal() -> str:
    """Why this system grants no namespaces, found out by a child that tries everything."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _unshare(os.getuid(), os.getgid())
            _mount("none", "/", "", _RECURSIVE | _PRIVATE, "")
            mount_folder()
        except OSError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        refusal = file.read().decode()
    os.waitpid(child, 0)
    return refusal


def _unshare(user: int, group: int) -> None:
    _check(_libc().unshare(_USERS | _PROCESSES | _MOUNTS | _NETWORK | _IPC | _HOST_NAME), "unshare")
    for file, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{file}", "w", encoding="ascii") as target:
            target.write(text)


def _is_there(pid: int) -> bool:
    # Inside, the parent's number means nothing, but the process file system is still the one outside.
    with contextlib.suppress(OSError):
        return os.path.exists(f"/proc/{pid}")
    return True


def _mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    texts = [text.encode() or None for text in (source, target, kind)]
    _check(_libc().mount(*texts, ctypes.c_ulong(flags), options.encode()), f"mount {kind or 'private'} on {target}")


def _prctl(option: int, value: int) -> None:
    zero = ctypes.c_ulong(0)
    _check(_libc().prctl(ctypes.c_int(option), ctypes.c_ulong(value), zero, zero, zero), f"prctl({option})")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, call: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
