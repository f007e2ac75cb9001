"""Figures from outcomes: pass@k, its interval, and whether two models differ on the same problems.

Owns the estimators and their intervals, and nothing of where outcomes come from (`judging`) or what a difference decides
(`registry`). Everything here is a pure function of lists of numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from mlops_tasks.errors import DataError, UserError


@dataclass(frozen=True)
class Interval:
    """A difference of two means, a - b, with what resampling says about it."""

    difference: float
    lower_bound: float
    """One-sided: the true difference is above it with the asked confidence."""
    low: float
    """Lower end of the two-sided interval of the same confidence."""
    high: float
    """Upper end of the two-sided interval of the same confidence."""


@dataclass(frozen=True)
class McNemar:
    """The exact test on the problems that only one of two models solves."""

    only_a: int
    only_b: int
    p_value: float
    """Two-sided."""


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased probability that at least one of `k` programs passes, from `c` that passed of `n`.

    1 - C(n-c, k)/C(n, k) as a product, so that no large binomial is formed.

    Raises:
        UserError: fewer samples than k; a number for it would be made up.

    Example:
        n = 3, c = 1, k = 2: of the three pairs two hold the passing program, so 2/3.
    """
    assert 0 <= c <= n, f"{c} of {n} programs passed"
    if not 1 <= k <= n:
        raise UserError(
            f"pass@{k} cannot be estimated from {n} programs a problem: k must be from 1 to the number of samples. "
            f"Set evaluation.num_samples to {k} or more, or leave {k} out of evaluation.k."
        )
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def wilson_interval(share: float, num_problems: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided interval of a mean pass@1 over problems; it is sensible at 0 and at 1, unlike a normal one.

    With several programs a problem it is wider than need be: the mean of n programs varies less than one does.

    Reference:
        Wilson 1927, score interval without continuity correction.
    """
    assert num_problems > 0, "an interval of no problems"
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    shrink = 1 + z * z / num_problems
    centre = (share + z * z / (2 * num_problems)) / shrink
    spread = z / shrink * math.sqrt(share * (1 - share) / num_problems + z * z / (4 * num_problems**2))
    # At 0 and 1 the two terms are equal and rounding may leave the range.
    return max(0.0, centre - spread), min(1.0, centre + spread)


def bits_per_byte(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Bits of all measured solutions over their UTF-8 bytes; None: none was measured.

    Args:
        rows: with `bits` (None: too long for the model) and `num_bytes`.
    """
    measured = [row for row in rows if row["bits"] is not None]
    return sum(row["bits"] for row in measured) / sum(row["num_bytes"] for row in measured) if measured else None


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], *, confidence: float, num_resamples: int, seed: int
) -> Interval:
    """Resample the problems and see how the mean of a - b moves (percentile bootstrap).

    Args:
        a: a score a problem, such as its pass@1, of one model.
        b: the same problems' scores of the other model, in the same order.

    Raises:
        DataError: the two lists cannot be of the same problems.

    Example:
        a = [1, 1, 0], b = [0, 1, 0]: the difference is 1/3, and a resample without the first problem has 0.
    """
    differences = _differences(a, b)
    # Resampling N problems draws how often each distinct difference occurs, so a draw of counts is the same distribution
    # without an index for every problem of every resample.
    values, counts = np.unique(differences, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(a), counts / len(a), size=num_resamples)
    means = drawn @ values / len(a)
    tail = 1 - confidence
    lower_bound, low, high = np.quantile(means, [tail, tail / 2, 1 - tail / 2])
    return Interval(float(differences.mean()), float(lower_bound), float(low), float(high))


def _differences(a: Sequence[float], b: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    if len(a) != len(b) or not a:
        raise DataError(
            f"A paired comparison got {len(a)} scores of one model and {len(b)} of the other: they must be of the same "
            "problems, at least one. Judge both models on the same set."
        )
    return np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)


def mcnemar(a_passed: Sequence[bool], b_passed: Sequence[bool]) -> McNemar:
    """Exact two-sided McNemar test: were the problems that only one model solves shared out like coin tosses?

    Raises:
        DataError: the two lists cannot be of the same problems.

    Example:
        a alone solves 5, b alone none: p = 2/2^5 = 0.0625.
    """
    differences = _differences(a_passed, b_passed)
    only_a, only_b = int((differences > 0).sum()), int((differences < 0).sum())
    tosses = only_a + only_b
    tail = sum(math.comb(tosses, i) for i in range(min(only_a, only_b) + 1))
    # Whole numbers up to the one division: 2**tosses may be far beyond a float.
    return McNemar(only_a, only_b, min(1.0, 2 * tail / 2**tosses))
