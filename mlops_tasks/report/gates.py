"""The part of a report on the gates: what the candidate had to show, and what it showed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlops_tasks.report.facts import Facts, absent, pill, scrolling, section
from mlops_tasks.report.markup import Markup, element


def gates(facts: Facts) -> Markup:
    """Each gate with its numbers, and whether it is passed."""
    promotion = facts.promotion
    if not promotion:
        return section("gates", "Gates", absent(facts.why_absent("promote")))
    found = promotion.get("gates") or _of_evidence(promotion)
    if not found:
        return section("gates", "Gates", absent(f"No gate was asked: {promotion.get('reason', '')}"))
    failed = sum(not gate["passed"] for gate in found)
    text = f"Not passed: {failed} of {len(found)} gates." if failed else "Every gate is passed."
    head = element("tr", [element("th", word) for word in ("gate", "outcome", "numbers", "in words")])
    rows = [_gate(gate) for gate in found]
    return section(
        "gates",
        "Gates",
        element("p", f"{text} A candidate has to pass all of them to become the champion."),
        scrolling("What each gate says", element("table", head, rows), is_card=True),
    )


def _of_evidence(promotion: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The one gate of a decision that names none: the paired comparison."""
    evidence = promotion.get("evidence")
    if not evidence:
        return []
    names = (
        "candidate",
        "baseline",
        "difference",
        "lower_bound",
        "min_difference",
        "only_candidate",
        "only_baseline",
        "mcnemar_p",
    )
    numbers = {name: evidence[name] for name in names if name in evidence}
    # A promotion of before evidence said whether it passes.
    passed = evidence.get("passed", promotion.get("outcome") == "promoted")
    return [{"name": "better", "passed": passed, **numbers, "text": promotion.get("reason")}]


def _gate(gate: Mapping[str, Any]) -> Markup:
    passed = bool(gate["passed"])
    told = [
        element("div", f"{name.replace('_', ' ')}: ", element("b", _number(value)))
        for name, value in gate.items()
        if name not in ("name", "passed", "text") and value is not None
    ]
    return element(
        "tr",
        element("td", str(gate["name"]).replace("_", " ")),
        element("td", pill("passed" if passed else "not passed", "passed" if passed else "refused")),
        element("td", told or "–", class_="numbers"),
        element("td", gate.get("text") or "–", class_="words"),
    )


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " to ".join(map(_number, value)) if len(value) == 2 else ", ".join(map(_number, value))
    return str(value)
