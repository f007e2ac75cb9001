"""The real DAG with every stage as a pod: a store on S3, MLflow's own server on PostgreSQL, and a real API server."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
import rig as rigs
import yaml
from rig import IMAGE
from s3_server import S3Server
from test_demo import TINY
from test_demo_s3 import mlflow_server  # noqa: F401  a fixture

if TYPE_CHECKING:
    from conftest import Place

pytestmark = [
    pytest.mark.kubernetes,
    pytest.mark.slow,
    pytest.mark.skipif(not rigs.IS_AT_HAND, reason=rigs.WHY_NOT),  # before its servers are started
]


def test_the_real_day_in_pods_promotes_and_the_next_one_starts_no_pod_for_a_stage(
    place: Place,
    s3: S3Server,
    mlflow_server: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = place.folder / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(TINY))
    with rigs.started() as rig:
        monkeypatch.setenv("KUBECONFIG", rig.kubeconfig)
        environment = rigs.environment(rig, s3, IMAGE, place.folder) | {"mlflow_uri": mlflow_server}
        place.environment_file.write_text(json.dumps(environment))

        first, _ = (process := place.demo(str(recipe))).communicate(timeout=900)
        assert process.returncode == 0, first
        made = dict(re.findall(r"(\S+): (Pod|Job) \S+ is made", first))
        assert {task.partition("[")[0] for task, kind in made.items() if kind == "Job"} == {"reference", "train"}
        assert {task.partition("[")[0] for task, kind in made.items() if kind == "Pod"} == {
            "pull_data", "pull_model", "pull_reference", "score_shard", "score", "generate", "judge", "promote", "report",
        }  # fmt: skip
        assert "  promoted: version 1. " in first
        assert rig.pods() == []

        second, _ = (process := place.demo(str(recipe))).communicate(timeout=900)
        assert process.returncode == 0, second
        assert "Every stage was a hit: nothing had to be computed." in second
        assert re.findall(r"(\S+): (?:Pod|Job) \S+ is made", second) == ["promote[0]", "report[0]"]
        logs = "".join(file.read_text(errors="replace") for file in place.home.rglob("*.log"))
        for value in s3.variables["AWS_SECRET_ACCESS_KEY"], "X-Amz-Signature":
            assert value not in first + second + logs
