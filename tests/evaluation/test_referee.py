"""Programs judged while they come in, and problems that can judge nobody."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from mlops_tasks.data.problems import IoTest, Problem
from mlops_tasks.errors import DataError
from mlops_tasks.evaluation import referee as module
from mlops_tasks.evaluation.referee import Referee
from mlops_tasks.evaluation.sandbox import Outcome, Program, Sandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are confined on Linux only")

SUM = "print(sum(map(int, input().split())))\n"


def script(id: str, solution: str = SUM, *tests: tuple[str, str]) -> Problem:
    io_tests = tuple(IoTest(input=one, output=two) for one, two in tests or (("1 2", "3"), ("3 4", "7")))
    return Problem(
        id=id, prompt="Print it.", solution=solution, io_tests=io_tests, split="test", source="made", licence="CC0-1.0"
    )


def referee(*problems: Problem, **changes: Any) -> Referee:
    settings = {"min_seconds": 1.0, "reference_factor": 5.0, "num_workers": 2, **changes}
    return Referee(problems, "codecontests-stdio", **settings)


def test_scripts_are_judged_by_what_they_print() -> None:
    with referee(script("a")) as judge:
        for text in (SUM, "print(3)", "print(input())", "print(3"):
            judge.submit("a", text)
        outcomes = judge.finish().outcomes
    assert [(one.verdict, one.tests_passed, one.num_tests) for one in outcomes.values()] == [
        ("passed", 2, 2),
        ("failed", 1, 2),
        ("failed", 0, 2),
        ("error", 0, 2),
    ]


def test_programs_are_judged_before_the_last_one_is_written() -> None:
    with referee(script("a")) as judge:
        judge.submit("a", SUM)
        for _ in range(600):
            if judge._outcomes:
                break
            time.sleep(0.05)
        assert judge._outcomes, "nothing was judged while the writer was busy"
        judge.submit("a", "print(3)")
        assert [one.verdict for one in judge.finish().outcomes.values()] == ["passed", "failed"]


def test_a_script_that_does_not_pass_its_own_tests_judges_nobody_and_is_named() -> None:
    other = script("b", SUM, ("1 2", "3 or 4"))
    with referee(script("a"), other) as judge:
        judge.submit("a", SUM)
        judge.submit("b", SUM)
        verdicts = judge.finish()
    assert list(verdicts.outcomes) == [("a", SUM)]
    assert list(verdicts.unsupported) == ["b"]
    assert verdicts.unsupported["b"].startswith("its own solution does not pass: failed, test 1")


def test_where_no_problem_can_judge_there_is_no_score() -> None:
    with referee(script("b", SUM, ("1 2", "5"))) as judge:
        judge.submit("b", SUM)
        with pytest.raises(DataError, match=r"None of 1 problems can judge a program.*'b'"):
            judge.finish()


def test_a_solution_that_does_not_pass_is_told_before_everything_is_written() -> None:
    written: list[str] = []

    def write() -> None:
        with referee(script("b", SUM, ("1 2", "5"))) as judge:
            for text in (SUM, "print(3)", "print(4)"):
                judge.submit("b", text)
                written.append(text)
                judge._thread.join(60)

    with pytest.raises(DataError, match="None of 1 problems can judge a program"):
        write()
    assert written == [SUM]


def test_a_referee_that_is_asked_nothing_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Sandbox", None)  # a call would fail
    before = threading.active_count()
    with referee(script("a")):
        assert threading.active_count() == before


def test_a_writer_that_fails_while_the_sandbox_starts_has_nothing_run(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Sequence[Program]] = []
    really_enter = Sandbox.__enter__
    judge = referee(script("a"))

    def enter(self: Sandbox) -> Sandbox:
        while judge._asked.qsize() < 2:  # the program, and that the writer has left
            time.sleep(0.01)
        return really_enter(self)

    def run(self: Sandbox, programs: Sequence[Program], **how: Any) -> list[Outcome]:
        ran.append(programs)
        return []

    def write() -> None:
        with judge:
            judge.submit("a", SUM)
            raise ZeroDivisionError

    monkeypatch.setattr(Sandbox, "__enter__", enter)
    monkeypatch.setattr(Sandbox, "run", run)
    with pytest.raises(ZeroDivisionError):
        write()
    assert not judge._thread.is_alive() and ran == []


def test_a_writer_that_fails_does_not_wait_for_the_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    has_begun = threading.Event()
    really_run = Sandbox.run

    def run(self: Sandbox, programs: list[Program], **how: Any) -> list[Outcome]:
        if how["title"] != "reference solutions":
            has_begun.set()
        return really_run(self, programs, **how)

    monkeypatch.setattr(Sandbox, "run", run)
    sleepy = "import time\ntime.sleep(600)\n"
    judge = referee(script("a"), min_seconds=1000.0)

    def write() -> None:
        with judge:
            judge.submit("a", sleepy)
            assert has_begun.wait(60)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert not judge._thread.is_alive()
