"""Where people find what a run has made: the addresses of its pages, and the links of a task in Airflow's UI.

A link of a task is made when the task has ended, by the operator, which then knows the pointer; Airflow keeps it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.sdk import BaseOperatorLink

from mlops_tasks.store import MANIFEST

if TYPE_CHECKING:
    from mlops_tasks.config.environment import Environment
    from mlops_tasks.stage import Pointer, Run

PREFIX = "/wmtp"
"""Where the API server has our pages."""
REPORT = "report.html"
_PARTS = {
    "pull_data": "#data", "score": "#weights", "train": "#training", "generate": "#programs", "judge": "#evaluation", "promote": "#gates",
}  # fmt: skip
"""The part of a run's report that is about a task."""


class _Link(BaseOperatorLink):
    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """The address, or nothing where the task has no such thing."""
        return str(getattr(operator, "links", {}).get(self.name, ""))


class ManifestLink(_Link):
    """To the artifact's manifest."""

    name = "Manifest"


class ReportLink(_Link):
    """To what the run's report says of the task; the report is written by the last task."""

    name = "Report"


class MlflowLink(_Link):
    """To the training's run in MLflow."""

    name = "MLflow run"


class VersionLink(_Link):
    """To the registered version in MLflow that the task is about."""

    name = "MLflow version"


LINKS = (ManifestLink(), ReportLink(), MlflowLink(), VersionLink())


def links_of(run: Run, pointer: Pointer, *, has_report: bool) -> dict[str, str]:
    """The addresses of all that a task has to show, by the name of the link.

    Args:
        run: its run.
        pointer: what it came to.
        has_report: the DAG writes one.
    """
    if pointer.outcome == "skipped":
        return {}
    found = {ManifestLink.name: page(f"{pointer.prefix}/{MANIFEST}")} if pointer.prefix else {}
    if "path" in pointer.detail:
        found[ReportLink.name] = page(pointer.detail["path"].removeprefix(f"{run.store.uri}/"))
    elif has_report and pointer.task in _PARTS:
        found[ReportLink.name] = page(f"{run.prefix}/{REPORT}") + _PARTS[pointer.task]
    logged, version = pointer.detail.get("mlflow"), pointer.detail.get("version")
    routes = {
        MlflowLink.name: logged and f"/#/experiments/{logged['experiment_id']}/runs/{logged['run_id']}",
        VersionLink.name: version and of_version(run.spec.recipe.model.name, version),
    }
    there = {name: mlflow(run.environment, route) for name, route in routes.items() if route}
    return found | {name: address for name, address in there.items() if address}


def page(name: str) -> str:
    """The address of a report or a manifest, by its place in the store; without a host where Airflow's `base_url` is not set."""
    from airflow.sdk.configuration import conf

    # The names are quoted already, and an address is unquoted once.
    return f"{conf.get('api', 'base_url', fallback='').rstrip('/')}{PREFIX}/{quote(name)}"


def mlflow(environment: Environment, route: str = "") -> str | None:
    """Where people see MLflow: `WMTP_MLFLOW_UI`, or the tracking server itself; a database has no page.

    Args:
        environment: names the tracking server.
        route: what comes behind it.
    """
    uri = environment.mlflow_uri
    given = os.environ.get("WMTP_MLFLOW_UI") or (uri if uri.startswith("http") else None)
    return f"{given.rstrip('/')}{route}" if given else None


def of_version(model: str, version: str) -> str:
    """The route of a registered version in MLflow."""
    return f"/#/models/{quote(model, safe='')}/versions/{version}"
