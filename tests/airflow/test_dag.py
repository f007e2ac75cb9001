"""What the DAG files say, as Airflow reads them, and that reading them loads nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlops_tasks.pipeline import PREPARATION, STUDY, TASKS
from mlops_tasks.stage import Stage

CHECKOUT = Path(__file__).resolve().parents[2]
DAGS = sorted((CHECKOUT / "dags").glob("*.py"))

READ = """
import json, sys
sys.path[:0] = ["plugins", "dags"]
import evaluate_champion, housekeeping, model_rollback, wmtp_compare, wmtp_daily, wmtp_tune
heavy = ("torch", "transformers", "mlflow", "optuna", "boto3", "pyarrow", "pandas", "numpy", "kubernetes")
loaded = [name for name in heavy if name in sys.modules]
from airflow.dag_processing.dagbag import DagBag
bag = DagBag("dags")
dag, back, compare = bag.dags["wmtp_daily"], bag.dags["model_rollback"], bag.dags["wmtp_compare"]
print("READ", json.dumps({
    "loaded": loaded,
    "errors": bag.import_errors,
    "dags": sorted(bag.dags),
    "dag": {name: str(getattr(dag, name)) for name in ("schedule", "catchup", "max_active_runs", "max_active_tasks", "start_date", "doc_md")},
    "params": dag.params.dump(),
    "tasks": {task.task_id: {
        "below": sorted(task.downstream_task_ids), "mapped": task.is_mapped, "owner": task.owner, "doc": task.doc_md,
        "retries": task.retries, "rule": task.trigger_rule, "policy": type(task.retry_policy).__name__,
        "hours": task.execution_timeout and task.execution_timeout.total_seconds() / 3600,
    } for task in dag.tasks},
    "weekly": {id: {
        "schedule": str(bag.dags[id].schedule), "catchup": bag.dags[id].catchup, "doc": bag.dags[id].doc_md, "params": bag.dags[id].params.dump(),
        "tasks": [[task.task_id, sorted(task.downstream_task_ids), getattr(task, "index", None)] for task in bag.dags[id].tasks],
        "facts": [[task.owner, task.retries, type(task.retry_policy).__name__, bool(task.execution_timeout), bool(task.doc_md)] for task in bag.dags[id].tasks],
        "rules": {task.task_id: task.trigger_rule for task in bag.dags[id].tasks},
    } for id in ("evaluate_champion", "housekeeping", "wmtp_tune")},
    "compare": {
        "schedule": str(compare.schedule), "doc": compare.doc_md, "params": compare.params.dump(),
        "tasks": [[task.task_id, sorted(task.downstream_task_ids), task.is_mapped] for task in compare.tasks],
        "facts": [[task.owner, task.retries, type(task.retry_policy).__name__, bool(task.execution_timeout), bool(task.doc_md), task.trigger_rule] for task in compare.tasks],
    },
    "rollback": {
        "schedule": str(back.schedule), "doc": back.doc_md, "params": back.params.dump(),
        "tasks": [[task.task_id, task.owner, task.retries, type(task.retry_policy).__name__, bool(task.execution_timeout), bool(task.doc_md)] for task in back.tasks],
    },
}))
"""


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("airflow")
    environment = {"AIRFLOW_HOME": str(home), "PATH": "/usr/bin:/bin", "HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", READ], cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("READ"))[5:])
    return found


def test_every_dag_file_is_read_without_an_error(read: dict[str, Any]) -> None:
    assert read["errors"] == {}
    assert read["dags"] == [path.stem for path in DAGS]


def test_reading_the_dag_loads_nothing_heavy(read: dict[str, Any]) -> None:
    assert read["loaded"] == []


@pytest.mark.parametrize("path", DAGS, ids=lambda path: path.name)
def test_a_dag_file_has_less_than_80_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 80


def test_the_shape_is_the_pipeline(read: dict[str, Any]) -> None:
    assert {name: task["below"] for name, task in read["tasks"].items()} == {
        "plan": ["pull_data", "pull_model", "reference"],
        "pull_data": ["pull_reference", "reference"],
        "pull_model": ["reference"],
        "pull_reference": ["reference"],
        "reference": ["reward"],
        "reward": ["fit_critic"],
        "fit_critic": ["score_shard"],
        "score_shard": ["score"],
        "score": ["train"],
        "train": ["generate"],
        "generate": ["judge"],
        "judge": ["approve"],
        "approve": ["promote"],
        "promote": ["report"],
        "report": [],
    }
    assert [name for name, task in read["tasks"].items() if task["mapped"]] == [
        "reference",
        "score_shard",
        "generate",
        "judge",
    ]


def test_every_task_has_an_owner_retries_a_time_limit_and_a_description(read: dict[str, Any]) -> None:
    for name, task in read["tasks"].items():
        assert task["owner"] == "wmtp", name
        assert task["retries"] == 2, name
        assert task["policy"] == "ExceptionRetryPolicy", name
        assert 0 < task["hours"] <= 12, name
        assert task["rule"] == "none_failed", f"{name} would be skipped with what is above it"
        assert task["doc"], name


def test_it_runs_every_day_and_one_at_a_time(read: dict[str, Any]) -> None:
    dag = read["dag"]
    assert (dag["schedule"], dag["catchup"], dag["max_active_runs"], dag["max_active_tasks"]) == (
        "@daily",
        "False",
        "1",
        "1",
    )
    assert dag["start_date"].startswith("2026-01-01")
    assert "The daily run" in dag["doc_md"]


def test_the_defaults_of_the_form_are_those_of_the_trigger(read: dict[str, Any]) -> None:
    assert read["params"] == {"recipe": "demo", "overrides": [], "force": []}


def test_a_rollback_is_one_task_that_is_started_by_hand(read: dict[str, Any]) -> None:
    dag = read["rollback"]
    assert (dag["schedule"], dag["params"]["version"]) == ("None", None)
    assert dag["tasks"] == [["roll_back", "wmtp", 2, "ExceptionRetryPolicy", True, True]]
    assert "Roll a model back" in dag["doc"]


def test_a_comparison_is_the_stages_of_the_pipeline_mapped_over_its_cells(read: dict[str, Any]) -> None:
    dag, stages = read["compare"], [task.id for task in TASKS.values() if isinstance(task.run, Stage)]
    assert (dag["schedule"], dag["params"]) == ("None", {"comparison": "demo"})
    assert [name for name, _, is_mapped in dag["tasks"] if is_mapped] == stages
    assert (
        {name: below for name, below, _ in dag["tasks"]}
        == {
            "plan": sorted(stages),  # which all read the names of the cells
            **{name: [below] for name, below in zip(stages, [*stages[1:], "contrast"], strict=True)},
            "contrast": [],
        }
    )
    assert dag["doc"]
    assert all(facts == ["wmtp", 2, "ExceptionRetryPolicy", True, True, "none_failed"] for facts in dag["facts"])


def test_the_champion_is_evaluated_every_week_and_nothing_else_is_done(read: dict[str, Any]) -> None:
    dag = read["weekly"]["evaluate_champion"]
    assert (dag["schedule"], dag["catchup"]) == ("0 12 * * SUN", False)
    assert dag["params"] == read["params"]
    champion = 2  # (baseline, gate)
    assert dag["tasks"] == [
        ["plan", ["pull_data"], 0],
        ["pull_data", ["generate"], 0],
        ["generate", ["judge"], champion],
        ["judge", ["watch"], champion],
        ["watch", [], 0],
    ]


def test_housekeeping_looks_before_it_removes(read: dict[str, Any]) -> None:
    dag = read["weekly"]["housekeeping"]
    assert (dag["schedule"], dag["catchup"], dag["params"]) == ("0 18 * * SUN", False, {"delete": None})
    assert dag["tasks"] == [["look", ["remove"], None], ["remove", [], None]]


def test_a_better_recipe_is_looked_for_every_week_after_what_trials_share_is_there(read: dict[str, Any]) -> None:
    dag = read["weekly"]["wmtp_tune"]
    assert (dag["schedule"], dag["catchup"]) == ("0 20 * * SAT", False)
    assert dag["params"] == read["params"]
    below = {name: others for name, others, _ in dag["tasks"]}
    assert list(below) == ["plan", *PREPARATION, *STUDY]
    assert [below[name] for name in ("score", "search", "select", "conclude")] == [
        ["search"],
        ["select"],
        ["conclude"],
        [],
    ]


def test_weekly_tasks_have_an_owner_retries_a_time_limit_and_a_description(read: dict[str, Any]) -> None:
    for dag in read["weekly"].values():
        assert dag["doc"]
        # What trains for a day or two where others go first is started anew as often as it is preempted.
        tries = [
            (50, "LongPolicy") if name in ("search", "select") else (2, "ExceptionRetryPolicy")
            for name, _, _ in dag["tasks"]
        ]
        assert dag["facts"] == [["wmtp", count, policy, True, True] for count, policy in tries]


def test_a_study_is_concluded_whatever_became_of_single_workers(read: dict[str, Any]) -> None:
    rules = read["weekly"]["wmtp_tune"]["rules"]
    assert {name for name, rule in rules.items() if rule == "all_done"} == {"select"}
