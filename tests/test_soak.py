"""Killed again and again, over all stages of a day: the artifacts are those of a day that nobody disturbed.

`WMTP_SOAK_KILLS=200 WMTP_SOAK_SEED=7 python -m pytest tests/test_soak.py` is the long form.
"""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from s3_server import BUCKET, S3Server
from test_daily import ENVIRONMENT, RECIPE

from mlops_tasks import pipeline, planning, stage
from mlops_tasks.config.environment import Environment
from mlops_tasks.config.loading import load_environment
from mlops_tasks.stage import Run, Stage

NUM_KILLS = int(os.environ.get("WMTP_SOAK_KILLS", "8"))
SEED = int(os.environ.get("WMTP_SOAK_SEED", "1"))
# Enough steps that a kill often falls between two checkpoints.
LONGER = {**RECIPE, "train": {"num_heads": 2, "steps": 12, "batch_size": 8, "learning_rate": 0.003}}


def environment_of(folder: Path, store: str, s3: dict[str, str] | None = None) -> Environment:
    folder.mkdir(exist_ok=True)
    tree: dict[str, Any] = {
        **ENVIRONMENT,
        "store": store,
        "train": {"checkpoint_every_steps": 2},
        "lease": {"ttl_seconds": 2},
    }
    (folder / "environment.yaml").write_text(yaml.safe_dump(tree | ({"s3": s3} if s3 else {})))
    return load_environment(folder / "environment.yaml")


def planned(environment: Environment, folder: Path, name: str) -> Run:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(LONGER))
    prefix = Run.prefix_of(environment, "wmtp_daily", name)
    return planning.plan(environment, prefix, recipe=folder / "recipe.yaml")


@dataclass
class Soak:
    """Runs the stages of a day as processes, and kills some."""

    rng: random.Random
    seconds: dict[str, float] = field(default_factory=dict)
    """What each task takes when nobody kills it."""
    kills: Counter[str] = field(default_factory=Counter)

    def run_once(self, run: Run, task: stage.Task, index: int, *, kill_after: float | None) -> bool:
        """One process for one task; True if it came to its end."""
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                stage.execute(run, task, index, tasks=pipeline.TASKS)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert status in (0, signal.SIGKILL), f"{task.id}[{index}] ended with {status}"
        return status == 0

    def day(self, run: Run, *, num_kills: int) -> None:
        stages = [task for task in pipeline.TASKS.values() if isinstance(task.run, Stage)]
        tasks = [(task, index) for task in stages for index in range(run.spec.fan_out.get(task.id, 1))]
        total = sum(self.seconds.values())
        for task, index in tasks:
            # The longer a task takes, the more often it is hit.
            wanted = num_kills * self.seconds.get(task.id, 0) / total if total else 0
            left = int(wanted) + (self.rng.random() < wanted % 1)
            while left > 0:
                if not self.run_once(run, task, index, kill_after=self.rng.uniform(0, 1.2 * self.seconds[task.id])):
                    self.kills[task.id] += 1
                    left -= 1
                    continue
                # It was too quick: its result is taken away, as `force` does, and it is hunted again.
                decision = stage.decide(run, task, index, tasks=pipeline.TASKS)
                if decision.outcome != "hit":
                    break
                run.store.quarantine(f"{task.run.name}/{decision.key}", "hunted again")  # type: ignore[union-attr]
            started = time.monotonic()
            assert self.run_once(run, task, index, kill_after=None)
            if not total:
                self.seconds[task.id] = max(self.seconds.get(task.id, 0.0), time.monotonic() - started)


def artifacts(run: Run) -> dict[str, tuple[str | None, str | None]]:
    """Key and digest of each stage's result, each read back byte for byte."""
    found = {}
    for pointer in run.pointers():
        if pointer.prefix is None:
            continue
        artifact = run.artifact(pointer.task, pointer.index)
        assert artifact is not None
        for name in artifact.names:
            artifact.path(name)
        found[f"{pointer.task}[{pointer.index}]"] = (pointer.key, pointer.digest)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_killed_at_random_instants_a_day_ends_with_the_same_artifacts(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    # Whatever is heavy is loaded before, so that a kill falls into the work and not into an import.
    for task in pipeline.TASKS.values():
        stage._function(task.run.function if isinstance(task.run, Stage) else task.run)
    soak = Soak(random.Random(SEED))
    unbroken = planned(environment_of(tmp_path / "a", str(tmp_path / "a" / "store")), tmp_path / "a", "unbroken")
    soak.day(unbroken, num_kills=0)
    expected = artifacts(unbroken)
    assert len(expected) > 10

    if kind == "s3":
        server: S3Server = request.getfixturevalue("s3")
        place, access = f"s3://{BUCKET}/soak/{tmp_path.name}", server.access(tmp_path / "cache")
    else:
        place, access = str(tmp_path / "b" / "store"), None
    hunted = planned(environment_of(tmp_path / "b", place, access), tmp_path / "b", "hunted")
    started = time.monotonic()
    soak.day(hunted, num_kills=NUM_KILLS)
    assert artifacts(hunted) == expected
    again = planned(hunted.environment, tmp_path / "b", "again")
    soak.day(again, num_kills=0)
    assert {pointer.outcome for pointer in again.pointers() if pointer.task != "plan"} <= {"hit", "skipped"}
    with capsys.disabled():
        print(
            f"\n{kind}, seed {SEED}: {dict(soak.kills)} = {soak.kills.total()} kills in {time.monotonic() - started:.0f} s"
        )
