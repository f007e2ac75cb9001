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
import signal
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
from mlops_tasks.evaluation.confinement import MEMORY_BYTES, has_landlock, is_supported
from mlops_tasks.logs import watched
from mlops_tasks.machine import num_cores

log = logging.getLogger(__name__)

Verdict = Literal["passed", "failed", "error", "timeout", "crashed"]
"""`failed`: a wrong answer; `error`: an exception, a syntax error too; `timeout`; `crashed`: exit, signal, memory, tampering."""
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

_WALL_FACTOR = 4.0
_BEFORE_TESTS = ("solution", "setup")
_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); from mlops_tasks.evaluation.harness import serve; "
    "del sys.path[0]; serve()"
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
    """CPU time; where each test is a run of its own, that of the slowest."""

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
        "assert is_refused(open, 'file', 'w')",
        "assert is_refused(os.kill, os.getppid(), 0)",
        "assert os.listdir() == [] and not os.environ",
    ),
)


class Sandbox:
    """Worker processes that run programs; a context manager, and nothing is left when it ends.

    Args:
        num_workers: programs at one time; None: one per core that this process may use.

    Raises:
        UserError: on entering, where the system cannot confine a program.
    """

    def __init__(self, num_workers: int | None = None) -> None:
        self.num_workers = num_workers or num_cores()
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._workers: list[_Worker] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        if not is_supported():
            raise UserError(
                f"Programs cannot be confined on {platform.system()} {platform.machine()}: judging needs Linux with seccomp on "
                "x86_64 or aarch64. Run this stage in a Linux container or on a Linux machine."
            )
        if not has_landlock():
            log.warning("this kernel has no Landlock (Linux 5.13): programs can read what this user may read")
        self._folder = tempfile.TemporaryDirectory(prefix="wmtp-sandbox-")
        try:
            for index in range(self.num_workers):
                worker = _Worker(Path(self._folder.name) / str(index))
                self._workers.append(worker)
                self._idle.put(worker)
            self._require_confinement()
        except BaseException:
            self.close()
            raise
        return self

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
            wall_seconds = wall_limit(program.limit_seconds)
            return outcome_of(program, worker.ask(program, wall_seconds), wall_seconds)
        finally:
            self._idle.put(worker)

    def _require_confinement(self) -> None:
        outcome = self._run_one(_PROBE)
        if not outcome.passed:
            raise UserError(
                f"Programs are not confined on this machine: {outcome.message}. Judging needs a kernel and a container runtime "
                "that grant seccomp filters. Run this stage on a machine that does."
            )


class _Worker:
    """One harness process."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        root = Path(harness.__file__).parents[2]
        # No site-packages, no user site, no folder of ours on the path. A fixed hash seed: a program that goes by the order
        # of a set has one verdict.
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-s", "-P", "-B", "-X", "utf8", "-c", _START, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PYTHONHASHSEED": "0"},
            cwd=folder,
        )

    def ask(self, program: Program, wall_seconds: float) -> dict[str, Any]:
        """Run one program and return the harness's reply."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        job = {
            "solution": program.solution,
            "setup": program.setup,
            "tests": program.tests,
            "io_tests": [(test.input, test.output) for test in program.io_tests],
            "cpu_seconds": program.limit_seconds,
            "wall_seconds": wall_seconds,
        }
        try:
            stdin.write(json.dumps(job).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            line = b""
        else:
            line = stdout.readline()
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


def outcome_of(program: Program, reply: dict[str, Any], wall_seconds: float) -> Outcome:
    """What a harness's reply says of a program.

    Raises:
        UserError: the child could not be confined and so ran nothing.
    """
    reports = reply["reports"]
    if reports and reports[0]["part"] == "confinement":
        raise UserError(
            f"A program could not be confined: {reports[0]['message']}. Judging needs a container runtime that grants seccomp "
            "filters and lower resource limits. Run this stage on a machine that does."
        )
    passed = 0 if reply["is_tampered"] else sum(one["part"] == "test" and one["verdict"] == "passed" for one in reports)
    verdict, message = _first_trouble(program, reply, wall_seconds)
    return Outcome(verdict, message, passed, len(program.tests) + len(program.io_tests), reply["seconds"])


def _first_trouble(program: Program, reply: dict[str, Any], wall_seconds: float) -> tuple[Verdict, str]:
    if reply["is_tampered"]:
        return "crashed", "wrote to the judge's own channel"
    for report in reply["reports"]:
        if report["verdict"] != "passed":
            place = f"test {report['index'] + 1}" if report["part"] == "test" else report["part"]
            return report["verdict"], f"{place}: {report['message']}"
    num_reports = len(reply["reports"])
    if program.io_tests:
        return "passed", ""
    if num_reports == len(program.tests) + len(_BEFORE_TESTS):
        return "passed", ""
    parts = [*_BEFORE_TESTS, *(f"test {index + 1}" for index in range(len(program.tests)))]
    return _end(program, reply, wall_seconds, parts[num_reports])


def _end(program: Program, reply: dict[str, Any], wall_seconds: float, place: str) -> tuple[Verdict, str]:
    """Why a child ended before it had reported every test."""
    code = reply["exit_code"]
    if reply["is_late"]:
        return "timeout", f"{place}: not done after {wall_seconds:.1f} s on the clock"
    if -code == signal.SIGPROF or (-code == signal.SIGKILL and reply["seconds"] >= program.limit_seconds):
        return "timeout", f"{place}: more than {program.limit_seconds:.1f} s of CPU time"
    if code == -signal.SIGKILL:
        return "crashed", f"{place}: killed, because the machine is out of memory or it closed the judge's own channel"
    if code < 0:
        return "crashed", f"{place}: killed by {signal.Signals(-code).name}"
    return "crashed", f"{place}: the process ended with status {code}"
