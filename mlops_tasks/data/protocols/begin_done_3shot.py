"""Three solved problems, then the asked one (the MBPP paper, as the lm-evaluation-harness renders it).

A blank line lies between two problems; the prompt ends with `[BEGIN]` and a line end::

    You are an expert Python programmer, and here is your task: Write a function … Your code should pass these tests:

    assert add(1, 2) == 3
    …
    [BEGIN]
    def add(a, b):
        return a + b
    [DONE]
"""

from __future__ import annotations

from collections.abc import Sequence

from mlops_tasks.data.problems import Problem
from mlops_tasks.data.protocols import Protocol

_NUM_TESTS_SHOWN = 3
_END = "[DONE]"


def render(problem: Problem, shots: Sequence[Problem]) -> str:
    """The solved problems and the task."""
    return "".join(f"{_task(shot)}{answer(shot)}\n\n" for shot in shots) + _task(problem)


def answer(problem: Problem) -> str:
    """The solution and `[DONE]`."""
    return f"{problem.solution.rstrip()}\n{_END}"


def _task(problem: Problem) -> str:
    tests = "\n".join(problem.tests[:_NUM_TESTS_SHOWN])
    return (
        f"You are an expert Python programmer, and here is your task: {problem.prompt} "
        f"Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
    )


PROTOCOL = Protocol(kinds=("asserts",), render=render, answer=answer, stops=(_END,), shot_ids=("2", "3", "4"))
