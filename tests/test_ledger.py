"""What a run has cost, by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from mlops_tasks import forecast, ledger, pipeline, planning, stage, summary
from mlops_tasks.config.environment import Environment, Priced
from mlops_tasks.config.recipe import Recipe
from mlops_tasks.ledger import Amount
from mlops_tasks.stage import Pointer, Run, Spec, Stage
from mlops_tasks.store import Artifact, Store

RECIPE = Recipe.model_validate(
    {
        "name": "tiny", "data": {"source": {"kind": "generated"}}, "model": {"name": "m", "source": {"kind": "random"}},
        "scoring": {"scorer": "uniform"}, "train": {"steps": 3},
    }
)  # fmt: skip


@pytest.fixture
def run(environment: Environment) -> Run:
    spec = Spec(
        recipe=RECIPE,
        pins={"pull_data": "a", "pull_model": "b"},
        champion=None,
        created="2026-01-01T00:00:00+00:00",
        fan_out={"generate": 4, "judge": 4},
    )
    prefix = Run.prefix_of(environment, "dag", "one")
    Store.of(environment).write_json(f"{prefix}/spec.json", spec.model_dump(mode="json"))
    return Run.open(environment, prefix)


def made(run: Run, prefix: str, seconds: float, cost: float | None, by: str = "dag/one") -> Artifact:
    record = {"device_seconds": seconds, "cost": cost, "run": by, "environment": {"deployment": "laptop"}}
    return run.store.commit(run.store.begin(prefix), record)


def point(run: Run, task: str, outcome: str, artifact: Artifact, index: int = 0) -> None:
    stage_, key = artifact.prefix.split("/")
    run.point(
        Pointer.model_validate(
            {"task": task, "index": index, "stage": stage_, "outcome": outcome, "seconds": 1, "key": key, "digest": artifact.digest}
        )
    )  # fmt: skip


def failed(
    run: Run, prefix: str, name: str, seconds: float, lost: float, *, by: str = "dag/one", deployment: str = "laptop"
) -> None:
    record = {
        "run": by, "deployment": deployment, "device_seconds": seconds, "cost": seconds / 100,
        "lost_device_seconds": lost, "lost_cost": lost / 100,
    }  # fmt: skip
    run.store.write_json(f"{prefix}/failures/{name}.json", record)


def test_a_run_pays_for_what_it_ran_and_for_what_failed_and_saves_what_it_found(run: Run) -> None:
    point(run, "pull_data", "run", made(run, "pull/d", 10, 0.1))
    point(run, "pull_model", "hit", made(run, "pull/m", 20, None, by="dag/other"))
    trained = made(run, "train/t", 100, 1.0)
    point(run, "train", "hit", trained)  # committed, and killed before its pointer was written
    failed(run, trained.prefix, "one", 60, 15)
    failed(run, trained.prefix, "others", 1000, 1000, by="dag/other")
    failed(run, trained.prefix, "elsewhere", 1000, 1000, deployment="other")
    found = ledger.of_run(run, run.pointers())
    assert found.spent == Amount(10 + 100 + 60, pytest.approx(0.1 + 1.0 + 0.6))
    assert found.saved == Amount(20, None)
    assert found.lost == Amount(15, pytest.approx(0.15))
    assert found.in_words() == (
        "Device-seconds: 170 (1.70 USD) spent, 20 saved by hits, 15 (0.15 USD) lost to interruption."
    )
    assert list(summary.of_run(run))[-1] == f"  {found.in_words()}"


def test_two_tasks_with_one_artifact_pay_once(run: Run) -> None:
    judged = made(run, "judge/j", 5, None)
    point(run, "judge", "hit", judged, index=0)
    point(run, "judge", "run", judged, index=2)
    found = ledger.of_run(run, run.pointers())
    assert (found.spent, found.saved) == (Amount(5), Amount(5))


def test_what_a_task_lost_that_never_ended_is_counted(run: Run) -> None:
    decision = stage.decide(run, pipeline.TASKS["pull_data"], tasks=pipeline.TASKS)
    failed(run, f"pull/{decision.key}", "one", 30, 30)
    assert ledger.of_run(run, []).lost == Amount(30, 0.3)


def trial(study: Run, name: str) -> Run:
    prefix = stage.cell_prefix("select/s", name)
    study.store.write_json(f"{prefix}/spec.json", study.spec.model_dump(mode="json"))
    return Run.open(study.environment, prefix)


def test_a_study_pays_for_its_trials_and_once_for_what_they_share(run: Run) -> None:
    study = replace(run, spec=run.spec.model_copy(update={"is_study": True}))
    study.write("study", b"s")
    pulled, shared = made(study, "pull/d", 10, 0.1), made(study, "pull/m", 20, None, by="dag/other")
    point(study, "pull_data", "run", pulled)
    first, second, third = (trial(study, name) for name in ("first", "second", "third"))
    for one in (study, first, second, third):
        point(one, "pull_model", "hit", shared)
        one.point(Pointer(task="score", index=0, stage="score", outcome="skipped", seconds=0.0))
    for one in (first, second, third):
        point(one, "pull_data", "hit", pulled)
    point(first, "train", "run", made(study, "train/a", 100, 1.0, by="select/s/cells/first"))
    point(second, "train", "hit", made(study, "train/b", 200, 2.0, by="select/other/cells/second"))
    pruned = stage.decide(third, pipeline.TASKS["train"], tasks=pipeline.TASKS)
    failed(study, f"train/{pruned.key}", "one", 30, 0, by="select/s/cells/third")
    found = ledger.of_run(study, study.pointers())
    assert found.spent == Amount(10 + 100 + 30, pytest.approx(0.1 + 1.0 + 0.3))
    assert (found.saved, found.lost) == (Amount(20 + 200, 2.0), Amount(0, 0.0))

    # What `select` took is in its trainings already.
    selected = made(study, "select/s", 500, 5.0)
    point(study, "select", "run", selected)
    assert ledger.of_run(study, study.pointers()) == found

    later = replace(study, prefix=Run.prefix_of(study.environment, "dag", "two"))
    point(later, "select", "hit", selected)
    assert ledger.of_run(later, later.pointers()).saved == Amount(500, 5.0)


def test_a_trial_that_cannot_be_read_any_more_leaves_the_others_counted(run: Run) -> None:
    study = replace(run, spec=run.spec.model_copy(update={"is_study": True}))
    study.write("study", b"s")
    one, *older = (trial(study, name) for name in ("one", "older-spec", "older-pointer"))
    point(one, "train", "run", made(study, "train/a", 100, 1.0, by="select/s/cells/one"))
    study.store.write_json(f"{older[0].prefix}/spec.json", {"setting": "of another version"})
    study.store.write_json(f"{older[1].prefix}/train.json", {"setting": "of another version"})
    study.store.write_json("select/s/cells/no-spec/trial.json", {"slot": 3})
    assert ledger.of_run(study, study.pointers()).spent == Amount(100, 1.0)


def test_of_a_study_whose_trials_were_collected_the_selection_still_counts(run: Run) -> None:
    study = replace(run, spec=run.spec.model_copy(update={"is_study": True}))
    study.write("study", b"s")
    point(study, "pull_data", "run", made(study, "pull/d", 10, 0.1))
    point(study, "select", "run", made(study, "select/s", 500, 5.0))
    point(trial(study, "one"), "train", "run", made(study, "train/a", 100, 1.0, by="select/s/cells/one"))
    assert ledger.of_run(study, study.pointers()).spent == Amount(10 + 100, pytest.approx(0.1 + 1.0))
    study.store.backend.delete("select/s/cells")  # as `gc` does
    assert ledger.of_run(study, study.pointers()).spent == Amount(10 + 500, pytest.approx(0.1 + 5.0))


def test_a_stage_costs_its_own_price_or_the_default_one(environment: Environment) -> None:
    priced = environment.model_copy(update={"prices": {"default": 0.5, "train": 3.0, "judge": 0.0}})
    assert priced.cost("train", 1800) == 1.5
    assert priced.cost("pull", 7200) == 1.0
    assert priced.cost("judge", 7200) == 0.0
    assert environment.cost("train", 1800) is None


def test_every_stage_may_have_a_price() -> None:
    stages = {task.run.name for task in pipeline.every().values() if isinstance(task.run, Stage)}
    assert set(get_args(Priced)) == stages | {"default"}


def test_a_plan_tells_what_it_will_cost(environment: Environment, run: Run, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(RECIPE.model_dump(mode="json", exclude={"weighting"})))
    run.point(Pointer(task="pull_data", index=0, stage="pull", outcome="run", seconds=60.0))
    run.point(Pointer(task="train", index=0, stage="train", outcome="run", seconds=120.0))
    run.point(Pointer(task="promote", index=0, stage="promote", outcome="done", seconds=5.0))
    priced = environment.model_copy(
        update={"prices": {"train": 3.0}, "train": environment.train.model_copy(update={"num_ranks": 2})}
    )
    spec = planning.resolve(priced, recipe=tmp_path / "recipe.yaml")
    found = {one.task: one for one in forecast.preview(priced, spec)}
    assert (found["train"].seconds, found["train"].cost) == (120.0, pytest.approx(2 * 120 / 3600 * 3.0))
    assert (found["pull_data"].seconds, found["pull_data"].cost) == (60.0, None)
    assert (found["promote"].seconds, found["promote"].cost) == (5.0, None)
