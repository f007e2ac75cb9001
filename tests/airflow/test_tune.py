"""The DAG `wmtp_tune`, as a laptop runs it."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG
from in_process import run_task
from wmtp import params
from wmtp.local import LocalPlan

if TYPE_CHECKING:
    from conftest import Place

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"source": {"kind": "generated", "num_train": 40, "num_validation": 6, "num_test": 8}},
    "model": {"name": "tiny-coder", "source": {"kind": "random", "hidden_size": 32, "num_layers": 1}},
    "text": {"max_length": 256},
    "scoring": {"scorer": "position"},
    "train": {"num_heads": 2, "steps": 4, "batch_size": 8, "learning_rate": 1.0e-4},
    "evaluation": {"max_new_tokens": 8, "gate": {"split": "test", "limit": 6}, "report": {"split": "test", "skip": 6}},
    "tuning": {
        "num_trials": 4,
        "num_problems": 3,
        "objectives": ["validation_loss"],
        "repeats": 2,
        "space": {"train.learning_rate": {"kind": "float", "low": 1.0e-4, "high": 1.0e-2}},
    },
}  # fmt: skip


# Airflow's own way to change what a DAG says: this machine need not wait half a minute before a task is tried again.
AT_ONCE = """
from datetime import timedelta

def task_policy(task):
    task.retry_delay = timedelta(seconds=1)
"""


@pytest.mark.slow
def test_a_study_whose_worker_is_killed_three_times_ends_with_a_recipe_that_a_night_learns(place: Place) -> None:
    recipe = place.folder / "tiny.yaml"
    # Long enough to be killed in.
    recipe.write_text(yaml.safe_dump(TINY | {"train": TINY["train"] | {"steps": 24}}))
    given = json.loads(place.environment_file.read_text())
    tune = {"storage": "sqlite:///optuna.db", "heartbeat_seconds": 1, "grace_seconds": 2}
    place.environment_file.write_text(json.dumps(given | {"tune": tune}))
    (place.home / "config").mkdir()
    (place.home / "config" / "airflow_local_settings.py").write_text(AT_ONCE)

    with ThreadPoolExecutor(1) as pool:
        study = pool.submit(place.airflow, "wmtp_tune", {"recipe": str(recipe)})
        for num_begun in (1, 2, 3):
            place.wait_until(partial(has_begun, place, num_begun))
            worker(place).kill()
        code, said = study.result()

    assert code == 0, said
    assert started(said)[-6:] == ["search[0]"] * 4 + ["select[0]", "conclude[0]"]
    assert said.count("It was killed by SIGKILL") == 3, said
    (manifest,) = (place.folder / "store/select").glob("*/manifest.json")
    metrics = json.loads(manifest.read_text())["metrics"]
    assert (metrics["num_trials"], metrics["num_complete"], metrics["num_failed"]) == (4, 4, 3)
    (run,) = (place.folder / "store/runs/toys/wmtp_tune").glob("*")
    concluded = json.loads((run / "conclude.json").read_text())
    assert concluded["detail"]["outcome"] == "adopted", concluded["detail"]["reason"]
    assert (run / "report.html").read_text().startswith("<!doctype html>")

    code, said = place.airflow("wmtp_daily", {"recipe": "tuned:tiny"})

    assert code == 0, said
    # What the night would learn, the best trial has learnt.
    assert not {"pull_data[0]", "score[0]", "train[0]"} & {*started(said)} and started(said)[-2:] == [
        "promote[0]",
        "report[0]",
    ]
    (night,) = (place.folder / "store/runs/toys/wmtp_daily").glob("*")
    digest = json.loads((place.folder / "store/tuned/tiny.json").read_text())["digest"]
    assert f"{digest}</span>" in (night / "report.html").read_text()


def has_begun(place: Place, num_trials: int) -> bool:
    return len([*(place.folder / "store/select").glob("*/cells/*")]) >= num_trials


def worker(place: Place) -> psutil.Process:
    """The process of `search`; what it has started has its command line too."""
    return min((one for one in place.processes() if "search" in one.cmdline()), key=psutil.Process.create_time)


@pytest.mark.usefixtures("program_here")
@pytest.mark.parametrize(
    ("recipe", "tune", "why"),
    [
        (TINY | {"tuning": None}, {"storage": "sqlite:///optuna.db"}, "has no part `tuning`"),
        (TINY, {}, "tune.storage of the environment file is empty"),
    ],
)
def test_a_scheduled_run_that_has_nothing_to_look_for_is_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recipe: dict[str, Any], tune: dict[str, str], why: str
) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    here = {"deployment": "toys", "store": "store", "mlflow_uri": "sqlite:///mlflow.db", "tune": tune}
    (tmp_path / "environment.yaml").write_text(yaml.safe_dump(here))
    with DAG("wmtp_tune", params=params()) as dag:
        plan = LocalPlan(task_id="plan", environment_file=str(tmp_path / "environment.yaml"), is_study=True)
        below = EmptyOperator(task_id="below")
        plan >> below >> EmptyOperator(task_id="last", trigger_rule="none_failed")
    with caplog.at_level("INFO"):
        server, error = run_task(
            dag, "plan", run="week", conf={"recipe": str(tmp_path / "tiny.yaml")}, kind="scheduled"
        )
    assert (server.told["state"], sorted(server.skipped)) == ("success", ["below", "last"]), error
    assert why in caplog.text


def started(said: str) -> list[str]:
    return re.findall(r"([\w\[\]]+): starts", said)
