"""One self-contained HTML page about a run: no network, no scripts, every text escaped.

Owns the page and the action that writes it. What is shown comes from the run's pointers and artifacts and from nowhere else;
a part whose task was skipped or has not ended says so. Its sections are `outcomes`, `programs`, `learning` and `provenance`.
"""

from __future__ import annotations

import logging
from typing import Any

from mlops_tasks import tracking
from mlops_tasks.errors import WmtpError
from mlops_tasks.report import learning, outcomes, programs, provenance
from mlops_tasks.report.document import document
from mlops_tasks.report.facts import Facts
from mlops_tasks.stage import Run

log = logging.getLogger(__name__)

_SECTIONS = {
    "evaluation": ("Evaluation", outcomes.evaluation),
    "flips": ("Won and lost", programs.flips),
    "examples": ("Programs", programs.examples),
    "training": ("Training", learning.training),
    "weights": ("Token weights", learning.weights),
    "tasks": ("Tasks", provenance.tasks),
    "recipe": ("Configuration", provenance.recipe),
    "lineage": ("Lineage", provenance.lineage),
}


def report(run: Run) -> dict[str, Any]:
    """Write the page of a run and put a copy beside its training in MLflow, if that can be reached.

    Returns:
        path: where the page is.
    """
    data = page(run).encode(errors="replace")
    path = run.write("report.html", data)
    _log_to_mlflow(run, data.decode(), path)
    log.info("the report is %s", path)
    return {"path": path}


def page(run: Run) -> str:
    """The page as HTML."""
    facts = Facts(run)
    return document(
        f"{run.spec.recipe.model.name}: {run.name}",
        header=outcomes.verdict(facts),
        sections={id: (word, make(facts)) for id, (word, make) in _SECTIONS.items()},
        footer=f"Written for {run.name} from the artifacts in {run.store.uri}.",
    )


def _log_to_mlflow(run: Run, page: str, path: str) -> None:
    train = run.pointer("train")
    if train is None or train.key is None:
        log.warning("the report is not in MLflow: this run has no training to put it beside")
        return
    experiment = tracking.experiment_name(run.spec.recipe)
    try:
        tracking.log_report(run.environment, stage_key=train.key, experiment=experiment, page=page, name=run.name)
    except WmtpError as error:
        log.warning("the report is in %s, but not in MLflow: %s", path, error)
