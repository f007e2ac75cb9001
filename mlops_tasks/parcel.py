"""A stage's attempt as one file there and one file back, for a process that may not see the store.

Owns what is in the two files and how the process at the other end works through one: `python -m mlops_tasks.parcel`, which gets two
signed addresses and no credentials. An address dies with the credentials that it was signed with, which may be long before the work is
done, so both stand in a file that is written anew. Who does that and commits what comes back is the operator's.

    attempt.json, <input>.json, files/…   there: the keyed settings, the build that the key was made of, each input's manifest, and of its
                                          files those that the stage reads
    metrics.json, result/…                back: what the stage said, and what it wrote
    error.json                            back where it failed by its settings: the class of the error, which an exit code does not tell
"""

from __future__ import annotations

import http.client
import importlib
import json
import logging
import os
import shutil
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlops_tasks import lease, logs
from mlops_tasks.config.environment import Environment
from mlops_tasks.errors import FAULTS_OF_RECIPE, DataError, Unavailable, WmtpError, class_of
from mlops_tasks.evaluation.confinement import landlock_version
from mlops_tasks.keys import BUILD, require_build
from mlops_tasks.machine import keep_freed_memory
from mlops_tasks.stage import Attempt
from mlops_tasks.store import Artifact, Store

log = logging.getLogger(__name__)

FUNCTION, ADDRESSES = "WMTP_PARCEL_FUNCTION", "WMTP_PARCEL_ADDRESSES"
"""Variables of the process: what it runs, and the file with the addresses."""

_SECONDS_TO_ANSWER = 300
_RESOURCES = ("generate", "judge")
_WORK = "work/parcel"
"""Where a stage at the other end keeps what it has made so far, in a store that ends with it."""


def pack(attempt: Attempt, files: Mapping[str, Sequence[str]], to: Path, *, build: Mapping[str, Any]) -> None:
    """Write what the other end needs.

    Args:
        attempt: whose settings and inputs are sent.
        files: globs of the files that are read, by name of the input.
        to: the file.
        build: components of the key; the other end must have made the same of `keys.BUILD`.
    """
    facts = {
        "config": attempt.config,
        "index": attempt.index,
        "key": attempt.key,
        "build": {part: build[part] for part in BUILD},
    }
    facts["resources"] = {name: getattr(attempt.environment, name).model_dump(mode="json") for name in _RESOURCES}
    with tempfile.TemporaryDirectory() as folder, tarfile.open(to, "w") as tar:
        for name, artifact in attempt.inputs.items():
            for file in artifact.entries(*files[name]):
                tar.add(artifact.path(file), f"files/{_place(artifact, file)}")
            _add_json(tar, Path(folder), f"{name}.json", {"prefix": artifact.prefix, "manifest": artifact.manifest})
        _add_json(tar, Path(folder), "attempt.json", {**facts, "inputs": sorted(attempt.inputs)})


def carry_out(function: Callable[[Attempt], dict[str, Any]], source: Path, to: Path) -> None:
    """Run a stage's function on what was packed, and pack its result.

    Raises:
        Unavailable: another build is here than the one that the key was made of.
        UserError: other packages are installed here than the build wants.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _unpack(source, folder)
        facts = json.loads((folder / "attempt.json").read_text())
        require_build(facts["build"])
        store = Store.open(str(folder / "files"))
        inputs = {one: json.loads((folder / f"{one}.json").read_text()) for one in facts["inputs"]}
        (folder / "result").mkdir()
        environment = Environment.model_validate({"store": store.uri, "mlflow_uri": "none", **facts["resources"]})
        with lease.held(store, _WORK, terms=environment.lease, run="parcel", is_done=lambda: False) as mine:
            assert mine is not None
            metrics = function(
                Attempt(
                    config=facts["config"],
                    inputs={one: Artifact(store, each["prefix"], each["manifest"]) for one, each in inputs.items()},
                    folder=folder / "result",
                    environment=environment,
                    store=store,
                    key=facts["key"],
                    prefix=_WORK,
                    index=facts["index"],
                    token=mine.token,
                )
            )
        with tarfile.open(to, "w") as tar:
            tar.add(folder / "result", "result")
            _add_json(tar, folder, "metrics.json", metrics)


def unpack_result(source: Path, folder: Path) -> dict[str, Any]:
    """Put the files of a result into a folder, and return the metrics.

    Raises:
        DataError: it is no result.
    """
    with tempfile.TemporaryDirectory() as name:
        try:
            _unpack(source, Path(name))
            metrics: dict[str, Any] = json.loads((Path(name) / "metrics.json").read_text())
            shutil.copytree(Path(name) / "result", folder, dirs_exist_ok=True)
        except (tarfile.TarError, OSError, ValueError) as error:
            raise DataError(
                f"What came back is no result ({error}). See the log of the process that sent it."
            ) from error
    return metrics


def failure(source: Path, exit_code: int) -> type[WmtpError]:
    """The class of the error that the other end has ended with; what came back for another exit code is not believed.

    Raises:
        DataError: it tells of none.
    """
    with tempfile.TemporaryDirectory() as name:
        try:
            _unpack(source, Path(name))
            return class_of(exit_code, json.loads((Path(name) / "error.json").read_text())["error"])
        except (tarfile.TarError, OSError, ValueError, LookupError, TypeError) as error:
            raise DataError(
                f"What came back tells of no error ({error}). See the log of the process that sent it."
            ) from error


def addresses(*, source: str, target: str) -> str:
    """The text of the file with the addresses.

    Args:
        source: signed, to read what was packed.
        target: signed, to write the result.
    """
    return json.dumps({"source": source, "target": target})


def main() -> int:
    """Fetch, carry out, send back, as this process's variables say; the return value is the exit code."""
    logs.configure()
    keep_freed_memory()
    module, _, name = os.environ[FUNCTION].partition(":")
    # What the function starts need not know where they are.
    file = Path(os.environ.pop(ADDRESSES))
    _warn_of_readers(file)
    with tempfile.TemporaryDirectory() as folder:
        there, back = Path(folder) / "there.tar", Path(folder) / "back.tar"
        try:
            _ask(urllib.request.Request(_address(file, "source")), there)
            carry_out(getattr(importlib.import_module(module), name), there, back)
            _send(back, file)
        except WmtpError as error:
            log.error("%s", error)
            if isinstance(error, FAULTS_OF_RECIPE):
                _tell(error, back, file)
            return error.exit_code
    return 0


def _warn_of_readers(addresses: Path) -> None:
    # `wmtp doctor` cannot know it of the nodes of a cluster.
    if sys.platform == "linux" and not landlock_version():
        log.warning(
            "this kernel has no Landlock: a program that a model wrote can read %s and what was fetched by it, though it has no network to use it. Take "
            "nodes and a runtime_class that have Landlock for this profile (docs/sandbox.md).",
            addresses,
        )


def _tell(error: WmtpError, back: Path, addresses: Path) -> None:
    with tarfile.open(back, "w") as tar:
        _add_json(tar, back.parent, "error.json", {"error": type(error).__name__})
    try:
        _send(back, addresses)
    except Unavailable as lost:
        log.warning("that it is %s is not told: %s", type(error).__name__, lost)


def _send(back: Path, addresses: Path) -> None:
    with back.open("rb") as stream:
        size = {"Content-Length": str(back.stat().st_size)}
        _ask(urllib.request.Request(_address(addresses, "target"), data=stream, headers=size, method="PUT"))


def _address(file: Path, which: str) -> str:
    """As it is now."""
    return str(json.loads(file.read_text())[which])


def _ask(request: urllib.request.Request, to: Path | None = None) -> None:
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS_TO_ANSWER) as reply:
            if to is not None:
                _receive(reply, to)
    except (http.client.HTTPException, OSError) as error:
        # The address is as good as a password while it is valid.
        where = request.full_url.partition("?")[0]
        raise Unavailable(f"{request.get_method()} {where} failed: {error}. Run the task again.") from None


def _receive(reply: http.client.HTTPResponse, to: Path) -> None:
    with to.open("wb") as file:
        shutil.copyfileobj(reply, file)
    # http.client says nothing of an end that comes too early, where a reply is read piece by piece.
    length, size = reply.headers["Content-Length"], to.stat().st_size
    if length is not None and size != int(length):
        raise ConnectionError(f"it ended after {size} of {length} bytes")


def _unpack(source: Path, folder: Path) -> None:
    with tarfile.open(source) as tar:
        tar.extractall(folder, filter="data")


def _place(artifact: Artifact, file: str) -> str:
    return f"{artifact.prefix}/attempts/{artifact.manifest['attempt']}/{file}"


def _add_json(tar: tarfile.TarFile, folder: Path, name: str, value: object) -> None:
    (folder / name).write_text(json.dumps(value, allow_nan=False))
    tar.add(folder / name, name)


if __name__ == "__main__":
    sys.exit(main())
