"""One study that several workers share: exactly as many trials as were asked for, whatever happens to the workers.

A study has a slot for each trial. A slot is done when a trial of Optuna with its number is complete or pruned; one whose trial has failed, or whose
worker was killed, waits again with the same parameters, until these have taken three workers with them. Trials are given out one at a time
under the lease of the study, so that no two workers take one, and none is taken that has no slot.

Owns the database, slots, and what becomes of a trial. How a trial is kept is `trials`', what it runs is `cell`'s, what it may change
`space`'s, what is made of all of them `selection`'s.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from mlops_tasks import lease, stage
from mlops_tasks.config.loading import changed, value_of
from mlops_tasks.config.recipe import Recipe
from mlops_tasks.config.space import HyperbandPruner, MedianPruner, Objective, Tuning
from mlops_tasks.errors import FAULTS_OF_RECIPE, DataError, Pruned, Unavailable, Unfit, UserError, WmtpError
from mlops_tasks.pipeline import STUDY, every
from mlops_tasks.stage import Run, artifact_prefix
from mlops_tasks.tuning import NAME, key_begun, runs
from mlops_tasks.tuning.cell import Cell
from mlops_tasks.tuning.overseer import listening
from mlops_tasks.tuning.space import default_point, draw, in_order, tuning_of
from mlops_tasks.tuning.trials import (
    CELL,
    CHANGES,
    DIRECTIONS,
    MOST_LOST,
    NUM_STEPS,
    SLOT,
    STEPS,
    WHY,
    WORKER,
    num_failed,
    num_lost,
    row,
    standing,
    towards,
)

if TYPE_CHECKING:
    import optuna
    import optuna.pruners
    import optuna.samplers
    import optuna.storages
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 10
_LONGEST_WHY = 2000
_SECONDS_BETWEEN_LOOKS = 2.0


@dataclass(frozen=True)
class Study:
    """The study of a run's recipe."""

    run: Run
    key: str
    """Of `select`, which names the study too."""

    @classmethod
    def of(cls, run: Run) -> Study:
        """The study of a run that was planned as one.

        Raises:
            UserError: its recipe has no space.
        """
        tuning_of(run.spec.recipe)
        return cls(run, stage.decide(run, STUDY["select"], tasks=every()).key)

    @classmethod
    def begun(cls, run: Run) -> Study | None:
        """The study that a run has worked on, whatever the code is now; None: it has not begun."""
        tuning_of(run.spec.recipe)
        key = key_begun(run)
        return cls(run, key) if key else None

    @property
    def prefix(self) -> str:
        """Of the study in the store."""
        return artifact_prefix("select", self.key)

    @property
    def name(self) -> str:
        """In the database."""
        return f"{self.run.spec.recipe.name}-{self.key[:16]}"

    @property
    def recipe(self) -> Recipe:
        return self.run.spec.recipe

    @property
    def tuning(self) -> Tuning:
        return tuning_of(self.recipe)

    @property
    def objectives(self) -> Sequence[Objective]:
        return self.tuning.objectives

    def is_begun(self) -> bool:
        """Whether the database has it."""
        import optuna

        with _database():
            return self.name in optuna.get_all_study_names(self._storage)

    @cached_property
    def database(self) -> optuna.Study:
        """The study in the database; made if it is not there. Only under the lease: two that make tables at one time break one another."""
        import optuna

        with _database():
            return optuna.create_study(
                storage=self._storage,
                study_name=self.name,
                load_if_exists=True,
                directions=[DIRECTIONS[objective] for objective in self.objectives],
                sampler=self._sampler(0),
                pruner=_pruner(self.tuning),
            )

    @cached_property
    def _storage(self) -> optuna.storages.RDBStorage:
        import optuna

        _know()
        terms = self.run.environment.tune
        address = _address(terms.storage or "")
        # A host that does not answer at all would hold the worker for minutes, or for ever.
        patience = {"connect_timeout": _CONNECT_SECONDS} if address.startswith("postgresql") else {}
        with _database():
            return optuna.storages.RDBStorage(
                address,
                engine_kwargs={"pool_pre_ping": True, "connect_args": patience},
                heartbeat_interval=terms.heartbeat_seconds,
                grace_period=terms.grace_seconds,
            )

    def trials(self) -> list[FrozenTrial]:
        """All that were begun or wait, in the order in which they were made."""
        with _database():
            return self.database.get_trials(deepcopy=False)

    def slots(self) -> dict[int, FrozenTrial]:
        """The trial that stands in each slot now."""
        return standing(self.trials())

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lease of the study, for a moment."""
        terms = self.run.environment.lease
        with lease.held(self.run.store, f"{self.prefix}/study", terms=terms, run=self.run.name, is_done=lambda: False):
            yield

    def next_trial(self) -> optuna.Trial | None:
        """Take a trial, or wait for those of others, which may turn out to be dead; None when all slots are done."""
        while True:
            with self.alone(), _database():
                self._restore_slots()
                states = [trial.state.name for trial in self.slots().values()]
                if "WAITING" in states:
                    return self._take()
                if "RUNNING" not in states:
                    return None
            time.sleep(min(_SECONDS_BETWEEN_LOOKS, self.run.environment.tune.heartbeat_seconds))

    def _take(self) -> optuna.Trial:
        # Each draw has a seed of its own: a worker that starts anew, or beside another one, must not repeat draws that were made.
        self.database.sampler = self._sampler(len(self.trials()) + sum(_is_begun(trial) for trial in self.trials()))
        trial = self.database.ask()
        self._storage.record_heartbeat(trial._trial_id)
        trial.set_user_attr(WORKER, f"{socket.gethostname()}:{os.getpid()}")
        return trial

    def _restore_slots(self) -> None:
        """Have a trial wait in each slot in which none waits, runs or is done."""
        import optuna

        optuna.storages.fail_stale_trials(self.database)
        for trial in self.trials():
            # Taken under the lease that we hold now, by a process that was killed before its first sign of life.
            if trial.state.name == "RUNNING" and WORKER not in trial.user_attrs:
                self.database.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        trials = self.trials()
        found = standing(trials)
        for trial in trials:
            if trial.state.name == "WAITING" and found.get(trial.user_attrs.get(SLOT, -1)) != trial:
                # Its slot is done, and whoever asks would be given it.
                self._storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.FAIL)
        for slot in range(self.tuning.num_trials):
            last = found.get(slot)
            if last is None or last.state.name == "FAIL":
                self._restore(slot, last, num_lost(trials, last) if last else 0)

    def _restore(self, slot: int, last: FrozenTrial | None, lost: int) -> None:
        """Have a slot wait again, or end it where its parameters have taken too many workers with them."""
        import optuna

        if last is not None and lost >= MOST_LOST:
            why = f"given up: {lost} workers were lost with these parameters"
            log.warning("slot %d is %s", slot, why)
            ended = optuna.trial.create_trial(
                state=optuna.trial.TrialState.PRUNED,
                params=last.params,
                distributions=last.distributions,
                user_attrs={**last.user_attrs, WHY: why},
            )
            self.database.add_trial(ended)
            return
        if last is not None:
            log.warning("slot %d waits again: trial %d has failed", slot, last.number)
        self.database.enqueue_trial(self._parameters(slot, last), user_attrs={SLOT: slot})

    def _parameters(self, slot: int, last: FrozenTrial | None) -> dict[str, Any]:
        """What a slot's trial is held to: the recipe's own point, or what one that failed had drawn."""
        if slot == 0:
            return default_point(self.recipe)
        # One that was killed in the middle of its draw has had no chance; the rest would be drawn as if it had.
        return last.params if last is not None and CHANGES in last.user_attrs else {}

    def _sampler(self, count: int) -> optuna.samplers.TPESampler:
        import optuna

        settings = self.tuning.sampler
        digest = hashlib.sha256(f"{settings.seed}/{count}".encode()).digest()
        return optuna.samplers.TPESampler(
            seed=int.from_bytes(digest[:4]),
            n_startup_trials=settings.num_startup_trials,
            n_ei_candidates=settings.num_candidates,
            multivariate=settings.multivariate,
            group=settings.group,
            constant_liar=settings.constant_liar,
        )

    @contextmanager
    def beating(self, trial: optuna.Trial) -> Iterator[None]:
        """Give signs of life of a trial."""
        is_over = threading.Event()

        def beat() -> None:
            while not is_over.wait(self.run.environment.tune.heartbeat_seconds):
                try:
                    with _database():
                        self._storage.record_heartbeat(trial._trial_id)
                except Unavailable as error:
                    log.warning("%s", error)

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()


def search(run: Run) -> dict[str, Any]:
    """Take trials of the run's study until none is left.

    Returns:
        How many this worker has done.
    """
    study, done = Study.of(run), 0
    run.write(NAME, study.key.encode())
    _require_room(study)
    while (trial := study.next_trial()) is not None:
        with study.beating(trial):
            _carry_out(study, trial)
        done += 1
    return {"trials": done}


def _require_room(study: Study) -> None:
    """Before the first trial, for only now is it known how many problems the data have."""
    gate, num_tried = study.recipe.evaluation.gate, study.tuning.num_problems
    data = study.run.artifact("pull_data")
    assert data is not None, "no recipe skips it"
    there = pq.ParquetFile(data.path(f"{gate.split}.parquet")).metadata.num_rows - gate.skip
    if study.tuning.asks_problems and num_tried >= there:
        raise UserError(
            f"tuning.num_problems is {num_tried}, but {data.uri} has {max(there, 0)} problems of evaluation.gate (split {gate.split} after {gate.skip}): none "
            "would be left to decide by. Set it to less."
        )


def _carry_out(study: Study, trial: optuna.Trial) -> None:
    """One trial to its end; where it fails for a reason that is not its parameters', its slot waits again."""
    started = time.monotonic()
    try:
        outcome = _TrialRun(study, trial).outcome()
    except _Lost as lost:
        log.warning(
            "slot %d is another worker's now, and what was made for it is a hit there: %s", trial.user_attrs[SLOT], lost
        )
        return
    except BaseException as error:
        number = 0
        with suppress(WmtpError), _database():
            trial.set_user_attr(WHY, f"{type(error).__name__}: {error}"[:_LONGEST_WHY])
            _tell(study, trial, state="FAIL")
            number = num_failed(study.trials(), trial.user_attrs)
        if number >= MOST_LOST and _is_unknown(error):
            raise DataError(
                f"Slot {trial.user_attrs[SLOT]} of {study.name} has failed {number} times with {trial.user_attrs[CHANGES]}, the last time: "
                f"{type(error).__name__}: {error}. Mend that, or take these values out of tuning.space, and clear the task: the study goes on."
            ) from error
        raise
    with _database():
        _tell(
            study,
            trial,
            values=outcome if isinstance(outcome, list) else None,
            state="COMPLETE" if isinstance(outcome, list) else "PRUNED",
        )
    slot = trial.user_attrs[SLOT]
    left = sum(not one.state.is_finished() for one in study.slots().values())
    words = (
        ", ".join(f"{name} {value:.4g}" for name, value in zip(study.objectives, outcome, strict=True))
        if isinstance(outcome, list)
        else outcome
    )
    log.info("slot %d: %s in %.1f s; %d are left", slot, words, time.monotonic() - started, left)
    _note(study, slot)


def _is_unknown(error: BaseException) -> bool:
    """Whether whoever started this process would start it again, and nothing says that this may help."""
    return isinstance(error, Exception) and getattr(error, "exit_code", WmtpError.exit_code) == WmtpError.exit_code


def _note(study: Study, slot: int) -> None:
    runs.tell(study.run, study.key, row(study.objectives, study.slots()[slot]))


def _tell(study: Study, trial: optuna.Trial, *, state: str, values: list[float] | None = None) -> None:
    import optuna

    # Another worker may have taken this trial for dead, and then its slot is done anew, which is a hit.
    study.database.tell(trial, values, state=optuna.trial.TrialState[state], skip_if_finished=True)


class _TrialRun:
    """What becomes of one trial."""

    def __init__(self, study: Study, trial: optuna.Trial) -> None:
        self.study, self.trial = study, trial
        self.slot: int = trial.user_attrs[SLOT]

    def outcome(self) -> list[float] | str:
        """Its values, or why it was pruned.

        Raises:
            WmtpError: for a reason that has nothing to do with its parameters.
        """
        study, tuning = self.study, self.study.tuning
        with _database():
            changes = draw(self.trial, study.recipe)
            self.trial.set_user_attr(CHANGES, changes)
        _note(study, self.slot)
        try:
            cell = self._cell(changes)
            with listening(self._judge) as line:
                found = cell.measure(tuning.objectives, line)
        except Pruned as pruned:
            return self._left(f"pruned: {pruned}")
        except FAULTS_OF_RECIPE as error:
            # What the recipe itself ends with is no trial's fault.
            if self.slot == 0:
                raise
            return self._left(f"{type(error).__name__}: {error}")
        return [found[objective] for objective in tuning.objectives]

    def _cell(self, changes: dict[str, Any]) -> Cell:
        study = self.study
        try:
            recipe = trial_recipe(study.recipe, changes, f"slot {self.slot} of {study.name}")
        except UserError as error:
            raise Unfit(str(error)) from error
        cell = Cell.below(study.run, study.prefix, recipe)
        with _database():
            self.trial.set_user_attr(CELL, cell.run.prefix)
        return cell

    def _left(self, why: str) -> str:
        with _database():
            self.trial.set_user_attr(WHY, why)
        return why

    def _judge(self, step: int, num_steps: int, nats: float) -> bool:
        """Report a validation loss, and ask whether the training goes on."""
        if len(self.study.objectives) > 1:
            return True
        with _database():
            self.trial.set_user_attr(STEPS, step)
            self.trial.set_user_attr(NUM_STEPS, num_steps)
            self.trial.report(towards(self.study.objectives[0], nats), step)
            return not self.trial.should_prune()


def trial_recipe(recipe: Recipe, changes: dict[str, Any], where: str) -> Recipe:
    """The recipe of a trial: changed, and measured on its share of the gate set."""
    gate = tuning_of(recipe).for_trials(recipe.evaluation.gate)
    return changed(recipe, in_order(changes), where).untuned(gate)


def _is_begun(trial: FrozenTrial) -> bool:
    return trial.state.name != "WAITING"


def _pruner(tuning: Tuning) -> optuna.pruners.BasePruner:
    import optuna

    given = tuning.pruner
    if isinstance(given, MedianPruner):
        return optuna.pruners.MedianPruner(given.num_startup_trials, given.warmup_steps)
    if isinstance(given, HyperbandPruner):
        return optuna.pruners.HyperbandPruner(given.min_steps, given.max_steps, given.reduction_factor)
    return optuna.pruners.NopPruner()


def _know() -> None:
    """Hear no more of what Optuna warns of and we know: the version is pinned, and whoever asks for a trial here gives its signs of life too."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed")
    warnings.filterwarnings("ignore", message="PedAnovaImportanceEvaluator computes")


def _address(storage: str) -> str:
    """The address of the database; what a variable holds is in no message, for a password is in it."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    form = "postgresql+psycopg2://user:password@host:5432/database"
    found = value_of("tune.storage", storage, form=form)
    if found == storage:
        return storage
    try:
        url = make_url(found)
        is_sound = url.drivername in ("postgresql", "postgresql+psycopg2") and "@" not in (url.host or "")
    except (ArgumentError, ValueError):
        is_sound = False
    if not is_sound:
        raise UserError(
            f"tune.storage is {storage}, but what that environment variable holds is no address of a PostgreSQL. Set it to {form}, with "
            "%40, %2F and %3A for @, / and : in the password."
        )
    return found


class _Lost(Unavailable):
    """Another worker has taken this one for dead, and its trial's slot waits again, or is done."""


@contextmanager
def _database() -> Iterator[None]:
    """What the database raises becomes ours.

    Raises:
        Unavailable: it cannot be reached, or was lost on the way.
    """
    from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except UpdateFinishedTrialError as error:
        raise _Lost(
            "There was no sign of life of this trial for tune.grace_seconds, so it has ended for all others. Raise that if this worker was only slow."
        ) from error
    except (StorageInternalError, SQLAlchemyError) as error:
        raise Unavailable(
            f"The database of the study (tune.storage) cannot now: {str(error).partition(chr(10))[0]}. Start it, and run this task again: the study goes on."
        ) from error
