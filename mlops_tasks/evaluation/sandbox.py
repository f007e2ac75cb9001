"""Running many programs with their tests, confined, on all cores, and saying of each how it went.

Owns verdicts, time limits and the processes that do the work. One program's run is `harness`'s, what it may do
`confinement`'s, what its outcome means for a model `judging`'s.

The measure of a limit is CPU time, so that a loaded machine fails no program; the clock is only a backstop for programs
that sleep, and more generous the higher the load.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import queue
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

from mlops_tasks.errors import UserError, WmtpError
from mlops_tasks.evaluation import harness
from mlops_tasks.evaluation.confinement import MEMORY_BYTES, is_supported
from mlops_tasks.logs import watched
from mlops_tasks.machine import num_cores

log = logging.getLogger(__name__)

Verdict = Literal["passed", "failed", "error", "timeout", "crashed"]
"""`failed`: a wrong answer; `error`: an exception, a syntax error too; `timeout`; `crashed`: exit, signal, memory, tampering."""
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

_WALL_FACTOR = 4.0
_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); from mlops_tasks.evaluation.harness import serve; "
    "del sys.path[0]; serve(is_unsafe=sys.argv[2:] == ['unsafe'])"
)


@dataclass(frozen=True)
class IoTest:
    """What a program reads on standard input, and what it has to print."""

    input: str
    output: str
    """Compared by `outputs.same_output`: the words between white space, and numbers to within 1e-6."""


@dataclass(frozen=True)
class Program:
    """Code that somebody wrote, and the tests that it has to pass: Python statements, or runs of it as a script."""

    solution: str
    tests: tuple[str, ...] = ()
    setup: str = ""
    limit_seconds: float = 3.0
    """Of CPU time: for all `tests` together, for each of the `io_tests`."""
    io_tests: tuple[IoTest, ...] = ()

    def __post_init__(self) -> None:
        assert bool(self.tests) != bool(self.io_tests), "a program has tests or io_tests"
        assert not (self.setup and self.io_tests), "a script has no set-up"

    @property
    def text(self) -> str:
        """All of it in the order in which it runs."""
        return "\n".join(part.rstrip("\n") for part in (self.solution, self.setup, *self.tests) if part) + "\n"


@dataclass(frozen=True)
class Outcome:
    """How a program did. Verdict and message are those of the first test that it does not pass."""

    verdict: Verdict
    message: str
    tests_passed: int
    num_tests: int
    seconds: float
    """CPU time of the program; where each test is a run of its own, that of the slowest."""
    tests_inside: int = 0
    """Of the tests passed, those in which the program had a say: it compared objects of its own. See docs/sandbox.md."""

    @property
    def passed(self) -> bool:
        """Every test passed."""
        return self.verdict == "passed"


# A sandbox runs this before anything else: it passes only where each of these is refused.
_PROBE = Program(
    solution="""
import os, socket

def is_refused(action, *arguments):
    try:
        action(*arguments)
    except PermissionError:
        return True
    return False

def start_process():
    if os.fork() == 0:
        os._exit(0)
""",
    tests=(
        "assert is_refused(socket.socket)",
        "assert is_refused(start_process)",
        "assert is_refused(open, '../file', 'w')",
        "assert is_refused(os.kill, os.getppid(), 0)",
        "assert os.listdir() == [] and not os.environ",
    ),
)


class Sandbox:
    """Worker processes that run programs; a context manager, and nothing is left when it ends.

    Args:
        num_workers: programs at one time; None: one per core that this process may use.
        unsafe: where this system cannot confine a program, run it all the same, with limits of memory and time only.

    Raises:
        UserError: on entering, where the system cannot confine a program and nobody said `unsafe`.
    """

    def __init__(self, num_workers: int | None = None, *, unsafe: bool = False) -> None:
        self.num_workers = num_workers or num_cores()
        self.protections: tuple[str, ...] = ()
        """What keeps a program in, in words; known once entered."""
        self.allowances: tuple[str, ...] = ()
        """What a program may do here and not on every machine: where they differ, verdicts may."""
        self._allows_unsafe = unsafe
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._workers: list[_Worker] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        try:
            self._enter_confined()
        except UserError as error:
            if not self._allows_unsafe:
                raise
            log.warning("judge.unsafe is set: programs run as your user, with your files and network. %s", error)
            self._start(is_unsafe=True)
        log.info("programs are kept in by %s", ", ".join(self.protections))
        return self

    def _enter_confined(self) -> None:
        if not is_supported():
            raise UserError(
                f"Programs cannot be confined on {platform.system()} {platform.machine()}: judging needs Linux with seccomp on "
                "x86_64 or aarch64. Run this stage in a Linux container or on a Linux machine, or, where you trust the programs "
                "as your own, set judge.unsafe in the environment file."
            )
        self._start(is_unsafe=False)
        try:
            self._require_confinement()
        except BaseException:
            self.close()
            raise

    def _start(self, *, is_unsafe: bool) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="wmtp-sandbox-")
        self._idle = queue.SimpleQueue()
        try:
            folder = Path(self._folder.name)
            self._workers = [_Worker(folder / str(index), is_unsafe=is_unsafe) for index in range(self.num_workers)]
            for worker in self._workers:
                self.protections, self.allowances = worker.surroundings()
                self._idle.put(worker)
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, and with each the program that it runs."""
        for worker in self._workers:
            worker.close()
        if self._folder is not None:
            self._folder.cleanup()

    def run(self, programs: Sequence[Program], *, title: str | None = "programs") -> list[Outcome]:
        """Run programs and return their outcomes in the same order.

        Args:
            title: of the progress that is shown; None: none is.

        Raises:
            UserError: the system does not confine a program.
            WmtpError: a worker is gone (killed from outside, or out of memory).
        """
        with ThreadPoolExecutor(self.num_workers) as pool:
            try:
                outcomes = pool.map(self._run_one, programs)
                return list(outcomes if title is None else watched(outcomes, title, len(programs), unit="program"))
            except BaseException:
                # Workers first, or the pool would wait for programs that nobody wants any more.
                pool.shutdown(wait=False, cancel_futures=True)
                self.close()
                raise

    def _run_one(self, program: Program) -> Outcome:
        worker = self._idle.get()
        try:
            for _ in range(2):
                reply = worker.ask(program, wall_limit(program.limit_seconds))
                if reply["is_last"]:
                    worker = self._successor(worker)
                if "not_run" not in reply:
                    return outcome_of(program, reply)
            raise WmtpError(
                "The processes of a sandbox worker were killed twice before they could run a program. If the machine was out of "
                f"memory, lower judge.num_workers (each program may take {MEMORY_BYTES >> 20} MiB); else run the stage again."
            )
        finally:
            self._idle.put(worker)

    def _successor(self, worker: _Worker) -> _Worker:
        log.warning("a process that starts programs was killed; its worker is replaced")
        worker.close()
        successor = _Worker(worker.folder, is_unsafe=worker.is_unsafe)
        self._workers[self._workers.index(worker)] = successor
        successor.surroundings()
        return successor

    def _require_confinement(self) -> None:
        outcome = self._run_one(_PROBE)
        if not outcome.passed:
            raise UserError(
                f"Programs are not confined on this machine: {outcome.message}. Judging needs a kernel and a container runtime "
                "that grant seccomp filters. Run this stage on a machine that does."
            )


class _Worker:
    """One harness process."""

    def __init__(self, folder: Path, *, is_unsafe: bool) -> None:
        self.folder, self.is_unsafe = folder, is_unsafe
        folder.mkdir(exist_ok=True)
        root = Path(harness.__file__).parents[2]
        # No site-packages, no user site, no folder of ours on the path. A fixed hash seed: a program that goes by the order
        # of a set has one verdict.
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-s", "-P", "-B", "-X", "utf8", "-c", _START, str(root), *["unsafe"] * is_unsafe],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PYTHONHASHSEED": "0"},
            cwd=folder,
        )

    def surroundings(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Wait until it is ready, and return what it keeps programs in by, and what it allows them."""
        told = self._next_line()
        return tuple(told["protections"]), tuple(told["allowances"])

    def ask(self, program: Program, wall_seconds: float) -> dict[str, Any]:
        """Run one program and return the harness's reply."""
        assert self._process.stdin is not None
        job = {
            "solution": program.solution,
            "setup": program.setup,
            "tests": program.tests,
            "io_tests": [(test.input, test.output) for test in program.io_tests],
            "cpu_seconds": program.limit_seconds,
            "wall_seconds": wall_seconds,
        }
        with contextlib.suppress(BrokenPipeError):  # its end is noticed when it is to answer
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
        return self._next_line()

    def _next_line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WmtpError(
                f"A sandbox worker ended with status {self._process.wait()} while it ran a program. If the machine was out of "
                f"memory, lower judge.num_workers (each program may take {MEMORY_BYTES >> 20} MiB); else run the stage again."
            )
        reply: dict[str, Any] = json.loads(line)
        return reply

    def close(self) -> None:
        self._process.kill()  # the kernel then kills its child
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # what was not sent is not wanted
                    stream.close()


def wall_limit(limit_seconds: float) -> float:
    """Seconds on the clock after which a program is taken to sleep: what its CPU time may take under the load there is."""
    load_per_core = os.getloadavg()[0] / (
        os.cpu_count() or 1
    )  # the load is the whole machine's, whatever we may use of it
    return _WALL_FACTOR * limit_seconds * max(1.0, load_per_core)


def outcome_of(program: Program, reply: dict[str, Any]) -> Outcome:
    """What a worker's reply says of a program.

    Raises:
        UserError: its process could not be confined and so ran nothing.
    """
    if "unconfined" in reply:
        raise UserError(
            f"A program could not be confined: {reply['unconfined']}. Judging needs a container runtime that grants seccomp "
            "filters and lower resource limits. Run this stage on a machine that does."
        )
    reports = reply["reports"]
    passed = [report for report in reports if report["part"] == "test" and report["verdict"] == "passed"]
    trouble = next((report for report in reports if report["verdict"] != "passed"), None)
    return Outcome(
        verdict="passed" if trouble is None else trouble["verdict"],
        message="" if trouble is None else f"{_place(trouble)}: {trouble['message']}",
        tests_passed=len(passed),
        num_tests=len(program.tests) + len(program.io_tests),
        seconds=reply["seconds"],
        tests_inside=sum(report["is_inside"] for report in passed),
    )


def _place(report: dict[str, Any]) -> str:
    return f"test {report['index'] + 1}" if report["part"] == "test" else str(report["part"])
