"""The pages that tasks link to: what they serve, and to whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from airflow.models import import_all_models
from fastapi.testclient import TestClient
from wmtp import pages

from mlops_tasks.config.environment import Environment
from mlops_tasks.store import Store

# The API server loads all of Airflow's tables; some of them alone would break every other use of SQLAlchemy in this process.
import_all_models()
KEY = "ab" * 32


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """The pages over a store with a report, a manifest, and something beside each that is nobody's."""
    environment = Environment(deployment="toys", store=str(tmp_path / "store"), mlflow_uri="sqlite:///x.db")
    backend = Store.of(environment).backend
    for name in ("runs/toys/daily/a%20run/report.html", f"pull/{KEY}/manifest.json", "report.html"):
        backend.write(name, name.encode())
    backend.write("runs/toys/daily/a%20run/spec.json", b"secret")
    monkeypatch.setattr(pages, "environment", lambda: environment)
    return TestClient(pages.app)


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who may read the DAGs; who that is, is Airflow's affair."""
    rights = [
        one.call for route in pages.app.routes for one in getattr(getattr(route, "dependant", None), "dependencies", [])
    ]
    assert len(rights) == 2
    monkeypatch.setattr(pages.app, "dependency_overrides", {right: lambda: None for right in rights})


def test_nobody_reads_anything_without_a_right(client: TestClient) -> None:
    for name in ("runs/toys/daily/a%2520run/report.html", f"pull/{KEY}/manifest.json"):
        assert client.get(f"/{name}").status_code == 401


@pytest.mark.usefixtures("allowed")
def test_reports_and_manifests_are_served_at_their_places_in_the_store(client: TestClient) -> None:
    report = client.get("/runs/toys/daily/a%2520run/report.html")
    assert report.text == "runs/toys/daily/a%20run/report.html"
    assert report.headers["content-security-policy"].startswith("default-src 'none'")
    manifest = client.get(f"/pull/{KEY}/manifest.json")
    assert (manifest.text, manifest.headers["content-type"]) == (f"pull/{KEY}/manifest.json", "application/json")


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize(
    "name",
    [
        "runs/toys/daily/a%2520run/spec.json",
        "runs/other/daily/a%2520run/report.html",
        "runs/toys/%2e%2e/%2e%2e/report.html",
        "runs/toys/daily/%252E%252E/report.html",
        f"%2e%2e/{KEY}/manifest.json",
        "pull/%2e%2e/manifest.json",
        "pull/00/manifest.json",
    ],
)
def test_nothing_else_of_the_store_is_served(client: TestClient, name: str) -> None:
    answer: Any = client.get(f"/{name}")
    assert answer.status_code in (404, 422)
