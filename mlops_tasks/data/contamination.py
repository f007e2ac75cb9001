"""Training problems that equal a problem that their model must not have learnt from.

Owns what `equal` means, and which problems those are. Whether such a problem ends the run or is left out is the recipe's
choice, made in `pull`.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from mlops_tasks.data.problems import Problem, parse_quietly

_JUDGED_ON = ("validation", "test")


@dataclass(frozen=True)
class Pair:
    """A training problem and another one with the same text or the same code."""

    train: Problem
    other: Problem
    equal: Literal["text", "code"]

    def __str__(self) -> str:
        return f"{self.train.id} (train) and {self.other.id} ({self.other.split}) have the same {self.equal}"


def contaminated_pairs(problems: Sequence[Problem], scored: Sequence[Problem] = ()) -> list[Pair]:
    """Every pair of a training problem and an equal one that the model must not have learnt from.

    Args:
        problems: a snapshot; its model must not have learnt from the validation and test problems in it.
        scored: problems of another snapshot whose tokens that model will score, or that others are judged on.

    Texts are compared without case and spacing; code as syntax trees without docstrings, so that neither layout nor comments
    tell two programs apart. Names do.
    """
    training = [problem for problem in problems if problem.split == "train"]
    others = [*(problem for problem in problems if problem.split in _JUDGED_ON), *scored]
    return [*_pairs(training, others, "text", text_form), *_pairs(training, others, "code", code_form)]


def text_form(problem: Problem) -> str:
    """The text without case and spacing."""
    return " ".join(problem.prompt.casefold().split())


def code_form(problem: Problem) -> str:
    """The solution's syntax tree without docstrings."""
    tree = parse_quietly(problem.solution)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:]
    return ast.dump(tree)


def _pairs(
    training: Sequence[Problem],
    others: Sequence[Problem],
    equal: Literal["text", "code"],
    form: Callable[[Problem], str],
) -> list[Pair]:
    by_form: dict[str, list[Problem]] = defaultdict(list)
    for other in others:
        by_form[form(other)].append(other)
    return [Pair(problem, other, equal) for problem in training for other in by_form.get(form(problem), ())]
