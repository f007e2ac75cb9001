"""Mapped tasks as pods beside each other on a real API server: workers of a study, and cells of a comparison."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import rig as rigs
import yaml
from postgres_server import postgres
from rig import Rig
from test_kubernetes_training import RECIPE, Night, at_once, night  # noqa: F401  a fixture
from test_tune import TINY as STUDY

from mlops_tasks import algorithms, pipeline, planning, stage
from mlops_tasks.config.loading import load_environment
from mlops_tasks.stage import Run

pytestmark = [
    pytest.mark.kubernetes,
    pytest.mark.slow,
    pytest.mark.skipif(not rigs.IS_AT_HAND, reason=rigs.WHY_NOT),  # before its servers are started
]


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with rigs.started() as started:
        yield started


def run_mapped(night: Night, task: str, run: str, place: int, *, index: int = 0, cell: str | None = None) -> Any:  # noqa: F811
    """What the operator of one of the mapped tasks returns."""
    operator = night.operator(task)
    operator.index, operator.cell = index, cell
    ti = SimpleNamespace(dag_id="adhoc_airflow", task_id=task, map_index=place, try_number=1)
    return operator.execute({"run_id": run, "dag": None, "ti": ti})


def test_workers_of_a_study_share_its_trials_out(
    night: Night,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO")
    with postgres() as (_, files):
        relay = rigs.Relay(files / ".s.PGSQL.5432")
        url = f"postgresql+psycopg2://postgres@127.0.0.1:{relay.port}/postgres"
        night.rig.secret("optuna", {"url": url})
        monkeypatch.setenv("OPTUNA_URL", url)
        night.change("tune", {"storage": "env:OPTUNA_URL", "num_workers": 2})
        night.change("kubernetes.secrets.OPTUNA_URL", {"secret": "optuna", "key": "url"})
        recipe = night.folder / "study.yaml"
        recipe.write_text(yaml.safe_dump(STUDY))
        environment = load_environment(night.environment_file)
        prefix = Run.prefix_of(environment, "adhoc_airflow", "study")
        planning.plan(night.planner(environment), prefix, recipe=recipe, is_study=True)
        run = Run.open(environment, prefix)
        for task in ("pull_data", "pull_model", "score_shard", "score"):
            stage.execute(run, pipeline.every()[task], tasks=pipeline.every())

        found = at_once(*[lambda one=one: run_mapped(night, "search", "study", one, index=one) for one in (0, 1)])  # type: ignore[misc]

    assert [one["cache"] for one in found] == ["done", "done"], found
    assert len(set(re.findall(r"Pod (wmtp-search-\S+) is made", caplog.text))) == 2
    pointers = [run.pointer("search", one) for one in (0, 1)]
    assert sum(one.detail["trials"] for one in pointers if one) == STUDY["tuning"]["num_trials"]


def test_cells_of_a_comparison_train_beside_each_other(
    night: Night,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    night.change("train.num_pods", 1)
    (night.folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    comparison = {"name": "tiny", "recipe": "recipe.yaml", "baseline": "uniform", "seeds": [0], "algorithms": {"uniform": {}, "position": {}}}  # fmt: skip
    (night.folder / "comparison.yaml").write_text(yaml.safe_dump(comparison))
    environment = load_environment(night.environment_file)
    prefix = Run.prefix_of(environment, "adhoc_airflow", "cells")
    algorithms.plan(night.planner(environment), night.folder / "comparison.yaml", prefix)
    cells = algorithms.Cells.open(environment, prefix)
    for cell in cells.plan.cells:
        for task in ("pull_data", "pull_model", "score_shard", "score"):
            stage.execute(cells.run(cell), pipeline.TASKS[task], tasks=pipeline.TASKS)
    names = [cell.name for cell in cells.plan.cells]

    found = at_once(*[lambda one=one, name=name: run_mapped(night, "train", "cells", one, cell=name) for one, name in enumerate(names)])  # type: ignore[misc]  # fmt: skip

    assert [one["cache"] for one in found] == ["run", "run"], found
    assert len(set(re.findall(r"Job (wmtp-train-\S+) is made", caplog.text))) == 2
    assert len({one["key"] for one in found}) == 2
    pointers = [cells.run(cell).pointer("train") for cell in cells.plan.cells]
    assert [one.outcome for one in pointers if one] == ["run", "run"]
