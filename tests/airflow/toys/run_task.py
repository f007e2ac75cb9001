"""Runs tasks of the toy DAG in a process of its own, so that it can be sent signals.

`python -m toys.run_task CONF TASK…` prints a JSON line for each: the state that Airflow would be told, the XComs, the error.
"""

import json
import sys
from typing import Any

from in_process import run_task
from wmtp import environment

from mlops_tasks import planning
from mlops_tasks.stage import Run
from toys import stages
from toys.dags.wmtp_daily import dag

RUN = "a run"


def run(task_id: str) -> dict[str, Any]:
    server, error = run_task(dag, task_id, run=RUN, conf=json.loads(sys.argv[1]))
    heavy = [name for name in ("torch", "transformers", "mlflow", "optuna", "boto3", "numpy") if name in sys.modules]
    return {"task": task_id, "told": server.told, "xcoms": server.xcoms, "error": repr(error), "heavy": heavy}


if __name__ == "__main__":
    if "plan" not in sys.argv:
        here = environment()
        planning.plan(here, Run.prefix_of(here, dag.dag_id, RUN), recipe=stages.DEMO)
    for task_id in sys.argv[2:]:
        print(json.dumps(run(task_id)), flush=True)
