"""What a DAG does as processes beside the Airflow task: look a stage's result up, and start a process only if it is not there.

What a stage does, and what is a hit, is said in `mlops_tasks`; here is when a process is started, and what its end means to
Airflow.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseOperator, Context, ExceptionRetryPolicy, RetryAction, RetryRule
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, AirflowTaskTimeout

from mlops_tasks import pipeline, stage
from mlops_tasks.config import load_environment
from mlops_tasks.errors import BY_EXIT_CODE, DataError, Interrupted, Unavailable, UserError, WmtpError
from mlops_tasks.stage import Pointer, Run, Task
from mlops_tasks.store import Store
from wmtp.links import ManifestLink, MlflowLink, ReportLink, links_of
from wmtp.process import Process
from wmtp.trigger import Rollback, Trigger

log = logging.getLogger(__name__)

# From SIGTERM to SIGKILL: more than the ranks of a training get for a step and a checkpoint.
GRACE_SECONDS = 120.0

RETRY_POLICY = ExceptionRetryPolicy(
    [
        RetryRule([UserError, DataError], RetryAction.FAIL, reason="it would fail again"),
        RetryRule(Unavailable, RetryAction.RETRY, timedelta(minutes=1), "it may be there soon"),
        RetryRule(Interrupted, RetryAction.RETRY, timedelta(seconds=1), "it resumes"),
        RetryRule(KeyboardInterrupt, RetryAction.FAIL, reason="stopped from the keyboard"),
    ]
)

# `airflow dags test` runs all tasks in one process, and after Ctrl-C or SIGTERM would go on with the next one.
_stopped = threading.Event()


class LocalProcess(BaseOperator):
    """One call of `wmtp` as a process that does not outlive the task."""

    ui_color = "#e8f0fe"
    program: tuple[str, ...] = (sys.executable, "-m", "mlops_tasks")

    def __init__(self, *, environment_file: str, **operator: Any) -> None:
        super().__init__(**operator)
        self.environment_file = environment_file
        self._process: Process | None = None

    def on_kill(self) -> None:
        """Airflow got SIGTERM for this task, or its time is up: end the process; `execute` then raises."""
        # Airflow calls this while it handles the time-out, after which this process may go on with other tasks.
        if not isinstance(sys.exception(), AirflowTaskTimeout):
            _stopped.set()
        if self._process is not None:
            self._process.stop()

    def run_process(self, arguments: list[str]) -> None:
        """Run `wmtp` with these arguments to its end.

        Raises:
            WmtpError: the class that its exit code means, with its last error.
        """
        self._process = Process(
            [*self.program, *arguments], environment=_child_environment(), grace_seconds=GRACE_SECONDS
        )
        if _stopped.is_set():  # while the key was being looked up
            self._process.stop()
        try:
            code = self._process.run()
        except KeyboardInterrupt:
            _stopped.set()
            raise
        if code != 0:
            raise _error(self.label, code, self._process.story.last_error)

    @property
    def label(self) -> str:
        """The task, as people are told of it."""
        return str(self.task_id)


class LocalStage(LocalProcess):
    """One task of the pipeline as a process; a hit starts none.

    The return value is a reference to the artifact, never the artifact: `{stage, key, uri, cache}`.
    """

    template_fields = ("index",)
    operator_extra_links = (ManifestLink(), ReportLink(), MlflowLink())

    def __init__(self, *, index: int = 0, **operator: Any) -> None:
        super().__init__(**operator)
        self.index = index
        self.links: dict[str, str] = {}

    def execute(self, context: Context) -> Any:
        """Look up, or run, and say where the result is."""
        _refuse_if_stopped()
        run = Run.open(load_environment(self.environment_file), self._prefix(context))
        task = pipeline.task_named(self.task_id)
        if self.index >= run.spec.fan_out.get(task.id, 1):
            raise AirflowSkipException(f"The spec of this run wants {run.spec.fan_out[task.id]} of {task.id}.")
        pointer = self._pointer(run, task)
        self.links = links_of(run, pointer)
        if pointer.outcome == "skipped":
            raise AirflowSkipException("This run does not need it.")
        if pointer.outcome == "done":
            log.info("%s: done in %.1f s", self.label, pointer.seconds)
        uri = f"{run.store.uri}/{pointer.prefix}" if pointer.prefix else None
        return {"stage": pointer.stage, "key": pointer.key, "uri": uri, "cache": pointer.outcome}

    def command(self, run: Run, task: Task, decision: stage.Decision) -> list[str]:
        """The arguments of `wmtp` that run this task."""
        name = task.run.name if isinstance(task.run, stage.Stage) else task.id
        arguments = [name, f"--env={self.environment_file}", f"--spec={run.store.uri}/{run.prefix}/spec.json"]
        arguments += [f"--task={task.id}", f"--index={self.index}"]
        return arguments + ([f"--expect-key={decision.key}"] if decision.components else [])

    def _pointer(self, run: Run, task: Task) -> Pointer:
        stage.apply_force(run, task, self.index, tasks=pipeline.TASKS)
        decision = stage.decide(run, task, self.index, tasks=pipeline.TASKS)
        if decision.outcome in ("hit", "skipped"):
            return stage.settle(run, task, self.index, decision, decision.artifact, seconds=0.0)
        if decision.components:
            stage.note_key(run, task, self.index, decision)
        log.info("%s: starts", self.label)
        self.run_process(self.command(run, task, decision))
        pointer = run.pointer(task.id, self.index)
        assert pointer is not None, f"{task.id} ended with 0 and left no pointer"
        return pointer

    @property
    def label(self) -> str:
        return f"{self.task_id}[{self.index}]"

    def _prefix(self, context: Context) -> str:
        environment = load_environment(self.environment_file)
        return Run.prefix_of(environment, self.dag_id, context["run_id"])


class LocalPlan(LocalStage):
    """Resolves the recipe of a run into its spec; the return value is what `reference` is mapped over.

    A task can be mapped over nothing but a return value, so that the reference to the spec is the XCom `spec`.
    """

    def execute(self, context: Context) -> list[int]:
        """Check the trigger, write the spec, say how many references it wants."""
        _refuse_if_stopped()
        trigger = Trigger.of(context["params"])
        environment, prefix = load_environment(self.environment_file), self._prefix(context)
        uri = f"{Store.of(environment).uri}/{prefix}/spec.json"
        log.info("plan: starts with %s", trigger.recipe_file)
        self.run_process(self.plan_command(trigger, uri))
        context["ti"].xcom_push(key="spec", value={"stage": "plan", "key": None, "uri": uri, "cache": "done"})
        return list(range(Run.open(environment, prefix).spec.fan_out["reference"]))

    def plan_command(self, trigger: Trigger, uri: str) -> list[str]:
        """The arguments of `wmtp` that resolve the recipe."""
        arguments = ["plan", f"--env={self.environment_file}", f"--spec={uri}", f"--recipe={trigger.recipe_file}"]
        arguments += [f"--set={override}" for override in trigger.overrides]
        return arguments + [f"--force={task}" for task in trigger.force]


class LocalRollback(LocalProcess):
    """`wmtp registry rollback` with what the form says, in the name of whoever triggered the run."""

    def execute(self, context: Context) -> None:
        """Check the trigger, and roll back."""
        _refuse_if_stopped()
        form, run = Rollback.of(context["params"]), context["dag_run"]
        # The run is named too: a task that is repeated finds that its order is done.
        by = f"{run.triggering_user_name or 'Airflow'} ({self.dag_id}/{run.run_id})"
        self.run_process(self.command(form, by))

    def command(self, form: Rollback, by: str) -> list[str]:
        """The arguments of `wmtp` that roll back."""
        arguments = ["registry", "rollback", f"--env={self.environment_file}", f"--reason={form.reason}", f"--by={by}"]
        return [*arguments, "--once", *([f"--to={form.version}"] if form.version else []), "--", form.model]


def _refuse_if_stopped() -> None:
    if _stopped.is_set():
        raise AirflowFailException("This process was asked to stop; nothing new is started.")


def _child_environment() -> dict[str, str]:
    """This process's variables without Airflow's own: they hold its database and its keys."""
    kept = {name: value for name, value in os.environ.items() if not name.lstrip("_").startswith("AIRFLOW")}
    # The log is no terminal: lines at once, and no progress bars of other packages.
    return {**kept, "PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1"}


def _error(task: str, code: int, sentence: str) -> WmtpError:
    if _stopped.is_set():
        return Interrupted(f"{task} was stopped from outside: {sentence}")
    if code > 128:
        name = signal.Signals(code - 128).name if code - 128 in set(signal.Signals) else f"signal {code - 128}"
        hint = " Often that is a lack of memory." if code == 128 + signal.SIGKILL else ""
        sentence = f"It was killed by {name}.{hint} Its last line: {sentence}"
    return BY_EXIT_CODE.get(code, WmtpError)(f"{task} ended with {code}: {sentence}")
