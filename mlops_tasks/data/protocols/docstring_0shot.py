r'''The description and the first test in a docstring (bigcode's evaluation harness, after InCoder).

The prompt ends with a line end, and the completion is a program that ends with one::

    """
    Write a function to add two numbers.
    assert add(1, 2) == 3
    """
    def add(a, b):
        return a + b
'''

from __future__ import annotations

from collections.abc import Sequence

from mlops_tasks.data.problems import Problem
from mlops_tasks.data.protocols import Protocol

# The harness's own: all but the first line of a solution that starts like this at column 0 is taken for the model going on to
# another task.
STOPS = ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n<|/", "\n```")


def render(problem: Problem, shots: Sequence[Problem] = ()) -> str:
    """The docstring."""
    return f'"""\n{problem.prompt}\n{problem.tests[0]}\n"""\n'


def answer(problem: Problem) -> str:
    """The solution, ended by one line end."""
    return problem.solution.rstrip() + "\n"


PROTOCOL = Protocol(kinds=("asserts",), render=render, answer=answer, stops=STOPS)
