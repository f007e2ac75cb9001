"""Two models on the same problems: who solves what, and whether the difference may be chance.

Owns when two scores may be compared at all, and what a comparison holds. The estimators are `metrics`', whether a difference is
enough for production is `registry`'s, the page is `report.comparison`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import pyarrow.parquet as pq

from mlops_tasks.data.problems import natural_order
from mlops_tasks.errors import DataError
from mlops_tasks.evaluation.metrics import Interval, McNemar, mcnemar, paired_bootstrap
from mlops_tasks.store import Artifact

CONFIDENCE = 0.95
_NUM_RESAMPLES = 10_000
_SEED = 0
_ASKED_ALIKE = ("protocol", "prompt_sha256", "num_problems", "num_samples", "temperature", "top_p", "programs_may")


@dataclass(frozen=True)
class Comparison:
    """Two judged models, problem by problem."""

    problem_ids: Sequence[str]
    """Judged of both."""
    a: float
    """Mean pass@1 over these problems."""
    b: float
    interval: Interval
    """Of a - b, by resampling the problems."""
    mcnemar: McNemar
    """Of the first program of each problem, as the flips are."""
    only_a: Sequence[str]
    """Problems that a's first program solves and b's does not."""
    only_b: Sequence[str]
    differences: Sequence[str]
    """In what the two were not asked alike; empty unless that was allowed."""


def compare(a: Artifact, b: Artifact, *, allow_differences: bool = False) -> Comparison:
    """Compare two artifacts of `judge`.

    Args:
        allow_differences: compare on the problems that both have, even if they were not asked alike.

    Raises:
        DataError: they were not asked alike, or share no problem.
    """
    differences = asked_differently(a, b)
    if differences and not allow_differences:
        raise not_alike(a, b, differences)
    ours, theirs = passes(a), passes(b)
    ids = sorted(ours.keys() & theirs.keys(), key=natural_order)
    if not ids:
        raise DataError(f"{a.uri} and {b.uri} share no problem, so there is nothing to compare. Judge both on one set.")
    rates = [fmean(ours[id]) for id in ids], [fmean(theirs[id]) for id in ids]
    firsts = [ours[id][0] for id in ids], [theirs[id][0] for id in ids]
    pairs = list(zip(ids, *firsts, strict=True))
    return Comparison(
        problem_ids=ids,
        a=fmean(rates[0]),
        b=fmean(rates[1]),
        interval=paired_bootstrap(*rates, confidence=CONFIDENCE, num_resamples=_NUM_RESAMPLES, seed=_SEED),
        mcnemar=mcnemar(*firsts),
        only_a=[id for id, first, other in pairs if first and not other],
        only_b=[id for id, first, other in pairs if other and not first],
        differences=differences,
    )


def asked_differently(a: Artifact, b: Artifact) -> list[str]:
    """In what two artifacts of `judge` differ that makes their scores two different measures."""
    found = [
        f"{name} is {a.metrics.get(name)} in one and {b.metrics.get(name)} in the other"
        for name in _ASKED_ALIKE
        if a.metrics.get(name) != b.metrics.get(name)
    ]
    only = sorted(passes(a).keys() ^ passes(b).keys())
    return [*found, *([f"{len(only)} problems are in one only: {', '.join(only[:5])}"] if only else [])]


def not_alike(a: Artifact, b: Artifact, differences: Sequence[str]) -> DataError:
    """What is said of two scores that are not of the same questions."""
    return DataError(
        f"{a.uri} and {b.uri} were not measured alike: {'; '.join(differences)}. Judge both again under one recipe, "
        "on machines that confine programs alike."
    )


def passes(judged: Artifact) -> dict[str, list[bool]]:
    """Of each problem whether its programs passed, in order of sample."""
    table = pq.read_table(judged.path("outcomes.parquet"), columns=["problem_id", "sample", "passed"])
    found: dict[str, list[bool]] = {}
    for row in sorted(table.to_pylist(), key=lambda row: int(row["sample"])):
        found.setdefault(row["problem_id"], []).append(row["passed"])
    return found
