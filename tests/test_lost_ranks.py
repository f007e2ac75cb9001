"""One rank of two is killed, again and again: all end with 85, the next start goes on, and the weights are those of an unbroken training.

`WMTP_RANK_KILLS=20 WMTP_SOAK_SEED=7 python -m pytest -s --timeout=0 tests/test_lost_ranks.py` is the long form, and `WMTP_RANK_RECIPE=configs/recipes/demo.yaml` has
it train the demo's own recipe (or another) instead of one that is small enough for CI.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import processes
import pytest
import yaml
from test_daily import ENVIRONMENT

from mlops_tasks import checkpoint, pipeline, planning, stage
from mlops_tasks.config.loading import load_environment
from mlops_tasks.errors import Interrupted, WmtpError
from mlops_tasks.stage import Run, Stage, artifact_prefix

NUM_KILLS = int(os.environ.get("WMTP_RANK_KILLS", "2"))
SEED = int(os.environ.get("WMTP_SOAK_SEED", "1"))
NAMED = os.environ.get("WMTP_RANK_RECIPE")
TRAIN = pipeline.TASKS["train"]
RECIPE = {
    "name": "small",
    "data": {"source": {"kind": "generated", "num_train": 200, "num_test": 8, "num_validation": 16}},
    "model": {"name": "coder", "source": {"kind": "random", "hidden_size": 96, "num_layers": 2}},
    "scoring": {"scorer": "uniform"},
    "text": {"max_length": 256},
    "train": {"num_heads": 4, "steps": 40, "batch_size": 16, "learning_rate": 0.003, "validate_every_steps": 20},
}  # fmt: skip


def planned(folder: Path) -> Run:
    """A run that has come to `train`."""
    folder.mkdir()
    resources = {"num_ranks": 2, "checkpoint_every_steps": 20 if NAMED else 3, "micro_batch_rows": 4}
    environment = {**ENVIRONMENT, "store": str(folder / "store"), "train": resources, "lease": {"ttl_seconds": 2}}
    (folder / "environment.yaml").write_text(yaml.safe_dump(environment))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    loaded = load_environment(folder / "environment.yaml")
    run = planning.plan(loaded, Run.prefix_of(loaded, "wmtp_daily", "r"), recipe=NAMED or folder / "recipe.yaml")
    for task in pipeline.TASKS.values():
        if task is TRAIN:
            break
        for index in range(run.spec.fan_out.get(task.id, 1)):
            stage.execute(run, task, index, tasks=pipeline.TASKS)
    return run


def started(run: Run) -> int:
    """A process that launches the ranks of `train` and ends as a pod would."""
    launcher = os.fork()
    if launcher:
        return launcher
    code = 1
    try:
        stage.execute(run, TRAIN, tasks=pipeline.TASKS)
        code = 0
    except WmtpError as error:
        code = error.exit_code
        print(f"{code}: {error}", file=sys.stderr, flush=True)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(launcher: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(launcher, 0)[1])


def prefix_of(run: Run) -> str:
    assert isinstance(TRAIN.run, Stage)
    return artifact_prefix(TRAIN.run.name, stage.decide(run, TRAIN, tasks=pipeline.TASKS).key)


def digest_of(run: Run) -> str:
    """Of the result, read back byte for byte."""
    found = run.artifact("train")
    assert found is not None
    found.paths(found.names)
    return found.digest


def resumed(run: Run) -> int | None:
    found = run.artifact("train")
    assert found is not None
    step: int | None = found.metrics["resumed_from"]
    return step


def kill_one(launcher: int, rng: random.Random, *, after: float) -> int | None:
    """Kill one of the two ranks some time after both are there; None where the training was quicker."""
    while len(ranks := processes.below(launcher)) < 2:
        if processes.is_gone(launcher):
            return None
        time.sleep(0.01)
    time.sleep(after)
    victim = rng.randrange(2)
    try:
        os.kill(ranks[victim], signal.SIGKILL)
    except ProcessLookupError:
        return None
    return victim


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds ranks in /proc")
def test_ranks_killed_at_random_instants_leave_the_weights_of_an_unbroken_training(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(TRAIN.run, Stage)
    stage._function(TRAIN.run.function)  # so that a kill falls into the work and not into an import
    unbroken, hunted = planned(tmp_path / "a"), planned(tmp_path / "b")
    began = time.monotonic()
    assert ended(started(unbroken)) == 0
    seconds = time.monotonic() - began

    expected = digest_of(unbroken)
    rng, codes, victims = random.Random(SEED), Counter[int](), Counter[int]()
    resumed_from: list[int | None] = []
    began = time.monotonic()
    while True:
        launcher = started(hunted)
        is_hunted = victims.total() < NUM_KILLS
        victim = kill_one(launcher, rng, after=rng.uniform(0, 0.5 * seconds)) if is_hunted else None
        code = ended(launcher)
        if code == 0:
            resumed_from.append(resumed(hunted))
            assert digest_of(hunted) == expected
            if not is_hunted:
                break
            # Too late: the result is taken away, as `force` does, and it is hunted again.
            hunted.store.quarantine(prefix_of(hunted), "hunted again")
            continue
        assert victim is not None
        codes[code] += 1
        victims[victim] += 1
        # Before the first checkpoint there is nothing to go on from, and the code says so.
        assert code == Interrupted.exit_code or (
            code == WmtpError.exit_code and not checkpoint.steps(hunted.store, prefix_of(hunted))
        )
    with capfd.disabled():
        print(
            f"\nseed {SEED}: {victims.total()} kills, by rank {dict(victims)}, exit codes {dict(codes)}, ended {len(resumed_from)} times with the same "
            f"bytes after going on from steps {resumed_from}, in {time.monotonic() - began:.0f} s; unbroken {seconds:.0f} s"
        )
    # A few kills may all fall before the first checkpoint.
    assert NUM_KILLS < 20 or any(resumed_from)
