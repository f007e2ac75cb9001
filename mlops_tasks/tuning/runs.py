"""What MLflow is told of a study: a run for it, and below that one for each slot, however often its trial was begun.

Told as well as it can be, never at the study's cost: all of it is in the artifact too.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mlops_tasks import tracking
from mlops_tasks.errors import WmtpError
from mlops_tasks.tuning.study import CHANGES, DIRECTIONS, NUM_STEPS, STEPS, WHY, WORKER, Study

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)


def experiment_of(study: Study) -> str:
    """Where the runs of a study are filed."""
    return f"wmtp/tuning/{study.recipe.name}"


def tell_trial(study: Study, slot: int) -> None:
    """What is known of a slot's trial now: parameters, its curve, what it came to, and why it was pruned."""
    trial = study.slots()[slot]
    state = trial.state.name.lower()
    attributes = {name: str(trial.user_attrs[name]) for name in (WORKER, WHY) if name in trial.user_attrs}
    try:
        tracking.log_trial(
            study.run.environment,
            study_key=study.key,
            experiment=experiment_of(study),
            slot=slot,
            params=trial.user_attrs.get(CHANGES, {}),
            curve=curve_of(study, trial),
            metrics=_metrics(study, trial),
            tags={"state": state, "trial": str(trial.number), **attributes},
            status="FINISHED" if state in ("complete", "pruned") else "RUNNING",
        )
    except WmtpError as error:
        log.warning("slot %d is not in MLflow: %s", slot, error)


def curve_of(study: Study, trial: FrozenTrial) -> dict[int, float]:
    """Validation losses in nats by step, as the pruner was told of them."""
    sign = -1.0 if DIRECTIONS[study.objectives[0]] == "maximize" else 1.0
    return {step: sign * value for step, value in trial.intermediate_values.items()}


def _metrics(study: Study, trial: FrozenTrial) -> dict[str, float]:
    # Optuna keeps a pruned trial's last report as its value, which is none of an objective.
    values = dict(zip(study.objectives, trial.values, strict=True)) if trial.state.name == "COMPLETE" else {}
    steps = {name: trial.user_attrs[name] for name in (STEPS, NUM_STEPS) if name in trial.user_attrs}
    return {str(name): float(value) for name, value in {**values, **steps}.items()}
