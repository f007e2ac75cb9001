"""The part of a report on what happened: what each task came to, why those that ran had to, and what it cost."""

from __future__ import annotations

from collections.abc import Iterator

from mlops_tasks import ledger
from mlops_tasks.forecast import changes
from mlops_tasks.ledger import Amount
from mlops_tasks.report import charts
from mlops_tasks.report.charts import Bar
from mlops_tasks.report.facts import SHORT, Facts, absent, anchor_of, duration, pill, scrolling, section
from mlops_tasks.report.markup import Child, Markup, element, join
from mlops_tasks.stage import Input, Pointer
from mlops_tasks.store import Artifact

_MAX_CHANGES = 6


def tasks(facts: Facts) -> Markup:
    """What each task came to and why, and what the hits saved."""
    found = list(facts.in_order())
    if not found:
        return section("tasks", "What happened", absent("No task of this run had ended when this page was written."))
    saved = {(pointer.task, pointer.index): _saved(facts, pointer) for pointer in found}
    spent, spared = sum(pointer.seconds for pointer in found), sum(saved.values())
    longest = max(*(pointer.seconds for pointer in found), *saved.values(), 0.001)
    rows = [_task(pointer, saved[pointer.task, pointer.index], longest, facts) for pointer in found]
    head = element(
        "tr",
        element("th", "task"),
        element("th", "outcome"),
        element("th", "time", class_="time"),
        element("th", "seconds", class_="n"),
        element("th", "why"),
        element("th", "key"),
    )
    hits = sum(pointer.outcome == "hit" for pointer in found)
    text = (
        f"{duration(spent)} in all. {hits} of {len(found)} tasks were hits: their results were in the store already, "
        f"which saved {duration(spared)} (hollow bars)."
        if hits
        else f"{duration(spent)} in all. No task was a hit."
    )
    return section(
        "tasks",
        "What happened",
        element("p", f"{text} {_compared_with(facts)}"),
        scrolling("What each task came to", element("table", head, rows), is_card=True),
    )


def _compared_with(facts: Facts) -> str:
    last = facts.last_run
    if last is None:
        return f"It is the first run of the recipe {facts.run.spec.recipe.name} in this store."
    return f"Why a task ran is told against its last result in an earlier run of this recipe; the last one is {last.title}."


def _saved(facts: Facts, pointer: Pointer) -> float:
    artifact = facts.artifact(pointer.task, pointer.index) if pointer.outcome == "hit" else None
    return float(artifact.manifest.get("seconds", 0.0)) if artifact else 0.0


def _task(pointer: Pointer, saved: float, longest: float, facts: Facts) -> Markup:
    spans = [element("span", style=f"width:{100 * pointer.seconds / longest:.1f}%")]
    if saved:
        spans = [element("span", style=f"width:{100 * saved / longest:.1f}%", class_="saved")]
    key = element("a", pointer.key[:SHORT], href=f"#{anchor_of(pointer)}", class_="mono") if pointer.key else ""
    return element(
        "tr",
        element("td", facts.title(pointer)),
        element("td", pill(pointer.outcome, pointer.outcome)),
        element("td", spans if pointer.outcome != "skipped" else None, class_="time"),
        element("td", duration(pointer.seconds), class_="n"),
        element("td", [element("div", reason) for reason in _reasons(facts, pointer)], class_="why"),
        element("td", key),
    )


def _reasons(facts: Facts, pointer: Pointer) -> Iterator[str]:
    """Why a task came to what it did, a line each."""
    if pointer.outcome == "hit":
        yield "nothing that its key covers changed"
    elif pointer.outcome == "skipped":
        yield "not needed"
    if pointer.outcome != "run":
        return
    if pointer.task in facts.run.spec.force:
        yield "forced"
    artifact, last = facts.artifact(pointer.task, pointer.index), facts.last_result(pointer.task, pointer.index)
    if artifact is None:
        return
    if last is None:
        yield "no earlier result"
        return
    lines = changes(last, artifact.manifest.get("components", {}), _made_from(artifact))
    yield from lines[:_MAX_CHANGES]
    if lines[_MAX_CHANGES:]:
        yield f"… and {len(lines) - _MAX_CHANGES} more: wmtp why {pointer.task}"
    if not lines:
        yield "the same key: its earlier result was made anew"


def _made_from(artifact: Artifact) -> dict[str, tuple[Input, Artifact]]:
    """The inputs of an artifact that are still whole."""
    given = artifact.manifest.get("inputs", {})
    found = {
        name: artifact.store.version_at(one["artifact"], one["digest"], one["files"]) for name, one in given.items()
    }
    return {name: (Input(name, files=tuple(given[name]["files"])), one) for name, one in found.items() if one}


def cost(facts: Facts) -> Markup:
    """The ledger: device time and money, spent, saved and lost."""
    found = ledger.of_run(facts.run, facts.pointers.values())
    if not any(pointer.prefix for pointer in facts.pointers.values()):
        return section("cost", "Cost", absent("No task of this run had made anything when this page was written."))
    parts = (("spent", found.spent), ("saved by hits", found.saved), ("lost to interruption", found.lost))
    priced = any(amount.cost is not None for _, amount in parts)
    text = (
        "Seconds of devices (cores' or accelerators' processes), with what they cost by the prices of the environment file. "
        if priced
        else "Seconds of devices. The environment file has no prices, so no money is told. "
    )
    text += "What was lost is a part of what was spent, and a lower bound: a process that was killed outright leaves no record."
    figures = [
        element("div", element("dt", label), element("dd", _amount(amount, found.currency))) for label, amount in parts
    ]
    bars = _by_task(facts)
    chart = element("div", element("h3", "Spent by task"), charts.bars(bars), class_="card") if bars else None
    return section("cost", "Cost", element("p", text), element("dl", figures, class_="figures"), chart)


def _amount(amount: Amount, currency: str) -> Child:
    money = None if amount.cost is None else element("small", f" {amount.cost:.2f} {currency}")
    return join([f"{amount.device_seconds:,.0f} s", money])


def _by_task(facts: Facts) -> list[Bar]:
    spent: dict[str, float] = {}
    for pointer in facts.in_order():
        artifact = facts.artifact(pointer.task, pointer.index) if pointer.outcome == "run" else None
        if artifact and "device_seconds" in artifact.manifest:
            spent[pointer.task] = spent.get(pointer.task, 0.0) + float(artifact.manifest["device_seconds"])
    return [Bar(task, seconds, duration(seconds)) for task, seconds in spent.items()]
