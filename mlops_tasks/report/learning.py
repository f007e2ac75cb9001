"""The part of a report on how the model learnt: loss curves, token weights, the heat map."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlops_tasks.report import charts
from mlops_tasks.report.charts import Series
from mlops_tasks.report.facts import Facts, absent, percent, section
from mlops_tasks.report.markup import Markup, element, join

_HEAT = 0.85
"""Opacity of the top of the scale."""
_TOP = 3.0
"""The scale reaches at least so far, so that uniform weights look pale and runs can be compared."""


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


def weights(facts: Facts) -> Markup:
    """How the tokens were weighed: spread, effective sample size over time, and token by token on real code."""
    train = facts.artifact("train")
    if train is None:
        return section("weights", "Token weights", absent(facts.why_absent("train")))
    text = (
        "The weight that the loss gives a token; the mean over a document is 1. The effective sample size says how many equally weighted "
        f"tokens would count as much, as a share of all: {_share(train.metrics, 'weight_ess')} at the end, with an entropy of "
        f"{_share(train.metrics, 'weight_entropy')} of the uniform one."
    )
    if facts.run.spec.recipe.scoring.scorer == "uniform":
        text = "The scorer is uniform: every token has the weight 1. What follows is what that looks like."
    scores = facts.artifact("score")
    critic = scores.metrics.get("critic_verdict") if scores else None
    histogram = facts.weights.get("histogram") or {}
    spread = (
        charts.histogram(
            histogram["edges"],
            histogram["counts"],
            x_label="weight",
            y_label="tokens",
            title="How the weights are spread",
            mark=1.0,
        )
        if histogram.get("counts")
        else absent("The training kept no histogram of its weights.")
    )
    over_time = [
        Series(label, points, is_dashed=is_dashed)
        for name, label, is_dashed in (
            ("weight_ess", "effective sample size", False),
            ("weight_entropy", "entropy", True),
        )
        if (points := [(line["step"], line[name]) for line in facts.curves if line.get(name) is not None])
    ]
    figure = (
        charts.lines(over_time, x_label="step", y_label="share", title="Effective sample size and entropy")
        if over_time
        else None
    )
    return section(
        "weights",
        "Token weights",
        element("p", text),
        element("p", f"The {critic}.") if critic else None,
        element("div", spread, figure, class_="grid2"),
        _heat_map(facts.weights.get("examples") or []),
    )


def _share(metrics: Mapping[str, Any], name: str) -> str:
    value = metrics.get(name)
    return "an unknown share" if value is None else percent(value)


def _heat_map(shown: Sequence[Mapping[str, Any]]) -> Markup:
    heading = element("h3", "On real code")
    if not shown:
        return join([heading, absent("The training kept no weighed examples.")])
    top = max([_TOP, *(weight for one in shown for weight in one["weights"] if weight is not None)])
    scale = element(
        "p",
        "0",
        element("span", class_="ramp"),
        f"{top:.2f}. Grey is the prompt, which is given and not learnt; point at a token for its weight.",
        class_="message",
    )
    return join([heading, scale, element("div", [_weighed(one, top) for one in shown], class_="grid2")])


def _weighed(one: Mapping[str, Any], top: float) -> Markup:
    tokens = [
        element("span", token, class_="given")
        if weight is None
        else element(
            "span", token.replace("\n", "↵\n"), style=f"--w:{_HEAT * weight / top:.3f}", title=f"weight {weight:.2f}"
        )
        for token, weight in zip(one["tokens"], one["weights"], strict=True)
    ]
    return element(
        "div",
        element("div", f"training problem {one['problem_id']}", class_="who"),
        element("pre", tokens, class_="heat"),
    )
