"""What a score is, scorer by scorer, and the table in which raw values are kept.

Owns the excess, the placebos and the format of `scores.parquet`. Leaves running a model to `shards`, and what a score weighs
to `weights`. No torch is loaded here: merging shards needs none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mlops_tasks.data.problems import natural_order
from mlops_tasks.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

V = TypeVar("V", "Tensor", "npt.NDArray[Any]")

_SCHEMA = pa.schema(
    [
        pa.field("problem_id", pa.string(), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("is_target", pa.list_(pa.bool_()), nullable=False),
        pa.field("reference_nats", pa.list_(pa.float32())),
        pa.field("base_nats", pa.list_(pa.float32())),
        pa.field("score", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True, eq=False)
class ScoreRow:
    """Raw values of one problem, one a token of the whole example; 0 where there is no target."""

    token_ids: npt.NDArray[np.int32]
    """The example, to be held against the tokens that a reader has."""
    is_target: npt.NDArray[np.bool_]
    reference_nats: npt.NDArray[np.float32] | None = None
    """rho-1: the reference's loss of token j, given the tokens before it."""
    base_nats: npt.NDArray[np.float32] | None = None
    """Static rho-1: the base model's."""
    score: npt.NDArray[np.float32] | None = None
    """Placebos and critic: the score itself."""

    @property
    def is_scored(self) -> bool:
        """Whether some token is scored: of a critic's rows those that it has read, for it scores all others 0."""
        return self.score is not None and bool(self.score.any())


NOISE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 2.5e-3}
"""By the student's precision; relative to the losses and, below one nat, absolute: some twenty times what was measured."""


def excess(
    student_nats: V,
    reference_nats: V,
    kind: Literal["signed", "abs", "relative"],
    precision: Literal["float32", "bfloat16", "float16"] = "float32",
) -> V:
    """How much worse the student is than the reference, token by token.

    A difference within floating-point noise is 0.

    Args:
        student_nats: a ≥ 0, the student's losses.
        reference_nats: r ≥ 0, the reference's losses of the same tokens and prefixes.
        precision: of the student's matrix products; the reference's are float32.
        kind: `signed` is a - r, `abs` is |a - r|, `relative` is (a - r)/(a + r), and 0 where both are 0.

    Reference:
        arXiv 2404.07965, equation 3, is `signed`; `abs` also rewards tokens on which the student is already better.
    """
    score: V = student_nats - reference_nats
    # One model gives one token two losses that differ in the last bits when it is packed in another way. Standardised, such
    # noise would be the whole score of a document on which student and reference agree.
    score = score * (abs(score) > NOISE[precision] * (1 + student_nats + reference_nats))
    if kind == "abs":
        score = abs(score)
    elif kind == "relative":
        total = student_nats + reference_nats
        score = score / (total + (total == 0))
    return score


def shuffled(
    scores: npt.NDArray[np.float32], is_target: npt.NDArray[np.bool_], rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Placebo: the same scores on other targets of the document."""
    values = np.zeros_like(scores)
    values[is_target] = rng.permutation(scores[is_target])
    return values


def random(is_target: npt.NDArray[np.bool_], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Placebo: independent of everything."""
    values = np.zeros(len(is_target), dtype=np.float32)
    values[is_target] = rng.random(is_target.sum(), dtype=np.float32)
    return values


def position(is_target: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Placebo: the first target scores highest, each further one 1 less."""
    return np.where(is_target, -(np.cumsum(is_target) - 1.0), 0).astype(np.float32)


def generator_of(seed: int, problem_id: str) -> np.random.Generator:
    """Randomness of one problem: the same in whichever shard it is."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{seed}:{problem_id}".encode()).digest()))


def write_scores(path: Path, rows: Mapping[str, ScoreRow]) -> None:
    """Write a table, in order of id; the same rows give the same bytes."""
    ids = sorted(rows, key=natural_order)
    ordered = [rows[problem_id] for problem_id in ids]
    columns = [_column([getattr(row, field.name) for row in ordered], field.type) for field in list(_SCHEMA)[1:]]
    table = pa.Table.from_arrays([pa.array(ids, pa.string()), *columns], schema=_SCHEMA)
    pq.write_table(table, path, compression="zstd")


def read_scores(path: Path) -> dict[str, ScoreRow]:
    """Read what `write_scores` wrote, by problem id.

    Raises:
        DataError: the table has other columns.
    """
    table = pq.read_table(path).combine_chunks()
    if not table.schema.equals(_SCHEMA):
        raise DataError(
            f"{path} has the columns {table.schema.names} instead of {_SCHEMA.names}, or other types. "
            "Score again with this version."
        )
    columns = [_values(table.column(name)) for name in _SCHEMA.names[1:]]
    ids = table.column("problem_id").to_pylist()
    return {problem_id: ScoreRow(*values) for problem_id, *values in zip(ids, *columns, strict=True)}


def _column(values: Sequence[npt.NDArray[Any] | None], kind: pa.ListType) -> pa.Array:
    present = [each for each in values if each is not None]
    if not present:
        return pa.nulls(len(values), kind)
    assert len(present) == len(values), "a column is there for all problems or for none"
    offsets = np.cumsum([0, *(len(each) for each in present)])
    return pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.array(np.concatenate(present), kind.value_type), type=kind
    )


def _values(column: pa.ChunkedArray) -> Sequence[npt.NDArray[Any] | None]:
    if column.null_count == len(column):
        return [None] * len(column)
    array = column.chunk(0)
    return np.split(array.flatten().to_numpy(zero_copy_only=False), np.cumsum(array.value_lengths().to_numpy())[:-1])
