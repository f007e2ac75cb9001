"""A request to an assistant, through the tokenizer's chat template; the program is the first fenced block of the reply.

The task is worded as in the lm-evaluation-harness's `mbpp_instruct` and `humaneval_instruct`. A reply without a fence is a
program as a whole: some models write nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mlops_tasks.data.problems import Problem
from mlops_tasks.data.protocols import Protocol

_NUM_TESTS_SHOWN = 3
_FENCE = "```"
_BLOCK = re.compile(r"```[^\n]*\n(.*?)(?:^```|\Z)", re.DOTALL | re.MULTILINE)
_CLOSED_BLOCK = re.compile(r"```[^\n]*\n.*?^```", re.DOTALL | re.MULTILINE)


def render(problem: Problem, shots: Sequence[Problem] = ()) -> str:
    """What the user says."""
    match problem.kind:
        case "completion":
            return (
                "Write a solution to the following problem and make sure that it passes the tests:\n"
                f"```python\n{problem.prompt.rstrip()}\n```"
            )
        case "stdio":
            return (
                f"{problem.prompt}\n\nWrite a Python program that solves this. It reads standard input and writes standard "
                "output. Put it into one ```python block."
            )
        case "asserts":
            tests = "\n".join(problem.tests[:_NUM_TESTS_SHOWN])
            return (
                f"You are an expert Python programmer, and here is your task:\n{problem.prompt}\n"
                f"Your code should pass these tests:\n{tests}"
            )


def answer(problem: Problem) -> str:
    """The solution in a fenced block."""
    return f"```python\n{problem.solution.rstrip()}\n```"


def end_of_block(reply: str) -> int | None:
    """Where the first fenced block ends, its fence included; None: it is open."""
    closed = _CLOSED_BLOCK.search(reply)
    return closed.end() if closed else None


def program_of(problem: Problem, reply: str) -> str:
    """The inside of the first fenced block, or the whole reply."""
    block = _BLOCK.search(reply)
    program = block[1] if block else reply
    # Asked for the whole function, some models write its body only.
    is_rest = problem.kind == "completion" and f"def {problem.entry_point}" not in program
    return problem.prompt + program if is_rest else program


PROTOCOL = Protocol(
    kinds=("asserts", "completion", "stdio"),
    render=render,
    answer=answer,
    stops=(_FENCE,),
    end_of=end_of_block,
    program_of=program_of,
    is_chat=True,
)
