"""What a process gives up before it runs a program that nobody has read.

Owns the limits, the capabilities, the files (Landlock) and the system calls (a seccomp filter), put in place through ctypes: no
package, no root, no namespace is needed, so it is the same in a pod, in a container as root and for an ordinary user. When to
give them up is `harness`'s. A confined process starts threads but no process, has no network, changes no file but in a
folder of its own, where it has one, and touches no other process. With Landlock (Linux 5.13) it reads nothing but Python, the
system's libraries and that folder; without, it reads what its user may, the environment of its user's other processes too.

Only the standard library is imported here, and it loads everywhere; `confine` works on Linux alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import math
import os
import platform
import resource
import signal
import struct
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass

from mlops_tasks.evaluation.namespaces import FOLDER_BYTES, mount_folder

MEMORY_BYTES = 2**30
"""Address space of a program."""
STACK_BYTES = 2**27
"""Of the main thread, more than systems give by themselves: contest programs recurse deeply."""

# System calls that are refused, with their numbers on x86_64 and aarch64 (None: it has no such call).
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # network, and the way round the filter
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
    "io_uring_setup": (425, 425),
    # processes and threads
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    # other processes
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # files; opening one to write is refused by its flags
    "openat2": (437, 437),
    "creat": (85, None),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "link": (86, None),
    "linkat": (265, 37),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "lchown": (94, None),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "truncate": (76, 45),
    "ftruncate": (77, 46),
    "fallocate": (285, 47),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "setxattrat": (463, 463),
    "removexattrat": (466, 466),
    # memory that no limit counts or that outlives the process
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    # the system
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_by_handle_at": (304, 265),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    # the confinement itself
    "prctl": (157, 167),
    "seccomp": (317, 277),
}
_LEFT_TO_LANDLOCK = frozenset(
    [
        "creat",
        "mkdir",
        "mkdirat",
        "rmdir",
        "unlink",
        "unlinkat",
        "rename",
        "renameat",
        "renameat2",
        "truncate",
        "ftruncate",
    ]
)
_OPEN: tuple[tuple[tuple[int | None, int | None], int], ...] = (
    ((2, None), 1),
    ((257, 56), 2),
)  # numbers, which argument
_PRLIMIT = (302, 261)
_SOCKETPAIR = (53, 199)
_OTHER_THAN_STREAM = 0xE
"""Bits of a socket's type. An event loop wakes itself by a pair of streams; a datagram socket can send to any path."""
_FCNTL, _IOCTL = (72, 25), (16, 29)
_OWNERS = {_FCNTL: (8, 10, 15), _IOCTL: (0x8901, 0x8902)}
"""F_SETOWN, F_SETSIG, F_SETOWN_EX; FIOSETOWN, SIOCSPGRP: whose process a file's signals go to, and which signal."""
_CLONE, _CLONE3 = (56, 220), 435
_CLONE_THREAD = 0x00010000  # linux/sched.h
_WRITES = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC

# linux/audit.h: what the kernel calls the two machines.
_AUDIT = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_X32 = 0x40000000  # x86_64 numbers from here on are a second, 32-bit set of the same calls

# linux/filter.h and linux/seccomp.h
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data

# linux/prctl.h and linux/capability.h
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 1, 22, 38, 2
_CAPABILITY_VERSION_3 = 0x20080522

# linux/landlock.h; the numbers are the same on all machines
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_WRITE_FILE, _READ_FILE, _READ_FOLDER, _REMOVE_FOLDER, _REMOVE_FILE = (1 << bit for bit in range(1, 6))
_MAKE_FOLDER, _MAKE_FILE, _MOVE, _TRUNCATE = 1 << 7, 1 << 8, 1 << 13, 1 << 14
_READING = _READ_FILE | _READ_FOLDER
_IN_FOLDER = _WRITE_FILE | _REMOVE_FOLDER | _REMOVE_FILE | _MAKE_FOLDER | _MAKE_FILE | _MOVE | _TRUNCATE
_CHANGING = (1 << 15) - 1 & ~_READING & ~1  # every right of version 3 but to execute and to read
_CAN_GUARD_TRUNCATE, _HAS_SCOPES = 3, 6
_SCOPES = 3  # no abstract socket and no signal to a process outside


@dataclass(frozen=True)
class Confinement:
    """What the processes of one worker give up."""

    landlock: int
    """Version of Landlock's interface; 0: the kernel has none."""
    has_folder: bool
    """Whether each process gets a folder of its own to write to; else it writes nowhere."""
    is_safe: bool = True
    """False: limits of the kernel's only."""

    @classmethod
    def of_this_system(cls, *, has_own_mounts: bool) -> Confinement:
        """The most that this system grants."""
        version = landlock_version()
        return cls(version, has_own_mounts and version >= _CAN_GUARD_TRUNCATE)

    @classmethod
    def unsafe(cls) -> Confinement:
        """Limits of memory and time and nothing else."""
        return cls(0, has_folder=False, is_safe=False)

    def describe(self) -> list[str]:
        """For the log and the manifest."""
        if not self.is_safe:
            return ["resource limits"]
        reads = (
            f"Landlock {self.landlock}"
            if self.landlock
            else "no Landlock (Linux 5.13): programs read what this user may"
        )
        writes = f"a folder of {FOLDER_BYTES >> 20} MiB to write to" if self.has_folder else "no folder to write to"
        return ["seccomp", "resource limits", "no capabilities", reads, writes]

    def allowances(self) -> list[str]:
        """What a program may do on this system and not on every other, so that its verdict may be another one."""
        if not self.is_safe:
            return ["what this user may"]
        reads = [] if self.landlock else ["read what this user may"]
        return [*reads, *(["write to a folder"] if self.has_folder else [])]

    def apply(self, cpu_seconds: float, memory_bytes: int = MEMORY_BYTES) -> None:
        """Give everything up, for good. Call it in a fresh child with one thread.

        Raises:
            OSError: the system does not grant a part of it; the process must not run a program then.
        """
        if not self.is_safe:
            with contextlib.suppress(ValueError):  # macOS takes no limit of memory
                _limit(cpu_seconds, memory_bytes)
            return
        libc = ctypes.CDLL(None, use_errno=True)
        _prctl(libc, _PR_SET_PDEATHSIG, signal.SIGKILL)
        if self.has_folder:
            mount_folder()
        _limit(cpu_seconds, memory_bytes, file_bytes=FOLDER_BYTES if self.has_folder else 0)
        _prctl(libc, _PR_SET_NO_NEW_PRIVS, 1)
        _drop_capabilities(libc)
        if self.landlock:
            self._guard_files(libc)
        code = refusing_filter(platform.machine(), can_write=self.has_folder)
        instructions = ctypes.create_string_buffer(code, len(code))
        program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(instructions))
        _prctl(libc, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.create_string_buffer(program, len(program)))

    def _guard_files(self, libc: ctypes.CDLL) -> None:
        # linux/landlock.h: what is handled is refused unless a rule allows it. Without a folder, writing is the filter's business.
        call = libc.syscall
        rights = _READING | _CHANGING if self.has_folder else _READING
        handled = struct.pack("QQQ", rights, 0, _SCOPES)
        size = 24 if self.landlock >= _HAS_SCOPES else 8
        rules = call(_LANDLOCK_CREATE, handled, ctypes.c_size_t(size), ctypes.c_uint(0))
        _check(min(rules, 0), "landlock_create_ruleset")
        allowed = dict.fromkeys(readable_places(), _READING)
        if self.has_folder:
            allowed |= {os.getcwd(): _READING | _IN_FOLDER, os.devnull: _READ_FILE | _WRITE_FILE}
        for place, granted in allowed.items():
            where = os.open(place, os.O_PATH | os.O_CLOEXEC)
            rule = struct.pack("=Qi", granted if os.path.isdir(place) else granted & (_READ_FILE | _WRITE_FILE), where)
            _check(call(_LANDLOCK_ADD, rules, ctypes.c_int(1), rule, ctypes.c_uint(0)), f"landlock_add_rule({place})")
            os.close(where)
        _check(call(_LANDLOCK_RESTRICT, rules, ctypes.c_uint(0)), "landlock_restrict_self")
        os.close(rules)


def is_supported() -> bool:
    """Whether this system has what `confine` needs; that it works is shown by trying."""
    return platform.system() == "Linux" and platform.machine() in _AUDIT


def landlock_version() -> int:
    """Which version of Landlock's interface this kernel has, to keep a process from files; 0: none."""
    version: int = ctypes.CDLL(None).syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(1))
    return max(version, 0)


def readable_places() -> list[str]:
    """What a program may read: Python, the system's libraries, time zones, and the folder that it runs in."""
    python = {sys.prefix, sys.base_prefix, *(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib"))}
    system = {"/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", os.devnull, "/dev/urandom"}
    return sorted(place for place in {*python, *system, os.getcwd()} if os.path.exists(place))


def _limit(cpu_seconds: float, memory_bytes: int, file_bytes: int = 0) -> None:
    whole = math.ceil(cpu_seconds + 0.2)
    limits = {
        resource.RLIMIT_CPU: whole,  # behind the timer below, which knows fractions and which a program can stop
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_STACK: STACK_BYTES,
    }
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    for kind, wanted in limits.items():
        _, hard = resource.getrlimit(kind)
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)  # a shell's own limit may be lower
        resource.setrlimit(kind, (most, most))


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    # Not another user: root's interpreter often lies where only root may read. Without capabilities root is one user among
    # others, and `no_new_privs` keeps it so.
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    _check(libc.capset(header, bytes(24)), "capset")


def _prctl(libc: ctypes.CDLL, option: int, value: int, pointer: object = 0) -> None:
    # prctl reads longs; ctypes passes a bare int as 32 bits.
    long = ctypes.c_ulong
    third = pointer if isinstance(pointer, ctypes.Array) else long(0)
    _check(libc.prctl(ctypes.c_int(option), long(value), third, long(0), long(0)), f"prctl({option})")


def _check(result: int, call: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


def refusing_filter(machine: str, *, can_write: bool = False) -> bytes:
    """The seccomp program for a machine: refused calls fail with EPERM, everything else goes on.

    With `can_write` it leaves to Landlock where files are made, changed and removed.

    A refused call must not kill: a program that tries one gets an exception and its verdict, like any other.
    """
    column, audit = _AUDIT[machine]
    refuse = _ERRNO | errno.EPERM
    steps = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, audit), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    if machine == "x86_64":
        steps += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, refuse)]
    for name, numbers in _REFUSED.items():
        if (number := numbers[column]) is not None and not (can_write and name in _LEFT_TO_LANDLOCK):
            steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, refuse)]
    for numbers, argument in _OPEN:
        if (number := numbers[column]) is not None and not can_write:
            steps += _unless(number, argument, (_ANY_BIT, 0, 1, _WRITES))
    # A thread, but no process. What clone3 is asked for lies in memory, where a filter cannot look; told that there is no such
    # call, the C library takes clone.
    steps += _unless(_CLONE[column], 0, (_ANY_BIT, 1, 0, _CLONE_THREAD))
    steps += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    steps += _unless(_SOCKETPAIR[column], 1, (_ANY_BIT, 0, 1, _OTHER_THAN_STREAM))
    for numbers, values in _OWNERS.items():
        steps += _except(numbers[column], 1, values)
    # A limit of its own, but not one of the process that judges it.
    steps += _unless(_PRLIMIT[column], 0, (_EQUAL, 1, 0, 0))
    return b"".join(struct.pack("HBBI", *step) for step in [*steps, (_RETURN, 0, 0, _ALLOW)])


def _unless(number: int, argument: int, test: tuple[int, int, int, int]) -> list[tuple[int, int, int, int]]:
    """Steps for one call: `test` looks at the low half of an argument and jumps over the refusal."""
    load = (_LOAD, 0, 0, _ARGUMENTS + 8 * argument)
    return [(_EQUAL, 0, 4, number), load, test, (_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]


def _except(number: int, argument: int, values: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Steps for one call: refused where the low half of an argument is one of the values."""
    load = (_LOAD, 0, 0, _ARGUMENTS + 8 * argument)
    tests = [(_EQUAL, len(values) - index, 0, value) for index, value in enumerate(values)]
    ends = [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    return [(_EQUAL, 0, len(values) + 3, number), load, *tests, *ends]
