"""The page, and the terminal's table, of two judged models on the same problems: figures, what may be chance, every flip.

Owns what is said of a comparison; what a comparison is, and when there can be one, is `evaluation.comparison`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import pyarrow.parquet as pq

from mlops_tasks.data.problems import Problem, read_problems
from mlops_tasks.evaluation.comparison import CONFIDENCE, Comparison, compare
from mlops_tasks.report import charts
from mlops_tasks.report.charts import Estimate
from mlops_tasks.report.document import document, masthead
from mlops_tasks.report.facts import VERDICTS, absent, percent, pill, scrolling, section
from mlops_tasks.report.markup import Child, Markup, element, join
from mlops_tasks.report.outcomes import percents, tile
from mlops_tasks.report.programs import Row, first_programs, flip
from mlops_tasks.store import Artifact

_FIGURES = (
    ("tests passed", "tests_passed_share"),
    ("exact match", "exact_match"),
    ("bits per byte of the references", "bits_per_byte"),
    ("answers read off the prompt", "num_reading_answer"),
    ("of these passed", "num_passed_reading_answer"),
)


@dataclass(frozen=True)
class Compared:
    """Two artifacts of `judge`, what they are called, and what comparing them came to."""

    a: Artifact
    b: Artifact
    names: tuple[str, str]
    result: Comparison

    @classmethod
    def of(cls, a: Artifact, b: Artifact, *, names: tuple[str, str], allow_differences: bool = False) -> Self:
        """Compare them.

        Raises:
            DataError: see `compare`.
        """
        return cls(a, b, (names[0], names[1]), compare(a, b, allow_differences=allow_differences))

    @property
    def scores(self) -> list[tuple[str, dict[str, Any]]]:
        """What each was found to be, by name."""
        return list(zip(self.names, (self.a.metrics, self.b.metrics), strict=True))

    @property
    def verdict(self) -> str:
        """What the interval says, in a sentence."""
        low, high = self.result.interval.low, self.result.interval.high
        if low <= 0 <= high:
            return "No difference is shown: the interval holds zero."
        better, worse = self.names if low > 0 else self.names[::-1]
        return f"{better} is better than {worse} on these problems."

    def problems(self) -> dict[str, Problem]:
        """The problems that were asked, as far as the store still has them."""
        given = self.a.manifest["inputs"]["data"]
        data = self.a.store.version_at(given["artifact"], given["digest"], given["files"])
        if data is None:
            return {}
        tables = [name for name in data.entries(*given["files"]) if name.endswith(".parquet")]
        return {problem.id: problem for name in tables for problem in read_problems(data.path(name))}


def in_words(compared: Compared) -> Iterator[str]:
    """Lines for a terminal."""
    result, width = compared.result, max(6, *map(len, compared.names)) + 2
    yield from (f"not asked alike: {difference}" for difference in result.differences)
    yield f"{'':<34}" + "".join(f"{name:>{width}}" for name in compared.names)
    for label, values in _table(compared):
        yield f"{label:<34}" + "".join(f"{value:>{width}}" for value in values)
    yield ""
    yield _difference_in_words(compared)
    yield _flips_in_words(compared)
    yield compared.verdict


def _table(compared: Compared) -> Iterator[tuple[str, list[str]]]:
    scores = [metrics for _, metrics in compared.scores]
    yield "problems", [str(one["num_problems"]) for one in scores]
    for k in scores[0]["pass_at_k"]:
        yield f"pass@{k}", [_figure(one["pass_at_k"].get(k)) for one in scores]
    for label, name in _FIGURES:
        yield label, [_figure(one.get(name)) for one in scores]


def _figure(value: Any) -> str:
    return "–" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _difference_in_words(compared: Compared) -> str:
    result = compared.result
    return (
        f"{compared.names[0]} minus {compared.names[1]} on {len(result.problem_ids)} problems: {100 * (result.a - result.b):+.1f} "
        f"points of pass@1, {CONFIDENCE:.0%} interval {100 * result.interval.low:+.1f} to {100 * result.interval.high:+.1f} "
        "(paired bootstrap)"
    )


def _flips_in_words(compared: Compared) -> str:
    test = compared.result.mcnemar
    return (
        f"Solved by the first program of {compared.names[0]} only: {test.only_a}, of {compared.names[1]} only: {test.only_b}; "
        f"McNemar's exact p {test.p_value:.3g}"
    )


def page(compared: Compared) -> str:
    """The page as HTML."""
    title = f"{compared.names[0]} against {compared.names[1]}"
    sections = {
        "figures": ("Figures", _figures(compared)),
        "flips": ("Flips", _flips(compared)),
    }
    return document(
        title,
        header=_header(compared, title),
        sections=sections,
        footer=f"{compared.names[0]} is {compared.a.uri}; {compared.names[1]} is {compared.b.uri}.",
    )


def _header(compared: Compared, title: str) -> Markup:
    result, asked = compared.result, compared.a.metrics
    words = (
        f"protocol {asked['protocol']}",
        f"{len(result.problem_ids)} problems",
        f"prompts {asked['prompt_sha256'][:12]}",
    )
    low, high = 100 * result.interval.low, 100 * result.interval.high
    tiles = [
        *(
            tile(f"pass@1, {name}", percent(scores["pass_at_k"]["1"]), percents(scores["pass_at_k_interval"]["1"]))
            for name, scores in compared.scores
        ),
        tile("difference, points", f"{100 * (result.a - result.b):+.1f}", f"{low:+.1f} to {high:+.1f}"),
        tile(
            "McNemar's p", f"{result.mcnemar.p_value:.2g}", f"{result.mcnemar.only_a} won, {result.mcnemar.only_b} lost"
        ),
    ]
    return masthead(
        title,
        eyebrow=[element("span", word) for word in words],
        lead=compared.verdict,
        notes=[element("p", f"Not asked alike: {difference}.", class_="note") for difference in result.differences],
        tiles=tiles,
    )


def _figures(compared: Compared) -> Markup:
    interval = compared.result.interval
    reach = max(abs(interval.low), abs(interval.high), 0.02) * 1.1
    difference = charts.estimates(
        [Estimate("difference", interval.difference, (interval.low, interval.high))],
        low=-reach,
        high=reach,
        mark=(0.0, "equal"),
        is_signed=True,
    )
    return section(
        "figures",
        "Figures",
        element("div", element("h3", "Difference"), element("p", _difference_in_words(compared), class_="note"), difference, class_="card"),
        element("div", element("h3", "pass@k"), _shares(compared), class_="card"),
        element("div", element("h3", "All figures"), _rows(compared), class_="card"),
    )  # fmt: skip


def _shares(compared: Compared) -> Markup:
    rows = [
        Estimate(f"{name}: pass@{k}", share, scores["pass_at_k_interval"].get(k), who)
        for who, (name, scores) in zip(("candidate", "baseline"), compared.scores, strict=True)
        for k, share in scores["pass_at_k"].items()
    ]
    reach = max(row.interval[1] if row.interval else row.value for row in rows)
    return charts.estimates(rows, low=0, high=min(1.0, max(1.08 * reach, 0.05)))


def _rows(compared: Compared) -> Markup:
    head = element("tr", element("th", ""), [element("th", name, class_="n") for name in compared.names])
    rows = [
        element("tr", element("td", label), [element("td", value, class_="n") for value in values])
        for label, values in _table(compared)
    ]
    endings = [
        element("tr", element("td", f"how {name} ended"), element("td", _ending(scores["verdicts"]), colspan=2))
        for name, scores in compared.scores
    ]
    legend = element("ul", [element("li", element("b", class_=f"v-{one}"), one) for one in VERDICTS], class_="legend")
    return join([scrolling("Scores side by side", element("table", head, rows, endings)), legend])


def _ending(verdicts: Mapping[str, int]) -> Markup:
    return charts.shares([(name, verdicts.get(name, 0)) for name in VERDICTS])


def _flips(compared: Compared) -> Markup:
    result, problems = compared.result, compared.problems()
    sides = _first_programs(compared.a), _first_programs(compared.b)
    kinds = (
        (f"only {compared.names[0]}", "passed", result.only_a),
        (f"only {compared.names[1]}", "failed", result.only_b),
    )
    parts: list[Child] = [element("p", _flips_in_words(compared) + ".")]
    for title, kind, ids in kinds:
        rows = [
            flip(
                problems.get(id),
                pill(title, kind),
                list(zip(compared.names, (side[id] for side in sides), strict=True)),
                is_open=position == 0,
            )
            for position, id in enumerate(ids)
        ]
        parts += [
            element("h3", f"Solved by {title}: {len(ids)}"),
            element("div", rows, class_="group") if rows else absent("None."),
        ]
    return section("flips", "Flips", *parts)


def _first_programs(judged: Artifact) -> dict[str, Row]:
    return first_programs(pq.read_table(judged.path("outcomes.parquet")).to_pylist())
