"""Claims about the champion's weekly evaluation: when it has decayed, and that the same champion on the same data is a hit."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from nights import NAME, RECIPE, STRONG, STRONGER, WEAK, Night, solved, tags_of, tuesday

from mlops_tasks import pipeline, stage, summary
from mlops_tasks.config.recipe import Recipe
from mlops_tasks.errors import UserError
from mlops_tasks.registry.promotion import promote
from mlops_tasks.registry.watch import held_against, unpaired_interval, watch
from mlops_tasks.stage import Champion, Run


def evaluated(monday: Night, outcomes: list[list[bool]]) -> Run:
    """A week later: the champion, who passed 30 of 40 as a candidate, has come to this."""
    promote(monday.run(STRONG, WEAK))
    run = tuesday(monday).run(STRONGER, outcomes)
    return replace(run, spec=run.spec.model_copy(update={"only_champion": True}))


def test_a_champion_that_does_what_it_did_holds(monday: Night) -> None:
    result = watch(evaluated(monday, STRONG))
    assert (result["outcome"], result["version"]) == ("holds", "1")
    assert result["change"] == {"before": 0.75, "difference": 0, "low": 0, "high": 0, "is_paired": True}
    assert result["score"]["value"] == 0.75 and result["score"]["low"] < 0.75 < result["score"]["high"]
    assert (
        "As a candidate it had 75.0% on the same problems: +0.0 points (+0.0 to +0.0), and -5.0 may be lost."
        in result["reason"]
    )
    json.dumps(result, allow_nan=False)


def test_a_champion_that_fails_what_it_solved_has_decayed_and_its_version_says_so(monday: Night) -> None:
    result = watch(evaluated(monday, solved(*range(18))))
    assert (result["outcome"], result["change"]["is_paired"]) == ("decayed", True)
    assert result["change"]["difference"] == pytest.approx(-0.3) and result["change"]["high"] < -0.05
    tags = tags_of(monday.environment, "1")
    assert (tags["watch.verdict"], tags["watch.reason"]) == ("decayed", result["reason"])
    assert (tags["watch.score"], tags["watch.run"]) == ("0.45", "runs/laptop/wmtp_daily/tuesday")


def after(monday: Night, num_solved: int, watched: dict[str, Any] | None = None, **measured: Any) -> tuple[Any, ...]:
    """What is said of a model that passed 30 of 40 as a candidate, and so many now."""
    run = monday.run(STRONG, solved(*range(num_solved)), **measured)
    before, now = run.artifact("judge", 0), run.artifact("judge", 2)
    assert now is not None
    return held_against(now, before, Recipe.model_validate(RECIPE.model_dump(mode="json") | {"watch": watched or {}}))


@pytest.mark.parametrize(
    ("num_solved", "max_loss", "outcome"),
    [(29, 0.05, "holds"), (29, 0.0, "holds"), (18, 0.5, "holds"), (18, 0.05, "decayed"), (40, 0.05, "holds")],
)
def test_a_loss_counts_that_is_more_than_may_be_lost_and_than_chance(
    monday: Night, num_solved: int, max_loss: float, outcome: str
) -> None:
    assert after(monday, num_solved, {"max_loss": max_loss})[2] == outcome


@pytest.mark.parametrize(("num_solved", "outcome"), [(26, "holds"), (10, "decayed")])
def test_on_other_problems_the_two_scores_are_two_samples(monday: Night, num_solved: int, outcome: str) -> None:
    _, change, found, reason = after(monday, num_solved, prompt_sha256="of other problems")
    assert (found, change.is_paired) == (outcome, False)
    assert "75.0% on other problems" in reason


def test_the_interval_of_two_samples_is_newcombes() -> None:
    low, high = unpaired_interval((56 / 70, 70), (48 / 80, 80), confidence=0.95)
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)  # Newcombe 1998, table II, method 10


@pytest.mark.parametrize(("least", "outcome"), [(0.8, "holds"), (0.9, "decayed")])
def test_the_score_may_have_a_limit_of_its_own_which_chance_does_not_break(
    monday: Night, least: float, outcome: str
) -> None:
    # 30 of 40 is 59.8 % to 85.8 %.
    *_, found, reason = after(monday, 30, {"min_score": least})
    assert found == outcome and f"at least {least:.1%} is asked for" in reason


def test_what_was_asked_for_differently_is_not_compared_but_still_has_a_score(monday: Night) -> None:
    score, change, found, reason = after(monday, 10, temperature=0.7)
    assert (found, change, score.value) == ("holds", None, 0.25)
    assert "cannot be compared with what it was" in reason


def test_without_a_champion_there_is_nothing_to_watch(monday: Night) -> None:
    with pytest.raises(UserError, match="has no champion to watch: coder had none"):
        watch(monday.run(STRONG, WEAK))


def test_what_a_night_found_of_the_champion_is_a_hit_for_the_week_until_data_or_champion_change(monday: Night) -> None:
    night = monday.run(STRONG, WEAK)

    def crowned(weights: bytes) -> Champion:
        made = monday.commit(night, "train", {"model/weights": weights}, {}, key=weights.decode())
        return Champion(name=NAME, version="1", key=weights.decode(), digest=made.digest)

    def key(champion: Champion, *, only_champion: bool) -> str:
        spec = night.spec.model_copy(update={"champion": champion, "only_champion": only_champion})
        return stage.decide(replace(night, spec=spec), pipeline.TASKS["generate"], 2, tasks=pipeline.TASKS).key

    first, second = crowned(b"first"), crowned(b"second")
    by_night, by_week = (key(first, only_champion=is_week) for is_week in (False, True))
    assert by_night == by_week != key(second, only_champion=True)
    monday.commit(night, "pull_data", {"validation.parquet": b"new problems"}, {}, key="new")
    assert key(first, only_champion=True) != by_week


def test_the_run_asks_the_champion_alone_and_its_summary_ends_with_the_verdict(monday: Night) -> None:
    run = evaluated(monday, STRONG)
    asked = [(task.id, index) for task, index in pipeline.places(run.spec)]
    assert asked == [("pull_data", 0), ("generate", 2), ("judge", 2), ("watch", 0)]
    assert pipeline.EVALUATIONS[2] == ("baseline", "gate")
    stage.execute(run, pipeline.WATCH, tasks=pipeline.TASKS)
    told = list(summary.of_run(run))
    assert not any(line.startswith(("  train", "  promote")) for line in told)
    assert any(line.startswith("\n  holds: version 1. pass@1 is 75.0%") for line in told)
