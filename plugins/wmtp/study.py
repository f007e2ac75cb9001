"""A study as pods: one for each worker, which has credentials, and beside it, while it waits, one without for each thing that a model wrote.

A worker that is killed is found again with what its pod has asked for. How an ask lies in the store is `mlops_tasks.tuning.asks`', what
becomes of a pod `kubernetes`'.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from airflow.sdk import Context

from mlops_tasks import pipeline, stage
from mlops_tasks.config.environment import Environment
from mlops_tasks.errors import Unavailable, WmtpError
from mlops_tasks.stage import Decision, Run, Task
from mlops_tasks.tuning import asks
from wmtp.kubernetes import PodStage, SandboxStage
from wmtp.manifest import Identity, Order
from wmtp.task import stopped

log = logging.getLogger(__name__)


class TrialStage(SandboxStage):
    """What the pod of a study has asked for, in the name of the task that watches that pod."""

    def __init__(self, *, asker: Identity, **operator: Any) -> None:
        super().__init__(**operator)
        self._asker = asker

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
        # The pod waits for it, so nothing is missed meanwhile.
        try:
            self._fulfil(self._inbox.read(name), environment, context)
        except WmtpError as error:
            if stopped.is_set():
                raise
            log.warning("%s: its pod is told that there is no result: %s", self.label, error)
            self._inbox.refuse(name, error)
        self._inbox.close(name)

    def _fulfil(self, ask: asks.Ask, environment: Environment, context: Context) -> None:
        cell, task = ask.run(environment), pipeline.TASKS[ask.task]
        decision = stage.decide(cell, task, ask.index, tasks=pipeline.TASKS)
        stage.require_key(cell, task, ask.index, decision, ask.key)
        if decision.outcome != "run":
            return
        trial = TrialStage(
            asker=self._identity_in(environment, context),
            task_id=ask.task,
            index=ask.index,
            cell=cell.prefix.rpartition("/")[2],
            environment_file=self.environment_file,
            config_file=self.config_file,
            execution_timeout=self.execution_timeout,
        )
        trial.make(cell, task, decision, context)
