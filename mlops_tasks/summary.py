"""A run or an artifact on one terminal screen: what each task came to, the metrics, the verdict, where to look next.

The page for a browser is in `report`; this is for whoever started the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mlops_tasks import ledger
from mlops_tasks.pipeline import EVALUATIONS, TASKS, WATCH, places
from mlops_tasks.stage import Pointer, Run, Stage
from mlops_tasks.store import Artifact


def of_run(run: Run) -> Iterator[str]:
    """Lines on a run, as far as it has come."""
    found = {(pointer.task, pointer.index): pointer for pointer in run.pointers()}
    yield f"{run.title}  (recipe {run.spec.recipe.name})"
    yield ""
    yield f"  {'task':<16}{'outcome':<9}{'seconds':>8}"
    for task, index in (("plan", 0), *((task.id, index) for task, index in places(run.spec))):
        yield _task_line(run, task, index, found.get((task, index)))
    yield ""
    if stages := [
        pointer for (task, _), pointer in found.items() if task in TASKS and isinstance(TASKS[task].run, Stage)
    ]:
        yield _work_done(stages)
    yield from _scores(run, found)
    yield from _critic(run, found)
    yield from _verdict(found)
    yield ""
    yield f"  {ledger.of_run(run, found.values()).in_words()}"


def _task_line(run: Run, task: str, index: int, pointer: Pointer | None) -> str:
    name = run.spec.label(task, index)
    return f"  {name:<16}{pointer.outcome:<9}{pointer.seconds:>8.1f}" if pointer else f"  {name:<16}not yet"


def _work_done(stages: list[Pointer]) -> str:
    ran = [pointer for pointer in stages if pointer.outcome == "run"]
    if not ran and any(pointer.task == "judge" for pointer in stages):
        return "  Every stage was a hit: nothing had to be computed."
    return f"  {len(ran)} stages ran in {sum(pointer.seconds for pointer in ran):.0f} s, {sum(pointer.outcome == 'hit' for pointer in stages)} were hits."


def _scores(run: Run, found: dict[tuple[str, int], Pointer]) -> Iterator[str]:
    judged = {EVALUATIONS[index]: run.artifact("judge", index) for task, index in found if task == "judge"}
    rows = [(role, part, artifact.metrics) for (role, part), artifact in sorted(judged.items()) if artifact]
    if not rows:
        return
    yield f"\n  {'pass@1':<11}{'set':<8}{'problems':>8}  share   interval"
    for role, part, metrics in rows:
        low, high = metrics["pass_at_k_interval"]["1"]
        yield f"  {role:<11}{part:<8}{metrics['num_problems']:>8}  {metrics['pass_at_k']['1']:.3f}   {low:.3f} to {high:.3f}"


def _critic(run: Run, found: dict[tuple[str, int], Pointer]) -> Iterator[str]:
    scores = run.artifact("score") if ("score", 0) in found else None
    if scores and "critic_verdict" in scores.metrics:
        yield f"\n  {scores.metrics['critic_verdict']}"


def _verdict(found: dict[tuple[str, int], Pointer]) -> Iterator[str]:
    if promoted := found.get(("promote", 0)):
        detail = promoted.detail
        yield f"\n  {detail['outcome']}: version {detail['version']}. {detail['reason']}"
    if watched := found.get((WATCH.id, 0)):
        yield f"\n  {watched.detail['outcome']}: version {watched.detail['version']}. {watched.detail['reason']}"
    if concluded := found.get(("conclude", 0)):
        yield f"\n  {concluded.detail['outcome']}: {concluded.detail['reason']}"
    if reported := found.get(("report", 0), concluded):
        yield f"  report: {reported.detail['path']}"


def of_artifact(artifact: Artifact) -> Iterator[str]:
    """Lines on an artifact: what made it from what, its files and metrics."""
    manifest: dict[str, Any] = artifact.manifest
    yield artifact.uri
    yield f"  digest  {artifact.digest}"
    if "seconds" in manifest:
        yield f"  made    {manifest['created']} in {manifest['seconds']:.1f} s by {manifest['run']}"
    yield from (f"  file    {file['name']}  {file['size']} bytes" for file in manifest["files"])
    yield from (
        f"  input   {name}: {artifact.store.uri}/{one['artifact']}" for name, one in manifest.get("inputs", {}).items()
    )
    yield from (f"  metric  {name}: {value}" for name, value in artifact.metrics.items())


_SHORT = 12
_NUM_METRICS = 3


def lineage(artifact: Artifact) -> Iterator[str]:
    """An artifact with all that it was made from, as a tree; what is needed twice is told once."""
    yield from _branch(artifact, name="", told=set())


def _branch(artifact: Artifact, *, name: str, told: set[str]) -> Iterator[str]:
    title = f"{name}{_title(artifact.prefix)}"
    if artifact.prefix in told:
        yield f"{title}  (told above)"
        return
    told.add(artifact.prefix)
    yield f"{title}  {_how(artifact)}".rstrip()
    inputs = list(artifact.manifest.get("inputs", {}).items())
    for position, (input_name, given) in enumerate(inputs, start=1):
        mark, indent = ("└─ ", "   ") if position == len(inputs) else ("├─ ", "│  ")
        for number, line in enumerate(_input(artifact, input_name, given, told)):
            yield f"{indent if number else mark}{line}"


def _input(artifact: Artifact, name: str, given: Mapping[str, Any], told: set[str]) -> Iterator[str]:
    found = artifact.store.version_at(given["artifact"], given["digest"], given["files"])
    if found is None:
        yield f"{name}: {_title(given['artifact'])}  (not in this store any more)"
    else:
        yield from _branch(found, name=f"{name}: ", told=told)


def _title(prefix: str) -> str:
    stage, _, key = prefix.partition("/")
    return f"{stage} {key[:_SHORT]}"


def _how(artifact: Artifact) -> str:
    """The first metrics, when, and by which run."""
    numbers = [(name, value) for name, value in artifact.metrics.items() if isinstance(value, int | float)]
    words = [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in numbers]
    made = f"made {artifact.manifest['created'][:16].replace('T', ' ')}"
    by = f" by {artifact.manifest['run']}" if "run" in artifact.manifest else ""
    return "; ".join([*([", ".join(words[:_NUM_METRICS])] if words else []), made + by])
