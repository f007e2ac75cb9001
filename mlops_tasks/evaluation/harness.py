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
import sys
import time
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any, BinaryIO

from mlops_tasks.evaluation import equality
from mlops_tasks.evaluation.confinement import confine

Report = dict[str, Any]

MESSAGE_LENGTH = 300
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
    os.environ.clear()
    gc.freeze()  # a collection in a child would touch, and so copy, every page
    replies = os.fdopen(os.dup(1), "wb")
    while line := sys.stdin.buffer.readline():
        reply = run_in_child(json.loads(line), jobs=sys.stdin.buffer)
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
