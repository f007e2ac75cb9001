"""What a space may hold, and where in it the recipe is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlops_tasks.config.environment import Environment
from mlops_tasks.config.loading import changed, load_environment, load_recipe
from mlops_tasks.config.recipe import Recipe
from mlops_tasks.errors import UserError
from mlops_tasks.tuning.space import default_point, in_order, require_no_sandbox, require_space

ENVIRONMENT = Environment(store="s", mlflow_uri="sqlite:///m", tune={"storage": "sqlite:///o"})  # type: ignore[arg-type]


def recipe_with(tree: dict[str, Any], **space: Any) -> Recipe:
    parameters = {name.replace("__", "."): value for name, value in space.items()}
    return Recipe.model_validate(tree | {"tuning": tree["tuning"] | {"space": parameters}})


def floats(low: float, high: float, **more: Any) -> dict[str, Any]:
    return {"kind": "float", "low": low, "high": high, **more}


def test_the_space_of_the_tests_is_sound_and_the_recipe_is_in_it(tree: dict[str, Any]) -> None:
    recipe = Recipe.model_validate(tree)
    require_space(recipe, ENVIRONMENT)
    # The top share is that of `select`, and the recipe's weights are soft.
    assert default_point(recipe) == {
        "train.learning_rate": 0.003, "weighting.kind": "soft", "weighting.temperature": 0.7, "train.num_heads": 2
    }  # fmt: skip


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"train__learning_rat": floats(0.1, 0.2)}, r"(?s)tuning\.space\.train\.learning_rat .*train\.learning_rat is not a setting"),
        ({"train__learning_rate": floats(0.0, 0.01)}, r"(?s)tuning\.space\.train\.learning_rate \(0\.0\).*greater than 0"),
        ({"train__beta1": floats(0.5, 1.5)}, r"(?s)tuning\.space\.train\.beta1 \(1\.5\).*less than 1"),
        ({"train__num_heads": {"kind": "integer", "low": 1, "high": 99}}, r"(?s)train\.num_heads \(99\).*less than or equal to 16"),
        ({"train__keep": {"kind": "choice", "choices": ["last", "worst"]}}, r"(?s)tuning\.space\.train\.keep \('worst'\).*'best' or 'last'"),
        ({"train__learning_rate": floats(0.01, 0.1)}, r"train\.learning_rate does not hold 0\.003, which is the recipe's own value"),
        ({"train__new_head_learning_rate": floats(0.01, 0.1)}, r"new_head_learning_rate does not hold None"),
        ({"weighting__top_share": floats(0.3, 0.9, step=0.3)}, r"weighting\.top_share does not hold 0\.2"),
        ({"evaluation__temperature": floats(0.0, 1.0)}, r"evaluation\.temperature: trials may change settings of train, weighting, scoring, text alone"),
        ({"seed": {"kind": "integer", "low": 0, "high": 9}}, r"tuning\.space\.seed: trials may change"),
        ({"scoring__reference__data__seed": {"kind": "integer", "low": 0, "high": 9}}, "what lies at a data is pinned once"),
    ],
)  # fmt: skip
def test_what_cannot_be_tried_is_refused_before_anything_runs(
    tree: dict[str, Any], space: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        require_space(recipe_with(tree, **space), ENVIRONMENT)


def test_a_choice_that_would_choose_by_problems_that_decide_is_refused(tree: dict[str, Any]) -> None:
    tree |= {"evaluation": {}, "tuning": tree["tuning"] | {"objectives": ["pass_at_1"]}}
    with pytest.raises(UserError, match=r"(?s)train\.keep \('best'\).*evaluation\.gate must not decide"):
        require_space(recipe_with(tree, train__keep={"kind": "choice", "choices": ["last", "best"]}), ENVIRONMENT)


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        ({"space": {"train.learning_rate": floats(0.2, 0.1)}}, "low must be below high; got low=0.2, high=0.1"),
        ({"space": {"train.learning_rate": floats(0.0, 0.1, log=True)}}, "log wants a low above 0"),
        ({"space": {"weighting.temperature": floats(0.3, 0.9, when={"weighting.kind": "soft"})}}, "weighting.kind, which is not in the space before it"),
        ({"objectives": ["pass_at_1", "pass_at_1"]}, "one is there twice"),
        ({"objectives": ["pass_at_1", "tokens_per_second"], "pruner": {"kind": "median"}}, "there are two objectives"),
        ({"sampler": {"multivariate": False}}, "needs multivariate: true"),
        ({"pruner": {"kind": "hyperband", "min_steps": 8, "max_steps": 8}}, "min_steps must be below max_steps"),
    ],
)  # fmt: skip
def test_a_tuning_that_cannot_be_is_refused(tree: dict[str, Any], tuning: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe.model_validate(tree | {"tuning": tree["tuning"] | tuning})


@pytest.mark.parametrize(("gate", "report", "size"), [({"limit": 3}, {"skip": 3}, 3), ({"skip": 6}, {"limit": 6}, 2)])
def test_problems_must_be_left_to_decide_by(
    tree: dict[str, Any], gate: dict[str, int], report: dict[str, int], size: int
) -> None:
    tree["evaluation"] |= {"gate": {"split": "test", **gate}, "report": {"split": "test", **report}}
    Recipe.model_validate(tree)  # a validation loss is of all validation problems
    tree["tuning"] |= {"objectives": ["pass_at_1"], "num_problems": 3}
    with pytest.raises(
        ValueError, match=rf"num_problems is 3 of the {size} problems of evaluation\.gate: none would be left"
    ):
        Recipe.model_validate(tree)


@pytest.mark.parametrize(
    ("tuning", "what"),
    [
        ({"objectives": ["pass_at_1"], "pruner": {"kind": "median"}}, "tuning.pruner median"),
        ({"objectives": ["tokens_per_second"], "pruner": {"kind": "median"}}, "tuning.pruner median"),
        ({"objectives": ["pass_at_1", "validation_loss"]}, "tuning.objectives"),
        ({"objectives": ["validation_loss"]}, "tuning.objectives"),
    ],
)
def test_problems_that_decide_in_the_end_choose_no_trial(
    tree: dict[str, Any], tuning: dict[str, Any], what: str
) -> None:
    tree["tuning"] |= tuning
    parted, tree["evaluation"] = tree["evaluation"], {"max_new_tokens": 8}
    with pytest.raises(ValueError, match=f"{what} chooses trials by the validation problems, so evaluation.gate must"):
        Recipe.model_validate(tree)
    Recipe.model_validate(tree | {"evaluation": parted})


CLUSTER = load_environment(Path(__file__).parents[2] / "configs/environments/eks.yaml")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"tuning.objectives": ["pass_at_1"]}, "tuning.objectives has pass_at_1"),
        ({"tuning.objectives": ["tokens_per_second", "pass_at_1"]}, "tuning.objectives has pass_at_1"),
        ({"scoring.scorer": "critic"}, "scoring.scorer is critic"),
        ({"tuning.space": {"scoring.scorer": {"kind": "choice", "choices": ["random", "critic"]}}}, "scoring.scorer is critic"),
    ],
)  # fmt: skip
def test_a_study_of_which_some_needs_a_pod_without_credentials_is_told_from_others(
    tree: dict[str, Any], changes: dict[str, Any], what: str
) -> None:
    require_no_sandbox(Recipe.model_validate(tree))
    recipe = changed(Recipe.model_validate(tree), changes, "the test")
    with pytest.raises(UserError, match=rf"{what}, so trials .*\. With executor .* this process starts none"):
        require_no_sandbox(recipe)
    require_space(recipe, CLUSTER)


def test_problems_that_measured_trials_decide_nothing_later(tree: dict[str, Any]) -> None:
    recipe = Recipe.model_validate(tree)
    assert recipe.tuning is not None
    gate = recipe.evaluation.gate
    assert recipe.tuning.for_trials(gate) == recipe.tuning.for_decisions(gate) == gate  # the loss asks no problem of it
    tuning = recipe.tuning.model_copy(update={"objectives": ("pass_at_1",)})
    for limit, left in ((6, 3), (None, None)):
        whole = gate.model_copy(update={"skip": 5, "limit": limit})
        first, rest = tuning.for_trials(whole), tuning.for_decisions(whole)
        assert (first.skip, first.limit, rest.skip, rest.limit) == (5, 3, 8, left)
        assert not first.shares_problems_with(rest)


@pytest.mark.parametrize("name", ["text.max_length", "text.prompt"])
def test_what_changes_the_validation_problems_is_not_tried_where_their_loss_chooses(
    tree: dict[str, Any], name: str
) -> None:
    parameter = {
        "kind": "choice",
        "choices": [256, 128] if name == "text.max_length" else ["docstring-0shot", "mbpp-3shot"],
    }
    recipe = Recipe.model_validate(tree | {"tuning": tree["tuning"] | {"space": {name: parameter}}})
    with pytest.raises(
        UserError, match=rf"tuning\.space\.{name} changes the text of the validation problems.*tuning\.objectives"
    ):
        require_space(recipe, ENVIRONMENT)


def test_a_recipe_without_a_space_or_an_environment_without_a_database_cannot_be_tuned(tree: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"tune\.storage of the environment file is empty"):
        require_space(Recipe.model_validate(tree), Environment(store="s", mlflow_uri="sqlite:///m"))
    with pytest.raises(UserError, match="The recipe tiny has no part `tuning`"):
        require_space(Recipe.model_validate(tree | {"tuning": None}), ENVIRONMENT)


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({"storage": "sqlite:///o", "num_workers": 2}, "which several workers lock for one another"),
        ({"storage": "postgresql+psycopg2://me:secret@host/db"}, "String should match pattern"),
        ({"storage": "sqlite:///o", "heartbeat_seconds": 60, "grace_seconds": 90}, "a healthy trial would count as dead"),
    ],
)  # fmt: skip
def test_a_database_that_cannot_be_shared_is_refused(tune: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Environment(store="s", mlflow_uri="sqlite:///m", tune=tune)  # type: ignore[arg-type]


def test_a_change_of_kind_comes_first_for_it_starts_its_part_anew() -> None:
    assert list(in_order({"weighting.top_share": 0.4, "weighting.kind": "select"})) == [
        "weighting.kind",
        "weighting.top_share",
    ]


def test_the_demo_can_be_tuned() -> None:
    require_space(load_recipe(Path(__file__).parents[2] / "configs/recipes/demo.yaml"), ENVIRONMENT)
