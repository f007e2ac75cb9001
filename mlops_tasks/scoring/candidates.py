"""Candidate solutions with their rewards, as a table.

Owns its format and what a reward is worth within its problem. Making candidates and rewards is `rewards`', learning from them
`fitting`'s. No model is loaded here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlops_tasks.data.problems import Problem
from mlops_tasks.errors import DataError

Mistake = Literal["operator", "constant", "line"]
Origin = Literal["reference", "sampled"] | Mistake
ORIGINS: tuple[Origin, ...] = ("reference", "sampled", *get_args(Mistake))

_SCHEMA = pa.schema(
    [
        pa.field("problem_id", pa.string(), nullable=False),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("solution", pa.string(), nullable=False),
        pa.field("reward", pa.float64(), nullable=False),
        pa.field("standardised", pa.float64(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Rewarded:
    """A candidate solution and what it earned."""

    problem_id: str
    origin: Origin
    """`reference`: the problem's own; `sampled`: the base model's; else the mistake that was put into the problem's own."""
    solution: str
    """A whole program."""
    reward: float
    """The share of the problem's tests that it passes, or what a reward model says."""
    standardised: float
    """R: the reward in deviations from the mean of the problem's candidates; 0 for all where they are equal."""


def as_problem(problem: Problem, solution: str) -> Problem:
    """A candidate is its problem with another solution."""
    return problem.model_copy(update={"solution": solution})


def standardised(rewards: Sequence[float]) -> list[float]:
    """Rewards of one problem's candidates as (R - mean)/deviation, and 0 for all where they are equal: such a problem
    teaches nothing.

    Example:
        1, 0, 0, 1 give 1, -1, -1, 1.
    """
    values = np.array(rewards, dtype=np.float64)
    if values.max() == values.min():
        return [0.0] * len(rewards)
    scaled: list[float] = ((values - values.mean()) / values.std()).tolist()
    return scaled


def telling(rows: Iterable[Rewarded]) -> frozenset[str]:
    """Ids of the problems that teach something: their candidates have different rewards."""
    return frozenset(row.problem_id for row in rows if row.standardised)


def write_rewards(path: Path, rows: Sequence[Rewarded]) -> None:
    """Write a table, in the given order; the same rows give the same bytes."""
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], schema=_SCHEMA), path, compression="zstd")


def read_rewards(path: Path) -> list[Rewarded]:
    """Read what `write_rewards` wrote.

    Raises:
        DataError: the table has other columns.
    """
    table = pq.read_table(path)
    if not table.schema.equals(_SCHEMA):
        raise DataError(
            f"{path} has the columns {table.schema.names} instead of {_SCHEMA.names}, or other types. "
            "Reward again with this version."
        )
    return [Rewarded(**row) for row in table.to_pylist()]
