"""What Airflow is told of the champion: the event of a promotion, and the alarm of a decay."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG
from in_process import run_task
from nights import NAME, STRONG, STRONGER, WEAK, Night, tuesday
from wmtp import links, params, rollback, rollback_params, stage
from wmtp.champion import CHAMPIONS, champion_asset

from mlops_tasks import report
from mlops_tasks.registry import moves
from mlops_tasks.registry.moves import Order
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


def test_a_promotion_links_to_the_gates_in_the_report_and_to_the_version(
    monday: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = monday.run(STRONG, WEAK)
    monkeypatch.setenv("WMTP_MLFLOW_UI", "http://mlflow.test/")
    dag = dag_of("promote")
    with dag:
        stage("report")
    server, _ = run_task(dag, "promote", run="monday")
    assert server.xcoms["_link_ReportLink"].endswith(f"/wmtp/{run.prefix}/report.html#gates")
    assert server.xcoms["_link_VersionLink"] == "http://mlflow.test/#/models/coder/versions/1"


def test_a_dag_without_a_report_links_to_none(monday: Night) -> None:
    monday.run(STRONG, WEAK)
    server, _ = run_task(dag_of("promote"), "promote", run="monday")
    assert server.xcoms["_link_ReportLink"] == ""


def test_links_into_a_report_lead_to_parts_of_it() -> None:
    assert {part for part in links._PARTS.values() if part} <= {f"#{section}" for section in report._SECTIONS}


def test_a_refusal_is_no_event(monday: Night) -> None:
    monday.run(WEAK, WEAK)
    server, _ = run_task(dag_of("promote"), "promote", run="monday")
    assert (server.told["state"], server.told["outlet_events"]) == ("success", [])


def rolled_back(run: str = "back", **conf: str) -> dict[str, Any]:
    """What Airflow was told of a rollback."""
    with DAG("model_rollback", schedule=None, start_date=datetime(2026, 1, 1), params=rollback_params()) as dag:
        rollback("roll_back")
    server, error = run_task(dag, "roll_back", run=run, conf={"model": NAME, "reason": "x", **conf})
    assert error is None
    return server.told


def test_a_rollback_is_an_event_with_the_version_that_production_loads_again(monday: Night) -> None:
    first = monday.run(STRONG, WEAK).artifact("train")
    assert first is not None
    promote(Run.open(monday.environment, "runs/laptop/wmtp_daily/monday"))
    promote(tuesday(monday).run(STRONGER, STRONG))

    (event,) = rolled_back()["outlet_events"]

    assert event["dest_asset_key"]["name"] == champion_asset(NAME).name
    assert event["extra"] == {
        "model": NAME, "version": "1", "manifest": f"{monday.store.uri}/train/abc/{MANIFEST}", "digest": first.digest,
    }  # fmt: skip


def test_a_rollback_that_is_repeated_when_the_champion_has_moved_on_is_no_event(monday: Night) -> None:
    promote(monday.run(STRONG, WEAK))
    promote(tuesday(monday).run(STRONGER, STRONG))
    assert len(rolled_back()["outlet_events"]) == 1
    moves.promote(monday.environment, NAME, Order("promote", "2", by="anna", reason="it was the data"))
    assert rolled_back()["outlet_events"] == []


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
