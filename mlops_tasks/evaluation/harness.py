"""A small process that runs one program after another, each in a confined child of its own.

Owns what happens to one program: solution, set-up and tests in this order, a report after each part, and the end of the
child. What the child gives up first is `confinement`'s; what reports and end amount to is `sandbox`'s, which starts this
process and speaks with it in lines of JSON, one job and one reply at a time.

The child reports on a pipe, and each line starts with a number that the parent drew for this program: exit status, output
and bytes written to every open file mean nothing, and anything else on the pipe is taken for tampering. A program that
searches the interpreter's memory for the number can still forge a report.

Only the standard library is imported here: the process runs without site-packages.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import site
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any, BinaryIO

from mlops_tasks.evaluation import equality
from mlops_tasks.evaluation.confinement import confine
from mlops_tasks.evaluation.outputs import same_output
from mlops_tasks.evaluation.script import run_script

Report = dict[str, Any]

MESSAGE_LENGTH = 300
OUTPUT_BYTES = 16 << 20
"""What a script may print before it is ended."""
_NO_REPORT = 70  # the child's exit status when it could not even say what went wrong
_LINE_BYTES = 4096  # a line longer than PIPE_BUF could be torn

# What programs import most, loaded once here and not once a program.
_WARM = (
    *("bisect", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools"),
    *("heapq", "itertools", "math", "operator", "random", "re", "statistics", "string", "typing"),
)


def serve() -> None:
    """Answer jobs on standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent then closes the pipe
    for name in _WARM:
        importlib.import_module(name)
    site.setquit()  # the interpreter runs without site, and scripts say `exit()`
    os.environ.clear()
    gc.freeze()  # a collection in a child would touch, and so copy, every page
    replies = os.fdopen(os.dup(1), "wb")
    while line := sys.stdin.buffer.readline():
        job = json.loads(line)
        run = run_scripts if job["io_tests"] else run_in_child
        reply = run(job, jobs=sys.stdin.buffer)
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()


def run_in_child(job: dict[str, Any], *, jobs: BinaryIO) -> dict[str, Any]:
    """Run one program and see how it ends.

    Args:
        job: `solution`, `setup`, `tests`, `cpu_seconds`, `wall_seconds`.
        jobs: where jobs come from; when its other end is gone, nobody wants the reply, and the child is killed.
    """
    nonce = os.urandom(16).hex().encode()
    reader, writer = os.pipe()
    parent, child = os.getpid(), os.fork()
    if child == 0:
        _be_the_child(job, nonce, writer, parent)
    os.close(writer)
    written, is_late = _collect(
        reader, jobs, time.monotonic() + job["wall_seconds"], _LINE_BYTES * (len(job["tests"]) + 3)
    )
    os.close(reader)
    os.kill(child, signal.SIGKILL)  # an exit that is under way keeps its status
    _, status, usage = os.wait4(child, 0)
    reports, is_tampered = _authentic(written, nonce)
    return {
        "reports": reports,
        "is_tampered": is_tampered,
        "is_late": is_late,
        "exit_code": os.waitstatus_to_exitcode(status),
        "seconds": usage.ru_utime + usage.ru_stime,
    }


def run_scripts(job: dict[str, Any], *, jobs: BinaryIO) -> dict[str, Any]:
    """Run a program once for each of its `io_tests`, in a fresh child; `seconds` are those of the slowest."""
    reports, seconds = [], 0.0
    for index, (given, expected) in enumerate(job["io_tests"]):
        report, used = _run_script(job, given, expected, jobs)
        reports.append({"part": "test", "index": index, **report})
        seconds = max(seconds, used)
    return {"reports": reports, "is_tampered": False, "is_late": False, "exit_code": 0, "seconds": seconds}


def _run_script(job: dict[str, Any], given: str, expected: str, jobs: BinaryIO) -> tuple[Report, float]:
    with tempfile.TemporaryFile() as stdin:
        stdin.write(given.encode("utf-8", "surrogateescape"))
        stdin.seek(0)
        (out, child_out), (err, child_err), (ready, child_ready) = os.pipe(), os.pipe(), os.pipe()
        parent, child = os.getpid(), os.fork()
        if child == 0:
            _be_the_script(job, (stdin.fileno(), child_out, child_err), child_ready, parent)
    for descriptor in (child_out, child_err, child_ready):
        os.close(descriptor)
    refusal = os.read(ready, _LINE_BYTES)
    printed, is_late = _collect_all(
        {out: OUTPUT_BYTES, err: OUTPUT_BYTES}, jobs, time.monotonic() + job["wall_seconds"]
    )
    for descriptor in (out, err, ready):
        os.close(descriptor)
    os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    seconds = usage.ru_utime + usage.ru_stime
    if refusal:
        return {"part": "confinement", "verdict": "refused", "message": refusal.decode()}, seconds
    end = _end_of(os.waitstatus_to_exitcode(status), seconds, job, is_late=is_late)
    return end or _told(printed[out], printed[err], expected, os.waitstatus_to_exitcode(status)), seconds


def _end_of(code: int, seconds: float, job: dict[str, Any], *, is_late: bool) -> Report | None:
    """Why a child was ended, or None where it ended by itself."""
    if is_late:
        return {"verdict": "timeout", "message": f"not done after {job['wall_seconds']:.1f} s on the clock"}
    if -code == signal.SIGPROF or (-code == signal.SIGKILL and seconds >= job["cpu_seconds"]):
        return {"verdict": "timeout", "message": f"more than {job['cpu_seconds']:.1f} s of CPU time"}
    return None


def _told(out: bytes, err: bytes, expected: str, code: int) -> Report:
    if max(len(out), len(err)) >= OUTPUT_BYTES:
        return {"verdict": "crashed", "message": f"printed more than {OUTPUT_BYTES >> 20} MiB"}
    if code < 0:
        return {"verdict": "crashed", "message": f"killed by {signal.Signals(-code).name}"}
    if code != 0:
        last = err.decode("utf-8", "replace").strip().rpartition("\n")[2][:MESSAGE_LENGTH]
        return {"verdict": "error", "message": last or f"the process ended with status {code}"}
    if not same_output(expected, out.decode("utf-8", "replace")):
        return {"verdict": "failed", "message": "another output"}
    return {"verdict": "passed", "message": ""}


def _collect_all(limits: dict[int, int], jobs: BinaryIO, deadline: float) -> tuple[dict[int, bytes], bool]:
    """What is written to each pipe until all are closed or one has reached its limit, and whether the clock ran out before."""
    poll = select.poll()
    poll.register(jobs, 0)
    for reader in limits:
        poll.register(reader, select.POLLIN)
    written = {reader: bytearray() for reader in limits}
    is_open, is_late = set(limits), False
    while is_open and not is_late and all(len(written[reader]) < limits[reader] for reader in limits):
        ready = dict(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
        if jobs.fileno() in ready:
            break
        is_late = not ready
        for reader in ready:
            chunk = os.read(reader, 1 << 16)
            written[reader] += chunk
            if not chunk:
                poll.unregister(reader)
                is_open.discard(reader)
    return {reader: bytes(found) for reader, found in written.items()}, is_late


def _be_the_script(job: dict[str, Any], standard: tuple[int, int, int], ready: int, parent: int) -> None:
    try:
        os.setsid()
        for target, source in enumerate(standard):
            os.dup2(source, target)
        os.closerange(3, ready)
        os.closerange(ready + 1, os.sysconf("SC_OPEN_MAX"))
        try:
            confine(cpu_seconds=job["cpu_seconds"])
        except (OSError, ValueError) as error:
            os.write(ready, str(error).encode())
            return
        if os.getppid() != parent:
            return
        os.close(ready)
        os._exit(run_script(job["solution"]))
    finally:
        os._exit(_NO_REPORT)


def _collect(reader: int, jobs: BinaryIO, deadline: float, most_bytes: int) -> tuple[bytes, bool]:
    """What is written until the pipe closes, and whether the clock ran out before."""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    poll.register(jobs, 0)  # only its end
    written = bytearray()
    while len(written) < most_bytes:
        left = deadline - time.monotonic()
        ready = dict(poll.poll(max(0.0, left) * 1000))
        if not ready:
            return bytes(written), True
        if jobs.fileno() in ready:
            break
        chunk = os.read(reader, _LINE_BYTES)
        if not chunk:
            break
        written += chunk
    return bytes(written), False


def _authentic(written: bytes, nonce: bytes) -> tuple[list[Report], bool]:
    """The reports that carry the nonce, and whether anything else was written."""
    lines = written.split(b"\n")
    mine = [line for line in lines[:-1] if line.startswith(nonce)]
    is_tampered = len(mine) < len(lines) - 1 or lines[-1] != b""
    return [json.loads(line.removeprefix(nonce)) for line in mine], is_tampered


def _be_the_child(job: dict[str, Any], nonce: bytes, writer: int, parent: int) -> None:
    def report(content: Report) -> None:
        os.write(writer, nonce + json.dumps(content).encode() + b"\n")

    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(nothing, standard)
        os.closerange(3, writer)
        os.closerange(writer + 1, os.sysconf("SC_OPEN_MAX") if nothing < writer else nothing + 1)
        try:
            confine(cpu_seconds=job["cpu_seconds"])
        except (OSError, ValueError) as error:
            report({"part": "confinement", "verdict": "refused", "message": str(error)})
        else:
            # A parent that died before the child asked to die with it sends no signal any more.
            if os.getppid() != parent:
                os._exit(_NO_REPORT)
            run_program(job["solution"], job["setup"], job["tests"], report)
        os._exit(0)
    finally:
        os._exit(_NO_REPORT)


def run_program(solution: str, setup: str, tests: list[str], report: Callable[[Report], None]) -> None:
    """Run the parts in one module and report each; after a solution or set-up that fails there is no test to run."""
    module = ModuleType("program")
    sys.modules["program"] = module  # dataclasses and pickle look their module up
    for part, source in (("solution", solution), ("setup", setup)):
        outcome = run_part(source, part, module)
        report({"part": part, **outcome})
        if outcome["verdict"] != "passed":
            return
    for index, test in enumerate(tests):
        report({"part": "test", "index": index, **run_part(test, "test", module)})


def run_part(source: str, part: str, module: ModuleType) -> Report:
    """Run source in a module and say how that went."""
    try:
        if part == "test":
            module.__dict__[equality.NAME] = equality.judged_equal
            code = equality.compile_test(source, "<test>")
        else:
            # This file's own future imports are not the program's.
            code = compile(source, f"<{part}>", "exec", dont_inherit=True)
        exec(code, module.__dict__)
    except BaseException as error:
        return {"verdict": _verdict(error), "message": _message(error)}
    return {"verdict": "passed", "message": ""}


def _verdict(error: BaseException) -> str:
    if isinstance(error, MemoryError) or not isinstance(error, Exception):
        return "crashed"
    # An assertion of the program's own is an error like any other; one of the test or its set-up is a wrong answer.
    return "failed" if isinstance(error, AssertionError) and _origin(error) in ("<test>", "<setup>") else "error"


def _origin(error: BaseException) -> str:
    """The file of the innermost frame."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_code.co_filename if trace is not None else ""


def _message(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "MemoryError"  # no memory to be more polite
    with contextlib.suppress(Exception):
        return traceback.format_exception_only(error)[-1].strip()[:MESSAGE_LENGTH]
    return type(error).__name__[:MESSAGE_LENGTH]
