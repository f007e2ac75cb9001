"""HumanEval's format: one object a line, or one row of a Parquet table, with task_id, prompt, entry_point, canonical_solution and test.

`prompt` is code, `canonical_solution` goes on with it, and `test` defines `check(candidate)`. Other fields are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mlops_tasks.config.sources import Split
from mlops_tasks.data.problems import Problem
from mlops_tasks.data.sources.reading import distinct, split_of
from mlops_tasks.data.sources.records import Document, Record, document_at, read_table_or_records

_FIELDS: dict[str, type] = {"task_id": str, "prompt": str, "entry_point": str, "canonical_solution": str, "test": str}


def read_humaneval(path: Path, *, split: Split | None, name: str | None = None) -> list[Problem]:
    """Read problems in HumanEval's format, in the file's order.

    Args:
        split: what all of them are for; None: see `split_of`.
        name: what messages call the file; None: its path.

    Raises:
        UserError: no such file, or it is bad: file, line, field, what was found and what was expected.
    """
    document = document_at(path, name)
    return [_problem(record, id, split) for record, id in distinct(_checked(document), "task_id", document)]


def _checked(document: Document) -> Iterator[tuple[Record, str]]:
    for record in read_table_or_records(document):
        record.require(_FIELDS)
        yield record, record.text("task_id").strip()


def _problem(record: Record, id: str, split: Split | None) -> Problem:
    prompt, entry_point = record.text("prompt"), record.text("entry_point")
    solution = prompt + record.text("canonical_solution")
    record.syntax_tree("canonical_solution", solution)
    # One test: `check` may loop, so its asserts cannot be told apart.
    test = f"{record.text('test').strip()}\n\ncheck({entry_point})"
    record.syntax_tree("test", test)
    return Problem(
        id=id,
        prompt=prompt,
        solution=solution.rstrip() + "\n",
        tests=(test,),
        entry_point=entry_point,
        split=split_of(id, split),
        source="humaneval",
        licence="unknown",
    )
