"""What dead workers have left in a real cluster, and what of it housekeeping removes: single pods and Jobs, of mapped tasks and cells too."""

from __future__ import annotations

import json
import sqlite3
import uuid
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow_server
import pytest
import rig as rigs
from rig import IMAGE, NAMESPACE, Rig
from s3_server import S3Server
from test_kubernetes_pods import STAYS, Shell
from test_kubernetes_training import wait_until
from wmtp.manifest import Identity

if TYPE_CHECKING:
    from conftest import Place

pytestmark = [
    pytest.mark.kubernetes,
    pytest.mark.slow,
    pytest.mark.skipif(not rigs.IS_AT_HAND, reason=rigs.WHY_NOT),  # before its servers are started
]

NOW = "2026-01-01 00:00:00.000000"
RUNS = {
    ("wmtp_daily", "ended"): "failed",
    ("wmtp_daily", "goes on"): "running",
    ("wmtp_tune", "study"): "running",
    ("wmtp_compare", "comparison"): "running",
}


def of(dag: str, run: str, task: str, index: int = 0, *, map_index: int = -1, cell: str | None = None) -> Identity:
    return Identity("toys", dag, run, task, index, map_index=map_index, cell=cell)


# What each task has left, and what Airflow says of the task.
LEFT = {
    of("wmtp_daily", "ended", "train"): ("Job", "running"),
    of("wmtp_daily", "goes on", "score_shard", 0, map_index=0): ("Pod", "failed"),
    of("wmtp_tune", "study", "search", 1, map_index=1): ("Pod", "failed"),
    of("wmtp_compare", "comparison", "train", map_index=0, cell="ntp-seed-0"): ("Job", "failed"),
}
KEPT = {
    of("wmtp_daily", "gone", "score"): ("Pod", None),
    of("wmtp_daily", "goes on", "score_shard", 1, map_index=1): ("Pod", "running"),
    of("wmtp_tune", "study", "search", 0, map_index=0): ("Pod", "up_for_retry"),
    of("wmtp_compare", "comparison", "train", map_index=1, cell="uniform-seed-0"): ("Job", "running"),
}


def test_housekeeping_shows_and_removes_what_nobody_comes_back_for(
    place: Place, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = place.folder / "mlflow"
    folder.mkdir()
    with rigs.started() as rig, mlflow_server.serving(folder, f"sqlite:///{folder}/mlflow.db") as server:
        monkeypatch.setenv("KUBECONFIG", rig.kubeconfig)
        environment = rigs.environment(rig, s3, IMAGE, place.folder) | {"mlflow_uri": server}
        place.environment_file.write_text(json.dumps(environment))
        tell_airflow(place.home / "airflow.db")
        shell = Shell(rig, rig.kubeconfig, place.environment_file)
        for identity, (kind, _) in (LEFT | KEPT).items():
            shell.leave(kind, STAYS, identity=identity)
        assert owners(rig) == {*LEFT, *KEPT}

        code, said = place.airflow("housekeeping", {"delete": True})

        assert code == 0, said
        assert "look: Pod wmtp-look-0-" in said and "a dry run, nothing was removed" in said, "of the store"
        # `look` comes first, and has only told what `remove` then removes.
        assert "4 objects in the cluster would be removed" in said and "4 objects removed from the cluster" in said
        assert "train[0] of wmtp_daily/ended: the run is finished" in said
        assert "search[1] of wmtp_tune/study: the task is failed" in said
        assert "score[0] of wmtp_daily/gone: this Airflow does not know the run" in said
        wait_until(lambda: owners(rig) == {*KEPT})
        assert len(rig.core.list_namespaced_service(NAMESPACE).items) == 1, "that of the Job which is kept"
        assert not any(one.metadata.deletion_timestamp for one in rig.objects())


def tell_airflow(database: Path) -> None:
    """Write its runs and their tasks as they would be after the workers died."""
    with closing(sqlite3.connect(database)) as connection, connection:
        for (dag, run), state in RUNS.items():
            connection.execute(
                "INSERT INTO dag_run (dag_id, run_id, state, run_type, run_after) VALUES (?, ?, ?, 'manual', ?)",
                (dag, run, state, NOW),
            )
        for identity, (_, state) in (LEFT | KEPT).items():
            if state is not None:
                connection.execute(
                    "INSERT INTO task_instance (id, task_id, dag_id, run_id, map_index, state, try_number, pool, pool_slots)"
                    " VALUES (?, ?, ?, ?, ?, ?, 1, 'default_pool', 1)",
                    (uuid.uuid4().hex, identity.task, identity.dag, identity.run, identity.map_index, state),
                )


def owners(rig: Rig) -> set[Identity | None]:
    """Whose each object is; the pods of a Job say no more than their Job."""
    return {Identity.of(one) for one in rig.objects()}
