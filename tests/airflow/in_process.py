"""Runs tasks as Airflow's worker does, with its signals, time-outs, retry policy and callbacks, but without a database."""

from __future__ import annotations

import json
from typing import Any

import httpx
import uuid6
from airflow.sdk import DAG
from airflow.sdk.api.client import Client
from airflow.sdk.api.datamodels._generated import TaskInstance
from airflow.sdk.execution_time.supervisor import run_task_in_process
from airflow.sdk.serde import serialize


class Server:
    """Answers as Airflow's API does, and keeps what it is told."""

    def __init__(self, dag: DAG, run: str, conf: dict[str, Any], event: dict[str, Any] | None, kind: str) -> None:
        self.told: dict[str, Any] = {}
        self.xcoms: dict[str, Any] = {}
        self.asked: dict[str, Any] = {}
        """What people are asked: the form of an approval."""
        self.skipped: list[str] = []
        # Where a task was answered, it goes on there.
        self._resume = {"next_method": "execute_complete", "next_kwargs": serialize({"event": event})} if event else {}
        self._dag_run = {
            "dag_id": dag.dag_id,
            "run_id": run,
            "run_type": kind,
            "run_after": "2026-01-01T00:00:00Z",
            "state": "running",
            **dict.fromkeys(["logical_date", "data_interval_start", "data_interval_end", "end_date", "partition_key"]),
            "start_date": "2026-01-01T00:00:00Z",
            "consumed_asset_events": [],
            "conf": conf,
        }

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path, body = request.url.path, json.loads(request.content or b"null")
        if path.endswith("/run"):
            known = {"dag_run": self._dag_run, "max_tries": 2, "should_retry": True, **self._resume}
            return httpx.Response(200, json=known)
        if path.endswith("/state"):
            self.told = body
        elif path.startswith("/xcoms/"):
            self.xcoms[path.rpartition("/")[2]] = body
        elif path.endswith("/skip-downstream"):
            self.skipped = body["tasks"]
        elif path.startswith("/hitlDetails/"):
            self.asked = body
            return httpx.Response(201, json=body)
        return httpx.Response(200, json={"message": "ok"})


def run_task(
    dag: DAG,
    task_id: str,
    *,
    run: str,
    conf: dict[str, Any] | None = None,
    event: dict[str, Any] | None = None,
    kind: str = "manual",
) -> tuple[Server, BaseException | None]:
    """Run one task; what Airflow was told of it, and the error that it ended with.

    Args:
        event: the answer to an approval, with which it goes on.
        kind: of the run: `manual` or `scheduled`.
    """
    server = Server(dag, run, conf or {}, event, kind)
    client = Client(base_url=None, dry_run=True, token="", transport=httpx.MockTransport(server))
    instance = TaskInstance(
        id=uuid6.uuid7(), task_id=task_id, dag_id=dag.dag_id, run_id=run, try_number=1, dag_version_id=uuid6.uuid7()
    )
    return server, run_task_in_process(instance, dag.task_dict[task_id], client).error
