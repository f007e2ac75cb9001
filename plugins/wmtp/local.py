"""What a DAG does as processes beside the Airflow task: when a process is started, and what its end means to Airflow."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

from airflow.sdk import BaseOperator, Context
from airflow.sdk.bases.skipmixin import SkipMixin
from airflow.sdk.exceptions import AirflowSkipException

from mlops_tasks import algorithms
from mlops_tasks.config.environment import Environment
from mlops_tasks.config.loading import lacks_space, load_environment
from mlops_tasks.errors import BY_EXIT_CODE, Interrupted, Killed, WmtpError
from mlops_tasks.stage import Decision, Run, Task
from mlops_tasks.store import Store
from wmtp import task as stage_task
from wmtp.champion import tell_rollback
from wmtp.process import Process
from wmtp.task import StageTask, note_stop, refuse_if_stopped, stopped
from wmtp.trigger import Cleaning, Contest, Rollback, Trigger

log = logging.getLogger(__name__)


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
        note_stop()
        if self._process is not None:
            self._process.stop()

    def run_process(self, arguments: list[str]) -> str:
        """Run `wmtp` with these arguments to its end; returns the last line that it wrote.

        Raises:
            WmtpError: the class that its exit code means, with its last error.
        """
        self._process = Process(
            [*self.program, *arguments], environment=_child_environment(), grace_seconds=stage_task.GRACE_SECONDS
        )
        if stopped.is_set():  # while the key was being looked up
            self._process.stop()
        try:
            code = self._process.run()
        except KeyboardInterrupt:
            stopped.set()
            raise
        if code != 0:
            raise _error(self.label, code, self._process.story.last_error)
        return self._process.story.last_line

    @property
    def label(self) -> str:
        """The task, as people are told of it."""
        return str(self.task_id)


class LocalStage(StageTask, LocalProcess):
    """One task of the pipeline as a process; a hit starts none."""

    template_fields = ("index", "cell")

    def __init__(self, *, index: int = 0, cell: str | None = None, **operator: Any) -> None:
        super().__init__(**operator)
        self.index = index
        self.cell = cell

    def make(self, run: Run, task: Task, decision: Decision, context: Context) -> None:
        """Run `wmtp` as a process."""
        self.run_process(self.command(run, task, decision))


class LocalPlan(LocalStage, SkipMixin):
    """Resolves the recipe of a run into its spec; the return value is what `reference` is mapped over.

    A task can be mapped over nothing but a return value, so that the reference to the spec is the XCom `spec`.

    Args:
        only_champion: see `mlops_tasks.stage.Spec`; where there is no champion the run is skipped.
        is_study: see `mlops_tasks.stage.Spec`; a scheduled run that has nothing to look for, or no database, is skipped.
    """

    def __init__(self, *, only_champion: bool = False, is_study: bool = False, **operator: Any) -> None:
        super().__init__(**operator)
        self.only_champion = only_champion
        self.is_study = is_study

    def execute(self, context: Context) -> list[int]:
        """Check the trigger, write the spec, say how many references it wants."""
        refuse_if_stopped()
        trigger = Trigger.of(context["params"])
        environment, prefix = load_environment(self.environment_file), self._prefix(context)
        uri = f"{Store.of(environment).uri}/{prefix}/spec.json"
        if self.is_study and context["dag_run"].run_type == "scheduled":
            self._skip_without_space(context, trigger, environment)
        log.info("plan: starts with %s", trigger.recipe_file)
        self.run_process(self.plan_command(trigger, uri))
        context["ti"].xcom_push(key="spec", value={"stage": "plan", "key": None, "uri": uri, "cache": "done"})
        spec = Run.open(environment, prefix).spec
        if self.only_champion and spec.champion is None:
            raise AirflowSkipException(
                f"{spec.recipe.model.name} has no champion yet, so there is nothing to evaluate."
            )
        return list(range(spec.fan_out["reference"]))

    def _skip_without_space(self, context: Context, trigger: Trigger, environment: Environment) -> None:
        if (why := lacks_space(trigger.recipe_file, environment)) is None:
            return
        log.info("Nothing is looked for: %s", why)
        # Tasks below may follow skipped ones, so each is told.
        self.skip(ti=context["ti"], tasks=self.get_flat_relatives(upstream=False))

    def plan_command(self, trigger: Trigger, uri: str) -> list[str]:
        """The arguments of `wmtp` that resolve the recipe."""
        arguments = ["plan", f"--env={self.environment_file}", f"--spec={uri}", f"--recipe={trigger.recipe_file}"]
        arguments += [f"--set={override}" for override in trigger.overrides]
        arguments += [*(["--champion"] if self.only_champion else []), *(["--study"] if self.is_study else [])]
        return arguments + [f"--force={task}" for task in trigger.force]


class LocalComparisonPlan(LocalProcess):
    """Lays the cells of a comparison out; the return value is what the tasks below are mapped over."""

    def execute(self, context: Context) -> list[str]:
        """Check the trigger, write the specs, name the cells."""
        refuse_if_stopped()
        form, environment = Contest.of(context["params"]), load_environment(self.environment_file)
        prefix = Run.prefix_of(environment, self.dag_id, context["run_id"])
        log.info("plan: starts with %s", form.file)
        self.run_process(self.command(form, f"{Store.of(environment).uri}/{prefix}/{algorithms.FILE}"))
        return [cell.name for cell in algorithms.Cells.open(environment, prefix).plan.cells]

    def command(self, form: Contest, uri: str) -> list[str]:
        """The arguments of `wmtp` that lay them out."""
        return ["comparison", "plan", f"--env={self.environment_file}", f"--spec={uri}", str(form.file)]


class CleaningTask:
    """`wmtp gc`: says what would go, or removes it where the form or else the environment file says so."""

    environment_file: str
    removes: bool
    """Whether this task may remove anything."""

    def execute(self, context: Context) -> str:
        """Look, or remove; the return value says what went or would go."""
        refuse_if_stopped()
        form = Cleaning.of(context["params"])
        if self.removes and not form.decides(load_environment(self.environment_file).housekeeping):
            raise AirflowSkipException(
                "Nothing is removed: the form says no, or leaves it to `housekeeping.delete` of the environment file."
            )
        return self.clean(context)

    def clean(self, context: Context) -> str:
        """Run `wmtp gc`, by whatever means; returns its last line."""
        raise NotImplementedError

    def command(self, environment_file: str) -> list[str]:
        """The arguments of `wmtp` that clean up, with the environment file where it lies for whoever runs them."""
        return ["gc", f"--env={environment_file}", *(["--delete"] if self.removes else [])]


class LocalCleaning(CleaningTask, LocalProcess):
    """`wmtp gc` as a process."""

    def __init__(self, *, removes: bool, **operator: Any) -> None:
        super().__init__(**operator)
        self.removes = removes

    def clean(self, context: Context) -> str:
        """Run it to its end."""
        return self.run_process(self.command(self.environment_file))


class LocalRollback(LocalProcess):
    """`wmtp registry rollback` with what the form says, in the name of whoever triggered the run."""

    moved: Mapping[str, Any] | None = None
    """What it came to, when the task has ended; None: production loads another version by now, for the task was repeated."""

    def execute(self, context: Context) -> None:
        """Check the trigger, and roll back."""
        refuse_if_stopped()
        form, run = Rollback.of(context["params"]), context["dag_run"]
        # The run is named too: a task that is repeated finds that its order is done.
        by = f"{run.triggering_user_name or 'Airflow'} ({self.dag_id}/{run.run_id})"
        moved = json.loads(self.run_process(self.command(form, by)))
        if "champion" in moved["aliases"]:
            self.moved = moved
            tell_rollback(context, moved)

    def command(self, form: Rollback, by: str) -> list[str]:
        """The arguments of `wmtp` that roll back."""
        arguments = ["registry", "rollback", f"--env={self.environment_file}", f"--reason={form.reason}", f"--by={by}"]
        return [*arguments, "--once", "--json", *([f"--to={form.version}"] if form.version else []), "--", form.model]


def _child_environment() -> dict[str, str]:
    """This process's variables without Airflow's own: they hold its database and its keys."""
    kept = {name: value for name, value in os.environ.items() if not name.lstrip("_").startswith("AIRFLOW")}
    # The log is no terminal: lines at once, and no progress bars of other packages.
    return {**kept, "PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1"}


def _error(task: str, code: int, sentence: str) -> WmtpError:
    if stopped.is_set():
        return Interrupted(f"{task} was stopped from outside: {sentence}")
    if code > 128:
        name = signal.Signals(code - 128).name if code - 128 in set(signal.Signals) else f"signal {code - 128}"
        hint = " Often that is a lack of memory." if code == 128 + signal.SIGKILL else ""
        return Killed(f"{task} ended with {code}: It was killed by {name}.{hint} Its last line: {sentence}")
    return BY_EXIT_CODE.get(code, WmtpError)(f"{task} ended with {code}: {sentence}")
