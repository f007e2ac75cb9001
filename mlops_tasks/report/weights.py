"""The part of a report on how tokens were weighed: spread, mean by class of token, and a heat map over code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlops_tasks.report import charts
from mlops_tasks.report.charts import Bar, Series
from mlops_tasks.report.facts import Facts, absent, percent, section
from mlops_tasks.report.lexemes import CLASSES, token_classes
from mlops_tasks.report.markup import Markup, element, join

_NUM_SHOWN = 5
_MAX_SHOWN_TOKENS = 1500
_HEAT = 0.85
"""Opacity of the top of the scale."""
_TOP = 3.0
"""The scale reaches at least so far, so that uniform weights look pale and runs can be compared."""


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
        _by_class(facts.weights.get("examples") or []),
        _heat_map((facts.weights.get("examples") or [])[:_NUM_SHOWN]),
    )


def _by_class(weighed: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Mean weight of keywords, names, operators and so on."""
    found: dict[str, list[float]] = {name: [] for name in CLASSES}
    for one in weighed:
        learnt = [
            (token, weight) for token, weight in zip(one["tokens"], one["weights"], strict=True) if weight is not None
        ]
        for name, (_, weight) in zip(token_classes([token for token, _ in learnt]), learnt, strict=True):
            found[name].append(weight)
    total = sum(map(len, found.values()))
    if not total:
        return None
    rows = [
        Bar(f"{name}, {percent(len(values) / total)} of tokens", mean, f"{mean:.2f}")
        for name, values in found.items()
        if values
        for mean in (sum(values) / len(values),)
    ]
    caption = (
        f"Mean weight of {total:,} learnt tokens of {len(weighed)} training problems with the final model; the dashed line is the "
        "mean of all, 1. A token belongs where its first character does."
    )
    return element(
        "div",
        element("h3", "By class of token"),
        element("p", caption, class_="note"),
        charts.bars(rows, mark=1.0),
        class_="card",
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
        for token, weight in zip(one["tokens"][:_MAX_SHOWN_TOKENS], one["weights"], strict=False)
    ]
    return element(
        "div",
        element("div", f"training problem {one['problem_id']}", class_="who"),
        element("pre", tokens, class_="heat"),
    )
