"""The idempotent runtime: key → hit? → run → commit, for one task of one DAG run.

A *stage* yields an artifact and is looked up by key; an *action* changes the world, always runs and is safe to repeat. A
*task* is a place in the DAG that runs a stage or an action. Which tasks there are is said in `pipeline`; how bytes become
durable is said in `store`; what names a result is said in `keys`.

    runs/<deployment>/<dag>/<run>/spec.json               the resolved recipe; written once, by `plan`
    runs/<deployment>/<dag>/<run>/<task>[.<index>].json   a pointer: what the task came to
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote, unquote

from pydantic import Field, ValidationError

from mlops_tasks import __version__, lease
from mlops_tasks.config.environment import Environment
from mlops_tasks.config.recipe import Recipe
from mlops_tasks.config.settings import Settings
from mlops_tasks.errors import Interrupted, Pruned, Unavailable, UserError, WmtpError
from mlops_tasks.keys import differences, key_components, key_of, require_locked
from mlops_tasks.store import Artifact, Draft, Store, canonical_json
from mlops_tasks.store.backend import is_disk_full

log = logging.getLogger(__name__)

Outcome = Literal["hit", "run", "skipped", "done"]

_SECONDS_BETWEEN_LOOKS = 1.0

# What stands in a store may be forged by whoever writes to a part of it: a name is one folder, and leads nowhere else.
_Part = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]


def artifact_prefix(stage: str, key: str) -> str:
    """Where a stage's result lies in a store."""
    return f"{stage}/{key}"


def cell_prefix(whole: str, cell: str) -> str:
    """Where a cell lies: a run of its own, as one of many, below a comparison's run or a study's artifact."""
    return f"{whole}/cells/{cell}"


def cell_prefixes(store: Store, whole: str) -> list[str]:
    """Where all cells of a comparison or a study lie; none of any other run or artifact."""
    return [cell_prefix(whole, cell) for cell in store.children(f"{whole}/cells")]


class Champion(Settings):
    """The model that production loads now."""

    name: str
    """The product line."""
    version: str
    """Version in the registry."""
    key: _Part
    """Names the artifact of `train` in the store."""
    digest: str
    """Digest of that artifact."""

    @property
    def prefix(self) -> str:
        """Where the artifact lies in the store."""
        return artifact_prefix("train", self.key)


class Tuned(Settings):
    """The result of a study that a recipe was taken from."""

    name: str
    """Of the recipe that was tuned."""
    key: _Part
    """Names the artifact of `select` in the store."""
    digest: str
    """Digest of that artifact."""


class Spec(Settings):
    """A recipe with everything that could move pinned; every task of a run reads this one."""

    recipe: Recipe
    pins: dict[str, str]
    """Digest of what lies at each source, by task id."""
    champion: Champion | None
    """Whom the candidate is compared with; None: the base model."""
    force: tuple[str, ...] = ()
    """Ids of tasks to run anew, once in this run."""
    fan_out: dict[str, int] = Field(default_factory=dict)
    """Number of mapped tasks, by task id."""
    created: str
    """When it was resolved, UTC."""
    only_champion: bool = False
    """The champion is evaluated on the data as they are, and nothing is trained."""
    only_candidate: bool = False
    """The candidate alone is made and evaluated, on the report set alone: a cell of a comparison."""
    is_study: bool = False
    """A better recipe is looked for, and nothing is promoted."""
    tuned: Tuned | None = None
    """The study that the recipe is the result of, if it was asked for as `tuned`."""

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json"))).hexdigest()

    def label(self, task: str, index: int) -> str:
        """A task as people are told of it: with its index where there are several."""
        return f"{task}[{index}]" if self.fan_out.get(task, 1) > 1 else task


class Pointer(Settings):
    """What a task of a run came to."""

    task: str
    index: int
    stage: _Part
    outcome: Outcome
    seconds: float
    key: _Part | None = None
    """None: no artifact, for it was skipped or is an action."""
    digest: str | None = None
    detail: dict[str, Any] = Field(default_factory=dict)

    @property
    def prefix(self) -> str | None:
        """Where the artifact lies in the store; never its URI, for a store may be moved."""
        return artifact_prefix(self.stage, self.key) if self.key else None


@dataclass(frozen=True)
class Stage:
    """A verb whose result is an artifact."""

    name: str
    function: str
    """`module:name`; imported only where it runs."""
    packages: tuple[str, ...]
    """Distributions whose version can change the result."""
    generation: int = 1
    """Bump it when a change of meaning escapes the code digest."""


@dataclass(frozen=True)
class Input:
    """What a task reads of another one: some files of its artifact."""

    task: str
    index: int = 0
    files: tuple[str, ...] = ("*",)
    """Globs; only these are keyed, and `*` crosses `/`."""
    is_keyed: bool = True
    """False for shards, whose merged content does not depend on how many there were."""


@dataclass(frozen=True)
class Task:
    """A place in the DAG: a stage with its inputs and its part of the spec, or an action."""

    id: str
    run: Stage | str
    """The stage, or `module:name` of the action."""
    inputs: Callable[[Spec, int], Mapping[str, Input]] = lambda spec, index: {}
    config: Callable[[Spec, int], dict[str, Any] | None] = lambda spec, index: {}
    """The keyed part of the spec; None where this recipe needs no such task."""
    fan_out: Callable[[Recipe, Environment], int] | None = None
    """How many mapped tasks; None: not mapped."""
    modules: Callable[[Spec], tuple[str, ...]] = lambda spec: ()
    """Modules that the recipe chooses by name; keyed beside those that the stage's function imports."""
    packages: Callable[[Spec], tuple[str, ...]] = lambda spec: ()
    """Distributions that the recipe makes bear on the result; keyed beside those that the stage declares."""
    covered_by: str | None = None
    """A task whose hit makes this one needless."""
    num_devices: Callable[[Environment], int] = lambda environment: 1
    """What the seconds are multiplied by in the ledger."""
    labels: Callable[[Spec], Mapping[str, str]] = lambda spec: {}
    """Facts for whoever watches, in no key."""

    @property
    def verb(self) -> str:
        """What it does: the stage's name, or the action's own; the command of `wmtp` that runs it."""
        return self.run.name if isinstance(self.run, Stage) else self.id


@dataclass(frozen=True)
class Attempt:
    """What a stage's function gets. It fills `folder` and returns its metrics; the runtime commits."""

    config: dict[str, Any]
    inputs: Mapping[str, Artifact]
    folder: Path
    environment: Environment
    store: Store
    key: str
    prefix: str
    index: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    token: int = 0
    """Of this process's lease; whatever it writes beside its folder is refused to one with a lower token."""


Call = Callable[[Attempt], dict[str, Any]]
"""What a stage does: fills the attempt's folder and returns its metrics."""


@dataclass(frozen=True)
class Decision:
    """What a task would do now, and by what name."""

    outcome: Literal["hit", "run", "skipped", "done"]
    components: dict[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, tuple[Input, Artifact]] = field(default_factory=dict)
    artifact: Artifact | None = None

    @property
    def key(self) -> str:
        """The stage's key."""
        return key_of(self.components)


@dataclass(frozen=True)
class Run:
    """One DAG run, as it lies in the store."""

    store: Store
    environment: Environment
    prefix: str
    spec: Spec

    @staticmethod
    def prefix_of(environment: Environment, dag: str, run: str) -> str:
        """Where a run lies; every character that could mean something in a path is quoted, so no two runs share a place."""
        return f"runs/{environment.deployment}/{quote(dag, safe='')}/{quote(run, safe='')}"

    @classmethod
    def open(cls, environment: Environment, prefix: str) -> Run:
        """A run that has been planned.

        Raises:
            UserError: there is no spec, or it is of a version with other settings.
        """
        store = Store.of(environment)
        tree = store.read_json(f"{prefix}/spec.json")
        if tree is None:
            raise UserError(f"There is no {store.uri}/{prefix}/spec.json. Run the task `plan` of this run first.")
        return cls.of(store, environment, prefix, tree)

    @classmethod
    def of(cls, store: Store, environment: Environment, prefix: str, tree: Any) -> Run:
        """A run whose spec has been read.

        Raises:
            UserError: the spec is of a version with other settings.
        """
        try:
            spec = Spec.model_validate(tree)
        except ValidationError as error:
            raise UserError(
                f"{store.uri}/{prefix}/spec.json was written by a version with other settings: {error}. Trigger a new run."
            ) from error
        return cls(store, environment, prefix, spec)

    @property
    def name(self) -> str:
        """`<dag>/<run>`, quoted; of a comparison's cell `<dag>/<run>/cells/<cell>`, of a study's its whole prefix."""
        first, *rest = self.prefix.split("/")
        return ("/".join(rest[1:]) if first == "runs" else "") or self.prefix

    @property
    def title(self) -> str:
        """The name as Airflow shows it."""
        return unquote(self.name)

    def pointer(self, task: str, index: int = 0) -> Pointer | None:
        """What a task came to, or None before it ended."""
        name = self._pointer_name(task, index)
        tree = self.store.read_json(name)
        return None if tree is None else self._pointer_of(tree, name)

    def pointers(self) -> list[Pointer]:
        """What all tasks that ended came to, in no order that means something."""
        names = [name for name in self.store.children(self.prefix) if name.endswith(".json") and name != "spec.json"]
        trees = self.store.read_jsons([f"{self.prefix}/{name}" for name in names])
        return [self._pointer_of(tree, name) for name, tree in zip(names, trees, strict=True) if tree is not None]

    def artifact(self, task: str, index: int = 0) -> Artifact | None:
        """The artifact of a task; None if it was skipped.

        Raises:
            Unavailable: the task has not ended, or its artifact is not whole any more.
        """
        pointer = self.pointer(task, index)
        if pointer is None:
            raise Unavailable(f"Task {task}[{index}] of {self.name} has not ended. It must run first.")
        if pointer.prefix is None:
            return None
        artifact = self.store.version_at(pointer.prefix, str(pointer.digest))
        if artifact is None:
            raise Unavailable(
                f"{self.store.uri}/{pointer.prefix}, which {task}[{index}] of {self.name} made, is not whole any more. Clear that task: it is made anew."
            )
        return artifact

    def write(self, name: str, data: bytes) -> str:
        """Put a small file of this run, such as its report, into the store; returns its URI."""
        self.store.backend.write(f"{self.prefix}/{name}", data)
        return f"{self.store.uri}/{self.prefix}/{name}"

    def point(self, pointer: Pointer) -> Pointer:
        """Record what a task came to."""
        self.store.write_json(self._pointer_name(pointer.task, pointer.index), pointer.model_dump(mode="json"))
        return pointer

    def _pointer_of(self, tree: Any, name: str) -> Pointer:
        try:
            return Pointer.model_validate(tree)
        except ValidationError as error:
            raise UserError(
                f"{self.store.uri}/{self.prefix}: {name.rpartition('/')[2]} was written by another version: {error}. Trigger a new run."
            ) from error

    def _pointer_name(self, task: str, index: int) -> str:
        return f"{self.prefix}/{task}.{index}.json" if task in self.spec.fan_out else f"{self.prefix}/{task}.json"


def decide(run: Run, task: Task, index: int = 0, *, tasks: Mapping[str, Task]) -> Decision:
    """What the task would do now; reads the store, writes nothing.

    Raises:
        Unavailable: an input's task has not ended.
    """
    config = task.config(run.spec, index)
    if config is None:
        return Decision("skipped")
    is_covered = task.covered_by and not {task.id, task.covered_by} & {*run.spec.force}
    if is_covered and decide(run, tasks[str(task.covered_by)], tasks=tasks).outcome == "hit":
        return Decision("skipped")
    if not isinstance(task.run, Stage):
        return Decision("done")
    inputs = _present_inputs(run, task, index)
    components = _components(task, run.spec, config, {name: one for name, one in inputs.items() if one[0].is_keyed})
    artifact = run.store.find(artifact_prefix(task.run.name, key_of(components)))
    return Decision("hit" if artifact else "run", components, inputs, artifact)


def _present_inputs(run: Run, task: Task, index: int) -> dict[str, tuple[Input, Artifact]]:
    found: dict[str, tuple[Input, Artifact]] = {}
    for name, wanted in task.inputs(run.spec, index).items():
        artifact = champion_artifact(run) if wanted.task == CHAMPION else _keyed_artifact(run, wanted)
        if artifact is not None:
            found[name] = (wanted, artifact)
    return found


CHAMPION = "champion"


def _keyed_artifact(run: Run, wanted: Input) -> Artifact | None:
    if not wanted.is_keyed and run.pointer(wanted.task, wanted.index) is None:
        return None  # a shard that has not run: the merged result may be there without it
    return run.artifact(wanted.task, wanted.index)


def champion_artifact(run: Run) -> Artifact:
    """The model that `plan` pinned as champion.

    Raises:
        UserError: it is not in the store any more.
    """
    champion = run.spec.champion
    assert champion is not None
    artifact = run.store.version_at(champion.prefix, champion.digest)
    if artifact is None:
        raise UserError(
            f"Champion {champion.name} version {champion.version} is {champion.prefix}, which is not in the store {run.store.uri}. "
            f"Restore it there, or take the alias `champion` from {champion.name} to start from the base model."
        )
    return artifact


def _components(
    task: Task, spec: Spec, config: Mapping[str, Any], inputs: Mapping[str, tuple[Input, Artifact]]
) -> dict[str, Any]:
    stage = task.run
    assert isinstance(stage, Stage)
    digests = {name: artifact.digest_of(*wanted.files) for name, (wanted, artifact) in inputs.items()}
    return key_components(
        stage=stage.name,
        generation=stage.generation,
        function=stage.function,
        config=config,
        inputs=digests,
        packages=[*stage.packages, *task.packages(spec)],
        modules=task.modules(spec),
    )


def execute(
    run: Run,
    task: Task,
    index: int = 0,
    *,
    tasks: Mapping[str, Task],
    expect_key: str | None = None,
    call: Call | None = None,
) -> Pointer:
    """Run one task to its end, or find that there is nothing to do, and record what it came to.

    Args:
        call: what makes the result in the function's place, such as the function with things at hand that change nothing of it; whoever
            gives one holds the packages against the lock where it runs. None: the function itself.

    Raises:
        WmtpError: with the exit code that says who can mend it; nothing is committed.
    """
    started = time.monotonic()
    apply_force(run, task, index, tasks=tasks)
    decision = decide(run, task, index, tasks=tasks)
    if decision.outcome == "done":
        assert isinstance(task.run, str)
        detail = _function(task.run)(run)
        return run.point(
            Pointer(
                task=task.id,
                index=index,
                stage=task.verb,
                outcome="done",
                seconds=time.monotonic() - started,
                detail=detail,
            )
        )
    if expect_key and decision.outcome != "skipped":
        require_key(run, task, index, decision, expect_key)
    artifact = decision.artifact
    if decision.outcome == "run":
        decision, artifact = _run_leased(run, task, index, decision, tasks=tasks, call=call)
    return settle(run, task, index, decision, artifact, seconds=time.monotonic() - started)


def accompany(
    run: Run, task: Task, index: int = 0, *, tasks: Mapping[str, Task], expect_key: str, may_begin: Callable[[], bool]
) -> None:
    """Do the work of a stage in another pod than the first, which alone holds the lease, commits and records.

    Args:
        may_begin: whether the first pod has begun and waits for the others.

    Raises:
        Interrupted: the first pod ended before it committed, so that all must start again.
    """
    decision = decide(run, task, index, tasks=tasks)
    if decision.outcome != "run":
        return
    require_key(run, task, index, decision, expect_key)
    assert isinstance(task.run, Stage)
    require_locked(decision.components["packages"])
    prefix = artifact_prefix(task.run.name, decision.key)

    def is_done() -> bool:
        return run.store.find(prefix) is not None

    while not may_begin():
        if is_done():
            return
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    draft = run.store.begin(prefix)
    try:
        carry_out(run, task, index, decision, draft)
    finally:
        run.store.abandon(draft)
    with lease.held(run.store, prefix, terms=run.environment.lease, run=run.name, is_done=is_done) as mine:
        if mine is not None and not is_done():
            raise Interrupted(
                f"{task.id}: the first pod ended before it committed {prefix}. Start all pods again and the training resumes."
            )


def settle(
    run: Run, task: Task, index: int, decision: Decision, artifact: Artifact | None, *, seconds: float
) -> Pointer:
    """Record the end of a stage: a hit, a result, or that there was nothing to do."""
    log.info("%s[%d]: %s %s in %.1f s", task.id, index, decision.outcome, artifact.uri if artifact else "", seconds)
    return run.point(
        Pointer(
            task=task.id,
            index=index,
            stage=task.verb,
            outcome=decision.outcome,
            seconds=round(seconds, 3),
            key=decision.key if artifact else None,
            digest=artifact.digest if artifact else None,
        )
    )


def apply_force(run: Run, task: Task, index: int, *, tasks: Mapping[str, Task]) -> None:
    """Once in a run, take a forced task's old result and checkpoints away; recorded in the run, never keyed."""
    if task.id not in run.spec.force or not isinstance(task.run, Stage):
        return
    decision = decide(run, task, index, tasks=tasks)
    if decision.outcome == "skipped":
        return
    # By key, not by task: candidate and champion may be one model, and its verdicts are made anew once.
    marker = f"{run.prefix}/forced/{task.run.name}.{decision.key}.json"
    if run.store.read_json(marker) is not None:
        return
    prefix = artifact_prefix(task.run.name, decision.key)
    # With the lease, or another process that works on this key would lose its checkpoints.
    with lease.held(run.store, prefix, terms=run.environment.lease, run=run.name, is_done=lambda: False):
        if run.store.read_json(marker) is None:
            run.store.quarantine(prefix, f"forced by {run.name}")
            _clear_checkpoints(run.store, prefix)
            run.store.create_json(marker, {"task": task.id, "index": index, "at": datetime.now(UTC).isoformat()})


def note_key(run: Run, task: Task, index: int, decision: Decision) -> None:
    """Leave the components of an expected key in the run, so that a process that finds another one can say what differs."""
    run.store.write_json(_note_name(run, task, index), decision.components)


def _note_name(run: Run, task: Task, index: int) -> str:
    return f"{run.prefix}/expected/{task.id}.{index}.json"


def require_key(run: Run, task: Task, index: int, decision: Decision, expected: str) -> None:
    """Refuse to work on another key than whoever asks for it has found.

    Raises:
        Unavailable: they are of different builds.
        UserError: they read different things.
    """
    if decision.key == expected:
        return
    expected_components = run.store.read_json(_note_name(run, task, index)) or {}
    changed = differences(expected_components, decision.components)
    kinds = {line.partition(".")[0].partition(":")[0] for line in changed}
    message = (
        f"{task.id}: whoever started this process expected key {expected[:12]}…, here it is {decision.key[:12]}…: {'; '.join(changed)}. "
        "Scheduler and task must run the same build and read the same spec."
    )
    raise (Unavailable if kinds & {"code", "packages", "python", "generation"} else UserError)(message)


def _run_leased(
    run: Run, task: Task, index: int, decision: Decision, *, tasks: Mapping[str, Task], call: Call | None
) -> tuple[Decision, Artifact | None]:
    """Run a stage, unless another process makes its result in the meantime."""
    assert isinstance(task.run, Stage)
    prefix = artifact_prefix(task.run.name, decision.key)
    terms = run.environment.lease

    def is_done() -> bool:
        return run.store.find(prefix) is not None

    while True:
        with lease.held(run.store, prefix, terms=terms, run=run.name, is_done=is_done) as mine:
            # Between our look and the lease somebody may have committed; with the lease in hand it is for sure.
            now = decide(run, task, index, tasks=tasks)
            if now.outcome != "run":
                return now, now.artifact
            if now.key != decision.key:
                raise Unavailable(f"What {task.id}[{index}] of {run.name} reads was made anew meanwhile. Run it again.")
            if mine is not None:
                return now, _run_stage(run, task, index, now, token=mine.token, call=call)
            # What the other process had made is gone again.


def _run_stage(
    run: Run, task: Task, index: int, decision: Decision, *, token: int, call: Call | None = None
) -> Artifact:
    stage = task.run
    assert isinstance(stage, Stage)
    if call is None:
        require_locked(decision.components["packages"])
    prefix = artifact_prefix(stage.name, decision.key)
    draft = run.store.begin(prefix)
    started = time.monotonic()
    try:
        metrics = carry_out(run, task, index, decision, draft, token=token, call=call)
    except BaseException as error:
        # Neither may hide why the stage failed; and room is made before anything is written.
        with suppress(WmtpError, OSError):
            run.store.abandon(draft)
        with suppress(WmtpError, OSError):
            _record_failure(run, task, draft, error, seconds=time.monotonic() - started)
            if isinstance(error, Pruned):  # nobody goes on from them
                _clear_checkpoints(run.store, prefix)
        raise
    seconds = time.monotonic() - started
    device_seconds = seconds * task.num_devices(run.environment)
    record = {
        "stage": stage.name, "key": decision.key, "components": decision.components, "metrics": metrics,
        "inputs": {name: {"artifact": artifact.prefix, "digest": artifact.digest_of(*wanted.files), "files": list(wanted.files)} for name, (wanted, artifact) in decision.inputs.items()},
        "seconds": round(seconds, 3), "device_seconds": round(device_seconds, 3), "cost": run.environment.cost(stage.name, device_seconds),
        "versions": {"mlops-tasks": __version__, **decision.components["packages"]},
        "environment": run.environment.model_dump(mode="json"), "run": run.name,
    }  # fmt: skip
    try:
        artifact = run.store.commit(draft, record)
    except BaseException as error:
        # Its files stay for `gc`: a commit whose reply was lost may have succeeded.
        with suppress(WmtpError, OSError):
            _record_failure(run, task, draft, error, seconds=time.monotonic() - started)
        raise
    _clear_checkpoints(run.store, prefix)
    return artifact


def carry_out(
    run: Run, task: Task, index: int, decision: Decision, draft: Draft, *, token: int = 0, call: Call | None = None
) -> dict[str, Any]:
    """Call a stage's function, which fills the draft, and return its metrics.

    Args:
        run: its store and environment are what the stage works with.
        decision: of this task, whose artifacts are the inputs.
        call: see `execute`.

    Raises:
        Unavailable: the disk is full.
    """
    assert isinstance(task.run, Stage)
    attempt = Attempt(
        config=task.config(run.spec, index) or {},
        inputs={name: artifact for name, (_, artifact) in decision.inputs.items()},
        folder=draft.folder,
        environment=run.environment,
        store=run.store,
        key=decision.key,
        prefix=draft.prefix,
        index=index,
        labels=task.labels(run.spec),
        token=token,
    )
    try:
        return (call or _function(task.run.function))(attempt)
    except Exception as error:
        # Writers other than Python's own do not say why they failed.
        if isinstance(error, WmtpError) or not is_disk_full(error, draft.folder):
            raise
        raise Unavailable(
            f"The disk of {draft.folder} is full, so {task.id} could not write its result ({error}). Free some space (`wmtp gc` "
            "says what is not needed any more) and run this again."
        ) from error


def _record_failure(run: Run, task: Task, draft: Draft, error: BaseException, *, seconds: float) -> None:
    assert isinstance(task.run, Stage)
    num_devices = task.num_devices(run.environment)
    # What was ended on purpose was spent, not lost.
    lost = 0.0 if isinstance(error, Pruned) else num_devices * _seconds_lost(run.store, draft.prefix, seconds)
    record = {
        "task": task.id, "run": run.name, "deployment": run.environment.deployment,
        "error": type(error).__name__, "message": str(error), "traceback": traceback.format_exc(), "at": datetime.now(UTC).isoformat(),
        "seconds": round(seconds, 3), "device_seconds": round(seconds * num_devices, 3), "cost": run.environment.cost(task.run.name, seconds * num_devices),
        "lost_device_seconds": round(lost, 3), "lost_cost": run.environment.cost(task.run.name, lost),
    }  # fmt: skip
    run.store.write_json(f"{draft.prefix}/failures/{draft.attempt}.json", record)


def _seconds_lost(store: Store, prefix: str, seconds: float) -> float:
    """Of an attempt that ends now, what the next one does again: all, or what came after the last checkpoint."""
    steps = f"{prefix}/checkpoints"
    made = [store.read_json(f"{steps}/{step}/manifest.json") for step in store.children(steps)]
    newest = max((datetime.fromisoformat(one["created"]) for one in made if one), default=None)
    return seconds if newest is None else min(seconds, max(0.0, (datetime.now(UTC) - newest).total_seconds()))


def _clear_checkpoints(store: Store, prefix: str) -> None:
    for step in store.children(f"{prefix}/checkpoints"):
        store.remove(f"{prefix}/checkpoints/{step}")


def _function(name: str) -> Callable[..., dict[str, Any]]:
    module, _, function = name.partition(":")
    found: Callable[..., dict[str, Any]] = getattr(importlib.import_module(module), function)
    return found


def runs(environment: Environment, *, recipe: str | None = None) -> Iterator[Run]:
    """All planned runs of this deployment, or those of one recipe, the newest first."""
    store = Store.of(environment)
    top = f"runs/{environment.deployment}"
    prefixes = [f"{top}/{dag}/{name}" for dag in store.children(top) for name in store.children(f"{top}/{dag}")]
    trees = zip(prefixes, store.read_jsons([f"{prefix}/spec.json" for prefix in prefixes]), strict=True)
    # A spec of another version may lack any field.
    planned = [(tree.get("created", ""), prefix, tree) for prefix, tree in trees if tree is not None]
    for _, prefix, tree in sorted(planned, key=lambda one: one[:2], reverse=True):
        if recipe is None or tree.get("recipe", {}).get("name") == recipe:
            try:
                yield Run.of(store, environment, prefix, tree)
            except UserError as error:
                log.warning("%s", error)
