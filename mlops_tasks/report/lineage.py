"""The part of a report on what was made of what: a graph of the tasks, and every artifact with its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlops_tasks.report import charts
from mlops_tasks.report.facts import SHORT, Facts, absent, anchor_of, pill, section
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
        element("div", _graph(found, makers), class_="card"),
        element("div", element("table", head, rows), class_="card scroll"),
        _registry(facts),
    )


def _graph(found: Found, makers: Mapping[str, Pointer]) -> Markup:
    """Tasks, the mapped ones as one each, with arrows to what is made of them."""
    counts: dict[str, int] = {}
    parents: dict[str, dict[str, None]] = {}
    for pointer, artifact in found:
        counts[pointer.task] = counts.get(pointer.task, 0) + 1
        above = parents.setdefault(pointer.task, {})
        for given in artifact.manifest.get("inputs", {}).values():
            maker = makers.get(str(given.get("artifact")))
            above[maker.task if maker else _OUTSIDE] = None
    if any(_OUTSIDE in above for above in parents.values()):
        parents, counts = {_OUTSIDE: {}, **parents}, {_OUTSIDE: 1, **counts}
    labels = {task: task if count == 1 else f"{task} ×{count}" for task, count in counts.items()}
    return charts.graph(labels, parents, title="What was made of what")


_OUTSIDE = "champion"
"""The only artifact that a run reads and none of its tasks has made."""


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
