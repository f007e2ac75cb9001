"""Files of records, read with care: JSON lines, one JSON list, or Parquet.

Owns what is said about a file that is none of them, and about a bad field: file, line, what was found and what was expected. What
the fields mean is the formats', beside this module.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from mlops_tasks.data.pins import existing_file
from mlops_tasks.data.problems import parse_quietly
from mlops_tasks.errors import UserError

MAX_LINE_BYTES = 2**20
"""A longer line is no problem but another kind of file."""

MAX_LIST_BYTES = 2**26
"""A list is read whole; more problems than this come one a line."""

# How other things begin that end up under the name of a data file.
_MISTAKEN: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a git-LFS pointer: run `git lfs pull` where it was cloned"),
    (b"<!doctype", "an HTML page, perhaps an error page: download the raw file"),
    (b"<html", "an HTML page, perhaps an error page: download the raw file"),
    (b"<?xml", "an XML document, perhaps a store's error message: download the file again"),
    (b"par1", "a Parquet table: export it as JSON lines, or read it with the source `table`"),
    (b"pk\x03\x04", "a zip archive: unpack it"),
    (b"\x1f\x8b", "gzip: unpack it"),
)
_PARQUET = b"PAR1"
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
class Document:
    """A local file, and what people call it: it may be a copy of something elsewhere."""

    path: Path
    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Place:
    """Where something was read."""

    document: Document
    line: int
    unit: str = "line"

    def refuse(self, found: str, todo: str) -> NoReturn:
        raise UserError(f"{self}: {found} {todo}")

    def __str__(self) -> str:
        return f"{self.document}, {self.unit} {self.line}"


@dataclass(frozen=True)
class Record:
    """One object of a file, and where it begins."""

    place: Place
    values: dict[str, Any]

    def refuse(self, field: str, found: str, expected: str) -> NoReturn:
        """End with an error about a field."""
        self.place.refuse(f"field {field!r} is {found}; expected {expected}.", "Mend it, or take the problem out.")

    def require(self, fields: Mapping[str, type], *, filled: bool = True) -> None:
        """Refuse a record that lacks one of these fields, or has it with another type or with nothing in it."""
        for field, kind in fields.items():
            if field not in self.values:
                self.place.refuse(
                    f"field {field!r} is missing; found {', '.join(self.values) or 'no field'}.",
                    "Add it, or take the problem out.",
                )
            self.require_type(field, kind)
            value = self.values[field]
            if filled and (value in ("", []) or not str(value).strip()):
                self.refuse(field, "empty", f"{_KINDS[kind]} with something in it")

    def require_type(self, field: str, kind: type) -> None:
        """Refuse a field of another type, or with text that is no text."""
        found = self.values[field]
        if not _is_unicode(found):
            self.refuse(field, "half of a surrogate pair", "whole characters")
        if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
            self.refuse(field, shown(found), _KINDS[kind])

    def text(self, field: str) -> str:
        """A string, lines ended by \\n."""
        return unix(self.values.get(field, ""))

    def texts(self, field: str) -> tuple[str, ...]:
        """A list of strings, lines ended by \\n."""
        values = self.values.get(field, [])
        for index, value in enumerate(values):
            if not isinstance(value, str):
                self.refuse(f"{field}[{index}]", shown(value), "a string")
        return tuple(unix(value) for value in values)

    def syntax_tree(self, field: str, source: str) -> ast.Module:
        """A field's program, parsed."""
        try:
            return parse_quietly(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            place = f" in its line {error.lineno}" if isinstance(error, SyntaxError) else ""
            what = error.msg if isinstance(error, SyntaxError) else str(error)
            self.refuse(field, f"no Python: {what}{place}", "a program that parses")


def document_at(path: Path, name: str | None) -> Document:
    """The file at a path.

    Args:
        name: what messages call it; None: its path.

    Raises:
        UserError: no file is there.
    """
    return Document(existing_file(path), name or str(path))


def read_records(document: Document, *, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Record]:
    """The objects of JSON lines or of one JSON list; which of the two it is shows in the first character.

    Raises:
        UserError: it is another kind of file, or broken: file, line, what was found and what was expected.
    """
    with document.path.open("rb") as stream:
        head = stream.read(512).removeprefix(b"\xef\xbb\xbf").lstrip()
    for start, what in _MISTAKEN:
        if head.lower().startswith(start):
            raise UserError(f"{document} begins with {head[:24]!r} and is {what}.")
    return _records_of_list(document) if head.startswith(b"[") else _records_of_lines(document, max_line_bytes)


def read_table_or_records(document: Document, *, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Record]:
    """The rows of a Parquet table, or what `read_records` reads; which of the two it is shows in the first bytes.

    Raises:
        UserError: as `read_records`.
    """
    with document.path.open("rb") as stream:
        is_parquet = stream.read(len(_PARQUET)) == _PARQUET
    return _rows(document) if is_parquet else read_records(document, max_line_bytes=max_line_bytes)


def _rows(document: Document) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(document.path) as table:
            rows = (row for batch in table.iter_batches(1024) for row in batch.to_pylist())
            yield from (Record(Place(document, number, "row"), row) for number, row in enumerate(rows, start=1))
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{document} is no whole Parquet table: {error}. Fetch the file again.") from error


def _records_of_lines(document: Document, max_line_bytes: int) -> Iterator[Record]:
    with document.path.open("rb") as stream:
        number = 0
        while line := stream.readline(max_line_bytes + 1):
            place = Place(document, number := number + 1)
            if len(line) > max_line_bytes:
                place.refuse(
                    f"longer than {max_line_bytes:,} bytes; expected one problem a line.", "Is it another kind of file?"
                )
            if text := _decoded(line, place).strip():
                yield _record(_parsed(text, 0, place)[0], place)


def _records_of_list(document: Document) -> Iterator[Record]:
    size = document.path.stat().st_size
    if size > MAX_LIST_BYTES:
        raise UserError(
            f"{document} is one list of {size:,} bytes; expected at most {MAX_LIST_BYTES:,}. Write one problem a line (.jsonl)."
        )
    text = _decoded(document.path.read_bytes(), Place(document, 1))
    at = _after_blanks(text, text.index("[") + 1)
    is_more = text[at : at + 1] != "]"
    # Value by value instead of at once, so that each record's line is known.
    while is_more:
        place = Place(document, text.count("\n", 0, at) + 1)
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


def _refuse_at(document: Document, text: str, at: int, why: str) -> NoReturn:
    _refuse_json(Place(document, text.count("\n", 0, at) + 1), f"{text[at : at + 20]!r} {why}")


def _decoded(data: bytes, place: Place) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = place.line + data.count(b"\n", 0, error.start)
        Place(place.document, line).refuse(
            f"not UTF-8: byte 0x{data[error.start]:02x} in {data[max(0, error.start - 12) : error.start + 4]!r}.",
            "Save the file as UTF-8.",
        )


def _parsed(text: str, at: int, place: Place) -> tuple[Any, int]:
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


def _refuse_json(place: Place, found: str) -> NoReturn:
    place.refuse(f"broken JSON: {found}; expected one object a line, or one list of objects.", "Fetch the file again.")


def _after_blanks(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at


def _record(value: Any, place: Place) -> Record:
    if not isinstance(value, dict):
        place.refuse(f"{shown(value)}; expected an object with the fields of a problem.", "See docs/data.md.")
    return Record(place, value)


def _is_unicode(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(value: Any) -> str:
    """A value in a message: its type and its beginning."""
    text = repr(value)
    return f"{_KINDS.get(type(value), type(value).__name__)} ({text if len(text) <= 60 else text[:57] + '…'})"


def unix(text: str) -> str:
    """The text with lines ended by \\n."""
    return text.replace("\r\n", "\n").replace("\r", "\n")
