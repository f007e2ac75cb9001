"""pass@k, its interval, and the two paired comparisons."""

from itertools import combinations
from math import comb

import numpy as np
import pytest

from mlops_tasks.errors import DataError, UserError
from mlops_tasks.evaluation.metrics import mcnemar, paired_bootstrap, pass_at_k, wilson_interval


def test_pass_at_k_equals_enumeration_for_up_to_eight_samples() -> None:
    for n in range(1, 9):
        for c in range(n + 1):
            for k in range(1, n + 1):
                draws = list(combinations(range(n), k))
                share = sum(any(sample < c for sample in draw) for draw in draws) / len(draws)
                assert pass_at_k(n, c, k) == pytest.approx(share, abs=1e-12)


def test_pass_at_k_stays_exact_where_the_binomials_are_huge() -> None:
    expected = 1 - comb(1990, 500) / comb(2000, 500)
    assert pass_at_k(2000, 10, 500) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("k", [0, 4])
def test_pass_at_k_is_refused_for_a_k_that_was_not_sampled(k: int) -> None:
    with pytest.raises(UserError, match=f"pass@{k} cannot be estimated from 3 programs"):
        pass_at_k(3, 1, k)


def test_wilson_interval_equals_published_values() -> None:
    # 10 of 20 and 0 of 10 at 95 %, from the closed form worked by hand with z = 1.95996.
    assert wilson_interval(0.5, 20) == pytest.approx((0.29930, 0.70070), abs=1e-5)
    assert wilson_interval(0.0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)
    assert wilson_interval(1.0, 10) == pytest.approx((0.72247, 1.0), abs=1e-5)


def test_bootstrap_difference_is_that_of_the_means() -> None:
    found = paired_bootstrap([1, 1, 0, 0.5], [0, 1, 0, 0], confidence=0.95, num_resamples=100, seed=0)
    assert found.difference == pytest.approx(0.375)


def test_bootstrap_bounds_equal_those_of_resampled_indices() -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.random(200) < 0.5).astype(float), (rng.random(200) < 0.4).astype(float)
    found = paired_bootstrap(list(a), list(b), confidence=0.9, num_resamples=20_000, seed=2)
    means = (a - b)[rng.integers(0, 200, size=(20_000, 200))].mean(axis=1)
    assert found.lower_bound == pytest.approx(np.quantile(means, 0.10), abs=0.006)
    assert found.low == pytest.approx(np.quantile(means, 0.05), abs=0.006)
    assert found.high == pytest.approx(np.quantile(means, 0.95), abs=0.006)
    assert found.low < found.lower_bound < found.difference < found.high


def test_bootstrap_of_two_equal_models_is_exactly_zero() -> None:
    found = paired_bootstrap([1, 0, 1], [1, 0, 1], confidence=0.95, num_resamples=100, seed=0)
    assert (found.difference, found.lower_bound, found.low, found.high) == (0, 0, 0, 0)


def test_bootstrap_repeats_with_its_seed_and_moves_with_another() -> None:
    a, b = [1.0, 0.0, 1.0, 1.0, 0.25] * 9, [0.0, 0.0, 1.0, 0.5, 0.75] * 9
    first, again, other = (paired_bootstrap(a, b, confidence=0.95, num_resamples=200, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_mcnemar_equals_binomial_tails_worked_by_hand() -> None:
    # Pairs (a, b): 5 to 0 is 2/2^5; 1 to 7 is 2(1 + 8)/2^8; 4 to 4 is even.
    assert mcnemar([True] * 5, [False] * 5).p_value == pytest.approx(0.0625)
    found = mcnemar([True] + [False] * 7 + [True] * 3, [False] + [True] * 7 + [True] * 3)
    assert (found.only_a, found.only_b) == (1, 7)
    assert found.p_value == pytest.approx(0.0703125)
    assert mcnemar([True, False] * 4, [False, True] * 4).p_value == 1.0


def test_mcnemar_without_a_disagreement_says_nothing() -> None:
    assert mcnemar([True, False], [True, False]).p_value == 1.0


def test_mcnemar_takes_more_disagreements_than_a_float_can_count() -> None:
    assert mcnemar([True] * 2000, [False] * 2000).p_value == pytest.approx(0.0)


def test_comparison_of_different_numbers_of_problems_is_refused() -> None:
    with pytest.raises(DataError, match="2 scores of one model and 1 of the other"):
        paired_bootstrap([1.0, 0.0], [1.0], confidence=0.95, num_resamples=100, seed=0)
    with pytest.raises(DataError, match="0 scores of one model and 0 of the other"):
        mcnemar([], [])
