"""Verdicts on programs while they are being written: each text is run once, on all cores, in a thread beside whoever writes.

Owns time limits, which follow what a problem's own solution takes, on this machine and in this run, so that neither a slow problem
nor a slow machine fails a program; and which problems can judge nobody. Running is `sandbox`'s; what the verdicts amount to is
`judging`'s.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from mlops_tasks.config.sources import ProtocolId
from mlops_tasks.data.problems import Problem
from mlops_tasks.data.prompts import program_of
from mlops_tasks.errors import DataError
from mlops_tasks.evaluation.sandbox import IoTest, Outcome, Program, Sandbox

REFERENCE_SECONDS = 120.0
"""CPU time that a problem's own solution may take."""

Text = tuple[str, str]
"""Problem id and completion."""


def check_references(
    problems: Sequence[Problem], num_workers: int | None = None, *, unsafe: bool = False
) -> list[Outcome]:
    """Run each problem's own solution; the outcomes are in the order of the problems.

    Raises:
        UserError: this machine cannot confine a program.
    """
    with Sandbox(num_workers, unsafe=unsafe) as sandbox:
        return _run_references(sandbox, problems)


@dataclass(frozen=True)
class Verdicts:
    """What became of all completions."""

    programs: Mapping[Text, Program]
    outcomes: Mapping[Text, Outcome]
    unsupported: Mapping[str, str]
    """Problems that judged nobody, and why."""
    protections: tuple[str, ...]
    """What kept the programs in."""
    allowances: tuple[str, ...]
    """What they might do besides; see `Sandbox`."""


class Referee:
    """Judges completions of some problems; a context manager.

    Args:
        problems: those that may be asked.
        protocol: how a program is read out of a completion.
        min_seconds: least limit in CPU seconds.
        reference_factor: the limit is this many times what the problem's own solution takes, if that is more.
        num_workers: programs at one time; None: one per core.
        unsafe: whether to run programs where they cannot be confined.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        protocol: ProtocolId,
        *,
        min_seconds: float,
        reference_factor: float,
        num_workers: int | None,
        unsafe: bool = False,
    ) -> None:
        self._problems = {problem.id: problem for problem in problems}
        self._protocol, self._min_seconds, self._factor = protocol, min_seconds, reference_factor
        self._num_workers, self._unsafe = num_workers, unsafe
        self._protections: tuple[str, ...] = ()
        self._allowances: tuple[str, ...] = ()
        self._asked: queue.SimpleQueue[Text | None] = queue.SimpleQueue()
        self._seen: set[Text] = set()
        self._programs: dict[Text, Program] = {}
        self._outcomes: dict[Text, Outcome] = {}
        self._unsupported: dict[str, str] = {}
        self._error: BaseException | None = None
        self._sandbox: Sandbox | None = None
        self._is_all_there = False
        self._is_abandoned = False
        self._thread = threading.Thread(target=self._work, name="referee", daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:  # nobody wants the programs any more
            self._is_abandoned = True
            if self._sandbox is not None:
                self._sandbox.close()
        if self._thread.ident is not None:
            self._asked.put(None)
            self._thread.join()

    def submit(self, problem_id: str, completion: str) -> None:
        """Have a completion judged; one that was submitted before is not run again.

        Raises:
            UserError, DataError: as `finish`, as soon as it is known, for nobody need write what cannot be judged.
        """
        text = (problem_id, completion)
        self._start()
        if self._error is not None:
            raise self._error
        if text not in self._seen:
            self._seen.add(text)
            self._asked.put(text)

    def finish(self) -> Verdicts:
        """Wait for all that was submitted.

        Raises:
            UserError: this machine cannot confine a program.
            DataError: a problem's own solution does not pass its asserts, or no problem is left that could judge.
        """
        self._is_all_there = True
        self._start()
        self._asked.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error
        return Verdicts(self._programs, self._outcomes, self._unsupported, self._protections, self._allowances)

    def _start(self) -> None:
        # Not before there is something to judge: a hit needs no sandbox.
        if self._thread.ident is None:
            self._thread.start()

    def _work(self) -> None:
        try:
            with Sandbox(self._num_workers, unsafe=self._unsafe) as sandbox:
                self._sandbox = sandbox
                if self._is_abandoned:  # while it started, when there was nothing to close yet
                    return
                self._protections, self._allowances = sandbox.protections, sandbox.allowances
                limits = self._limits(_run_references(sandbox, list(self._problems.values())))
                while texts := self._waiting():
                    known = [text for text in texts if text[0] not in self._unsupported]
                    programs = [self._program(*text, limits[text[0]]) for text in known]
                    # While the model still writes, it is the writing whose progress is shown.
                    title = "programs" if self._is_all_there else None
                    self._outcomes.update(zip(known, sandbox.run(programs, title=title), strict=True))
                    self._programs.update(zip(known, programs, strict=True))
        except BaseException as error:  # raised again by `finish`, in the thread that waits for it
            self._error = error

    def _waiting(self) -> list[Text]:
        """All that is waiting now, at least one; nothing once all is done."""
        texts: list[Text] = []
        while (text := self._asked.get()) is not None:
            texts.append(text)
            if self._asked.empty():
                return texts
        if texts:
            self._asked.put(None)  # for the next look
        return texts

    def _limits(self, references: Sequence[Outcome]) -> dict[str, float]:
        pairs = list(zip(self._problems.values(), references, strict=True))
        failed = [
            f"{problem.id} ({outcome.verdict}, {outcome.message})"
            for problem, outcome in pairs
            if not outcome.passed and problem.kind != "stdio"
        ]
        if failed:
            raise DataError(
                f"The problems' own solutions do not pass their tests: {'; '.join(failed[:10])}{' …' if failed[10:] else ''}. No "
                "program can be judged by such tests. Mend or leave out these problems; `wmtp check-data` lists all of them."
            )
        # A script that writes another output than its own tests want shows that they accept more than one.
        self._unsupported = {
            problem.id: f"its own solution does not pass: {outcome.verdict}, {outcome.message}"
            for problem, outcome in pairs
            if not outcome.passed
        }
        if len(self._unsupported) == len(pairs):
            raise DataError(
                f"None of {len(pairs)} problems can judge a program, for no own solution passes; the first is "
                f"{next(iter(self._unsupported.items()))}. Look at the data with `wmtp check-data`."
            )
        return {problem.id: max(self._min_seconds, self._factor * outcome.seconds) for problem, outcome in pairs}

    def _program(self, problem_id: str, completion: str, limit_seconds: float) -> Program:
        problem = self._problems[problem_id]
        return _program(problem, program_of(problem, completion, self._protocol), limit_seconds)


def _run_references(sandbox: Sandbox, problems: Sequence[Problem]) -> list[Outcome]:
    programs = [_program(problem, problem.solution, REFERENCE_SECONDS) for problem in problems]
    return sandbox.run(programs, title="reference solutions")


def _program(problem: Problem, solution: str, limit_seconds: float) -> Program:
    io_tests = tuple(IoTest(test.input, test.output) for test in problem.io_tests)
    return Program(solution, problem.tests, problem.setup, limit_seconds, io_tests)
