"""The page of a study: what was tried, what it came to, and why the best is believed or not; self-contained as the page of a run is.

Everything but the cost comes from the artifact of `select`, so that the page can be written when the database of the study is gone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from mlops_tasks.algorithms.inference import CONFIDENCE
from mlops_tasks.report import charts
from mlops_tasks.report.charts import Axis, Bar, Dot, Path, Series, Span
from mlops_tasks.report.document import document, masthead
from mlops_tasks.report.facts import absent, duration, percent, pill, scrolling, section
from mlops_tasks.report.markup import Markup, element, join
from mlops_tasks.report.outcomes import tile
from mlops_tasks.store import Artifact

_WORDS = {"pass_at_1": "pass@1", "validation_loss": "validation loss, nats", "tokens_per_second": "tokens a second"}
_LESS_IS_BETTER = ("validation_loss",)


@dataclass(frozen=True)
class Trials:
    """All trials of a study that is done, as the artifact holds them."""

    selected: Artifact

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """All that were begun, in order, those that were killed too."""
        text = self.selected.path("trials.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    @cached_property
    def evidence(self) -> dict[str, Any]:
        """What the best one is believed by."""
        found: dict[str, Any] = json.loads(self.selected.path("evidence.json").read_text(encoding="utf-8"))
        return found

    @cached_property
    def complete(self) -> list[dict[str, Any]]:
        """Those that have a value, by slot."""
        return sorted((row for row in self.rows if row["values"]), key=lambda row: int(row["slot"]))

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe that was tuned."""
        found: dict[str, Any] = self.selected.manifest["components"]["config"]["recipe"]
        return found

    @property
    def tuning(self) -> dict[str, Any]:
        """Its part `tuning`."""
        found: dict[str, Any] = self.recipe["tuning"]
        return found

    @property
    def objective(self) -> str:
        """The first one."""
        return str(self.tuning["objectives"][0])

    def value(self, row: Mapping[str, Any]) -> float:
        """Of a complete trial."""
        return float(row["values"][self.objective])

    def is_best(self, row: Mapping[str, Any]) -> bool:
        """Whether it is the one that was chosen."""
        return bool(row["values"]) and row["slot"] == self.evidence["best_slot"]

    def detail(self, row: Mapping[str, Any]) -> str:
        """A trial in a line."""
        words = [f"{_WORDS[name]} {value:.4g}" for name, value in (row["values"] or {}).items()]
        settings = [f"{name} {_plain(value)}" for name, value in row["params"].items()]
        return f"slot {row['slot']}, {row['state']}: {', '.join([*words, *settings])}"


def page(selected: Artifact, *, cost: str) -> str:
    """The page as HTML.

    Args:
        selected: artifact of `select`.
        cost: of the study with all its trials, in words.
    """
    trials = Trials(selected)
    sections = {
        "evidence": ("Evidence", _evidence(trials)),
        "history": ("History", _history(trials)),
        "settings": ("Settings", _settings(trials)),
        "time": ("Time and cost", _time(trials, cost)),
        "trials": ("Trials", _table(trials)),
    }
    title = f"Tuning of {trials.recipe['name']}"
    return document(title, header=_header(trials, title), sections=sections, footer=f"Written from {selected.uri}.")


def _header(trials: Trials, title: str) -> Markup:
    metrics = trials.selected.metrics
    first = next((row for row in trials.complete if row["slot"] == 0), None)
    word = _WORDS[trials.objective]
    tiles = [
        tile(
            "trials", str(metrics["num_trials"]), f"{metrics['num_complete']} complete, {metrics['num_pruned']} pruned"
        ),
        tile(f"best {word}", _plain(metrics[f"best_{trials.objective}"]), f"slot {trials.evidence['best_slot']}"),
        tile("the recipe itself", _plain(trials.value(first)) if first else "–", "slot 0"),
        tile("steps saved", percent(metrics["steps_saved_share"]), "by pruning"),
        tile("started anew", str(metrics["num_failed"]), "trials whose worker ended"),
    ]
    verdict = pill("better", "passed") if metrics["is_better"] else pill("kept as it is", "skipped")
    asked = element("span", ", ".join(_WORDS[one] for one in trials.tuning["objectives"]))
    return masthead(title, eyebrow=[asked, verdict], lead=metrics["reason"], tiles=tiles)


def _evidence(trials: Trials) -> Markup:
    evidence, word = trials.evidence, _WORDS[trials.objective]
    measured = (
        "both were measured on the validation problems that trials were chosen by, so that the seeds alone are new, and the problems are not"
        if trials.objective == "validation_loss"
        else "both were measured on problems of the gate set that no trial was measured by"
    )
    text = (
        "The best of many trials looks better than it is. So it has learnt again with seeds that no trial had, beside the recipe as it was; "
        f"{measured}."
    )
    if not evidence["repeats"]:
        return section("evidence", "Evidence", element("p", text), absent(evidence["reason"]))
    head = element(
        "tr", element("th", "seed"), [element("th", name, class_="n") for name in ("recipe", "best", "difference")]
    )
    rows = [
        element(
            "tr",
            element("td", str(one["seed"])),
            [element("td", f"{value:.4f}", class_="n") for value in (one["recipe"], one["best"])],
            element("td", f"{one['best'] - one['recipe']:+.4f}", class_="n"),
        )
        for one in evidence["repeats"]
    ]
    interval = evidence["interval"]
    over = "seeds and problems" if trials.objective == "pass_at_1" else "seeds"
    sentence = (
        f"By how much it is better in {word}: {interval['difference']:+.4f}, {percent(CONFIDENCE)} interval {interval['low']:+.4f} to "
        f"{interval['high']:+.4f} (Student's t over {over}). One-sided p {interval['p_value']:.2g}; believed below "
        f"{1 - trials.tuning['confidence']:.2g}."
    )
    changes = [
        element(
            "tr",
            element("td", name),
            [element("td", "–" if one is None else _plain(one), class_="n") for one in values],
        )
        for name, values in evidence["differences"].items()
    ]
    settings = element("tr", element("th", "setting"), [element("th", name, class_="n") for name in ("recipe", "best")])
    return section(
        "evidence", "Evidence", element("p", text),
        element(
            "div",
            element("div", element("h3", "Side by side"), element("table", head, rows), element("p", sentence, class_="note"), class_="card"),
            element("div", element("h3", "What the best recipe changes"), element("table", settings, changes), class_="card"),
            class_="grid2",
        ),
    )  # fmt: skip


def _history(trials: Trials) -> Markup:
    if not trials.complete:
        return section("history", "History", absent("No trial was trained to its end."))
    y = _values_axis(trials)
    last = max(int(row["slot"] or 0) for row in trials.rows) or 1
    x = Axis("trial", [(place / last, f"{place:g}") for place in charts.ticks(0, last, 6)])
    dots = [
        Dot(row["slot"] / last, _place(trials.value(row), *_range(trials)), _kind(trials, row), trials.detail(row))
        for row in trials.complete
    ]
    dots += [
        Dot(row["slot"] / last, 0.0, "pruned", trials.detail(row)) for row in trials.rows if row["state"] == "pruned"
    ]
    steps = [(slot / last, _place(value, *_range(trials))) for slot, value in _best_so_far(trials)]
    figures = [charts.scatter(dots, x, y, title="Trials, and the best so far", steps=steps), _curves(trials)]
    if len(trials.tuning["objectives"]) > 1:
        figures.append(_front(trials))
    return section(
        "history", "History", element("div", [one for one in figures if one], class_="grid2"), _legend()
    )  # fmt: skip


def _best_so_far(trials: Trials) -> list[tuple[int, float]]:
    choose = min if trials.objective in _LESS_IS_BETTER else max
    found: list[tuple[int, float]] = []
    for row in trials.complete:
        best = choose(trials.value(row), found[-1][1]) if found else trials.value(row)
        found.append((row["slot"], best))
    return found


def _curves(trials: Trials) -> Markup | None:
    series = [
        Series(
            f"slot {row['slot']}",
            [(step, nats) for step, nats in row["curve"]],
            emphasis=1.0 if trials.is_best(row) else 0.35,
            is_dashed=row["state"] == "pruned",
        )
        for row in trials.rows
        if row["curve"] and row["state"] in ("complete", "pruned")
    ]
    if not series:
        return None
    title = "Validation losses; dashed where pruned"
    return charts.lines(series, x_label="step", y_label="nats a token", title=title, has_legend=False)


def _front(trials: Trials) -> Markup:
    first, second = trials.tuning["objectives"]
    ranges = [_ends([row["values"][name] for row in trials.complete]) for name in (first, second)]
    axes = [Axis(_WORDS[name], _marks(*ends)) for name, ends in zip((first, second), ranges, strict=True)]
    dots = [
        Dot(
            _place(row["values"][first], *ranges[0]),
            _place(row["values"][second], *ranges[1]),
            "best" if row["slot"] in trials.evidence["front"] else "complete",
            trials.detail(row),
        )
        for row in trials.complete
    ]
    return charts.scatter(dots, axes[0], axes[1], title="Both objectives; those that none beats stand out")


def _settings(trials: Trials) -> Markup:
    if not trials.complete:
        return section("settings", "Settings", absent("No trial was trained to its end."))
    names = list(trials.tuning["space"])
    axes = {name: _SettingAxis(name, trials.tuning["space"][name]) for name in names}
    importances = trials.evidence["importances"]
    bars = [Bar(name, share, percent(share)) for name, share in importances.items()]
    note = "How much of what sets the best complete trials apart goes with each setting (PED-ANOVA). Few trials say little, and pruned ones are left out."
    return section(
        "settings", "Settings",
        element(
            "div",
            element("h3", "Importances"),
            element("p", note, class_="note"),
            charts.bars(bars) if bars else absent("There are too few trials, or they came to the same."),
            class_="card",
        ),
        _parallel(trials, axes),
        element("h3", "Slices"),
        element("div", [_slice(trials, axis) for axis in axes.values()], class_="grid2"),
        _legend(),
    )  # fmt: skip


@dataclass(frozen=True)
class _SettingAxis:
    name: str
    given: Mapping[str, Any]

    @property
    def drawn(self) -> Axis:
        if self.given["kind"] == "choice":
            return Axis(self.name, [(self.place(one), _plain(one)) for one in self.given["choices"]])
        low, high = self.given["low"], self.given["high"]
        middle = math.sqrt(low * high) if self.given["log"] else (low + high) / 2
        marks = (low, middle, high) if self.given["kind"] == "float" else (low, high)
        return Axis(
            self.name + (" (log)" if self.given["log"] else ""), [(self.place(one), _plain(one)) for one in marks]
        )

    def place(self, value: Any) -> float:
        if self.given["kind"] == "choice":
            choices: Sequence[Any] = self.given["choices"]
            return (choices.index(value) + 0.5) / len(choices)
        low, high = self.given["low"], self.given["high"]
        if self.given["log"]:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return float((value - low) / (high - low))


def _parallel(trials: Trials, axes: Mapping[str, _SettingAxis]) -> Markup:
    value_axis = _values_axis(trials)
    ends = Axis(value_axis.label, [value_axis.marks[0], value_axis.marks[-1]])
    paths = []
    for row in trials.complete:
        height = _place(trials.value(row), *_range(trials))
        goodness = 1 - height if trials.objective in _LESS_IS_BETTER else height
        places = [axis.place(row["params"][name]) if name in row["params"] else None for name, axis in axes.items()]
        paths.append(Path([*places, height], 0.15 + 0.55 * min(max(goodness, 0.0), 1.0), trials.is_best(row)))
    drawn = [Axis(axis.drawn.label.rpartition(".")[2], axis.drawn.marks) for axis in axes.values()]
    return charts.parallel([*drawn, ends], paths, title="Parallel coordinates; the better, the darker")


def _slice(trials: Trials, axis: _SettingAxis) -> Markup:
    dots = [
        Dot(
            axis.place(row["params"][axis.name]),
            _place(trials.value(row), *_range(trials)),
            _kind(trials, row),
            trials.detail(row),
        )
        for row in trials.complete
        if axis.name in row["params"]
    ]
    return charts.scatter(dots, axis.drawn, _values_axis(trials), title=axis.name)


def _time(trials: Trials, cost: str) -> Markup:
    begun = [row for row in trials.rows if row["began"]]
    if not begun:
        return section("time", "Time and cost", absent("Nothing is known of when trials were begun."))
    start = min(datetime.fromisoformat(row["began"]) for row in begun)
    spans = [
        Span(
            str(row["worker"]),
            (datetime.fromisoformat(row["began"]) - start).total_seconds(),
            (datetime.fromisoformat(row["ended"] or row["began"]) - start).total_seconds(),
            _kind(trials, row),
            trials.detail(row),
        )
        for row in begun
    ]
    whole = duration(max(span.end for span in spans))
    text = f"{whole} from the first start to the last end, by process. A failed one ends when it was noticed that its worker was gone. {cost}"
    return section(
        "time", "Time and cost", element("p", text), charts.timeline(spans, unit="seconds", title="Who tried what when"), _legend()
    )  # fmt: skip


def _table(trials: Trials) -> Markup:
    names = list(trials.tuning["space"])
    heads = [
        "slot",
        "state",
        *(_WORDS[one] for one in trials.tuning["objectives"]),
        *(name.rpartition(".")[2] for name in names),
        "why",
    ]
    rows = [
        element(
            "tr",
            element("td", _plain(row["slot"]), class_="n"),
            element("td", row["state"]),
            [element("td", _plain(value), class_="n") for value in _values(trials, row)],
            [element("td", _plain(row["params"].get(name, "–")), class_="n") for name in names],
            element("td", row["why"] or "", class_="why"),
        )
        for row in sorted(trials.rows, key=lambda row: (row["slot"] is None, row["slot"], row["trial"]))
    ]
    head = element("tr", [element("th", one, class_="n" if place != 1 else None) for place, one in enumerate(heads)])
    return section("trials", "Trials", scrolling("Trials", element("table", head, rows), is_card=True))


def _values(trials: Trials, row: Mapping[str, Any]) -> list[Any]:
    return [(row["values"] or {}).get(name, "–") for name in trials.tuning["objectives"]]


def _kind(trials: Trials, row: Mapping[str, Any]) -> str:
    return "best" if trials.is_best(row) else str(row["state"])


def _values_axis(trials: Trials) -> Axis:
    return Axis(_WORDS[trials.objective], _marks(*_range(trials)))


def _range(trials: Trials) -> tuple[float, float]:
    return _ends([trials.value(row) for row in trials.complete])


def _ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.06 * (high - low or abs(high) or 1.0)
    return low - margin, high + margin


def _marks(low: float, high: float) -> list[tuple[float, str]]:
    return [(_place(value, low, high), charts.number(value)) for value in charts.ticks(low, high, 4)]


def _place(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low)


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _legend() -> Markup:
    words = (("best", "the best"), ("complete", "complete"), ("pruned", "pruned"), ("fail", "worker ended"))
    return join(
        [
            element(
                "ul", [element("li", element("b", class_=f"v-{kind}"), word) for kind, word in words], class_="legend"
            )
        ]
    )
