"""Runs tasks of the toy DAG as Airflow's worker does, with its signals, time-outs and retry policy, but without a database.

`python -m toys.run_task TASK…` prints a JSON line for each: the state that Airflow would be told, the XComs, the error.
"""

import json
import sys
from typing import Any

import httpx
import uuid6
from airflow.sdk.api.client import Client
from airflow.sdk.api.datamodels._generated import TaskInstance
from airflow.sdk.execution_time.supervisor import run_task_in_process
from wmtp import environment

from mlops_tasks import pipeline
from mlops_tasks.stage import Run
from toys import stages
from toys.dags.wmtp_daily import dag

RUN = "a run"


class Server:
    """Answers as Airflow's API does, and keeps what it is told."""

    def __init__(self) -> None:
        self.told: dict[str, Any] = {}
        self.xcoms: dict[str, Any] = {}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path, body = request.url.path, json.loads(request.content or b"null")
        if path.endswith("/run"):
            dag_run = {
                "dag_id": dag.dag_id,
                "run_id": RUN,
                "run_type": "manual",
                "run_after": "2026-01-01T00:00:00Z",
                "state": "running",
                **dict.fromkeys(
                    ["logical_date", "data_interval_start", "data_interval_end", "end_date", "partition_key"]
                ),
                "start_date": "2026-01-01T00:00:00Z",
                "consumed_asset_events": [],
                "conf": json.loads(sys.argv[1]),
            }
            return httpx.Response(200, json={"dag_run": dag_run, "max_tries": 2, "should_retry": True})
        if path.endswith("/state"):
            self.told = body
        elif path.startswith("/xcoms/"):
            self.xcoms[path.rpartition("/")[2]] = body
        return httpx.Response(200, json={"message": "ok"})


def run(task_id: str) -> dict[str, Any]:
    server = Server()
    client = Client(base_url=None, dry_run=True, token="", transport=httpx.MockTransport(server))
    instance = TaskInstance(
        id=uuid6.uuid7(), task_id=task_id, dag_id=dag.dag_id, run_id=RUN, try_number=1, dag_version_id=uuid6.uuid7()
    )
    result = run_task_in_process(instance, dag.task_dict[task_id], client)
    heavy = [name for name in ("torch", "transformers", "mlflow", "optuna", "boto3", "numpy") if name in sys.modules]
    return {"task": task_id, "told": server.told, "xcoms": server.xcoms, "error": repr(result.error), "heavy": heavy}


if __name__ == "__main__":
    if "plan" not in sys.argv:
        here = environment()
        pipeline.plan(here, Run.prefix_of(here, dag.dag_id, RUN), recipe=stages.DEMO)
    for task_id in sys.argv[2:]:
        print(json.dumps(run(task_id)), flush=True)
