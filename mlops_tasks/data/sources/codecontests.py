"""Contest problems with the field names of DeepMind's CodeContests, one object a line or one row.

    name, description, solutions {language, solution}, public_tests, private_tests and generated_tests {input, output}

Other fields are left alone. Outputs are compared with what a problem's own solution writes, token by token, so a problem that
accepts several answers is unsupported: a right program could be called wrong. Whether a statement says so is read off its words; in
doubt it does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlops_tasks.config.sources import Split
from mlops_tasks.data.problems import IoTest, Problem, parse_quietly
from mlops_tasks.data.sources.reading import Reading, Unsupported, distinct, split_of
from mlops_tasks.data.sources.records import Document, Record, document_at, read_table_or_records, unix

PYTHON3 = 3
"""In the dataset's list of languages."""
MAX_LINE_BYTES = 2**26
"""Some problems have hundreds of long tests."""

_TESTS = ("public_tests", "private_tests", "generated_tests")
_FIELDS: dict[str, type] = {"name": str, "description": str, "solutions": dict}
# A re-packer's own sections, which tell how to solve and how to run it.
_NOT_THE_STATEMENT = re.compile(r"\n## (?:Categories|Source|Examples|Testing)\n.*", re.DOTALL)
_SEVERAL_ANSWERS = (
    re.compile(
        r"\b(?:if|when|where)\b[^.]*\b(?:several|multiple|many|more than one)\s+(?:\w+\s+){0,3}?"
        r"(?:answer|solution|way|option|optimal|correct|possible|such)\w*[^.]*\b(?:any|arbitrar(?:y|ily))\b",
        re.IGNORECASE,
    ),
    re.compile(r"\b(?:print|output|display)\w*\b[^.]{0,50}\b(?:any|arbitrar(?:y|ily))\b", re.IGNORECASE),
    re.compile(r"\bany (?:\w+ )?(?:answer|solution)s? (?:is|are|will be) accepted\b", re.IGNORECASE),
)


def read_codecontests(path: Path, *, split: Split | None, name: str | None = None) -> Reading:
    """Read contest problems, in the file's order.

    Args:
        split: what all of them are for; None: see `split_of`.
        name: what messages call the file; None: its path.

    Raises:
        UserError: no such file, or it is bad: file, line, field, what was found and what was expected.
    """
    document = document_at(path, name)
    problems: list[Problem] = []
    unsupported: list[Unsupported] = []
    for record, id in distinct(_checked(document), "name", document):
        problem = _problem(record, id, split)
        reason = "it has no Python 3 solution" if problem is None else several_answers(problem.prompt)
        if problem is not None and reason is None:
            problems.append(problem)
        else:
            unsupported.append(Unsupported(id, str(reason), problem))
    return Reading(tuple(problems), tuple(unsupported))


def several_answers(statement: str) -> str | None:
    """Why a statement accepts more answers than one, in its own words; None: nothing in it says so.

    >>> several_answers("Print a root. If there are several answers, print any of them.")
    'it accepts several answers: "If there are several answers, print any"'
    >>> several_answers("Print the least number of steps in which Ann can get from any town to any other one of the whole land.")
    """
    lines = (" ".join(line.split()) for line in statement.splitlines())
    found = next((match for line in lines for pattern in _SEVERAL_ANSWERS if (match := pattern.search(line))), None)
    return None if found is None else f'it accepts several answers: "{found[0]}"'


def _checked(document: Document) -> Iterator[tuple[Record, str]]:
    for record in read_table_or_records(document, max_line_bytes=MAX_LINE_BYTES):
        record.require(_FIELDS)
        for field in _TESTS:
            if field in record.values:
                record.require_type(field, dict)
        yield record, " ".join(record.text("name").split())


def _problem(record: Record, id: str, split: Split | None) -> Problem | None:
    """None: it has no solution in Python 3."""
    solution = _solution(record)
    tests = tuple(test for field in _TESTS for test in _io_tests(record, field))
    if not tests:
        record.refuse("public_tests", "without a test, as the other tests are", "at least one test in one of them")
    return solution and Problem(
        id=id,
        prompt=_NOT_THE_STATEMENT.sub("", record.text("description")).strip(),
        solution=solution,
        io_tests=tests,
        split=split_of(id, split),
        source="codecontests",
        licence="unknown",
    )


def _solution(record: Record) -> Any:
    """The first one that is Python 3 and parses."""
    languages, programs = _columns(record, "solutions", ("language", int), ("solution", str))
    for language, program in zip(languages, programs, strict=True):
        if language == PYTHON3 and _is_program(unix(program)):
            return unix(program)
    return None


def _is_program(source: str) -> bool:
    try:
        return bool(parse_quietly(source).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _io_tests(record: Record, field: str) -> Iterator[IoTest]:
    if field in record.values:
        inputs, outputs = _columns(record, field, ("input", str), ("output", str))
        yield from (IoTest(input=unix(one), output=unix(two)) for one, two in zip(inputs, outputs, strict=True))


def _columns(record: Record, field: str, *columns: tuple[str, type]) -> list[list[Any]]:
    """The lists of an object of lists, of one length."""
    found = [record.values[field].get(name, []) for name, _ in columns]
    fits = all(
        isinstance(values, list) and all(isinstance(one, kind) for one in values)
        for values, (_, kind) in zip(found, columns, strict=True)
    )
    if not fits or len({len(values) for values in found}) > 1:
        wanted = " and ".join(f"{name} ({kind.__name__})" for name, kind in columns)
        record.refuse(field, "something else", f"an object with lists {wanted} of one length")
    return found
