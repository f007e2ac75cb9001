"""What each scorer's score is, and the table of raw values."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mlops_tasks.config.learning import SelectWeights, SoftWeights
from mlops_tasks.errors import DataError
from mlops_tasks.scoring.scorers import (
    ScoreRow,
    excess,
    generator_of,
    position,
    random,
    read_scores,
    shuffled,
    write_scores,
)
from mlops_tasks.scoring.weights import document_weights

STUDENT, REFERENCE = [3.0, 1.0, 0.0, 2.0], [1.0, 3.0, 0.0, 2.0]
IS_TARGET = np.array([0, 0, 1, 1, 1, 1, 1, 0], dtype=np.bool_)


def test_excess_of_each_kind_is_as_worked_by_hand() -> None:
    student, reference = torch.tensor(STUDENT), torch.tensor(REFERENCE)
    assert excess(student, reference, "signed").tolist() == [2, -2, 0, 0]
    assert excess(student, reference, "abs").tolist() == [2, 2, 0, 0]
    assert excess(student, reference, "relative").tolist() == [0.5, -0.5, 0, 0]


def test_excess_of_arrays_is_that_of_tensors() -> None:
    student, reference = np.array(STUDENT, np.float32), np.array(REFERENCE, np.float32)
    assert excess(student, reference, "relative").tolist() == [0.5, -0.5, 0, 0]
    assert excess(student, reference, "signed").dtype == np.float32


@pytest.mark.parametrize("kind", ["signed", "abs", "relative"])
@pytest.mark.parametrize("weighting", [SoftWeights(kind="soft"), SelectWeights(kind="select")])
def test_a_student_equal_to_its_reference_weighs_one_everywhere(
    kind: str, weighting: SoftWeights | SelectWeights
) -> None:
    nats = torch.rand(9)
    assert document_weights(excess(nats, nats.clone(), kind), weighting).tolist() == [1.0] * 9  # type: ignore[arg-type]


def test_noise_of_bfloat16_is_no_score() -> None:
    reference = torch.tensor([0.5, 3.0, 9.0, 2.0])
    student = reference + torch.tensor([0.002, -0.02, 0.1, 0.5])
    assert excess(student, reference, "signed", "bfloat16").tolist() == pytest.approx([0, 0, 0, 0.5])
    assert all(excess(student, reference, "signed", "float32") != 0)


def test_abs_and_signed_differ_on_a_token_where_the_student_is_better() -> None:
    half = SelectWeights(kind="select", top_share=0.25)
    student, reference = torch.tensor([3.0, 1.0, 0.0, 2.0]), torch.tensor([1.0, 9.0, 0.0, 2.0])
    assert document_weights(excess(student, reference, "signed"), half).tolist() == [4, 0, 0, 0]
    assert document_weights(excess(student, reference, "abs"), half).tolist() == [0, 4, 0, 0]


def test_position_scores_the_first_target_highest() -> None:
    assert position(IS_TARGET).tolist() == [0, 0, 0, -1, -2, -3, -4, 0]


def test_random_scores_targets_only_and_depends_on_seed_and_id_only() -> None:
    scores = random(IS_TARGET, generator_of(1, "7"))
    assert scores.tolist() == random(IS_TARGET, generator_of(1, "7")).tolist()
    assert (scores[~IS_TARGET] == 0).all()
    assert len(set(scores[IS_TARGET])) == 5
    assert not np.array_equal(scores, random(IS_TARGET, generator_of(2, "7")))
    assert not np.array_equal(scores, random(IS_TARGET, generator_of(1, "8")))


def test_shuffled_keeps_the_scores_and_moves_them_within_the_targets() -> None:
    scores = np.arange(8, dtype=np.float32) + 1
    moved = shuffled(scores, IS_TARGET, generator_of(0, "7"))
    assert sorted(moved[IS_TARGET]) == [3, 4, 5, 6, 7]
    assert moved[IS_TARGET].tolist() != [3, 4, 5, 6, 7]
    assert (moved[~IS_TARGET] == 0).all()


def row(length: int, *, with_base: bool = False) -> ScoreRow:
    values: npt.NDArray[np.float32] = np.linspace(0, 1, length, dtype=np.float32)
    is_target = np.arange(length) > 1
    return ScoreRow(
        np.arange(length, dtype=np.int32), is_target, values, (values / 2).astype(np.float32) if with_base else None
    )


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = {"10": row(4, with_base=True), "9": row(7, with_base=True)}
    write_scores(tmp_path / "scores.parquet", rows)
    read = read_scores(tmp_path / "scores.parquet")
    assert list(read) == ["9", "10"]
    for problem_id, expected in rows.items():
        found = read[problem_id]
        assert found.score is None
        for name in ("token_ids", "is_target", "reference_nats", "base_nats"):
            assert getattr(found, name).dtype == getattr(expected, name).dtype
            assert getattr(found, name).tolist() == getattr(expected, name).tolist()


def test_absent_columns_are_null(tmp_path: Path) -> None:
    write_scores(tmp_path / "scores.parquet", {"1": row(3)})
    table = pq.read_table(tmp_path / "scores.parquet")
    assert table.column("base_nats").null_count == table.column("score").null_count == 1
    assert table.column("reference_nats").to_pylist() == [[0, 0.5, 1]]
    assert read_scores(tmp_path / "scores.parquet")["1"].base_nats is None


def test_the_order_of_rows_changes_no_byte(tmp_path: Path) -> None:
    write_scores(tmp_path / "one", {"2": row(3), "11": row(5)})
    write_scores(tmp_path / "two", {"11": row(5), "2": row(3)})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_ids_that_are_no_numbers_are_ordered_by_the_numbers_in_them(tmp_path: Path) -> None:
    write_scores(tmp_path / "scores.parquet", {name: row(3) for name in ("HumanEval/10", "HumanEval/9", "1_A. Sum")})
    assert list(read_scores(tmp_path / "scores.parquet")) == ["1_A. Sum", "HumanEval/9", "HumanEval/10"]


def test_an_empty_table_is_a_table(tmp_path: Path) -> None:
    write_scores(tmp_path / "scores.parquet", {})
    assert read_scores(tmp_path / "scores.parquet") == {}


def test_another_table_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"problem_id": ["1"]}), tmp_path / "scores.parquet")
    with pytest.raises(DataError, match=r"has the columns \['problem_id'\] instead of .*Score again"):
        read_scores(tmp_path / "scores.parquet")


def test_a_difference_in_the_last_bits_is_no_score() -> None:
    reference = np.array([0.0001, 2.0, 12.0, 3.0], dtype=np.float32)
    student = reference + np.array([4e-7, -1e-6, 4e-6, 0.01], dtype=np.float32)
    kinds: tuple[Literal["signed", "abs", "relative"], ...] = ("signed", "abs", "relative")
    for kind in kinds:
        assert excess(student, reference, kind)[:3].tolist() == [0.0, 0.0, 0.0]
        assert excess(student, reference, kind)[3] > 0
