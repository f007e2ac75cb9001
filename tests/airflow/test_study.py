"""What the operator of a study does with an ask, where that needs no cluster."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_tune import TINY
from wmtp import stage as operator_of
from wmtp import task as stage_task
from wmtp.kubernetes import PodStage
from wmtp.manifest import Identity
from wmtp.study import StudyStage, TrialStage

from mlops_tasks import pipeline, stage
from mlops_tasks.config.environment import Environment
from mlops_tasks.config.loading import load_environment
from mlops_tasks.config.recipe import Recipe
from mlops_tasks.errors import Unavailable
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
    environment = Environment.model_validate({"store": str(tmp_path), "mlflow_uri": "none"})
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


def answered(cell: Run, key: str) -> tuple[list[str], str | None]:
    """Asks that are left, and the refusal."""
    study = Run(cell.store, cell.environment, "runs/x/wmtp_tune/week", cell.spec)
    operator = StudyStage(task_id="search", environment_file=str(EKS), index=1)
    inbox = operator._inbox = Inbox(cell.store, asks.place_of(study, "search", 1))
    ask = Ask(cell=cell.prefix, task="judge", index=0, key=key)
    cell.store.write_json(f"{inbox.place}/one.json", ask.model_dump())
    operator._answer("one", environment=cell.environment, context=CONTEXT)
    refused = cell.store.read_json(f"{inbox.place}/refused/one.json")
    return inbox.names(), refused and f"{refused['exit_code']}: {refused['message']}"


def test_a_verdict_that_is_there_starts_no_pod(cell: Run) -> None:
    made(cell, "judge", "judge", key_of(cell))
    assert answered(cell, key_of(cell)) == ([], None)


def test_a_pod_of_another_build_is_told_what_differs(cell: Run) -> None:
    decision = stage.decide(cell, JUDGE, 0, tasks=pipeline.TASKS)
    elsewhere = Decision("run", {**decision.components, "generation": 99})
    stage.note_key(cell, JUDGE, 0, elsewhere)
    left, refusal = answered(cell, elsewhere.key)
    assert left == [] and refusal is not None
    assert refusal.startswith("75: judge: whoever started this process expected key") and "generation" in refusal


def test_a_failure_is_told_and_an_end_from_outside_is_not(cell: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: object) -> None:
        raise Unavailable("no node for it")

    monkeypatch.setattr(TrialStage, "make", fails)
    assert answered(cell, key_of(cell)) == ([], "75: no node for it")

    stage_task.stopped.set()
    try:
        with pytest.raises(Unavailable, match="no node for it"):
            answered(cell, key_of(cell))
    finally:
        stage_task.stopped.clear()
    place = "runs/x/wmtp_tune/week/asks/search.1"
    assert Inbox(cell.store, place).names() == ["one"], "the retry finds it"


def test_a_store_that_is_away_for_a_while_ends_no_trial(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(self: Inbox) -> list[str]:
        raise Unavailable("the store does not answer")

    monkeypatch.setattr(Inbox, "names", away)
    monkeypatch.setattr("wmtp.pods.SECONDS_BETWEEN_LOOKS", 0.0)
    operator = StudyStage(task_id="search", environment_file=str(EKS))
    operator._inbox = Inbox(Store.open("/nowhere"), "x")
    operator._pause()
    assert "cannot be seen to now: the store does not answer" in caplog.text


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

    asker = Identity("d", "wmtp_tune", "week", "search", 1, 1)
    trials = [
        TrialStage(asker=asker, task_id="judge", environment_file=str(EKS), index=0, cell=one) for one in ("a", "b")
    ]
    found = [one._identity_in(load_environment(EKS), CONTEXT) for one in trials]
    assert found[0] == Identity("d", "wmtp_tune", "week", "judge", 0, 1, "a", "search")
    assert found[0].airflow_task == "search" and len({asker.name, *(one.name for one in found)}) == 3
