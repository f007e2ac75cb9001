"""The seccomp program, read by an interpreter of its own; that the kernel takes it is shown in test_sandbox."""

import errno
import struct

import pytest

from mlops_tasks.evaluation.confinement import Confinement, refusing_filter

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
REFUSED = 0x00050000 | errno.EPERM
ALLOWED = 0x7FFF0000
KILLED = 0x80000000


def decision(code: bytes, *, audit: int, number: int, arguments: tuple[int, ...] = ()) -> int:
    """Run a BPF program on one system call, as linux/filter.h describes the instructions."""
    words = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("IIQ6Q", number, audit, 0, *words)
    steps = [struct.unpack_from("HBBI", code, at) for at in range(0, len(code), 8)]
    at, accumulator = 0, 0
    while True:
        kind, if_true, if_false, operand = steps[at]
        at += 1
        if kind == 0x20:
            (accumulator,) = struct.unpack_from("I", data, operand)
        elif kind == 0x06:
            return operand
        else:
            holds = {0x15: accumulator == operand, 0x35: accumulator >= operand, 0x45: bool(accumulator & operand)}[
                kind
            ]
            at += if_true if holds else if_false


# Numbers from the kernel's own tables: socket, vfork or clone, execve, kill, unlinkat, ptrace, prctl.
@pytest.mark.parametrize(
    ("machine", "numbers"),
    [("x86_64", (41, 58, 59, 62, 263, 101, 157)), ("aarch64", (198, 220, 221, 129, 35, 117, 167))],
)
def test_dangerous_calls_are_refused(machine: str, numbers: tuple[int, ...]) -> None:
    code = refusing_filter(machine)
    for number in numbers:
        assert decision(code, audit=MACHINES[machine], number=number) == REFUSED


# read, write, mmap, exit_group, getrandom
@pytest.mark.parametrize(("machine", "numbers"), [("x86_64", (0, 1, 9, 231, 318)), ("aarch64", (63, 64, 222, 94, 278))])
def test_what_every_program_does_is_allowed(machine: str, numbers: tuple[int, ...]) -> None:
    code = refusing_filter(machine)
    for number in numbers:
        assert decision(code, audit=MACHINES[machine], number=number) == ALLOWED


@pytest.mark.parametrize(("machine", "openat"), [("x86_64", 257), ("aarch64", 56)])
def test_a_file_is_opened_to_read_and_never_to_write(machine: str, openat: int) -> None:
    code, audit = refusing_filter(machine), MACHINES[machine]
    read_only, write_only, read_write, create, truncate, close_on_exec = 0, 1, 2, 0o100, 0o1000, 0o2000000
    assert decision(code, audit=audit, number=openat, arguments=(0, 0, read_only | close_on_exec)) == ALLOWED
    for flags in (write_only, read_write, read_only | create, read_only | truncate, write_only | close_on_exec):
        assert decision(code, audit=audit, number=openat, arguments=(0, 0, flags)) == REFUSED


@pytest.mark.parametrize(("machine", "prlimit"), [("x86_64", 302), ("aarch64", 261)])
def test_only_a_process_own_limits_can_be_set(machine: str, prlimit: int) -> None:
    code, audit = refusing_filter(machine), MACHINES[machine]
    assert decision(code, audit=audit, number=prlimit, arguments=(0,)) == ALLOWED
    assert decision(code, audit=audit, number=prlimit, arguments=(4711,)) == REFUSED


def test_calls_by_another_machine_s_numbers_are_no_way_round() -> None:
    code = refusing_filter("x86_64")
    assert decision(code, audit=0x40000003, number=1) == KILLED  # 32-bit x86
    assert decision(code, audit=MACHINES["x86_64"], number=0x40000000 | 41) == REFUSED  # x32


@pytest.mark.parametrize(("machine", "clone"), [("x86_64", 56), ("aarch64", 220)])
def test_a_thread_is_started_and_no_process(machine: str, clone: int) -> None:
    code, audit = refusing_filter(machine), MACHINES[machine]
    thread, child = 0x3D0F00, 0x1200011  # what pthread_create and fork ask for
    assert decision(code, audit=audit, number=clone, arguments=(thread,)) == ALLOWED
    assert decision(code, audit=audit, number=clone, arguments=(child,)) == REFUSED
    assert decision(code, audit=audit, number=435) == 0x00050000 | errno.ENOSYS


@pytest.mark.parametrize(
    ("machine", "openat", "mkdirat", "symlinkat"), [("x86_64", 257, 258, 266), ("aarch64", 56, 34, 36)]
)
def test_with_a_folder_files_are_made_and_links_are_not(
    machine: str, openat: int, mkdirat: int, symlinkat: int
) -> None:
    code, audit = refusing_filter(machine, can_write=True), MACHINES[machine]
    assert decision(code, audit=audit, number=openat, arguments=(0, 0, 0o101)) == ALLOWED
    assert decision(code, audit=audit, number=mkdirat) == ALLOWED
    assert decision(code, audit=audit, number=symlinkat) == REFUSED


def test_a_folder_needs_mounts_of_its_own_and_a_landlock_that_guards_truncation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for version, has_own_mounts, has_folder in ((2, True, False), (3, True, True), (3, False, False)):
        monkeypatch.setattr("mlops_tasks.evaluation.confinement.landlock_version", lambda version=version: version)
        assert Confinement.of_this_system(has_own_mounts=has_own_mounts).has_folder is has_folder


def test_what_is_missing_is_told() -> None:
    assert "no Landlock (Linux 5.13): programs read what this user may" in Confinement(0, has_folder=False).describe()
    assert "no folder to write to" in Confinement(2, has_folder=False).describe()
    assert Confinement.unsafe().describe() == ["resource limits"]


def test_what_may_change_a_verdict_is_told() -> None:
    assert Confinement(6, has_folder=True).allowances() == ["write to a folder"]
    assert Confinement(2, has_folder=False).allowances() == []
    assert Confinement(0, has_folder=False).allowances() == ["read what this user may"]
    assert Confinement.unsafe().allowances() == ["what this user may"]
