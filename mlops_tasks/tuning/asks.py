"""What the pod of a study may not run itself, for a model wrote it and the pod has credentials: it asks, and whoever watches the pod has it run.

Owns how an ask and its refusal lie in the store. What was made is no answer of its own but the artifact under its key, by whomever it was made.

    <place>/<ask>.json            what is wanted; there until it was answered, so that a watcher who is started anew finds it
    <place>/refused/<ask>.json    why there is no artifact
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, ValidationError

from mlops_tasks import stage
from mlops_tasks.config.environment import Environment
from mlops_tasks.config.kubernetes import TaskId
from mlops_tasks.config.loading import variable
from mlops_tasks.config.settings import Settings
from mlops_tasks.errors import DataError, UserError, WmtpError, class_of
from mlops_tasks.stage import Decision, Pointer, Run, Task
from mlops_tasks.store import Store

log = logging.getLogger(__name__)

ASKERS: tuple[TaskId, ...] = ("search", "select")
"""Tasks of a study that have trials in them."""
PLACE = "WMTP_ASKS"
"""Variable of the pod: where in the store it asks."""
SECONDS_BETWEEN_LOOKS = 5.0
"""Of either end: a request to S3 each."""


class Ask(Settings):
    """A task of a study's cell whose result is wanted."""

    # A pod with credentials of a study wrote it, so it can name nothing but a cell and what its programs come to.
    cell: str = Field(pattern=r"^select/[0-9a-f]{64}/cells/[0-9a-f]{16}$")
    """Prefix of the cell's run in the store."""
    task: Literal["reward", "judge"]
    index: int = Field(ge=0)
    key: str
    """Of the result, as the pod makes it."""

    def run(self, environment: Environment) -> Run:
        """The cell's run, in which nothing is forced.

        Raises:
            UserError: there is none, or it is of another version.
            DataError: it has no such index.
        """
        found = Run.open(environment, self.cell)
        if self.index >= (number := found.spec.fan_out.get(self.task, 1)):
            raise DataError(
                f"{self.task}[{self.index}] is asked for, of which {self.cell} has {number}. Airflow and the pod must be of one build."
            )
        return Run(found.store, found.environment, found.prefix, found.spec.model_copy(update={"force": ()}))


class _Refusal(Settings):
    exit_code: int
    error: str
    """Name of its class, which says whether other parameters may do."""
    message: str


def place_of(run: Run, task: str, index: int) -> str:
    """Where the pod of a task asks."""
    return f"{run.prefix}/asks/{task}.{index}"


def fetch(run: Run, task: Task, index: int = 0, *, tasks: Mapping[str, Task]) -> Pointer:
    """Have one task of a cell done by whoever watches this process, and record what it came to; what is there is a hit.

    Raises:
        WmtpError: it was refused, with the class of what went wrong there.
        UserError: nobody watches.
    """
    started = time.monotonic()
    while (decision := stage.decide(run, task, index, tasks=tasks)).outcome == "run":
        _have_done(run, task, index, decision)
    return stage.settle(run, task, index, decision, decision.artifact, seconds=time.monotonic() - started)


def _have_done(run: Run, task: Task, index: int, decision: Decision) -> None:
    place, name = variable(PLACE), uuid.uuid4().hex
    if place is None:
        raise UserError(
            f"{task.id} of {run.name} is not done beside credentials: with executor kubernetes it has a pod of its own, which only the tasks of the DAG "
            "wmtp_tune can start. Run the study by that DAG, or where executor is local."
        )
    # By this a watcher of another build says what differs.
    stage.note_key(run, task, index, decision)
    ask = Ask.model_validate({"cell": run.prefix, "task": task.id, "index": index, "key": decision.key})
    run.store.write_json(f"{place}/{name}.json", ask.model_dump())
    log.info("%s[%d]: waits for a pod without credentials", task.id, index)
    while run.store.read_json(f"{place}/{name}.json") is not None:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    if (told := run.store.read_json(f"{place}/refused/{name}.json")) is not None:
        refusal = _Refusal.model_validate(told)
        raise class_of(refusal.exit_code, refusal.error)(refusal.message)


@dataclass(frozen=True)
class Inbox:
    """What one pod has asked for."""

    store: Store
    place: str

    def names(self) -> list[str]:
        """Those that nobody has answered."""
        return [name.removesuffix(".json") for name in self.store.children(self.place) if name.endswith(".json")]

    def read(self, name: str) -> Ask:
        """What is wanted.

        Raises:
            DataError: it is no ask of this version.
        """
        tree = self.store.read_json(f"{self.place}/{name}.json")
        try:
            return Ask.model_validate(tree)
        except ValidationError as error:
            raise DataError(
                f"{self.store.uri}/{self.place}/{name}.json asks for nothing that is known here ({error}). Airflow and the pod must be of one build."
            ) from error

    def refuse(self, name: str, error: WmtpError) -> None:
        """Tell the pod why there is no artifact; with that it is answered."""
        refusal = _Refusal(exit_code=error.exit_code, error=type(error).__name__, message=str(error))
        self.store.write_json(f"{self.place}/refused/{name}.json", refusal.model_dump())
        self.close(name)

    def close(self, name: str) -> None:
        """It was answered: the artifact is there, or a refusal."""
        self.store.backend.delete(f"{self.place}/{name}.json")
