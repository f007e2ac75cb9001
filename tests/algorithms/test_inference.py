"""Intervals and corrections, against values worked by hand and against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mlops_tasks.algorithms.inference import holm, over_seeds, over_seeds_and_problems, t_quantile, t_tail


def test_holm_is_the_example_worked_by_hand() -> None:
    # 3 · 0.01; 2 · 0.03; then 1 · 0.04, which may not be below the one before.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_holm_leaves_one_comparison_alone_and_never_exceeds_one() -> None:
    assert holm([0.2]) == [0.2]
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("freedom", [1, 1.5, 2, 7.3, 30, 299])
def test_students_t_is_scipys(freedom: float) -> None:
    for value in (0.0, 0.001, 0.7, 1.0, 2.0, 4.3, 60.0):
        assert t_tail(value, freedom) == pytest.approx(stats.t.sf(value, freedom), rel=1e-9, abs=1e-14)
    for share in (0.6, 0.975, 0.995):
        assert t_quantile(share, freedom) == pytest.approx(stats.t.ppf(share, freedom), rel=1e-9)


def test_over_seeds_is_the_paired_t_test() -> None:
    values = [0.02, 0.05, -0.01, 0.04]
    found, expected = over_seeds(values), stats.ttest_1samp(values, 0)
    assert found is not None
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p_value == pytest.approx(expected.pvalue)


def test_one_seed_says_nothing_of_seeds() -> None:
    assert over_seeds([0.3]) is None
    # Of the problems alone: the one-sample t test over problems.
    values = [1.0, 0.0, 0.0, 1.0, -1.0, 1.0]
    assert over_seeds_and_problems([values]).p_value == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_variance_of_seeds_and_problems_is_the_one_worked_by_hand() -> None:
    # Mean 3/4; seeds' means 1/2 and 1, problems' 1 and 1/2: MS_seeds = 2·(1/16 + 1/16)/1 = 1/4 = MS_problems, and the rest are ±1/4, so
    # MS_rest = 4/16 = 1/4. Nothing of the problems is beyond the rest: σ² = (1/4)/4 with one degree of freedom.
    found = over_seeds_and_problems([[1, 0], [1, 1]])
    margin = stats.t.ppf(0.975, 1) * 0.25
    assert (found.value, found.low, found.high) == pytest.approx((0.75, 0.75 - margin, 0.75 + margin))


def test_problems_that_vary_more_than_the_rest_widen_the_interval() -> None:
    # Seeds agree on every problem, so MS_seeds = MS_rest = 0 and only problems vary: σ² = MS_problems/(S·N), N - 1 degrees of freedom.
    problems = np.array([1.0, 0.0, 0.0, 1.0, -1.0])
    found, alone = over_seeds_and_problems([problems, problems, problems]), stats.ttest_1samp(problems, 0)
    assert (found.high - found.low) / 2 == pytest.approx(alone.confidence_interval().high - problems.mean())
    assert found.p_value == pytest.approx(alone.pvalue)


def test_no_difference_anywhere_is_a_p_of_one() -> None:
    found = over_seeds_and_problems(np.zeros((3, 10)))
    assert (found.value, found.margin, found.p_value) == (0, 0, 1)


@pytest.mark.parametrize(("of_seeds", "of_problems"), [(0.0, 0.0), (0.05, 0.2), (0.1, 0.0)])
def test_intervals_of_three_seeds_hold_the_truth_as_often_as_they_say(of_seeds: float, of_problems: float) -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        seeds, problems = generator.normal(0, of_seeds, (3, 1)), generator.normal(0, of_problems, (1, 100))
        found = over_seeds_and_problems(seeds + problems + generator.normal(0, 0.5, (3, 100)))
        held += found.low <= 0 <= found.high
    # 95 % and the sampling of 1,000 give 0.937 to 0.963; Satterthwaite's degrees are an approximation.
    assert 0.92 <= held / 1000 <= 0.985
