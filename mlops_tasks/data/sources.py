"""Problems that others publish, read with care: MBPP's two formats, and one's own problems in them.

Owns the formats, the official splits and what is said about a bad file. What pins a file is `pins`', made-up problems are
`generated`'s, and what is done with what was read is `pull`'s.

    mbpp.jsonl             one object a line: task_id, text, code, test_list, test_setup_code, challenge_test_list
    sanitized-mbpp.json    one list of objects: task_id, prompt, code, test_list, test_imports, source_file

Which of the two a file is shows in its first character; fields of both may be mixed. Problems of one's own may also have
`split`, `source` and `licence`.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from mlops_tasks.config import Split
from mlops_tasks.data.pins import existing_file
from mlops_tasks.data.problems import SPLITS, Problem, parse_quietly
from mlops_tasks.errors import UserError
from mlops_tasks.store import sha256_of_file

MAX_LINE_BYTES = 2**20
"""A longer line is no problem but another kind of file."""

MAX_LIST_BYTES = 2**26
"""A list is read whole; more problems than this come one a line."""

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

# How other things begin that end up under the name of a data file.
_MISTAKEN: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a git-LFS pointer: run `git lfs pull` where it was cloned"),
    (b"<!doctype", "an HTML page, perhaps an error page: download the raw file"),
    (b"<html", "an HTML page, perhaps an error page: download the raw file"),
    (b"<?xml", "an XML document, perhaps a store's error message: download the file again"),
    (b"par1", "a Parquet table: export it as JSON lines"),
    (b"pk\x03\x04", "a zip archive: unpack it"),
    (b"\x1f\x8b", "gzip: unpack it"),
)

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
_KINDS: dict[type, str] = {
    str: "a string",
    list: "a list",
    int: "a whole number",
    dict: "an object",
    bool: "true or false",
    float: "a number with a fraction",
    type(None): "null",
}


@dataclass(frozen=True)
class _Document:
    """A local file, and what people call it: it may be a copy of something elsewhere."""

    path: Path
    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class _Place:
    """Where something was read."""

    document: _Document
    line: int

    def refuse(self, found: str, todo: str) -> NoReturn:
        raise UserError(f"{self}: {found} {todo}")

    def __str__(self) -> str:
        return f"{self.document}, line {self.line}"


@dataclass(frozen=True)
class _Record:
    """One object of a file, and where it begins."""

    place: _Place
    values: dict[str, Any]

    def refuse(self, field: str, found: str, expected: str) -> NoReturn:
        self.place.refuse(f"field {field!r} is {found}; expected {expected}.", "Mend it, or take the problem out.")

    def text(self, field: str) -> str:
        """A string, lines ended by \\n."""
        return _unix(self.values.get(field, ""))

    def texts(self, field: str) -> tuple[str, ...]:
        """A list of strings, lines ended by \\n."""
        values = self.values.get(field, [])
        for index, value in enumerate(values):
            if not isinstance(value, str):
                self.refuse(f"{field}[{index}]", _shown(value), "a string")
        return tuple(_unix(value) for value in values)


def read_mbpp(path: Path, *, name: str | None = None) -> list[Problem]:
    """Read problems in one of MBPP's formats, in the file's order.

    Args:
        path: the file.
        name: what messages call it; None: its path.

    Raises:
        UserError: no such file, or it is bad: file, line, field, what was found and what was expected.
    """
    published = _PUBLISHED.get(sha256_of_file(existing_file(path)))
    problems: list[Problem] = []
    lines: dict[str, int] = {}
    document = _Document(path, name or str(path))
    for record in _records(document):
        problem = _problem(record, published)
        if problem.id in lines:
            record.refuse("task_id", f"{problem.id}, as in line {lines[problem.id]}", "an id that no other problem has")
        lines[problem.id] = record.place.line
        problems.append(problem)
    if not problems:
        raise UserError(f"{document} is empty; expected at least one problem. Fetch the file again.")
    if not any(problem.split == "train" for problem in problems):
        counts = ", ".join(f"{sum(problem.split == split for problem in problems)} {split}" for split in SPLITS)
        raise UserError(
            f"{document} has no training problem (it has {counts}), so there is nothing to learn from. "
            "Add some: task_id 601 to 974, or the field split with the value 'train'."
        )
    return problems


def _records(document: _Document) -> Iterator[_Record]:
    with document.path.open("rb") as stream:
        head = stream.read(512).removeprefix(b"\xef\xbb\xbf").lstrip()
    for start, what in _MISTAKEN:
        if head.lower().startswith(start):
            raise UserError(f"{document} begins with {head[:24]!r} and is {what}.")
    return _records_of_list(document) if head.startswith(b"[") else _records_of_lines(document)


def _records_of_lines(document: _Document) -> Iterator[_Record]:
    with document.path.open("rb") as stream:
        number = 0
        while line := stream.readline(MAX_LINE_BYTES + 1):
            place = _Place(document, number := number + 1)
            if len(line) > MAX_LINE_BYTES:
                place.refuse(
                    f"longer than {MAX_LINE_BYTES:,} bytes; expected one problem a line.", "Is it another kind of file?"
                )
            if text := _decoded(line, place).strip():
                yield _record(_parsed(text, 0, place)[0], place)


def _records_of_list(document: _Document) -> Iterator[_Record]:
    size = document.path.stat().st_size
    if size > MAX_LIST_BYTES:
        raise UserError(
            f"{document} is one list of {size:,} bytes; expected at most {MAX_LIST_BYTES:,}. Write one problem a line (.jsonl)."
        )
    text = _decoded(document.path.read_bytes(), _Place(document, 1))
    at = _after_blanks(text, text.index("[") + 1)
    is_more = text[at : at + 1] != "]"
    # Value by value instead of at once, so that each record's line is known.
    while is_more:
        place = _Place(document, text.count("\n", 0, at) + 1)
        value, at = _parsed(text, at, place)
        yield _record(value, place)
        at = _after_blanks(text, at)
        is_more = text[at : at + 1] == ","
        if is_more:
            at = _after_blanks(text, at + 1)
        elif text[at : at + 1] != "]":
            _refuse_at(document, text, at, "where ',' or ']' should be")
    if (end := _after_blanks(text, at + 1)) < len(text):
        _refuse_at(document, text, end, "after the end of the list")


def _refuse_at(document: _Document, text: str, at: int, why: str) -> NoReturn:
    _refuse_json(_Place(document, text.count("\n", 0, at) + 1), f"{text[at : at + 20]!r} {why}")


def _decoded(data: bytes, place: _Place) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = place.line + data.count(b"\n", 0, error.start)
        _Place(place.document, line).refuse(
            f"not UTF-8: byte 0x{data[error.start]:02x} in {data[max(0, error.start - 12) : error.start + 4]!r}.",
            "Save the file as UTF-8.",
        )


def _parsed(text: str, at: int, place: _Place) -> tuple[Any, int]:
    """A JSON value and where it ends."""
    try:
        value, end = json.JSONDecoder().raw_decode(text, at)
        if at == 0 and end < len(text):
            raise json.JSONDecodeError("Extra data", text, end)
    except json.JSONDecodeError as error:
        _refuse_json(place, f"{error.msg} in {text[max(0, error.pos - 20) : error.pos + 20]!r}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        _refuse_json(place, str(error))
    return value, end


def _refuse_json(place: _Place, found: str) -> NoReturn:
    place.refuse(f"broken JSON: {found}; expected one object a line, or one list of objects.", "Fetch the file again.")


def _after_blanks(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at


def _record(value: Any, place: _Place) -> _Record:
    if not isinstance(value, dict):
        place.refuse(f"{_shown(value)}; expected an object with the fields of a problem.", "See docs/data.md.")
    record = _Record(place, value)
    for field, found in value.items():
        if not _is_unicode(found):
            record.refuse(field, "half of a surrogate pair", "whole characters")
        if field not in _FIELDS:
            place.refuse(
                f"unknown field {field!r}; known are {', '.join(_FIELDS)}.", "Check its spelling, or take it out."
            )
        if not isinstance(found, _FIELDS[field]) or isinstance(found, bool):
            record.refuse(field, _shown(found), _KINDS[_FIELDS[field]])
    return record


def _problem(record: _Record, published: str | None) -> Problem:
    if "text" in record.values and "prompt" in record.values:
        record.refuse("prompt", "given beside 'text'", "only one of the two")
    asked = "prompt" if "prompt" in record.values else "text"
    for field in ("task_id", asked, "code", "test_list"):
        if field not in record.values:
            record.place.refuse(
                f"field {field!r} is missing; found {', '.join(record.values) or 'no field'}.",
                "Add it, or take the problem out.",
            )
        if record.values[field] in ("", []) or not str(record.values[field]).strip():
            record.refuse(field, "empty", _KINDS[_FIELDS[field]] + " with something in it")
    solution, tests = record.text("code").strip("\n"), record.texts("test_list")
    setup = "\n".join(part for part in (*record.texts("test_imports"), record.text("test_setup_code")) if part)
    return Problem(
        id=_id(record),
        prompt=record.text(asked).strip(),
        solution=solution,
        tests=tests,
        setup=setup,
        entry_point=_entry_point(record, solution, tests, setup),
        split=_split(record),
        source=published or record.values.get("source", "own"),
        licence=_PUBLISHED_LICENCE if published else record.values.get("licence", "unknown"),
    )


def _id(record: _Record) -> str:
    task_id: int = record.values["task_id"]
    if task_id < 0:
        record.refuse("task_id", str(task_id), "0 or more")
    return str(task_id)


def _split(record: _Record) -> Split:
    task_id: int = record.values["task_id"]
    if "split" in record.values:
        for split in SPLITS:
            if split == record.values["split"]:
                return split
        record.refuse("split", repr(record.values["split"]), f"one of {', '.join(SPLITS)}")
    for first, last, split in _OFFICIAL:
        if first <= task_id <= last:
            return split
    record.refuse("task_id", f"{task_id}, which is in no split of MBPP (1 to 974)", "a field 'split' beside it")


def _entry_point(record: _Record, solution: str, tests: tuple[str, ...], setup: str) -> str:
    """The first thing that the solution defines and a test names."""
    defined = {name for node in _syntax_tree(record, "code", solution).body for name in _names_bound_by(node)}
    _syntax_tree(record, "test_setup_code", setup)
    trees = [_syntax_tree(record, f"test_list[{index}]", test) for index, test in enumerate(tests)]
    named = [node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)]
    used = next((name for name in named if name in defined), None)
    if used is None:
        record.refuse(
            "test_list",
            f"about {', '.join(sorted(set(named))) or 'nothing'}",
            f"a test of what the code defines ({', '.join(sorted(defined)) or 'nothing'})",
        )
    return used


def _syntax_tree(record: _Record, field: str, source: str) -> ast.Module:
    try:
        return parse_quietly(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        place = f" in its line {error.lineno}" if isinstance(error, SyntaxError) else ""
        what = error.msg if isinstance(error, SyntaxError) else str(error)
        record.refuse(field, f"no Python: {what}{place}", "a program that parses")


def _names_bound_by(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _is_unicode(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{_KINDS.get(type(value), type(value).__name__)} ({text if len(text) <= 60 else text[:57] + '…'})"


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
