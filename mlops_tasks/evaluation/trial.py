"""The two sides of a test: the process that holds the program, and the one that runs the tests and judges.

The judge runs set-up and tests, and where they name something of the program's it holds a stand-in that asks the program's
process (`peers`, `remotes`). So what a test compares is compared by the judge's own Python, on values that it made itself, and no
expected value is ever in the program's process. `harness` starts both; only the standard library is imported here.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import symtable
import sys
import traceback
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

from mlops_tasks.evaluation.peers import Gone, ProgramEnd
from mlops_tasks.evaluation.remotes import FOR_JUDGES, JudgeEnd, Remote
from mlops_tasks.evaluation.values import TYPES

Report = dict[str, Any]

MESSAGE_LENGTH = 300
_BUILTINS = frozenset(vars(builtins))


def hold_program(reader: int, writer: int) -> None:
    """Be the program: load what the judge sends and answer it, until it is gone."""
    module = ModuleType("program")
    sys.modules["program"] = module  # dataclasses and pickle look their module up

    def load(source: str, part: str) -> None:
        # This file's own future imports are not the program's.
        exec(compile(source, f"<{part}>", "exec", dont_inherit=True), module.__dict__)

    def names(*wanted: str) -> dict[str, Any]:
        return {name: module.__dict__[name] for name in wanted if name in module.__dict__}

    operations: dict[str, Callable[..., Any]] = {**FOR_JUDGES, "load": load, "names": names}
    with contextlib.suppress(Gone):
        ProgramEnd(reader, writer, operations).serve()


def hold_trial(job: dict[str, Any], reader: int, writer: int, report: Callable[[Report], None]) -> None:
    """Be the judge: have the program loaded, run set-up and tests, and report each part.

    After a solution or set-up that fails there is no test to run; where the program is gone, the report's verdict says `ended`.
    """
    trial = _Trial(JudgeEnd(reader, writer))
    parts: list[tuple[str, Callable[[], None]]] = [("solution", lambda: trial.load(job["solution"], "solution"))]
    if job["setup"]:
        parts.append(("setup", lambda: trial.prepare(job["setup"])))
    for part, action in parts:
        outcome = trial.outcome(action)
        report({"part": part, **outcome})
        if outcome["verdict"] == "ended":
            return
        if outcome["verdict"] != "passed":
            report({"part": "end"})
            return
    for index, test in enumerate(job["tests"]):
        outcome = trial.outcome(partial(trial.run, test))
        report({"part": "test", "index": index, **outcome})
        if outcome["verdict"] == "ended":
            return
    report({"part": "end"})


class _Trial:
    def __init__(self, peer: JudgeEnd) -> None:
        self._peer = peer
        self._names: dict[str, Any] = {"__name__": "test", "__builtins__": builtins}
        self._own = set(self._names)
        self._classes: frozenset[str] = frozenset()
        self._set_up_asks = False
        """Whether set-up has a name of the program's, which may then have a say in every test."""

    def load(self, source: str, part: str) -> None:
        self._peer.ask("load", source, part)

    def prepare(self, source: str) -> None:
        """Run set-up. What programs build on, its imports and classes, goes to them too; the classes live there alone."""
        tree = ast.parse(source, "<setup>")
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        shared: list[ast.stmt] = [
            node for node in tree.body if isinstance(node, ast.ClassDef | ast.Import | ast.ImportFrom)
        ]
        self._classes = frozenset(node.name for node in classes)
        if shared:
            self.load(ast.unparse(ast.Module(shared, [])), "setup")
        tree.body = [node for node in tree.body if node not in classes]
        # Set-up is run before any test has named a function of the program's: its builtins are the judge's own.
        self._set_up_asks = bool(self._execute(tree, "<setup>", may_mean_builtins=False))

    def run(self, source: str) -> None:
        if self._set_up_asks:
            self._peer.lean()
        self._execute(ast.parse(source, "<test>"), "<test>")

    def _execute(self, tree: ast.Module, filename: str, *, may_mean_builtins: bool = True) -> set[str]:
        """Run a part; returns the names in it that are the program's."""
        table = symtable.symtable(ast.unparse(tree), filename, "exec")
        self._own |= {one.get_name() for one in table.get_symbols() if one.is_assigned() or one.is_imported()}
        used = _free(table)
        free, own = used - self._own, used & self._own
        found = self._fetch(free, may_mean_builtins=may_mean_builtins and free <= _BUILTINS)
        # An own name may stand for something of the program's, and so one of the two may be there to judge the other.
        earlier = [self._names[name] for name in own if isinstance(self._names.get(name), Remote)]
        has_its_builtin = bool(own and found.keys() & _BUILTINS)
        if self._classes & free or has_its_builtin or sum(map(_may_judge, [*found.values(), *earlier])) > 1:
            self._peer.lean()
        self._peer.input_has_names |= _has_names(table) or any(map(_is_stored, ast.walk(tree)))
        exec(compile(tree, filename, "exec", dont_inherit=True), self._names)
        return set(found)

    def _fetch(self, wanted: set[str], *, may_mean_builtins: bool) -> dict[str, Any]:
        """Bind the names that are the program's.

        A program may call its function `sum`, and its test means that one; but where the test has another name to call, a builtin
        is the judge's own.
        """
        wanted = wanted if may_mean_builtins else wanted - _BUILTINS
        found = self._peer.names(wanted)
        for name in wanted - found.keys():
            self._names.pop(name, None)  # of an earlier test
        self._names.update(found)
        return found

    def outcome(self, action: Callable[[], None]) -> Report:
        """Do something and say how that went."""
        self._peer.begin()
        verdict, message = "passed", ""
        try:
            action()
        except BaseException as error:
            verdict, message = _verdict(error), _message(error)
        # A test may catch everything; what it says when the program has gone means nothing.
        if self._peer.trouble is not None:
            verdict, message = "ended", self._peer.trouble
        return {"verdict": verdict, "message": message, "is_inside": self._peer.leaned_on_program}


def _is_stored(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store)


def _has_names(table: symtable.SymbolTable) -> bool:
    """Whether anything is bound to a name, in whatever way, imports apart."""
    here = any(one.is_parameter() or (one.is_assigned() and not one.is_imported()) for one in table.get_symbols())
    return here or any(map(_has_names, table.get_children()))


def _free(table: symtable.SymbolTable) -> set[str]:
    """The names that a part does not bind where it uses them."""
    here = {one.get_name() for one in table.get_symbols() if one.is_referenced() and one.is_global()}
    return here.union(*map(_free, table.get_children()))


def _verdict(error: BaseException) -> str:
    if isinstance(error, MemoryError) or not isinstance(error, Exception):
        return "crashed"
    # An assertion of the program's own is an error like any other; one of the test or its set-up is a wrong answer.
    return "failed" if isinstance(error, AssertionError) and _origin(error) in {"<test>", "<setup>"} else "error"


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


def _may_judge(value: Any) -> bool:
    """Whether what a program binds to a name can decide: not a module, for that is the judge's, and no exception of its own."""
    if type(value) is ModuleType:
        return False
    is_its_exception = type(value) is type and issubclass(value, BaseException) and value not in TYPES.values()
    return not is_its_exception
