"""Claims about the runs in MLflow that housekeeping lets go, on a real SQLite database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from nights import STRONG, WEAK, Night

from mlops_tasks import tracking
from mlops_tasks.config.environment import Environment
from mlops_tasks.registry import old_runs
from mlops_tasks.registry.promotion import promote

LATER = datetime.now(UTC) + timedelta(days=91)


def trained(environment: Environment, key: str) -> str:
    """A training that was logged, and came to nothing."""
    with tracking.connection(environment) as client:
        run = tracking.find_or_create_run(client, environment, stage_key=key, experiment="wmtp/uniform/demo")
        return str(run.info.run_id)


def found(environment: Environment, now: datetime = LATER) -> list[str]:
    return [run.run_id for run in old_runs.find(environment, now=now)]


def test_a_training_without_a_version_that_left_the_store_goes_when_it_is_old(monday: Night) -> None:
    promote(monday.run(STRONG, WEAK))  # has a version, and is in the store
    lost, kept, resumes = (trained(monday.environment, key) for key in ("lost", "kept", "resumes"))
    monday.store.commit(monday.store.begin("train/kept"), {})
    monday.store.commit(monday.store.begin("train/resumes/checkpoints/step-1"), {})

    assert found(monday.environment) == [lost]
    assert found(monday.environment, now=LATER - timedelta(days=2)) == []

    (told,) = old_runs.find(monday.environment, now=LATER)
    assert f"MLflow run {lost}  train-lost of 20" in str(told)
    old_runs.delete(monday.environment, [told])
    assert found(monday.environment) == []
    with tracking.connection(monday.environment) as client:
        stages = {run: client.get_run(run).info.lifecycle_stage for run in (lost, kept, resumes)}
    assert stages == {lost: "deleted", kept: "active", resumes: "active"}


def test_a_version_keeps_its_run_although_its_artifact_has_gone(monday: Night) -> None:
    promote(monday.run(STRONG, WEAK))
    monday.store.quarantine("train/abc", "gone")
    monday.store.remove("train/abc")
    assert monday.store.children("train/abc") == []
    assert found(monday.environment) == []


def test_runs_of_others_are_left_alone(monday: Night, tmp_path: Path) -> None:
    mine = {tracking.STORE_TAG: monday.store.uri, tracking.KIND_TAG: "train"}
    with tracking.connection(monday.environment) as client:
        ours = client.create_experiment("wmtp/uniform/demo")
        client.create_run(client.create_experiment("mine"), tags={tracking.KEY_TAG: "lost", **mine})
        client.create_run(ours, tags={"by": "hand", **mine})
        client.create_run(ours, tags={tracking.KEY_TAG: "from before runs named their store"})
        tracking.study_run(client, monday.environment, study_key="a study", experiment="wmtp/uniform/demo")
    elsewhere = monday.environment.model_copy(update={"store": str(tmp_path / "elsewhere")})
    theirs = trained(elsewhere, "lost")
    assert found(monday.environment) == []
    assert found(elsewhere) == [theirs]


@pytest.mark.parametrize("days", [None, 200.0])
def test_the_policy_of_the_environment_file_decides(monday: Night, days: float | None) -> None:
    trained(monday.environment, "lost")
    policy = monday.environment.housekeeping.model_copy(update={"mlflow_days": days})
    assert found(monday.environment.model_copy(update={"housekeeping": policy})) == []


def test_to_look_makes_no_database(environment: Environment, tmp_path: Path) -> None:
    assert old_runs.find(environment) == []
    assert not (tmp_path / "mlflow.db").exists()
