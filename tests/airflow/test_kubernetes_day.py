"""The real DAG with every stage as a pod: a store on S3, MLflow's own server on PostgreSQL, and a real API server."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import boto3
import pytest
import rig as rigs
import yaml
from kubernetes.watch import Watch
from mlflow import MlflowClient
from rig import IMAGE, NAMESPACE, Rig
from s3_server import BUCKET, S3Server
from test_demo import TINY
from test_demo_s3 import mlflow  # noqa: F401  a fixture
from urllib3.exceptions import HTTPError

if TYPE_CHECKING:
    from conftest import Place

pytestmark = [
    pytest.mark.kubernetes,
    pytest.mark.slow,
    pytest.mark.skipif(not rigs.IS_AT_HAND, reason=rigs.WHY_NOT),  # before its servers are started
]

PASSWORD = "no-password-of-anyone"


@contextmanager
def seen(rig: Rig) -> Iterator[list[str]]:
    """Every state of each pod that there was, as anybody reads it who may list pods."""
    found: list[str] = []
    watch = Watch()

    def look() -> None:
        with suppress(HTTPError):  # the server ends before whoever listens to it
            for event in watch.stream(rig.core.list_namespaced_pod, NAMESPACE):
                found.append(json.dumps(event["raw_object"]))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    yield found
    watch.stop()


def in_bucket(s3: S3Server) -> Iterator[str]:
    """What lies in the store, and among MLflow's files."""
    client = boto3.client("s3", endpoint_url=s3.endpoint)
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for one in page.get("Contents", []):
            yield client.get_object(Bucket=BUCKET, Key=one["Key"])["Body"].read().decode(errors="replace")


def in_runs(server: str) -> Iterator[str]:
    """What MLflow tells of each run."""
    client = MlflowClient(server)
    experiments = [one.experiment_id for one in client.search_experiments()]
    yield from (json.dumps(one.to_dictionary()) for one in client.search_runs(experiments))


def test_the_real_day_in_pods_promotes_and_the_next_one_starts_no_pod_for_a_stage(
    place: Place,
    s3: S3Server,
    mlflow: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = place.folder / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(TINY))
    with rigs.started() as rig, seen(rig) as pods:
        monkeypatch.setenv("KUBECONFIG", rig.kubeconfig)
        rig.secret("mlflow", {"password": PASSWORD})
        environment = rigs.environment(rig, s3, IMAGE, place.folder) | {"mlflow_uri": mlflow}
        environment["score"] = {"num_shards": 2}
        login = {"MLFLOW_TRACKING_USERNAME": "tester", "MLFLOW_TRACKING_PASSWORD": PASSWORD}
        environment["kubernetes"]["secrets"] |= {name: {"secret": "mlflow", "key": "password"} for name in login}
        place.environment_file.write_text(json.dumps(environment))

        first, _ = (process := place.demo(str(recipe))).communicate(timeout=900)
        assert process.returncode == 0, first
        made = dict(re.findall(r"(\S+): (Pod|Job) \S+ is made", first))
        assert {task.partition("[")[0] for task, kind in made.items() if kind == "Job"} == {"reference", "train"}
        assert {task.partition("[")[0] for task, kind in made.items() if kind == "Pod"} == {
            "pull_data", "pull_model", "pull_reference", "score_shard", "score", "generate", "judge", "promote", "report",
        }  # fmt: skip
        assert {"score_shard[0]", "score_shard[1]", "generate[3]"} <= set(made), "what is mapped is a pod each"
        assert "  promoted: version 1. " in first
        assert rig.pods() == []

        second, _ = (process := place.demo(str(recipe))).communicate(timeout=900)
        assert process.returncode == 0, second
        assert "Every stage was a hit: nothing had to be computed." in second
        assert re.findall(r"(\S+): (?:Pod|Job) \S+ is made", second) == ["promote[0]", "report[0]"]

        # Airflow's database holds rendered templates and XComs, the bucket holds the reports.
        files = [file for root in (place.home, place.folder) for file in root.rglob("*") if file.is_file()]
        told = [first, second, *(file.read_bytes().decode(errors="replace") for file in files)]
        told += [*in_bucket(s3), *in_runs(mlflow)]
        assert any("<!doctype html>" in one for one in told) and len(pods) > 20
        for value in s3.variables["AWS_SECRET_ACCESS_KEY"], PASSWORD:
            assert not any(value in one for one in [*told, *pods])
        assert not any("X-Amz-Signature" in one for one in told), "an address is in its pod only"
