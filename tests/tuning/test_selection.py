"""Which trial is the best, and when it is believed to be."""

from __future__ import annotations

import math

import pytest

from mlops_tasks.config import Evaluation, EvaluationSet
from mlops_tasks.tuning.cell import first_problems, other_problems
from mlops_tasks.tuning.selection import _beats, paired, saved_share


def test_the_interval_is_students_over_pairs() -> None:
    found = paired([1.0, 2.0, 3.0], confidence=0.9)
    error = 1 / math.sqrt(3)
    # Tables: t of 2 degrees of freedom is 1.886 at 0.9 and 2.920 at 0.95.
    assert found.difference == 2.0
    assert found.lower_bound == pytest.approx(2 - 1.8856 * error, abs=1e-4)
    assert (found.low, found.high) == pytest.approx((2 - 2.92 * error, 2 + 2.92 * error), abs=1e-4)


def test_one_that_is_as_good_in_all_and_better_in_one_beats() -> None:
    assert _beats((1.0, 2.0), (1.0, 3.0))
    assert not _beats((1.0, 3.0), (1.0, 3.0))
    assert not _beats((0.0, 4.0), (1.0, 3.0))


def test_what_pruning_saves_is_told_in_steps() -> None:
    class Trial:
        def __init__(self, steps: int) -> None:
            self.user_attrs = {"steps": steps, "num_steps": 10}

    assert saved_share([Trial(10), Trial(2), Trial(3)]) == pytest.approx(0.5)
    assert saved_share([]) == 0.0


@pytest.mark.parametrize(("limit", "left"), [(None, None), (40, 30)])
def test_trials_and_the_decision_share_no_problem_and_leave_none_out(limit: int | None, left: int | None) -> None:
    evaluation = Evaluation(gate=EvaluationSet(split="validation", skip=5, limit=limit))
    first, other = first_problems(evaluation, 10).gate, other_problems(evaluation, 10).gate
    assert (first.skip, first.limit, other.skip, other.limit) == (5, 10, 15, left)
    assert not first.shares_problems_with(other)
