"""What MLflow is told of a study: a run for it, and below that one for each slot, however often its trial was begun.

Told as well as it can be, never at the study's cost: all of it is in the artifact too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from mlops_tasks import tracking
from mlops_tasks.errors import WmtpError
from mlops_tasks.stage import Run
from mlops_tasks.tuning.trials import NUM_STEPS, STEPS, WHY, WORKER

log = logging.getLogger(__name__)


def experiment_of(run: Run) -> str:
    """Where the runs of a study are filed."""
    return f"wmtp/tuning/{run.spec.recipe.name}"


def tell(run: Run, key: str, row: Mapping[str, Any]) -> None:
    """What is known of the trial that stands in a slot: parameters, its curve, what it came to, and why it was pruned.

    Args:
        run: which has a study.
        key: of the study.
        row: see `trials.row`.
    """
    curve = dict(row["curve"])
    values = {**(row["values"] or {}), **{name: row[name] for name in (STEPS, NUM_STEPS) if row[name] is not None}}
    attributes = {name: str(row[name]) for name in (WORKER, WHY) if row[name] is not None}
    try:
        tracking.log_trial(
            run.environment,
            study_key=key,
            experiment=experiment_of(run),
            slot=row["slot"],
            params=row["params"],
            curve=curve,
            metrics={name: float(value) for name, value in values.items()},
            tags={"state": row["state"], "trial": str(row["trial"]), **attributes},
            status="FINISHED" if row["state"] in ("complete", "pruned") else "RUNNING",
        )
    except WmtpError as error:
        log.warning("slot %d is not in MLflow: %s", row["slot"], error)


def tell_missing(run: Run, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Those slots that MLflow does not have as finished, because it or the worker was away at the time."""
    try:
        told = tracking.finished_slots(run.environment, study_key=key, experiment=experiment_of(run))
    except WmtpError as error:
        log.warning("trials are not in MLflow: %s", error)
        return
    # A slot is done once; what has failed in it before does not stand.
    for one in rows:
        if one["state"] in ("complete", "pruned") and one["slot"] not in told:
            tell(run, key, one)
