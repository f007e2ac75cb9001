"""The step before a promotion: nobody is asked, or a person is, with what there is to know."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG
from in_process import run_task
from nights import STRONG, WEAK, Night
from wmtp import approval, stage
from wmtp.approval import AutomaticApproval

pytestmark = pytest.mark.usefixtures("program_here")

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
