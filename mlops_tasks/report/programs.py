"""The part of a report on single programs: problems won and lost, with both programs, and examples of every way to end."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from mlops_tasks.data.problems import Problem
from mlops_tasks.report.facts import VERDICTS, Facts, absent, pill, section
from mlops_tasks.report.markup import Markup, element, join

Row: TypeAlias = Mapping[str, Any]
"""One program, as `judge` describes it."""

_MAX_FLIPS = 6
_MAX_MESSAGE = 400
_MAX_IO_TESTS = 5
_EXAMPLES_A_KIND = {"passed": 3, "reads": 3, "failed": 2, "error": 2, "timeout": 1, "crashed": 1}
_PYTHON = re.compile(
    r"""(?P<c>\#[^\n]*)"""
    r"""|(?P<s>"{3}[\s\S]*?(?:"{3}|\Z)|'{3}[\s\S]*?(?:'{3}|\Z)|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?)"""
    r"""|(?P<k>\b(?:and|as|assert|break|class|continue|def|del|elif|else|except|False|finally|for|from|if|import|in|is|lambda|None"""
    r"""|not|or|pass|raise|return|True|try|while|with|yield)\b)|(?P<d>\b\d[\w.]*)"""
)


def flips(facts: Facts) -> Markup:
    """Problems that only one of the two models solves, with both programs."""
    parts = [_flips_of(facts, where) for where in ("gate", "report")]
    text = "Where candidate and baseline differ, by the first program of each."
    return section("flips", "Won and lost", element("p", text), parts)


def _flips_of(facts: Facts, where: str) -> Markup:
    ours, theirs = facts.outcomes("candidate", where), facts.outcomes("baseline", where)
    if ours is None or theirs is None:
        return join([element("h3", f"{where.capitalize()} set"), absent(facts.why_unjudged(where))])
    first, other = first_programs(ours), first_programs(theirs)
    won = [id for id in first if id in other and first[id]["passed"] and not other[id]["passed"]]
    lost = [id for id in first if id in other and other[id]["passed"] and not first[id]["passed"]]
    problems = facts.problems(where)
    badges = {"won": pill("won", "passed"), "lost": pill("lost", "failed")}
    rows = [
        flip(
            problems.get(id),
            badges[kind],
            [("candidate", first[id]), ("baseline", other[id])],
            is_open=(where, id) == ("gate", (won + lost)[0]),
        )
        for kind, ids in (("won", won), ("lost", lost))
        for id in ids[:_MAX_FLIPS]
    ]
    return join(
        [
            element("h3", f"{where.capitalize()} set: {len(won)} won, {len(lost)} lost"),
            element("div", rows, class_="group")
            if rows
            else absent("The two models solve exactly the same problems here."),
            _rest(len(won[_MAX_FLIPS:]) + len(lost[_MAX_FLIPS:])),
        ]
    )


def _rest(count: int) -> Markup | None:
    return (
        element("p", f"… and {count} more in outcomes.parquet of the judged artifacts.", class_="note")
        if count
        else None
    )


def first_programs(rows: Iterable[Row]) -> dict[str, Row]:
    """The first program of each problem."""
    return {row["problem_id"]: row for row in rows if row["sample"] == 0}


def flip(problem: Problem | None, badge: Markup, sides: Sequence[tuple[str, Row]], *, is_open: bool) -> Markup:
    """A problem with the programs of several models side by side, folded.

    Args:
        sides: whose program, and the program.
    """
    shown = [element("div", _program(row, who)) for who, row in sides]
    return _folded(problem, sides[0][1]["problem_id"], badge, element("div", shown, class_="sides"), is_open=is_open)


def _folded(problem: Problem | None, id: str, badge: Markup, body: Markup, *, is_open: bool) -> Markup:
    tests = element("details", element("summary", "tests"), element("div", _tests(problem))) if problem else None
    title = element("span", problem.prompt, class_="task") if problem else None
    return element(
        "details",
        element("summary", badge, element("span", id, class_="id"), title),
        element("div", body, tests),
        open=is_open,
    )


def _tests(problem: Problem) -> Markup:
    if problem.tests:
        return _code("\n".join(problem.tests))
    shown = [f"{_cut(test.input)}\n→ {_cut(test.output)}" for test in problem.io_tests[:_MAX_IO_TESTS]]
    left = len(problem.io_tests) - len(shown)
    return element("pre", "\n\n".join([*shown, *([f"… and {left} more"] if left else [])]))


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_MESSAGE else f"{text[:_MAX_MESSAGE]}…"


def _program(row: Row, who: str) -> Markup:
    marked = row.get("tests_inside") or 0  # artifacts of earlier versions do not say
    tests = (
        f"{row['tests_passed']} of {row['num_tests']} tests{f', in {marked} the program had a say' if marked else ''}"
    )
    flag = pill("reads the answer off the prompt", "reads") if row["reads_answer"] else None
    message = row["message"] or ""
    shown = _cut(message)
    return join(
        [
            element(
                "div",
                element("span", who),
                pill(row["verdict"], _kind(row)),
                flag,
                element("span", tests),
                class_="who",
            ),
            _code(row["completion"]) if row["completion"].strip() else absent("It wrote nothing."),
            element("p", shown, class_="message mono") if shown else None,
        ]
    )


def _kind(row: Row) -> str:
    verdict = str(row["verdict"])
    return verdict if verdict in VERDICTS else "other"


def _code(text: str) -> Markup:
    """Python with its strings, comments, keywords and numbers marked; of broken code too."""
    pieces: list[str] = []
    end = 0
    for found in _PYTHON.finditer(text):
        pieces += [text[end : found.start()], element("span", found.group(), class_=found.lastgroup)]
        end = found.end()
    return element("pre", element("code", pieces, text[end:]))


def examples(facts: Facts) -> Markup:
    """Some programs of the candidate on the report set, of every way to end."""
    rows = facts.outcomes("candidate", "report")
    if rows is None:
        return section("examples", "What it writes", absent(facts.why_unjudged("report")))
    problems = facts.problems("report")
    chosen = _one_of_each_kind(rows)
    shown = [
        _folded(
            problems.get(row["problem_id"]),
            row["problem_id"],
            join([pill(row["verdict"], _kind(row)), pill("read off", "reads flag") if row["reads_answer"] else None]),
            _program(row, "candidate"),
            is_open=place < 2,
        )
        for place, row in enumerate(chosen)
    ]
    text = "Programs of the candidate on the report set: the first ones of each way to end, not the best ones."
    return section("examples", "What it writes", element("p", text), element("div", shown, class_="group"))


def _one_of_each_kind(rows: Sequence[Row]) -> list[Row]:
    taken: dict[str, list[Row]] = {kind: [] for kind in _EXAMPLES_A_KIND}
    for row in rows:
        kind = "reads" if row["reads_answer"] else row["verdict"]
        if len(taken.setdefault(kind, [])) < _EXAMPLES_A_KIND.get(kind, 1):
            taken[kind].append(row)
    return [row for kind in taken.values() for row in kind]
