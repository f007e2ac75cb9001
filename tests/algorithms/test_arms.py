"""What a comparison file becomes: a recipe for each algorithm, or an error before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mlops_tasks.algorithms import arms, plan, resolve
from mlops_tasks.config.comparison import Comparison
from mlops_tasks.config.environment import Environment
from mlops_tasks.config.loading import load_comparison, load_recipe
from mlops_tasks.config.recipe import Recipe
from mlops_tasks.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
DEMO = str(CONFIGS / "recipes/demo.yaml")
READY = ("ntp", "uniform", "rho1-soft", "rho1-select", "critic", "shuffled", "random", "position")


def comparison(algorithms: dict[str, Any], *, baseline: str = "uniform", recipe: str = DEMO, **more: Any) -> Comparison:
    tree = {"name": "some", "recipe": recipe, "baseline": baseline, "algorithms": algorithms, **more}
    return Comparison.model_validate(tree)


def arms_of(asked: Comparison) -> dict[str, Recipe]:
    return arms(asked, load_recipe(asked.recipe, settings=asked.settings))


def test_the_demo_is_six_algorithms_with_three_seeds(tmp_path: Path) -> None:
    environment = Environment(store=str(tmp_path), mlflow_uri="sqlite:///x.db")
    _, specs = resolve(environment, CONFIGS / "comparisons/demo.yaml")
    assert len(specs) == 18
    assert [cell.name for cell in specs][:2] == ["uniform-seed-0", "ntp-seed-0"]
    assert {spec.recipe.seed for spec in specs.values()} == {0, 1, 2}
    assert all(spec.recipe.train.steps == 120 and spec.only_candidate for spec in specs.values())


def test_a_file_with_another_baseline_is_another_comparison_with_the_same_cells(tmp_path: Path) -> None:
    environment = Environment(store=str(tmp_path / "store"), mlflow_uri="sqlite:///x.db")
    tree = {"name": "some", "recipe": DEMO, "baseline": "uniform", "algorithms": {"uniform": {}, "ntp": {}}}
    file = tmp_path / "comparison.yaml"
    file.write_text(yaml.safe_dump(tree))
    first, again = plan(environment, file), plan(environment, file)
    file.write_text(yaml.safe_dump({**tree, "baseline": "ntp"}))
    other = plan(environment, file)
    assert first.prefix == again.prefix != other.prefix
    assert (first.plan.comparison.baseline, other.plan.comparison.baseline) == ("uniform", "ntp")
    assert first.plan.cells == other.plan.cells


def test_each_ready_algorithm_is_its_scorer_and_its_weights() -> None:
    found = arms_of(comparison({name: {} for name in READY}))
    said = {
        name: (one.scoring.scorer, one.weighting.kind, one.train.num_heads, one.reference is not None)
        for name, one in found.items()
    }
    assert said == {
        "ntp": ("uniform", "soft", 1, False),
        "uniform": ("uniform", "soft", 4, False),
        "rho1-soft": ("rho1", "soft", 4, True),
        "rho1-select": ("rho1", "select", 4, True),
        "critic": ("critic", "soft", 4, False),
        "shuffled": ("shuffled", "soft", 4, True),
        "random": ("random", "soft", 4, False),
        "position": ("position", "soft", 4, False),
    }


def test_what_a_recipe_leaves_auto_is_settled_as_for_a_daily_run(tmp_path: Path) -> None:
    recipe = yaml.safe_load(Path(DEMO).read_text())
    del recipe["train"]["steps"]
    recipe["train"] |= {"epochs": "auto", "learning_rate": "auto"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    tree = {"name": "some", "recipe": "recipe.yaml", "baseline": "ntp", "algorithms": {"ntp": {}, "uniform": {}}}
    environment = Environment(store=str(tmp_path), mlflow_uri="sqlite:///x.db")
    # Fewer than 1,000 problems, up to 10,000, and what is set needs no `auto`.
    for settings, expected in (
        ({"data.source.num_train": 50}, (10, 1e-4)),
        ({"data.source.num_train": 5000}, (5, 5e-5)),
        ({"data.source.num_train": 50, "train.learning_rate": 0.5}, (10, 0.5)),
    ):
        (tmp_path / "comparison.yaml").write_text(yaml.safe_dump(tree | {"settings": settings}))
        _, specs = resolve(environment, tmp_path / "comparison.yaml")
        assert {(one.recipe.train.epochs, one.recipe.train.learning_rate) for one in specs.values()} == {expected}


def test_a_ready_algorithm_keeps_what_the_recipe_says_of_its_own_weights(tmp_path: Path) -> None:
    recipe = yaml.safe_load(Path(DEMO).read_text()) | {"weighting": {"kind": "select", "top_share": 0.3}}
    recipe["scoring"]["excess"] = "abs"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    found = arms_of(
        comparison({"uniform": {}, "rho1-select": {}, "rho1-soft": {}}, recipe=str(tmp_path / "recipe.yaml"))
    )
    assert found["rho1-select"].weighting.top_share == 0.3  # type: ignore[union-attr]
    assert found["rho1-soft"].weighting.kind == "soft"
    assert found["rho1-select"].scoring.excess == found["rho1-soft"].scoring.excess == "abs"  # type: ignore[union-attr]


def test_a_grid_is_an_algorithm_for_each_combination() -> None:
    grid = {"weighting.strength": [0.1, 1.0], "weighting.temperature": [0.5, 0.7]}
    found = arms_of(comparison({"uniform": {}, "rho1-soft": {"grid": grid}}))
    assert list(found) == [
        "uniform",
        "rho1-soft, weighting.strength=0.1, weighting.temperature=0.5",
        "rho1-soft, weighting.strength=0.1, weighting.temperature=0.7",
        "rho1-soft, weighting.strength=1.0, weighting.temperature=0.5",
        "rho1-soft, weighting.strength=1.0, weighting.temperature=0.7",
    ]
    assert found["rho1-soft, weighting.strength=0.1, weighting.temperature=0.7"].weighting.strength == 0.1


def test_an_algorithm_of_any_name_starts_from_a_ready_one_or_from_the_recipe() -> None:
    found = arms_of(
        comparison(
            {
                "uniform": {},
                "two-heads": {"like": "uniform", "settings": {"train.num_heads": 2}},
                "lora": {"like": "uniform", "settings": {"train.method.kind": "lora"}},
                "as-it-is": {},
            },
        )
    )
    assert (found["lora"].train.method.kind, found["uniform"].train.method.kind) == ("lora", "full")
    assert (found["two-heads"].scoring.scorer, found["two-heads"].train.num_heads) == ("uniform", 2)
    assert found["as-it-is"].scoring.scorer == "rho1"


@pytest.mark.parametrize(
    ("algorithms", "message"),
    [
        ({"rho1-soft": {"settings": {"weighting.strenth": 1}}}, r"algorithms.rho1-soft .* weighting.soft.strenth is not a setting"),
        ({"rho1-soft": {"grid": {"weighting.strength": [0.5, 2]}}}, r"strength=2.*less than or equal to 1"),
        ({"ntp": {"settings": {"train.steps": 9}}}, r"train.steps of ntp is 9, but that of the baseline uniform is 280.*in `settings`"),
        ({"ntp": {"settings": {"text.max_length": 99}}}, r"text of ntp is .*max_length=99"),
        ({"other": {"like": "uniform"}}, r"uniform and other are one and the same recipe"),
        ({"other": {"like": "uniform", "settings": {"gate.min_difference": 0.1}}}, r"uniform and other are one and the same recipe"),
        ({"two": {"like": "uniform", "settings": {"weighting.temperature": 1.0}}}, r"weighting has no effect with scoring.scorer uniform"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_before_anything_runs(algorithms: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"(?s){message}"):
        arms_of(comparison({"uniform": {}, **algorithms}))


def test_a_baseline_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UserError, match="baseline is 'base', which is none of uniform; ntp"):
        arms_of(comparison({"uniform": {}, "ntp": {}}, baseline="base"))


def test_a_recipe_without_a_reference_cannot_be_compared_with_rho1() -> None:
    recipe = str(CONFIGS / "recipes/codecontests_smollm2.yaml")
    with pytest.raises(UserError, match=r"algorithms.shuffled .* scoring.scorer of the recipe codecontests is uniform"):
        arms_of(comparison({"uniform": {}, "shuffled": {}}, recipe=recipe))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\]: one is there twice"),
        ({"algorithms": {"ntp": {}}}, "algorithms is .* at least 2"),
        ({"algorithms": {"ntp": {}, "uniform": {"grid": {"train.num_heads": []}}}}, "at least 1"),
        ({"sedes": [0]}, "sedes is not a setting"),
        ({"settings": {"seed": 7}}, r"settings changes seed, which is each one of seeds=\[0, 1, 2\]"),
        ({"algorithms": {"ntp": {"settings": {"seed": 7}}, "uniform": {}}}, r"algorithms\.ntp\.settings changes seed"),
        ({"algorithms": {"ntp": {}, "uniform": {"grid": {"seed": [1, 2]}}}}, r"algorithms\.uniform\.grid changes seed"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_its_place(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    tree = {"name": "some", "recipe": "r.yaml", "baseline": "ntp", "algorithms": {"ntp": {}, "uniform": {}}, **change}
    (tmp_path / "comparison.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match=f"(?s){message}"):
        load_comparison(tmp_path / "comparison.yaml")


def test_paths_in_a_comparison_are_relative_to_its_file(tmp_path: Path) -> None:
    algorithms = {"ntp": {}, "uniform": {"settings": {"model.source.path": "m"}}}
    tree = {"name": "some", "recipe": "../r.yaml", "baseline": "ntp", "algorithms": algorithms}
    (tmp_path / "comparison.yaml").write_text(yaml.safe_dump(tree))
    found = load_comparison(tmp_path / "comparison.yaml")
    assert found.recipe == str(tmp_path.parent / "r.yaml")
    assert found.algorithms["uniform"].settings["model.source.path"] == str(tmp_path / "m")
