"""Trainings of several pods on a real API server: the same weights as on one machine, and what is left after each fault.

The operators are called as Airflow's worker calls them, in threads of this process; the pods are processes of `wmtp`.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import rig as rigs
import yaml
from airflow import models
from airflow.sdk import DAG
from kubernetes import client
from rig import IMAGE, NAMESPACE, Rig
from s3_server import S3Server
from test_demo import TINY
from wmtp.kubernetes import JobStage, PodStage, SandboxStage
from wmtp.study import StudyStage

from mlops_tasks import pipeline, planning, stage
from mlops_tasks.config.environment import Environment
from mlops_tasks.config.loading import load_environment
from mlops_tasks.errors import UserError, WmtpError
from mlops_tasks.stage import Run

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow]

KINDS = {"train": JobStage, "judge": SandboxStage, "search": StudyStage}
RECIPE = {**TINY, "scoring": {"scorer": "uniform"}, "train": {"num_heads": 2, "steps": 60, "batch_size": 8}}


@dataclass
class Night:
    """One environment file and the runs in its store."""

    folder: Path
    rig: Rig
    kubeconfig: str

    @property
    def environment_file(self) -> Path:
        return self.folder / "environment.json"

    def plan(self, name: str, *overrides: str) -> Run:
        """A run with everything above `train` done."""
        environment = load_environment(self.environment_file)
        recipe = self.folder / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(RECIPE))
        planner = self.planner(environment)
        run = planning.plan(
            planner, Run.prefix_of(environment, "adhoc_airflow", name), recipe=recipe, overrides=overrides
        )
        for task in ("pull_data", "pull_model", "pull_reference", "reference", "score_shard", "score"):
            stage.execute(run, pipeline.TASKS[task], tasks=pipeline.TASKS)
        return run

    def planner(self, environment: Environment) -> Environment:
        """Nobody is champion yet, which a tracking server that is not there cannot say."""
        return environment.model_copy(update={"mlflow_uri": f"sqlite:///{self.folder}/mlflow.db"})

    def operator(self, task: str) -> Any:
        kind = KINDS.get(task, PodStage)
        file = str(self.environment_file)
        # Read once by the client, at its import: a variable would come too late.
        made = kind(
            task_id=task, environment_file=file, config_file=self.kubeconfig, execution_timeout=timedelta(minutes=10)
        )
        made.dag = DAG("adhoc_airflow", schedule=None)
        return made

    def run(self, task: str, name: str) -> dict[str, Any]:
        """What the operator returns."""
        context: Any = {"run_id": name, "dag": None}
        context["ti"] = SimpleNamespace(dag_id="adhoc_airflow", task_id=task, map_index=-1, try_number=1)
        found: dict[str, Any] = self.operator(task).execute(context)
        return found

    def change(self, place: str, value: Any) -> None:
        rigs.change(self.environment_file, place, value)


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with rigs.started() as started:
        yield started


@pytest.fixture
def night(tmp_path: Path, s3: S3Server, rig: Rig) -> Iterator[Night]:
    models.import_all_models()  # the provider's empty connection is one of them
    night = Night(tmp_path, rig, rig.kubeconfig)
    night.environment_file.write_text(json.dumps(rigs.environment(rig, s3, IMAGE, tmp_path, two_pods=True)))
    yield night
    wait_until(lambda: not rig.pods() and not rig.batch.list_namespaced_job(NAMESPACE).items)


def wait_until(is_so: Callable[[], object], *, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        time.sleep(0.2)


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """What several calls return or raise, each in a thread."""
    found: list[Any] = [None] * len(calls)

    def note(number: int) -> None:
        try:
            found[number] = calls[number]()
        except Exception as error:
            traceback.print_exc()  # shown where a test fails by it
            found[number] = error

    threads = [threading.Thread(target=note, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def weights(run: Run) -> str:
    artifact = run.artifact("train")
    assert artifact is not None
    return artifact.digest_of("model/*", "heads*")


def test_two_pods_train_as_two_processes_do(night: Night, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    in_pods = night.plan("pods")
    assert night.run("train", "pods")["cache"] == "run"
    two = re.findall(r"Job \S+ is made", caplog.text)
    assert night.run("train", "pods")["cache"] == "hit"
    assert re.findall(r"Job \S+ is made", caplog.text) == two and len(two) == 1, "a hit starts nothing"

    for place, value in (("executor", "local"), ("store", str(night.folder / "store")), ("train", {"num_ranks": 2})):
        night.change(place, value)
    here = night.plan("here")
    stage.execute(here, pipeline.TASKS["train"], tasks=pipeline.TASKS)

    assert weights(in_pods) == weights(here)


def steps_of(run: Run) -> list[str]:
    """Checkpoints of the training that is under way."""
    return [
        step
        for key in run.store.children("train")
        for step in run.store.children(f"train/{key}/checkpoints")
        if step.startswith("step")
    ]


def training(night: Night, name: str, *overrides: str) -> tuple[Run, list[Any], threading.Thread]:
    """A training that has begun in another thread, and is beyond its first checkpoint."""
    run = night.plan(name, *overrides)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(at_once(lambda: night.run("train", name))))
    thread.start()
    wait_until(lambda: steps_of(run))
    return run, found, thread


def test_a_pod_that_is_deleted_in_mid_training_is_replaced_and_the_training_resumes(night: Night) -> None:
    run, found, thread = training(night, "deleted", "train.steps=400")
    (second,) = [
        one
        for one in night.rig.pods()
        if one.metadata.annotations.get("batch.kubernetes.io/job-completion-index") == "1"
    ]

    night.rig.core.delete_namespaced_pod(second.metadata.name, NAMESPACE)
    thread.join()

    assert found[0]["cache"] == "run", found
    artifact = run.artifact("train")
    assert artifact is not None and artifact.metrics["resumed_from"] is not None
    assert artifact.metrics["steps"] == 400


def test_five_runs_of_different_recipes_at_once_are_fine(night: Night) -> None:
    night.change("train.num_pods", 1)
    names = [f"run{number}" for number in range(5)]
    runs = [night.plan(name, f"train.steps={5 + number}") for number, name in enumerate(names)]

    found = at_once(*[lambda name=name: night.run("train", name) for name in names])  # type: ignore[misc]

    assert [one["cache"] for one in found] == ["run"] * 5, found
    assert [artifact.metrics["steps"] for run in runs if (artifact := run.artifact("train"))] == [5, 6, 7, 8, 9]


def test_two_runs_at_once_make_one_training(night: Night) -> None:
    for name in ("one", "other"):
        night.plan(name)

    found = at_once(*[lambda name=name: night.run("train", name) for name in ("one", "other")])  # type: ignore[misc]

    assert sorted(one["cache"] for one in found) == ["hit", "run"], found


def test_too_little_memory_is_said_in_a_sentence_with_the_limit(night: Night) -> None:
    night.change("kubernetes.profiles.gpu.limits", {"memory": "96Mi"})
    night.plan("oom")

    with pytest.raises(
        WmtpError,
        match=r"train\[0\]: pod wmtp-train-0-\S+( \(number [01]\))? was OOMKilled \(137\): over its memory limit of 96Mi",
    ):
        night.run("train", "oom")


def test_addresses_of_a_pod_that_waits_for_a_node_are_signed_anew_until_it_has_one(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wmtp.kubernetes._VALID_SECONDS", 5.0)
    monkeypatch.setattr("wmtp.kubernetes._SIGN_AFTER_SECONDS", 2.0)
    run = night.plan("waits", "train.steps=2")
    for task in ("train", "generate"):
        stage.execute(run, pipeline.TASKS[task], tasks=pipeline.TASKS)
    night.change("kubernetes.profiles.sandbox.node_selector", {"pool": "late"})
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(at_once(lambda: night.run("judge", "waits"))))
    thread.start()
    wait_until(night.rig.pods)

    monkeypatch.setattr("wmtp.kubernetes._VALID_SECONDS", 600.0)  # however long its pod takes to start then
    time.sleep(12)  # the first ones are dead, and others are signed
    (node,) = night.rig.core.list_node().items
    night.rig.core.patch_node(node.metadata.name, {"metadata": {"labels": {"pool": "late"}}})
    thread.join()

    assert found[0]["cache"] == "run", found


def test_why_kueue_holds_a_pod_back_is_asked_of_its_workload(night: Night) -> None:
    container = {"name": "c", "image": IMAGE, "command": ["sleep", "600"]}
    body = {"metadata": {"name": "held"}, "spec": {"containers": [container], "nodeSelector": {"no": "node"}}}
    pod = night.rig.core.create_namespaced_pod(NAMESPACE, body)
    operator = night.operator("score")
    assert operator._why_held(pod) == "held is held back, and Kueue cannot be asked why (404 Not Found)"

    night.rig.define("Workload", "kueue.x-k8s.io", "v1beta2", scope="Namespaced")
    assert operator._why_held(pod) == "Kueue has not taken it up yet"

    owner = {"apiVersion": "v1", "kind": "Pod", "name": "held", "uid": pod.metadata.uid}
    condition = {"type": "QuotaReserved", "status": "False", "message": "insufficient unused quota for nvidia.com/gpu"}
    workload = {
        "apiVersion": "kueue.x-k8s.io/v1beta2",
        "kind": "Workload",
        "metadata": {"name": "pod-held", "ownerReferences": [owner]},
        "status": {"conditions": [condition]},
    }
    kueue = client.CustomObjectsApi(night.rig.api)
    kueue.create_namespaced_custom_object("kueue.x-k8s.io", "v1beta2", NAMESPACE, "workloads", workload)
    told = operator._why_held(pod)
    assert told == "Kueue has not admitted it: insufficient unused quota for nvidia.com/gpu"

    night.rig.core.delete_namespaced_pod("held", NAMESPACE, grace_period_seconds=0)


def test_what_cannot_start_fails_at_once_with_the_reason(night: Night) -> None:
    night.plan("secret")
    night.change("kubernetes.secrets.AWS_ACCESS_KEY_ID.secret", "nobody")
    with pytest.raises(UserError, match=r'CreateContainerConfigError: secret "nobody" not found'):
        night.run("train", "secret")


def test_an_object_of_somebody_else_is_left_alone(night: Night) -> None:
    night.plan("foreign")
    night.change("train.num_pods", 1)
    context: Any = {"run_id": "foreign", "ti": SimpleNamespace(map_index=-1)}
    name = night.operator("train")._identity_in(load_environment(night.environment_file), context).name
    theirs = {
        "metadata": {"name": name},
        "spec": {
            "template": {
                "spec": {
                    "restartPolicy": "Never",
                    "containers": [{"name": "c", "image": IMAGE, "command": ["sleep", "600"]}],
                }
            }
        },
    }
    night.rig.batch.create_namespaced_job(NAMESPACE, theirs)

    with pytest.raises(UserError, match="is there already and not ours"):
        night.run("train", "foreign")

    assert night.rig.batch.read_namespaced_job(name, NAMESPACE).metadata.deletion_timestamp is None
    night.rig.batch.delete_namespaced_job(name, NAMESPACE, propagation_policy="Background", grace_period_seconds=0)
    for one in night.rig.pods():
        night.rig.core.delete_namespaced_pod(one.metadata.name, NAMESPACE, grace_period_seconds=0)
