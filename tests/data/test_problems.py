"""The table of problems: order, round trip, determinism, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from mlops_tasks.config.evaluation import EvaluationSet
from mlops_tasks.data.problems import Problem, chosen, in_order, read_problems, write_problems
from mlops_tasks.errors import DataError, UserError


def problem(problem_id: str = "7", **changes: Any) -> Problem:
    values: dict[str, Any] = {
        "id": problem_id,
        "prompt": "Write a function to add two numbers.",
        "solution": "def add(a, b):\n    return a + b",
        "tests": ("assert add(1, 2) == 3", "assert add(0, 0) == 0"),
        "setup": "",
        "entry_point": "add",
        "split": "train",
        "source": "own",
        "licence": "unknown",
    }
    return Problem.model_validate(values | changes)


@pytest.mark.parametrize(
    ("skip", "limit", "ids"), [(0, None, "123"), (1, None, "23"), (1, 1, "2"), (0, 9, "123"), (2, 5, "3")]
)
def test_an_evaluation_set_is_a_stretch_of_a_split(skip: int, limit: int | None, ids: str) -> None:
    split = [problem(id) for id in ("1", "2", "3")]
    part = EvaluationSet(split="test", skip=skip, limit=limit)
    assert [one.id for one in chosen(split, part)] == [*ids]


def test_an_empty_evaluation_set_is_refused() -> None:
    with pytest.raises(UserError, match=r"split test, skip 3, limit None\) is empty: the split has 3 problems"):
        chosen([problem(id) for id in ("1", "2", "3")], EvaluationSet(split="test", skip=3))


def test_problems_come_back_as_they_were_in_order_of_number(tmp_path: Path) -> None:
    ten, nine = problem("10", prompt='Zähle \'ß\' \\ """ \n x'), problem("9", setup="root = 1")
    write_problems(tmp_path / "train.parquet", [ten, nine])
    assert read_problems(tmp_path / "train.parquet") == [nine, ten]
    assert in_order([ten, nine]) == [nine, ten]


def test_no_problems_make_an_empty_table(tmp_path: Path) -> None:
    write_problems(tmp_path / "prompt.parquet", [])
    assert read_problems(tmp_path / "prompt.parquet") == []


def test_the_same_problems_make_the_same_bytes(tmp_path: Path) -> None:
    write_problems(tmp_path / "one", [problem("1"), problem("2")])
    write_problems(tmp_path / "two", [problem("2"), problem("1")])
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_table_with_other_columns_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["1"]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"has the columns \['id'\] instead of"):
        read_problems(tmp_path / "train.parquet")


def test_a_row_that_breaks_the_schema_is_refused(tmp_path: Path) -> None:
    write_problems(tmp_path / "train.parquet", [problem()])
    table = pq.read_table(tmp_path / "train.parquet")
    spoilt = table.set_column(table.schema.get_field_index("split"), table.schema.field("split"), pa.array(["holdout"]))
    pq.write_table(spoilt, tmp_path / "train.parquet")
    with pytest.raises(DataError, match="holds a row that is no problem"):
        read_problems(tmp_path / "train.parquet")


@pytest.mark.parametrize("changes", [{"tests": ()}, {"prompt": ""}, {"id": " 7"}, {"split": "holdout"}, {"extra": 1}])
def test_a_problem_without_tests_text_number_or_known_split_cannot_be_made(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(changes))):
        problem(**changes)
