"""The part of a report on how good the models are: the verdict, the scores, how the programs ended."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from mlops_tasks.report import charts
from mlops_tasks.report.charts import Estimate
from mlops_tasks.report.document import masthead
from mlops_tasks.report.facts import VERDICTS, Facts, absent, percent, pill, scrolling, section
from mlops_tasks.report.markup import Markup, element

_SETS = {"gate": "which decide", "report": "which are only shown"}
Measured: TypeAlias = tuple[str, str, dict[str, Any]]
"""candidate or baseline, gate or report, metrics."""


def verdict(facts: Facts) -> Markup:
    """The head of the page: what came of this night, in one line and a few numbers."""
    promotion = facts.promotion
    outcome = promotion.get("outcome", "none")
    label, before, after = {
        "promoted": ("promoted", "Version {} of ", " is the new champion"),
        "refused": ("refused", "Version {} of ", " stays a candidate"),
        "already champion": ("already champion", "Version {} of ", " is the champion already"),
        "none": ("no decision", "The candidate of ", " has not been decided on"),
    }[outcome]
    recipe = facts.run.spec.recipe
    return masthead(
        [before.format(promotion.get("version")), element("span", recipe.model.name), after],
        eyebrow=[pill(label, outcome.split()[0]), *_eyebrow(facts)],
        lead=promotion.get("reason") or facts.why_absent("promote"),
        tiles=_tiles(facts),
    )


def _eyebrow(facts: Facts) -> Iterable[Markup]:
    recipe = facts.run.spec.recipe
    words = (
        f"recipe {recipe.name}",
        f"scorer {recipe.scoring.scorer}",
        f"{recipe.train.num_heads} head{'s' if recipe.train.num_heads > 1 else ''}",
        facts.run.title,
        facts.run.spec.created[:16].replace("T", " "),
    )
    return (element("span", word) for word in words)


def _tiles(facts: Facts) -> Iterable[Markup]:
    for who, label in (("candidate", "candidate"), ("baseline", facts.baseline)):
        scores = facts.scores(who, "gate")
        if scores:
            yield tile(
                f"pass@1, {label}", percent(scores["pass_at_k"]["1"]), percents(scores["pass_at_k_interval"]["1"])
            )
    evidence = facts.promotion.get("evidence") or {}
    if evidence:
        low, high = 100 * evidence["low"], 100 * evidence["high"]
        yield tile(
            "difference, points",
            f"{100 * evidence['difference']:+.1f}",
            f"{low:+.1f} to {high:+.1f}",
        )
        yield tile(
            "McNemar's p",
            f"{evidence['mcnemar_p']:.2g}",
            f"{evidence['only_candidate']} won, {evidence['only_baseline']} lost",
        )
    train = facts.artifact("train")
    if train and train.metrics.get("validation_nats_after") is not None:
        before, after = train.metrics.get("validation_nats_before"), train.metrics["validation_nats_after"]
        yield tile("validation loss, nats", f"{after:.3f}", "" if before is None else f"before: {before:.3f}")


def tile(term: str, value: str, detail: str) -> Markup:
    """A figure of the page's head."""
    return element(
        "div",
        element("dt", term),
        element("dd", value, class_="big"),
        element("dd", detail, class_="small"),
        class_="tile",
    )


def percents(interval: Sequence[float]) -> str:
    """An interval of a share as text."""
    return f"{percent(interval[0])} to {percent(interval[1])}"


def _optional(value: float | None, written: Callable[[float], str]) -> str:
    return "–" if value is None else written(value)


def evaluation(facts: Facts) -> Markup:
    """pass@k with intervals, the difference that the gate decided on, and how the programs ended."""
    measured = [
        (who, where, scores)
        for where in _SETS
        for who in ("candidate", "baseline")
        if (scores := facts.scores(who, where))
    ]
    if not measured:
        return section("evaluation", "Evaluation", absent(facts.why_absent("judge")))
    scores = measured[0][2]
    how = (
        f"Every program was run against its problem's tests. Protocol {scores['protocol']}, {scores['num_samples']} "
        f"program{'s' if scores['num_samples'] > 1 else ''} a problem, temperature {scores['temperature']:g}, top-p {scores['top_p']:g}. "
        f"The baseline is the {facts.baseline}."
    )
    return section(
        "evaluation",
        "Evaluation",
        element("p", how),
        _unsupported(facts),
        _difference(facts),
        _scores(facts, measured),
        _endings(facts, measured),
    )


def _unsupported(facts: Facts) -> Markup | None:
    """Problems that no program could be judged by, so that nobody was asked for them."""
    data = facts.artifact("pull_data")
    if data is None or "unsupported.json" not in data.names:
        return None
    reasons: dict[str, str] = json.loads(data.path("unsupported.json").read_text(encoding="utf-8"))
    rows = [element("tr", element("td", id), element("td", reason)) for id, reason in reasons.items()]
    title = f"Unsupported problems of the data, for which no model was asked: {len(reasons)}"
    return element("details", element("summary", title), scrolling("Unsupported problems", element("table", rows)))


def _difference(facts: Facts) -> Markup | None:
    evidence = facts.promotion.get("evidence")
    if not evidence:
        return None
    reach = max(abs(evidence["low"]), abs(evidence["high"]), abs(evidence["min_difference"]), 0.02) * 1.1
    rows = [
        Estimate("difference", evidence["difference"], (evidence["low"], evidence["high"])),
        Estimate("its lower bound", evidence["lower_bound"], kind="baseline"),
    ]
    caption = (
        f"Candidate minus baseline on the gate set, in points of pass@1: paired bootstrap over {evidence['num_problems']} problems. "
        f"The gate wants the one-sided {evidence['confidence']:.0%} lower bound above the dashed line."
    )
    chart = charts.estimates(
        rows,
        low=-reach,
        high=reach,
        mark=(evidence["min_difference"], "gate"),
        is_signed=True,
    )
    return element("div", element("h3", "Is it better?"), element("p", caption, class_="note"), chart, class_="card")


def _scores(facts: Facts, measured: Sequence[Measured]) -> Markup:
    rows = [
        Estimate(f"{where} set, {label}: pass@{k}", share, scores["pass_at_k_interval"].get(k), who)
        for who, where, scores in measured
        for label in ("candidate" if who == "candidate" else facts.baseline,)
        for k, share in scores["pass_at_k"].items()
    ]
    sets = {where: scores["num_problems"] for _, where, scores in measured}
    text = "; ".join(
        f"the {where} set is {count} problems of the split {getattr(facts.run.spec.recipe.evaluation, where).split}, {_SETS[where]}"
        for where, count in sets.items()
    )
    reach = max(row.interval[1] if row.interval else row.value for row in rows)
    chart = charts.estimates(rows, low=0, high=min(1.0, max(1.08 * reach, 0.05)))
    return element(
        "div",
        element("h3", "pass@k"),
        element("p", f"{text[0].upper()}{text[1:]}. Whiskers are 95% intervals.", class_="note"),
        chart,
        class_="card",
    )


def _endings(facts: Facts, measured: Sequence[Measured]) -> Markup:
    rows = []
    for who, where, scores in measured:
        counts = scores["verdicts"]
        other = sum(count for name, count in counts.items() if name not in VERDICTS)
        reading = scores.get("num_passed_reading_answer")
        rows.append(
            element(
                "tr",
                element("td", f"{who}, {where} set"),
                element("td", charts.shares([*((name, counts.get(name, 0)) for name in VERDICTS), ("other", other)])),
                element("td", counts.get("passed", 0), class_="n"),
                element("td", "–" if reading is None else reading, class_="n"),
                element("td", percent(scores["exact_match"]), class_="n"),
                element("td", _optional(scores.get("tests_passed_share"), percent), class_="n"),
                element("td", _optional(scores.get("bits_per_byte"), "{:.3f}".format), class_="n"),
            )
        )
    head = element(
        "tr",
        element("th", "programs of"),
        element("th", "ended as"),
        [
            element("th", word, class_="n")
            for word in ("passed", "of these, read off", "exact match", "tests passed", "bits per byte")
        ],
    )
    legend = element(
        "ul", [element("li", element("b", class_=f"v-{name}"), name) for name in VERDICTS], class_="legend"
    )
    note = (
        "“Read off”: the program holds an answer that a test in its prompt shows, so that passing it proves little. “Tests passed”: "
        "mean share of a problem's tests. “Bits per byte”: what the model needs for the reference solutions; less is better."
    )
    return element(
        "div",
        element("h3", "How the programs ended"),
        scrolling("How the programs ended", element("table", head, rows)),
        legend,
        element("p", note, class_="message"),
        class_="card",
    )
