"""A whole Airflow whose tasks are pods: whatever people do to a task, nothing of it is left."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import rig as rigs
from mlflow_server import free_port
from rig import NAMESPACE, TOY_IMAGE, Rig
from s3_server import S3Server
from test_ui import DAG, is_known, request, trigger

if TYPE_CHECKING:
    from conftest import Toys

pytestmark = [
    pytest.mark.kubernetes,
    pytest.mark.slow,
    pytest.mark.skipif(not rigs.IS_AT_HAND, reason=rigs.WHY_NOT),  # before its servers are started
]


@dataclass
class Airflow:
    """Scheduler, API server and workers, on a database of their own."""

    toys: Toys
    rig: Rig
    process: subprocess.Popen[str]
    url: str
    token: str

    def ask(self, path: str, *, method: str = "GET", body: object = None) -> Any:
        return request(f"{self.url}/{DAG}/{path}", method=method, body=body, token=self.token)

    def start(self, run: str) -> str:
        """Begin a run, and wait for the pod of its first stage; returns the pod's uid."""
        trigger(self.url, self.token, run, {"recipe": "demo"})
        return self.running(run)

    def running(self, run: str, *, other_than: str = "") -> str:
        self.toys.wait_until(lambda: self._running(run) - {other_than})
        (found,) = self._running(run) - {other_than}
        return found

    def _running(self, run: str) -> set[str]:
        pods = self.rig.core.list_namespaced_pod(NAMESPACE, label_selector=f"wmtp.io/run={run}").items
        return {one.metadata.uid for one in pods if one.status.phase == "Running"}

    def is_rid_of(self, run: str) -> bool:
        return not any(one.metadata.labels["wmtp.io/run"] == run for one in self.rig.objects())

    def die(self) -> None:
        """As a machine does: nobody has time for a last word."""
        everything = [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]
        for signal in (psutil.Process.suspend, psutil.Process.kill):
            for one in everything:
                signal(one)
        self.process.wait()


@pytest.fixture(scope="module")
def airflow(shared_toys: Toys, s3_server: S3Server) -> Iterator[Airflow]:
    toys, port = shared_toys, free_port()
    with rigs.started() as rig, pytest.MonkeyPatch.context() as patch:
        for name, value in {**s3_server.variables, "KUBECONFIG": rig.kubeconfig}.items():
            patch.setenv(name, value)
        toys.environment_file.write_text(json.dumps(rigs.environment(rig, s3_server, TOY_IMAGE, toys.folder)))
        variables = {"AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False", "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1"}
        with subprocess.Popen(
            [sys.executable, "-m", "scripts.ui", f"--airflow-port={port}"],
            cwd=rigs.CHECKOUT,
            env={**toys.variables, **variables, "AIRFLOW__CORE__PARALLELISM": "4"},
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            for _ in range(4):
                next(process.stdout)
            url = f"http://127.0.0.1:{port}"
            token = request(f"{url}/auth/token")["access_token"]
            toys.wait_until(lambda: is_known(url, token, "wmtp_daily"))
            started = Airflow(toys, rig, process, url, token)
            request(f"{url}/{DAG}?update_mask=is_paused", method="PATCH", body={"is_paused": False}, token=token)
            try:
                yield started
            finally:
                if process.poll() is None:
                    started.die()


def test_a_task_that_is_marked_leaves_nothing(airflow: Airflow) -> None:
    airflow.toys.tell("pull_data.takes", "600")
    airflow.start("marked")

    airflow.ask("dagRuns/marked/taskInstances/pull_data", method="PATCH", body={"new_state": "failed"})

    airflow.toys.wait_until(lambda: airflow.is_rid_of("marked"))


def test_a_task_that_is_cleared_starts_anew_and_leaves_nothing(airflow: Airflow) -> None:
    airflow.toys.tell("pull_data.takes", "600")
    first = airflow.start("cleared")

    body = {
        "dry_run": False,
        "dag_run_id": "cleared",
        "task_ids": ["pull_data"],
        "only_failed": False,
        "only_running": False,
    }
    airflow.ask("clearTaskInstances", method="POST", body=body)

    airflow.running("cleared", other_than=first)
    airflow.ask("dagRuns/cleared", method="PATCH", body={"state": "failed"})
    airflow.toys.wait_until(lambda: airflow.is_rid_of("cleared"))


def test_a_run_that_is_deleted_leaves_nothing(airflow: Airflow) -> None:
    airflow.toys.tell("pull_data.takes", "600")
    airflow.start("deleted")

    airflow.ask("dagRuns/deleted", method="PATCH", body={"state": "failed"})
    delete = urllib.request.Request(
        f"{airflow.url}/{DAG}/dagRuns/deleted", method="DELETE", headers={"Authorization": f"Bearer {airflow.token}"}
    )
    urllib.request.urlopen(delete, timeout=60).close()

    airflow.toys.wait_until(lambda: airflow.is_rid_of("deleted"))
