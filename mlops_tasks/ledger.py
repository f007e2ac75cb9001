"""What a run has cost: device time spent, saved by hits, and lost to interruption, with its price where one is known.

The numbers are those that the runtime left in manifests and records of failures. A process that was killed outright leaves none, so
what is said to be lost is a lower bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlops_tasks.errors import Unavailable, UserError
from mlops_tasks.pipeline import every, places
from mlops_tasks.stage import Pointer, Run, Stage, artifact_prefix, decide
from mlops_tasks.store import Store


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
    stages = [pointer for pointer in pointers if pointer.prefix]
    spent, saved, counted = Amount(), Amount(), set[str]()
    # Two tasks may share an artifact; the one that ran comes first.
    for pointer in sorted(stages, key=lambda pointer: pointer.outcome != "run"):
        manifest = _manifest(run, pointer)
        amount = _amount(manifest, "device_seconds", "cost")
        # A task that was killed after its commit, and one that was cleared, are hits of what this very run has paid.
        is_paid = pointer.outcome == "run" or (_is_of(run, manifest) and pointer.prefix not in counted)
        spent, saved = (spent + amount, saved) if is_paid else (spent, saved + amount)
        counted.add(str(pointer.prefix))
    lost = Amount()
    for failure in _failures(run, counted | _unfinished(run, stages)):
        spent += _amount(failure, "device_seconds", "cost")
        lost += _amount(failure, "lost_device_seconds", "lost_cost")
    return Ledger(spent, saved, lost, run.environment.currency)


def _manifest(run: Run, pointer: Pointer) -> Mapping[str, Any]:
    artifact = run.store.version_at(str(pointer.prefix), str(pointer.digest))
    return artifact.manifest if artifact else {}


def _amount(record: Mapping[str, Any], seconds: str, cost: str) -> Amount:
    return Amount(float(record.get(seconds, 0.0)), record.get(cost))


def _is_of(run: Run, record: Mapping[str, Any]) -> bool:
    deployment = record.get("deployment") or record.get("environment", {}).get("deployment")
    return (record.get("run"), deployment) == (run.name, run.environment.deployment)


def _failures(run: Run, prefixes: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    for prefix in prefixes:
        yield from (record for record in failures(run.store, prefix) if _is_of(run, record))


def failures(store: Store, prefix: str) -> Iterator[Mapping[str, Any]]:
    """What the attempts at an artifact recorded that ended without it, whichever run's they were."""
    for name in store.children(f"{prefix}/failures"):
        yield store.read_json(f"{prefix}/failures/{name}") or {}


def _unfinished(run: Run, ended: Iterable[Pointer]) -> set[str]:
    """Where the tasks that have not ended would put what they make, as far as what they read is there."""
    done = {(pointer.task, pointer.index) for pointer in ended}
    found: set[str] = set()
    for task, index in places(run.spec):
        if (task.id, index) not in done and isinstance(task.run, Stage):
            try:
                decision = decide(run, task, index, tasks=every())
            except (Unavailable, UserError):
                continue
            if decision.components:
                found.add(artifact_prefix(task.run.name, decision.key))
    return found
