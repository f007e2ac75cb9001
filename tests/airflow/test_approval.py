"""The step before a promotion: nobody is asked, or a person is, with what there is to know."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG
from in_process import run_task
from nights import NAME, STRONG, STRONGER, WEAK, Night, tuesday
from wmtp import approval, stage
from wmtp.approval import AutomaticApproval

from mlops_tasks.registry.promotion import promote, weigh
from mlops_tasks.tracking import connection

pytestmark = [
    pytest.mark.usefixtures("program_here"),
    # MLflow's own use of SQLAlchemy.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]

PERSON = {"kind": "person", "hours": 6}


def dag_of(night: Night, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> DAG:
    tree = night.environment.model_dump(mode="json", exclude_unset=True) | settings
    file = Path(night.environment.store).parent / "environment.json"
    file.write_text(json.dumps(tree))
    monkeypatch.setenv("WMTP_ENVIRONMENT", str(file))
    with DAG("wmtp_daily", schedule=None, start_date=datetime(2026, 1, 1)) as dag:
        (
            approval("approve")
            >> stage("promote", trigger_rule="none_failed")
            >> stage("report", trigger_rule="none_failed")
        )
    return dag


def test_by_default_nobody_is_asked(monday: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    dag = dag_of(monday, monkeypatch)
    assert isinstance(dag.task_dict["approve"], AutomaticApproval)
    server, _ = run_task(dag, "approve", run="monday")
    assert (server.told["state"], server.asked) == ("success", {})


def test_a_person_is_shown_the_gates_and_the_run_and_has_so_long_to_answer(
    monday: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    monday.run(STRONG, WEAK)
    server, _ = run_task(dag_of(monday, monkeypatch, approval=PERSON), "approve", run="monday")
    form = server.asked
    assert server.told["state"] == "awaiting_input"
    assert form["subject"] == "Shall the candidate of wmtp_daily/monday be the champion of coder?"
    assert (form["options"], form["defaults"]) == (["Approve", "Reject"], ["Reject"])
    assert "- **better** holds: pass@1 is 75.0% against 25.0% of the base model on 40 problems" in form["body"]
    assert "| gate | this model | 40 | 0.750 | 0.598 to 0.858 |" in form["body"]
    assert [line for line in form["body"].splitlines() if line.startswith("##")] == [
        "## Evaluation", "## Training", "## Data", "## Cost",
    ]  # fmt: skip
    assert server.told["timeout"] == "PT6H"


def test_nobody_is_asked_about_what_a_gate_refuses(monday: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    monday.run(WEAK, WEAK)
    server, _ = run_task(dag_of(monday, monkeypatch, approval=PERSON), "approve", run="monday")
    assert (server.told["state"], server.asked) == ("success", {})
    assert "the gates refuse it" in str(server.xcoms["return_value"])


@pytest.mark.parametrize(
    ("champion", "archived", "told"),
    [
        ("1", False, "Version 2 has been the champion before, and version 1 is now."),
        ("1", True, "Version 2 was archived 2026-01-02 00:00"),
        ("2", False, "Version 2 of coder has the very same bytes and is the champion already"),
    ],
)
def test_nobody_is_asked_about_what_no_night_changes(
    monday: Night, monkeypatch: pytest.MonkeyPatch, champion: str, archived: bool, told: str
) -> None:
    promote(monday.run(STRONG, WEAK))
    promote(tuesday(monday).run(STRONGER, STRONG))
    # The night was planned when version 1 was the champion, and has made what version 2 is.
    with connection(monday.environment) as client:
        client.set_registered_model_alias(NAME, "champion", "1")
        wednesday = replace(tuesday(monday), name="wednesday")
        client.set_registered_model_alias(NAME, "champion", champion)
        if archived:
            client.set_model_version_tag(NAME, "2", "archived_at", "2026-01-02T00:00:00")
    run = wednesday.run(STRONGER, STRONG)
    candidate = run.artifact("train")
    assert candidate is not None and weigh(run, candidate).evidence.passed

    server, _ = run_task(dag_of(monday, monkeypatch, approval=PERSON), "approve", run="wednesday")

    assert (server.told["state"], server.asked) == ("success", {})
    assert told in str(server.xcoms["return_value"])
    assert promote(run)["outcome"] in ("refused", "already champion"), "it would have been asked in vain"


@pytest.mark.parametrize(
    ("answer", "is_late", "skipped"),
    [("Approve", False, []), ("Reject", False, ["promote"]), ("Reject", True, ["promote"])],
)
def test_a_rejection_and_no_answer_in_time_skip_the_promotion_and_nothing_below_it(
    monday: Night, monkeypatch: pytest.MonkeyPatch, answer: str, is_late: bool, skipped: list[str]
) -> None:
    monday.run(STRONG, WEAK)
    event = {
        "chosen_options": [answer], "params_input": {}, "responded_by_user": None if is_late else {"id": "1", "name": "anna"},
        "responded_at": datetime(2026, 1, 2, tzinfo=UTC), "timedout": is_late,
    }  # fmt: skip
    server, error = run_task(dag_of(monday, monkeypatch, approval=PERSON), "approve", run="monday", event=event)
    assert (server.told["state"], error) == ("success", None)
    assert [task[0] if isinstance(task, list) else task for task in server.skipped] == skipped
