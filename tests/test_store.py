"""The contract of every backend, and of the artifacts that the store makes on top of it."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mlops_tasks.config.environment import S3Access
from mlops_tasks.errors import DataError, Unavailable, UserError
from mlops_tasks.store import Artifact, Store, canonical_json
from mlops_tasks.store.backend import Backend, FolderBackend
from mlops_tasks.store.s3 import S3Backend


def committed(store: Store, prefix: str = "make/k1", **files: str) -> Artifact:
    draft = store.begin(prefix)
    for name, text in (files or {"a.txt": "alpha", "deep/b.txt": "beta"}).items():
        path = draft.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return store.commit(draft, {"stage": "make", "metrics": {"n": 1}})


def damage(artifact: Artifact, name: str, data: bytes | None) -> None:
    """Put other bytes in a committed file's place, or none."""
    backend, place = artifact.store.backend, f"{artifact.prefix}/attempts/{artifact.manifest['attempt']}/{name}"
    backend.local(place).unlink(missing_ok=True)
    backend.delete(place)
    if data is not None:
        backend.write(place, data)


def test_reading_what_is_not_there_gives_nothing(backend: Backend) -> None:
    assert backend.read("a/b.json") is None
    assert backend.size("a/b.json") is None
    assert backend.children("a") == []
    backend.delete("a/b.json")


def test_write_replaces_and_create_does_not(backend: Backend) -> None:
    backend.write("a/b", b"one")
    backend.write("a/b", b"two")
    assert not backend.create("a/b", b"three")
    assert backend.read("a/b") == b"two"
    assert backend.create("a/c", b"new")
    assert backend.children("a") == ["b", "c"]
    assert backend.size("a/c") == 3


def test_retire_moves_only_what_was_read(backend: Backend) -> None:
    backend.write("a/m", b"old")
    assert backend.retire("a/m", b"old", "a/q/1")
    assert (backend.read("a/m"), backend.read("a/q/1")) == (None, b"old")
    backend.write("a/m", b"newer")
    assert not backend.retire("a/m", b"old", "a/q/2")
    assert (backend.read("a/m"), backend.read("a/q/2")) == (b"newer", None)
    assert not backend.retire("a/none", b"", "a/q/3")


def test_delete_takes_a_file_or_all_below(backend: Backend) -> None:
    backend.write("a/b/c", b"")
    backend.write("a/d", b"")
    backend.delete("a/d/below")
    backend.delete("a/d")
    assert backend.children("a") == ["b"]
    backend.delete("a")
    assert backend.sizes("a") == {}  # SeaweedFS lists an empty folder for a while, as S3 itself never does


def test_swap_replaces_only_what_was_read(backend: Backend) -> None:
    assert not backend.swap("a/p", b"new", over=b"old")
    backend.write("a/p", b"old")
    assert not backend.swap("a/p", b"new", over=b"older")
    assert backend.swap("a/p", b"new", over=b"old")
    assert not backend.swap("a/p", b"newer", over=b"old")
    assert backend.read("a/p") == b"new"
    assert backend.children("a") == ["p"]


def test_sizes_are_of_all_files_below(backend: Backend) -> None:
    assert backend.sizes("a") == {}
    backend.write("a/b/c", b"123")
    backend.write("a/d", b"")
    backend.write("ab/e", b"1")
    assert backend.sizes("a") == {"b/c": 3, "d": 0}


def test_only_the_newest_below_is_asked_of_a_folder(backend: Backend) -> None:
    backend.write("a/b", b"1")
    backend.write("ab", b"1")
    at, newest = backend.modified("a/b"), backend.newest("a")
    assert at is not None and newest is not None
    assert at == backend.newest("a/b") <= newest
    assert (backend.modified("a"), backend.modified("a/c"), backend.newest("a/c"), backend.newest("b")) == (None,) * 4


def test_what_goes_through_a_sink_is_there_when_it_is_closed(backend: Backend) -> None:
    data = os.urandom(2**20 + 1)
    with backend.sink("a/b/big") as stream:
        stream.write(data[:1000])
        stream.write(data[1000:])
    assert backend.size("a/b/big") == len(data)
    assert backend.local("a/b/big").read_bytes() == data


def _race(backend: Backend, action: str, name: str, results: Any, gate: Any) -> None:
    gate.wait()
    data = name.encode()
    create = action == "create"
    results.put(backend.create("race/new", data) if create else backend.swap("race/old", data, over=b"first"))


@pytest.mark.parametrize("action", ["create", "swap"])
def test_of_many_writers_exactly_one_wins(backend: Backend, action: str) -> None:
    context = multiprocessing.get_context("fork")
    for _ in range(10):
        backend.delete("race")
        backend.write("race/old", b"first")
        results, gate = context.Queue(), context.Barrier(6)
        writers = [
            context.Process(target=_race, args=(backend, action, f"w{n}", results, gate), daemon=True) for n in range(6)
        ]
        for writer in writers:
            writer.start()
        outcomes = [results.get(timeout=60) for _ in writers]
        for writer in writers:
            writer.join()
        assert sorted(outcomes) == [False] * 5 + [True]


def test_a_file_may_be_streamed_into_a_draft(store: Store) -> None:
    draft = store.begin("make/k1")
    (draft.folder / "a.txt").write_text("alpha")
    with draft.stream("deep/b.txt") as stream:
        stream.write(b"be")
        stream.write(memoryview(b"ta"))
    artifact = store.commit(draft, {"metrics": {}})
    assert artifact.digest == committed(store, "make/k2").digest
    assert artifact.path("deep/b.txt").read_text() == "beta"


def test_a_copy_on_this_machine_that_went_bad_is_no_fault_of_the_artifact(store: Store) -> None:
    if isinstance(store.backend, FolderBackend):
        pytest.skip("a folder keeps no copies")
    artifact = committed(store)
    store.backend.local(f"{artifact.prefix}/attempts/{artifact.manifest['attempt']}/a.txt").write_text("gamma")
    assert artifact.path("a.txt").read_text() == "alpha"
    assert store.find("make/k1") == artifact


def test_an_artifact_is_found_with_its_files_digests_and_record(store: Store) -> None:
    made = committed(store)
    found = store.find("make/k1")
    assert found is not None
    assert found.names == ["a.txt", "deep/b.txt"]
    assert found.path("deep/b.txt").read_text() == "beta"
    assert found.folder("deep") == found.path("deep/b.txt").parent
    assert (found.digest, found.metrics) == (made.digest, {"n": 1})
    assert store.artifact_at(found.uri) == found


def test_the_digest_is_of_names_and_contents_only(store: Store) -> None:
    one, same, other = (
        committed(store, "make/1"),
        committed(store, "make/2"),
        committed(store, "make/3", **{"a.txt": "x", "deep/b.txt": "beta"}),
    )
    assert one.digest == same.digest != other.digest
    assert one.digest_of("deep/*") == other.digest_of("deep/*") != one.digest_of("a.txt")
    # By hand: SHA-256 of [["a.txt","<sha256 of alpha>"]] in canonical JSON.
    import hashlib

    alpha = hashlib.sha256(b"alpha").hexdigest()
    assert one.digest_of("a*") == hashlib.sha256(f'[["a.txt","{alpha}"]]'.encode()).hexdigest()


def test_a_draft_is_not_seen_before_it_is_committed(store: Store) -> None:
    draft = store.begin("make/k1")
    (draft.folder / "a.txt").write_text("half")
    assert store.find("make/k1") is None
    store.abandon(draft)
    assert store.backend.sizes("make/k1") == {}


@pytest.mark.parametrize("data", [None, b"alph", b""])
def test_a_missing_or_truncated_file_is_no_hit_and_is_quarantined(store: Store, data: bytes | None) -> None:
    damage(committed(store), "a.txt", data)
    assert store.find("make/k1") is None
    assert store.read_json("make/k1/manifest.json") is None
    assert len(store.children("make/k1/quarantine")) == 1
    assert committed(store).path("a.txt").read_text() == "alpha"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"attempt": 1, "files": 3}'])
def test_a_broken_manifest_is_quarantined(store: Store, text: str) -> None:
    store.backend.write("make/k1/manifest.json", text.encode())
    assert store.find("make/k1") is None
    assert len(store.children("make/k1/quarantine")) == 1


@pytest.mark.parametrize(
    ("attempt", "name"), [("..", "a.txt"), ("../../k2", "a.txt"), ("one", "../../k2/a.txt"), ("one", "/a.txt")]
)
def test_a_manifest_that_leads_out_of_its_artifact_is_no_hit_though_the_bytes_are_there(
    store: Store, attempt: str, name: str
) -> None:
    forged = json.loads(json.dumps(committed(store, **{"a.txt": "alpha"}).manifest)) | {"attempt": attempt}
    forged["files"][0]["name"] = name
    store.backend.write("make/k1/attempts/one/a.txt", b"alpha")
    with suppress(Unavailable):  # a server may refuse such a name by itself
        store.backend.write(f"make/k1/attempts/{attempt}/{name}", b"alpha")
    store.write_json("make/k1/manifest.json", forged)

    assert store.find("make/k1") is None
    assert len(store.children("make/k1/quarantine")) == 1


def test_changed_bytes_of_the_same_size_are_noticed_when_read(store: Store) -> None:
    artifact = committed(store)
    damage(artifact, "deep/b.txt", b"bete")
    found = store.find("make/k1")
    assert found is not None
    assert found.path("a.txt").read_text() == "alpha"
    with pytest.raises(DataError, match=r"deep/b\.txt was committed with SHA-256 .* run the DAG again"):
        found.folder("deep")
    assert store.find("make/k1") is None


def test_an_unknown_file_or_folder_is_named_with_those_that_are_there(store: Store) -> None:
    artifact = committed(store)
    with pytest.raises(DataError, match=r"no file c\.txt; it holds a\.txt, deep/b\.txt"):
        artifact.path("c.txt")
    with pytest.raises(DataError, match=r"no folder dee; it holds a\.txt, deep/b\.txt"):
        artifact.folder("dee")


def test_a_second_commit_gives_way_to_the_first(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    first = committed(store)
    again = committed(store)
    assert again == first
    assert {name.split("/")[0] for name in store.backend.sizes("make/k1/attempts")} == {first.manifest["attempt"]}
    other = committed(store, **{"a.txt": "different"})
    assert other == first
    assert "is not deterministic" in caplog.text
    (failure,) = store.children("make/k1/failures")
    assert store.read_json(f"make/k1/failures/{failure}")["kind"] == "non-determinism"


def test_a_commit_over_a_broken_artifact_wins(store: Store) -> None:
    damage(committed(store), "a.txt", None)
    fresh = committed(store)
    assert fresh.path("a.txt").read_text() == "alpha"


def test_a_version_that_was_replaced_is_still_found_by_its_digest(store: Store) -> None:
    first = committed(store)
    store.quarantine("make/k1", "forced")
    second = committed(store, **{"a.txt": "different"})
    assert store.version_at(first.prefix, second.digest) == second
    older = store.version_at(first.prefix, first.digest)
    assert older is not None
    assert older.path("a.txt").read_text() == "alpha"
    damage(first, "a.txt", None)
    assert store.version_at(first.prefix, first.digest) is None


def test_removal_takes_the_manifest_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    committed(store)
    deleted: list[str] = []
    kind = type(store.backend)
    real = kind.delete
    monkeypatch.setattr(kind, "delete", lambda self, name: (deleted.append(name), real(self, name)))
    store.remove("make/k1")
    assert deleted == ["make/k1/manifest.json", "make/k1"]
    assert store.backend.sizes("make") == {}


def test_json_files_are_replaced_or_created_once(store: Store) -> None:
    assert store.read_json("runs/a.json") is None
    store.write_json("runs/a.json", {"n": 1})
    assert not store.create_json("runs/a.json", {"n": 2})
    assert store.read_json("runs/a.json") == {"n": 1}


def test_foreign_uris_are_refused(store: Store) -> None:
    with pytest.raises(UserError, match="is not in the store"):
        store.artifact_at("/elsewhere/make/k1")
    with pytest.raises(UserError, match="scheme gopher; known are s3 and file"):
        Store.open("gopher://x/y")


def test_a_file_uri_and_a_path_are_the_same_store(tmp_path: Path) -> None:
    assert Store.open(f"file://{tmp_path}").uri == Store.open(str(tmp_path)).uri == str(tmp_path)


def test_every_setting_of_an_access_reaches_the_client(tmp_path: Path) -> None:
    given = S3Access(
        endpoint="http://127.0.0.1:1", region="eu-west-3", addressing_style="virtual", cache=str(tmp_path / "cache")
    )
    backend = S3Backend("b", "p", given)
    client = backend.client
    assert (client.meta.endpoint_url, client.meta.region_name) == ("http://127.0.0.1:1", "eu-west-3")
    assert client.meta.config.s3["addressing_style"] == "virtual"
    assert backend.scratch("x").is_relative_to(tmp_path / "cache")


def test_a_file_system_without_hard_links_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(UserError, match="cannot make hard links"):
        FolderBackend(tmp_path).create("a/manifest.json", b"{}")
    assert list((tmp_path / "a").iterdir()) == []


def test_canonical_json_is_one_form_and_refuses_what_is_not_finite() -> None:
    assert canonical_json({"b": [1, "é"], "a": None}) == '{"a":null,"b":[1,"é"]}'.encode()
    assert canonical_json({"x": 1}) != canonical_json({"x": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"x": float("nan")})


def test_the_manifest_is_readable_by_people(store: Store) -> None:
    text = (store.backend.read(f"{committed(store).prefix}/manifest.json") or b"").decode()
    assert json.loads(text)["files"][0] == {
        "name": "a.txt",
        "size": 5,
        "sha256": json.loads(text)["files"][0]["sha256"],
    }
    assert text.count("\n") > 10
