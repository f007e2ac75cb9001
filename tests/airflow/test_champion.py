"""What Airflow is told of the champion: the event of a promotion, and the alarm of a decay."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG
from in_process import run_task
from nights import NAME, STRONG, WEAK, Night
from wmtp import params, stage
from wmtp.champion import CHAMPIONS, champion_asset

from mlops_tasks.registry.promotion import promote
from mlops_tasks.stage import Run
from mlops_tasks.store import MANIFEST

pytestmark = pytest.mark.usefixtures("program_here")


@pytest.fixture(autouse=True)
def environment_file(monday: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment of the nights, as a file."""
    path = tmp_path / "environment.json"
    path.write_text(json.dumps(monday.environment.model_dump(mode="json", exclude_unset=True)))
    monkeypatch.setenv("WMTP_ENVIRONMENT", str(path))
    return path


def dag_of(task_id: str, **operator: Any) -> DAG:
    with DAG("wmtp_daily", schedule=None, start_date=datetime(2026, 1, 1), params=params()) as dag:
        stage(task_id, **operator)
    return dag


def test_a_promotion_is_an_event_with_the_version_and_where_its_manifest_is(monday: Night) -> None:
    train = monday.run(STRONG, WEAK).artifact("train")
    assert train is not None

    server, error = run_task(dag_of("promote"), "promote", run="monday")

    assert (server.told["state"], error) == ("success", None)
    (event,) = server.told["outlet_events"]
    asset = champion_asset(NAME)
    assert event["source_alias_name"] == CHAMPIONS.name == "wmtp_champion"
    assert event["dest_asset_key"] == {"name": asset.name, "uri": asset.uri}
    assert event["extra"] == {
        "model": NAME, "version": "1", "manifest": f"{monday.store.uri}/train/abc/{MANIFEST}", "digest": train.digest,
    }  # fmt: skip


def test_a_refusal_is_no_event(monday: Night) -> None:
    monday.run(WEAK, WEAK)
    server, _ = run_task(dag_of("promote"), "promote", run="monday")
    assert (server.told["state"], server.told["outlet_events"]) == ("success", [])


def planned(monday: Night, model: str) -> tuple[str, Run]:
    """The plan of a week: how it ended, and the run."""
    conf = {"recipe": "demo", "overrides": [f"model.name={model}"]}
    server, _ = run_task(dag_of("plan", only_champion=True), "plan", run="week", conf=conf)
    return server.told["state"], Run.open(monday.environment, "runs/laptop/wmtp_daily/week")


def test_a_week_without_a_champion_is_skipped(monday: Night) -> None:
    state, run = planned(monday, "of-nobody")
    assert (state, run.spec.only_champion, run.spec.champion) == ("skipped", True, None)


def test_a_week_pins_the_champion(monday: Night) -> None:
    promote(monday.run(STRONG, WEAK))
    state, run = planned(monday, NAME)
    assert state == "success" and run.spec.champion is not None and run.spec.champion.version == "1"
