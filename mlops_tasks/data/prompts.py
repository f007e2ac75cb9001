r'''The two published forms of a prompt, and the completion that is learnt after one.

Owns every character between a problem and the tokenizer. Training and evaluation both come here, so what is learnt is what
is asked for. Line ends are \n throughout.

`docstring-0shot` (bigcode's evaluation harness, after InCoder). The description and the first test in a docstring; the prompt
ends with a line end, and the completion is a program that ends with one::

    """
    Write a function to add two numbers.
    assert add(1, 2) == 3
    """
    def add(a, b):
        return a + b

`begin-done-3shot` (the MBPP paper, as the lm-evaluation-harness renders it). Three solved problems, then the asked one, with
a blank line between; the prompt ends with `[BEGIN]` and a line end::

    You are an expert Python programmer, and here is your task: Write a function … Your code should pass these tests:

    assert add(1, 2) == 3
    …
    [BEGIN]
    def add(a, b):
        return a + b
    [DONE]

The end-of-sequence token is the tokenizer's affair, see `tokens`.
'''

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from mlops_tasks.config import Protocol
from mlops_tasks.data.problems import Problem
from mlops_tasks.errors import UserError

SHOT_IDS = ("2", "3", "4")
NUM_TESTS_SHOWN = 3

# What ends a program. The docstring's are the harness's own: all but the first line of a solution that starts like this at
# column 0 is taken for the model going on to another task. Checked in order; the earliest place found counts.
STOPS: dict[Protocol, tuple[str, ...]] = {
    "docstring-0shot": (
        "\nclass",
        "\nassert",
        '\n"""',
        "\nprint",
        "\nif",
        "\n<|/",
        "\n```",
    ),
    "begin-done-3shot": ("[DONE]",),
}


def shots_of(problems: Sequence[Problem], protocol: Protocol) -> tuple[Problem, ...]:
    """The solved problems that a protocol shows first.

    Args:
        problems: all problems of the split `prompt`.

    Raises:
        UserError: the protocol wants shots and the data set does not have them.
    """
    if protocol == "docstring-0shot":
        return ()
    by_id = {problem.id: problem for problem in problems}
    missing = [shot for shot in SHOT_IDS if shot not in by_id]
    if missing:
        raise UserError(
            f"The protocol {protocol} shows the problems {', '.join(SHOT_IDS)} of the split 'prompt', and the data has no "
            f"{', '.join(missing)} there (it has {', '.join(by_id) or 'none'}). "
            "Add them to the data, or use the protocol docstring-0shot."
        )
    return tuple(by_id[shot] for shot in SHOT_IDS)


def render_prompt(problem: Problem, protocol: Protocol, shots: Sequence[Problem] = ()) -> str:
    """The text that a model is given.

    Args:
        shots: what `shots_of` returned; empty for `docstring-0shot`.
    """
    if protocol == "docstring-0shot":
        assert not shots, f"{protocol} shows no other problems"
        return f'"""\n{problem.prompt}\n{problem.tests[0]}\n"""\n'
    assert len(shots) == len(SHOT_IDS), f"{protocol} shows {len(SHOT_IDS)} problems, got {len(shots)}"
    solved = [f"{_task(shot)}{completion_text(shot, protocol)}\n\n" for shot in shots]
    return "".join(solved) + _task(problem)


def completion_text(problem: Problem, protocol: Protocol) -> str:
    """The text that is learnt after the prompt, without the end-of-sequence token."""
    program = problem.solution.rstrip() + "\n"
    return program if protocol == "docstring-0shot" else program + "[DONE]"


def cut_at_stop(completion: str, protocol: Protocol) -> tuple[str, bool]:
    """The program in what a model wrote, and whether a stop string ended it."""
    places = [place for stop in STOPS[protocol] if (place := completion.find(stop)) >= 0]
    return (completion[: min(places)], True) if places else (completion, False)


def prompts_sha256(prompts: Sequence[str]) -> str:
    """Identify what was asked: two scores with the same hash were given the same prompts in the same order."""
    return hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()


def _task(problem: Problem) -> str:
    tests = "\n".join(problem.tests[:NUM_TESTS_SHOWN])
    return (
        f"You are an expert Python programmer, and here is your task: {problem.prompt} "
        f"Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
    )
