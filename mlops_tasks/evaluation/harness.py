"""A worker of the sandbox: it runs one program after another, each in confined children of its own.

Owns the processes, and what their ends amount to. What a child gives up first is `confinement`'s, what happens to tests `trial`'s, to
a script `script`'s; `sandbox` starts the worker and speaks with it in lines of JSON, one job and one reply at a time.

    sandbox ── jobs, replies ──► worker ──► judge      runs the tests of one program; its verdicts come on a pipe of its own
                                    │         │ values
                                    └──► nursery ──► program

Programs are children of the nursery, which was forked before the first job: no test and no expected output was ever in its memory.

Only the standard library is imported here: the process runs without site-packages.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import site
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, BinaryIO

from mlops_tasks.evaluation import namespaces
from mlops_tasks.evaluation.confinement import Confinement
from mlops_tasks.evaluation.outputs import same_output
from mlops_tasks.evaluation.script import run_script
from mlops_tasks.evaluation.trial import MESSAGE_LENGTH, Report, hold_program, hold_trial

OUTPUT_BYTES = 16 << 20
"""What a script may print before it is ended."""
MOST_THREADS = 64
"""A program that has more is ended."""
_JUDGE_SECONDS = 20.0
"""CPU time that the tests themselves may take, beside the program's."""
_LOOK_SECONDS = 0.05
_NO_REPORT = 70  # a child's exit status when it could not even say what went wrong
_MESSAGE_BYTES = 4096

# What programs import most, loaded once here and not once a program.
_WARM = (
    *("bisect", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools"),
    *("heapq", "io", "itertools", "math", "operator", "random", "re", "statistics", "string", "threading", "typing"),
)


class UnconfinedError(Exception):
    """A child could not be confined, and so ran nothing."""


class NurseryGoneError(Exception):
    """Somebody killed the nursery before it had a program to run."""


def serve(*, is_unsafe: bool = False) -> None:
    """Answer jobs on standard input until it ends; the first line out says which protections there are."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent then closes the pipe
    spaces = namespaces.Spaces("unsafe") if is_unsafe else namespaces.enter()
    namespaces.be_unreadable()
    confinement = Confinement.unsafe() if is_unsafe else Confinement.of_this_system(has_own_mounts=spaces.are_own)
    for name in _WARM:
        importlib.import_module(name)
    site.setquit()  # the interpreter runs without site, and scripts say `exit()`
    os.environ.clear()
    gc.freeze()  # a collection in a child would touch, and so copy, every page
    worker = _Worker(confinement, jobs=sys.stdin.buffer)
    replies = os.fdopen(os.dup(1), "wb")
    protections = [*confinement.describe(), spaces.describe()]
    _write_line(replies, {"protections": protections, "allowances": confinement.allowances()})
    while line := sys.stdin.buffer.readline():
        job = json.loads(line)
        try:
            reply = worker.run_scripts(job) if job["io_tests"] else worker.run_tests(job)
        except UnconfinedError as error:
            reply = {"unconfined": str(error)}
        except NurseryGoneError:
            reply = {"not_run": True}
        _write_line(replies, reply | {"is_last": worker.is_worn})
        if worker.is_worn:
            return


def _write_line(file: BinaryIO, content: dict[str, Any]) -> None:
    file.write(json.dumps(content).encode() + b"\n")
    file.flush()


class _Worker:
    """What answers jobs: `solution`, `setup`, `tests` or `io_tests`, `cpu_seconds`, `wall_seconds`."""

    def __init__(self, confinement: Confinement, *, jobs: BinaryIO) -> None:
        self._confinement, self._jobs = confinement, jobs
        self._nursery = Nursery(confinement)

    @property
    def is_worn(self) -> bool:
        """Whether it can run no more programs: a nursery that is forked now would know the tests of all jobs so far."""
        return self._nursery.is_gone

    def run_tests(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run a program and its tests in two processes; a report for each part that was reached."""
        deadline = time.monotonic() + job["wall_seconds"]
        program_in, to_program = os.pipe()
        from_program, program_out = os.pipe()
        verdicts, judge_out = os.pipe()
        with _closing(to_program, from_program, judge_out):
            with _closing(program_in, program_out):
                self._nursery.start("tests", job["cpu_seconds"], (program_in, program_out))
            judge = self._start_judge(job, (from_program, to_program, judge_out))
        written, is_late = self._collect({verdicts: OUTPUT_BYTES}, deadline)
        os.close(verdicts)
        judge_code, _ = _ended(judge)
        code, seconds = self._nursery.finish()
        reports = [json.loads(line) for line in written[verdicts].splitlines()]
        if reports and reports[-1]["part"] == "end":
            reports.pop()
        elif reports and reports[-1]["verdict"] == "ended":
            reports[-1] |= _end(code, seconds, job, reports[-1]["message"], is_late=is_late)
        else:
            reports.append(_next_part(reports, job) | _unjudged(judge_code, code, seconds, job, is_late=is_late))
        return {"reports": reports, "seconds": seconds}

    def _start_judge(self, job: dict[str, Any], channels: tuple[int, int, int]) -> int:
        def judge() -> None:
            with os.fdopen(5, "wb", buffering=0) as file:
                hold_trial(job, 3, 4, lambda report: _write_line(file, report))

        child, _ = _start_child(
            self._confinement, job["cpu_seconds"] + _JUDGE_SECONDS, judge, (None, None, None, *channels)
        )
        return child

    def run_scripts(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run a program once for each of its `io_tests`, in a fresh child; `seconds` are those of the slowest."""
        reports, slowest = [], 0.0
        for index, (given, expected) in enumerate(job["io_tests"]):
            report, seconds = self._run_script(job, given, expected)
            reports.append({"part": "test", "index": index, "is_inside": False, **report})
            slowest = max(slowest, seconds)
            if self.is_worn:
                break
        return {"reports": reports, "seconds": slowest}

    def _run_script(self, job: dict[str, Any], given: str, expected: str) -> tuple[Report, float]:
        deadline = time.monotonic() + job["wall_seconds"]
        (out, child_out), (err, child_err) = os.pipe(), os.pipe()
        with (
            _closing(child_out, child_err),
            _file_of(given) as stdin,
            _file_of(job["solution"]) as source,
        ):
            files = (stdin.fileno(), child_out, child_err, source.fileno())
            self._nursery.start("script", job["cpu_seconds"], files)
        printed, is_late = self._collect({out: OUTPUT_BYTES, err: OUTPUT_BYTES}, deadline)
        os.close(out)
        os.close(err)
        code, seconds = self._nursery.finish()
        return _script_report(job, (code, seconds), printed[out], printed[err], expected, is_late=is_late), seconds

    def _collect(self, limits: dict[int, int], deadline: float) -> tuple[dict[int, bytes], bool]:
        """What is written to each pipe until all are closed or one is at its limit, and whether the clock ran out before."""
        poll = select.poll()
        poll.register(self._jobs, 0)  # only its end: nobody wants the reply then
        for reader in limits:
            poll.register(reader, select.POLLIN)
        written = {reader: bytearray() for reader in limits}
        num_open, is_late = len(limits), False
        while num_open and not is_late and all(len(written[reader]) < most for reader, most in limits.items()):
            ready = dict(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
            is_late = not ready
            if self._jobs.fileno() in ready:
                break
            for reader in ready:
                chunk = os.read(reader, 1 << 16)
                written[reader] += chunk
                if not chunk:
                    poll.unregister(reader)
                    num_open -= 1
        return {reader: bytes(found) for reader, found in written.items()}, is_late


def _script_report(
    job: dict[str, Any], end: tuple[int, float], out: bytes, err: bytes, expected: str, *, is_late: bool
) -> Report:
    code, seconds = end
    if max(len(out), len(err)) >= OUTPUT_BYTES:
        return {"verdict": "crashed", "message": f"printed more than {OUTPUT_BYTES >> 20} MiB"}
    if is_late or code < 0:
        return _end(code, seconds, job, "ended", is_late=is_late)
    if code != 0:
        last = err.decode("utf-8", "replace").strip().rpartition("\n")[2][:MESSAGE_LENGTH]
        return {"verdict": "error", "message": last or f"the process ended with status {code}"}
    if not same_output(expected, out.decode("utf-8", "replace")):
        return {"verdict": "failed", "message": "another output"}
    return {"verdict": "passed", "message": ""}


def _next_part(reports: Sequence[Report], job: dict[str, Any]) -> Report:
    """What the judge was at when it ended."""
    if not reports:
        return {"part": "solution", "is_inside": False}
    if job["setup"] and len(reports) == 1:
        return {"part": "setup", "is_inside": False}
    return {"part": "test", "index": len(reports) - 1 - bool(job["setup"]), "is_inside": False}


def _unjudged(judge_code: int, code: int, seconds: float, job: dict[str, Any], *, is_late: bool) -> Report:
    """The judge itself was ended: by the clock, or by what it was given to compare."""
    if is_late or _is_out_of_time(code, seconds, job):
        return _end(code, seconds, job, "", is_late=is_late)
    if -judge_code in {signal.SIGPROF, signal.SIGXCPU}:
        return {"verdict": "timeout", "message": "the test takes too long on what the program returned"}
    return {"verdict": "crashed", "message": f"the test ended with status {judge_code} on what the program returned"}


def _end(code: int, seconds: float, job: dict[str, Any], trouble: str, *, is_late: bool) -> Report:
    """Why a program is gone."""
    if is_late:
        return {"verdict": "timeout", "message": f"not done after {job['wall_seconds']:.1f} s on the clock"}
    if _is_out_of_time(code, seconds, job):
        return {"verdict": "timeout", "message": f"more than {job['cpu_seconds']:.1f} s of CPU time"}
    if trouble not in {"", "ended"}:
        return {"verdict": "crashed", "message": trouble}
    if code == -signal.SIGKILL:
        why = f"the machine is out of memory, it has more than {MOST_THREADS} threads, or it closed the judge's own channel"
        return {"verdict": "crashed", "message": f"killed, because {why}"}
    if code < 0:
        return {"verdict": "crashed", "message": f"killed by {signal.Signals(-code).name}"}
    return {"verdict": "crashed", "message": f"the process ended with status {code}"}


def _is_out_of_time(code: int, seconds: float, job: dict[str, Any]) -> bool:
    return -code in {signal.SIGPROF, signal.SIGXCPU} or (-code == signal.SIGKILL and seconds >= job["cpu_seconds"])


class Nursery:
    """A process that has seen no test, and the programs, one at a time, that it forks.

    Killing it kills its program, and it ends with its parent.
    """

    is_gone = False
    """Whether somebody killed it, as a machine does that is out of memory; its program was killed with it."""

    def __init__(self, confinement: Confinement) -> None:
        self._control, theirs = socket.socketpair()
        parent = os.getpid()
        if os.fork() == 0:
            try:
                self._control.close()
                namespaces.die_with_parent(parent)
                _nurse(theirs, confinement)
            finally:
                os._exit(_NO_REPORT)
        theirs.close()

    def start(self, kind: str, cpu_seconds: float, files: Sequence[int]) -> None:
        """Start a program.

        Raises:
            UnconfinedError: it could not be confined and so does not run.
            NurseryGoneError: there is nobody to run it.
        """
        with contextlib.suppress(OSError):  # noticed when it is to answer
            socket.send_fds(self._control, [json.dumps([kind, cpu_seconds]).encode()], files)
        refusal = self._answer("")
        if self.is_gone:
            raise NurseryGoneError
        if refusal:
            self.finish()
            raise UnconfinedError(refusal)

    def finish(self) -> tuple[int, float]:
        """End the program and return its exit code, which it keeps if it ended by itself, and the CPU time it took."""
        with contextlib.suppress(OSError):
            self._control.sendall(b"end")
        code, seconds = self._answer((-signal.SIGKILL, 0.0))
        return code, seconds

    def _answer(self, otherwise: Any) -> Any:
        try:
            told = self._control.recv(_MESSAGE_BYTES)
        except OSError:
            told = b""
        self.is_gone |= not told
        return json.loads(told) if told else otherwise


def _nurse(control: socket.socket, confinement: Confinement) -> None:
    while True:
        message, files, _, _ = socket.recv_fds(control, _MESSAGE_BYTES, 8)
        if not message:
            return
        kind, cpu_seconds = json.loads(message)
        run, standard = (_be_script, ()) if kind == "script" else (_be_tested, (None, None, None))
        child, refusal = 0, ""
        with _closing(*files):
            try:
                child, place = _start_child(confinement, cpu_seconds, run, (*standard, *files))
            except UnconfinedError as error:
                refusal = str(error)
        control.sendall(json.dumps(refusal).encode())
        if child:
            _watch_threads(child, place, control)
        control.recv(_MESSAGE_BYTES)
        control.sendall(json.dumps(_ended(child) if child else (0, 0.0)).encode())


def _be_tested() -> None:
    hold_program(3, 4)


def _be_script() -> None:
    with os.fdopen(3, "rb") as file:
        source = file.read().decode("utf-8", "surrogatepass")
    os._exit(run_script(source))


def _watch_threads(child: int, place: str, control: socket.socket) -> None:
    """Kill a program that starts very many threads: no limit of the kernel holds for root's. Return when it is to end."""
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while not poll.poll(_LOOK_SECONDS * 1000):
        with contextlib.suppress(OSError), open(f"/proc/{place}/stat", "rb") as file:
            if int(file.read().rpartition(b")")[2].split()[17]) > MOST_THREADS:
                os.kill(child, signal.SIGKILL)


def _start_child(
    confinement: Confinement, cpu_seconds: float, run: Callable[[], None], files: Sequence[int | None]
) -> tuple[int, str]:
    """Fork a child that gives everything up and runs a function.

    Args:
        files: become its open files 0, 1, …, and it has no others; None is the null device.

    Returns:
        Its number, and the name that /proc has for it.

    Raises:
        UnconfinedError: it could not be confined, and so ran nothing.
    """
    ready, child_ready = os.pipe()
    parent, child = os.getpid(), os.fork()
    if child == 0:
        try:
            os.setsid()
            last = _place_files([*files, child_ready])
            told = _confined(confinement, cpu_seconds, parent)
            os.write(last, told)
            os.close(last)
            if told.startswith(b"place "):
                run()
            os._exit(0)
        finally:
            os._exit(_NO_REPORT)
    os.close(child_ready)
    with os.fdopen(ready, "rb") as file:
        answer = file.read().decode()
    if not answer.startswith("place "):
        _ended(child)
        raise UnconfinedError(answer or "it ended at once")
    return child, answer.removeprefix("place ")


def _place_files(files: Sequence[int | None]) -> int:
    nothing = os.open(os.devnull, os.O_RDWR)
    # Out of the way first, for a target may be another's source.
    sources = [fcntl.fcntl(nothing if file is None else file, fcntl.F_DUPFD, len(files)) for file in files]
    for target, source in enumerate(sources):
        os.dup2(source, target)
    os.closerange(len(files), os.sysconf("SC_OPEN_MAX"))
    return len(files) - 1


def _confined(confinement: Confinement, cpu_seconds: float, parent: int) -> bytes:
    """Confine this process and return what its parent wants to know."""
    try:
        place = os.readlink("/proc/self") if sys.platform == "linux" else ""
        confinement.apply(cpu_seconds)
    except (OSError, ValueError) as error:
        return str(error).encode()
    # A parent that died before the child asked to die with it sends no signal any more.
    if os.getppid() != parent:
        os._exit(_NO_REPORT)
    return f"place {place}".encode()


def _ended(child: int) -> tuple[int, float]:
    """Kill a child and all that it started; return its exit code, which it keeps if it ended before, and its CPU time."""
    for kill in (os.kill, os.killpg):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


@contextlib.contextmanager
def _closing(*files: int) -> Iterator[None]:
    try:
        yield
    finally:
        for file in files:
            os.close(file)


@contextlib.contextmanager
def _file_of(text: str) -> Iterator[IO[bytes]]:
    """An open file, at its start, of a text; programs ask for its size and read it by number."""
    with tempfile.TemporaryFile() as file:
        file.write(text.encode("utf-8", "surrogatepass"))
        file.seek(0)
        yield file
