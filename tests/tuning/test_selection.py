"""Which trial is the best, and when it is believed to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlops_tasks.config.loading import changed, load_recipe
from mlops_tasks.tuning.selection import _beats, believes, differing, estimated, in_words, one_sided
from mlops_tasks.tuning.trials import saved_share


def losses(*pairs: tuple[float, float]) -> list[dict[str, float]]:
    return [{"recipe": recipe, "best": best} for recipe, best in pairs]


def test_a_loss_is_judged_by_students_t_over_seeds() -> None:
    found = estimated("validation_loss", losses((3.0, 2.0), (4.0, 2.0), (5.0, 2.0)))  # better by 1, 2 and 3
    assert found.value == 2.0
    # t is 2·√3 = 3.464 of 2 degrees; its tail is (1 - t/√(2 + t²))/2 = 0.0371.
    assert one_sided(found) == pytest.approx((1 - 12**0.5 / 14**0.5) / 2)
    assert believes(found, 0.95) and not believes(found, 0.97)
    worse = estimated("validation_loss", losses((2.0, 3.0), (2.0, 4.0), (2.0, 5.0)))
    assert one_sided(worse) == pytest.approx(1 - one_sided(found)) and not believes(worse, 0.95)


def test_equal_differences_say_nothing_of_chance() -> None:
    assert not believes(estimated("validation_loss", losses((2.0, 1.0), (2.0, 1.0), (2.0, 1.0))), 0.95)


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        (((3.0, 2.0), (4.0, 2.0), (5.0, 2.0)), "is better than the recipe's own by 2.0000 on average over 3 seeds and"),
        (((2.0, 3.0), (2.0, 4.0), (2.0, 5.0)), "is worse than the recipe's own by 2.0000 on average over 3 seeds and"),
        (((2.0, 3.0), (2.0, 2.0), (2.0, 1.0)), "is as good as the recipe's own on average over 3 seeds and"),
    ],
)
def test_a_recipe_that_turns_out_worse_is_said_to_be(pairs: tuple[tuple[float, float], ...], told: str) -> None:
    words = in_words("validation_loss", estimated("validation_loss", losses(*pairs)), num_seeds=3, confidence=0.95)
    assert words.startswith(f"validation_loss of the best trial's recipe {told}")
    assert ("not believed" in words) == ("better than" not in words)


def test_a_pass_rate_is_judged_over_problems_too() -> None:
    # One problem in ten is solved only by the best recipe, with each seed: over seeds alone that would be no chance at all.
    repeats = [{"recipe_rates": [0.0] * 10, "best_rates": [1.0] + [0.0] * 9}] * 3
    found = estimated("pass_at_1", repeats)
    assert found.value == pytest.approx(0.1)
    assert one_sided(found) > 0.15 and not believes(found, 0.95)


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


def test_a_change_of_kind_is_told_with_all_that_it_resets() -> None:
    recipe = load_recipe(Path(__file__).parents[2] / "configs/recipes/demo.yaml", ["weighting.strength=0.3"])
    best = changed(recipe, {"weighting.kind": "select", "weighting.top_share": 0.4}, "the test")
    told = differing(recipe, best)
    assert told["weighting.kind"] == ["soft", "select"] and told["weighting.top_share"][1] == 0.4
    assert told["weighting.strength"][0] == 0.3
    assert all(name.startswith("weighting.") for name in told) and "weighting.temperature" in told
