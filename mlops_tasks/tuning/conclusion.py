"""The action `conclude`: a recipe that is believed to be better is what `tuned` stands for, and people are told, by a page and in MLflow."""

from __future__ import annotations

import json
import logging
from typing import Any

from mlops_tasks import ledger, tracking
from mlops_tasks.errors import WmtpError
from mlops_tasks.report.study import page
from mlops_tasks.stage import Run
from mlops_tasks.store import Artifact
from mlops_tasks.tuning import selection
from mlops_tasks.tuning.adoption import RECIPE, adopt
from mlops_tasks.tuning.runs import experiment_of, tell_missing
from mlops_tasks.tuning.study import Study

log = logging.getLogger(__name__)


def conclude(run: Run) -> dict[str, Any]:
    """Adopt the recipe if its evidence says so, and write the page of the study.

    Returns:
        outcome: adopted, kept, or superseded by what a newer study has found; reason; path: where the page is; mlflow: ids of the study's run and of its experiment, or None.
    """
    selected = run.artifact("select")
    assert selected is not None, "select is skipped only without a space, which plan refuses"
    is_better = bool(selected.metrics["is_better"])
    is_adopted = is_better and adopt(run.store, run.spec.recipe.name, selected)
    text = page(selected, cost=ledger.of_run(run, run.pointers()).in_words())
    path = run.write("report.html", text.encode(errors="replace"))
    outcome = "adopted" if is_adopted else "superseded" if is_better else "kept"
    reason = selected.metrics["reason"]
    log.info("%s: %s The page is %s", outcome, reason, path)
    return {"outcome": outcome, "reason": reason, "path": path, "mlflow": _log_to_mlflow(run, selected, text, outcome)}


def _log_to_mlflow(run: Run, selected: Artifact, text: str, outcome: str) -> dict[str, str] | None:
    study = Study(run, selected.manifest["key"])
    files = {
        name: selected.path(name).read_text(encoding="utf-8") for name in (RECIPE, selection.EVIDENCE, selection.TRIALS)
    }
    tell_missing(run, study.key, [json.loads(line) for line in files[selection.TRIALS].splitlines()])
    try:
        return tracking.log_study(
            run.environment,
            study_key=study.key,
            experiment=experiment_of(run),
            metrics=tracking.scalars(selected.metrics),
            tags={"outcome": outcome, "reason": selected.metrics["reason"], "study": study.name},
            texts={**files, "report.html": text},
        )
    except WmtpError as error:
        log.warning("the study is not in MLflow: %s", error)
        return None
