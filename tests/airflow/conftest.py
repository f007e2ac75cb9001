"""A place of its own for each Airflow that a test starts, and a pipeline of toys for it to run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

CHECKOUT = Path(__file__).resolve().parents[2]

# In the process of the tests Airflow is a library: it configures no logging and makes no folder in the user's home.
os.environ["_AIRFLOW__AS_LIBRARY"] = "1"


@dataclass(frozen=True)
class Place:
    """Where a test's Airflow is: its home, and an environment file with a store beside it."""

    home: Path
    folder: Path

    @property
    def environment_file(self) -> Path:
        return self.folder / "environment.json"

    @property
    def variables(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if "AIRFLOW" not in name}
        return {
            **kept,
            "AIRFLOW_HOME": str(self.home),
            "WMTP_AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "WMTP_ENVIRONMENT": str(self.environment_file),
            "OMP_NUM_THREADS": "1",
        }

    def processes(self) -> list[psutil.Process]:
        """Those with the folder or the home somewhere in their command line."""
        return [
            process
            for process in psutil.process_iter(["cmdline"])
            if any(str(self.folder) in word or str(self.home) in word for word in process.info["cmdline"] or [])
        ]

    def demo(self, recipe: str = "demo") -> subprocess.Popen[str]:
        """`make demo`, in a process group of its own as from a terminal."""
        return self.open("scripts.demo", recipe)

    def open(self, module: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=CHECKOUT,
            env=self.variables,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=heed_ctrl_c,  # noqa: PLW1509  it only sets a flag of the kernel
        )

    def wait_until(self, is_so: Callable[[], object], *, seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < deadline, f"not so after {seconds} s"
            time.sleep(0.1)


@dataclass(frozen=True)
class Toys(Place):
    """The toy pipeline; the folder holds what the toys are told, and what they did."""

    def tell(self, name: str, text: str = "yes") -> None:
        (self.folder / name).write_text(text)

    @property
    def starts(self) -> list[str]:
        """What was started as a process, in order."""
        file = self.folder / "starts"
        return file.read_text().split() if file.exists() else []

    @property
    def variables(self) -> dict[str, str]:
        here = Path(__file__).parent
        return {
            **super().variables,
            "AIRFLOW__CORE__DAGS_FOLDER": str(here / "toys" / "dags"),
            "PYTHONPATH": os.pathsep.join([str(here), str(CHECKOUT / "plugins")]),
            "TOYS": str(self.folder),
            "WMTP_MLFLOW_UI": "http://mlflow.test/",
        }

    def start(self, *tasks: str, conf: object = None) -> subprocess.Popen[str]:
        """A process that runs tasks as Airflow's worker does."""
        return self.open("toys.run_task", json.dumps(conf or {}), *tasks)


def heed_ctrl_c() -> None:
    """What a shell starts in the background ignores SIGINT, and so do all its children; a terminal's do not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _prepared(kind: type[Place], home: Path, folder: Path) -> Iterator[Place]:
    place = kind(home, folder)
    environment = {"deployment": "toys", "store": "store", "mlflow_uri": "sqlite:///mlflow.db"}
    place.environment_file.write_text(json.dumps(environment))
    yield place
    for process in place.processes():
        process.kill()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a database, which takes some seconds to make."""
    home = tmp_path_factory.mktemp("airflow")
    make = "from scripts import airflow_home; airflow_home.migrate()"
    subprocess.run([sys.executable, "-c", make], cwd=CHECKOUT, env=Place(home, home).variables, check=True)
    return home


@pytest.fixture
def home(migrated: Path, tmp_path: Path) -> Path:
    """A home of one's own, with a copy of the database."""
    home = tmp_path / "airflow"
    home.mkdir()
    for name in ("airflow.db", *(file.name for file in migrated.glob("migrated-*"))):
        shutil.copy(migrated / name, home)
    return home


@pytest.fixture
def toys(home: Path, tmp_path: Path) -> Iterator[Place]:
    yield from _prepared(Toys, home, tmp_path)


@pytest.fixture
def place(home: Path, tmp_path: Path) -> Iterator[Place]:
    yield from _prepared(Place, home, tmp_path)


@pytest.fixture
def checkout() -> str:
    return str(CHECKOUT)
