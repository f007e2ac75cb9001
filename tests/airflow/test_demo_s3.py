"""The real DAG as it is in production: the store on S3, MLflow's own server on PostgreSQL with its files on S3."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from mlflow_server import serving
from postgres_server import address, postgres
from s3_server import BUCKET, S3Server
from test_demo import TINY

if TYPE_CHECKING:
    from conftest import Place


@pytest.fixture
def mlflow(tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", s3.endpoint)
    files = f"--artifacts-destination=s3://{BUCKET}/mlflow/{tmp_path.name}"
    with postgres() as (server, _), serving(tmp_path, address(server), files) as uri:
        yield uri


@pytest.mark.slow
def test_the_real_day_on_s3_and_postgres_promotes_and_the_next_one_computes_nothing(
    place: Place, s3: S3Server, mlflow: str, tmp_path: Path
) -> None:
    environment = {
        "deployment": "toys", "store": f"s3://{BUCKET}/{tmp_path.name}", "s3": s3.access(tmp_path / "cache"), "mlflow_uri": mlflow,
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
