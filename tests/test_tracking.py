"""Claims about what MLflow is told: on a real SQLite tracking store (a real server is in test_registry)."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from mlflow_server import free_port

from mlops_tasks import tracking
from mlops_tasks.config.environment import Environment
from mlops_tasks.config.recipe import Recipe
from mlops_tasks.errors import Interrupted, Unavailable, UserError
from mlops_tasks.store import Artifact, Store
from mlops_tasks.tracking import connection, curve_logger, experiment_name, find_run, scalars

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

# MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

EXPERIMENT = "wmtp/rho1/demo"
PARAMS = {"train": {"steps": 4, "learning_rate": 0.0003}, "text": {"prompt": "docstring-0shot"}, "weighting": None}
CURVE = [
    {"step": 1, "loss": 4.0, "head_nats": [4.0, 5.0], "learning_rate": 0.1},
    {"step": 2, "loss": 3.0, "head_nats": [3.0, 4.0], "learning_rate": 0.2},
    {"step": 2, "validation_nats": 3.5, "validation_head_nats": [3.5, 4.5]},
]


@pytest.fixture
def local(environment: Environment, mlflow_database: Path, tmp_path: Path) -> Environment:
    """An environment with an empty local tracking store."""
    shutil.copy(mlflow_database, tmp_path / "mlflow.db")
    return environment


@pytest.fixture
def train(tmp_path: Path) -> Artifact:
    """What a training of four steps leaves in the store; its model is no model, which is nothing to `tracking`."""
    store = Store.open(str(tmp_path / "store"))
    draft = store.begin("train/abc")
    (draft.folder / "model").mkdir()
    (draft.folder / "model" / "config.json").write_text("{}")
    (draft.folder / "heads.safetensors").write_bytes(b"heads")
    (draft.folder / "curves.jsonl").write_text("".join(json.dumps(line) + "\n" for line in CURVE))
    metrics = {"steps": 4, "stopped_early": False, "validation_nats_after": 3.25, "resumed_from": None}
    return store.commit(draft, {"key": "abc", "components": {"config": PARAMS}, "metrics": metrics, "inputs": {}})


def history(client: MlflowClient, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run_id, name)]


def complete(environment: Environment, train: Artifact, **changes: Any) -> tracking.Logged:
    told: dict[str, Any] = {
        "metrics": {"gate/pass_at_1": 0.5},
        "tags": {"digest": train.digest},
        "prompt": "add two",
        **changes,
    }
    with connection(environment) as client:
        return tracking.complete(client, environment, train=train, experiment=EXPERIMENT, **told)


def test_experiment_is_named_by_algorithm_and_recipe() -> None:
    recipe = Recipe.model_validate(
        {
            "name": "demo",
            "data": {"source": {"kind": "mbpp", "path": "x"}},
            "model": {"name": "m", "source": {"kind": "folder", "path": "x"}},
            "scoring": {"scorer": "position"},
            "train": {"steps": 1},
        }
    )
    assert experiment_name(recipe) == "wmtp/position/demo"


def test_scalars_of_lists_and_dicts_get_names_and_what_is_no_number_is_left_out() -> None:
    metrics = {"step": 7, "a": 1, "b": [0.5, 2], "c": {"1": 0.25}, "d": "text", "e": None, "f": True, "g": ["text"]}
    assert scalars(metrics) == {"a": 1.0, "b/1": 0.5, "b/2": 2.0, "c/1": 0.25}


def test_curves_and_params_arrive_while_the_training_runs(local: Environment) -> None:
    with curve_logger(local, stage_key="abc", experiment=EXPERIMENT, params=PARAMS) as logger:
        for line in CURVE:
            logger.log(int(str(line["step"])), line)
    with connection(local) as client:
        run = find_run(client, local, "abc")
        assert run is not None
        assert client.get_experiment(run.info.experiment_id).name == EXPERIMENT
        assert run.info.status == "FINISHED"
        assert run.data.params["train.learning_rate"] == "0.0003"
        assert run.data.params["weighting"] == "null"
        assert history(client, run.info.run_id, "head_nats/2") == [(1, 5.0), (2, 4.0)]
        assert history(client, run.info.run_id, "validation_nats") == [(2, 3.5)]
        assert client.list_artifacts(run.info.run_id) == []


def test_a_resumed_training_continues_its_run_without_double_points(local: Environment) -> None:
    def train_three_steps() -> None:
        with curve_logger(local, stage_key="abc", experiment=EXPERIMENT, params=PARAMS) as logger:
            for step in (1, 2, 3):
                logger.log(step, {"loss": 10.0 - step})
            raise Interrupted("SIGTERM after step 3")

    with pytest.raises(Interrupted, match="SIGTERM"):
        train_three_steps()
    with connection(local) as client:
        first = find_run(client, local, "abc")
        assert first is not None
        assert first.info.status == "KILLED"
    with curve_logger(local, stage_key="abc", experiment=EXPERIMENT, params=PARAMS) as logger:
        for step in (2, 3, 4):  # from the checkpoint of step 1
            logger.log(step, {"loss": 10.0 - step})
    with connection(local) as client:
        runs = client.search_runs([first.info.experiment_id])
        assert [run.info.run_id for run in runs] == [first.info.run_id]
        assert history(client, first.info.run_id, "loss") == [(1, 9.0), (2, 8.0), (3, 7.0), (4, 6.0)]


def test_a_failed_training_leaves_a_failed_run(local: Environment) -> None:
    with pytest.raises(ZeroDivisionError), curve_logger(local, stage_key="abc", experiment=EXPERIMENT, params={}):
        raise ZeroDivisionError
    with connection(local) as client:
        run = find_run(client, local, "abc")
        assert run is not None
        assert run.info.status == "FAILED"


def test_a_server_that_is_down_costs_one_warning_and_no_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_RETRY_SECONDS", 0.05)
    environment = Environment(store=str(tmp_path), mlflow_uri=f"http://127.0.0.1:{free_port()}")
    caplog.set_level(logging.WARNING, logger="mlops_tasks")
    with curve_logger(environment, stage_key="abc", experiment=EXPERIMENT, params={}) as logger:
        started = time.monotonic()
        for step in range(3000):  # three times as many as the queue holds
            logger.log(step, {"loss": 1.0})
        assert time.monotonic() - started < 5
        wait_until(lambda: caplog.records)
        closing = time.monotonic()
    assert time.monotonic() - closing < 10
    assert len(caplog.records) == 1
    assert "curves do not reach MLflow" in caplog.text


def test_a_server_that_is_down_is_told_within_seconds(tmp_path: Path) -> None:
    environment = Environment(store=str(tmp_path), mlflow_uri=f"http://127.0.0.1:{free_port()}")
    started = time.monotonic()
    with pytest.raises(Unavailable, match=r"does not answer.*mlflow_uri"), connection(environment):
        pass
    assert time.monotonic() - started < 30


def test_complete_adds_what_is_missing_and_only_that(local: Environment, train: Artifact) -> None:
    with curve_logger(local, stage_key="abc", experiment=EXPERIMENT, params=PARAMS) as logger:
        logger.log(1, CURVE[0])  # the line that got through before the server went away
    first = complete(local, train)
    again = complete(local, train)
    assert again == first
    with connection(local) as client:
        run = client.get_run(first.run_id)
        assert run.info.status == "FINISHED"
        assert history(client, first.run_id, "loss") == [(1, 4.0), (2, 3.0)]
        assert history(client, first.run_id, "validation_head_nats/2") == [(2, 4.5)]
        assert history(client, first.run_id, "final/validation_nats_after") == [(4, 3.25)]
        assert history(client, first.run_id, "final/gate/pass_at_1") == [(4, 0.5)]
        assert run.data.tags["digest"] == train.digest
        assert len(client.search_logged_models([run.info.experiment_id])) == 1
        assert [output.model_id for output in run.outputs.model_outputs] == [first.model_id]


def test_a_new_evaluation_of_the_same_training_replaces_the_final_metric(local: Environment, train: Artifact) -> None:
    complete(local, train, metrics={"gate/pass_at_1": 0.5})
    logged = complete(local, train, metrics={"gate/pass_at_1": 0.75})
    with connection(local) as client:
        assert client.get_run(logged.run_id).data.metrics["final/gate/pass_at_1"] == 0.75


def test_a_model_whose_upload_broke_off_is_uploaded_again_under_its_own_id(
    local: Environment, train: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    upload = MlflowClient.log_model_artifacts

    def half(self: MlflowClient, model_id: str, local_dir: str, artifact_path: str | None = None) -> None:
        (Path(local_dir) / "artifacts" / "model" / "config.json").unlink()
        upload(self, model_id, local_dir, artifact_path)
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "log_model_artifacts", half)
        with pytest.raises(KeyboardInterrupt):
            complete(local, train)
    logged = complete(local, train)
    with connection(local) as client:
        (model,) = client.search_logged_models([client.get_run(logged.run_id).info.experiment_id])
    assert model.model_id == logged.model_id
    assert str(model.status) == "READY"
    folder = Path(logged.model_uri.removeprefix("file://"))
    assert (folder / "artifacts" / "model" / "config.json").read_text() == "{}"
    assert (folder / "artifacts" / "heads.safetensors").read_bytes() == b"heads"


def test_one_key_has_one_run_whatever_recipe_asks(local: Environment) -> None:
    with connection(local) as client:
        first = tracking.find_or_create_run(client, local, stage_key="abc", experiment="wmtp/rho1/demo")
        other = tracking.find_or_create_run(client, local, stage_key="abc", experiment="wmtp/rho1/nightly")
        assert other.info.run_id == first.info.run_id


def test_the_same_key_in_another_store_has_a_run_of_its_own(local: Environment, tmp_path: Path) -> None:
    other = local.model_copy(update={"store": str(tmp_path / "other")})
    with connection(local) as client:
        runs = [
            tracking.find_or_create_run(client, place, stage_key="abc", experiment=EXPERIMENT).info.run_id
            for place in (local, other, local, other)
        ]
    assert runs[:2] == runs[2:] and runs[0] != runs[1]


def test_a_run_from_before_runs_named_their_store_is_taken_by_the_first_that_asks(
    local: Environment, tmp_path: Path
) -> None:
    other = local.model_copy(update={"store": str(tmp_path / "other")})
    with connection(local) as client:
        old = client.create_run(tracking._experiment_id(client, local, EXPERIMENT), tags={"stage_key": "abc"})
        for place, is_old in ((local, True), (other, False), (local, True)):
            run = tracking.find_or_create_run(client, place, stage_key="abc", experiment=EXPERIMENT)
            assert (run.info.run_id == old.info.run_id) == is_old
        assert client.get_run(old.info.run_id).data.tags["store"] == Store.of(local).uri


def test_of_two_runs_made_at_one_time_the_older_stays(local: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    with connection(local) as client:
        experiment_id = tracking._experiment_id(client, local, EXPERIMENT)
        tags = {"stage_key": "abc", "store": Store.of(local).uri}
        older = client.create_run(experiment_id, tags=tags, start_time=1)
        looks = iter([lambda: None, lambda: find_run(client, local, "abc")])  # it appears just after we looked
        monkeypatch.setattr(tracking, "find_run", lambda *_: next(looks)())
        run = tracking.find_or_create_run(client, local, stage_key="abc", experiment=EXPERIMENT)
        assert run.info.run_id == older.info.run_id
        assert [one.info.run_id for one in client.search_runs([experiment_id])] == [older.info.run_id]


def test_a_deleted_experiment_is_named_with_the_way_out(local: Environment) -> None:
    with connection(local) as client:
        client.delete_experiment(client.create_experiment(EXPERIMENT))
    with pytest.raises(UserError, match=r"wmtp/rho1/demo .* is deleted. Restore it"), connection(local) as client:
        tracking.find_or_create_run(client, local, stage_key="abc", experiment=EXPERIMENT)


def test_files_of_a_local_store_lie_where_the_environment_says(local: Environment, tmp_path: Path) -> None:
    environment = local.model_copy(update={"mlflow_artifacts": str(tmp_path / "files")})
    tracking.log_report(
        environment, stage_key="abc", experiment=EXPERIMENT, page="<p>hello</p>", name="wmtp_daily/2026-01-01T00%3A00"
    )
    (found,) = (tmp_path / "files").rglob("report.html")
    assert found.read_text() == "<p>hello</p>"
    assert found.parent.name == "wmtp_daily-2026-01-01T00-3A00"


def test_local_database_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    database = tmp_path / "deep" / "mlflow.db"
    code = (
        "import os, sys; from mlflow.tracking import MlflowClient; real = MlflowClient.search_experiments\n"
        "MlflowClient.search_experiments = lambda self: (real(self), os.kill(os.getpid(), 9))\n"
        "from mlops_tasks import tracking; from mlops_tasks.config.environment import Environment\n"
        "with tracking.connection(Environment(store='s', mlflow_uri='sqlite:///' + sys.argv[1])): pass"
    )
    assert subprocess.run([sys.executable, "-c", code, str(database)], check=False).returncode == -9
    assert not database.exists()
    with connection(Environment(store="s", mlflow_uri=f"sqlite:///{database}")) as client:
        assert [one.name for one in client.search_experiments()] == ["Default"]
    assert database.exists()


def test_what_a_killed_process_left_of_a_database_goes_and_what_another_makes_now_stays(tmp_path: Path) -> None:
    old, young = tmp_path / ".mlflow-old", tmp_path / ".mlflow-young"
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (0, 0))
    tracking._make_database(tmp_path / "mlflow.db")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mlflow-young", "mlflow.db"]


def test_importing_tracking_does_not_import_mlflow() -> None:
    code = "import sys, mlops_tasks.tracking, mlops_tasks.registry; assert not {'mlflow', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def wait_until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)
