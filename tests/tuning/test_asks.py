"""What a model wrote is not run by the process of a trial on a cluster: it asks, and goes on with what is made elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlops_tasks import pipeline, planning, stage
from mlops_tasks.__main__ import main
from mlops_tasks.config.loading import changed, load_environment
from mlops_tasks.errors import DataError, Killed, OutOfMemory, Unavailable, Unfit, UserError, WmtpError
from mlops_tasks.stage import Run
from mlops_tasks.tuning import asks
from mlops_tasks.tuning.asks import Inbox
from mlops_tasks.tuning.cell import CANDIDATE, Cell

STUDY = f"select/{'0' * 64}"


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A study's run as a pod sees it."""
    environment = load_environment(place / "environment.yaml")
    prefix = Run.prefix_of(environment, "wmtp_tune", "week")
    run = planning.plan(environment, prefix, recipe=place / "recipe.yaml", overrides=[], is_study=True)
    monkeypatch.setattr(asks, "SECONDS_BETWEEN_LOOKS", 0.05)
    monkeypatch.setenv(asks.PLACE, asks.place_of(run, "search", 0))
    return replace(run, environment=environment.model_copy(update={"executor": "kubernetes"}))


def cell_of(run: Run, **changes: object) -> Cell:
    """A cell whose training is as short as can be."""
    return Cell.below(run, STUDY, changed(run.spec.recipe, {"train.steps": 1, **changes}, "the test"))


@contextmanager
def measuring(cell: Cell) -> Iterator[list[Any]]:
    """In a thread, which is left alone where nobody answers; what it returns or raises is in the list when the context has ended."""
    found: list[Any] = []

    def measure() -> None:
        try:
            found.append(cell.measure(["pass_at_1"]))
        except WmtpError as error:
            found.append(error)

    thread = threading.Thread(target=measure, daemon=True)
    thread.start()
    yield found
    thread.join(timeout=60)
    assert not thread.is_alive(), "it waits for an answer"


def next_ask(run: Run) -> tuple[Inbox, str]:
    """The one that is there, as the process that watches finds it."""
    inbox, deadline = Inbox(run.store, asks.place_of(run, "search", 0)), time.monotonic() + 60
    while not (names := inbox.names()):
        assert time.monotonic() < deadline, "nothing is asked for"
        time.sleep(0.05)
    (name,) = names
    return inbox, name


def is_answered(run: Run) -> str:
    """Do what is asked for, as the process that watches does; returns the task."""
    inbox, name = next_ask(run)
    ask = inbox.read(name)
    cell, task = ask.run(run.environment), pipeline.TASKS[ask.task]
    assert stage.decide(cell, task, ask.index, tasks=pipeline.TASKS).outcome == "run", "it ran beside credentials"
    stage.execute(cell, task, ask.index, tasks=pipeline.TASKS, expect_key=ask.key)
    inbox.close(name)
    return ask.task


def test_rewards_and_verdicts_of_a_trial_are_made_by_whoever_watches(run: Run) -> None:
    few = {
        "scoring.candidates.num_samples": 0,
        "scoring.candidates.num_problems": 10,
        "scoring.value_head.max_epochs": 2,
    }
    cell = cell_of(run, **{"scoring.scorer": "critic", **few})
    with measuring(cell) as found:
        asked = [is_answered(run), is_answered(run)]
    judged = cell.run.artifact("judge", CANDIDATE)
    assert asked == ["reward", "judge"] and judged is not None
    assert found == [{"pass_at_1": judged.metrics["pass_at_k"]["1"]}]
    assert Inbox(run.store, asks.place_of(run, "search", 0)).names() == []

    with measuring(cell) as found:  # all of it is there
        pass
    assert found == [{"pass_at_1": judged.metrics["pass_at_k"]["1"]}]


def test_an_ask_stays_until_it_is_answered_and_one_that_was_refused_may_be_asked_again(run: Run) -> None:
    cell = cell_of(run)
    with measuring(cell) as found:
        inbox, name = next_ask(run)
        again, same = next_ask(run)  # as a watcher that was killed finds it
        assert (again, same) == (inbox, name)
        inbox.refuse(name, DataError("the verdict is no verdict"))
    assert inbox.names() == []
    assert type(found[0]) is DataError and str(found[0]) == "the verdict is no verdict"

    with measuring(cell) as found:
        assert is_answered(run) == "judge"
    assert list(found[0]) == ["pass_at_1"]


@pytest.mark.parametrize(
    "given", [Unavailable("x"), UserError("x"), WmtpError("x"), Unfit("x"), OutOfMemory("x"), Killed("x")]
)
def test_a_trial_ends_with_the_class_of_what_it_asked_for(run: Run, given: WmtpError) -> None:
    cell = cell_of(run)
    with measuring(cell) as found:
        inbox, name = next_ask(run)
        inbox.refuse(name, given)
    assert type(found[0]) is type(given)


def test_what_is_not_there_although_it_was_answered_is_asked_for_anew(run: Run) -> None:
    cell = cell_of(run)
    with measuring(cell) as found:
        inbox, name = next_ask(run)
        inbox.close(name)
        assert is_answered(run) == "judge"
    assert list(found[0]) == ["pass_at_1"]


def test_nothing_is_run_where_nobody_watches(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(asks.PLACE)
    with pytest.raises(UserError, match=r"judge of .*cells/\w+ is not done beside credentials.*by that DAG, or where"):
        cell_of(run).measure(["pass_at_1"])


def test_a_laptop_asks_nobody(run: Run) -> None:
    here = replace(run, environment=run.environment.model_copy(update={"executor": "local"}))
    assert list(cell_of(here).measure(["pass_at_1"])) == ["pass_at_1"]


@pytest.mark.parametrize(
    "forged",
    [
        {"cell": "runs/prod/wmtp_daily/night"},
        {"cell": f"{STUDY}/cells/../../../runs/prod"},
        {"task": "promote"},
        {"index": -1},
        {"force": True},
    ],
)
def test_a_pod_can_ask_for_nothing_but_what_programs_of_a_cell_come_to(run: Run, forged: dict[str, object]) -> None:
    cell = cell_of(run)
    whole: dict[str, object] = {"cell": cell.run.prefix, "task": "judge", "index": 0, "key": "0" * 64}
    place = asks.place_of(run, "search", 0)
    run.store.write_json(f"{place}/good.json", whole)
    run.store.write_json(f"{place}/forged.json", whole | forged)
    inbox = Inbox(run.store, place)
    assert inbox.read("good").run(run.environment).prefix == cell.run.prefix
    with pytest.raises(DataError, match=r"forged\.json asks for nothing that is known here"):
        inbox.read("forged")


def test_a_pod_can_ask_for_no_index_that_the_cell_has_not(run: Run) -> None:
    cell = cell_of(run)
    ask = asks.Ask(cell=cell.run.prefix, task="judge", index=99, key="0" * 64)
    with pytest.raises(DataError, match=r"judge\[99\] is asked for, of which select/\S+ has \d\. Airflow and the pod"):
        ask.run(run.environment)


def test_a_cell_that_was_forged_forces_nothing(run: Run) -> None:
    cell = cell_of(run)
    spec = cell.run.spec.model_copy(update={"force": ("judge",)})
    run.store.write_json(f"{cell.run.prefix}/spec.json", spec.model_dump(mode="json"))
    ask = asks.Ask(cell=cell.run.prefix, task="judge", index=0, key="0" * 64)
    assert ask.run(run.environment).spec == cell.run.spec


def test_a_terminal_starts_no_study_that_needs_pods(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster: Callable[..., Any] = load_environment
    from mlops_tasks import __main__ as program

    def in_pods(*given: Any) -> Any:
        return cluster(*given).model_copy(update={"executor": "kubernetes"})

    monkeypatch.setattr(program, "load_environment", in_pods)
    arguments = ["tune", "run", f"--env={place}/environment.yaml", f"--recipe={place}/recipe.yaml"]
    assert main([*arguments, "--set=tuning.objectives=[pass_at_1]"]) == 64
    assert "Run the study by the DAG wmtp_tune" in capsys.readouterr().err
    environment = load_environment(place / "environment.yaml")
    assert list(stage.runs(environment)) == [], "it would be the last study"
