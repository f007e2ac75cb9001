"""Checkpoints: found when whole, passed over when broken, kept as long as needed."""

from __future__ import annotations

import errno
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import boto3
import pytest
import torch
from s3_server import BUCKET, S3Server

from mlops_tasks import checkpoint, lease
from mlops_tasks.checkpoint import Part, Saved, Saver
from mlops_tasks.config.environment import S3Access
from mlops_tasks.errors import DataError, Unavailable
from mlops_tasks.store import Store
from mlops_tasks.store.backend import FolderBackend
from mlops_tasks.store.s3 import CHECKPOINT_TAG

PREFIX = "train/k"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path))


def save(store: Store, *steps: int, best: int | None = None) -> None:
    for step in steps:
        save_part(store, state(step), step=step, best=best)


def save_part(store: Store, part: Part, *, step: int = 1, best: int | None = None, keep_last: int = 9) -> None:
    with Saver(store, PREFIX, token=1, keep_last=keep_last) as saver:
        saver.begin(part, step=step, best_step=best)
        saver.wait()


def state(step: int) -> Part:
    progress = {"step": step, "curves": ["a", "b"], "best": None}
    return Part({"w": (0, torch.full((2,), float(step)))}, {"progress": progress})


def file_of(store: Store, step: int) -> Path:
    artifact = store.find(f"{PREFIX}/checkpoints/step-{step:08d}")
    assert artifact
    return artifact.path("rank-00000.pt")


class Full(io.FileIO):
    """A file on a disk without room."""

    def write(self, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full_is_said_to_be_full(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch's own writer would tell of an unexpected position.
    monkeypatch.setattr(Path, "open", lambda self, mode="r": Full(str(self), mode.replace("b", "")))
    with pytest.raises(Unavailable, match="is full"):
        save(store, 1)
    assert checkpoint.steps(store, PREFIX) == []


def test_state_comes_back_as_it_was(store: Store) -> None:
    save(store, 7)
    found = checkpoint.load(store, PREFIX, 7)
    assert found.names == ["w"]
    assert found.rows("w").tolist() == [7.0, 7.0]
    assert found.rest == state(7).rest


def test_rows_are_put_together_from_the_files_that_have_them(store: Store) -> None:
    draft = store.begin(f"{PREFIX}/checkpoints/step-00000001")
    table = torch.arange(14.0).view(7, 2)
    rows = {}
    for number, (first, end) in enumerate([(0, 3), (3, 6), (6, 7), (7, 7)]):
        with draft.stream(f"rank-{number:05d}.pt") as stream:
            torch.save({"table": table[first:end].clone()}, stream)
        rows[f"rank-{number:05d}.pt"] = {"table": (first, end - first)}
    with draft.stream("index.pt") as stream:
        torch.save({"rows": rows, "scalars": {"count": torch.tensor(5.0)}, "rest": {}}, stream)
    saved = Saved(store.commit(draft, {"step": 1, "best_step": None}))
    assert torch.equal(saved.rows("table"), table)
    for first in range(7):
        for end in range(first, 8):
            assert torch.equal(saved.rows("table", first, end - first), table[first:end])
    assert saved.rows("count").item() == 5


def test_only_files_with_rows_that_are_needed_are_read_and_held_to_their_hashes(store: Store) -> None:
    draft, rows = store.begin(f"{PREFIX}/checkpoints/step-00000001"), {}
    for number in range(3):
        with draft.stream(f"rank-{number:05d}.pt") as stream:
            torch.save({"table": torch.full((2,), float(number))}, stream)
        rows[f"rank-{number:05d}.pt"] = {"table": (2 * number, 2)}
    with draft.stream("index.pt") as stream:
        torch.save({"rows": rows, "scalars": {}, "rest": {}}, stream)
    artifact = store.commit(draft, {"step": 1, "best_step": None})
    broken = artifact.path("rank-00002.pt")
    broken.write_bytes(bytes(len(broken.read_bytes())))
    saved = checkpoint.load(store, PREFIX, 1)
    assert saved.rows("table", 0, 4).tolist() == [0, 0, 1, 1]
    with pytest.raises(DataError, match=r"rank-00002\.pt was committed with"):
        saved.rows("table")


class Slow(FolderBackend):
    """A store that takes a file only when it may."""

    may = threading.Event()

    @contextmanager
    def sink(self, name: str) -> Iterator[BinaryIO]:
        assert self.may.wait(30)
        with super().sink(name) as stream:
            yield stream


def test_the_training_goes_on_while_a_checkpoint_is_saved_and_only_one_is_at_a_time(
    store: Store, tmp_path: Path
) -> None:
    slow = Store(Slow(tmp_path))
    with Saver(slow, PREFIX, token=1, keep_last=9) as saver:
        saver.begin(state(1), step=1, best_step=None)
        saver.check()
        assert checkpoint.steps(store, PREFIX) == []
        threading.Timer(0.2, Slow.may.set).start()
        saver.begin(state(2), step=2, best_step=None)
        assert checkpoint.steps(store, PREFIX)[0] == 1
        saver.wait()
    assert checkpoint.steps(store, PREFIX) == [1, 2]


def check_until_it_fails(saver: Saver) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        saver.check()
        time.sleep(0.01)


def test_a_save_that_failed_is_told_at_the_next_step_and_moves_nothing(store: Store) -> None:
    save(store, 1)
    lease.point(store, PREFIX, {"step": 1}, token=2)
    saver = Saver(store, PREFIX, token=1, keep_last=9)
    saver.begin(state(2), step=2, best_step=None)
    with pytest.raises(Unavailable, match="another process has taken over"), saver:
        check_until_it_fails(saver)
    assert store.read_json(f"{PREFIX}/checkpoints/latest.json") == {"step": 1, "token": 2}
    assert checkpoint.steps(store, PREFIX) == [1]


def test_newest_is_by_step_and_none_without_any(store: Store) -> None:
    assert checkpoint.newest(store, PREFIX) is None
    save(store, 9, 10, 100)
    assert checkpoint.newest(store, PREFIX) == 100
    assert checkpoint.steps(store, PREFIX) == [9, 10, 100]


def test_truncated_changed_and_uncommitted_ones_are_passed_over(store: Store) -> None:
    save(store, 1, 2, 3)
    file_of(store, 3).write_bytes(b"short")
    same_size = file_of(store, 2)
    same_size.write_bytes(bytes(len(same_size.read_bytes())))
    (store.begin(f"{PREFIX}/checkpoints/step-00000004").folder / "rank-00000.pt").write_bytes(b"never committed")
    assert checkpoint.newest(store, PREFIX) == 1


def test_a_step_beyond_the_latest_was_left_by_a_process_that_lost_its_lease_and_is_passed_over(store: Store) -> None:
    save(store, 1, 2)
    lease.point(store, PREFIX, {"step": 1}, token=2)  # the next holder went on from the first one
    assert checkpoint.steps(store, PREFIX) == [1]
    assert checkpoint.newest(store, PREFIX) == 1


def test_a_step_that_was_left_beyond_the_latest_is_written_anew_by_whoever_has_the_lease(store: Store) -> None:
    save(store, 1, 2)
    lease.point(store, PREFIX, {"step": 1}, token=2)
    with Saver(store, PREFIX, token=2, keep_last=9) as saver:
        saver.begin(state(7), step=2, best_step=2)
        saver.wait()
    assert checkpoint.load(store, PREFIX, 2).rows("w").tolist() == [7, 7]
    assert checkpoint.newest(store, PREFIX) == 2


def test_the_latest_is_found_where_the_listing_is_behind(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    save(store, 1, 2)
    monkeypatch.setattr(FolderBackend, "children", lambda self, name: ["step-00000001"])
    assert checkpoint.steps(store, PREFIX) == [1, 2]


def test_broken_one_is_written_anew(store: Store) -> None:
    save(store, 5)
    file_of(store, 5).write_bytes(b"short")
    assert checkpoint.newest(store, PREFIX) is None
    save(store, 5)
    assert checkpoint.load(store, PREFIX, 5).rest["progress"]["step"] == 5


def test_one_whose_best_is_gone_is_of_no_use(store: Store) -> None:
    save(store, 1)
    save(store, 2, best=2)
    save(store, 3, best=2)
    store.remove(f"{PREFIX}/checkpoints/step-00000002")
    assert checkpoint.newest(store, PREFIX) == 1


def test_prune_keeps_the_last_ones_and_the_best_that_each_of_them_needs(store: Store) -> None:
    save(store, 1, 2, best=1)
    save(store, 3, 4, best=2)
    save(store, 5, best=5)
    checkpoint.prune(store, PREFIX, keep_last=2)
    assert checkpoint.steps(store, PREFIX) == [2, 4, 5]


def test_prune_without_a_best_keeps_the_last_ones_only(store: Store) -> None:
    save(store, 1, 2, 3)
    checkpoint.prune(store, PREFIX, keep_last=1)
    assert checkpoint.steps(store, PREFIX) == [3]


def test_loading_one_that_is_not_there_is_an_error(store: Store) -> None:
    with pytest.raises(DataError, match=r"step-00000003 is not whole any more\. Start the task again"):
        checkpoint.load(store, PREFIX, 3)


def test_on_s3_each_object_of_a_checkpoint_has_the_tag_of_the_lifecycle_rule_and_the_model_beside_it_has_none(
    s3: S3Server, tmp_path: Path
) -> None:
    store = Store.open(f"s3://{BUCKET}/tagged", S3Access.model_validate(s3.access(tmp_path)))
    save_part(store, Part({"large": (0, torch.zeros(5 * 2**20))}, {}))  # 20 MiB: more than one part
    draft = store.begin(PREFIX)
    (draft.folder / "model.safetensors").write_bytes(b"weights")
    store.commit(draft, {})

    tags = object_tags(s3, f"tagged/{PREFIX}/")

    assert {name: tag for name, tag in tags.items() if "/checkpoints/" in name and tag != CHECKPOINT_TAG} == {}
    assert {name: tag for name, tag in tags.items() if "/checkpoints/" not in name and tag} == {}
    assert sorted(Path(name).name for name in tags) == [
        "index.pt", "latest.json", "manifest.json", "manifest.json", "model.safetensors", "rank-00000.pt",
    ]  # fmt: skip


def object_tags(s3: S3Server, prefix: str) -> dict[str, str]:
    client = boto3.client("s3", endpoint_url=s3.endpoint)
    names = [entry["Key"] for entry in client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]]
    return {
        name: "&".join(
            f"{tag['Key']}={tag['Value']}" for tag in client.get_object_tagging(Bucket=BUCKET, Key=name)["TagSet"]
        )
        for name in names
    }


def test_the_lifecycle_rule_goes_by_the_tag_that_the_store_writes() -> None:
    stack = (Path(__file__).parents[1] / "terraform/modules/stack/main.tf").read_text()
    key, value = CHECKPOINT_TAG.split("=")
    assert f'checkpoint_tag = {{ {key} = "{value}" }}' in stack
