"""What the trigger of a DAG may say: the typed form in Airflow's UI, and the check of a conf from elsewhere.

Airflow holds known params against their schema and lets unknown ones pass; here they are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from airflow.sdk import Param
from pydantic import Field, ValidationError, WithJsonSchema

from mlops_tasks.config.environment import Housekeeping
from mlops_tasks.config.settings import Settings
from mlops_tasks.errors import UserError
from mlops_tasks.pipeline import TASKS
from mlops_tasks.planning import tuned_name
from mlops_tasks.stage import Stage

CHECKOUT = Path(__file__).resolve().parents[2]
_RECIPES = CHECKOUT / "configs" / "recipes"
_COMPARISONS = CHECKOUT / "configs" / "comparisons"


class Form(Settings):
    """The choices of one run of a DAG."""

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Self:
        """The choices in a run's params.

        Raises:
            UserError: a param that there is not, or one of the wrong type.
        """
        try:
            return cls.model_validate(dict(params))
        except ValidationError as error:
            flaws = [f"{'.'.join(map(str, one['loc']))} is {one['input']!r}: {one['msg']}" for one in error.errors()]
            raise UserError(
                f"The conf of this trigger does not fit: {'; '.join(flaws)}. "
                f"It may say {', '.join(cls.model_fields)}; trigger the DAG anew."
            ) from None

    @classmethod
    def params(cls, **defaults: object) -> dict[str, Param]:
        """One typed field for each choice, with its description.

        Args:
            defaults: of choices that have none of their own, or another one.
        """
        properties = cls.model_json_schema()["properties"]
        given = {name: {"default": value} for name, value in defaults.items()}
        return {name: Param(**{**schema, **given.get(name, {})}) for name, schema in properties.items()}


class Trigger(Form):
    """The choices of one daily run."""

    recipe: str = Field(examples=sorted(path.stem for path in _RECIPES.glob("*.yaml")))
    """What to learn: a name in configs/recipes, the path of a file on the machine that runs Airflow, or tuned:NAME, what the last study of
    that recipe has found."""
    overrides: tuple[str, ...] = ()
    """Settings to change, one a line: train.steps=200"""
    force: tuple[str, ...] = Field((), examples=[task.id for task in TASKS.values() if isinstance(task.run, Stage)])
    """Tasks to run anew although their results are there."""

    @property
    def recipe_file(self) -> Path:
        """Where the recipe lies; a relative path is below the checkout. What a study has found is no file (`tuned:NAME`)."""
        return Path(self.recipe) if tuned_name(self.recipe) is not None else _file(self.recipe, _RECIPES)


class Contest(Form):
    """The choices of one comparison of algorithms."""

    comparison: str = Field("demo", examples=sorted(path.stem for path in _COMPARISONS.glob("*.yaml")))
    """What to compare: a name in configs/comparisons, or the path of a file on the machine that runs Airflow."""

    @property
    def file(self) -> Path:
        """Where the comparison lies; a relative path is below the checkout."""
        return _file(self.comparison, _COMPARISONS)


def _file(given: str, folder: Path) -> Path:
    is_name = Path(given).name == given and not given.endswith((".yaml", ".yml"))
    return folder / f"{given}.yaml" if is_name else CHECKOUT / given


class Cleaning(Form):
    """The choices of one housekeeping."""

    delete: Annotated[bool | None, WithJsonSchema({"type": ["null", "boolean"]})] = None
    """Remove what is shown; empty: as `housekeeping.delete` of the environment file says."""

    def decides(self, policy: Housekeeping) -> bool:
        """Whether anything may be removed."""
        return policy.delete if self.delete is None else self.delete


class Rollback(Form):
    """The choices of one rollback."""

    model: str = Field(min_length=1)
    """The product line: name of the registered model."""
    version: Annotated[str | None, WithJsonSchema({"type": ["null", "string"]})] = None
    """Number or alias of the version that production shall load; empty: the one that it loaded before."""
    reason: str = Field(min_length=1)
    """Why; kept with the version and in the log of moves."""
