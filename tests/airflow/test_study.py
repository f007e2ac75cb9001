"""What the operator of a study does with an ask, where that needs no cluster."""

from __future__ import annotations

import io
import json
import tarfile
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import Request, urlopen

import pytest
from kubernetes.client import ApiException
from kubernetes.client import models as k8s
from s3_server import BUCKET, S3Server
from test_tune import TINY
from urllib3.exceptions import HTTPError
from wmtp import stage as operator_of
from wmtp import task as stage_task
from wmtp.kubernetes import PodStage
from wmtp.manifest import Identity, Order
from wmtp.study import StudyStage, TrialStage

from mlops_tasks import pipeline, stage
from mlops_tasks.config.environment import Environment
from mlops_tasks.config.loading import load_environment
from mlops_tasks.config.recipe import Recipe
from mlops_tasks.errors import DataError, Interrupted, Killed, Unavailable, Unfit, UserError, WmtpError
from mlops_tasks.stage import Decision, Pointer, Run, Spec
from mlops_tasks.store import Store
from mlops_tasks.tuning import asks
from mlops_tasks.tuning.asks import Ask, Inbox

EKS = Path(__file__).resolve().parents[2] / "configs" / "environments" / "eks.yaml"
JUDGE = pipeline.TASKS["judge"]
CONTEXT: Any = {"run_id": "week", "ti": SimpleNamespace(map_index=1)}


@pytest.fixture
def cell(tmp_path: Path) -> Run:
    """A cell that has come to its verdict; a cluster it has none, so what would start a pod fails."""
    return cell_in(Environment.model_validate({"store": str(tmp_path), "mlflow_uri": "none"}))


def cell_in(environment: Environment) -> Run:
    recipe = Recipe.model_validate({**TINY, "tuning": None})
    spec = Spec(recipe=recipe, pins={}, champion=None, created="", fan_out={"generate": 4, "judge": 4})
    run = Run(Store.of(environment), environment, f"select/{'0' * 64}/cells/{'a' * 16}", spec)
    run.store.create_json(f"{run.prefix}/spec.json", spec.model_dump(mode="json"))
    for task, name in (("pull_data", "pull"), ("generate", "generate")):
        made(run, task, name, "1")
    return run


def made(run: Run, task: str, name: str, key: str) -> None:
    draft = run.store.begin(f"{name}/{key}")
    (draft.folder / "test.parquet").write_text("problems")
    artifact = run.store.commit(draft, {})
    run.point(Pointer(task=task, index=0, stage=name, outcome="run", seconds=1.0, key=key, digest=artifact.digest))


def key_of(cell: Run) -> str:
    return stage.decide(cell, JUDGE, 0, tasks=pipeline.TASKS).key


def watcher(cell: Run, task: str = "search") -> StudyStage:
    """Of a pod of the study."""
    study = Run(cell.store, cell.environment, "runs/x/wmtp_tune/week", cell.spec)
    operator = StudyStage(task_id=task, environment_file=str(EKS), index=1)
    operator._inbox = Inbox(cell.store, asks.place_of(study, task, 1))
    operator._reply = partial(operator._answer, environment=cell.environment, context=CONTEXT)
    return operator


def ask(watcher: StudyStage, cell: Run, key: str) -> None:
    wanted = Ask(cell=cell.prefix, task="judge", index=0, key=key)
    cell.store.write_json(f"{watcher._inbox.place}/one.json", wanted.model_dump())


def is_left(watcher: StudyStage) -> bool:
    """Whether the ask waits for another look."""
    return watcher._inbox.names() == ["one"]


def refusal(watcher: StudyStage) -> str | None:
    inbox = watcher._inbox
    told = inbox.store.read_json(f"{inbox.place}/refused/one.json")
    return told and f"{told['exit_code']}: {told['message']}"


def refused_as(watcher: StudyStage) -> str:
    """The name of the class that the pod is told."""
    inbox = watcher._inbox
    told = inbox.store.read_json(f"{inbox.place}/refused/one.json")
    assert told is not None
    return str(told["error"])


def fails(monkeypatch: pytest.MonkeyPatch, *errors: Exception, then: Callable[[], None]) -> None:
    """What becomes of the pods of an ask, one after the other."""
    waiting = list(errors)

    def make(operator: TrialStage, *given: object) -> None:
        assert operator.deadline_seconds == 6 * 3600, "a study has days"
        if waiting:
            raise waiting.pop(0)
        then()

    monkeypatch.setattr(TrialStage, "make", make)


def test_a_verdict_that_is_there_starts_no_pod(cell: Run) -> None:
    made(cell, "judge", "judge", key_of(cell))
    study = watcher(cell)
    ask(study, cell, key_of(cell))
    study._reply("one")
    assert not is_left(study) and refusal(study) is None


def test_a_pod_of_another_build_is_told_what_differs(cell: Run) -> None:
    decision = stage.decide(cell, JUDGE, 0, tasks=pipeline.TASKS)
    elsewhere = Decision("run", {**decision.components, "generation": 99})
    stage.note_key(cell, JUDGE, 0, elsewhere)
    study = watcher(cell)
    ask(study, cell, elsewhere.key)
    while is_left(study):
        study._reply("one")
    told = refusal(study)
    assert told is not None and "generation" in told
    assert told.startswith("75: judge: whoever started this process expected key")


def test_an_ask_outlives_pods_that_are_taken_away_and_what_does_not_answer(
    cell: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, key = watcher(cell), key_of(cell)
    errors = Interrupted("deleted from outside"), Unavailable("the store does not answer")
    fails(monkeypatch, *errors, then=lambda: made(cell, "judge", "judge", key))
    ask(study, cell, key)
    for _ in errors:
        study._reply("one")
        assert is_left(study) and refusal(study) is None
    study._reply("one")
    assert not is_left(study) and refusal(study) is None


def test_a_pod_does_not_wait_for_ever_for_what_never_answers(cell: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*given: object, **more: object) -> Decision:
        raise Unavailable("the store does not answer")

    study = watcher(cell)
    ask(study, cell, key_of(cell))
    monkeypatch.setattr(stage, "decide", away)
    tries = 0
    while is_left(study):
        study._reply("one")
        tries += 1
    assert (tries, refusal(study)) == (5, "75: the store does not answer")


def test_a_pod_that_is_killed_each_time_is_made_as_often_as_a_trial_may_lose_a_worker(
    cell: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = watcher(cell)
    errors = [Killed(f"pod {number} was OOMKilled (137)") for number in range(1, 5)]
    fails(monkeypatch, *errors, then=lambda: None)
    ask(study, cell, key_of(cell))
    tries = 0
    while is_left(study):
        study._reply("one")
        tries += 1
    assert (tries, refused_as(study), refusal(study)) == (3, "Killed", "1: pod 3 was OOMKilled (137)")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (DataError("the result is none"), "65: the result is none"),
        (Unfit("no head fits this model"), "64: no head fits this model"),
        (ApiException(status=403, reason="Forbidden"), "1: ApiException: (403)\nReason: Forbidden\n"),
        (IndexError("tuple index out of range"), "1: IndexError: tuple index out of range"),
    ],
)
def test_what_would_end_the_watcher_again_is_told_to_the_pod_at_once(
    cell: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    study = watcher(cell)
    fails(monkeypatch, error, then=lambda: None)
    ask(study, cell, key_of(cell))
    study._reply("one")
    assert not is_left(study) and refusal(study) == told
    assert refused_as(study) == (type(error).__name__ if isinstance(error, WmtpError) else "WmtpError")


def test_a_watcher_that_is_stopped_leaves_the_ask_to_its_retry(cell: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    study = watcher(cell)
    fails(monkeypatch, DataError("half a result"), then=lambda: None)
    ask(study, cell, key_of(cell))
    stage_task.stopped.set()
    try:
        with pytest.raises(DataError, match="half a result"):
            study._reply("one")
    finally:
        stage_task.stopped.clear()
    assert is_left(study) and refusal(study) is None


def test_asks_that_cannot_be_listed_now_are_answered_at_a_later_look(
    cell: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(self: Inbox) -> list[str]:
        raise Unavailable("the store does not answer")

    monkeypatch.setattr("wmtp.pods.SECONDS_BETWEEN_LOOKS", 0.0)
    monkeypatch.setattr(asks, "SECONDS_BETWEEN_LOOKS", 0.0)
    made(cell, "judge", "judge", key_of(cell))
    study = watcher(cell)
    ask(study, cell, key_of(cell))
    with monkeypatch.context() as outage:
        outage.setattr(Inbox, "names", away)
        study._pause()
    assert "cannot be seen to now: the store does not answer" in caplog.text and is_left(study)
    study._pause()
    assert not is_left(study) and refusal(study) is None


ASKER = Identity("d", "wmtp_tune", "week", "search", 1, 1)


def trial(cell: str = "a", **operator: Any) -> TrialStage:
    return TrialStage(asker=ASKER, task_id="judge", environment_file=str(EKS), cell=cell, **operator)


def cell_on(s3: S3Server, folder: Path) -> Run:
    store = {"store": f"s3://{BUCKET}/{folder.name}", "s3": s3.access(folder / "cache"), "mlflow_uri": "none"}
    return cell_in(Environment.model_validate(store))


def sends(order: Order, *files: Path) -> None:
    """As a pod does at its end."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for file in files:
            tar.add(file, file.name)
    target = json.loads(str(order.addresses))["target"]
    with urlopen(Request(target, data=packed.getvalue(), method="PUT")):
        pass


def test_two_that_ask_for_one_verdict_have_one_pod(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their pods would have one name."""
    cell = cell_on(s3, tmp_path)
    pods: list[Identity] = []

    def as_a_pod(operator: TrialStage, environment: Environment, order: Order, context: object) -> None:
        pods.append(order.identity)
        (tmp_path / "metrics.json").write_text("{}")
        (tmp_path / "result").mkdir()
        sends(order, tmp_path / "metrics.json", tmp_path / "result")
        time.sleep(1)  # until the other one has come

    monkeypatch.setattr(TrialStage, "carry_out", as_a_pod)
    studies = [watcher(cell, "search"), watcher(cell, "select")]
    for study in studies:
        ask(study, cell, key_of(cell))
    threads = [threading.Thread(target=study._reply, args=("one",), daemon=True) for study in studies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    assert len(pods) == 1 and pods[0].asked_by in ("search", "select")
    assert [(is_left(study), refusal(study)) for study in studies] == [(False, None)] * 2
    assert cell.artifact("judge") is not None


@pytest.mark.parametrize(
    ("told", "error", "refused"),
    [("OutOfMemory", DataError("65"), "OutOfMemory"), ("OutOfMemory", UserError("64"), "UserError"), (None, DataError("65"), "DataError")],
)  # fmt: skip
def test_the_class_that_a_pod_tells_is_the_one_that_a_trial_is_told(
    *, told: str | None, error: WmtpError, refused: str, tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the exit code allows it: its programs are a model's."""
    cell = cell_on(s3, tmp_path)

    def as_a_pod(operator: TrialStage, environment: Environment, order: Order, context: object) -> None:
        if told:
            (tmp_path / "error.json").write_text(json.dumps({"error": told}))
            sends(order, tmp_path / "error.json")
        raise error

    monkeypatch.setattr(TrialStage, "carry_out", as_a_pod)
    study = watcher(cell)
    ask(study, cell, key_of(cell))
    study._reply("one")
    assert (refused_as(study), refusal(study)) == (refused, f"{error}: {error}")


@pytest.mark.parametrize(("is_away", "is_stopped"), [(True, True), (True, False), (False, True)])
def test_a_server_that_is_silent_is_waited_for_once_by_a_watcher_that_is_stopped(
    cell: Run, monkeypatch: pytest.MonkeyPatch, is_away: bool, is_stopped: bool
) -> None:
    asked: list[str] = []

    def read(name: str, *given: object, **more: object) -> None:
        asked.append(name)
        raise HTTPError("timed out") if is_away else ApiException(status=404)

    def make(operator: TrialStage, *given: object) -> None:
        operator._part_with(Identity("d", "wmtp_tune", "week", "judge", 0))
        raise Interrupted("stopped")

    monkeypatch.setattr("wmtp.pods.PARTING_SECONDS", 0.0)
    monkeypatch.setattr("wmtp.submission.PARTING_SECONDS", 0.0)
    monkeypatch.setattr(StudyStage, "client", SimpleNamespace(read_namespaced_pod=read))
    monkeypatch.setattr(TrialStage, "client", SimpleNamespace(read_namespaced_pod=read))
    monkeypatch.setattr(TrialStage, "make", make)
    study = watcher(cell)
    ask(study, cell, key_of(cell))
    if is_stopped:
        stage_task.stopped.set()
    try:
        with pytest.raises(Interrupted) if is_stopped else nullcontext():
            study._reply("one")
        study._part_with(ASKER)
    finally:
        stage_task.stopped.clear()
    assert [name for name in asked if name == ASKER.name] == ([] if is_away and is_stopped else [ASKER.name])


@pytest.mark.parametrize("phase", ["Failed", "Succeeded", None])
def test_nothing_more_is_made_for_a_pod_that_is_gone(monkeypatch: pytest.MonkeyPatch, phase: str | None) -> None:
    def pod(name: str, *given: object, **more: object) -> k8s.V1Pod:
        assert name == ASKER.name
        if phase is None:
            raise ApiException(status=404)
        return k8s.V1Pod(status=k8s.V1PodStatus(phase=now))

    monkeypatch.setattr("wmtp.pods.SECONDS_BETWEEN_LOOKS", 0.0)
    operator, now = trial(), "Running"
    operator.__dict__["client"] = SimpleNamespace(read_namespaced_pod=pod)
    if phase is not None:
        operator._pause()
        now = phase
    with pytest.raises(Interrupted, match=r"wmtp-search-1-\w+, which asked for it, is gone"):
        operator._pause()


def test_what_a_study_asks_for_takes_no_room_from_it() -> None:
    """A pod of the night's priority could evict the one that asked for it."""
    environment = load_environment(EKS)
    operator = trial()
    operator.__dict__["hook"] = SimpleNamespace(is_in_cluster=True)
    instance = SimpleNamespace(dag_id="wmtp_tune", task_id="search", map_index=1, try_number=1)
    context: Any = {"ti": instance, "run_id": "week", "dag": None}
    order = Order(operator._identity_in(environment, context), "judge", "0", [], {}, deadline_seconds=None)
    wanted = operator.request(environment, operator.in_sandbox(order, "module:function", "addresses"), context)
    cluster = environment.kubernetes
    assert cluster is not None and cluster.profiles["sandbox"].priority_class == "wmtp-daily"
    assert wanted.spec.priority_class_name == cluster.profiles["tuning"].priority_class == "wmtp-tuning"


def test_a_pod_of_a_study_is_told_where_it_asks_and_what_it_asks_for_is_made_in_its_tasks_name(
    cell: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WMTP_ENVIRONMENT", str(EKS))
    for task in ("search", "select"):
        assert type(operator_of(task)) is StudyStage
        operator = StudyStage(task_id=task, environment_file=str(EKS))
        study = Run(cell.store, load_environment(EKS), "runs/x/wmtp_tune/week", cell.spec)
        order = operator.order(study, pipeline.every()[task], Decision("done"), CONTEXT)
        assert order.variables[asks.PLACE] == f"runs/x/wmtp_tune/week/asks/{task}.0"
    assert type(operator_of("conclude")) is PodStage

    found = [trial(one)._identity_in(load_environment(EKS), CONTEXT) for one in ("a", "b")]
    assert found[0] == Identity("d", "wmtp_tune", "week", "judge", 0, 1, "a", "search")
    assert found[0].airflow_task == "search" and len({ASKER.name, *(one.name for one in found)}) == 3
