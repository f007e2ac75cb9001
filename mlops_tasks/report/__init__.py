"""One self-contained HTML page about a run: no network, no scripts, every text escaped.

Owns the page and the action that writes it. What is shown comes from the run's pointers and artifacts and from nowhere else;
a part whose task was skipped or has not ended says so. Its sections are the modules beside it.
"""

from __future__ import annotations

import logging
from typing import Any

from mlops_tasks import tracking
from mlops_tasks.errors import WmtpError
from mlops_tasks.report import configuration, data, gates, learning, lineage, outcomes, programs, tasks, weights
from mlops_tasks.report.document import document
from mlops_tasks.report.facts import Facts
from mlops_tasks.stage import Run

log = logging.getLogger(__name__)

_SECTIONS = {
    "tasks": ("What happened", tasks.tasks),
    "gates": ("Gates", gates.gates),
    "evaluation": ("Evaluation", outcomes.evaluation),
    "flips": ("Won and lost", programs.flips),
    "programs": ("Programs", programs.programs),
    "data": ("Data", data.card),
    "training": ("Training", learning.training),
    "weights": ("Token weights", weights.weights),
    "cost": ("Cost", tasks.cost),
    "recipe": ("Configuration", configuration.recipe),
    "lineage": ("Lineage", lineage.lineage),
}


def report(run: Run) -> dict[str, Any]:
    """Write the page of a run and put a copy beside its training in MLflow, if that can be reached.

    Returns:
        path: where the page is; mlflow: ids of the run that has a copy, and of its experiment, or None.
    """
    data = page(run).encode(errors="replace")
    path = run.write("report.html", data)
    logged = _log_to_mlflow(run, data.decode(), path)
    log.info("the report is %s", path)
    return {"path": path, "mlflow": logged}


def page(run: Run) -> str:
    """The page as HTML."""
    facts = Facts(run)
    return document(
        f"{run.spec.recipe.model.name}: {run.title}",
        header=outcomes.verdict(facts),
        sections={id: (word, make(facts)) for id, (word, make) in _SECTIONS.items()},
        footer=f"Written for {run.title} from the artifacts in {run.store.uri}.",
    )


def _log_to_mlflow(run: Run, page: str, path: str) -> dict[str, str] | None:
    train = run.pointer("train")
    if train is None or train.key is None:
        log.warning("the report is not in MLflow: this run has no training to put it beside")
        return None
    experiment = tracking.experiment_name(run.spec.recipe)
    try:
        return tracking.log_report(
            run.environment, stage_key=train.key, experiment=experiment, page=page, name=run.name
        )
    except WmtpError as error:
        log.warning("the report is in %s, but not in MLflow: %s", path, error)
        return None
