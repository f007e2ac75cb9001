"""A contest's statement, to be answered by a script (the APPS paper's form, arXiv 2105.09938).

The script reads standard input and writes standard output::

    QUESTION:
    Given two integers, print their sum. …
    Use Standard Input format
    ANSWER:
    print(sum(map(int, input().split())))
"""

from __future__ import annotations

from mlops_tasks.data.problems import Problem
from mlops_tasks.data.protocols import Protocol


def answer(problem: Problem) -> str:
    """The script, ended by one line end."""
    return problem.solution.rstrip() + "\n"


PROTOCOL = Protocol(
    kinds=("stdio",),
    render=lambda problem, shots: f"\nQUESTION:\n{problem.prompt}\nUse Standard Input format\nANSWER:\n",
    answer=answer,
    # A script may well print or ask at column 0, so that only another question, a text or a fence is the end of it.
    stops=("\nQUESTION:", "\nANSWER:", "\n---", '\n"""', "\n```", "\n<|/"),
)
