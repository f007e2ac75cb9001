"""What is broken is found, what is needed stays, and what nobody needs goes only when it is told to."""

from __future__ import annotations

import errno
import hashlib
import importlib
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

import pytest
from s3_server import BUCKET, S3Server

from mlops_tasks import registry
from mlops_tasks.config.environment import Environment
from mlops_tasks.errors import UserError
from mlops_tasks.housekeeping import Collector, Difference, readable, recompute, selected, verify
from mlops_tasks.keys import code_digests
from mlops_tasks.registry import Version
from mlops_tasks.stage import Pointer, Run, execute
from mlops_tasks.store import Artifact, Store
from mlops_tasks.store.backend import FolderBackend
from mlops_tasks.store.s3 import S3Backend

LATER = datetime.now(UTC) + timedelta(days=8)


@pytest.fixture(autouse=True)
def registry_file(mlflow_database: Path, tmp_path: Path) -> Path:
    """A registry without a model, where both kinds of place have theirs."""
    return Path(shutil.copy(mlflow_database, tmp_path / "mlflow.db"))


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Environment:
    tree: dict[str, object] = {"store": str(tmp_path / "store"), "mlflow_uri": f"sqlite:///{tmp_path / 'mlflow.db'}"}
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3")
        tree |= {"store": f"s3://{BUCKET}/{tmp_path.name}", "s3": server.access(tmp_path / "cache")}
    return Environment.model_validate(tree)


def committed(store: Store, prefix: str, text: str = "alpha", *, made_from: Artifact | None = None) -> Artifact:
    draft = store.begin(prefix)
    (draft.folder / "a.txt").write_text(text)
    (draft.folder / "empty").touch()
    given = (
        {"data": {"artifact": made_from.prefix, "digest": made_from.digest_of("a*"), "files": ["a*"]}}
        if made_from
        else {}
    )
    return store.commit(
        draft, {"stage": prefix.split("/", maxsplit=1)[0], "metrics": {}, "inputs": given, "run": "d/r"}
    )


def planned(environment: Environment, name: str, *artifacts: Artifact, created: str = "2026-01-01") -> str:
    """A run that points to these artifacts."""
    prefix, store = Run.prefix_of(environment, "dag", name), Store.of(environment)
    store.write_json(f"{prefix}/spec.json", {"recipe": {}, "champion": None, "created": f"{created}T00:00:00+00:00"})
    for number, one in enumerate(artifacts):
        stage, key = one.prefix.split("/")
        pointer = Pointer(task=f"t{number}", index=0, stage=stage, outcome="run", seconds=1, key=key, digest=one.digest)
        store.write_json(f"{prefix}/t{number}.json", pointer.model_dump(mode="json"))
    return prefix


def collect(
    environment: Environment, *, now: datetime = LATER, num_runs: int = 20, pins: tuple[str, ...] = ()
) -> set[str]:
    """Remove all garbage, and say which prefixes that were."""
    collector = Collector(environment, num_runs=num_runs, pins=pins, now=now)
    return {one.prefix for one in collector.remove(collector.garbage())}


def damage(artifact: Artifact, name: str, data: bytes) -> None:
    artifact.store.backend.write(f"{artifact.prefix}/attempts/{artifact.manifest['attempt']}/{name}", data)


def test_verify_finds_changed_bytes_of_the_same_size_in_the_store_itself(place: Environment) -> None:
    store = Store.of(place)
    good, bad = committed(store, "make/good"), committed(store, "make/bad")
    bad.path("a.txt")  # on S3 that leaves a copy on this machine, which is still right
    damage(bad, "a.txt", b"alpho")
    found = {one.prefix: one for one in verify(store, selected(store))}
    assert (found["make/good"].num_files, found["make/good"].num_bytes, found["make/good"].flaw) == (2, 5, None)
    alpha, alpho = (hashlib.sha256(text).hexdigest() for text in (b"alpha", b"alpho"))
    assert found["make/bad"].flaw == f"a.txt was committed with SHA-256 {alpha} and now has {alpho}"
    assert store.find("make/bad") is None
    assert store.find("make/good") == good


def test_verify_reads_a_file_in_pieces(place: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlops_tasks.store.s3._PIECE_BYTES", 1000)
    monkeypatch.setattr("mlops_tasks.store.backend._PIECE_BYTES", 1000)
    backend, data = Store.of(place).backend, os.urandom(2500)
    backend.write("big", data)
    pieces = list(backend.pieces("big"))
    assert [len(piece) for piece in pieces] == [1000, 1000, 500]
    assert b"".join(pieces) == data
    with pytest.raises(FileNotFoundError, match="none"):
        list(backend.pieces("none"))


def test_verify_goes_on_past_what_cannot_be_read_now_and_leaves_it_alone(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.of(environment)
    committed(store, "make/bad"), committed(store, "make/good")
    pieces = FolderBackend.pieces

    def failing(self: FolderBackend, name: str) -> Iterator[bytes]:
        if "make/bad" in name:
            with self._explained(self.root / name):
                raise OSError(errno.EIO, "Input/output error")
        yield from pieces(self, name)

    monkeypatch.setattr(FolderBackend, "pieces", failing)
    bad, good = verify(store, selected(store))
    assert (bad.prefix, bad.is_readable, good.flaw, good.is_readable) == ("make/bad", False, None, True)
    assert bad.flaw is not None and "does not answer as it should" in bad.flaw
    assert store.find("make/bad") is not None


def test_verify_finds_a_manifest_that_was_edited(place: Environment) -> None:
    store = Store.of(place)
    made = committed(store, "make/k1")
    store.write_json("make/k1/manifest.json", {**made.manifest, "digest": "0" * 64})
    (found,) = verify(store, ["make/k1"])
    assert found.flaw is not None and "is not that of the files" in found.flaw


def test_a_stage_the_beginning_of_a_key_or_a_uri_select_artifacts(environment: Environment) -> None:
    store = Store.of(environment)
    for prefix in ("make/ab1", "make/ab2", "makes/c", "runs/laptop/d/r"):
        committed(store, prefix)
    assert selected(store) == ["make/ab1", "make/ab2", "makes/c"]
    assert selected(store, ["make"]) == ["make/ab1", "make/ab2"]
    assert selected(store, ["make/ab2", "makes/"]) == ["make/ab2", "makes/c"]
    assert selected(store, [f"{store.uri}/make/ab1/manifest.json"]) == ["make/ab1"]
    with pytest.raises(UserError, match=r"begins with 'mak/x'\. Give a stage \(make, makes\)"):
        selected(store, ["mak/x"])


@pytest.fixture
def stages(toy: Path) -> ModuleType:
    code_digests.cache_clear()
    return importlib.import_module("toy.stages")


def test_recomputing_finds_the_files_that_come_out_otherwise_and_leaves_no_trace(
    environment: Environment, stages: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = Run.prefix_of(environment, "toy", "one")
    store = Store.of(environment)
    store.create_json(f"{prefix}/spec.json", stages.spec().model_dump(mode="json"))
    run, task = Run.open(environment, prefix), stages.TASKS["make"]
    with pytest.raises(UserError, match=r"make of toy/one has no artifact under the key .* \(run\)"):
        recompute(run, task, tasks=stages.TASKS)
    execute(run, task, tasks=stages.TASKS)
    before = store.backend.sizes("")
    assert recompute(run, task, tasks=stages.TASKS) == []
    real = stages.make

    def other(attempt: object) -> None:
        real(attempt)
        (attempt.folder / "lines.txt").write_text("x")  # type: ignore[attr-defined]
        (attempt.folder / "deep" / "notes.txt").unlink()  # type: ignore[attr-defined]

    monkeypatch.setattr(stages, "make", other)
    lines, notes = (hashlib.sha256(text).hexdigest() for text in (b"line 0\nline 1\nline 2\n", b"unread"))
    assert recompute(run, task, tasks=stages.TASKS) == [
        Difference("deep/notes.txt", notes, None),
        Difference("lines.txt", lines, hashlib.sha256(b"x").hexdigest()),
    ]
    assert store.backend.sizes("") == before


def test_what_kept_runs_need_stays_down_to_the_first_input_and_the_rest_goes(place: Environment) -> None:
    store = Store.of(place)
    data = committed(store, "pull/data")
    model = committed(store, "train/model", made_from=data)
    committed(store, "pull/unused", "beta")
    elsewhere = place.model_copy(update={"deployment": "other"})
    theirs = committed(store, "pull/theirs", "gamma")
    old_run = planned(place, "old", committed(store, "pull/old", "delta"))
    planned(place, "new", model, created="2026-01-02")
    planned(elsewhere, "one", theirs)
    assert collect(place, num_runs=1) == {"pull/unused", "pull/old", old_run}
    assert store.backend.sizes("pull/unused") == store.backend.sizes(old_run) == {}
    assert all(store.find(one.prefix) == one for one in (data, model, theirs))


def test_nothing_younger_than_the_grace_goes_nor_what_it_was_made_from(environment: Environment) -> None:
    store = Store.of(environment)
    data = committed(store, "pull/data")
    old = {**data.manifest, "created": "2020-01-01T00:00:00+00:00"}
    store.write_json("pull/data/manifest.json", old)
    assert collect(environment, now=datetime.now(UTC) + timedelta(days=6)) == {"pull/data"}
    data = committed(store, "pull/data")
    store.write_json("pull/data/manifest.json", {**data.manifest, "created": "2020-01-01T00:00:00+00:00"})
    committed(store, "train/model", made_from=data)
    assert collect(environment, now=datetime.now(UTC) + timedelta(days=6)) == set()
    assert collect(environment) == {"pull/data", "train/model"}


def test_a_young_run_stays_with_what_it_points_to_beyond_the_number_that_is_kept(environment: Environment) -> None:
    store = Store.of(environment)
    young = planned(environment, "young", committed(store, "pull/new"), created=f"{LATER - timedelta(days=1):%Y-%m-%d}")
    old = planned(
        environment, "old", committed(store, "pull/old", "beta"), created=f"{LATER - timedelta(days=9):%Y-%m-%d}"
    )
    assert collect(environment, num_runs=0) == {"pull/old", old}
    assert store.backend.sizes(young) != {}


def test_pins_and_aliases_keep_an_artifact_and_its_inputs(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.of(environment)
    data, other = committed(store, "pull/data"), committed(store, "pull/other", "beta")
    model = committed(store, "train/model", made_from=data)
    champion = committed(store, "train/champion", made_from=other)
    judged = committed(store, "judge/champion", "delta")
    committed(store, "pull/unused", "gamma")
    store.create_json("registry/m/000001.json", {"a": "move"})
    tags = {"stage_key": "champion", "digest": champion.digest}
    tags |= {"outcomes": judged.prefix, "gate.candidate_outcomes": judged.digest}
    version = Version("m", "1", "", ("champion",), tags)
    monkeypatch.setattr(registry, "aliased", lambda _: [version])
    assert collect(environment, pins=("train/model",)) == {"pull/unused"}
    assert all(store.find(one.prefix) == one for one in (data, other, model, champion, judged))
    assert store.read_json("registry/m/000001.json") == {"a": "move"}, "what was decided about models is never garbage"
    with pytest.raises(UserError, match="begins with 'train/none'"):
        collect(environment, pins=("train/none",))


def test_a_version_that_was_replaced_stays_as_long_as_a_run_points_to_it(place: Environment) -> None:
    store = Store.of(place)
    first = committed(store, "make/k1")
    store.quarantine("make/k1", "forced")
    second = committed(store, "make/k1", "beta")
    run = planned(place, "one", first)
    assert collect(place) == set()
    store.remove(run)
    planned(place, "two", second)
    assert collect(place) == {"make/k1"}
    assert store.find("make/k1") == second
    assert store.version_at("make/k1", first.digest) is None
    assert len(store.backend.sizes("make/k1/attempts")) == 2


def test_what_no_manifest_names_goes_when_it_is_old(environment: Environment) -> None:
    store = Store.of(environment)
    kept = committed(store, "make/k1")
    planned(environment, "one", kept)
    for prefix in ("make/k1", "make/never"):
        draft = store.begin(prefix)
        (draft.folder / "half").write_text("half")
        store.write_json(f"{prefix}/failures/{draft.attempt}.json", {})
    step = committed(store, "make/never/checkpoints/step-1")
    assert collect(environment, now=datetime.now(UTC) + timedelta(days=6)) == set()
    assert collect(environment) == {"make/k1", "make/never"}
    assert store.backend.sizes("make/never") == {}
    assert store.find("make/k1") == kept
    assert [name.split("/")[0] for name in store.backend.sizes("make/k1")].count("failures") == 1
    assert store.find(step.prefix) is None


def test_a_prefix_that_somebody_may_be_at_work_on_is_left_alone(environment: Environment) -> None:
    store = Store.of(environment)
    committed(store, "make/k1")
    store.write_json("make/k1/lease.json", {})
    lease = Path(environment.store) / "make/k1/lease.json"
    for days_ago, gone in ((1, set()), (8, {"make/k1"})):
        at = (LATER - timedelta(days=days_ago)).timestamp()
        os.utime(lease, (at, at))
        assert {one.prefix for one in Collector(environment, now=LATER).garbage()} == gone
        assert collect(environment) == gone
    assert not lease.exists()


def test_a_lease_that_is_not_there_is_asked_for_with_one_request(s3: S3Server, tmp_path: Path) -> None:
    place = Environment.model_validate(
        {
            "store": f"s3://{BUCKET}/{tmp_path.name}",
            "s3": s3.access(tmp_path / "cache"),
            "mlflow_uri": f"sqlite:///{tmp_path / 'mlflow.db'}",
        }
    )
    for number in range(3):
        Store.of(place).backend.write(f"train/k/attempts/20200101T000000-{number}/x", b"x")
    collector = Collector(place, now=LATER)
    garbage = collector.garbage()
    assert isinstance(collector.backend, S3Backend)
    asked: list[str] = []
    for operation in ("ListObjectsV2", "HeadObject"):
        collector.backend.client.meta.events.register(
            f"before-parameter-build.s3.{operation}",
            lambda params, **_: asked.append(params.get("Key") or params["Prefix"]),
        )
    (gone,) = collector.remove(garbage)
    assert len(gone.names) == 3
    # Before anything goes, and before each of the three names.
    assert [name.removeprefix(f"{tmp_path.name}/") for name in asked if "lease.json" in name] == [
        "train/k/lease.json"
    ] * 4


def test_what_was_committed_anew_after_it_was_found_stays(place: Environment) -> None:
    store = Store.of(place)
    committed(store, "make/k1")
    collector = Collector(place, now=LATER)
    garbage = collector.garbage()
    store.quarantine("make/k1", "forced")
    again = committed(store, "make/k1")
    assert list(collector.remove(garbage)) == []
    assert store.find("make/k1") == again


def test_a_run_of_another_version_stops_everything(environment: Environment) -> None:
    store = Store.of(environment)
    committed(store, "make/k1")
    prefix = planned(environment, "one")
    store.write_json(f"{prefix}/make.json", {"task": "make", "uri": "/store/make/k1"})
    with pytest.raises(UserError, match=r"one/make\.json was written by another version.* nothing is collected"):
        collect(environment)
    assert store.find("make/k1") is not None


@pytest.mark.parametrize(("num_runs", "days"), [(-1, 7), (20, 0.5)])
def test_a_policy_that_would_take_what_is_in_use_is_refused(
    environment: Environment, num_runs: int, days: float
) -> None:
    with pytest.raises(UserError, match=r"It needs 0 runs or more, and a day or more"):
        Collector(environment, num_runs=num_runs, grace=timedelta(days=days))


def test_uploads_that_never_ended_are_aborted_when_they_are_old(place: Environment) -> None:
    backend = Store.of(place).backend
    if isinstance(backend, S3Backend):
        backend.client.create_multipart_upload(Bucket=BUCKET, Key=f"{backend.prefix}/make/k1/attempts/a/big")
        backend.client.create_multipart_upload(Bucket=BUCKET, Key="elsewhere/big")
    else:
        assert isinstance(backend, FolderBackend)
        (backend.root / "make").mkdir(parents=True)
        (backend.root / "make" / ".tmp-1").touch()
        (backend.root / "make" / ".tmp-lock").touch()
    assert backend.abort_uploads(datetime.now(UTC) - timedelta(days=1)) == 0
    assert backend.abort_uploads(LATER, dry_run=True) == 1
    assert backend.abort_uploads(LATER) == 1
    assert backend.abort_uploads(LATER) == 0


def test_folders_that_were_emptied_go_a_grace_later(environment: Environment) -> None:
    store = Store.of(environment)
    committed(store, "make/k1")
    committed(store, "make/k2", "beta")
    store.remove("make/k2")
    collect(environment, pins=("make/k1",))
    (Path(environment.store) / "make/k3/attempts").mkdir(parents=True)
    for _ in range(2):
        store.backend.abort_uploads(LATER)
    assert store.children("make") == ["k1"]


def test_an_age_that_nobody_can_tell_is_young(environment: Environment) -> None:
    store = Store.of(environment)
    store.backend.write("make/k1/manifest.json", b"{")
    assert collect(environment, now=datetime.now(UTC) + timedelta(days=6)) == set()
    assert collect(environment) == {"make/k1"}


def test_what_lies_deeper_is_as_old_as_its_newest_file(place: Environment) -> None:
    backend = Store.of(place).backend
    for name in ("plan.json", "cells/uniform-0/spec.json", "cells/uniform-0/runs/train.json"):
        backend.write(f"select/k/{name}", b"{}")
    assert collect(place, now=datetime.now(UTC)) == set()
    assert collect(place) == {"select/k"}
    assert backend.sizes("select/k") == {}


def test_a_folder_is_as_young_as_what_was_written_below_it(environment: Environment) -> None:
    backend = Store.of(environment).backend
    assert isinstance(backend, FolderBackend)
    backend.write("select/k/cells/uniform-0/spec.json", b"{}")
    for folder in ("cells/uniform-0", "cells"):
        os.utime(backend.root / "select/k" / folder, times=(0, 0))
    assert collect(environment, now=datetime.now(UTC)) == set()


def test_bytes_are_told_in_units() -> None:
    assert [readable(n) for n in (0, 999, 1000, 2_500_000, 7 * 10**15)] == [
        "0 bytes", "999 bytes", "1.0 kB", "2.5 MB", "7000.0 TB",
    ]  # fmt: skip


def test_without_the_registry_that_names_what_production_loads_nothing_is_collected(
    environment: Environment, registry_file: Path
) -> None:
    registry_file.unlink()
    store = Store.of(environment)
    committed(store, "train/k1")
    with pytest.raises(UserError, match=r"mlflow\.db does not exist, so nobody can tell which of the models"):
        collect(environment)
    assert store.find("train/k1") is not None


def test_an_old_run_of_which_a_task_ended_lately_stays_with_what_it_needs(place: Environment) -> None:
    data = committed(Store.of(place), "pull/data")
    planned(place, "old", data, created="2020-01-01")
    assert collect(place, now=datetime.now(UTC), num_runs=0) == set()
    assert collect(place, num_runs=0) == {"pull/data", Run.prefix_of(place, "dag", "old")}


def test_work_that_begins_while_its_prefix_is_removed_keeps_what_is_left(environment: Environment) -> None:
    store = Store.of(environment)
    for name in ("attempts/20200101T000000-a/x", "checkpoints/step-00000001/state.pt"):
        store.backend.write(f"train/k/{name}", b"x")
    collector = Collector(environment, now=LATER)
    garbage = collector.garbage()
    delete = FolderBackend.delete

    def and_somebody_comes(self: FolderBackend, name: str) -> None:
        delete(self, name)
        self.write("train/k/lease.json", b"{}")
        os.utime(self.root / "train/k/lease.json", times=(LATER.timestamp(), LATER.timestamp()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FolderBackend, "delete", and_somebody_comes)
        list(collector.remove(garbage))
    assert store.backend.sizes("train/k/checkpoints") == {"step-00000001/state.pt": 1}
