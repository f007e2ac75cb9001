"""A study by what programs come to, on a real API server: they run in pods without credentials, and who waits for them may be killed."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import rig as rigs
import yaml
from airflow import models
from airflow.sdk import DAG
from postgres_server import postgres
from rig import CHECKOUT, IMAGE, NAMESPACE, Relay, Rig
from s3_server import S3Server
from test_kubernetes_training import at_once, wait_until
from test_tune import TINY
from wmtp.manifest import Identity
from wmtp.study import StudyStage

from mlops_tasks import pipeline, planning, stage
from mlops_tasks.config.loading import load_environment
from mlops_tasks.errors import WmtpError
from mlops_tasks.stage import Run
from mlops_tasks.tuning import asks
from mlops_tasks.tuning.cell import Cell
from mlops_tasks.tuning.space import default_point
from mlops_tasks.tuning.study import Study, trial_recipe

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow]

RECIPE = {**TINY, "tuning": {**TINY["tuning"], "num_trials": 2, "objectives": ["pass_at_1"]}}  # type: ignore[dict-item]
WORKER = "import sys, test_kubernetes_study as study; study.search(*sys.argv[1:])"


def search(environment_file: str, kubeconfig: str, name: str) -> dict[str, Any]:
    """What the first worker's operator returns."""
    models.import_all_models()  # the provider's empty connection is one of them
    operator = StudyStage(
        task_id="search",
        environment_file=environment_file,
        config_file=kubeconfig,
        execution_timeout=timedelta(minutes=10),
    )
    operator.dag = DAG("wmtp_tune", schedule=None)
    instance = SimpleNamespace(dag_id="wmtp_tune", task_id="search", map_index=0, try_number=1)
    context: Any = {"run_id": name, "dag": None, "ti": instance}
    found: dict[str, Any] = operator.execute(context)
    return found


@dataclass
class Week:
    """One environment file, and a study in its store."""

    folder: Path
    rig: Rig

    @property
    def environment_file(self) -> Path:
        return self.folder / "environment.json"

    def plan(self, name: str) -> Run:
        """A study with everything above `search` done."""
        environment = load_environment(self.environment_file)
        recipe = self.folder / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(RECIPE))
        # Nobody is champion yet, which a tracking server that is not there cannot say.
        planner = environment.model_copy(update={"mlflow_uri": f"sqlite:///{self.folder}/mlflow.db"})
        run = planning.plan(planner, Run.prefix_of(environment, "wmtp_tune", name), recipe=recipe, is_study=True)
        for task in pipeline.PREPARATION:
            stage.execute(run, pipeline.TASKS[task], tasks=pipeline.TASKS)
        return run

    def search(self, name: str) -> dict[str, Any]:
        return search(str(self.environment_file), self.rig.kubeconfig, name)

    def worker(self, name: str) -> subprocess.Popen[bytes]:
        """The same in a process that may be killed."""
        path = [CHECKOUT / "tests" / "airflow", CHECKOUT / "tests", CHECKOUT / "plugins", CHECKOUT]
        return subprocess.Popen(
            [sys.executable, "-c", WORKER, str(self.environment_file), self.rig.kubeconfig, name],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))},
        )

    def pod(self, task: str, *, other_than: str = "") -> Any:
        """The pod of a task that has not ended, once there is one."""
        found: list[Any] = []

        def look() -> bool:
            pods = self.rig.core.list_namespaced_pod(NAMESPACE, label_selector=f"wmtp.io/task={task}").items
            found[:] = [
                one for one in pods if one.metadata.uid != other_than and one.status.phase in ("Pending", "Running")
            ]
            return bool(found)

        wait_until(look)
        return found[0]

    def kill_pod(self, task: str) -> None:
        """As the kernel does where memory is short."""
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if f"--task={task}" in words and any(f"/{self.folder.name}/" in word for word in words):
                process.kill()


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with rigs.started() as started:
        yield started


@pytest.fixture
def week(tmp_path: Path, s3: S3Server, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Iterator[Week]:
    with postgres() as (server, _):
        # It has a socket alone, and what a pod sees of this machine's files is a copy of them.
        relay = Relay(Path(server.get_postmaster_info().socket_dir) / ".s.PGSQL.5432")
        url = f"postgresql+psycopg2://postgres:none@127.0.0.1:{relay.port}/postgres"
        rig.secret("database", {"OPTUNA_URL": url})
        monkeypatch.setenv("OPTUNA_URL", url)
        tree = rigs.environment(rig, s3, IMAGE, tmp_path)
        tree["tune"] = {"storage": "env:OPTUNA_URL", "heartbeat_seconds": 1, "grace_seconds": 6}
        tree["kubernetes"]["secrets"]["OPTUNA_URL"] = {"secret": "database", "key": "OPTUNA_URL"}
        # No node has this label yet, so what runs programs of a model waits.
        sandbox = {**tree["kubernetes"]["profiles"]["sandbox"], "node_selector": {"pool": "late"}}
        tree["kubernetes"]["profiles"]["sandbox"] = sandbox | {"start_seconds": 600}
        week = Week(tmp_path, rig)
        week.environment_file.write_text(json.dumps(tree))
        yield week
        wait_until(lambda: not rig.pods())


def test_a_trial_outlives_whoever_waits_for_its_verdict_and_the_pod_that_makes_it(week: Week) -> None:
    run = week.plan("week")
    with week.worker("week") as first:
        verdict, trials = week.pod("judge"), week.pod("search")
        first.kill()
    has_no_credentials(verdict)
    assert Identity.of(verdict) == Identity("toys", "wmtp_tune", "week", "judge", 0, 0, cell_of(run), "search")
    assert asks.Inbox(run.store, asks.place_of(run, "search", 0)).names(), "it is there until it is answered"

    found: list[Any] = []
    retry = threading.Thread(target=lambda: found.extend(at_once(lambda: week.search("week"))))
    retry.start()
    again = week.pod("judge", other_than=verdict.metadata.uid)
    assert again.metadata.name == verdict.metadata.name
    assert week.pod("search").metadata.uid == trials.metadata.uid, "attached"
    week.kill_pod("search")
    retry.join()  # although no node has come for the verdict
    assert isinstance(found[0], WmtpError) and "killed by signal 9" in str(found[0]), found

    found.clear()
    retry = threading.Thread(target=lambda: found.extend(at_once(lambda: week.search("week"))))
    retry.start()
    third = week.pod("judge", other_than=again.metadata.uid)
    week.rig.core.delete_namespaced_pod(third.metadata.name, NAMESPACE)
    week.pod("judge", other_than=third.metadata.uid)
    (node,) = week.rig.core.list_node().items
    week.rig.core.patch_node(node.metadata.name, {"metadata": {"labels": {"pool": "late"}}})
    retry.join()
    assert found[0]["cache"] == "done", found

    study = Study.of(run)
    assert {slot: trial.state.name for slot, trial in study.slots().items()} == {0: "COMPLETE", 1: "COMPLETE"}
    assert [trial.state.name for trial in study.trials()].count("FAIL") == 1  # the one of the pod that was killed
    assert asks.Inbox(run.store, asks.place_of(run, "search", 0)).names() == []


def test_a_verdict_whose_pod_is_out_of_memory_each_time_prunes_its_trial(
    week: Week, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run = week.plan("small")
    study, here = Study.of(run), run.environment.model_copy(update={"executor": "local"})
    recipe = trial_recipe(study.recipe, default_point(study.recipe), "the test")
    Cell.below(replace(run, environment=here), study.prefix, recipe).measure(["pass_at_1"])  # the first trial is a hit
    sandbox = "kubernetes.profiles.sandbox"
    rigs.change(week.environment_file, f"{sandbox}.node_selector", {})
    rigs.change(week.environment_file, f"{sandbox}.limits", {"memory": "64Mi"})

    assert week.search("small")["cache"] == "done"

    slots = study.slots()
    assert {slot: trial.state.name for slot, trial in slots.items()} == {0: "COMPLETE", 1: "PRUNED"}
    why = r"Killed: \S+: judge\[\d\]: pod wmtp-judge-\S+ was OOMKilled \(137\): over its memory limit of 64Mi\. Raise limits\.memory .*"
    assert re.fullmatch(why, slots[1].user_attrs["why"], re.DOTALL), slots[1].user_attrs["why"]
    assert len(re.findall(r"Pod wmtp-judge-\S+ is made", caplog.text)) == 3


def cell_of(run: Run) -> str:
    """Of the trial that has begun."""
    (cell,) = run.store.children(f"{Study.of(run).prefix}/cells")
    return cell


def has_no_credentials(pod: Any) -> None:
    (container,) = pod.spec.containers
    assert not [one.name for one in container.env if one.value_from or one.name.startswith(("AWS", "OPTUNA"))]
    assert "wmtp.io/environment" not in pod.metadata.annotations
    assert pod.spec.automount_service_account_token is False
