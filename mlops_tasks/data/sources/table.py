"""One's own table of problems: JSON lines, a JSON list or Parquet, with columns of any name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mlops_tasks.config.sources import Columns, Split
from mlops_tasks.data.problems import IoTest, Problem
from mlops_tasks.data.sources.mbpp import named_split
from mlops_tasks.data.sources.reading import distinct, split_of
from mlops_tasks.data.sources.records import Document, Record, document_at, read_table_or_records, shown

MAX_LINE_BYTES = 2**26
"""Tests may be long."""


def read_table(path: Path, columns: Columns, *, split: Split | None, name: str | None = None) -> list[Problem]:
    """Read a table of problems, in the file's order.

    Args:
        columns: which is what.
        split: what problems are for that do not say it themselves; None: see `split_of`.
        name: what messages call the file; None: its path.

    Raises:
        UserError: no such file or column, or a bad field: file, line, field, what was found and what was expected.
    """
    document = document_at(path, name)
    checked = distinct(_checked(document, columns), columns.id or "id", document)
    return [_problem(record, id, columns, split) for record, id in checked]


def _checked(document: Document, columns: Columns) -> Iterator[tuple[Record, str]]:
    records = read_table_or_records(document, max_line_bytes=MAX_LINE_BYTES)
    for number, record in enumerate(records, start=1):
        record.require({columns.prompt: str, columns.solution: str})
        record.require({column: list for column in (columns.inputs, columns.outputs) if column})
        record.require({column: str for column in (columns.setup, columns.split) if column}, filled=False)
        yield record, str(number) if columns.id is None else _id(record, columns.id)


def _id(record: Record, column: str) -> str:
    value = record.values.get(column)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        record.refuse(column, shown(value), "a text or a whole number")
    return str(value).strip()


def _problem(record: Record, id: str, columns: Columns, split: Split | None) -> Problem:
    solution = record.text(columns.solution)
    record.syntax_tree(columns.solution, solution)
    return Problem(
        id=id,
        # Code that the solution begins with is asked to the character.
        prompt=text if solution.startswith(text := record.text(columns.prompt)) else text.strip(),
        solution=solution,
        tests=_tests(record, columns.tests) if columns.tests else (),
        io_tests=_io_tests(record, columns.inputs, columns.outputs) if columns.inputs and columns.outputs else (),
        setup=record.text(columns.setup) if columns.setup else "",
        split=named_split(record, columns.split) if columns.split else split_of(id, split),
        source="own",
        licence="unknown",
    )


def _tests(record: Record, column: str) -> tuple[str, ...]:
    kind = str if isinstance(record.values.get(column), str) else list
    record.require({column: kind})
    tests = record.texts(column) if kind is list else (record.text(column),)
    for test in tests:
        record.syntax_tree(column, test)
    return tests


def _io_tests(record: Record, inputs: str, outputs: str) -> tuple[IoTest, ...]:
    given, wanted = record.texts(inputs), record.texts(outputs)
    if len(given) != len(wanted):
        record.refuse(outputs, f"{len(wanted)} texts", f"as many as {inputs!r} has, {len(given)}")
    return tuple(IoTest(input=one, output=two) for one, two in zip(given, wanted, strict=True))
