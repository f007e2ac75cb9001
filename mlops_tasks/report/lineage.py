"""The part of a report on what was made of what: a graph of the tasks, and every artifact with its inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from mlops_tasks.report import charts
from mlops_tasks.report.facts import SHORT, Facts, absent, anchor_of, pill, scrolling, section
from mlops_tasks.report.markup import Child, Markup, element
from mlops_tasks.stage import Pointer
from mlops_tasks.store import Artifact

Found = list[tuple[Pointer, Artifact]]


def lineage(facts: Facts) -> Markup:
    """Each artifact with what it was made of; every input leads to the artifact that gave it."""
    found = [
        (pointer, artifact) for pointer in facts.in_order() if (artifact := facts.artifact(pointer.task, pointer.index))
    ]
    if not found:
        return section("lineage", "Lineage", absent("No task of this run has an artifact."))
    makers = {artifact.prefix: pointer for pointer, artifact in reversed(found)}
    rows = [_artifact(facts, pointer, artifact, makers) for pointer, artifact in found]
    head = element("tr", [element("th", word) for word in ("artifact", "digest", "made from")])
    text = "A key names a result by everything that can change it; a digest is of its bytes. The links lead to the manifests in the store."
    return section(
        "lineage",
        "Lineage",
        element("p", text),
        element("div", _graph(facts, found, makers), class_="card"),
        scrolling("Artifacts and their inputs", element("table", head, rows), is_card=True),
        _registry(facts),
    )


def _graph(facts: Facts, found: Found, makers: Mapping[str, Pointer]) -> Markup:
    """Tasks, the mapped ones as one each, with lines to what is made of them; the table has every input."""
    counts = Counter(pointer.task for pointer, _ in found)
    labels = {task: task if count == 1 else f"{task} ×{count}" for task, count in counts.items()}
    parents: dict[str, dict[str, None]] = {task: {} for task in counts}
    for pointer, artifact in found:
        for given in artifact.manifest.get("inputs", {}).values():
            prefix = str(given.get("artifact"))
            maker = makers.get(prefix)
            # What no task of this run has made, such as the shards of a merge that was a hit; a name that no task has.
            above = maker.task if maker else f"earlier {prefix.partition('/')[0]}"
            if maker is None:
                labels[above] = _name_of_earlier(facts, prefix)
                parents.setdefault(above, {})
            parents[pointer.task][above] = None
    return charts.graph(labels, parents, title="What was made of what")


def _name_of_earlier(facts: Facts, prefix: str) -> str:
    champion = facts.run.spec.champion
    return "champion" if champion and champion.prefix == prefix else prefix.partition("/")[0]


def _artifact(facts: Facts, pointer: Pointer, artifact: Artifact, makers: Mapping[str, Pointer]) -> Markup:
    inputs = [
        element(
            "div",
            f"{name}: ",
            _input(facts, given, makers),
            " ",
            element("span", str(given.get("digest", ""))[:SHORT], class_="mono"),
        )
        for name, given in artifact.manifest.get("inputs", {}).items()
    ]
    title = element("div", facts.title(pointer), " ", pill(pointer.outcome, pointer.outcome))
    return element(
        "tr",
        element("td", title, element("div", _to_manifest(facts, artifact), class_="uri")),
        element("td", element("span", artifact.digest[:SHORT], class_="mono", title=artifact.digest)),
        element("td", inputs or "–", class_="inputs"),
        id=anchor_of(pointer),
    )


def _input(facts: Facts, given: Mapping[str, Any], makers: Mapping[str, Pointer]) -> Child:
    maker = makers.get(str(given.get("artifact")))
    if maker is not None:
        return element("a", facts.run.spec.label(maker.task, maker.index), href=f"#{anchor_of(maker)}")
    return element("span", str(given.get("artifact")), class_="uri")


def _to_manifest(facts: Facts, artifact: Artifact) -> Markup:
    """A link that works where the page lies in the store; elsewhere the text says the place."""
    up = "../" * len(facts.run.prefix.split("/"))
    return element("a", artifact.uri, href=f"{up}{artifact.prefix}/manifest.json")


def _registry(facts: Facts) -> Markup | None:
    version = facts.promotion.get("version")
    if version is None:
        return None
    words = f"Registered in MLflow at {facts.run.environment.mlflow_uri} as version {version} of {facts.run.spec.recipe.model.name}."
    return element("p", words, class_="note")
