"""Training problems that equal a problem that the model is judged on.

Owns what `equal` means. Whether such a problem ends the run or is left out is the recipe's choice, made in `pull`.
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
    """A training problem and an evaluation problem with the same text or the same code."""

    train: Problem
    evaluation: Problem
    equal: Literal["text", "code"]

    def __str__(self) -> str:
        return f"{self.train.id} (train) and {self.evaluation.id} ({self.evaluation.split}) have the same {self.equal}"


def contaminated_pairs(problems: Sequence[Problem]) -> list[Pair]:
    """Every pair of a training problem and an evaluation problem that are equal.

    Texts are compared without case and spacing; code as syntax trees without docstrings, so that neither layout nor comments
    tell two programs apart. Names do.
    """
    return [*_pairs(problems, "text", text_form), *_pairs(problems, "code", code_form)]


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


def _pairs(problems: Sequence[Problem], equal: Literal["text", "code"], form: Callable[[Problem], str]) -> list[Pair]:
    judged: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        if problem.split in _JUDGED_ON:
            judged[form(problem)].append(problem)
    return [
        Pair(problem, other, equal)
        for problem in problems
        if problem.split == "train"
        for other in judged.get(form(problem), ())
    ]
