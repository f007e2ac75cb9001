"""A trial of a study, as it lies in the database and as it is kept when that is gone.

Owns the names of what is kept beside what Optuna keeps, which trial stands in a slot, and the row that pages and MLflow are told from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from mlops_tasks.config.space import Objective

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

SLOT, CHANGES, WORKER, WHY, STEPS, NUM_STEPS, CELL = "slot", "changes", "worker", "why", "steps", "num_steps", "cell"
"""What is kept of a trial beside what Optuna keeps."""
MOST_LOST = 3
"""Workers, or pods that it asks for, that one set of parameters may take with it; as often it may fail in one way."""
DIRECTIONS: dict[Objective, Literal["maximize", "minimize"]] = {
    "pass_at_1": "maximize",
    "validation_loss": "minimize",
    "tokens_per_second": "maximize",
}


def is_done(trial: FrozenTrial | None) -> bool:
    """Whether a slot has what was asked for."""
    return trial is not None and trial.state.name in ("COMPLETE", "PRUNED")


def standing(trials: Iterable[FrozenTrial]) -> dict[int, FrozenTrial]:
    """The trial that stands in each slot: the first that is done, or else the newest."""
    found: dict[int, FrozenTrial] = {}
    for trial in trials:
        slot = trial.user_attrs.get(SLOT)
        if slot is not None and not is_done(found.get(slot)):
            found[slot] = trial
    return found


def num_lost(trials: Iterable[FrozenTrial], last: FrozenTrial) -> int:
    """How many workers were lost in a trial's slot with its parameters; one that ended by itself has said why."""
    return sum(WHY not in one.user_attrs for one in _failed_alike(trials, last.user_attrs))


def num_failed(trials: Iterable[FrozenTrial], last: Mapping[str, Any]) -> int:
    """How many trials have failed in a trial's slot with its parameters, and by an error of the same class.

    Args:
        last: what is kept of that trial beside what Optuna keeps.
    """
    kind = last[WHY].partition(":")[0]
    return sum(one.user_attrs.get(WHY, "").partition(":")[0] == kind for one in _failed_alike(trials, last))


def _failed_alike(trials: Iterable[FrozenTrial], last: Mapping[str, Any]) -> Iterator[FrozenTrial]:
    failed = (one for one in trials if one.state.name == "FAIL" and CHANGES in one.user_attrs)
    point = (last[SLOT], last.get(CHANGES))
    return (one for one in failed if (one.user_attrs.get(SLOT), one.user_attrs[CHANGES]) == point)


def towards(objective: Objective, nats: float) -> float:
    """A validation loss as Optuna wants it, the better the nearer to the study's direction; and back."""
    return -nats if DIRECTIONS[objective] == "maximize" else nats


def saved_share(trials: Iterable[FrozenTrial]) -> float:
    """Of the steps that all trials would have taken, the share that pruning has left out."""
    told = [trial.user_attrs for trial in trials if NUM_STEPS in trial.user_attrs]
    planned = sum(one[NUM_STEPS] for one in told)
    return 1.0 - sum(one[STEPS] for one in told) / planned if planned else 0.0


def row(objectives: Sequence[Objective], trial: FrozenTrial) -> dict[str, Any]:
    """A trial as it is kept when the database is gone; validation losses by step are in nats."""
    # Optuna keeps a pruned trial's last report as its value, which is none of an objective.
    is_complete = trial.state.name == "COMPLETE"
    losses = {step: towards(objectives[0], value) for step, value in trial.intermediate_values.items()}
    return {
        "trial": trial.number,
        "slot": trial.user_attrs.get(SLOT),
        "state": trial.state.name.lower(),
        "params": trial.user_attrs.get(CHANGES, trial.params),
        "values": dict(zip(objectives, trial.values, strict=True)) if is_complete else None,
        "curve": [list(point) for point in sorted(losses.items())],
        "began": _iso(trial.datetime_start),
        "ended": _iso(trial.datetime_complete),
        **{name: trial.user_attrs.get(name) for name in (WORKER, WHY, STEPS, NUM_STEPS, CELL)},
    }


def _iso(at: datetime | None) -> str | None:
    return at.isoformat() if at else None
