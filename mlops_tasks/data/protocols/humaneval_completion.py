r'''Code to go on with: imports, a signature and a docstring (the HumanEval paper, arXiv 2107.03374).

The prompt is the problem's own, to the character, and the program is the prompt with the completion behind it::

    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b
'''

from __future__ import annotations

from mlops_tasks.data.problems import Problem
from mlops_tasks.data.protocols import Protocol

# The paper's: the model has left the function.
_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")


def answer(problem: Problem) -> str:
    """What the solution has after the prompt."""
    return problem.solution.removeprefix(problem.prompt).rstrip() + "\n"


PROTOCOL = Protocol(
    kinds=("completion",),
    render=lambda problem, shots: problem.prompt,
    answer=answer,
    stops=_STOPS,
    program_of=lambda problem, completion: problem.prompt + completion,
)
