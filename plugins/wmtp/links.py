"""What a task links to in Airflow's UI: the manifest of its artifact; the run's report, and its run in MLflow.

A link is made when the task has ended, by the operator, which then knows the pointer; Airflow keeps it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.sdk import BaseOperatorLink

from mlops_tasks.store import MANIFEST

if TYPE_CHECKING:
    from mlops_tasks.stage import Pointer, Run

PREFIX = "/wmtp"
"""Where the API server has our pages."""
REPORT = "report.html"


class _Link(BaseOperatorLink):
    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """The address, or nothing where the task has no such thing."""
        return str(getattr(operator, "links", {}).get(self.name, ""))


class ManifestLink(_Link):
    """To the artifact's manifest."""

    name = "Manifest"


class ReportLink(_Link):
    """To the run's report."""

    name = "Report"


class MlflowLink(_Link):
    """To the training's run in MLflow."""

    name = "MLflow run"


def links_of(run: Run, pointer: Pointer) -> dict[str, str]:
    """The addresses of all that a task has to show, by the name of the link."""
    links = {ManifestLink.name: _page(f"{pointer.prefix}/{MANIFEST}")} if pointer.prefix else {}
    if "path" in pointer.detail:
        links[ReportLink.name] = _page(pointer.detail["path"].removeprefix(f"{run.store.uri}/"))
    logged, server = pointer.detail.get("mlflow"), _mlflow(run.environment.mlflow_uri)
    if logged and server:
        links[MlflowLink.name] = f"{server}/#/experiments/{logged['experiment_id']}/runs/{logged['run_id']}"
    return links


def _page(name: str) -> str:
    from airflow.sdk.configuration import conf

    # The names are quoted already, and an address is unquoted once.
    return f"{conf.get('api', 'base_url', fallback='').rstrip('/')}{PREFIX}/{quote(name)}"


def _mlflow(uri: str) -> str | None:
    """Where people see MLflow: `WMTP_MLFLOW_UI`, or the tracking server itself; a database has no page."""
    given = os.environ.get("WMTP_MLFLOW_UI") or (uri if uri.startswith("http") else None)
    return given.rstrip("/") if given else None
