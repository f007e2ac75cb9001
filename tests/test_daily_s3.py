"""The whole pipeline with its store on a real S3 server."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from fault_proxy import FaultProxy
from s3_server import BUCKET, S3Server
from test_daily import ENVIRONMENT, RECIPE, day, outcomes, wmtp

from mlops_tasks.config.environment import S3Access
from mlops_tasks.config.loading import load_environment
from mlops_tasks.stage import Run
from mlops_tasks.store import Store


@pytest.fixture
def place(tmp_path: Path, s3: S3Server) -> Path:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    environment = {**ENVIRONMENT, "store": f"s3://{BUCKET}/day/{tmp_path.name}", "s3": s3.access(tmp_path / "cache")}
    (tmp_path / "environment.yaml").write_text(yaml.safe_dump(environment))
    return tmp_path


@pytest.mark.slow
def test_a_day_on_s3_runs_once_and_is_found_from_another_machine(place: Path, s3: S3Server) -> None:
    first = day(place, "first")
    assert outcomes(first)["train"] == ["run"]
    promoted = first.pointer("promote")
    assert promoted is not None and promoted.detail["outcome"] == "refused"
    report = first.pointer("report")
    assert report is not None and report.detail["path"] == f"{first.store.uri}/{first.prefix}/report.html"
    page = first.store.backend.read(f"{first.prefix}/report.html")
    assert page is not None and page.startswith(b"<!doctype html>")

    # Another machine has nothing of the first one's files.
    environment = yaml.safe_load((place / "environment.yaml").read_text())
    environment["s3"] = s3.access(place / "another-cache")
    (place / "environment.yaml").write_text(yaml.safe_dump(environment))
    second = outcomes(day(place, "second"))
    assert {outcome for name in ("train", "score", "generate", "judge", "reference") for outcome in second[name]} == {
        "hit"
    }
    code, shown = wmtp(place, "show")
    assert code == 0 and "Every stage was a hit" in shown


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of connections that were cut
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_day_with_a_tenth_of_all_requests_disturbed_ends_as_any_other(
    place: Path, s3: S3Server, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed = results(day(place, "undisturbed"))
    environment = yaml.safe_load((place / "environment.yaml").read_text())
    with FaultProxy.before(s3.endpoint, rate=0.1, seed=seed) as proxy:
        environment |= {"store": f"{environment['store']}-{seed}", "s3": s3.access(place / "other", proxy.endpoint)}
        (place / "environment.yaml").write_text(yaml.safe_dump(environment))
        assert results(day(place, "disturbed")) == undisturbed
    assert len(proxy.done) >= 5
    with capsys.disabled():
        print(f"\nseed {seed}: {dict(proxy.done)}")


def results(run: Run) -> dict[tuple[str, int], tuple[str | None, str | None]]:
    return {(one.task, one.index): (one.key, one.digest) for one in run.pointers() if one.prefix}


def test_a_hit_is_decided_in_two_round_trips(place: Path) -> None:
    environment = load_environment(place / "environment.yaml")
    store = Store.of(environment)
    draft = store.begin("make/k")
    for number in range(40):
        (draft.folder / f"{number}.txt").write_text("x")
    store.commit(draft, {"metrics": {}})

    asked: list[str] = []
    fresh = Store.open(
        environment.store, S3Access.model_validate({**environment.s3.model_dump(), "cache": str(place / "c2")})
    )
    client = fresh.backend.client  # type: ignore[attr-defined]
    client.meta.events.register("before-send.s3", lambda request, **_: asked.append(f"{request.method} {request.url}"))
    assert fresh.find("make/k") is not None
    assert [one.split()[0] for one in asked] == ["GET", "GET"], asked
    assert "manifest.json" in asked[0] and "list-type=2" in asked[1]
