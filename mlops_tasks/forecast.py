"""What a run would do, without running it: hits and runs, their minutes and price (`preview`), and what changed a key (`why`).

Reads the store and writes nothing. What a key is made of is `keys`'; what a task decides when it runs, `stage`'s.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from mlops_tasks import stage as runtime
from mlops_tasks.config.environment import Environment
from mlops_tasks.errors import Unavailable, UserError
from mlops_tasks.keys import differences
from mlops_tasks.pipeline import every, places, task_named
from mlops_tasks.stage import Input, Pointer, Run, Spec, Stage, Task
from mlops_tasks.store import MANIFEST, Artifact, Store

_NUM_EARLIER_RUNS = 20


@dataclass(frozen=True)
class _Preview(Run):
    """A run that is only thought of: its pointers are in memory."""

    seen: dict[tuple[str, int], Pointer] = field(default_factory=dict)

    def pointer(self, task: str, index: int = 0) -> Pointer | None:
        return self.seen.get((task, index))

    def point(self, pointer: Pointer) -> Pointer:
        self.seen[pointer.task, pointer.index] = pointer
        return pointer


@dataclass(frozen=True)
class Forecast:
    """What a task would do."""

    task: str
    index: int
    outcome: Literal["hit", "run", "skipped", "done", "waits"]
    """`waits`: something above it runs first, and what that yields decides."""
    seconds: float | None
    """What it took last time; None: never seen, or no work to do."""
    cost: float | None = None
    """Of these seconds; None: they are not known, or have no price."""
    components: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, tuple[Input, Artifact]] = field(default_factory=dict)
    artifact: Artifact | None = None


def preview(environment: Environment, spec: Spec) -> Iterator[Forecast]:
    """What each task of a run with this spec would do; starts nothing and writes nothing."""
    run = _Preview(Store.of(environment), environment, "runs/preview", spec)
    took = _earlier_seconds(environment, spec.recipe.name)
    for task, index in places(spec):
        yield _forecast(run, task, index, statistics.median(took[task.id]) if task.id in took else None)


def _forecast(run: _Preview, task: Task, index: int, seconds: float | None) -> Forecast:
    cost = _cost(run.environment, task, seconds)
    try:
        decision = runtime.decide(run, task, index, tasks=every())
    except Unavailable:
        return Forecast(task.id, index, "waits", seconds, cost)
    found = (decision.components, decision.inputs, decision.artifact)
    if decision.outcome == "hit" and task.id in run.spec.force:
        return Forecast(task.id, index, "run", seconds, cost, *found)
    if decision.outcome in ("hit", "skipped"):
        artifact = decision.artifact
        run.point(
            Pointer(
                task=task.id,
                index=index,
                stage=task.verb,
                outcome=decision.outcome,
                seconds=0.0,
                key=decision.key if artifact else None,
                digest=artifact.digest if artifact else None,
            )
        )
        seconds = cost = None
    return Forecast(task.id, index, decision.outcome, seconds, cost, *found)


def _cost(environment: Environment, task: Task, seconds: float | None) -> float | None:
    if seconds is None or not isinstance(task.run, Stage):
        return None
    return environment.cost(task.run.name, seconds * task.num_devices(environment))


def _earlier_seconds(environment: Environment, recipe: str) -> dict[str, list[float]]:
    """What each task took in earlier runs of a recipe; where it was a hit, what its artifact had taken."""
    took: dict[str, list[float]] = {}
    for run in itertools.islice(runtime.runs(environment, recipe=recipe), _NUM_EARLIER_RUNS):
        with suppress(UserError):  # of an older version
            pointers = run.pointers()
            hits = [pointer for pointer in pointers if pointer.outcome == "hit"]
            manifests = run.store.read_jsons([f"{hit.prefix}/{MANIFEST}" for hit in hits])
            made_in = [float(one["seconds"]) if one else None for one in manifests]
            ran = [pointer for pointer in pointers if pointer.outcome in ("run", "done")]
            for pointer, seconds in [*((one, one.seconds) for one in ran), *zip(hits, made_in, strict=True)]:
                if seconds is not None:
                    took.setdefault(pointer.task, []).append(seconds)
    return took


def why(environment: Environment, spec: Spec, name: str) -> list[str]:
    """Lines that say which parts of a task's key changed since the last run that had a result of it.

    Raises:
        UserError: no such task, one without a key, or none of a run with this spec.
    """
    task = task_named(name)
    if not isinstance(task.run, Stage):
        raise UserError(f"{name} is an action: it has no key and always runs.")
    there = {one.id: one for one, _ in places(spec)}
    if name not in there:
        asked = ", ".join(one.id for one in there.values() if isinstance(one.run, Stage))
        raise UserError(f"{name} is no task of a run with this spec, and `why` looks ahead at one. Ask about {asked}.")
    last = next((artifact for run in runtime.runs(environment) if (artifact := _result_of(run, name))), None)
    forecasts = list(preview(environment, spec))
    now = next(one for one in forecasts if one.task == name and one.index == 0)
    if now.outcome == "waits":
        above = [one.task for one in forecasts if one.outcome == "run"]
        return [f"{name} waits for {', '.join(dict.fromkeys(above))}, which would run; ask `why` of that first."]
    if now.outcome == "skipped":
        return [f"{name} is not needed by this recipe."]
    if last is None:
        return [f"{name} has no earlier result in this store."]
    return changes(last, now.components, now.inputs) or [f"nothing changed: {last.uri}"]


def changes(last: Artifact, components: Mapping[str, Any], inputs: Mapping[str, tuple[Input, Artifact]]) -> list[str]:
    """Lines that say what differs between the key of an artifact and another one: the setting, the file, the code's module, the package.

    Args:
        last: whose key is compared with.
        components: of the other key.
        inputs: what the other key's inputs are made of.
    """
    lines = differences(last.manifest["components"], components)
    files = {f"inputs.{name}": _changed_files(last, name, *given) for name, given in inputs.items()}
    return [f"{place}: {files[place]}" if files.get(place := line.partition(":")[0]) else line for line in lines]


def _changed_files(last: Artifact, name: str, wanted: Input, artifact: Artifact) -> str:
    """In words; empty where nobody knows any more what the old input was made of."""
    given = last.manifest["inputs"].get(name)
    before = last.store.version_at(given["artifact"], given["digest"], given["files"]) if given else None
    if before is None:
        return ""
    old, new = before.entries(*given["files"]), artifact.entries(*wanted.files)
    words = [
        f"{file} {'changed' if file in old and file in new else 'new' if file in new else 'gone'}"
        for file in sorted(old.keys() | new.keys())
        if old.get(file) != new.get(file)
    ]
    return ", ".join(words)


def _result_of(run: Run, task: str) -> Artifact | None:
    pointer = run.pointer(task)
    return run.store.find(pointer.prefix) if pointer and pointer.prefix else None
