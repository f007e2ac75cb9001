"""Running a program as a script: standard files, `__main__`, and an end as of an interpreter of its own.

This happens in the program's own process, after it gave everything up; what the program printed is judged elsewhere. Only the
standard library is imported here.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any


def run_script(source: str) -> int:
    """Run source as a program of its own on the standard files and return its exit status."""
    for number, (name, mode) in enumerate([("stdin", "r"), ("stdout", "w"), ("stderr", "w")]):
        file = os.fdopen(number, mode, encoding="utf-8", errors="surrogateescape", closefd=False)
        setattr(sys, name, file)
        setattr(sys, f"__{name}__", file)
    sys.argv = ["program.py"]
    sys.modules["__main__"] = ModuleType("__main__")
    status = _status_of(lambda: exec(compile(source, "program.py", "exec", dont_inherit=True), _main()))
    _end_like_an_interpreter()
    return status or _flush()


def _main() -> dict[str, Any]:
    return sys.modules["__main__"].__dict__


def _end_like_an_interpreter() -> None:
    # In the order of Py_FinalizeEx, which itself takes longer than most programs. Files of the program's own making are written
    # when its module is collected.
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    _flush()
    sys.modules.pop("__main__", None)
    gc.collect()


def _flush() -> int:
    files = [file for file in (sys.stdout, sys.__stdout__) if file is not None and not file.closed]
    return max([_status_of(file.flush) for file in files], default=0)


def _status_of(action: Callable[[], object]) -> int:
    try:
        action()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        sys.stderr.write(f"{end.code}\n")
        sys.stderr.flush()
        return 1
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        return 1
    return 0
