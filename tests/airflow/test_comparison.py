"""The DAG `wmtp_compare`: its plan names the cells, and each of its tasks works in the run of a cell."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow.sdk import DAG, BaseOperator
from in_process import Server, run_task
from wmtp import DEFAULTS, comparison, comparison_params, stage
from wmtp.trigger import CHECKOUT, Contest

from mlops_tasks.algorithms import Cells
from mlops_tasks.config.environment import Environment
from mlops_tasks.errors import UserError
from mlops_tasks.stage import Run

RECIPE = {
    "name": "tiny",
    "data": {"source": {"kind": "generated", "num_train": 6, "num_validation": 2, "num_test": 2}},
    "model": {"name": "tiny-coder", "source": {"kind": "random", "hidden_size": 32, "num_layers": 1}},
    "text": {"max_length": 256},
    "scoring": {"scorer": "position"},
    "train": {"steps": 1},
}
COMPARISON = {"name": "tiny", "recipe": "recipe.yaml", "baseline": "uniform", "seeds": [0], "algorithms": {"uniform": {}, "position": {}}}  # fmt: skip

pytestmark = pytest.mark.usefixtures("program_here")


@pytest.fixture
def file(tmp_path: Path, environment: Environment, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, tree in (("recipe", RECIPE), ("comparison", COMPARISON)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    settings = environment.model_dump(mode="json", exclude_unset=True) | {"score": {"num_shards": 2}}
    (tmp_path / "environment.json").write_text(json.dumps(settings))
    monkeypatch.setenv("WMTP_ENVIRONMENT", str(tmp_path / "environment.json"))
    return tmp_path / "comparison.yaml"


def ran(task: str, file: Path, cell: str | None = None) -> tuple[Server, BaseException | None]:
    """Run one task of the DAG, in a cell of it."""
    with DAG(
        "wmtp_compare",
        schedule=None,
        start_date=datetime(2026, 1, 1),
        params=comparison_params(),
        default_args=DEFAULTS,
    ) as dag:
        made = comparison("plan") if task == "plan" else stage(task, cell=cell)
    assert isinstance(made, BaseOperator)
    return run_task(dag, task, run="by hand", conf={"comparison": str(file)})


def outcome(task: str, file: Path, cell: str) -> Any:
    server, error = ran(task, file, cell)
    assert error is None
    return server.xcoms["return_value"]["cache"]


def test_the_plan_names_the_cells_that_the_tasks_are_mapped_over(file: Path, environment: Environment) -> None:
    server, error = ran("plan", file)
    assert error is None
    assert server.xcoms["return_value"] == ["uniform-seed-0", "position-seed-0"]
    assert Cells.open(environment, Run.prefix_of(environment, "wmtp_compare", "by hand")).plan.arms == (
        "uniform",
        "position",
    )


def test_a_task_works_in_its_cell_and_does_all_its_indices(file: Path, environment: Environment) -> None:
    ran("plan", file)
    assert outcome("pull_data", file, "position-seed-0") == "run"
    assert outcome("pull_data", file, "uniform-seed-0") == "hit"
    outcome("pull_model", file, "position-seed-0")
    outcome("score_shard", file, "position-seed-0")
    cells = Cells.open(environment, Run.prefix_of(environment, "wmtp_compare", "by hand"))
    position = next(cell for cell in cells.plan.cells if cell.arm == "position")
    made = sorted((one.task, one.index, one.outcome) for one in cells.run(position).pointers())
    assert [one for one in made if one[0] == "score_shard"] == [("score_shard", 0, "run"), ("score_shard", 1, "run")]


def test_a_task_that_an_algorithm_does_not_need_is_skipped(file: Path) -> None:
    ran("plan", file)
    assert ran("score", file, "uniform-seed-0")[0].told["state"] == "skipped"


def test_a_comparison_that_does_not_fit_fails_at_once_with_its_place(file: Path) -> None:
    file.write_text(yaml.safe_dump(COMPARISON | {"baseline": "ntp"}))
    server, error = ran("plan", file)
    assert isinstance(error, UserError) and "baseline is 'ntp', which is none of" in str(error)
    assert server.told["state"] == "failed"


def test_the_form_takes_a_name_or_a_path() -> None:
    assert Contest().file == CHECKOUT / "configs/comparisons/demo.yaml"
    assert Contest(comparison="mine/other.yaml").file == CHECKOUT / "mine/other.yaml"
    with pytest.raises(UserError, match="comparision"):
        Contest.of({"comparision": "demo"})
