"""The one schema of a programming problem, and its file format.

Owns `Problem`, the order of problems and their Parquet table. Reading what others publish is `sources`' and `generated`'s;
turning a problem into text is `prompts`'.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mlops_tasks.config.evaluation import EvaluationSet
from mlops_tasks.config.sources import ProblemKind, Split
from mlops_tasks.errors import DataError, UserError

if TYPE_CHECKING:
    import pyarrow as pa

SPLITS: tuple[Split, ...] = get_args(Split)


class IoTest(BaseModel):
    """What a program is given on standard input, and what it has to write on standard output."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: str
    output: str


class Problem(BaseModel):
    """A task in words, a program that solves it, and tests that the program passes.

    A program with `tests` is judged as `program`, then `setup`, then `tests`: MBPP's set-up code uses classes that the solution
    defines. A program with `io_tests` is a script that is run once for each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    id: str = Field(pattern=r"^\S(.*\S)?$")
    """Unique in the data set."""
    prompt: str = Field(min_length=1)
    """The task in words, or the code that the solution begins with."""
    solution: str = Field(min_length=1)
    """Python source, lines ended by \\n; a whole program."""
    tests: tuple[str, ...] = ()
    """Assert statements, or code that ends with them."""
    io_tests: tuple[IoTest, ...] = ()
    """Exactly one of `tests` and `io_tests` has something in it."""
    setup: str = ""
    """Code to run between the program and the tests; usually empty."""
    entry_point: str = ""
    """The function or class of the solution that the tests call; empty for a script."""
    split: Split
    """What the problem is for."""
    source: str
    """The data set."""
    licence: str
    """SPDX identifier of the data set's licence, or `unknown`."""

    @model_validator(mode="after")
    def _one_kind_of_tests(self) -> Self:
        if bool(self.tests) == bool(self.io_tests):
            raise ValueError(f"tests or io_tests, and not both: got {len(self.tests)} and {len(self.io_tests)}")
        return self

    @property
    def kind(self) -> ProblemKind:
        """What is asked for: a function that asserts call, the rest of code that the prompt begins, or a script."""
        if self.io_tests:
            return "stdio"
        return "completion" if self.solution.startswith(self.prompt) else "asserts"


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """Sort by id, and its numbers as numbers, so that 9 comes before 10 and HumanEval/9 before HumanEval/10."""
    return sorted(problems, key=lambda problem: natural_order(problem.id))


def natural_order(id: str) -> list[tuple[str, int]]:
    """A key to sort ids by.

    >>> sorted(["p10", "p9", "10", "9"], key=natural_order)
    ['9', '10', 'p9', 'p10']
    """
    pieces = [*re.split(r"([0-9]+)", id), ""]
    return [(text, int(number or -1)) for text, number in zip(pieces[::2], pieces[1::2], strict=True)]


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
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [problem.model_dump() for problem in in_order(problems)]
    pq.write_table(pa.Table.from_pylist(rows, schema=_schema()), path, compression="zstd")


def read_problems(path: Path) -> list[Problem]:
    """Read what `write_problems` wrote, in order of id.

    Raises:
        DataError: the table has other columns, or a row breaks the schema.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    if not table.schema.equals(_schema()):
        raise DataError(
            f"{path} has the columns {table.schema.names} instead of {_schema().names}, or other types. "
            "Pull the data again with this version."
        )
    try:
        return [Problem.model_validate(row) for row in table.to_pylist()]
    except ValidationError as error:
        raise DataError(f"{path} holds a row that is no problem: {error}. Pull the data again.") from error


def _schema() -> pa.Schema:
    # Imported here, because whoever plans a run needs to know problems and has no tables to read.
    import pyarrow as pa

    text = pa.string()
    io_test = pa.struct([pa.field(name, text, nullable=False) for name in IoTest.model_fields])
    types = {"tests": _list_of(text), "io_tests": _list_of(io_test)}
    return pa.schema([pa.field(name, types.get(name, text), nullable=False) for name in Problem.model_fields])


def _list_of(kind: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    return pa.list_(pa.field("item", kind, nullable=False))
