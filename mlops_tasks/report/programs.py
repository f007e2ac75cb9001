"""The part of a report on single programs: problems won and lost, with both programs, and what was written, by how it ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from mlops_tasks.data.problems import Problem
from mlops_tasks.report.facts import VERDICTS, Facts, absent, pill, section
from mlops_tasks.report.lexemes import lexemes
from mlops_tasks.report.markup import Markup, element, join

Row: TypeAlias = Mapping[str, Any]
"""One program, as `judge` describes it."""

_MAX_FLIPS = 6
_MAX_MESSAGE = 400
_MAX_IO_TESTS = 5
_MAX_CODE = 6000
_MAX_PROMPT = 2000
_MAX_CHARACTERS = 1_000_000
"""Of all programs that can be filtered."""
_FLAGS = {"reads_answer": "reads the answer off the prompt", "tests_inside": "its own judgement is in its tests"}
"""Columns of outcomes that make a pass worth less, and how that is said; an older judge has not all of them."""
_SHORT_FLAGS = {"reads_answer": "read off", "tests_inside": "judges itself"}
_FILTERS = {**{verdict: verdict for verdict in VERDICTS}, "other": "other", **_SHORT_FLAGS}
_MARKS = {"comment": "c", "string": "s", "keyword": "k", "number": "d"}
"""Classes in the style sheet, by kind of lexeme."""


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
    return folded(problem, sides[0][1]["problem_id"], badge, element("div", shown, class_="sides"), is_open=is_open)


def folded(
    problem: Problem | None, id: str, badge: Markup, body: Markup, *, is_open: bool, class_: str | None = None
) -> Markup:
    """A problem as one line that opens: its badge, id and prompt, then a body, then its tests."""
    tests = element("details", element("summary", "tests"), element("div", _tests(problem))) if problem else None
    title = element("span", _cut(problem.prompt, _MAX_PROMPT), class_="task") if problem else None
    return element(
        "details",
        element("summary", badge, element("span", id, class_="id"), title),
        element("div", body, tests),
        open=is_open,
        class_=class_,
    )


def _tests(problem: Problem) -> Markup:
    if problem.tests:
        return code(_cut("\n".join(problem.tests), _MAX_CODE))
    shown = [f"{_cut(test.input)}\n→ {_cut(test.output)}" for test in problem.io_tests[:_MAX_IO_TESTS]]
    left = len(problem.io_tests) - len(shown)
    return element("pre", "\n\n".join([*shown, *([f"… and {left} more"] if left else [])]))


def _cut(text: str, length: int = _MAX_MESSAGE) -> str:
    return text if len(text) <= length else f"{text[:length]}…"


def _program(row: Row, who: str) -> Markup:
    marked = row.get("tests_inside") or 0  # artifacts of earlier versions do not say
    tests = (
        f"{row['tests_passed']} of {row['num_tests']} tests{f', in {marked} the program had a say' if marked else ''}"
    )
    flags = [pill(label, name) for name, label in _FLAGS.items() if row.get(name)]
    message = row["message"] or ""
    shown = _cut(message)
    return join(
        [
            element(
                "div",
                element("span", who),
                pill(row["verdict"], _kind(row)),
                flags,
                element("span", tests),
                class_="who",
            ),
            code(_cut(row["completion"], _MAX_CODE)) if row["completion"].strip() else absent("It wrote nothing."),
            element("p", shown, class_="message mono") if shown else None,
        ]
    )


def _kind(row: Row) -> str:
    verdict = str(row["verdict"])
    return verdict if verdict in VERDICTS else "other"


def code(text: str) -> Markup:
    """Python with its strings, comments, keywords and numbers marked; of broken code too."""
    pieces: list[str] = []
    done = 0
    for kind, start, end in lexemes(text):
        if kind in _MARKS:
            pieces += [text[done:start], element("span", text[start:end], class_=_MARKS[kind])]
            done = end
    return element("pre", element("code", pieces, text[done:]))


def programs(facts: Facts) -> Markup:
    """What the candidate wrote for the report set, to be filtered by how it ended; without a script, by radio buttons."""
    rows = facts.outcomes("candidate", "report")
    if rows is None:
        return section("programs", "What it writes", absent(facts.why_unjudged("report")))
    problems = facts.problems("report")
    shown = list(_within_budget(_by_turns(rows), problems))
    counts = {kind: sum(kind in _kinds(row) for row in rows) for kind in _FILTERS}
    text = (
        f"Programs of the candidate on the report set, the first of each way to end, not the best: {len(shown)} of {len(rows)}."
        " Choose which to see; the arrow keys do it too."
    )
    return section(
        "programs",
        "What it writes",
        element("p", text),
        element(
            "fieldset",
            element("legend", "Show"),
            _choice("all", "all", len(rows), is_chosen=True),
            [_choice(kind, label, counts[kind]) for kind, label in _FILTERS.items() if counts[kind]],
            element("div", shown, class_="group"),
            class_="filter",
        ),
    )


def _choice(kind: str, label: str, count: int, *, is_chosen: bool = False) -> Markup:
    button = element("input", type="radio", name="only", id=f"only-{kind}", checked=is_chosen)
    return join([button, element("label", f"{label} ", element("small", count), for_=f"only-{kind}")])


def _kinds(row: Row) -> list[str]:
    return [_kind(row), *(name for name in _FLAGS if row.get(name))]


def _by_turns(rows: Sequence[Row]) -> list[Row]:
    """One of each verdict, then the second one of each, and so on."""
    counts: dict[str, int] = {}
    turns = []
    for place, row in enumerate(rows):
        kind = _kind(row)
        counts[kind] = counts.get(kind, 0) + 1
        turns.append((counts[kind], list(_FILTERS).index(kind), place))
    return [rows[place] for _, _, place in sorted(turns)]


def _within_budget(rows: Iterable[Row], problems: Mapping[str, Problem]) -> Iterable[Markup]:
    """Programs until the page would grow too large."""
    size = 0
    for row in rows:
        kinds = _kinds(row)
        shown = folded(
            problems.get(row["problem_id"]),
            row["problem_id"],
            join([pill(row["verdict"], kinds[0]), [pill(_SHORT_FLAGS[kind], f"{kind} flag") for kind in kinds[1:]]]),
            _program(row, "candidate"),
            is_open=size == 0,
            class_=" ".join(f"is-{kind}" for kind in kinds),
        )
        size += len(shown)
        if size > _MAX_CHARACTERS:
            return
        yield shown
