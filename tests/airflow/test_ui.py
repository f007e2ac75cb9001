"""`make ui`: the pages answer, a run can be triggered over the REST API with a changed form, and nothing is left of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from mlflow_server import free_port

if TYPE_CHECKING:
    from conftest import Place

DAG = "api/v2/dags/wmtp_daily"


def request(url: str, *, method: str = "GET", body: object = None, token: str = "") -> Any:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(
        urllib.request.Request(url, data=data, method=method, headers=headers), timeout=60
    ) as answer:
        return json.load(answer)


@pytest.mark.slow
def test_a_run_is_triggered_over_the_rest_api_with_changed_params(place: Place, checkout: str) -> None:
    ports = [free_port(), free_port()]
    airflow = f"http://127.0.0.1:{ports[0]}"
    with subprocess.Popen(
        [sys.executable, "-m", "scripts.ui", f"--airflow-port={ports[0]}", f"--mlflow-port={ports[1]}"],
        cwd=checkout,
        # Without the schedule, the run of today would come first.
        env={**place.variables, "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False"},
        stdout=subprocess.PIPE,
        text=True,
    ) as ui:
        assert ui.stdout is not None
        said = [next(ui.stdout) for _ in range(4)]
        assert f"{airflow}/dags/wmtp_daily" in said[1]
        assert f"http://127.0.0.1:{ports[1]}" in said[2]
        token = request(f"{airflow}/auth/token")["access_token"]

        place.wait_until(lambda: is_known(airflow, token, "wmtp_daily"))
        form = request(f"{airflow}/{DAG}/details", token=token)["params"]
        assert form["overrides"]["schema"]["type"] == "array" and form["recipe"]["description"]
        with pytest.raises(urllib.error.HTTPError, match="400"):
            trigger(airflow, token, "bad", {"recipe": 3})
        trigger(airflow, token, "mine", {"recipe": "demo", "overrides": ["train.steps=7"], "force": ["train"]})
        request(f"{airflow}/{DAG}?update_mask=is_paused", method="PATCH", body={"is_paused": False}, token=token)

        spec_file = place.folder / "store/runs/toys/wmtp_daily/mine/spec.json"
        place.wait_until(spec_file.exists)
        spec = json.loads(spec_file.read_text())
        assert (spec["recipe"]["train"]["steps"], spec["force"]) == (7, ["train"])
        plan = f"{airflow}/{DAG}/dagRuns/mine/taskInstances/plan"
        place.wait_until(lambda: request(plan, token=token)["state"] == "success")

        started = psutil.Process(ui.pid).children(recursive=True)
        assert len(started) > 6  # the guards, four parts of Airflow, MLflow
        ui.send_signal(signal.SIGINT)
        assert ui.wait(600) == 0
    assert [process for process in started if process.is_running()] == []
    assert place.processes() == []


def is_known(airflow: str, token: str, dag: str) -> bool:
    """Whether its file has been read: one file is read after the other."""
    return dag in {one["dag_id"] for one in request(f"{airflow}/api/v2/dags", token=token)["dags"]}


def trigger(airflow: str, token: str, run: str, conf: dict[str, Any]) -> Any:
    body = {"dag_run_id": run, "logical_date": None, "conf": conf}
    return request(f"{airflow}/{DAG}/dagRuns", method="POST", body=body, token=token)
