"""`wmtp tune`: a study on this machine, and how far one is.

Reads arguments and writes lines; what a study does is `study`'s and `selection`'s.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import UTC, datetime
from statistics import fmean
from typing import TYPE_CHECKING, TextIO

from mlops_tasks import ledger, pipeline, planning, stage
from mlops_tasks.config.environment import Environment
from mlops_tasks.errors import UserError
from mlops_tasks.stage import Run
from mlops_tasks.store import Store
from mlops_tasks.tuning.space import require_no_sandbox

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from mlops_tasks.tuning.study import Study

_DAG = "tune"
_STATES = ("COMPLETE", "PRUNED", "RUNNING", "WAITING")


def add(command: argparse.ArgumentParser, common: argparse.ArgumentParser, recipe: argparse.ArgumentParser) -> None:
    """Add the subcommands to the parser of `wmtp tune`."""
    commands = command.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run", parents=[common, recipe], help="a whole study in this process, or what is left of one"
    )
    run.set_defaults(answer=_run)
    status = commands.add_parser("status", parents=[common], help="how far a study is, and its best trial so far")
    status.add_argument("--spec", help="URI of a study's spec.json (default: the last one)")
    status.set_defaults(answer=_status)


def _run(options: argparse.Namespace, environment: Environment, out: TextIO) -> None:
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"
    prefix = Run.prefix_of(environment, _DAG, name)
    if environment.executor == "kubernetes":  # before there is a run, which would be the last study for whoever asks
        require_no_sandbox(planning.asked_for(environment, options.recipe, options.overrides)[0])
    run = planning.plan(environment, prefix, recipe=options.recipe, overrides=options.overrides, is_study=True)
    for task, index in pipeline.places(run.spec):
        stage.execute(run, task, index, tasks=pipeline.every())
    out.writelines(f"{line}\n" for line in in_words(run))


def _status(options: argparse.Namespace, environment: Environment, out: TextIO) -> None:
    if options.spec:
        store = Store.of(environment)
        run = Run.open(environment, options.spec.removeprefix(f"{store.uri}/").removesuffix("/spec.json"))
    else:
        found = next((one for one in stage.runs(environment) if one.spec.is_study), None)
        if found is None:
            raise UserError(f"The store {environment.store} has no study yet. Start one with `wmtp tune run`.")
        run = found
    out.writelines(f"{line}\n" for line in in_words(run))


def in_words(run: Run) -> Iterator[str]:
    """Lines on a study, as far as it has come."""
    from mlops_tasks.tuning.study import Study

    study = Study.begun(run)
    if study is None:
        yield f"{run.title}: not begun"
        return
    with study.alone():
        slots = study.slots() if study.is_begun() else {}
    states = [trial.state.name for trial in slots.values()]
    counts = ", ".join(f"{states.count(state)} {state.lower()}" for state in _STATES if state in states) or "not begun"
    yield f"{study.name}: {study.tuning.num_trials} trials, {counts}"
    yield f"  objectives  {', '.join(study.objectives)}"
    yield from _best(study, list(slots.values()))
    yield f"  time left   {_time_left(study, slots)}"
    yield f"  cost        {ledger.of_run(run, run.pointers()).in_words()}"
    if (selected := run.store.find(study.prefix)) is not None:
        yield f"  selected    {selected.metrics['reason']}"
        yield f"              {selected.uri}/…/recipe.yaml"
    if (concluded := run.pointer("conclude")) is not None:
        yield f"  page        {concluded.detail['path']}"


def _best(study: Study, trials: list[FrozenTrial]) -> Iterator[str]:
    from mlops_tasks.tuning.selection import best_of
    from mlops_tasks.tuning.trials import CHANGES, SLOT

    best = best_of(study, {trial.user_attrs[SLOT]: trial for trial in trials})
    if best is None:
        yield "  best        none yet"
        return
    values = ", ".join(f"{name} {value:.4g}" for name, value in zip(study.objectives, best.values, strict=True))
    yield f"  best        slot {best.user_attrs[SLOT]}: {values}"
    yield from (f"              {name} = {_short(value)}" for name, value in best.user_attrs[CHANGES].items())


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _time_left(study: Study, slots: dict[int, FrozenTrial]) -> str:
    """By the mean time of the trials that are done, as many at one time as are running now."""
    from mlops_tasks.tuning.trials import is_done

    seconds = [
        trial.duration.total_seconds()
        for trial in slots.values()
        if trial.duration is not None and trial.state.is_finished()
    ]
    left = study.tuning.num_trials - sum(is_done(trial) for trial in slots.values())
    if not left:
        return "none"
    if not seconds:
        return f"unknown: no trial of {left} is done"
    running = sum(trial.state.name == "RUNNING" for trial in slots.values())
    workers = running or study.run.environment.tune.num_workers
    return f"about {fmean(seconds) * left / workers / 60:.0f} min for {left} trials, {workers} at a time"
