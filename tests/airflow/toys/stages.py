"""The toys: import it to have Airflow see them, run it as `python -m toys.stages STAGE …` in place of `mlops_tasks`.

The folder `TOYS` holds what they are told to do (`train.fails`: exit codes or negative signals, one for each start; `train.hangs`;
`train.waits`, until that is gone; `train.takes`, seconds) and what they did (`starts`, `hanging`).
"""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlops_tasks import __main__, pipeline, planning
from mlops_tasks.config.environment import Environment
from mlops_tasks.config.loading import load_recipe
from mlops_tasks.errors import BY_EXIT_CODE
from mlops_tasks.stage import Attempt, Input, Run, Spec, Stage, Task

log = logging.getLogger("mlops_tasks.toys")

TOYS = Path(os.environ["TOYS"])
DEMO = Path(pipeline.__file__).parents[1] / "configs" / "recipes" / "demo.yaml"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def _told(name: str) -> str:
    file = TOYS / name
    return file.read_text() if file.exists() else ""


def work(attempt: Attempt) -> dict[str, Any]:
    name, number = attempt.config["toy"], attempt.config["number"]
    with (TOYS / "starts").open("a") as stream:
        stream.write(f"{name}[{number}]\n")
    log.info("%s works", name)
    if codes := _told(f"{name}.fails").split():
        (TOYS / f"{name}.fails").write_text(" ".join(codes[1:]))
        _fail(name, int(codes[0]))
    if _told(f"{name}.hangs"):
        _leave_processes()
        time.sleep(600)
    time.sleep(float(_told(f"{name}.takes") or 0))
    while _told(f"{name}.waits"):
        time.sleep(0.1)
    (attempt.folder / "toy.txt").write_text(f"{name}[{number}]")
    return {}


def _fail(name: str, code: int) -> None:
    if code in BY_EXIT_CODE:
        raise BY_EXIT_CODE[code](f"{name} does not fit:\n  it is told to fail")
    if code < 0:
        os.kill(os.getpid(), -code)
    raise ValueError(f"{name} has a bug")


def _leave_processes() -> None:
    """A child that ignores SIGTERM, and one in a session of its own with such a child."""
    subprocess.Popen([sys.executable, "-c", STUBBORN, str(TOYS)])
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {STUBBORN!r}, {str(TOYS)!r}])"
    subprocess.Popen([sys.executable, "-c", nested, str(TOYS)], start_new_session=True)
    (TOYS / "hanging").touch()


def note(run: Run) -> dict[str, Any]:
    logged = {"experiment_id": "7", "run_id": "abc"}
    return {"path": run.write("report.html", b"toys"), "mlflow": logged, "noted": len(run.pointers())}


def spec(environment: Environment, **_: object) -> Spec:
    fan_out = {"reference": 2, "generate": 2, "score_shard": 1}
    pins = dict.fromkeys(("pull_data", "pull_model", "pull_reference"), "pinned")
    return Spec(recipe=load_recipe(DEMO), pins=pins, champion=None, fan_out=fan_out, created="2026-01-01T00:00:00")


def _toy(name: str, *inputs: str, **facts: Any) -> Task:
    return Task(
        name,
        Stage(name, "toys.stages:work", ()),
        inputs=lambda spec, index: {one: Input(one) for one in inputs},
        config=_skipped if name == "score" else _config_of(name),
        **facts,
    )


def _skipped(spec: Spec, index: int) -> None:
    return None


def _config_of(name: str) -> Callable[[Spec, int], dict[str, Any]]:
    return lambda spec, index: {"toy": name, "number": index}


TASKS = (
    _toy("pull_data"),
    _toy("reference", "pull_data", fan_out=lambda recipe, environment: 2),
    _toy("score", "pull_data"),
    _toy("train", "pull_data", "score"),
    _toy("generate", "train", fan_out=lambda recipe, environment: 2),
    Task("report", "toys.stages:note"),
)
pipeline.TASKS.clear()
pipeline.TASKS.update({task.id: task for task in TASKS})
planning.resolve = spec  # type: ignore[assignment]

if __name__ == "__main__":
    sys.exit(__main__.main())
