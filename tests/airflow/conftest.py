"""A place of its own for each Airflow that a test starts, and a pipeline of toys for it to run."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

CHECKOUT = Path(__file__).resolve().parents[2]

# In the process of the tests Airflow is a library: it configures no logging and makes no folder in the user's home.
os.environ["_AIRFLOW__AS_LIBRARY"] = "1"

AIRFLOW = """
import subprocess, sys
from scripts import airflow_home
sys.exit(subprocess.run([airflow_home.BIN / "airflow", *sys.argv[1:]], env=airflow_home.variables()).returncode)
"""


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
            # A machine that does much else reads a DAG file slowly; its error would be taken for one of the DAG.
            "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "300",
            "AIRFLOW__DAG_PROCESSOR__DAG_FILE_PROCESSOR_TIMEOUT": "600",
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

    def airflow(self, dag: str, conf: dict[str, object]) -> tuple[int, str]:
        """`airflow dags test`: the exit code, and all that was said."""
        done = subprocess.run(
            [sys.executable, "-c", AIRFLOW, "dags", "test", dag, "--conf", json.dumps(conf)],
            cwd=CHECKOUT, env=self.variables, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

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

    def wait_until(self, is_so: Callable[[], object], *, seconds: float = 900) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < deadline, f"not so after {seconds} s"
            time.sleep(0.1)


@dataclass(frozen=True)
class Toys(Place):
    """The toy pipeline; the folder holds what the toys are told, and what they did."""

    @property
    def place(self) -> Place:
        """The same Airflow with the real DAGs."""
        return Place(self.home, self.folder)

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
            "PYTHONPATH": os.pathsep.join(map(str, (here, CHECKOUT, CHECKOUT / "plugins"))),
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


def _home(migrated: Path, folder: Path) -> Path:
    """A home of one's own, with a copy of the database."""
    home = folder / "airflow"
    home.mkdir()
    for name in ("airflow.db", *(file.name for file in migrated.glob("migrated-*"))):
        shutil.copy(migrated / name, home)
    return home


@pytest.fixture(scope="module")
def shared_toys(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One place for all tests of a file, where a start of Airflow's is dearer than what is tested."""
    folder = tmp_path_factory.mktemp("shared")
    yield from _prepared(Toys, _home(migrated, folder), folder)


@pytest.fixture
def home(migrated: Path, tmp_path: Path) -> Path:
    return _home(migrated, tmp_path)


@pytest.fixture
def toys(home: Path, tmp_path: Path) -> Iterator[Place]:
    yield from _prepared(Toys, home, tmp_path)


@pytest.fixture
def place(home: Path, tmp_path: Path) -> Iterator[Place]:
    yield from _prepared(Place, home, tmp_path)


@pytest.fixture(scope="session")
def checkout() -> str:
    return str(CHECKOUT)


def pytest_collection_finish() -> None:
    """Load all of Airflow's models, as a worker does: what is collected loads a few, and SQLAlchemy then refuses MLflow's for those that are missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from airflow.models import import_all_models

        import_all_models()


@pytest.fixture(scope="session", autouse=True)
def airflow_here() -> None:
    """What a worker sets up and a library does not: loggers with a level."""
    import structlog

    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.processors.KeyValueRenderer(key_order=["event"]),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


@pytest.fixture
def program_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, airflow_here: None) -> None:
    """`wmtp` is called in the process of the test, instead of as a process that takes seconds to start; see `in_process`."""
    from airflow import settings
    from wmtp import local

    from mlops_tasks.__main__ import main

    def run_process(self: local.LocalProcess, arguments: list[str]) -> str:
        story, out = io.StringIO(), io.StringIO()
        handler, logger, root = logging.StreamHandler(story), logging.getLogger("mlops_tasks"), logging.getLogger()
        before = root.handlers[:]
        with redirect_stdout(out):
            logger.addHandler(handler)
            code = main(arguments)
            logger.removeHandler(handler)
        root.handlers[:] = before  # those of pytest, which the program has replaced by its own
        if code:
            raise local._error(self.label, code, story.getvalue().strip())
        return out.getvalue().strip().rpartition("\n")[2]

    monkeypatch.setattr(local.LocalProcess, "run_process", run_process)
    monkeypatch.setenv("AIRFLOW__CORE__LOAD_EXAMPLES", "False")  # there is a plugin among them
    # A library has none, and a task looks there for macros.
    monkeypatch.setattr(settings, "PLUGINS_FOLDER", str(tmp_path / "plugins"))
