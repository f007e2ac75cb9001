"""Fixtures that several test files share: a toy package with stages, an environment in a temporary folder."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from nights import Night
from s3_server import BUCKET, S3Server

from mlops_tasks.config.environment import Environment, S3Access
from mlops_tasks.store import Store
from mlops_tasks.store.backend import Backend, FolderBackend
from mlops_tasks.store.s3 import S3Backend
from mlops_tasks.tracking import connection

# Models here are so small that threads only wait for one another; set before anything loads torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

TOY_STAGES = '''
"""A two-stage pipeline over text files."""
import json, os, sys, time
from pathlib import Path
from mlops_tasks.config.evaluation import Evaluation
from mlops_tasks.config.learning import Train, Uniform
from mlops_tasks.config.recipe import Recipe
from mlops_tasks.config.sources import FolderModel, Data, MbppData, Model
from mlops_tasks.stage import Input, Spec, Stage, Task
from toy.words import shout

def make(attempt):
    """Write a file of as many lines as the recipe's seed says."""
    with (Path(attempt.environment.store).parent / "made.txt").open("a") as stream:
        stream.write(".")
    (attempt.folder / "lines.txt").write_text("".join(f"line {n}\\\\n" for n in range(attempt.config["seed"])))
    (attempt.folder / "deep").mkdir()
    (attempt.folder / "deep" / "notes.txt").write_text("unread")
    return {"lines": attempt.config["seed"]}

def loud(attempt):
    """Shout what `make` made."""
    text = attempt.inputs["made"].path("lines.txt").read_text()
    (attempt.folder / "loud.txt").write_text(shout(text))
    return {"letters": len(text)}

def tell(run):
    """An action: leaves a mark."""
    run.write("told.txt", b"told")
    return {"told": True}

MAKE = Stage("make", "toy.stages:make", ("pyarrow",))
LOUD = Stage("loud", "toy.stages:loud", ())
TASKS = {task.id: task for task in (
    Task("make", MAKE, config=lambda spec, index: {"seed": spec.recipe.seed, "path": "/somewhere"}),
    Task("loud", LOUD, lambda spec, index: {"made": Input("make", files=("lines*",))}, lambda spec, index: {"index": index},
         fan_out=lambda recipe, environment: 2),
    Task("unused", LOUD, config=lambda spec, index: None),
    Task("tell", "toy.stages:tell"),
)}

def spec(seed=3, force=()):
    return Spec(recipe=Recipe(name="toy", seed=seed, data=Data(source=MbppData(kind="mbpp", path="x")),
        model=Model(name="toy", source=FolderModel(kind="folder", path="x")), scoring=Uniform(scorer="uniform"), train=Train(steps=1)),
        pins={}, champion=None, force=force, fan_out={"loud": 2}, created="2026-01-01T00:00:00+00:00")
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of an importable package `toy` with two stages and an action."""
    folder = tmp_path / "source" / "toy"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "words.py").write_text('def shout(text):\n    """Louder."""\n    return text.upper()\n')
    (folder / "stages.py").write_text(TOY_STAGES.replace("\\\\n", "\\n"))
    monkeypatch.syspath_prepend(str(folder.parent))
    yield folder
    for name in [name for name in sys.modules if name == "toy" or name.startswith("toy.")]:
        del sys.modules[name]


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """An environment whose store is an empty temporary folder."""
    return Environment(store=str(tmp_path / "store"), mlflow_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")


@pytest.fixture(params=["folder", "s3"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """Each kind of backend, empty."""
    if request.param == "folder":
        return FolderBackend(tmp_path / "store")
    server: S3Server = request.getfixturevalue("s3")
    return S3Backend(BUCKET, tmp_path.name, S3Access.model_validate(server.access(tmp_path / "cache")))


@pytest.fixture
def store(backend: Backend) -> Store:
    """A store on each kind of backend."""
    return Store(backend)


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database with MLflow's tables; making one takes seconds, copying it does not."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    with connection(Environment(store="unused", mlflow_uri=f"sqlite:///{path}")) as client:
        client.search_experiments()
    return path


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server, with an empty bucket."""
    with S3Server.started(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, with its credentials in this process's variables."""
    for name, value in s3_server.variables.items():
        monkeypatch.setenv(name, value)
    return s3_server


_SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def mbpp_folder() -> Path:
    """The published MBPP files, where this checkout has them beside it."""
    folder = _SHARED_DATA / "mbpp"
    if not folder.is_dir():
        pytest.skip(f"needs MBPP as published in {folder}")
    return folder


@pytest.fixture
def codecontests_file() -> Path:
    """250 problems of CodeContests with a Python solution each, where this checkout has them beside it."""
    path = _SHARED_DATA / "codecontests" / "codecontests_python_verified.jsonl"
    if not path.is_file():
        pytest.skip(f"needs verified problems of CodeContests in {path}")
    return path


@pytest.fixture
def monday(environment: Environment, mlflow_database: Path, tmp_path: Path) -> Night:
    """The first night ever: no champion, an empty registry."""
    shutil.copy(mlflow_database, tmp_path / "mlflow.db")
    return Night(environment)
