"""The merged table holds every training problem once, whatever the shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops_tasks.config.environment import Environment
from mlops_tasks.data.problems import Problem, write_problems
from mlops_tasks.errors import DataError
from mlops_tasks.scoring.merging import score
from mlops_tasks.scoring.scorers import ScoreRow, read_scores, write_scores
from mlops_tasks.stage import Attempt
from mlops_tasks.store import Artifact, Store


def name(number: int) -> str:
    return f"HumanEval/{number}"


def problem(number: int) -> Problem:
    return Problem(
        id=name(number), prompt="Add.", solution="def add(a, b):\n    return a + b\n", tests=("assert add(1, 2) == 3",),
        entry_point="add", split="train", source="test", licence="Apache-2.0",
    )  # fmt: skip


def row(number: int) -> ScoreRow:
    is_target = np.array([False, True, True])
    return ScoreRow(np.full(3, number, np.int32), is_target, np.array([0, number, number + 1], np.float32))


@pytest.fixture
def merge(environment: Environment, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Merge shards, given as lists of problem numbers, for the training problems 7 to 11."""
    store = Store.open(environment.store)

    def committed(prefix: str, write: Callable[[Path], None], metrics: dict[str, Any]) -> Artifact:
        draft = store.begin(prefix)
        write(draft.folder)
        return store.commit(draft, {"metrics": metrics})

    def run(*shards: list[int], too_long: tuple[int, ...] = ()) -> dict[str, Any]:
        def write_shard(numbers: list[int]) -> Callable[[Path], None]:
            return lambda folder: write_scores(folder / "scores.parquet", {name(n): row(n) for n in numbers})

        inputs = {
            f"shard{i}": committed(
                f"shard/{i}", write_shard(numbers), {"too_long": [name(n) for n in too_long] if i == 0 else []}
            )
            for i, numbers in enumerate(shards)
        }
        problems = [problem(n) for n in range(7, 12)]
        inputs["data"] = committed("data", lambda folder: write_problems(folder / "train.parquet", problems), {})
        return score(Attempt({}, inputs, tmp_path, environment, store, "key", "score/key"))

    return run


def test_shards_become_one_table_in_order_of_id(merge: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    metrics = merge([7, 10], [8], [], too_long=(11, 9))
    metrics_of_the_rest = {"num_problems": 3, "num_too_long": 2, "too_long": [name(9), name(11)], "num_targets": 6}
    # Nats of problem n are n and n + 1.
    assert metrics == {**metrics_of_the_rest, "mean_reference_nats": 53 / 6}
    assert list(read_scores(tmp_path / "scores.parquet")) == [name(7), name(8), name(10)]


def test_a_missing_problem_is_an_error(merge: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(
        DataError,
        match=r"2 training problems of .*data are missing from the shards, the first are HumanEval/9, HumanEval/11\. Run",
    ):
        merge([7, 8], [10])


def test_a_problem_that_is_there_twice_is_an_error(merge: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(DataError, match=r"1 training problems .* there twice, .* first are HumanEval/8"):
        merge([7, 8, 9], [8, 10, 11])


def test_a_problem_that_the_data_lacks_is_an_error(merge: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(DataError, match="unknown to the data, in the shards, the first are HumanEval/12"):
        merge([7, 8, 9], [10, 11, 12])
