"""The part of a report on what the run was told: what differs from the last run, and all of it."""

from __future__ import annotations

from typing import Any

from mlops_tasks.config.loading import as_yaml
from mlops_tasks.keys import differences
from mlops_tasks.report.facts import Facts, scrolling, section
from mlops_tasks.report.markup import Markup, element
from mlops_tasks.stage import Run, artifact_prefix


def recipe(facts: Facts) -> Markup:
    """The recipe as it was resolved, what was pinned, and what of both is new."""
    spec = facts.run.spec
    parts = {
        "Recipe: what was learnt": spec.recipe.model_dump(mode="json"),
        "Pinned by plan": {**_pinned(facts.run), "force": list(spec.force), "fan_out": dict(spec.fan_out)},
        "Environment: where it ran (in no key)": facts.run.environment.model_dump(mode="json"),
    }
    return section(
        "recipe", "Configuration", _study(facts), _changed(facts), [_yaml(title, body) for title, body in parts.items()]
    )


def _pinned(run: Run) -> dict[str, Any]:
    spec = run.spec.model_dump(mode="json", include={"pins", "champion", "tuned"})
    return {name: spec[name] for name in ("pins", "champion", "tuned")}


def _study(facts: Facts) -> Markup | None:
    """Which study the recipe is the result of, if it is one's."""
    tuned = facts.run.spec.tuned
    if tuned is None:
        return None
    words = f"The recipe is tuned:{tuned.name}, what a study has found: {facts.run.store.uri}/{artifact_prefix('select', tuned.key)}, with the digest "
    return element("p", words, element("span", tuned.digest, class_="mono"), ".")


def _changed(facts: Facts) -> Markup:
    last = facts.last_run
    if last is None:
        return element(
            "p", f"The first run of the recipe {facts.run.spec.recipe.name}: there is nothing to compare with."
        )
    old, new = ({"recipe": run.spec.recipe.model_dump(mode="json"), **_pinned(run)} for run in (last, facts.run))
    lines = differences(old, new)
    if not lines:
        return element("p", f"The same recipe, data, models and champion as in the last run, {last.title}.")
    rows = [element("tr", element("td", _place(line)), element("td", _values(line), class_="mono")) for line in lines]
    return element(
        "div",
        element("h3", f"What differs from the last run: {len(lines)}"),
        element("p", f"Against {last.title}.", class_="note"),
        scrolling("What differs from the last run", element("table", rows)),
        class_="card",
    )


def _place(line: str) -> str:
    return line.partition(": ")[0]


def _values(line: str) -> str:
    return line.partition(": ")[2]


def _yaml(title: str, tree: Any) -> Markup:
    text = as_yaml(tree)
    return element("details", element("summary", title), element("div", element("pre", element("code", text))))
