"""What reading a file comes to: problems, those that cannot be judged, and which split a problem is for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mlops_tasks.config.sources import Split
from mlops_tasks.data.problems import Problem
from mlops_tasks.data.sources.records import Document, Record
from mlops_tasks.errors import UserError


@dataclass(frozen=True)
class Unsupported:
    """A problem whose tests cannot tell a right program from a wrong one, or that lacks a solution."""

    id: str
    reason: str
    problem: Problem | None = None
    """None: no problem can be made of it."""

    def __str__(self) -> str:
        return f"{self.id}: {self.reason}"


@dataclass(frozen=True)
class Reading:
    """What a file holds."""

    problems: tuple[Problem, ...]
    unsupported: tuple[Unsupported, ...] = ()


def split_of(id: str, split: Split | None) -> Split:
    """The source's split; without one, of ten problems six are learnt from, two are for validation, two for the test."""
    if split is not None:
        return split
    tenth = int.from_bytes(hashlib.sha256(id.encode()).digest()) % 10
    return "train" if tenth < 6 else "validation" if tenth < 8 else "test"


def distinct(records: Iterable[tuple[Record, str]], field: str, document: Document) -> Iterator[tuple[Record, str]]:
    """The same records with their ids, which must differ.

    Args:
        records: each with its id.
        field: where the id stands.

    Raises:
        UserError: an id that is there twice, or no record at all.
    """
    lines: dict[str, int] = {}
    for record, id in records:
        if id in lines:
            record.refuse(field, f"{id}, as in {record.place.unit} {lines[id]}", "an id that no other problem has")
        lines[id] = record.place.line
        yield record, id
    if not lines:
        raise UserError(f"{document} is empty; expected at least one problem. Fetch the file again.")
