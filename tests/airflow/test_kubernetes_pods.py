"""Single pods and Jobs of one line of shell, through our operators on a real API server: why they wait, what they say, and how they end."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import rig as rigs
from airflow import models
from airflow.sdk import DAG
from kubernetes import client
from rig import IMAGE, NAMESPACE, Rig
from s3_server import S3Server
from test_kubernetes_training import at_once, wait_until
from wmtp.kubernetes import JobStage, PodStage
from wmtp.manifest import Identity, Order, variables_of_ranks
from wmtp.pods import Watch

from mlops_tasks.config.loading import load_environment
from mlops_tasks.errors import DataError, Interrupted, Killed, Unavailable, UserError, WmtpError

pytestmark = pytest.mark.kubernetes

KINDS: dict[str, type[PodStage]] = {"Pod": PodStage, "Job": JobStage}
IDENTITY = Identity("toys", "wmtp_daily", "a run", "train", 0)
CONTEXT: Any = {"run_id": "a run", "dag": None}


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with rigs.started() as started:
        yield started


@dataclass
class Shell:
    """Has an operator run a line of shell, as it runs `wmtp`."""

    rig: Rig
    kubeconfig: str
    environment_file: Path

    def change(self, place: str, value: Any) -> None:
        rigs.change(self.environment_file, place, value)

    def order(self, line: str, *, key: str = "abc", seconds: int | None = None, identity: Identity = IDENTITY) -> Order:
        variables = variables_of_ranks(identity, self.num_pods)
        return Order(identity, identity.task, key, ["sh", "-c", line], variables, seconds)

    @property
    def num_pods(self) -> int:
        return load_environment(self.environment_file).train.num_pods

    def operator(self, kind: str) -> Any:
        made = KINDS[kind](task_id="train", environment_file=str(self.environment_file), config_file=self.kubeconfig)
        made.dag = DAG("wmtp_daily", schedule=None)
        return made

    def run(self, kind: str, line: str, **order: Any) -> None:
        """From the first look to the removal.

        Raises:
            WmtpError: what Airflow is told.
        """
        self.operator(kind).carry_out(load_environment(self.environment_file), self.order(line, **order), self.context)

    def leave(self, kind: str, line: str, **order: Any) -> Any:
        """As a worker does that is killed once it has made something; returns that."""
        operator, wanted = self.operator(kind), self.order(line, **order)
        submitted = operator.request(load_environment(self.environment_file), wanted, self.context)
        operator._attach_or_create(submitted, wanted, Watch(operator.client, NAMESPACE, "train[0]", start_seconds=60.0))
        return operator._read(wanted.identity.name)

    @property
    def context(self) -> Any:
        ti = SimpleNamespace(dag_id="wmtp_daily", task_id="train", map_index=-1, try_number=1)
        return {**CONTEXT, "ti": ti}

    @contextmanager
    def running(self, kind: str, line: str, **order: Any) -> Iterator[list[Any]]:
        """While it runs; afterwards what it returned or raised."""
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.extend(at_once(lambda: self.run(kind, line, **order))))
        thread.start()
        num_pods = self.num_pods if kind == "Job" else 1
        wait_until(lambda: found or len(self.pods("Running")) == num_pods)
        assert not found, found
        yield found
        thread.join()

    def pods(self, phase: str) -> list[Any]:
        return [one for one in self.rig.pods() if one.status.phase == phase]

    @contextmanager
    def deadlines_kept(self) -> Iterator[None]:
        """The Job controller of 1.20 looks once whether a deadline is over, at times a moment too early: a Job that changes is looked at again."""
        is_over = threading.Event()

        def change_jobs() -> None:
            while not is_over.wait(1.0):
                for job in self.rig.batch.list_namespaced_job(NAMESPACE).items:
                    changed = {"metadata": {"annotations": {"looked-at": str(time.monotonic())}}}
                    with suppress(client.ApiException):  # it is gone
                        self.rig.batch.patch_namespaced_job(job.metadata.name, NAMESPACE, changed)

        thread = threading.Thread(target=change_jobs, daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()


@pytest.fixture
def shell(
    tmp_path: Path, s3: S3Server, rig: Rig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Shell]:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("wmtp.pods.SECONDS_BETWEEN_LOOKS", 0.3)
    for module in ("manifest", "submission"):
        monkeypatch.setattr(f"wmtp.{module}.GRACE_SECONDS", 2.0)
    models.import_all_models()  # the provider's empty connection is one of them
    file = tmp_path / "environment.json"
    file.write_text(json.dumps(rigs.environment(rig, s3, IMAGE, tmp_path)))
    yield Shell(rig, rig.kubeconfig, file)
    wait_until(lambda: not rig.objects())


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the pods have said."""
    return [record.getMessage() for record in caplog.records if record.name == "wmtp.process"]


# Why it waits.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        ("requests", {"cpu": "1000"}, "0/1 nodes are available: 1 Insufficient cpu."),
        ("node_selector", {"gpu": "none"}, "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity."),
        ("image", "nobody/has:it", 'ImagePullBackOff: Back-off pulling image "nobody/has:it"'),
    ],
)
def test_what_waits_says_why_and_gives_up_after_its_time(
    *, kind: str, place: str, value: Any, reason: str, shell: Shell, caplog: pytest.LogCaptureFixture
) -> None:
    shell.change("kubernetes.profiles.gpu.start_seconds", 6)
    shell.change(f"kubernetes.profiles.gpu.{place}", value)

    with pytest.raises(Unavailable, match=rf"has waited 6 s .* could not start: {re.escape(reason)}"):
        shell.run(kind, "true")

    assert f"train[0] waits: {reason}" in caplog.text


def test_a_volume_that_cannot_be_mounted_is_told_of_by_its_event(
    shell: Shell, rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    mounts = [{"name": "data", "mountPath": "/data"}]
    container = {"name": "stage", "image": IMAGE, "command": ["true"], "volumeMounts": mounts}
    volume = {"name": "data", "nfs": {"server": "nowhere", "path": "/"}}  # a kind that this kubelet does not know
    body = {"metadata": {"name": "unmounted"}, "spec": {"containers": [container], "volumes": [volume]}}
    rig.core.create_namespaced_pod(NAMESPACE, body)
    watch = Watch(rig.core, NAMESPACE, "train[0]", start_seconds=60.0)

    def told() -> bool:
        watch.look([rig.core.read_namespaced_pod("unmounted", NAMESPACE)])
        return "type not supported by the rig" in caplog.text

    wait_until(told)
    assert "train[0] waits: its container is being made. Failed: volume data: type not supported" in caplog.text
    rig.core.delete_namespaced_pod("unmounted", NAMESPACE, grace_period_seconds=0)


@contextmanager
def no_more(rig: Rig, *resources: str) -> Iterator[None]:
    hard = dict.fromkeys(resources, "0")
    rig.core.create_namespaced_resource_quota(NAMESPACE, {"metadata": {"name": "none"}, "spec": {"hard": hard}})
    try:
        wait_until(lambda: rig.core.read_namespaced_resource_quota("none", NAMESPACE).status.hard)
        yield
    finally:
        rig.core.delete_namespaced_resource_quota("none", NAMESPACE)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_beyond_the_quota_waits_with_the_reason_and_goes_on_when_there_is_room(
    kind: str, shell: Shell, rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    with ThreadPoolExecutor() as workers:
        with no_more(rig, "pods"):
            running = workers.submit(shell.run, kind, "echo there")
            wait_until(lambda: "exceeded quota: none" in caplog.text or running.done())
        running.result()
    assert re.search(r"train\[0\] waits: (FailedCreate|Pod \S+ has no room): .*exceeded quota: none", caplog.text)
    assert said(caplog) == ["there"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_beyond_the_quota_gives_up_after_its_time(kind: str, shell: Shell, rig: Rig) -> None:
    shell.change("kubernetes.profiles.gpu.start_seconds", 10)
    with (
        no_more(rig, "pods"),
        pytest.raises(Unavailable, match=r"has waited 10 s .* could not start: .*exceeded quota: none"),
    ):
        shell.run(kind, "true")


# What it says.


def test_no_line_is_lost_and_none_told_twice_when_the_stream_breaks(
    shell: Shell, rig: Rig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    relay = rigs.Relay(rig.port)
    shell.kubeconfig = rig.kubeconfig_by(relay, tmp_path)
    line = "for i in $(seq 160); do echo line $i; echo the same; sleep 0.1; done"
    with shell.running("Pod", line) as found:
        for _ in range(2):
            wait_until(lambda: said(caplog))
            num_said = len(said(caplog))
            relay.leave()
            wait_until(lambda: caplog.records[-1].getMessage().startswith("the API server does not answer"))
            relay.come_back()
            wait_until(lambda: len(said(caplog)) > num_said)  # noqa: B023  it is asked at once
    assert found == [None]
    assert said(caplog) == [text for number in range(1, 161) for text in (f"line {number}", "the same")]


STAYS = 'trap "exit 85" TERM; while :; do sleep 0.1; done'


def evict(rig: Rig, pod: Any) -> None:
    """As `kubectl drain` does."""
    body = {"apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": {"name": pod.metadata.name}}
    rig.core.create_namespaced_pod_eviction(pod.metadata.name, NAMESPACE, body)


def preempt(rig: Rig, pod: Any) -> None:
    """Have the scheduler make room for a pod that goes before."""
    urgent = {"metadata": {"name": "urgent"}, "value": 1000}
    client.SchedulingV1Api(rig.api).create_priority_class(urgent)
    container = {"name": "c", "image": IMAGE, "command": ["sleep", "3"], "resources": {"requests": {"cpu": "5"}}}
    spec = {"priorityClassName": "urgent", "restartPolicy": "Never", "containers": [container]}
    rig.core.create_namespaced_pod(NAMESPACE, {"metadata": {"name": "urgent"}, "spec": spec})
    wait_until(lambda: rig.core.read_namespaced_pod("urgent", NAMESPACE).status.phase == "Succeeded")
    rig.core.delete_namespaced_pod("urgent", NAMESPACE)
    client.SchedulingV1Api(rig.api).delete_priority_class("urgent")


@pytest.mark.parametrize("take_away", [evict, preempt])
def test_a_pod_of_a_job_that_is_taken_away_is_replaced_and_the_next_one_is_followed(
    take_away: Callable[[Rig, Any], None], shell: Shell, rig: Rig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shell.change("kubernetes.profiles.gpu.requests", {"cpu": "5"})
    line = f"echo $(cat /proc/sys/kernel/random/uuid); [ -e {tmp_path}/again ] && exit; {STAYS}"
    with shell.running("Job", line) as found:
        wait_until(lambda: said(caplog))
        (pod,) = rig.pods()
        (tmp_path / "again").touch()
        take_away(rig, pod)
    assert found == [None], "no try of Airflow's is used"
    assert len(set(said(caplog))) == 2


# How it ends.


def test_a_pod_that_a_node_under_pressure_evicts_is_told_in_the_kubelets_words(shell: Shell, rig: Rig) -> None:
    with shell.running("Pod", STAYS) as found:
        (pod,) = rig.pods()
        status = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}
        rig.core.patch_namespaced_pod_status(pod.metadata.name, NAMESPACE, {"status": status})
    (error,) = found
    assert isinstance(error, Interrupted)
    assert "was taken away (Evicted): The node was low on resource: memory." in str(error)


def test_a_pod_that_is_deleted_from_outside_is_started_again_by_airflow(shell: Shell, rig: Rig) -> None:
    with shell.running("Pod", STAYS) as found:
        evict(rig, rig.pods()[0])
    (error,) = found
    assert isinstance(error, Interrupted) and "was deleted from outside" in str(error)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("line", "error", "sentence"),
    [
        ("echo no money; exit 64", UserError, "ended with 64: no money"),
        ("exit 75", Unavailable, "ended with 75: it said nothing"),
        ("exec 2> /dev/null; sh -c 'kill -9 $$'", Killed, "ended with 137, killed by signal 9: it said nothing"),
    ],
)
def test_a_failure_is_one_sentence(kind: str, line: str, error: type[WmtpError], sentence: str, shell: Shell) -> None:
    with pytest.raises(error, match=rf"^train\[0\]: pod wmtp-train-0-\S+ {sentence}$") as found:
        shell.run(kind, line)
    assert type(found.value) is error


@pytest.mark.parametrize("first", [STAYS, "exit 85"])
def test_the_first_rank_that_failed_is_named_after_the_last_lines_of_its_pod(
    first: str, shell: Shell, caplog: pytest.LogCaptureFixture
) -> None:
    shell.change("train.num_pods", 2)
    fails = (
        "for i in $(seq 30); do echo step $i; done; sleep 8; echo '12:00:00 ERROR mlops_tasks.x: no number'; exit 65"
    )
    line = f"[ $JOB_COMPLETION_INDEX = 1 ] || {{ echo rank 0 speaks; {first}; }}; {fails}"

    with pytest.raises(DataError, match=r"pod wmtp-train-0-\S+ \(number 1\) ended with 65: no number"):
        shell.run("Job", line)

    assert said(caplog)[0] == "rank 0 speaks"
    # A server of 1.20 replaces what has failed too, so that there may be the lines of two.
    steps = [one for one in said(caplog) if "step" in one]
    assert set(steps) >= {f"pod 1: step {i}" for i in range(12, 31)} and "pod 1: step 10" not in steps
    assert ("mlops_tasks.x", logging.ERROR, "pod 1: no number") in caplog.record_tuples


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("Pod", r"was ended after its time: "),
        ("Job", r"failed \(DeadlineExceeded\): Job was active longer than specified deadline"),
    ],
)
def test_what_takes_too_long_is_ended_and_says_so(kind: str, sentence: str, shell: Shell) -> None:
    with shell.deadlines_kept(), pytest.raises(WmtpError, match=sentence):
        shell.run(kind, STAYS, seconds=2)


# What an earlier try has left.


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_dead_worker_left_ends_at_its_deadline_and_the_next_try_makes_it_anew(
    kind: str, shell: Shell, rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    left = shell.leave(kind, STAYS, seconds=2)
    operator = shell.operator(kind)
    with shell.deadlines_kept():
        wait_until(lambda: operator._has_ended(operator._read(left.metadata.name)))
    wait_until(lambda: not shell.pods("Running"))

    shell.run(kind, "echo anew")

    assert said(caplog) == ["anew"]
    assert caplog.text.count(f"{kind} {left.metadata.name} is made") == 2


@pytest.mark.parametrize("kind", KINDS)
def test_what_still_works_on_the_same_key_is_attached_to(
    kind: str, shell: Shell, caplog: pytest.LogCaptureFixture
) -> None:
    left = shell.leave(kind, "sleep 6; echo first")

    shell.run(kind, "echo second")

    assert said(caplog) == ["first"]
    assert f"{kind} {left.metadata.name} is there already; attached" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_what_works_on_another_key_is_ended_and_made_anew(
    kind: str, shell: Shell, caplog: pytest.LogCaptureFixture
) -> None:
    shell.leave(kind, STAYS, key="yesterday")

    shell.run(kind, "echo today", key="today")

    assert said(caplog) == ["today"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_removed_is_told_once_and_given_up_after_the_time_to_start(
    kind: str, shell: Shell, rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    left = shell.leave(kind, STAYS, key="yesterday")
    patch = rig.core.patch_namespaced_pod if kind == "Pod" else rig.batch.patch_namespaced_job
    patch(left.metadata.name, NAMESPACE, {"metadata": {"finalizers": ["kueue.test/held"]}})
    shell.change("kubernetes.profiles.gpu.start_seconds", 3)

    sentence = (
        rf"{kind} {left.metadata.name} of an earlier try is not gone after 3 s .*; \S*kueue.test/held\S* holds it"
    )
    try:
        with pytest.raises(Unavailable, match=sentence):
            shell.run(kind, "echo today", key="today")
    finally:
        patch(left.metadata.name, NAMESPACE, {"metadata": {"finalizers": None}})

    told = [text for record in caplog.records if "is being removed" in (text := record.getMessage())]
    assert told[-1].endswith("kueue.test/held holds it") and len(set(told)) == len(told)


def test_the_service_of_a_job_is_made_with_it_and_goes_with_it(shell: Shell, rig: Rig) -> None:
    job = shell.leave("Job", STAYS)
    service = rig.core.read_namespaced_service(job.metadata.name, NAMESPACE)
    assert (service.spec.cluster_ip, service.spec.selector) == ("None", {"job-name": job.metadata.name})

    shell.operator("Job")._delete(IDENTITY)

    wait_until(lambda: not rig.objects())


# The rig itself.

STARTS = """
import sys, time, rig
with rig.started() as one:
    print(one.folder, flush=True)
    time.sleep(600)
"""


def test_a_rig_does_not_outlive_a_process_of_tests_that_is_killed() -> None:
    path = os.pathsep.join((str(rigs.CHECKOUT), *sys.path))
    with subprocess.Popen(
        [sys.executable, "-c", STARTS], env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True
    ) as tests:
        assert tests.stdout is not None
        folder = tests.stdout.readline().strip()
        assert len(of_folder(folder)) > 5  # guard, rig, etcd, three of Kubernetes
        tests.kill()
    wait_until(lambda: not of_folder(folder), seconds=60)
    shutil.rmtree(folder)


def of_folder(folder: str) -> list[psutil.Process]:
    return [
        one for one in psutil.process_iter(["cmdline"]) if any(folder in word for word in one.info["cmdline"] or [])
    ]
