"""The one schema of a programming problem, and its file format.

Owns `Problem`, the order of problems and their Parquet table. Reading what others publish is `sources`' and `generated`'s;
turning a problem into text is `prompts`'.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlops_tasks.config import EvaluationSet, Split
from mlops_tasks.errors import DataError, UserError

SPLITS: tuple[Split, ...] = get_args(Split)

_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("solution", pa.string(), nullable=False),
        pa.field(
            "tests",
            pa.list_(pa.field("item", pa.string(), nullable=False)),
            nullable=False,
        ),
        pa.field("setup", pa.string(), nullable=False),
        pa.field("entry_point", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("licence", pa.string(), nullable=False),
    ]
)


class Problem(BaseModel):
    """A task in words, a program that solves it, and tests that the program passes.

    A program is judged as `program`, then `setup`, then `tests`: MBPP's set-up code uses classes that the solution defines.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    id: str = Field(pattern=r"^\d+$")
    """A decimal number, unique in the data set."""
    prompt: str = Field(min_length=1)
    """The task in words."""
    solution: str = Field(min_length=1)
    """Python source, lines ended by \\n."""
    tests: tuple[str, ...] = Field(min_length=1)
    """Assert statements."""
    setup: str = ""
    """Code to run between the program and the tests; usually empty."""
    entry_point: str
    """The function or class of the solution that the tests call."""
    split: Split
    """What the problem is for."""
    source: str
    """The data set."""
    licence: str
    """SPDX identifier of the data set's licence, or `unknown`."""


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """Sort by id as a number, so that 9 comes before 10."""
    return sorted(problems, key=lambda problem: int(problem.id))


def parse_quietly(source: str) -> ast.Module:
    r"""The syntax tree of somebody's program, without the warnings that are its author's affair, such as for "\d".

    Raises:
        SyntaxError: it is no Python; ValueError, RecursionError and MemoryError happen too.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source)


def chosen(problems: Sequence[Problem], part: EvaluationSet) -> list[Problem]:
    """The problems of an evaluation set.

    Args:
        problems: all of its split, in order of id.
        part: which of them.

    Raises:
        UserError: none is left.
    """
    found = list(problems[part.skip :][: part.limit])
    if not found:
        raise UserError(
            f"The evaluation set (split {part.split}, skip {part.skip}, limit {part.limit}) is empty: the split has {len(problems)} "
            "problems. Lower skip in evaluation.gate or evaluation.report, or give the data such a split."
        )
    return found


def write_problems(path: Path, problems: Sequence[Problem]) -> None:
    """Write a Parquet table, in order of id; the same problems give the same bytes."""
    rows = [problem.model_dump() for problem in in_order(problems)]
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), path, compression="zstd")


def read_problems(path: Path) -> list[Problem]:
    """Read what `write_problems` wrote, in order of id.

    Raises:
        DataError: the table has other columns, or a row breaks the schema.
    """
    table = pq.read_table(path)
    if not table.schema.equals(_SCHEMA):
        raise DataError(
            f"{path} has the columns {table.schema.names} instead of {_SCHEMA.names}, or other types. "
            "Pull the data again with this version."
        )
    try:
        return [Problem.model_validate(row) for row in table.to_pylist()]
    except ValidationError as error:
        raise DataError(f"{path} holds a row that is no problem: {error}. Pull the data again.") from error
