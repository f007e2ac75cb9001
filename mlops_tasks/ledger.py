"""What a run has cost, a study with all its trials: device time spent, saved by hits, and lost to interruption, with its price where one is known.

The numbers are those that the runtime left in manifests and records of failures. A process that was killed outright leaves none, so
what is said to be lost is a lower bound.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlops_tasks.errors import Unavailable, UserError
from mlops_tasks.pipeline import SELECT, TASKS, every, places
from mlops_tasks.stage import Pointer, Run, Stage, Task, artifact_prefix, cell_prefixes, decide
from mlops_tasks.store import Store
from mlops_tasks.tuning import key_begun


@dataclass(frozen=True)
class Amount:
    """Device time, and what it costs."""

    device_seconds: float = 0.0
    cost: float | None = None
    """None: no price was known."""

    def __add__(self, other: Amount) -> Amount:
        known = [one.cost for one in (self, other) if one.cost is not None]
        return Amount(self.device_seconds + other.device_seconds, sum(known) if known else None)

    def in_words(self, currency: str) -> str:
        """Both, for people."""
        cost = "" if self.cost is None else f" ({self.cost:.2f} {currency})"
        return f"{self.device_seconds:.0f}{cost}"


@dataclass(frozen=True)
class Ledger:
    """Of one run."""

    spent: Amount
    saved: Amount
    lost: Amount
    """A part of what was spent."""
    currency: str

    def in_words(self) -> str:
        """One sentence."""
        spent, saved, lost = (amount.in_words(self.currency) for amount in (self.spent, self.saved, self.lost))
        return f"Device-seconds: {spent} spent, {saved} saved by hits, {lost} lost to interruption."


def of_run(run: Run, pointers: Iterable[Pointer]) -> Ledger:
    """The ledger of a run, as far as it has come."""
    parts = _parts(run, [pointer for pointer in pointers if pointer.prefix])
    names = {part.run.name for part in parts}
    spent, saved, counted = Amount(), Amount(), set[str]()
    # Two tasks may share an artifact; the one that ran comes first.
    for pointer in sorted(itertools.chain(*(part.made for part in parts)), key=lambda one: one.outcome != "run"):
        if len(parts) > 1 and pointer.prefix in counted:
            continue  # trials would share it without any hit
        manifest = _manifest(run, pointer)
        amount = _amount(manifest, "device_seconds", "cost")
        # A task that was killed after its commit, and one that was cleared, are hits of what this very run has paid.
        is_paid = pointer.outcome == "run" or (_is_of(run, names, manifest) and pointer.prefix not in counted)
        spent, saved = (spent + amount, saved) if is_paid else (spent, saved + amount)
        counted.add(str(pointer.prefix))
    lost = Amount()
    for failure in _failures(run, names, counted.union(*map(_unfinished, parts))):
        spent += _amount(failure, "device_seconds", "cost")
        lost += _amount(failure, "lost_device_seconds", "lost_cost")
    return Ledger(spent, saved, lost, run.environment.currency)


@dataclass(frozen=True)
class _Part:
    """A run, or one of a study's trials."""

    run: Run
    made: Sequence[Pointer]
    places: Sequence[tuple[Task, int]]
    """Where it may have failed."""


def _parts(run: Run, made: Sequence[Pointer]) -> list[_Part]:
    """The run, and what its study has tried; that is none of its business where another run had made it all before."""
    key = key_begun(run) if run.spec.is_study else None
    selected = next((pointer for pointer in made if pointer.task == SELECT.name), None)
    is_found = selected and selected.outcome == "hit" and not _is_of(run, {run.name}, _manifest(run, selected))
    if key is None or is_found:
        return [_Part(run, made, places(run.spec))]
    trials = list(_trials(run, key))
    if not trials:  # not begun, or `gc` took them away
        return [_Part(run, made, places(run.spec))]
    # What `select` has cost, its trainings have.
    rest = _Part(
        run,
        [pointer for pointer in made if pointer.task != SELECT.name],
        [place for place in places(run.spec) if place[0].id != SELECT.name],
    )
    return [rest, *trials]


def _trials(run: Run, key: str) -> Iterator[_Part]:
    for prefix in cell_prefixes(run.store, artifact_prefix(SELECT.name, key)):
        try:
            trial = Run.open(run.environment, prefix)
            made = [pointer for pointer in trial.pointers() if pointer.prefix]
        except UserError:  # it was not begun, or by another version
            continue
        yield _Part(trial, made, [(TASKS["train"], 0)])


def _manifest(run: Run, pointer: Pointer) -> Mapping[str, Any]:
    artifact = run.store.version_at(str(pointer.prefix), str(pointer.digest))
    return artifact.manifest if artifact else {}


def _amount(record: Mapping[str, Any], seconds: str, cost: str) -> Amount:
    return Amount(float(record.get(seconds, 0.0)), record.get(cost))


def _is_of(run: Run, names: Collection[str], record: Mapping[str, Any]) -> bool:
    deployment = record.get("deployment") or record.get("environment", {}).get("deployment")
    return record.get("run") in names and deployment == run.environment.deployment


def _failures(run: Run, names: Collection[str], prefixes: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    for prefix in prefixes:
        yield from (record for record in failures(run.store, prefix) if _is_of(run, names, record))


def failures(store: Store, prefix: str) -> Iterator[Mapping[str, Any]]:
    """What the attempts at an artifact recorded that ended without it, whichever run's they were."""
    for name in store.children(f"{prefix}/failures"):
        yield store.read_json(f"{prefix}/failures/{name}") or {}


def _unfinished(part: _Part) -> set[str]:
    """Where the tasks that have not ended would put what they make, as far as what they read is there."""
    done = {(pointer.task, pointer.index) for pointer in part.made}
    found: set[str] = set()
    for task, index in part.places:
        if (task.id, index) not in done and isinstance(task.run, Stage):
            try:
                decision = decide(part.run, task, index, tasks=every())
            except (Unavailable, UserError):
                continue
            if decision.components:
                found.add(artifact_prefix(task.run.name, decision.key))
    return found
