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
    assert found.interval == pytest.approx((interval.low, interval.high))
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
    assert (found.value, *found.interval) == pytest.approx((0.75, 0.75 - margin, 0.75 + margin))


def test_degrees_of_freedom_are_satterthwaites_where_problems_matter_too() -> None:
    values = np.array([[3.0, 1, 0, 2, 0, 0], [2.0, 1, 0, 2, 1, 0]])
    # Seeds 1 ± 0; problems' means 2.5, 1, 0, 2, 0.5, 0 about 1: squares 2.25, 0, 1, 1, 0.25, 1, so MS_problems = 2·5.5/5 = 2.2. The rest
    # are ±1/2 in two problems: MS_rest = 4·(1/4)/5 = 0.2. σ² = (0 + 2)/12; freedom 4/(2.2²/5 + 0.2²/5).
    both = over_seeds_and_problems(values).spreads[-1]
    assert (both.error**2, both.freedom) == pytest.approx((2 / 12, 4 / (4.84 / 5 + 0.04 / 5)))


def test_degrees_of_freedom_are_never_below_those_of_the_seeds() -> None:
    # Each seed wins one problem more than it loses, so MS_seeds = 0. Of 29 problems one cell differs, which gives 1/3 to the problems and
    # 2/3 to the rest, of one problem two, which give 4/3 and 2/3: MS_problems = 0.185 is hardly above MS_rest = 0.170 (with 59 and 118
    # degrees of freedom, about). Satterthwaite's would be 0.3.
    values = np.zeros((3, 60))
    for problem in range(29):
        values[problem % 3, problem] = 1 if problem < 15 else -1
    values[[0, 1], 29] = 1
    found = over_seeds_and_problems(values)
    assert values.sum(1).tolist() == [1, 1, 1]
    assert found.spreads[-1].freedom == 2
    assert found.margin() < 0.1


def test_problems_that_vary_more_than_the_rest_widen_the_interval() -> None:
    # Seeds agree on every problem, so MS_seeds = MS_rest = 0 and only problems vary: σ² = MS_problems/(S·N), N - 1 degrees of freedom.
    problems = np.array([1.0, 0.0, 0.0, 1.0, -1.0])
    found, alone = over_seeds_and_problems([problems, problems, problems]), stats.ttest_1samp(problems, 0)
    assert found.margin() == pytest.approx(alone.confidence_interval().high - problems.mean())
    assert found.p_value == pytest.approx(alone.pvalue)


def test_no_difference_anywhere_is_a_p_of_one() -> None:
    found = over_seeds_and_problems(np.zeros((3, 10)))
    assert (found.value, found.margin(), found.p_value) == (0, 0, 1)


def test_seeds_that_agree_on_a_few_problems_prove_nothing() -> None:
    # Each seed wins another problem and loses none: seeds' means are alike to the last bit. McNemar: 3 to 0, p = 2/8.
    values = np.zeros((3, 60))
    values[[0, 1, 2], [0, 1, 2]] = 1
    found = over_seeds_and_problems(values)
    assert found.p_value == 0.25
    assert found.interval[0] <= 0 < found.interval[1] < 0.1


def test_the_same_difference_everywhere_is_as_likely_as_that_many_signs() -> None:
    assert over_seeds_and_problems(np.ones((3, 4))).p_value == 1 / 8
    assert over_seeds_and_problems(np.ones((1, 4))).p_value == 1 / 8
    assert over_seeds_and_problems(np.ones((3, 1))).p_value == 1
    alike = over_seeds([0.5, 0.5, 0.5])
    assert alike is not None and alike.p_value == 1 / 4


@pytest.mark.parametrize("alpha", [0.05, 0.0125])
def test_an_interval_holds_zero_where_chance_explains_the_difference(alpha: float) -> None:
    values = np.zeros((3, 60))
    for wins in range(1, 12):
        values[:, wins] = 1
        found = over_seeds_and_problems(values)
        assert (found.value > found.margin(alpha)) == (found.p_value < alpha)
    assert found.p_value < 0.01


@pytest.mark.parametrize("num_seeds", [2, 3])
@pytest.mark.parametrize("flips", [0.02, 0.05, 0.1])
@pytest.mark.parametrize("num_problems", [60, 200])
def test_flips_without_a_difference_are_seldom_taken_for_one(num_seeds: int, flips: float, num_problems: int) -> None:
    generator = np.random.default_rng(0)
    shape = (300, num_seeds, num_problems)
    cells = generator.choice([-1, 0, 1], p=[flips / 2, 1 - flips, flips / 2], size=shape)
    taken = sum(over_seeds_and_problems(values).p_value < 0.05 for values in cells)
    assert taken / 300 <= 0.05


@pytest.mark.parametrize(("of_seeds", "of_problems"), [(0.0, 0.0), (0.05, 0.2), (0.1, 0.0)])
def test_intervals_of_three_seeds_hold_the_truth_as_often_as_they_say(of_seeds: float, of_problems: float) -> None:
    generator = np.random.default_rng(0)
    missed = 0
    for _ in range(1000):
        seeds, problems = generator.normal(0, of_seeds, (3, 1)), generator.normal(0, of_problems, (1, 100))
        found = over_seeds_and_problems(seeds + problems + generator.normal(0, 0.5, (3, 100)))
        missed += found.p_value < 0.05
    # 95 % and the sampling of 1,000 give 0.037 to 0.063; where seeds do not matter, problems alone are the wider interval in a third.
    assert 0.005 <= missed / 1000 <= 0.07
