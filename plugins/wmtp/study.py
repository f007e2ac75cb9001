"""A study as pods: one for each worker, which has credentials, and beside it, while it waits, one without for each thing that a model wrote.

A worker that is killed is found again with what its pod has asked for. How an ask lies in the store is `mlops_tasks.tuning.asks`', what
becomes of a pod `kubernetes`'.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

from airflow.sdk import Context
from kubernetes.client import models as k8s

from mlops_tasks import pipeline, stage
from mlops_tasks.config.environment import Environment
from mlops_tasks.errors import Interrupted, Killed, Unavailable, WmtpError
from mlops_tasks.stage import Decision, Run, Task
from mlops_tasks.tuning import asks
from mlops_tasks.tuning.trials import MOST_LOST
from wmtp.kubernetes import PodStage, SandboxStage
from wmtp.manifest import Identity, Order
from wmtp.task import stopped

log = logging.getLogger(__name__)

_TIMEOUT = timedelta(hours=6)
"""Of what is asked for, as of the night's longest without credentials; a study has days."""
_MOST_TRIES = 5
"""Of an ask that may end better another time, before its pod is told that it does not."""


def _most_tries(error: Exception) -> int:
    if isinstance(error, Killed):
        return MOST_LOST
    return _MOST_TRIES if isinstance(error, Interrupted | Unavailable) else 1


class TrialStage(SandboxStage):
    """What the pod of a study has asked for, in the name of the task that watches that pod."""

    def __init__(self, *, asker: Identity, **operator: Any) -> None:
        super().__init__(**operator)
        self._asker = asker

    def request(self, environment: Environment, order: Order, context: Context) -> k8s.V1Pod:
        """The pod that is submitted."""
        wanted, cluster = super().request(environment, order, context), environment.kubernetes
        assert cluster is not None
        # By that of the night it could have the very pod evicted that asks for it.
        wanted.spec.priority_class_name = cluster.profiles[cluster.profile_of(self._asker.task)].priority_class
        return wanted

    def _rest(self) -> None:
        super()._rest()
        # Whoever follows that pod waits for this one.
        asker = self._found(self._asker.name)
        if asker is None or self._has_ended(asker):
            raise Interrupted(
                f"{self.label}: {self._asker.name}, which asked for it, is gone. Its next try asks again."
            )

    def _identity_in(self, environment: Environment, context: Context) -> Identity:
        mine = self._asker
        return replace(mine, task=self.task_id, index=self.index, cell=self.cell, asked_by=mine.task)


class StudyStage(PodStage):
    """A worker of a study, or its end: a pod that asks this operator for what it may not run itself."""

    template_fields = ("index", "cell")
    _inbox: asks.Inbox
    _reply: Callable[[str], None]
    """To an ask of this name."""
    _looked_at = 0.0
    _trial: TrialStage | None = None
    """The last that was asked for."""

    def __init__(self, **operator: Any) -> None:
        super().__init__(**operator)
        self._tries: Counter[str] = Counter()

    def make(self, run: Run, task: Task, decision: Decision, context: Context) -> None:
        """Run `wmtp` in a pod, and what it asks for in others."""
        self._inbox = asks.Inbox(run.store, asks.place_of(run, task.id, self.index))
        self._reply = partial(self._answer, environment=run.environment, context=context)
        super().make(run, task, decision, context)

    def order(self, run: Run, task: Task, decision: Decision, context: Context) -> Order:
        """What this task is to do in a pod, and where that asks."""
        order = super().order(run, task, decision, context)
        return replace(order, variables={**order.variables, asks.PLACE: asks.place_of(run, task.id, self.index)})

    def _pause(self) -> None:
        super()._pause()
        if time.monotonic() - self._looked_at < asks.SECONDS_BETWEEN_LOOKS:
            return
        try:
            for name in self._inbox.names():
                self._reply(name)
        except Unavailable as error:  # the ask stays where it is
            log.warning("%s: what its pod asks for cannot be seen to now: %s", self.label, error)
        self._looked_at = time.monotonic()

    def _answer(self, name: str, *, environment: Environment, context: Context) -> None:
        # The pod says nothing while it waits; `TrialStage` looks whether it is still there.
        try:
            self._fulfil(self._inbox.read(name), environment, context)
        except Exception as error:  # whatever it is: this process would find the ask again and end by it again
            if stopped.is_set():
                raise
            self._tries[name] += 1
            if self._tries[name] < _most_tries(error):
                log.warning("%s: what its pod asks for is tried again: %s", self.label, error)
                return
            told = error if isinstance(error, WmtpError) else WmtpError(f"{type(error).__name__}: {error}")
            unforeseen = None if told is error else error
            log.warning("%s: its pod is told that there is no result: %s", self.label, told, exc_info=unforeseen)
            self._inbox.refuse(name, told)
        else:
            self._inbox.close(name)

    def _fulfil(self, ask: asks.Ask, environment: Environment, context: Context) -> None:
        cell, task = ask.run(environment), pipeline.TASKS[ask.task]
        decision = stage.decide(cell, task, ask.index, tasks=pipeline.TASKS)
        stage.require_key(cell, task, ask.index, decision, ask.key)
        if decision.outcome != "run":
            return
        self._trial = TrialStage(
            asker=self._identity_in(environment, context),
            task_id=ask.task,
            index=ask.index,
            cell=cell.prefix.rpartition("/")[2],
            environment_file=self.environment_file,
            config_file=self.config_file,
            execution_timeout=_TIMEOUT,
        )
        self._trial.make(cell, task, decision, context)

    def _part_with(self, identity: Identity) -> None:
        # Whoever stops this process waits 30 s for it, and a server that is silent takes 20 of them each time.
        if stopped.is_set() and self._trial is not None and self._trial.has_left:
            log.warning("%s: %s may be left too", self.label, identity.name)
            return
        super()._part_with(identity)
