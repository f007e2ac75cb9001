"""An Airflow in one folder of this checkout: its settings, as environment variables, and its database."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def home() -> Path:
    """The folder: `WMTP_AIRFLOW_HOME`, or .wmtp/airflow; never the user's own Airflow, whose database we would migrate."""
    return Path(os.environ.get("WMTP_AIRFLOW_HOME") or CHECKOUT / ".wmtp" / "airflow")


def variables() -> dict[str, str]:
    """The environment of every process of this Airflow; what the user has set counts more.

    What is set for another Airflow does not count, its database above all, unless `WMTP_AIRFLOW_HOME` says that it is meant.
    """
    settings = {
        "AIRFLOW_HOME": str(home()),
        "AIRFLOW__CORE__DAGS_FOLDER": str(CHECKOUT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(CHECKOUT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        # Tasks use the whole machine, and a worker process each would only wait.
        "AIRFLOW__CORE__PARALLELISM": "2",
        "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
        # Nobody but this machine's users can reach it.
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__LOGGING__JSON_LOGS": "True",
        # Airflow's and MLflow's reports on their users.
        "SCARF_ANALYTICS": "false",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Eight processes for the evaluation of chat applications.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        # Airflow starts its own parts by name.
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "WMTP_ENVIRONMENT": str(CHECKOUT / "configs/environments/laptop.yaml"),
    }
    is_meant = "WMTP_AIRFLOW_HOME" in os.environ
    inherited = {name: value for name, value in os.environ.items() if is_meant or not name.startswith("AIRFLOW")}
    return {**settings, **inherited, "PATH": settings["PATH"]}


def migrate() -> None:
    """Make the database, unless this version of Airflow has made it before."""
    stamp = home() / f"migrated-{version('apache-airflow')}"
    if stamp.exists():
        return
    home().mkdir(parents=True, exist_ok=True)
    log = home() / "migrate.log"
    with log.open("w") as stream:
        done = subprocess.run(
            [BIN / "airflow", "db", "migrate"], env=variables(), stdout=stream, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode != 0:
        sys.exit(f"`airflow db migrate` ended with {done.returncode}. See {log}, or remove {home()} to start anew.")
    stamp.touch()
