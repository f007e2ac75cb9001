"""The DAG `housekeeping`: it says what would go, and removes it only where the form or the environment file says so."""

from __future__ import annotations

import json
import os
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG
from in_process import Server, run_task
from wmtp import cleaning, cleaning_params
from wmtp.trigger import Cleaning

from mlops_tasks.config.environment import Environment, Housekeeping
from mlops_tasks.errors import UserError
from mlops_tasks.stage import Pointer, Run
from mlops_tasks.store import Store

if TYPE_CHECKING:
    from conftest import Place

OLD = (datetime.now(UTC) - timedelta(days=30)).timestamp()


def with_garbage(environment: Environment) -> Path:
    """A commit that nobody points to, from a month ago."""
    store = Store.of(environment)
    artifact = store.commit(store.begin("judge/old"), {})
    folder = Path(environment.store) / artifact.prefix
    manifest = folder / "manifest.json"
    tree = json.loads(manifest.read_text()) | {"created": "2026-01-01T00:00:00+00:00"}
    manifest.chmod(0o644)
    manifest.write_text(json.dumps(tree))
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (OLD, OLD))
    return folder


@pytest.fixture
def garbage(environment: Environment, mlflow_database: Path, tmp_path: Path) -> Path:
    shutil.copy(mlflow_database, tmp_path / "mlflow.db")
    return with_garbage(environment)


def point_to(folder: Path, environment: Environment) -> None:
    """A run of the same age whose task ended with this artifact."""
    store, prefix = Store.of(environment), Run.prefix_of(environment, "dag", "old")
    store.write_json(f"{prefix}/spec.json", {"recipe": {}, "champion": None, "created": "2026-01-01T00:00:00+00:00"})
    digest = json.loads((folder / "manifest.json").read_text())["digest"]
    pointer = Pointer(task="judge", index=0, stage="judge", outcome="run", seconds=1, key="old", digest=digest)
    store.write_json(f"{prefix}/judge.json", pointer.model_dump(mode="json"))
    for path in (Path(environment.store) / prefix).rglob("*"):
        os.utime(path, (OLD, OLD))


def cleaned(environment: Environment, task: str, conf: dict[str, Any], **policy: Any) -> Server:
    """Run one task of the DAG."""
    tree = environment.model_dump(mode="json", exclude_unset=True) | {"housekeeping": policy}
    file = Path(environment.store).parent / "environment.json"
    file.write_text(json.dumps(tree))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WMTP_ENVIRONMENT", str(file))
        with DAG("housekeeping", schedule=None, start_date=datetime(2026, 1, 1), params=cleaning_params()) as dag:
            cleaning(task, removes=task == "remove")
        return run_task(dag, task, run="week", conf=conf)[0]


@pytest.mark.usefixtures("program_here")
def test_to_look_says_what_would_go_and_removes_nothing(environment: Environment, garbage: Path) -> None:
    server = cleaned(environment, "look", {"delete": True})
    assert server.told["state"] == "success" and garbage.exists()
    assert server.xcoms["return_value"].startswith("1 prefixes with ")
    assert "0 runs in MLflow: a dry run, nothing was removed" in server.xcoms["return_value"]


@pytest.mark.usefixtures("program_here")
@pytest.mark.parametrize(
    ("delete", "policy", "removes"),
    [(None, False, False), (None, True, True), (True, False, True), (False, True, False)],
)
def test_the_form_decides_and_else_the_environment_file(
    environment: Environment, garbage: Path, delete: bool | None, policy: bool, removes: bool
) -> None:
    server = cleaned(environment, "remove", {} if delete is None else {"delete": delete}, delete=policy)
    assert server.told["state"] == ("success" if removes else "skipped")
    assert (garbage / "manifest.json").exists() is not removes


@pytest.mark.usefixtures("program_here")
def test_how_much_is_kept_is_the_environment_files_business(environment: Environment, garbage: Path) -> None:
    cleaned(environment, "remove", {"delete": True}, grace_days=400)
    assert (garbage / "manifest.json").exists()
    point_to(garbage, environment)
    cleaned(environment, "remove", {"delete": True}, keep_runs=1)
    assert (garbage / "manifest.json").exists()
    cleaned(environment, "remove", {"delete": True}, keep_runs=0)
    assert not (garbage / "manifest.json").exists()


def test_the_form_has_a_switch_that_may_be_left_empty() -> None:
    form = cleaning_params()
    assert {name: param.schema["type"] for name, param in form.items()} == {"delete": ["null", "boolean"]}
    assert form["delete"].description and form["delete"].resolve() is None
    assert Cleaning().decides(Housekeeping(delete=True)) and not Cleaning().decides(Housekeeping())
    with pytest.raises(UserError, match="deleted is True: Extra inputs"):
        Cleaning.of({"deleted": True})


@pytest.mark.slow
def test_a_run_shows_and_then_removes(place: Place, mlflow_database: Path) -> None:
    shutil.copy(mlflow_database, place.folder / "mlflow.db")
    from mlops_tasks.config.loading import load_environment

    folder = with_garbage(load_environment(place.environment_file))

    code, text = place.airflow("housekeeping", {"delete": True})

    assert code == 0, text
    assert len(re.findall(r"judge/old  artifact, made 2026-01-01T00:00", text)) == 2, "shown, then removed"
    assert not (folder / "manifest.json").exists()
