"""A critic's three artifacts in a run: what makes which of them anew, and that a second run computes nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from mlops_tasks import pipeline, planning, stage, summary
from mlops_tasks.config.environment import Environment
from mlops_tasks.scoring.gate import VERDICT_FILE, Verdict
from mlops_tasks.scoring.scorers import read_scores
from mlops_tasks.stage import Pointer, Run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are confined on Linux only")

RECIPE = {
    "name": "tiny",
    "data": {"source": {"kind": "generated", "num_train": 40, "num_validation": 4, "num_test": 4}},
    "model": {"name": "tiny-coder", "source": {"kind": "random", "hidden_size": 32, "num_layers": 1}},
    "text": {"max_length": 256},
    "scoring": {"scorer": "critic", "candidates": {"num_samples": 1, "num_mutants": 2, "num_problems": 30}, "value_head": {"num_folds": 3, "max_epochs": 2}},
    "train": {"num_heads": 1, "steps": 2, "batch_size": 8},
    "evaluation": {"max_new_tokens": 8},
}  # fmt: skip
MADE = ("reward", "fit_critic", "score_shard", "score")


def planned(folder: Path, name: str, *overrides: str, num_shards: int = 2) -> Run:
    """A run of this name; one that is there already stays as it is."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    places = {"store": str(folder / "store"), "mlflow_uri": f"sqlite:///{folder}/mlflow.db"}
    environment = Environment.model_validate({**places, "score": {"num_shards": num_shards}})
    prefix = Run.prefix_of(environment, "wmtp_daily", name)
    return planning.plan(environment, prefix, recipe=folder / "recipe.yaml", overrides=overrides)


def scored(folder: Path, name: str, *overrides: str, num_shards: int = 2) -> dict[str, list[Pointer]]:
    """Everything up to the scores."""
    run = planned(folder, name, *overrides, num_shards=num_shards)
    return {
        task: [
            stage.execute(run, pipeline.TASKS[task], index, tasks=pipeline.TASKS)
            for index in range(run.spec.fan_out.get(task, 1))
        ]
        for task in ("pull_data", "pull_model", "pull_reference", "reference", *MADE)
    }


def outcomes(found: dict[str, list[Pointer]]) -> dict[str, list[str]]:
    return {task: [pointer.outcome for pointer in found[task]] for task in MADE}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("critic")


@pytest.fixture(scope="module")
def first(folder: Path) -> dict[str, list[Pointer]]:
    return scored(folder, "first")


def artifact(folder: Path, pointer: Pointer) -> stage.Artifact:
    found = stage.Store.open(str(folder / "store")).find(str(pointer.prefix))
    assert found is not None
    return found


def test_rewards_heads_and_scores_are_artifacts_of_their_own(folder: Path, first: dict[str, list[Pointer]]) -> None:
    assert outcomes(first) == {"reward": ["run"], "fit_critic": ["run"], "score_shard": ["run"] * 2, "score": ["run"]}
    rewards, critic, scores = (artifact(folder, first[task][0]) for task in ("reward", "fit_critic", "score"))
    assert rewards.names == ["rewards.parquet"]
    assert critic.names == ["value_heads.safetensors", VERDICT_FILE]
    verdict = Verdict.read(critic.path(VERDICT_FILE))
    assert verdict.num_problems == critic.metrics["num_problems"] == 30 - rewards.metrics["num_without_signal"]
    assert scores.metrics["critic_verdict"] == verdict.in_words(0.05)
    assert verdict.in_words(0.05) in "\n".join(summary.of_run(planned(folder, "first")))
    rows = read_scores(scores.path("scores.parquet"))
    weighed = [problem_id for problem_id, row in rows.items() if row.score is not None and row.score.any()]
    assert len(rows) == 40
    assert len(weighed) == (verdict.num_problems if verdict.is_used(0.05) else 0)


def test_a_second_run_computes_nothing(folder: Path, first: dict[str, list[Pointer]]) -> None:
    again = scored(folder, "second", num_shards=3)
    assert outcomes(again) == {
        "reward": ["hit"],
        "fit_critic": ["hit"],
        "score_shard": ["skipped"] * 3,
        "score": ["hit"],
    }
    assert again["score"][0].digest == first["score"][0].digest


@pytest.mark.parametrize(
    ("override", "made_anew"),
    [
        ("scoring.min_gain=0.5", {"score_shard", "score"}),
        ("scoring.value_head.num_folds=4", {"fit_critic", "score_shard", "score"}),
        ("scoring.candidates.num_mutants=1", set(MADE)),
        ("weighting.temperature=1.5", set()),
        ("train.steps=9", set()),
    ],
)
def test_a_changed_setting_makes_anew_what_it_can_change(
    folder: Path, first: dict[str, list[Pointer]], override: str, made_anew: set[str]
) -> None:
    found = outcomes(scored(folder, override, override))
    assert {task for task in MADE if "run" in found[task]} == made_anew
