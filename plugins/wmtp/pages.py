"""Reports and manifests of the store, served by Airflow's API server to whoever may see the DAG.

The addresses are the places in the store, so that the links of a report lead to the manifests here as they do in a folder. Nothing else
of the store is served.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import unquote

from airflow.api_fastapi.core_api.security import requires_access_dag
from fastapi import Depends, FastAPI, HTTPException, Path, Response

from mlops_tasks.errors import WmtpError
from mlops_tasks.stage import Run, artifact_prefix
from mlops_tasks.store import MANIFEST, Store
from wmtp import environment
from wmtp.links import PREFIX, REPORT

__all__ = ["PREFIX", "app"]

app = FastAPI(title="wmtp", description=__doc__)
# `.` and `..` would lead out of the folder.
Name = Annotated[str, Path(pattern=r"[^./]")]


@app.get("/runs/{deployment}/{dag_id}/{run_id}/" + REPORT, dependencies=[Depends(requires_access_dag("GET"))])
def report(deployment: Name, dag_id: Name, run_id: Name) -> Response:
    """The report of a run of this Airflow's deployment; ids are quoted as in the store."""
    here = environment()
    if unquote(dag_id) != dag_id or unquote(run_id) in (".", ".."):  # what is read is what was asked for
        raise HTTPException(404)
    prefix = Run.prefix_of(here, dag_id, unquote(run_id))
    # Programs that a model wrote are text in it; should one ever be more, it still runs nothing.
    policy = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'"}
    return _stored(f"{prefix}/{REPORT}" if deployment == here.deployment else None, "text/html; charset=utf-8", policy)


@app.get("/{stage}/{key}/" + MANIFEST, dependencies=[Depends(requires_access_dag("GET"))])
def manifest(
    stage: Annotated[str, Path(pattern="^[a-z_]+$")], key: Annotated[str, Path(pattern="^[0-9a-f]{64}$")]
) -> Response:
    """The manifest of an artifact: what it is made of, its files and its metrics."""
    return _stored(f"{artifact_prefix(stage, key)}/{MANIFEST}", "application/json", {})


def _stored(name: str | None, media_type: str, headers: dict[str, str]) -> Response:
    try:
        data = Store.of(environment()).backend.read(name) if name else None
    except WmtpError as error:
        raise HTTPException(503, str(error)) from error
    if data is None:
        raise HTTPException(404, "The store of this Airflow's environment file holds no such thing, or not yet.")
    return Response(data, media_type=media_type, headers={**headers, "X-Content-Type-Options": "nosniff"})
