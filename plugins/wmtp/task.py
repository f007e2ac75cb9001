"""What every operator of a stage does, wherever the stage runs: look its result up, and have it made only if it is not there.

What a stage does, and what is a hit, is said in `mlops_tasks`; how it is started is `local`'s and `kubernetes`'.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Collection, Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Any

from airflow.sdk import Context, ExceptionRetryPolicy, RetryAction, RetryDecision, RetryPolicy, RetryRule
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, AirflowTaskTimeout

from mlops_tasks import pipeline, stage
from mlops_tasks.config.loading import load_environment
from mlops_tasks.errors import DataError, Interrupted, Killed, Pruned, Unavailable, UserError
from mlops_tasks.stage import Decision, Pointer, Run, Task
from wmtp.champion import tell_decay, tell_promotion
from wmtp.links import LINKS, links_of

log = logging.getLogger(__name__)

_TOLD = {"promote": tell_promotion, "watch": tell_decay}
"""What Airflow is told of a result beside the reference."""

# From SIGTERM to SIGKILL: more than the ranks of a training get for a step and a checkpoint.
GRACE_SECONDS = 120.0

RETRY_POLICY = ExceptionRetryPolicy(
    [
        RetryRule([UserError, DataError, Pruned], RetryAction.FAIL, reason="it would fail again"),
        RetryRule(Unavailable, RetryAction.RETRY, timedelta(minutes=1), "it may be there soon"),
        RetryRule(Interrupted, RetryAction.RETRY, timedelta(seconds=1), "it resumes"),
        RetryRule(KeyboardInterrupt, RetryAction.FAIL, reason="stopped from the keyboard"),
    ]
)


class LongPolicy(RetryPolicy):
    """Of a task with `RETRIES`, since it may be preempted often; what may come again each time is final from try `MOST_TRIES` on.

    A preemption is a try too: Airflow tells how many there were, and not of which kind.

    Args:
        survives_kills: False where a process that is killed is among the latter.
    """

    RETRIES, MOST_TRIES = 50, 5

    def __init__(self, *, survives_kills: bool = False) -> None:
        self._survives_kills = survives_kills

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        """What it means that the try of this number has failed."""
        if self._survives_kills and isinstance(exception, Killed):
            return RetryDecision.retry(reason="it takes something else up in the end")
        decision = RETRY_POLICY.evaluate(exception, try_number, max_tries, context)
        # Who clears a task gives it all its tries anew, and only the greatest number says so.
        number = try_number - max(0, max_tries - self.RETRIES)
        if decision.action is RetryAction.DEFAULT and number >= self.MOST_TRIES:
            return RetryDecision.fail(
                f"{type(exception).__name__} may come again each time, and this was try {number}: from try {self.MOST_TRIES} on it is final. Mend what "
                "it says and clear the task; what it has finished is a hit."
            )
        return decision


DEFAULTS: dict[str, Any] = {
    "owner": "wmtp",
    "retries": 2,
    "retry_delay": timedelta(seconds=30),
    "retry_policy": RETRY_POLICY,
}
"""`default_args` of every DAG; how long a task may take is each DAG's."""

# `airflow dags test` runs all tasks in one process, and after Ctrl-C or SIGTERM would go on with the next one.
stopped = threading.Event()


def note_stop() -> None:
    """Airflow's `on_kill` was called."""
    # Also while Airflow handles a time-out, after which this process may go on with other tasks.
    if not isinstance(sys.exception(), AirflowTaskTimeout):
        stopped.set()


def refuse_if_stopped() -> None:
    """Start nothing new in a process that was asked to stop."""
    if stopped.is_set():
        raise AirflowFailException("This process was asked to stop; nothing new is started.")


class StageTask:
    """One task of the pipeline, of an operator that says in `make` how a stage is started.

    The return value is a reference to the artifact, never the artifact: `{stage, key, uri, cache}`.
    """

    task_id: str
    dag: Any
    dag_id: str
    environment_file: str
    index: int
    """Of the mapped tasks the one that this is; in a cell, the one that it is at."""
    cell: str | None
    """Of a comparison: the task is done in this cell of it, each of its indices after the other. None: it is a task of the run itself."""
    operator_extra_links: Collection[Any] = LINKS
    links: Mapping[str, str] = MappingProxyType({})
    """Addresses by the name of the link, when the task has ended."""

    def make(self, run: Run, task: Task, decision: Decision, context: Context) -> None:
        """Run the task to its end, by whatever means; it records what it came to.

        Raises:
            WmtpError: of the class that its exit code means.
        """
        raise NotImplementedError

    def execute(self, context: Context) -> Any:
        """Look up, or run, and say where the result is."""
        refuse_if_stopped()
        run = Run.open(load_environment(self.environment_file), self._prefix(context))
        task = pipeline.task_named(self.task_id)
        if self.cell is None:
            return self.settle(run, task, context)
        found = None
        for index in [index for one, index in pipeline.places(run.spec) if one.id == task.id] or [0]:
            self.index = index
            found = self.settle(run, task, context)
        return found

    def settle(self, run: Run, task: Task, context: Context) -> dict[str, Any]:
        """Look one place of the task up, or run it."""
        if self.index >= run.spec.fan_out.get(task.id, 1):
            raise AirflowSkipException(f"The spec of this run wants {run.spec.fan_out[task.id]} of {task.id}.")
        pointer = self._pointer(run, task, context)
        self.links = links_of(run, pointer, has_report="report" in self.dag.task_ids)
        if pointer.outcome == "skipped":
            raise AirflowSkipException("This run does not need it.")
        if pointer.outcome == "done":
            log.info("%s: done in %.1f s", self.label, pointer.seconds)
        if (tell := _TOLD.get(self.task_id)) is not None:
            tell(context, run, pointer)
        uri = f"{run.store.uri}/{pointer.prefix}" if pointer.prefix else None
        return {"stage": pointer.stage, "key": pointer.key, "uri": uri, "cache": pointer.outcome}

    def command(self, run: Run, task: Task, decision: Decision, *, environment_file: str | None = None) -> list[str]:
        """The arguments of `wmtp` that run this task.

        Args:
            environment_file: where it lies for whoever runs the command; None: where it lies here.
        """
        arguments = [task.verb, f"--env={environment_file or self.environment_file}"]
        arguments += [f"--spec={run.store.uri}/{run.prefix}/spec.json", f"--task={task.id}", f"--index={self.index}"]
        return arguments + ([f"--expect-key={decision.key}"] if decision.components else [])

    @property
    def label(self) -> str:
        """The task, as people are told of it."""
        return f"{self.task_id}[{self.index}]" if self.cell is None else f"{self.cell}: {self.task_id}[{self.index}]"

    def _pointer(self, run: Run, task: Task, context: Context) -> Pointer:
        stage.apply_force(run, task, self.index, tasks=pipeline.every())
        decision = stage.decide(run, task, self.index, tasks=pipeline.every())
        if decision.outcome in ("hit", "skipped"):
            return stage.settle(run, task, self.index, decision, decision.artifact, seconds=0.0)
        if decision.components:
            stage.note_key(run, task, self.index, decision)
        log.info("%s: starts", self.label)
        self.make(run, task, decision, context)
        pointer = run.pointer(task.id, self.index)
        assert pointer is not None, f"{task.id} ended with 0 and left no pointer"
        return pointer

    def _prefix(self, context: Context) -> str:
        environment = load_environment(self.environment_file)
        prefix = Run.prefix_of(environment, self.dag_id, context["run_id"])
        return prefix if self.cell is None else stage.cell_prefix(prefix, self.cell)
