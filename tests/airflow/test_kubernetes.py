"""Stages as pods, on a real API server: what is started, found again, replaced and removed, and what Airflow is told."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import rig as rigs
from rig import TOY_IMAGE, Rig
from s3_server import S3Server
from test_operators import ended
from wmtp import pods

if TYPE_CHECKING:
    from conftest import Toys

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow]


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with rigs.started() as started:
        yield started


@pytest.fixture
def toys_in_pods(toys: Toys, s3: S3Server, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toys]:
    monkeypatch.setenv("KUBECONFIG", rig.kubeconfig)
    toys.environment_file.write_text(json.dumps(rigs.environment(rig, s3, TOY_IMAGE, toys.folder)))
    yield toys
    toys.wait_until(lambda: not rig.pods(), seconds=60)  # a Job is removed after its pods, and not at once


def test_a_task_is_a_pod_and_a_hit_starts_none(toys_in_pods: Toys, rig: Rig) -> None:
    told, log = ended(toys_in_pods.start("pull_data", "score", "train", "train", "report"))

    assert [one["told"]["state"] for one in told] == ["success", "skipped", "success", "success", "success"], log
    references = [one["xcoms"]["return_value"] for one in told if "return_value" in one["xcoms"]]
    assert [reference["cache"] for reference in references] == ["run", "run", "hit", "done"]
    assert references[1] | {"cache": "hit"} == references[2]
    made = re.findall(r"(\S+): (Pod|Job) \S+ is made", log)
    assert made == [("pull_data[0]", "Pod"), ("train[0]", "Job"), ("report[0]", "Pod")]
    assert "train works" in log
    assert "no-secret-of-anyone" not in log


@pytest.mark.parametrize(
    ("task", "code", "state", "name"),
    [("pull_data", 75, "up_for_retry", "Unavailable"), ("train", 64, "failed", "UserError")],
)
def test_the_exit_code_of_a_pod_decides_about_the_retry_and_the_sentence_is_kept(
    task: str, code: int, state: str, name: str, toys_in_pods: Toys
) -> None:
    toys_in_pods.tell(f"{task}.fails", str(code))

    tasks = ["pull_data", "score", "train"]
    told, log = ended(toys_in_pods.start(*tasks[: tasks.index(task) + 1]))

    last = told[-1]
    assert last["told"]["state"] == state, log
    sentence = rf"{name}\(.{task}\[0\]: pod wmtp-\S+ ended with {code}: {task} does not fit:\\n  it is told to fail"
    assert re.search(sentence, last["error"]), last["error"]


def let_go(toys: Toys, task: str) -> None:
    """End what a toy waits for, where its pod sees it: it has a copy of the files of this machine, made as it is written to."""
    (root,) = working(toys)
    Path(f"{root}{toys.folder}/{task}.waits").unlink()


def working(toys: Toys) -> list[Path]:
    """The files that pods see."""
    found = [one for one in psutil.process_iter(["cmdline"]) if is_toy(one, toys.folder.name)]
    return [Path(f"/proc/{one.pid}/root") for one in found]


def is_toy(process: psutil.Process, folder: str) -> bool:
    command = process.info["cmdline"] or []
    return "toys.stages" in command and any(f"/{folder}/" in word for word in command)


def test_a_pod_whose_worker_was_killed_is_found_again(toys_in_pods: Toys, rig: Rig) -> None:
    toys_in_pods.tell("pull_data.waits")
    first = toys_in_pods.start("pull_data")
    toys_in_pods.wait_until(lambda: [one.status.phase for one in rig.pods()] == ["Running"])
    (pod,) = rig.pods()
    first.kill()
    first.communicate()

    lines = []
    with toys_in_pods.start("pull_data") as second:
        assert second.stdout is not None
        for line in second.stdout:
            lines.append(line)
            if f"Pod {pod.metadata.name} is there already; attached" in line:
                let_go(toys_in_pods, "pull_data")

    (told,) = [json.loads(line) for line in lines if line.startswith('{"task"')]
    assert told["told"]["state"] == "success", lines
    assert told["xcoms"]["return_value"]["cache"] == "run"
    assert "".join(lines).count("pull_data works") == 1


def test_a_pod_sees_the_files_of_a_config_map_beside_its_environment(toys_in_pods: Toys, rig: Rig) -> None:
    certificate = {"metadata": {"name": "database-ca"}, "data": {"ca.pem": "a certificate"}}
    rig.core.create_namespaced_config_map(rigs.NAMESPACE, certificate)
    given = json.loads(toys_in_pods.environment_file.read_text())
    given["kubernetes"]["config_maps"] = {"/etc/database-ca": "database-ca"}
    toys_in_pods.environment_file.write_text(json.dumps(given))
    toys_in_pods.tell("pull_data.waits")
    process = toys_in_pods.start("pull_data")
    toys_in_pods.wait_until(lambda: working(toys_in_pods), seconds=120)

    (root,) = working(toys_in_pods)
    assert (root / "etc/database-ca/ca.pem").read_text() == "a certificate"
    assert (root / "etc/wmtp/environment.json").is_file()
    let_go(toys_in_pods, "pull_data")
    told, log = ended(process)
    assert told[-1]["told"]["state"] == "success", log


def is_training(pod: Any) -> bool:
    return pod.status.phase == "Running" and "job-name" in pod.metadata.labels


def test_the_task_survives_an_api_server_that_ends_and_starts_again(toys_in_pods: Toys, rig: Rig) -> None:
    # A toy, as the rig's kubelet gives up telling of a pod that ends while the server is away; a real one asks on.
    toys_in_pods.tell("train.waits")
    process = toys_in_pods.start("pull_data", "score", "train")
    toys_in_pods.wait_until(lambda: any(is_training(one) for one in rig.pods()))
    (pod,) = [one for one in rig.pods() if is_training(one)]

    rig.restart_server()
    toys_in_pods.wait_until(rig.answers)
    assert [one.metadata.uid for one in rig.pods()] == [pod.metadata.uid]
    let_go(toys_in_pods, "train")

    told, log = ended(process)
    assert told[-1]["told"]["state"] == "success", log
    assert "the API server does not answer" in log
    assert re.findall(r"(Pod|Job) \S+ is made", log) == ["Pod", "Job"]


@pytest.mark.parametrize(
    ("number", "state"),
    [
        (signal.SIGINT, "failed"),
        (signal.SIGTERM, "up_for_retry"),
        (signal.SIGALRM, "up_for_retry"),  # what `execution_timeout` is to Airflow
    ],
)
def test_no_pod_is_left_of_a_task_that_is_ended_by(
    number: signal.Signals, state: str, toys_in_pods: Toys, rig: Rig
) -> None:
    toys_in_pods.tell("pull_data.takes", "600")
    process = toys_in_pods.start("pull_data")
    toys_in_pods.wait_until(lambda: [one.status.phase for one in rig.pods()] == ["Running"])

    process.send_signal(number)
    (told,), log = ended(process)

    assert told["told"]["state"] == state, log
    toys_in_pods.wait_until(lambda: not rig.objects())


def test_a_worker_that_is_ended_while_the_api_server_is_away_ends_too_and_leaves_its_pod_to_the_next_try(
    toys_in_pods: Toys, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = rigs.Relay(rig.port)
    monkeypatch.setenv("KUBECONFIG", rig.kubeconfig_by(relay, toys_in_pods.folder))
    toys_in_pods.tell("pull_data.takes", "600")
    process = toys_in_pods.start("pull_data")
    toys_in_pods.wait_until(lambda: [one.status.phase for one in rig.pods()] == ["Running"])
    (pod,) = rig.pods()

    relay.be_silent()
    time.sleep(2 * pods.SECONDS_BETWEEN_LOOKS)  # it waits for an answer by now
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    lines, waited = [], None
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if f"pull_data[0]: {pod.metadata.name} may be left; the next try or housekeeping finds it" in line:
                waited = time.monotonic() - begun  # how long Airflow takes to end then is this machine's load

    assert waited is not None and waited < 30, "no more than a pod of Airflow's has from SIGTERM to SIGKILL"
    (told,) = [json.loads(line) for line in lines if line.startswith('{"task"')]
    assert told["told"]["state"] == "up_for_retry", lines

    (left,) = rig.pods()
    assert (left.metadata.uid, left.metadata.deletion_timestamp) == (pod.metadata.uid, None)
    rig.core.delete_namespaced_pod(left.metadata.name, rigs.NAMESPACE)
