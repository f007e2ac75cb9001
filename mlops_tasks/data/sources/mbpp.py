"""MBPP's two formats, and one's own problems in them.

    mbpp.jsonl             one object a line: task_id, text, code, test_list, test_setup_code, challenge_test_list
    sanitized-mbpp.json    one list of objects: task_id, prompt, code, test_list, test_imports, source_file

Fields of both may be mixed. Problems of one's own may also have `split`, `source` and `licence`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from mlops_tasks.config.sources import Split
from mlops_tasks.data.problems import SPLITS, Problem
from mlops_tasks.data.sources.reading import distinct
from mlops_tasks.data.sources.records import Document, Record, document_at, read_records
from mlops_tasks.errors import UserError
from mlops_tasks.store import sha256_of_file

# First and last task id of MBPP's splits.
_OFFICIAL: tuple[tuple[int, int, Split], ...] = (
    (1, 10, "prompt"),
    (11, 510, "test"),
    (511, 600, "validation"),
    (601, 974, "train"),
)
# SHA-256 of the two files as published under CC BY 4.0.
_PUBLISHED = {
    "ccf64ceae9c5403bf50a044cb6d505bfd2a2963ee58338ba268fd65beab92a9f": "mbpp",
    "ca95deaa9a01ef0a6f439f88bcf0dd3db3563d22f22aad6cae04ebb9a8d8c8e9": "mbpp-sanitized",
}
_PUBLISHED_LICENCE = "CC-BY-4.0"

_FIELDS: dict[str, type] = {
    "task_id": int,
    "text": str,
    "prompt": str,
    "code": str,
    "test_list": list,
    "test_setup_code": str,
    "test_imports": list,
    "challenge_test_list": list,
    "source_file": str,
    "split": str,
    "source": str,
    "licence": str,
}


def read_mbpp(path: Path, *, name: str | None = None) -> list[Problem]:
    """Read problems in one of MBPP's formats, in the file's order.

    Args:
        path: the file.
        name: what messages call it; None: its path.

    Raises:
        UserError: no such file, or it is bad: file, line, field, what was found and what was expected.
    """
    document = document_at(path, name)
    published = _PUBLISHED.get(sha256_of_file(path))
    problems = [_problem(record, id, published) for record, id in distinct(_checked(document), "task_id", document)]
    if not any(problem.split == "train" for problem in problems):
        counts = ", ".join(f"{sum(problem.split == split for problem in problems)} {split}" for split in SPLITS)
        raise UserError(
            f"{document} has no training problem (it has {counts}), so there is nothing to learn from. "
            "Add some: task_id 601 to 974, or the field split with the value 'train'."
        )
    return problems


def _checked(document: Document) -> Iterator[tuple[Record, str]]:
    for record in read_records(document):
        for field in record.values:
            if field not in _FIELDS:
                record.place.refuse(
                    f"unknown field {field!r}; known are {', '.join(_FIELDS)}.", "Check its spelling, or take it out."
                )
            record.require_type(field, _FIELDS[field])
        if "text" in record.values and "prompt" in record.values:
            record.refuse("prompt", "given beside 'text'", "only one of the two")
        record.require({field: _FIELDS[field] for field in ("task_id", _asked(record), "code", "test_list")})
        if record.values["task_id"] < 0:
            record.refuse("task_id", str(record.values["task_id"]), "0 or more")
        yield record, str(record.values["task_id"])


def _asked(record: Record) -> str:
    return "prompt" if "prompt" in record.values else "text"


def _problem(record: Record, id: str, published: str | None) -> Problem:
    solution, tests = record.text("code").strip("\n"), record.texts("test_list")
    setup = "\n".join(part for part in (*record.texts("test_imports"), record.text("test_setup_code")) if part)
    return Problem(
        id=id,
        prompt=record.text(_asked(record)).strip(),
        solution=solution,
        tests=tests,
        setup=setup,
        entry_point=_entry_point(record, solution, tests, setup),
        split=_split(record),
        source=published or record.values.get("source", "own"),
        licence=_PUBLISHED_LICENCE if published else record.values.get("licence", "unknown"),
    )


def _split(record: Record) -> Split:
    if "split" in record.values:
        return named_split(record, "split")
    task_id: int = record.values["task_id"]
    for first, last, split in _OFFICIAL:
        if first <= task_id <= last:
            return split
    record.refuse("task_id", f"{task_id}, which is in no split of MBPP (1 to 974)", "a field 'split' beside it")


def named_split(record: Record, field: str) -> Split:
    """The split that a field names."""
    for split in SPLITS:
        if split == record.values[field]:
            return split
    record.refuse(field, repr(record.values[field]), f"one of {', '.join(SPLITS)}")


def _entry_point(record: Record, solution: str, tests: tuple[str, ...], setup: str) -> str:
    """The first thing that the solution defines and a test names."""
    defined = {name for node in record.syntax_tree("code", solution).body for name in _names_bound_by(node)}
    record.syntax_tree("test_setup_code", setup)
    trees = [record.syntax_tree(f"test_list[{index}]", test) for index, test in enumerate(tests)]
    named = [node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)]
    used = next((name for name in named if name in defined), None)
    if used is None:
        record.refuse(
            "test_list",
            f"about {', '.join(sorted(set(named))) or 'nothing'}",
            f"a test of what the code defines ({', '.join(sorted(defined)) or 'nothing'})",
        )
    return used


def _names_bound_by(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]
