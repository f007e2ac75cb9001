"""What is concluded from cells that have ended, with outcomes worked by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from comparisons import ASKED, NUM_PROBLEMS, Stand, better, half, parquet, table_of

from mlops_tasks.algorithms import Cell
from mlops_tasks.algorithms.findings import Findings
from mlops_tasks.errors import DataError, Unavailable
from mlops_tasks.report.algorithms import in_words, page, status


def test_the_same_outcomes_are_no_difference(tmp_path: Path) -> None:
    findings = Stand.of(tmp_path, "uniform", "ntp").ended(half)
    assert findings.headline == "No algorithm is shown to differ from uniform in pass@1."
    assert findings.verdicts() == [
        "ntp: no difference from uniform is shown: with each seed it is right on the same problems. Its validation loss is not shown to "
        "differ (corrected p 1)."
    ]


def test_a_large_difference_is_shown_with_its_flips(tmp_path: Path) -> None:
    findings = Stand.of(tmp_path, "uniform", "ntp", "rho1-soft").ended(better("rho1-soft", 20))
    test, corrected = findings.flips["rho1-soft"]
    assert (test.only_a, test.only_b) == (61, 0)
    assert corrected == pytest.approx(2 * 2 / 2**61)
    assert findings.headline == "In pass@1, against uniform: rho1-soft better; for the others no difference is shown."
    assert findings.passed["rho1-soft"].estimate.value == pytest.approx(61 / 180)
    assert findings.verdicts()[1].startswith("rho1-soft is better than uniform (+33.9 points, ")


def test_a_small_difference_is_not_shown_and_it_is_said_which_would_be(tmp_path: Path) -> None:
    findings = Stand.of(tmp_path, "uniform", "ntp").ended(better("ntp", 2))
    margin = 100 * findings.passed["ntp"].estimate.margin()
    assert not findings.passed["ntp"].is_shown
    assert f"one of less than about {margin:.0f} points would not show here" in findings.verdicts()[0]


def test_what_would_not_show_among_many_algorithms_is_more_than_the_interval_of_one(tmp_path: Path) -> None:
    findings = Stand.of(tmp_path, "uniform", "ntp", "rho1-soft", "rho1-select", "random").ended(better("ntp", 2))
    estimate = findings.passed["ntp"].estimate
    # Holm: the least p of four counts where it is below 0.05 / 4.
    least = 100 * estimate.margin(0.05 / 4)
    assert f"{least:.0f}" != f"{100 * estimate.margin():.0f}"
    assert f"one of less than about {least:.0f} points would not show here" in findings.verdicts()[0]


def test_one_other_problem_for_each_seed_is_no_difference(tmp_path: Path) -> None:
    def solved(cell: Cell, problem: int) -> bool:
        return half(cell, problem) or (cell.arm == "ntp" and problem == 2 * cell.seed + 1)

    findings = Stand.of(tmp_path, "uniform", "ntp").ended(solved)
    assert (findings.flips["ntp"][0].only_a, findings.flips["ntp"][0].only_b) == (3, 0)
    assert findings.verdicts()[0].startswith("ntp: no difference from uniform is shown (+1.7 points, ")


def test_a_placebo_that_helps_as_well_is_named(tmp_path: Path) -> None:
    def solved(cell: Cell, problem: int) -> bool:
        return half(cell, problem) or (cell.arm != "uniform" and problem < 40)

    findings = Stand.of(tmp_path, "uniform", "rho1-soft", "shuffled").ended(solved)
    assert findings.verdicts()[-1] == (
        "rho1-soft is not shown to be better than the placebo shuffled (+0.0 points, +0.0 to +0.0, corrected p 1), whose weights have nothing "
        "to do with importance: what helps need not be that."
    )


def test_of_an_algorithm_that_does_harm_no_placebo_is_asked(tmp_path: Path) -> None:
    def solved(cell: Cell, problem: int) -> bool:
        return problem < {"uniform": 40, "rho1-soft": 20, "shuffled": 10}[cell.arm]

    verdicts = Stand.of(tmp_path, "uniform", "rho1-soft", "shuffled").ended(solved).verdicts()
    assert [one.partition(" (")[0] for one in verdicts] == [
        "rho1-soft is worse than uniform",
        "shuffled is worse than uniform",
    ]


def test_an_algorithm_without_a_difference_is_held_against_placebos_in_the_table_alone(tmp_path: Path) -> None:
    def solved(cell: Cell, problem: int) -> bool:
        return problem < {"uniform": 20, "rho1-soft": 20, "shuffled": 40, "random": 5}[cell.arm]

    findings = Stand.of(tmp_path, "uniform", "rho1-soft", "shuffled", "random").ended(solved)
    assert len(findings.verdicts()) == 3
    assert {pair: one.estimate.value for pair, one in findings.over_placebos.items()} == {
        ("rho1-soft", "shuffled"): pytest.approx(-1 / 3),
        ("rho1-soft", "random"): pytest.approx(1 / 4),
    }
    lines = list(in_words(findings))
    assert any(line.startswith("rho1-soft against the placebo random: +25.0 points, ") for line in lines)
    assert "rho1-soft, random" in page(findings)


def test_a_placebo_that_harms_casts_no_doubt(tmp_path: Path) -> None:
    def solved(cell: Cell, problem: int) -> bool:
        return problem < {"uniform": 30, "rho1-soft": 50, "shuffled": 10}[cell.arm]

    verdicts = Stand.of(tmp_path, "uniform", "rho1-soft", "shuffled").ended(solved).verdicts()
    assert [one.partition(" (")[0] for one in verdicts] == [
        "rho1-soft is better than uniform",
        "shuffled is worse than uniform",
        "rho1-soft is better than the placebo shuffled as well",
    ]


def test_a_loss_that_is_lower_with_every_seed_is_shown_beside_no_difference_in_programs(tmp_path: Path) -> None:
    def nats(cell: Cell) -> float:
        return 1.0 + 0.1 * cell.seed - (0.05 + 0.001 * cell.seed if cell.arm == "ntp" else 0)

    findings = Stand.of(tmp_path, "uniform", "ntp").ended(half, nats)
    assert "Its validation loss is lower by 0.051 nats" in findings.verdicts()[0]


def test_trainings_that_were_not_equal_are_said_before_all_else(tmp_path: Path) -> None:
    findings = Stand.of(tmp_path, "uniform", "ntp").ended(half, steps=3, batches_sha256="x")
    first, second, *_ = findings.verdicts()
    assert (
        first
        == "NOT EQUAL, so no conclusion is safe: the problems of each step, in order of ntp is not that of uniform."
    )
    assert second == "NOT EQUAL, so no conclusion is safe: optimiser steps of ntp is not that of uniform."
    assert "not equal" in page(findings)


def test_one_seed_is_said_to_be_one(tmp_path: Path) -> None:
    findings = Stand.of(tmp_path, "uniform", "ntp", seeds=[3]).ended(half)
    assert findings.verdicts()[0].startswith("One seed: what is shown may be chance of the training.")
    assert findings.losses == {}


def test_what_is_shared_is_charged_to_each_and_what_another_made_first_to_nobody_else(tmp_path: Path) -> None:
    findings = Stand.of(tmp_path, "uniform", "rho1-soft", "shuffled", seeds=[0]).ended(half)
    charges = {
        arm.name: {purpose: arm.charge(purpose) / 3600 for purpose in ("training", "reference", "scores")}
        for arm in findings.arms
    }
    assert charges == {
        "uniform": {"training": 1, "reference": 0, "scores": 0},
        "rho1-soft": {"training": 1, "reference": 1, "scores": 1},
        "shuffled": {"training": 1, "reference": 1, "scores": 1},
    }
    assert [arm.num_tokens for arm in findings.arms] == [1000, 1100, 1100]
    # Seven tokens, which for rho-1 the reference reads, and for its placebo the base model too.
    assert [arm.num_scored_tokens for arm in findings.arms] == [0, 7, 14]
    # Data and base, one reference, two scores, three trainings with their evaluations.
    assert findings.spent / 3600 == 2 + 1 + 2 + 3 * 3


def test_a_critic_has_read_the_problems_that_it_weighs_and_a_refused_one_none(tmp_path: Path) -> None:
    stand = replace(
        Stand.of(tmp_path, "uniform", "critic", seeds=[0, 1]),
        critics=[table_of(three=0, four=0.5), table_of(three=0, four=0)],
    )
    critic = stand.ended(half).others[0]
    assert [result.num_scored_tokens for result in critic.results] == [4, 0]


def test_what_an_attempt_left_to_the_next_is_charged_and_what_it_lost_is_not(tmp_path: Path) -> None:
    stand = Stand.of(tmp_path, "uniform", "ntp", seeds=[0])
    stand.failed("train/ntp-seed-0", device_seconds=1800, lost=600)
    findings = stand.ended(half, resumed_from=2)
    assert [arm.charge("training") for arm in findings.arms] == [3600, 3600 + 1200]
    # Data and base, two trainings with their evaluations, and all of the failed attempt.
    assert findings.spent == 3600 * (2 + 2 * 3) + 1800
    assert [arm.is_continued for arm in findings.arms] == [False, True]
    lines = list(in_words(findings))
    assert [line.rpartition("  ")[2] for line in lines[1:3]] == ["18000", "≥ 19200"]
    assert "≥ 19,200.0" in page(findings)


def test_cells_that_were_asked_otherwise_are_not_compared(tmp_path: Path) -> None:
    stand = Stand.of(tmp_path, "uniform", "ntp", seeds=[0])
    stand.ended(half)
    first = stand.cells.plan.cells[0]
    asked = {**ASKED, "temperature": 0.8, "pass_at_k": {"1": 0.5}}
    rows = [{"problem_id": str(n), "sample": 0, "passed": True, "program": ""} for n in range(NUM_PROBLEMS)]
    stand.made(stand.cells.run(first), "judge", "judge", "other", asked, {}, {"outcomes.parquet": parquet(rows)})
    with pytest.raises(DataError, match=r"temperature is 0\.0 in one and 0\.8 in the other"):
        Findings.of(stand.cells)


def test_a_comparison_that_is_not_done_says_how_far_it_is(tmp_path: Path) -> None:
    stand = Stand.of(tmp_path, "uniform", "ntp", seeds=[0])
    stand.end(stand.cells.plan.cells[0], half, 1.0)
    with pytest.raises(Unavailable, match="train"):
        Findings.of(stand.cells)
    done, waiting = status(stand.cells)
    assert done.split() == ["uniform-seed-0", "5", "run,", "6", "not", "yet"]
    assert waiting.split() == ["ntp-seed-0", "11", "not", "yet"]


def test_the_terminals_table_has_a_row_for_each_algorithm(tmp_path: Path) -> None:
    lines = list(in_words(Stand.of(tmp_path, "uniform", "ntp").ended(better("ntp", 20))))
    assert lines[1].split()[:6] == ["uniform", "0.500", "0.500", "0.500", "0.500", "baseline"]
    assert lines[2].split()[:6] == ["ntp", "0.833", "0.850", "0.833", "0.839", "+33.9"]


def test_a_page_shows_curves_with_the_range_of_the_seeds(tmp_path: Path) -> None:
    text = page(Stand.of(tmp_path, "uniform", "ntp").ended(half, lambda cell: 1.0 + 0.1 * cell.seed))
    assert text.count('class="band"') == 2
    assert '<g class="baseline"' in text
