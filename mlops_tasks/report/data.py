"""The part of a report on what was learnt from and asked: how many problems of which kind, whose, and under which licence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlops_tasks.data.problems import SPLITS, Problem
from mlops_tasks.report import charts
from mlops_tasks.report.facts import Facts, absent, percent, pill, scrolling, section
from mlops_tasks.report.markup import Markup, element, join
from mlops_tasks.report.programs import code, folded
from mlops_tasks.store import Artifact

_USES = {
    "train": "learnt from",
    "validation": "watched while learning",
    "test": "held out",
    "prompt": "shown in prompts",
}
_COLUMNS = ("prompt", "solution", "tests", "io_tests", "source", "licence")
_NUM_EXAMPLES = 2
_NUM_BINS = 24


@dataclass(frozen=True)
class Split:
    """The problems of one split, counted."""

    name: str
    count: int
    prompt: tuple[float, float]
    """Median and 90th percentile, in characters."""
    solution: tuple[float, float]
    """The same, in lines."""
    tests: float
    """Median of a problem."""
    sources: dict[str, int]
    licences: dict[str, int]
    lengths: dict[str, list[int]]
    """Characters of each prompt, lines of each solution."""

    @classmethod
    def read(cls, name: str, path: Path) -> Split:
        """Count a table of problems, without the inputs and outputs of its tests."""
        table = pq.read_table(path, columns=list(_COLUMNS))
        lines = pc.count_substring(pc.utf8_rtrim_whitespace(table["solution"]), "\n").to_numpy() + 1
        characters = pc.utf8_length(table["prompt"])
        num_tests = pc.add(pc.list_value_length(table["tests"]), pc.list_value_length(table["io_tests"]))
        return cls(
            name,
            table.num_rows,
            _spread(characters),
            _spread(pa.array(lines)),
            _spread(num_tests)[0],
            _counts(table["source"]),
            _counts(table["licence"]),
            {"characters": characters.to_pylist(), "lines": lines.tolist()},
        )


def _spread(values: Any) -> tuple[float, float]:
    if len(values) == 0:
        return 0.0, 0.0
    middle, high = pc.quantile(values, q=[0.5, 0.9]).to_pylist()
    return float(middle), float(high)


def _counts(values: Any) -> dict[str, int]:
    return {one["values"]: one["counts"] for one in pc.value_counts(values).to_pylist()}


def card(facts: Facts) -> Markup:
    """Counts, lengths, licences, splits, whether the reference solutions pass, and a few problems."""
    data = facts.artifact("pull_data")
    if data is None:
        return section("data", "Data", absent(facts.why_absent("pull_data")))
    present = [name for name in SPLITS if f"{name}.parquet" in data.names]
    splits = [one for name in present if (one := Split.read(name, data.path(f"{name}.parquet"))).count]
    if not splits:
        return section("data", "Data", absent("The snapshot of the data holds no problem."))
    return section(
        "data",
        "Data",
        element("p", _in_words(facts, data, splits)),
        element("div", scrolling("Splits of the data", _table(splits)), _references(facts), class_="card"),
        element(
            "div",
            _lengths(splits, "characters", "Length of the prompts"),
            _lengths(splits, "lines", "Length of the reference solutions"),
            class_="grid2",
        ),
        _examples(data, present),
    )


def _in_words(facts: Facts, data: Artifact, splits: Sequence[Split]) -> str:
    source = facts.run.spec.recipe.data.source
    total = sum(one.count for one in splits)
    dropped, unsupported = data.metrics.get("num_dropped", 0), data.metrics.get("num_unsupported", 0)
    return (
        f"{total:,} problems from a source of the kind {source.kind}, pinned as {facts.run.spec.pins['pull_data'][:12]}. "
        f"{dropped} training problems were left out because they equal evaluation problems, {unsupported} because no program "
        f"could be judged by them.{_too_long(facts)}"
    )


def _too_long(facts: Facts) -> str:
    train = facts.artifact("train")
    if train is None or train.metrics.get("num_examples") is None:
        return ""
    used, left = train.metrics["num_examples"], train.metrics.get("num_too_long", 0)
    return f" {used:,} were learnt from, and {left} were longer than {facts.run.spec.recipe.text.max_length} tokens."


def _table(splits: Sequence[Split]) -> Markup:
    words = ("problems", "prompt, characters", "solution, lines", "tests")
    head = element(
        "tr",
        element("th", "split"),
        [element("th", word, class_="n") for word in words],
        element("th", "source, licence"),
    )
    rows = [
        element(
            "tr",
            element("td", one.name, element("small", _USES[one.name])),
            element("td", f"{one.count:,}", class_="n"),
            element("td", _median(one.prompt), class_="n"),
            element("td", _median(one.solution), class_="n"),
            element("td", f"{one.tests:g}", class_="n"),
            element("td", ", ".join(_named(one.sources)), "; ", ", ".join(_named(one.licences))),
        )
        for one in splits
    ]
    note = element("p", "Medians, and in brackets the 90th percentile.", class_="message")
    return join([element("table", head, rows), note])


def _median(spread: tuple[float, float]) -> str:
    return f"{spread[0]:,.0f} ({spread[1]:,.0f})"


def _named(counts: dict[str, int]) -> Iterator[str]:
    for name, count in sorted(counts.items(), key=lambda one: -one[1]):
        yield name if len(counts) == 1 else f"{name} {count:,}"


def _references(facts: Facts) -> Markup | None:
    """How many reference solutions pass their own tests, of the sets that were judged."""
    found = [(where, scores) for where in ("gate", "report") if (scores := facts.scores("candidate", where))]
    if not found:
        return None
    words = []
    for where, scores in found:
        passed, failed = scores["num_problems"], len(scores.get("unsupported", ()))
        words.append(f"{passed} of {passed + failed} of the {where} set ({percent(passed / (passed + failed))})")
    text = f"Reference solutions that pass their own tests here: {', '.join(words)}. Problems whose own does not are in no score."
    return element("p", text)


def _lengths(splits: Sequence[Split], unit: str, title: str) -> Markup:
    lengths = sorted(length for one in splits for length in one.lengths[unit])
    # A few very long ones would leave the rest in the first bar.
    longest = max(2, lengths[int(0.99 * (len(lengths) - 1))])
    width = max(1, -(-longest // _NUM_BINS))
    edges = list(range(1, longest + width + 1, width))
    counts = [0] * (len(edges) - 1)
    for length in lengths:
        counts[min((length - 1) // width, len(counts) - 1)] += 1
    return charts.histogram(
        edges, counts, x_label=f"{unit}; the last bar holds all longer ones", y_label="problems", title=title
    )


def _examples(data: Artifact, present: Sequence[str]) -> Markup | None:
    name = "train" if "train" in present else present[0]
    # The first ones only: a table of problems with many tests may be larger than memory.
    batch = next(pq.ParquetFile(data.path(f"{name}.parquet")).iter_batches(batch_size=_NUM_EXAMPLES), None)
    problems = [Problem.model_validate(row) for row in batch.to_pylist()] if batch else []
    shown = [
        folded(
            one, one.id, pill(one.split, "none"), join([element("pre", one.prompt), code(one.solution)]), is_open=False
        )
        for one in problems
    ]
    return join([element("h3", "Examples"), element("div", shown, class_="group")]) if shown else None
