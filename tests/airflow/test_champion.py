"""What Airflow is told of the champion: the event of a promotion, and the alarm of a decay."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest
from airflow.sdk import DAG
from in_process import run_task
from nights import NAME, STRONG, WEAK, Night
from wmtp import stage
from wmtp.local import CHAMPIONS, champion_asset

from mlops_tasks.store import MANIFEST

pytestmark = pytest.mark.usefixtures("program_here")


@pytest.fixture(autouse=True)
def environment_file(monday: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment of the nights, as a file."""
    path = tmp_path / "environment.json"
    path.write_text(json.dumps(monday.environment.model_dump(mode="json", exclude_unset=True)))
    monkeypatch.setenv("WMTP_ENVIRONMENT", str(path))
    return path


def dag_of(task_id: str, dag_id: str = "wmtp_daily") -> DAG:
    with DAG(dag_id, schedule=None, start_date=datetime(2026, 1, 1)) as dag:
        stage(task_id)
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
