"""Rows of a stage under way: what is put away is found again, whole, by whoever comes next."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from mlops_tasks import parts as module
from mlops_tasks.errors import Unavailable
from mlops_tasks.parts import Parts
from mlops_tasks.store import Store

SCHEMA = pa.schema({"id": pa.string(), "n": pa.int32()})
PREFIX = "generate/k"


def parts_of(store: Store, token: int = 0) -> Parts:
    return Parts(store, PREFIX, SCHEMA, identity=["id"], token=token)


def rows(*numbers: int) -> list[dict[str, object]]:
    return [{"id": str(number), "n": number} for number in numbers]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_PARTS", 0.0)


@pytest.mark.usefixtures("at_once")
def test_rows_that_were_put_away_are_found_by_the_next_attempt_which_adds_its_own(store: Store) -> None:
    first = parts_of(store)
    assert first.read() == []
    for row in rows(1, 2):
        first.add(row)
    second = parts_of(store)
    assert second.read() == rows(1, 2)
    second.add(rows(3)[0])
    assert parts_of(store).read() == rows(1, 2, 3)


def test_rows_wait_for_others_so_that_parts_are_few(store: Store) -> None:
    parts = parts_of(store)
    for row in rows(1, 2):
        parts.add(row)
    assert store.children(f"{PREFIX}/checkpoints") == []


@pytest.mark.usefixtures("at_once")
def test_a_broken_part_is_made_anew_and_the_others_count(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    parts = parts_of(store)
    for row in rows(1, 2, 3):
        parts.add(row)
    [cut] = (tmp_path / "store" / PREFIX / "checkpoints" / "rows-00000001-0").glob("attempts/*/rows.parquet")
    cut.write_bytes(cut.read_bytes()[:-5])
    [changed] = (tmp_path / "store" / PREFIX / "checkpoints" / "rows-00000002-0").glob("attempts/*/rows.parquet")
    changed.write_bytes(changed.read_bytes().replace(b"PAR1", b"PAR2"))
    after = parts_of(store)
    assert after.read() == rows(1)
    after.add(rows(4)[0])
    assert parts_of(store).read() == rows(1, 4)


@pytest.mark.usefixtures("at_once")
def test_a_process_that_was_taken_for_dead_puts_nothing_away(store: Store) -> None:
    late = parts_of(store, token=1)
    store.backend.create(f"{PREFIX}/lease.json", json.dumps({"holder": "other", "token": 2, "beat": 0}).encode())
    with pytest.raises(Unavailable, match="has taken over"):
        late.add(rows(1)[0])
    assert parts_of(store).read() == []


@pytest.mark.usefixtures("at_once")
def test_rows_of_a_process_that_was_taken_for_dead_and_of_its_successor_all_count_once(store: Store) -> None:
    late, successor = parts_of(store, token=1), parts_of(store, token=2)
    for parts, number in ((late, 1), (successor, 2), (successor, 1), (late, 3)):  # both write parts 0 and 1
        parts.add(rows(number)[0])
    assert sorted(row["n"] for row in parts_of(store).read()) == [1, 2, 3]


@pytest.mark.usefixtures("at_once")
def test_what_else_lies_there_is_left_alone(store: Store) -> None:
    for name in ("latest.json", "rows-old/rows.parquet", "rows-1-1/rows.parquet", "step-00000001/manifest.json"):
        store.backend.write(f"{PREFIX}/checkpoints/{name}", b"{}")
    parts = parts_of(store)
    assert parts.read() == []
    parts.add(rows(1)[0])
    assert parts_of(store).read() == rows(1)
