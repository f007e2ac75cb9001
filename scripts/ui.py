"""Airflow's and MLflow's pages on this machine, until Ctrl-C: `python -m scripts.ui`."""

from __future__ import annotations

import argparse
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from mlops_tasks.config.environment import Environment
from mlops_tasks.config.loading import load_environment
from scripts import airflow_home

GUARD = airflow_home.CHECKOUT / "plugins" / "wmtp" / "guard.py"
# More than a task has for its checkpoint.
GRACE_SECONDS = 130


def main() -> int:
    """Start both, say where they are, and end both on a signal or when either ends."""
    options = _options()
    environment = load_environment(airflow_home.variables()["WMTP_ENVIRONMENT"])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    servers: dict[str, subprocess.Popen[bytes]] = {}
    try:
        airflow_home.migrate()
        has_server = not environment.mlflow_uri.startswith("sqlite:")
        mlflow = environment.mlflow_uri if has_server else f"http://127.0.0.1:{options.mlflow_port}"
        servers["airflow"] = _start_airflow(options.airflow_port, mlflow)
        if not has_server:
            servers["mlflow"] = _start_mlflow(options.mlflow_port, environment)
        _tell(options, environment, servers)
        while all(server.poll() is None for server in servers.values()):
            time.sleep(0.5)
        ended = next(name for name, server in servers.items() if server.poll() is not None)
        print(f"{ended} ended; the last lines of {_log(ended)} say why.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nEnding …", flush=True)
        return 0
    finally:
        _end(list(servers.values()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--airflow-port", type=int, help="default: 8080, or a free one")
    parser.add_argument("--mlflow-port", type=int, help="default: 5000, or a free one")
    options = parser.parse_args()
    options.airflow_port = options.airflow_port or _free_port(8080)
    options.mlflow_port = options.mlflow_port or _free_port(5000)
    return options


def _free_port(wanted: int) -> int:
    """The port that is wanted, or else one that the system chooses."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start_airflow(port: int, mlflow: str) -> subprocess.Popen[bytes]:
    variables = {
        # What a task's link to its run in MLflow begins with.
        "WMTP_MLFLOW_UI": mlflow,
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
        # Another Airflow on this machine may have the usual ones.
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(_free_port(8793)),
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(_free_port(8794)),
    }
    return _start("airflow", ["standalone"], variables)


def _start_mlflow(port: int, environment: Environment) -> subprocess.Popen[bytes]:
    Path(environment.mlflow_uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    arguments = ["server", "--backend-store-uri", environment.mlflow_uri, "--no-serve-artifacts", "--workers", "1"]
    arguments += ["--host", "127.0.0.1", "--port", str(port)]
    if environment.mlflow_artifacts:
        arguments += ["--default-artifact-root", environment.mlflow_artifacts]
    return _start("mlflow", arguments, {})


def _start(program: str, arguments: list[str], variables: dict[str, str]) -> subprocess.Popen[bytes]:
    # Both start processes of their own, some in sessions of their own; the guard ends them all when its pipe closes,
    # also when this script is killed.
    guard = [sys.executable, "-I", "-S", str(GUARD), str(GRACE_SECONDS)]
    with _log(program).open("w") as log:
        return subprocess.Popen(
            [*guard, str(airflow_home.BIN / program), *arguments],
            env={**airflow_home.variables(), **variables},
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _log(program: str) -> Path:
    return airflow_home.home() / f"{program}.log"


def _tell(options: argparse.Namespace, environment: Environment, servers: dict[str, subprocess.Popen[bytes]]) -> None:
    airflow, mlflow = f"http://127.0.0.1:{options.airflow_port}", f"http://127.0.0.1:{options.mlflow_port}"
    print("Airflow and MLflow start; that takes half a minute …", flush=True)
    _wait_for(f"{airflow}/api/v2/monitor/health", servers["airflow"])
    if "mlflow" in servers:
        _wait_for(f"{mlflow}/health", servers["mlflow"])
    print(f"Airflow  {_first_page(airflow, servers['airflow'])}  no password: everyone on this machine is its admin")
    print(f"MLflow   {mlflow if 'mlflow' in servers else environment.mlflow_uri}")
    print("Ctrl-C ends both.", flush=True)


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None and _answer(url) is None:
        time.sleep(0.5)


def _first_page(airflow: str, server: subprocess.Popen[bytes]) -> str:
    """The page of the daily run once its DAG is known: one that is opened earlier says 404 for ever.

    Where the DAG's file is broken it is Airflow's first page, which says so; after ten minutes too.
    """
    deadline = time.monotonic() + 600
    while server.poll() is None and time.monotonic() < deadline:
        if _answer(f"{airflow}/api/v2/dags/wmtp_daily") is not None:
            return f"{airflow}/dags/wmtp_daily"
        broken = json.loads(_answer(f"{airflow}/api/v2/importErrors") or b"{}").get("import_errors", [])
        if any("wmtp_daily" in error["filename"] for error in broken):
            break
        time.sleep(0.5)
    return airflow


def _answer(url: str) -> bytes | None:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            found: bytes = reply.read()
            return found
    except OSError:
        return None


def _end(servers: list[subprocess.Popen[bytes]]) -> None:
    for server in servers:
        assert server.stdin is not None
        server.stdin.close()
    for server in servers:
        server.wait()


if __name__ == "__main__":
    sys.exit(main())
