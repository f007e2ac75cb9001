"""A real MLflow server for tests, and a registered model that it serves."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# Whoever serves a model does not have our package.
_REFUSE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mlops_tasks":
            raise ModuleNotFoundError(f"{name} is not to be had here", name=name)
sys.meta_path.insert(0, Refuse())
"""


@contextmanager
def serving(folder: Path, database: str, *options: str) -> Iterator[str]:
    """The address of a server that keeps the files itself, in a folder, and the rest in a database.

    Args:
        options: further ones of `mlflow server`.
    """
    uri = f"http://127.0.0.1:{(port := free_port())}"
    command = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", database, "--artifacts-destination", str(folder / "files"), *options]
    quiet = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with _running(command, folder, quiet, f"{uri}/health"):
        yield uri


@contextmanager
def serving_model(folder: Path, server: str, model: str) -> Iterator[str]:
    """The address where a model of a registry answers, from a process that cannot import our package."""
    uri = f"http://127.0.0.1:{(port := free_port())}"
    command = ["models", "serve", "-m", model, "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    with _running(command, folder, without_this_package(folder, server), f"{uri}/health"):
        yield uri


def without_this_package(folder: Path, server: str) -> dict[str, str]:
    """Variables for a Python that cannot import `mlops_tasks`."""
    (folder / "elsewhere").mkdir(exist_ok=True)
    (folder / "elsewhere" / "sitecustomize.py").write_text(_REFUSE)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{inherited.get('PATH', '')}"  # `serve` looks for uvicorn
    ours = {"PATH": path, "PYTHONPATH": str(folder / "elsewhere"), "MLFLOW_TRACKING_URI": server, "HF_HUB_OFFLINE": "1"}
    return {**inherited, **ours}


@contextmanager
def _running(command: list[str], folder: Path, variables: dict[str, str], health: str) -> Iterator[None]:
    log = folder / f"{command[0]}.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command], env={**variables, "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=stream, stderr=stream, cwd=folder, start_new_session=True,
        )  # fmt: skip
    try:
        _await_answer(process, health, log)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_answer(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    for _ in range(2000):
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
        if process.poll() is not None:
            break
    pytest.fail(f"the server did not start:\n{log.read_text()}")
