"""A comparison of models of a few thousand weights, end to end: what runs, what hits, what it comes to."""

from __future__ import annotations

import io
from collections import Counter
from contextlib import redirect_stdout
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from mlops_tasks import algorithms
from mlops_tasks.__main__ import main
from mlops_tasks.algorithms import Cells
from mlops_tasks.algorithms.findings import PURPOSES, Findings, Result
from mlops_tasks.config.environment import Environment
from mlops_tasks.config.loading import load_environment
from mlops_tasks.housekeeping import Collector
from mlops_tasks.store import Store
from mlops_tasks.tracking import connection

RECIPE = {
    "name": "tiny",
    "data": {"source": {"kind": "generated", "num_train": 40, "num_validation": 6, "num_test": 5}},
    "model": {"name": "tiny-coder", "source": {"kind": "random", "hidden_size": 32, "num_layers": 1}},
    "text": {"max_length": 256},
    "scoring": {"scorer": "rho1", "reference": {"kind": "cross-fitted", "num_folds": 2, "train": {"num_heads": 1, "steps": 2, "batch_size": 4}}},
    "train": {"num_heads": 2, "steps": 3, "batch_size": 8, "learning_rate": 0.003},
    "evaluation": {"max_new_tokens": 6},
}  # fmt: skip
COMPARISON = {
    "name": "tiny",
    "recipe": "recipe.yaml",
    "baseline": "uniform",
    "seeds": [0, 1],
    "algorithms": {"uniform": {}, "rho1-soft": {}, "shuffled": {}},
}
ENVIRONMENT = {"store": "store", "mlflow_uri": "sqlite:///mlflow.db", "mlflow_artifacts": "mlflow"}


def wmtp(place: Path, *arguments: str) -> tuple[int, str]:
    out = io.StringIO()
    with redirect_stdout(out):
        code = main([*arguments, "--env", str(place / "environment.yaml")])
    return code, out.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    for name, tree in (("recipe", RECIPE), ("comparison", COMPARISON), ("environment", ENVIRONMENT)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    return folder


@pytest.fixture(scope="module")
def told(place: Path) -> str:
    """What the program said of the whole comparison."""
    code, text = wmtp(place, "comparison", "run", str(place / "comparison.yaml"))
    assert code == 0
    return text


@pytest.fixture
def cells(place: Path, told: str) -> Cells:
    return next(algorithms.planned(load_environment(place / "environment.yaml")))


def outcomes(cells: Cells) -> Counter[str]:
    found = Counter[str]()
    for cell in cells.plan.cells:
        found.update(one.outcome for one in cells.run(cell).pointers())
    return found


def test_every_cell_is_made_and_what_cells_share_is_made_once(cells: Cells) -> None:
    made = Counter(
        (pointer.task, pointer.outcome) for cell in cells.plan.cells for pointer in cells.run(cell).pointers()
    )
    # Three algorithms with two seeds: one pull, and two folds of a reference for each seed, whichever algorithm needs them.
    assert (made["pull_data", "run"], made["pull_data", "hit"]) == (1, 5)
    assert (made["reference", "run"], made["reference", "hit"]) == (4, 4)
    assert made["train", "run"] == 6
    assert made["promote", "done"] == 0


def test_the_table_has_a_verdict_and_says_what_was_equal(told: str) -> None:
    lines = told.splitlines()
    assert next(line for line in lines if line.startswith("uniform ")).split()[:4] == [
        "uniform",
        "0.000",
        "0.000",
        "0.000",
    ]
    assert any(line.startswith("shuffled: no difference from uniform is shown") for line in lines)
    assert "optimiser steps (3)" in told and "NOT EQUAL" not in told


def test_the_trainings_of_a_seed_learnt_the_same_batches_and_those_of_another_seed_others(cells: Cells) -> None:
    batches = {(one.cell.arm, one.cell.seed): one.train.metrics["batches_sha256"] for one in results(cells)}
    for seed in (0, 1):
        assert len({batches[arm, seed] for arm in cells.plan.arms}) == 1
    assert batches["uniform", 0] != batches["uniform", 1]


def test_what_several_need_is_charged_to_each_and_counted_once(cells: Cells) -> None:
    findings = Findings.of(cells)
    charged = {arm.name: {purpose for purpose in PURPOSES if arm.charge(purpose) > 0} for arm in findings.arms}
    assert charged["uniform"] == {"training", "evaluation", "data and models"}
    assert charged["rho1-soft"] == charged["shuffled"] == charged["uniform"] | {"reference", "scores"}
    tokens = {arm.name: arm.num_tokens for arm in findings.arms}
    assert tokens["shuffled"] == tokens["rho1-soft"] > tokens["uniform"]
    seconds = {
        one["prefix"]: one["seconds"]
        for result in results(cells)
        for one in (
            {"prefix": made.prefix, "seconds": made.manifest["device_seconds"]} for made in result.needed.values()
        )
    }
    assert findings.spent == pytest.approx(sum(seconds.values()))


def test_the_page_is_one_file_with_every_part(cells: Cells) -> None:
    data = cells.store.backend.read(f"{cells.prefix}/report.html") or b""
    text = data.decode()
    assert len(data) < 3_000_000 and "<script" not in text and "http://" not in text.replace("http-equiv", "")
    for words in (
        "Verdict",
        "Difference from uniform",
        "Validation loss",
        "Learning curves",
        "Cost",
        "What was equal",
        "placebo",
    ):
        assert words in text


def test_mlflow_has_one_run_with_a_nested_one_for_each_cell(place: Path, cells: Cells) -> None:
    with connection(load_environment(place / "environment.yaml")) as client:
        found = client.get_experiment_by_name("wmtp/comparison/tiny")
        runs = client.search_runs([found.experiment_id])
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    nested = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(run.info.run_name for run in nested) == sorted(cell.name for cell in cells.plan.cells)
    assert {run.data.params["algorithm"] for run in nested} == {"uniform", "rho1-soft", "shuffled"}
    assert parent.data.metrics["shuffled/corrected_p"] == 1


def test_a_second_comparison_computes_nothing_and_is_the_same_run(place: Path, cells: Cells) -> None:
    code, text = wmtp(place, "comparison", "run", str(place / "comparison.yaml"))
    assert code == 0
    assert len(list(algorithms.planned(cells.environment))) == 1
    assert outcomes(cells)["run"] == 0
    assert "no difference" in text


def test_a_comparison_of_another_version_is_told_and_passed_over(
    environment: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    place = f"runs/{environment.deployment}/wmtp_comparison/old/{algorithms.FILE}"
    Store.of(environment).create_json(place, {"cells": []})
    assert list(algorithms.planned(environment)) == []
    assert f"{place} was written by a version with other settings" in caplog.text


def test_a_cell_is_gone_on_with_where_the_comparison_was_killed(place: Path, cells: Cells) -> None:
    """What a killed process leaves: pointers and artifacts of the cells that it had done."""
    run = cells.run(cells.plan.cells[-1])
    for task in ("train", "generate.1", "judge.1"):
        run.store.backend.delete(f"{run.prefix}/{task}.json")
    assert wmtp(place, "comparison", "show")[1].count("3 not yet") == 1
    assert wmtp(place, "comparison", "run", str(place / "comparison.yaml"))[0] == 0
    assert outcomes(cells)["run"] == 0


def test_gc_keeps_what_a_comparison_needs(cells: Cells) -> None:
    later = datetime.now(UTC) + timedelta(days=30)
    garbage = Collector(cells.environment, grace=timedelta(days=1), now=later).garbage()
    needed = {made for result in results(cells) for made in result.needed}
    assert needed.isdisjoint({one.prefix for one in garbage if one.manifest is not None})


def results(cells: Cells) -> list[Result]:
    return [Result.of(cells, cell) for cell in cells.plan.cells]
