"""Checkpoints: found when whole, passed over when broken, kept as long as needed."""

from __future__ import annotations

import errno
import io
from pathlib import Path
from typing import Any

import pytest
import torch

from mlops_tasks import checkpoint, lease
from mlops_tasks.errors import DataError, Unavailable
from mlops_tasks.store import Store
from mlops_tasks.store.backend import FolderBackend

PREFIX = "train/k"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path))


def save(store: Store, *steps: int, best: int | None = None) -> None:
    for step in steps:
        checkpoint.save(store, PREFIX, state(step), step=step, best_step=best, token=1)


def state(step: int) -> dict[str, Any]:
    return {
        "model": {"w": torch.full((2,), float(step))},
        "progress": {"step": step, "curves": ["a", "b"], "best": None},
    }


def file_of(store: Store, step: int) -> Path:
    artifact = store.find(f"{PREFIX}/checkpoints/step-{step:08d}")
    assert artifact
    return artifact.path("state.pt")


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
    assert found["model"]["w"].tolist() == [7.0, 7.0]
    assert found["progress"] == state(7)["progress"]


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
    (store.begin(f"{PREFIX}/checkpoints/step-00000004").folder / "state.pt").write_bytes(b"never committed")
    assert checkpoint.newest(store, PREFIX) == 1


def test_a_step_beyond_the_latest_was_left_by_a_process_that_lost_its_lease_and_is_passed_over(store: Store) -> None:
    save(store, 1, 2)
    lease.point(store, PREFIX, {"step": 1}, token=2)  # the next holder went on from the first one
    assert checkpoint.steps(store, PREFIX) == [1]
    assert checkpoint.newest(store, PREFIX) == 1


def test_the_latest_is_found_where_the_listing_is_behind(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    save(store, 1, 2)
    monkeypatch.setattr(FolderBackend, "children", lambda self, name: ["step-00000001"])
    assert checkpoint.steps(store, PREFIX) == [1, 2]


def test_broken_one_is_written_anew(store: Store) -> None:
    save(store, 5)
    file_of(store, 5).write_bytes(b"short")
    assert checkpoint.newest(store, PREFIX) is None
    save(store, 5)
    assert checkpoint.load(store, PREFIX, 5)["progress"]["step"] == 5


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
