"""The line between a worker and the training that it has started."""

from __future__ import annotations

import logging
import multiprocessing
import threading
from multiprocessing.connection import Client
from pathlib import Path

import pytest

from mlops_tasks import stage
from mlops_tasks.config.loading import load_environment
from mlops_tasks.errors import Pruned, Unavailable
from mlops_tasks.pipeline import TASKS
from mlops_tasks.planning import resolve
from mlops_tasks.stage import Run
from mlops_tasks.store import Store
from mlops_tasks.tuning.cell import Cell
from mlops_tasks.tuning.overseer import Line, listening


def ask(line: Line) -> None:
    raise SystemExit(int(line.goes_on(3, 10, 1.5)))


def test_another_process_is_answered_too() -> None:
    heard: list[tuple[int, int, float]] = []

    def judgement(step: int, num_steps: int, nats: float) -> bool:
        heard.append((step, num_steps, nats))
        return len(heard) < 2

    with listening(judgement) as line:
        assert line.goes_on(2, 10, 1.75)
        process = multiprocessing.get_context("spawn").Process(target=ask, args=(line,))
        process.start()
        process.join()
    assert process.exitcode == 0
    assert heard == [(2, 10, 1.75), (3, 10, 1.5)]


@pytest.mark.timeout(60)
def test_one_that_is_killed_while_it_waits_is_not_the_last_that_is_answered() -> None:
    is_gone = threading.Event()

    def judgement(step: int, num_steps: int, nats: float) -> bool:
        return is_gone.wait() and step > 1

    with listening(judgement) as line:
        with Client(line.address, family="AF_UNIX") as killed:
            killed.send((1, 10, 2.0))
        is_gone.set()
        assert line.goes_on(2, 10, 1.75)


def test_a_training_goes_on_where_nobody_can_be_asked(caplog: pytest.LogCaptureFixture) -> None:
    def judgement(step: int, num_steps: int, nats: float) -> bool:
        raise Unavailable("the database is away")

    with caplog.at_level(logging.WARNING), listening(judgement) as line:
        assert line.goes_on(2, 10, 1.75)
    assert "cannot be asked now, so it does: the database is away" in caplog.text


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_all_ranks_end_together_where_the_worker_says_so(place: Path, num_ranks: int) -> None:
    given = load_environment(place / "environment.yaml")
    resources = given.train.model_copy(update={"num_ranks": num_ranks, "checkpoint_every_steps": 1})
    environment = given.model_copy(update={"train": resources})
    spec = resolve(environment, recipe=place / "recipe.yaml")
    cell = Cell.below(Run(Store.of(environment), environment, "runs/a/b/c", spec), "runs/a/b/c", spec.recipe)
    told: list[int] = []

    def judgement(step: int, num_steps: int, nats: float) -> bool:
        told.append(step)
        return step < 2

    with listening(judgement) as line, pytest.raises(Pruned, match="Ended at step 2 of 4 with a validation loss of"):
        cell.train(line)
    assert told == [1, 2]
    store = cell.run.store
    (key,) = store.children("train")
    assert store.find(f"train/{key}") is None and not store.children(f"train/{key}/checkpoints")
    (failure,) = store.children(f"train/{key}/failures")
    record = store.read_json(f"train/{key}/failures/{failure}")
    assert record is not None and (record["error"], record["lost_device_seconds"]) == ("Pruned", 0.0)
    assert stage.decide(cell.run, TASKS["train"], tasks=TASKS).outcome == "run"
