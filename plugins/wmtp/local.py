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

from airflow.sdk import Asset, AssetAlias, BaseOperator, Context, ExceptionRetryPolicy, RetryAction, RetryRule
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, AirflowTaskTimeout

from mlops_tasks import pipeline, stage
from mlops_tasks.config import load_environment
from mlops_tasks.errors import BY_EXIT_CODE, DataError, Interrupted, Unavailable, UserError, WmtpError
from mlops_tasks.stage import Pointer, Run, Task
from mlops_tasks.store import MANIFEST, Store
from wmtp.links import ManifestLink, MlflowLink, ReportLink, links_of
from wmtp.notices import ChampionDecayed
from wmtp.process import Process
from wmtp.trigger import Cleaning, Rollback, Trigger

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

CHAMPIONS = AssetAlias("wmtp_champion")
"""What a DAG is scheduled by that wants every new champion; of one product line it is `champion_asset`."""

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

    def run_process(self, arguments: list[str]) -> str:
        """Run `wmtp` with these arguments to its end; returns the last line that it wrote.

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
        return self._process.story.last_line

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
        self.conclude(context, run, pointer)
        uri = f"{run.store.uri}/{pointer.prefix}" if pointer.prefix else None
        return {"stage": pointer.stage, "key": pointer.key, "uri": uri, "cache": pointer.outcome}

    def conclude(self, context: Context, run: Run, pointer: Pointer) -> None:
        """What Airflow is told of the result beside the reference."""

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

    Args:
        only_champion: see `mlops_tasks.stage.Spec`; where there is no champion the run is skipped.
    """

    def __init__(self, *, only_champion: bool = False, **operator: Any) -> None:
        super().__init__(**operator)
        self.only_champion = only_champion

    def execute(self, context: Context) -> list[int]:
        """Check the trigger, write the spec, say how many references it wants."""
        _refuse_if_stopped()
        trigger = Trigger.of(context["params"])
        environment, prefix = load_environment(self.environment_file), self._prefix(context)
        uri = f"{Store.of(environment).uri}/{prefix}/spec.json"
        log.info("plan: starts with %s", trigger.recipe_file)
        self.run_process(self.plan_command(trigger, uri))
        context["ti"].xcom_push(key="spec", value={"stage": "plan", "key": None, "uri": uri, "cache": "done"})
        spec = Run.open(environment, prefix).spec
        if self.only_champion and spec.champion is None:
            raise AirflowSkipException(
                f"{spec.recipe.model.name} has no champion yet, so there is nothing to evaluate."
            )
        return list(range(spec.fan_out["reference"]))

    def plan_command(self, trigger: Trigger, uri: str) -> list[str]:
        """The arguments of `wmtp` that resolve the recipe."""
        arguments = ["plan", f"--env={self.environment_file}", f"--spec={uri}", f"--recipe={trigger.recipe_file}"]
        arguments += [f"--set={override}" for override in trigger.overrides]
        arguments += ["--champion"] if self.only_champion else []
        return arguments + [f"--force={task}" for task in trigger.force]


class LocalPromotion(LocalStage):
    """`promote`; a promotion is an event that says which version there is now, and where its manifest is."""

    def __init__(self, **operator: Any) -> None:
        super().__init__(outlets=[CHAMPIONS], **operator)

    def conclude(self, context: Context, run: Run, pointer: Pointer) -> None:
        """Fill the alias only if production loads another model now: a static outlet fires on a refusal too."""
        if pointer.detail["outcome"] != "promoted":
            return
        train = run.artifact("train")
        assert train is not None
        name = run.spec.recipe.model.name
        facts = {"model": name, "version": pointer.detail["version"], "manifest": f"{train.uri}/{MANIFEST}"}
        context["outlet_events"][CHAMPIONS].add(champion_asset(name), extra={**facts, "digest": train.digest})


class LocalWatch(LocalStage):
    """`watch`; a champion that has decayed makes the task fail, so that it is seen."""

    def conclude(self, context: Context, run: Run, pointer: Pointer) -> None:
        """Raise the alarm, where there is cause."""
        if pointer.detail["outcome"] == "decayed":
            name, version = run.spec.recipe.model.name, pointer.detail["version"]
            raise ChampionDecayed(
                f"Version {version} of {name}, the champion, has decayed. {pointer.detail['reason']} Train on the new data, or "
                f"`wmtp registry rollback {name}`."
            )


class LocalCleaning(LocalProcess):
    """`wmtp gc`: says what would go, or removes it where the form or else the environment file says so.

    Args:
        removes: whether this task may remove anything.
    """

    def __init__(self, *, removes: bool, **operator: Any) -> None:
        super().__init__(**operator)
        self.removes = removes

    def execute(self, context: Context) -> str:
        """Look, or remove; the return value is one sentence of what went or would go."""
        _refuse_if_stopped()
        form = Cleaning.of(context["params"])
        if self.removes and not form.decides(load_environment(self.environment_file).housekeeping):
            raise AirflowSkipException(
                "Nothing is removed: the form says no, or leaves it to `housekeeping.delete` of the environment file."
            )
        return self.run_process(self.command())

    def command(self) -> list[str]:
        """The arguments of `wmtp` that clean up."""
        return ["gc", f"--env={self.environment_file}", *(["--delete"] if self.removes else [])]


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


def champion_asset(model: str) -> Asset:
    """The champion of a product line, as Airflow knows it."""
    return Asset(name=f"wmtp_champion/{model}", uri=f"wmtp://champion/{model}")


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
