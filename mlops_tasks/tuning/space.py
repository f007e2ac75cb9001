"""What a study may try: the space of a recipe, held against the recipe's own bounds before anything runs.

Owns what is in a space, what a trial draws from it, and where in it the recipe itself is. Nothing here needs Optuna but a trial of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mlops_tasks.config.environment import Environment
from mlops_tasks.config.loading import changed
from mlops_tasks.config.recipe import Recipe
from mlops_tasks.config.space import Choice, FloatRange, IntegerRange, Tuning
from mlops_tasks.errors import UserError

if TYPE_CHECKING:
    from optuna import Trial

_PARTS = ("train", "weighting", "scoring", "text")
# What lies there is pinned once, for all trials.
_PINNED = frozenset({"data", "model", "source", "path", "repo", "revision"})
_KINDS = ("kind", "scorer")


def tuning_of(recipe: Recipe) -> Tuning:
    """The part `tuning` of a recipe.

    Raises:
        UserError: it has none.
    """
    if recipe.tuning is None:
        raise UserError(
            f"The recipe {recipe.name} has no part `tuning`, so there is nothing to try. See configs/recipes/demo.yaml and docs/tuning.md."
        )
    return recipe.tuning


def require_space(recipe: Recipe, environment: Environment) -> None:
    """Hold a space against the recipe whose settings it changes: each bound and each choice is tried on it.

    Raises:
        UserError: no space or no database, an unknown setting, a value that the setting refuses, or a space without the recipe's own value.
    """
    tuning = tuning_of(recipe)
    if environment.tune.storage is None:
        raise UserError(
            "tune.storage of the environment file is empty, so there is no database for the study. Set it to sqlite:///… for one worker, or to "
            "env:NAME, a variable with the address of a PostgreSQL."
        )
    for name, parameter in tuning.space.items():
        _require_free(name)
        _require_same_measure(name, tuning)
        for value in _ends(parameter):
            changed(recipe, in_order({**_needed(tuning, name), name: value}), f"tuning.space.{name} ({value!r})")
    _require_room(recipe, tuning)
    default_point(recipe)


def require_no_sandbox(recipe: Recipe) -> None:
    """Refuse a study of which some is done in pods without credentials, where no pods are started.

    Raises:
        UserError: it is such a study.
    """
    tuning = tuning_of(recipe)
    scorer = tuning.space.get("scoring.scorer")
    scorers = {recipe.scoring.scorer, *(scorer.choices if isinstance(scorer, Choice) else ())}
    if "pass_at_1" in tuning.objectives:
        what = "tuning.objectives has pass_at_1, so trials run programs that a model wrote"
    elif "critic" in scorers:
        what = "scoring.scorer is critic, so trials reward candidates"
    else:
        return
    raise UserError(
        f"{what}. With executor kubernetes pods without credentials do that, and this process starts none. Run the study by the DAG wmtp_tune, or where "
        "executor is local, on the same store: what it adopts is tuned:NAME on the cluster too."
    )


def _require_free(name: str) -> None:
    first, *rest = name.split(".")
    if first not in _PARTS or not rest:
        raise UserError(
            f"tuning.space.{name}: trials may change settings of {', '.join(_PARTS)} alone, by dotted name. The rest says what is learnt or how it "
            "is measured, and must be the same for all of them."
        )
    if pinned := _PINNED & {*rest}:
        raise UserError(
            f"tuning.space.{name}: what lies at a {min(pinned)} is pinned once for all trials. Take it out of the space."
        )


def _require_same_measure(name: str, tuning: Tuning) -> None:
    by_loss = [
        part
        for part, is_so in (
            ("objectives", "validation_loss" in tuning.objectives),
            ("pruner", tuning.pruner.kind != "none"),
        )
        if is_so
    ]
    if by_loss and name.startswith("text."):
        raise UserError(
            f"tuning.space.{name} changes the text of the validation problems, and which of them are left out, so that validation losses of two "
            f"trials could not be compared, by which tuning.{by_loss[0]} chooses. Take it out of the space, or tune by pass_at_1 without a pruner."
        )


def _require_room(recipe: Recipe, tuning: Tuning) -> None:
    if "pass_at_1" in tuning.objectives and 1 not in recipe.evaluation.k:
        raise UserError(
            f"tuning.objectives has pass_at_1, but evaluation.k is {list(recipe.evaluation.k)}. Add 1 to evaluation.k."
        )


def _ends(parameter: FloatRange | IntegerRange | Choice) -> tuple[Any, ...]:
    return parameter.choices if isinstance(parameter, Choice) else (parameter.low, parameter.high)


def _needed(tuning: Tuning, name: str) -> dict[str, Any]:
    """Values that others must have for a parameter to be tried at all."""
    found: dict[str, Any] = {}
    for other, value in tuning.space[name].when.items():
        found |= {**_needed(tuning, other), other: value}
    return found


def in_order(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes with those of a kind first: they start their part anew."""
    return dict(sorted(changes.items(), key=lambda one: one[0].rpartition(".")[2] not in _KINDS))


def default_point(recipe: Recipe) -> dict[str, Any]:
    """Where in its space the recipe itself is, by dotted name.

    Raises:
        UserError: outside.
    """
    tuning, tree = tuning_of(recipe), recipe.model_dump(mode="json")
    point = dict(_asked(tuning, lambda name, parameter: _value_at(tree, name)))
    for name, value in point.items():
        if not _holds(tuning.space[name], value):
            raise UserError(
                f"tuning.space.{name} does not hold {value!r}, which is the recipe's own value and would be the first trial. Widen it, or change the recipe."
            )
    return point


def draw(trial: Trial, recipe: Recipe) -> dict[str, Any]:
    """What a trial of Optuna changes in the recipe, by dotted name."""
    return dict(_asked(tuning_of(recipe), lambda name, parameter: _suggested(trial, name, parameter)))


def _asked(tuning: Tuning, value_of: Any) -> Iterator[tuple[str, Any]]:
    """Parameters that are tried, in the order of the space, each with its value."""
    found: dict[str, Any] = {}
    for name, parameter in tuning.space.items():
        if all(found.get(other, _NEVER) == wanted for other, wanted in parameter.when.items()):
            found[name] = value_of(name, parameter)
            yield name, found[name]


_NEVER = object()


def _suggested(trial: Trial, name: str, parameter: FloatRange | IntegerRange | Choice) -> Any:
    if isinstance(parameter, Choice):
        return trial.suggest_categorical(name, parameter.choices)
    if isinstance(parameter, IntegerRange):
        return trial.suggest_int(name, parameter.low, parameter.high, step=parameter.step, log=parameter.log)
    return trial.suggest_float(name, parameter.low, parameter.high, step=parameter.step, log=parameter.log)


def _value_at(tree: Any, name: str) -> Any:
    for part in name.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def _holds(parameter: FloatRange | IntegerRange | Choice, value: Any) -> bool:
    if isinstance(parameter, Choice):
        return any(value == choice and type(value) is type(choice) for choice in parameter.choices)
    if isinstance(value, bool) or not isinstance(value, int | float) or not parameter.low <= value <= parameter.high:
        return False
    if parameter.step is None:
        return True
    steps = (value - parameter.low) / parameter.step
    return abs(steps - round(steps)) < 1e-8
