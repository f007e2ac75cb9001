"""Settings: where a study looks for a better recipe."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mlops_tasks.config.evaluation import EvaluationSet
from mlops_tasks.config.settings import Settings

Scalar = bool | int | float | str | None
When = Annotated[
    dict[str, Scalar],
    Field(description="Only tried where another parameter of the space, by dotted name, has this value."),
]


class FloatRange(Settings):
    """A number between two bounds."""

    kind: Literal["float"]
    low: float
    """Smallest value that is tried."""
    high: float
    """Largest value that is tried."""
    log: bool = False
    """Tried evenly in the logarithm, as learning rates are."""
    step: float | None = Field(None, gt=0)
    """Only `low` and whole steps above it; None: any."""
    when: When = {}

    @model_validator(mode="after")
    def _is_range(self) -> Self:
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError(f"log wants a low above 0 and no step; got low={self.low}, step={self.step}")
        _require_rising(self.low, self.high)
        return self


class IntegerRange(Settings):
    """A whole number between two bounds."""

    kind: Literal["integer"]
    low: int
    """Smallest value that is tried."""
    high: int
    """Largest value that is tried."""
    log: bool = False
    """Tried evenly in the logarithm."""
    step: int = Field(1, ge=1)
    """Only `low` and whole steps above it."""
    when: When = {}

    @model_validator(mode="after")
    def _is_range(self) -> Self:
        if self.log and (self.low <= 0 or self.step != 1):
            raise ValueError(f"log wants a low above 0 and step 1; got low={self.low}, step={self.step}")
        _require_rising(self.low, self.high)
        return self


class Choice(Settings):
    """One of some values."""

    kind: Literal["choice"]
    choices: tuple[Scalar, ...] = Field(min_length=2)
    """The values, in no order that means something."""
    when: When = {}


Parameter = Annotated[FloatRange | IntegerRange | Choice, Field(discriminator="kind")]


def _require_rising(low: float, high: float) -> None:
    if low >= high:
        raise ValueError(f"low must be below high; got low={low}, high={high}")


class Tpe(Settings):
    """The tree-structured Parzen estimator, which tries more of what did well (arXiv 2304.11127)."""

    seed: int = Field(0, ge=0)
    """Of its draws. With one worker a study comes out the same again; with several it depends on who is faster."""
    num_startup_trials: int = Field(10, ge=1)
    """Trials that are drawn at random before it learns from them."""
    num_candidates: int = Field(24, ge=1)
    """Draws of which the most promising one is tried."""
    multivariate: bool = True
    """Parameters are drawn together, so that it sees what goes well with what."""
    group: bool = True
    """Parameters that are only tried with others (`when`) are drawn together with those alone. It needs `multivariate`."""
    constant_liar: bool = True
    """Trials that are running count as bad ones, so that two workers do not try the same."""

    @model_validator(mode="after")
    def _group_of_several(self) -> Self:
        if self.group and not self.multivariate:
            raise ValueError("group draws parameters together, which needs multivariate: true")
        return self


class NoPruner(Settings):
    """Every training goes on to its end."""

    kind: Literal["none"]


class MedianPruner(Settings):
    """A training ends whose validation loss is above the median of the earlier ones at the same step."""

    kind: Literal["median"]
    num_startup_trials: int = Field(5, ge=0)
    """Trainings that go on to their end in any case."""
    warmup_steps: int = Field(0, ge=0)
    """Optimiser steps before which none is ended."""


class HyperbandPruner(Settings):
    """Brackets of successive halving: of the trainings that reach a rung the best share goes on (arXiv 1603.06560)."""

    kind: Literal["hyperband"]
    min_steps: int = Field(ge=1)
    """Optimiser steps of the first rung."""
    max_steps: int = Field(ge=2)
    """Optimiser steps of the last one."""
    reduction_factor: int = Field(3, ge=2)
    """One in so many goes on."""

    @model_validator(mode="after")
    def _is_range(self) -> Self:
        if self.min_steps >= self.max_steps:
            raise ValueError(
                f"min_steps must be below max_steps; got min_steps={self.min_steps}, max_steps={self.max_steps}"
            )
        return self


Pruner = Annotated[NoPruner | MedianPruner | HyperbandPruner, Field(discriminator="kind")]
Objective = Literal["pass_at_1", "validation_loss", "tokens_per_second"]
"""`tokens_per_second`: how fast the trained model writes, with its heads guessing ahead where that pays."""


class Tuning(Settings):
    """Where a better recipe is looked for, and when one is believed to be better."""

    space: dict[str, Parameter] = Field(min_length=1)
    """By dotted name the settings of this recipe that are tried: of `train`, `weighting`, `scoring` or `text`. The recipe's own value must be
    among those that are tried, for it is the first trial."""
    num_trials: int = Field(ge=2)
    """Trials that are done in the end, pruned ones among them, whatever happens to workers."""
    num_problems: int = Field(50, ge=1)
    """Problems of the gate set, the first by id, by which trials are measured. The rest decides whether the best trial is believed, and by night about what
    its recipe makes. For
    `pass_at_1` and `tokens_per_second`: a `validation_loss` is of all validation problems, then as before."""
    sampler: Tpe = Tpe()
    pruner: Pruner = NoPruner(kind="none")
    """Which trainings end early, by their validation loss. Where another objective decides, `evaluation.gate` and `report` must be of other problems."""
    objectives: tuple[Objective, ...] = Field(("pass_at_1",), min_length=1, max_length=2)
    """What is looked for. With two, the trials that no other one beats in both are told, and the best of them by the first counts."""
    repeats: int = Field(3, ge=2, le=50)
    """Seeds with which the best recipe and this one learn again, side by side: measured on problems that no trial was measured by, or for
    `validation_loss` on the same ones, so that the seeds alone are new."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """One-sided, that the best recipe is better: where it is not, it is adopted by chance in at most 1 - `confidence` of the studies."""

    @property
    def asks_problems(self) -> bool:
        """Whether trials are measured by problems of the gate set, and not by the validation loss alone."""
        return self.objectives != ("validation_loss",)

    def for_trials(self, gate: EvaluationSet) -> EvaluationSet:
        """The problems of a gate set by which trials are measured."""
        return gate.model_copy(update={"limit": self.num_problems}) if self.asks_problems else gate

    def for_decisions(self, gate: EvaluationSet) -> EvaluationSet:
        """The problems of a gate set that have chosen no trial: they decide whether the best is believed, and about its model every night."""
        if not self.asks_problems:
            return gate
        limit = None if gate.limit is None else gate.limit - self.num_problems
        return gate.model_copy(update={"skip": gate.skip + self.num_problems, "limit": limit})

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if len({*self.objectives}) < len(self.objectives):
            raise ValueError(f"objectives={list(self.objectives)}: one is there twice")
        if len(self.objectives) > 1 and self.pruner.kind != "none":
            raise ValueError(
                f"pruner {self.pruner.kind} ends trainings by one loss, but there are two objectives: set pruner to kind none"
            )
        for name, parameter in self.space.items():
            earlier = list(self.space)[: list(self.space).index(name)]
            if unknown := [other for other in parameter.when if other not in earlier]:
                raise ValueError(
                    f"space.{name}.when names {', '.join(unknown)}, which is not in the space before it: {', '.join(earlier) or 'nothing'}"
                )
        return self
