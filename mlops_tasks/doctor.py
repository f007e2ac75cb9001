"""`wmtp doctor`: an environment looked over before the first run, one line a finding.

Owns which questions are asked and what an answer comes to; whether a thing can be done is answered by whoever does it later. What is written to
try is removed again.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import Literal

from mlops_tasks import __version__, orchestrator, pipeline, tracking
from mlops_tasks.cluster import Cluster
from mlops_tasks.config.environment import Environment
from mlops_tasks.config.kubernetes import Kubernetes
from mlops_tasks.errors import Unavailable, UserError, WmtpError
from mlops_tasks.keys import require_locked
from mlops_tasks.machine import accelerator, num_cores
from mlops_tasks.stage import Stage
from mlops_tasks.store import Store
from mlops_tasks.store.backend import Backend, is_disk_full

Status = Literal["ok", "warn", "fail"]
Answers = Iterator[tuple[Status, str]]
"""`ok` and what was seen, or `warn` and what may be wrong; what is wrong is raised."""

# A checkpoint of 135M parameters with Adam's state takes 1.6 GB; two are kept while a third is written.
_SCARCE_BYTES = 5 * 2**30


@dataclass(frozen=True)
class Finding:
    """What one question came to."""

    check: str
    status: Status
    text: str
    """What was seen; of a warning or a failure also where, and what to do."""
    exit_code: int = 0
    """Of a failure: 64 where somebody has to put it right, 75 where it may pass by itself."""


def examine(environment: Environment) -> Iterator[Finding]:
    """Ask everything, one after another."""
    checks = (
        _CHECKS
        if environment.kubernetes is None or environment.executor == "local"
        else _checks_of(environment.kubernetes)
    )
    for name, check in checks.items():
        yield from _answered(name, check(environment))


def exit_code(findings: Iterable[Finding]) -> int:
    """0 if nothing failed; 64 if somebody has to do something; 75 if only something was not reachable.

    >>> exit_code([Finding("store", "fail", "…", 75), Finding("mlflow", "fail", "…", 64)])
    64
    """
    codes = {one.exit_code for one in findings} - {0}
    return min(codes, default=0)


def _answered(name: str, answers: Answers) -> Iterator[Finding]:
    try:
        for status, text in answers:
            yield Finding(name, status, text)
    except WmtpError as error:
        code = Unavailable.exit_code if isinstance(error, Unavailable) else UserError.exit_code
        yield Finding(name, "fail", str(error), code)


def _versions(environment: Environment) -> Answers:
    stages = [task.run for task in pipeline.TASKS.values() if isinstance(task.run, Stage)]
    packages = sorted({name for one in stages for name in one.packages})
    missing = [name for name in packages if not _is_installed(name)]
    if missing and environment.executor == "local":
        raise UserError(f"{', '.join(missing)} are not installed here, where stages run: `make setup`.")
    here = [name for name in packages if name not in missing]
    require_locked(here)
    elsewhere = f"; {', '.join(missing)} are the images' of pods" if missing else ""
    yield "ok", f"mlops-tasks {__version__}, Python {python_version()}; {', '.join(here)} as locked{elsewhere}"


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _disk(environment: Environment) -> Answers:
    try:
        places = {"temporary files": Path(tempfile.gettempdir())}
    except FileNotFoundError as error:
        raise UserError(
            f"There is no folder for temporary files ({error}). Mount one at /tmp, or set TMPDIR."
        ) from error
    if environment.s3.cache:
        places["the cache of s3://"] = Path(environment.s3.cache).expanduser()
    if "://" not in environment.store:
        places["the store"] = Path(environment.store)
    for what, place in places.items():
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        free = shutil.disk_usage(there).free
        told = f"{free / 2**30:.1f} GiB are free for {what} in {there}"
        if is_disk_full(OSError(), there):
            raise Unavailable(f"{told}: nothing can be written. Make room.")
        few = f", less than three checkpoints of a model of 135M parameters take ({_SCARCE_BYTES >> 30} GiB). Make room"
        yield ("warn", told + few) if free < _SCARCE_BYTES else ("ok", told)


def _store(environment: Environment) -> Answers:
    backend = Store.of(environment).backend
    require_promises(backend)
    yield "ok", f"{backend.uri} reads, writes and deletes, and honours conditions"


def require_promises(backend: Backend) -> None:
    """Do with a small file what commits and leases rest on.

    Raises:
        UserError: the store does something else, or refuses.
        Unavailable: it cannot now.
    """
    folder = f".probe/{uuid.uuid4().hex}"
    name, aside, first, second = f"{folder}/file", f"{folder}/aside", b"first", b"second"
    backend.children(".probe")  # some servers make a bucket that is written to; reading tells that it is not there
    kept = {
        "create-if-absent": backend.create(name, first) and not backend.create(name, second),
        "replace-if-unchanged": not backend.swap(name, second, over=second) and backend.swap(name, second, over=first),
        "read-after-write": backend.read(name) == second,
        "move-if-unchanged": not backend.retire(name, first, aside) and backend.retire(name, second, aside),
        "remove": backend.read(name) is None and backend.read(aside) == second,
    }
    backend.delete(folder)
    kept["delete"] = backend.children(folder) == []
    if broken := [promise for promise, is_kept in kept.items() if not is_kept]:
        raise UserError(
            f"{backend.uri} does not do what commits rest on: {', '.join(broken)}. Use a store that does: Amazon S3, SeaweedFS 4, or a folder."
        )


def _mlflow(environment: Environment) -> Answers:
    if tracking.is_empty(environment):
        yield "ok", f"{environment.mlflow_uri} is not there yet; the first run makes it"
        return
    with tracking.connection(environment) as client:
        client.search_experiments(max_results=1)
        client.search_registered_models(max_results=1)
    yield "ok", f"{environment.mlflow_uri} answers and lets us in: runs and registry"


def _machine(environment: Environment) -> Answers:
    kind = accelerator()
    told = f"models compute on {kind}, {num_cores()} cores"
    if kind == "cpu" and shutil.which("nvidia-smi"):
        yield (
            "warn",
            f"{told}, though this machine has NVIDIA's driver: torch here is a build for the CPU, or too new for the driver",
        )
    else:
        yield "ok", told


def _sandbox(environment: Environment) -> Answers:
    from mlops_tasks.evaluation.sandbox import Sandbox

    with Sandbox(1, unsafe=environment.judge.unsafe) as sandbox:
        granted = sandbox.protections
    told = f"programs are kept in by {', '.join(granted)}"
    if "seccomp" not in granted:
        yield "warn", f"{told}: judge.unsafe is set. Run nothing that you would not run as yourself"
    elif lacking := [one for one in granted if one.startswith("no Landlock")]:
        yield (
            "warn",
            f"{told}: for want of {lacking[0][3:].partition(' ')[0]}. Use a newer kernel where strangers' programs are judged",
        )
    else:
        yield "ok", told


def _pools(environment: Environment) -> Answers:
    assert environment.kubernetes is not None
    named = {one.pool for one in environment.kubernetes.profiles.values() if one.pool}
    if not named:
        return
    slots = orchestrator.pools()
    if lacking := sorted(named - slots.keys()):
        raise UserError(
            f"Airflow has no pool {', '.join(lacking)}, and tasks whose profile names one never start. `airflow pools set {lacking[0]} SLOTS "
            "WHY`, or mend `pool` of the profiles."
        )
    shut = sorted(name for name in named if slots[name] == 0)
    if shut:
        yield (
            "warn",
            f"the pool {', '.join(shut)} of Airflow has no slots: its tasks wait until it has. `airflow pools set {shut[0]} SLOTS WHY`",
        )
    else:
        yield (
            "ok",
            f"Airflow has the pools that profiles name: {', '.join(f'{one} ({slots[one]})' for one in sorted(named))}",
        )


_CHECKS: dict[str, Callable[[Environment], Answers]] = {
    "versions": _versions,
    "disk": _disk,
    "store": _store,
    "mlflow": _mlflow,
    "machine": _machine,
    "sandbox": _sandbox,
}


def _checks_of(kubernetes: Kubernetes) -> dict[str, Callable[[Environment], Answers]]:
    cluster = Cluster(kubernetes)
    return {
        # Models compute and programs are judged in pods: what this machine has for that says nothing.
        **{name: check for name, check in _CHECKS.items() if name not in ("machine", "sandbox")},
        "cluster": lambda environment: cluster.server(),
        "rights": lambda environment: cluster.rights(),
        "secrets": lambda environment: cluster.secrets(),
        "files": lambda environment: cluster.config_maps(),
        "nodes": lambda environment: cluster.nodes(),
        "pools": _pools,
    }
