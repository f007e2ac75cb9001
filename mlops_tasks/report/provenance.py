"""The part of a report on where it all comes from: tasks and their time, the recipe, artifacts and their inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from mlops_tasks import ledger
from mlops_tasks.pipeline import EVALUATIONS, TASKS
from mlops_tasks.report.facts import Facts, absent, duration, pill, section
from mlops_tasks.report.markup import Child, Markup, element, join
from mlops_tasks.stage import Pointer
from mlops_tasks.store import Artifact

_SHORT = 12


def tasks(facts: Facts) -> Markup:
    """What each task came to, and what the hits saved."""
    found = list(_in_order(facts))
    if not found:
        return section("tasks", "Tasks", absent("No task of this run had ended when this page was written."))
    saved = {(pointer.task, pointer.index): _saved(facts, pointer) for pointer in found}
    spent, spared = sum(pointer.seconds for pointer in found), sum(saved.values())
    longest = max(*(pointer.seconds for pointer in found), *saved.values(), 0.001)
    rows = [_task(pointer, saved[pointer.task, pointer.index], longest, facts) for pointer in found]
    head = element(
        "tr",
        element("th", "task"),
        element("th", "outcome"),
        element("th", "time", class_="time"),
        element("th", class_="n"),
        element("th", "key"),
    )
    hits = sum(pointer.outcome == "hit" for pointer in found)
    text = (
        f"{duration(spent)} in all. {hits} of {len(found)} tasks were hits: their results were in the store already, "
        f"which saved {duration(spared)} (hollow bars)."
        if hits
        else f"{duration(spent)} in all. No task was a hit."
    )
    text += f" {ledger.of_run(facts.run, facts.pointers.values()).in_words()}"
    return section(
        "tasks", "Tasks", element("p", text), element("div", element("table", head, rows), class_="card scroll")
    )


def _in_order(facts: Facts) -> Iterator[Pointer]:
    for name in ("plan", *TASKS):
        for index in range(facts.run.spec.fan_out.get(name, 1)):
            if name != "report" and (pointer := facts.pointers.get((name, index))):
                yield pointer


def _saved(facts: Facts, pointer: Pointer) -> float:
    artifact = facts.artifact(pointer.task, pointer.index) if pointer.outcome == "hit" else None
    return float(artifact.manifest.get("seconds", 0.0)) if artifact else 0.0


def _task(pointer: Pointer, saved: float, longest: float, facts: Facts) -> Markup:
    spans = [element("span", style=f"width:{100 * pointer.seconds / longest:.1f}%")]
    if saved:
        spans = [element("span", style=f"width:{100 * saved / longest:.1f}%", class_="saved")]
    key = element("a", pointer.key[:_SHORT], href=f"#{_anchor(pointer)}", class_="mono") if pointer.key else ""
    return element(
        "tr",
        element("td", _title(facts, pointer)),
        element("td", pill(pointer.outcome, pointer.outcome)),
        element("td", spans if pointer.outcome != "skipped" else None, class_="time"),
        element("td", duration(pointer.seconds), class_="n"),
        element("td", key),
    )


def _title(facts: Facts, pointer: Pointer) -> Markup:
    """The label, and of mapped evaluations whose and on which set they are."""
    of = EVALUATIONS[pointer.index] if pointer.task in ("generate", "judge") else None
    return join(
        [facts.run.spec.label(pointer.task, pointer.index), element("small", f"{of[0]}, {of[1]} set") if of else None]
    )


def _anchor(pointer: Pointer) -> str:
    return f"artifact-{pointer.task}-{pointer.index}"


def recipe(facts: Facts) -> Markup:
    """The recipe as it was resolved, and what was pinned."""
    spec = facts.run.spec
    text = yaml.safe_dump(spec.recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    pins = yaml.safe_dump(
        {"pins": dict(spec.pins), "force": list(spec.force), "fan_out": dict(spec.fan_out)}, sort_keys=False
    )
    where = yaml.safe_dump(facts.run.environment.model_dump(mode="json"), sort_keys=False)
    return section(
        "recipe", "Configuration",
        [_yaml(title, body) for title, body in (("Recipe: what was learnt", text), ("Pinned by plan", pins), ("Environment: where it ran (in no key)", where))],
    )  # fmt: skip


def _yaml(title: str, text: str) -> Markup:
    return element("details", element("summary", title), element("div", element("pre", element("code", text))))


def lineage(facts: Facts) -> Markup:
    """Each artifact with what it was made of; every input leads to the artifact that gave it."""
    found = [
        (pointer, artifact) for pointer in _in_order(facts) if (artifact := facts.artifact(pointer.task, pointer.index))
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
        element("div", element("table", head, rows), class_="card scroll"),
        _registry(facts),
    )


def _artifact(facts: Facts, pointer: Pointer, artifact: Artifact, makers: Mapping[str, Pointer]) -> Markup:
    inputs = [
        element(
            "div",
            f"{name}: ",
            _input(facts, given, makers),
            " ",
            element("span", str(given.get("digest", ""))[:_SHORT], class_="mono"),
        )
        for name, given in artifact.manifest.get("inputs", {}).items()
    ]
    title = element("div", _title(facts, pointer), " ", pill(pointer.outcome, pointer.outcome))
    return element(
        "tr",
        element("td", title, element("div", _to_manifest(facts, artifact), class_="uri")),
        element("td", element("span", artifact.digest[:_SHORT], class_="mono", title=artifact.digest)),
        element("td", inputs or "–", class_="inputs"),
        id=_anchor(pointer),
    )


def _input(facts: Facts, given: Mapping[str, Any], makers: Mapping[str, Pointer]) -> Child:
    maker = makers.get(str(given.get("artifact")))
    if maker is not None:
        return element("a", facts.run.spec.label(maker.task, maker.index), href=f"#{_anchor(maker)}")
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
    return join([element("p", words, class_="note")])
