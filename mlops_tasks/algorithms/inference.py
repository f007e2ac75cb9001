"""How a difference between two algorithms is told from chance, with few seeds and many problems.

Both are drawn: other problems and other seeds would have given other figures. So a paired difference has a part that varies with the
problem, one that varies with the seed, and a rest, and its interval holds all three. Everything here is a pure function of numbers; the
test of two single models is `evaluation.metrics`'.

Shape letters: S seed, N problem.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
_MAX_TERMS = 500
_TINY = 1e-300


@dataclass(frozen=True)
class Spread:
    """A standard error, and the degrees of freedom that it is known with."""

    error: float
    freedom: float

    def chance_of(self, value: float) -> float:
        """How likely a mean as far from zero is, on either side, where the true one is zero."""
        if self.error == 0:
            return float(value == 0)
        return min(1.0, 2 * t_tail(abs(value) / self.error, self.freedom))

    def margin(self, alpha: float) -> float:
        """Half of the interval that misses the truth with this probability."""
        return self.error * t_quantile(1 - alpha / 2, self.freedom) if self.error else 0.0


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval, and how likely one as far from zero is by chance alone."""

    value: float
    spreads: tuple[Spread, ...]
    """Each is a reason why the mean may be off; the widest interval counts."""
    least_p: float = 0.0
    """No p is below it, however little the values vary: see `_all_on_one_side`."""

    @cached_property
    def p_value(self) -> float:
        """Two-sided, of a true mean of zero."""
        return max(self.least_p, *(spread.chance_of(self.value) for spread in self.spreads))

    def margin(self, alpha: float = 1 - CONFIDENCE) -> float:
        """Half of the interval that misses the truth with this probability: true differences much below it would mostly not be seen.

        It holds zero exactly where `p_value` is not below this probability.
        """
        widest = max(spread.margin(alpha) for spread in self.spreads)
        return widest if self.p_value < alpha else max(widest, abs(self.value))

    @cached_property
    def interval(self) -> tuple[float, float]:
        """Holds the truth with a probability of `CONFIDENCE`."""
        margin = self.margin()
        return self.value - margin, self.value + margin

    @property
    def low(self) -> float:
        """Lower end of `interval`."""
        return self.interval[0]

    @property
    def high(self) -> float:
        """Upper end of `interval`."""
        return self.interval[1]


def over_seeds_and_problems(values_SN: npt.ArrayLike) -> Estimate:
    """The mean of a paired difference, for other seeds and other problems.

    The variance of the mean is that of the seeds' means over S, and what the problems' means vary beyond the rest: σ̂² =
    (MS_seeds + max(0, MS_problems - MS_rest)) / (S·N), with Satterthwaite's degrees of freedom. Plain resampling of seeds and
    problems counts the rest thrice, and with three seeds an interval from it is far too narrow where seeds matter.

    Right-or-wrong outcomes often give seeds of equal means, so an MS_seeds of zero, from which nothing follows. So the interval is never
    narrower than that of the problems alone, or of the rest alone, each with its own degrees of freedom.

    Args:
        values_SN: by seed and problem, such as the difference in pass@1. With one seed nothing is known of seeds, and the interval is
            that of the problems alone.

    Reference:
        Clark 1973, the quasi-F of subjects × items (min F'), with negative components set to zero.

    Example:
        Two seeds, two problems, [[1, 0], [1, 1]]: the mean is 3/4, all three mean squares are 1/4, so each σ̂² is 1/16.
    """
    values = np.asarray(values_SN, dtype=np.float64)
    num_seeds, num_problems = values.shape
    mean = float(values.mean())
    of_seeds, of_problems = values.mean(1) - mean, values.mean(0) - mean
    ms_problems = num_seeds * float((of_problems**2).sum()) / max(num_problems - 1, 1)

    def spread(mean_square: float, freedom: float) -> Spread:
        return Spread(math.sqrt(mean_square / values.size), max(freedom, 1.0))

    spreads = [spread(ms_problems, num_problems - 1)]
    if num_seeds > 1:
        rest = values - mean - of_seeds[:, None] - of_problems[None, :]
        df_seeds, df_rest = num_seeds - 1, (num_seeds - 1) * (num_problems - 1)
        ms_seeds = num_problems * float((of_seeds**2).sum()) / df_seeds
        ms_rest = float((rest**2).sum()) / max(df_rest, 1)
        both, freedom = ms_seeds, float(df_seeds)
        if ms_problems > ms_rest:
            both += ms_problems - ms_rest
            parts = ms_seeds**2 / df_seeds + ms_problems**2 / (num_problems - 1) + ms_rest**2 / df_rest
            # What is subtracted can take Satterthwaite's below what any of the three has.
            freedom = max(both**2 / parts, min(df_seeds, num_problems - 1))
        spreads += [spread(ms_rest, df_rest), spread(both, freedom)]
    return Estimate(mean, tuple(spreads), _all_on_one_side(values.mean(0)))


def over_seeds(values_S: Sequence[float]) -> Estimate | None:
    """The mean of a paired difference of which there is one figure a seed, for other seeds; None: there is one seed alone."""
    values = np.asarray(values_S, dtype=np.float64)
    if len(values) < 2:
        return None
    spread = Spread(math.sqrt(float(values.var(ddof=1)) / len(values)), len(values) - 1)
    return Estimate(float(values.mean()), (spread,), 0.0 if spread.error else _all_on_one_side(values))


def _all_on_one_side(values: npt.NDArray[np.float64]) -> float:
    """How likely k values that are not zero have one sign by chance, 2^(1 - k): a t test knows nothing of that where few differ."""
    return min(1.0, 2.0 ** (1 - np.count_nonzero(np.abs(values) > 1e-12)))


def holm(p_values: Sequence[float]) -> list[float]:
    """The same p-values, corrected for their number: one of them below α by chance alone has probability α at most.

    Reference:
        Holm 1979: the smallest times n, the next times n - 1, …, never less than one before.

    Example:
        0.01, 0.04, 0.03 become 0.03, 0.06, 0.06.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


def t_tail(value: float, freedom: float) -> float:
    """Probability that Student's t with so many degrees of freedom is above a value that is not negative."""
    return _incomplete_beta(freedom / (freedom + value * value), freedom / 2, 0.5) / 2


def t_quantile(share: float, freedom: float) -> float:
    """What Student's t is below with a probability of at least one half."""
    high = 1.0
    while t_tail(high, freedom) > 1 - share:
        high *= 2
    return _root(lambda value: t_tail(value, freedom) - (1 - share), 0.0, high)


def _root(falling: Callable[[float], float], low: float, high: float) -> float:
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """Regularised: I_x(a, b), by its continued fraction (Abramowitz and Stegun 26.5.8), on the side where that converges fast."""
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):
        return 1.0 - _incomplete_beta(1.0 - x, b, a)
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(scale) / (a * _fraction(x, a, b))


def _fraction(x: float, a: float, b: float) -> float:
    """1 + d1/(1 + d2/(1 + …)), by Lentz's method."""
    value, c, d = 1.0, 1.0, 0.0
    for term in range(1, _MAX_TERMS):
        m = term // 2
        if term % 2:
            part = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            part = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / (1 + part * d or _TINY)
        c = 1 + part / c or _TINY
        value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value
