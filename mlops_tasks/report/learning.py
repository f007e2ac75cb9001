"""The part of a report on how the model learnt: curves of each head, and whether a head is right as often as it is sure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlops_tasks.report import charts
from mlops_tasks.report.charts import Series
from mlops_tasks.report.facts import Facts, absent, percent, scrolling, section
from mlops_tasks.report.markup import Markup, element, join
from mlops_tasks.store import Artifact


def training(facts: Facts) -> Markup:
    """Loss of each head, and what the training came to."""
    train = facts.artifact("train")
    if train is None:
        return section("training", "Training", absent(facts.why_absent("train")))
    steps = [line for line in facts.curves if "loss" in line]
    checks = [line for line in facts.curves if "validation_nats" in line]
    figures = [
        _losses(steps, "head_nats", "Training loss"),
        _losses(checks, "validation_head_nats", "Validation loss"),
        _curve(steps, "learning_rate", "Learning rate", ""),
        _curve(steps, "gradient_norm", "Norm of the gradient", ""),
    ]
    shown = [figure for figure in figures if figure is not None]
    text = "Cross-entropy a token, unweighted, of each head: head k predicts the token k ahead."
    return section(
        "training", "Training", element("p", text),
        element("div", shown, class_="grid2") if shown else absent("The training logged no curves."),
        _figures(train.metrics),
        _calibration(train),
    )  # fmt: skip


def _losses(lines: Sequence[Mapping[str, Any]], name: str, title: str) -> Markup | None:
    num_heads = max((len(line.get(name) or ()) for line in lines), default=0)
    series = [
        Series(f"head {head + 1}", points, emphasis=1.0 - 0.7 * head / max(num_heads - 1, 1))
        for head in range(num_heads)
        if (points := [(line["step"], line[name][head]) for line in lines if _has(line, name, head)])
    ]
    return charts.lines(series, x_label="step", y_label="nats a token", title=title) if series else None


def _has(line: Mapping[str, Any], name: str, head: int) -> bool:
    values = line.get(name) or ()
    return len(values) > head and values[head] is not None


def _curve(lines: Iterable[Mapping[str, Any]], name: str, title: str, unit: str) -> Markup | None:
    points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    return charts.lines([Series(title, points)], x_label="step", y_label=unit, title=title) if points else None


def _figures(metrics: Mapping[str, Any]) -> Markup:
    names = {
        "steps": "optimiser steps", "kept_step": "step that was kept", "stopped_early": "stopped early", "num_examples": "examples",
        "num_too_long": "left out as too long", "train_tokens": "tokens seen, prompts too", "tokens_per_second": "tokens a second",
        "validation_nats_before": "validation loss before", "validation_nats_after": "validation loss after", "resumed_from": "resumed from step",
        "num_trainable": "trainable parameters", "trainable_share": "share of all parameters",
    }  # fmt: skip
    known = {label: metrics[name] for name, label in names.items() if metrics.get(name) is not None}
    return element(
        "dl",
        [element("div", element("dt", label), element("dd", _plain(value))) for label, value in known.items()],
        class_="figures",
    )


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.0f}" if value >= 1000 or isinstance(value, int) else f"{value:.4g}"


def _calibration(train: Artifact) -> Markup:
    """Is a head right as often as it is sure?"""
    heading = element("h3", "Calibration of the heads")
    if "calibration.json" not in train.names:
        return join([heading, absent("The training measured no calibration; it was made by an earlier version.")])
    heads = json.loads(train.path("calibration.json").read_text(encoding="utf-8"))
    series = [
        Series(f"head {place + 1}", points, emphasis=1.0 - 0.7 * place / max(len(heads) - 1, 1))
        for place, head in enumerate(heads)
        if (points := [(one["confidence"], one["accuracy"]) for one in head if one["count"]])
    ]
    if not series:
        return join([heading, absent("There were no validation problems to measure it on.")])
    chart = charts.lines(
        [*series, Series("as sure as right", [(0.0, 0.0), (1.0, 1.0)], is_dashed=True, emphasis=0.5)],
        x_label="mean probability of the likeliest token",
        y_label="share in which it is the right one",
        title="Right as often as sure?",
    )
    note = (
        "On validation problems, with the model that is kept: tokens by how probable each head holds its likeliest one. "
        "Above the dashed line a head is better than it believes, below it is too sure. The expected calibration error is the mean distance."
    )
    table = scrolling("Calibration of each head", _sureness(heads), is_card=True)
    return join([heading, element("p", note, class_="note"), element("div", chart, table, class_="grid2")])


def _sureness(heads: Sequence[Sequence[Mapping[str, Any]]]) -> Markup:
    words = ("tokens", "right", "mean probability", "calibration error")
    head = element("tr", element("th", "head"), [element("th", word, class_="n") for word in words])
    rows = []
    for number, bins in enumerate(heads, start=1):
        total = sum(one["count"] for one in bins) or 1
        right = sum(one["count"] * one["accuracy"] for one in bins) / total
        sure = sum(one["count"] * one["confidence"] for one in bins) / total
        error = sum(one["count"] * abs(one["accuracy"] - one["confidence"]) for one in bins) / total
        cells = (f"{total:,}", percent(right), percent(sure), f"{100 * error:.1f} points")
        rows.append(element("tr", element("td", number), [element("td", cell, class_="n") for cell in cells]))
    return element("table", head, rows)
