"""Measure one model on one benchmark, in this process: the report set of a recipe, asked of the recipe's own model.

Owns the order of things; what is done is the daily run's own tasks, so every result lies where the daily run would look for it and
is a hit there and here. The one difference is that programs are judged while the model writes: a verdict depends on a program and its
tests alone, so `judge` then finds its verdicts made, and its key is what it always is.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from mlops_tasks import stage
from mlops_tasks.config.environment import Environment
from mlops_tasks.data.problems import chosen, read_problems
from mlops_tasks.evaluation.generation import generate
from mlops_tasks.evaluation.judging import JudgeConfig, judge, referee_of
from mlops_tasks.keys import require_locked
from mlops_tasks.pipeline import EVALUATIONS, GENERATE, JUDGE, TASKS
from mlops_tasks.planning import resolve
from mlops_tasks.stage import Run
from mlops_tasks.store import Artifact, Store

log = logging.getLogger(__name__)

INDEX = EVALUATIONS.index(("baseline", "report"))


def evaluate(environment: Environment, *, recipe: str | Path, overrides: Sequence[str] = ()) -> Run:
    """Pull, generate and judge.

    Args:
        recipe: its data, its model and its evaluation count; nothing is trained.
        overrides: dotted settings.

    Returns:
        The run, which can be shown like any other.

    Raises:
        WmtpError: as the tasks do.
    """
    spec = resolve(environment, recipe=recipe, overrides=overrides, only_evaluates=True)
    name = f"{spec.recipe.name}-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"
    run = Run(Store.of(environment), environment, Run.prefix_of(environment, "evaluate", name), spec)
    run.store.create_json(f"{run.prefix}/spec.json", spec.model_dump(mode="json"))
    for task in ("pull_data", "pull_model"):
        stage.execute(run, TASKS[task], tasks=TASKS)
    _generate_and_judge(run)
    return run


def _generate_and_judge(run: Run) -> None:
    config = JudgeConfig.model_validate(TASKS["judge"].config(run.spec, INDEX))
    data = run.artifact("pull_data")
    assert data is not None
    require_locked({*GENERATE.packages, *JUDGE.packages})
    problems = chosen(read_problems(data.path(f"{config.problems.split}.parquet")), config.problems)
    with referee_of(problems, config, run.environment.judge) as referee:
        writing = partial(generate, on_row=lambda row: referee.submit(row["problem_id"], row["completion"]))
        stage.execute(run, TASKS["generate"], INDEX, tasks=TASKS, call=writing)
        stage.execute(run, TASKS["judge"], INDEX, tasks=TASKS, call=partial(judge, referee=referee))


def in_words(run: Run) -> Iterator[str]:
    """Lines on the end of an evaluation."""
    data, made, judged = (_present(run, task, index) for task, index in _PARTS)
    scores = judged.metrics
    n, problems = scores["num_samples"], scores["num_problems"]
    yield f"{run.spec.recipe.name}: {problems} problems, {n} program{'s' if n > 1 else ''} each, protocol {scores['protocol']}"
    for k, share in scores["pass_at_k"].items():
        low, high = scores["pass_at_k_interval"][k]
        yield f"  {f'pass@{k}':<22}{share:.4f}   95% interval {low:.4f} to {high:.4f}"
    yield f"  {'tests passed':<22}{scores['tests_passed_share']:.4f}   mean share of a problem's tests"
    yield f"  {'exact match':<22}{scores['exact_match']:.4f}"
    if scores["bits_per_byte"] is not None:
        yield f"  {'bits per byte':<22}{scores['bits_per_byte']:.4f}   of the reference solutions"
    yield f"  {'answers read off':<22}{scores['num_reading_answer']}, of which {scores['num_passed_reading_answer']} passed"
    yield f"  {'verdicts':<22}{', '.join(f'{count} {verdict}' for verdict, count in scores['verdicts'].items() if count)}"
    left_out = data.metrics.get("num_unsupported", 0) + len(scores["unsupported"])
    yield f"  {'unsupported':<22}{left_out}{f', listed in {data.uri} and in {judged.uri}' if left_out else ''}"
    seconds, num_new = made.metrics["writing_seconds"], problems * n - made.metrics["num_resumed"]
    yield f"  {'written in':<22}{seconds:.1f} s, {num_new / seconds:.2f} programs/s, on {made.metrics['device']}"
    yield f"  {'judged in':<22}{judged.manifest['seconds']:.1f} s after the last program"
    yield f"  {'compare it with':<22}wmtp compare {judged.uri} OTHER"


_PARTS = (("pull_data", 0), ("generate", INDEX), ("judge", INDEX))


def _present(run: Run, task: str, index: int) -> Artifact:
    artifact = run.artifact(task, index)
    assert artifact is not None, f"{task} is skipped by no recipe"
    return artifact
