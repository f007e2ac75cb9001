"""`Comparison`: which algorithms learn side by side."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from mlops_tasks.config.settings import Settings

ReadyAlgorithm = Literal["ntp", "uniform", "rho1-soft", "rho1-select", "critic", "shuffled", "random", "position"]


class Algorithm(Settings):
    """One way to learn, as what it changes in a comparison's recipe."""

    like: ReadyAlgorithm | None = None
    """The ready one that it starts from; None: the one of its own name, or else the recipe as it is."""
    settings: dict[str, Any] = {}
    """What else it changes, by dotted name: `weighting.strength: 0.3`."""
    grid: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = {}
    """Values by dotted name, such as `weighting.temperature: [0.5, 0.7, 1.0]`; each combination is compared as an algorithm of its own."""


class Comparison(Settings):
    """Algorithms side by side, learning the same problems in the same order, over several seeds."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """What it is called, in MLflow too: `wmtp/comparison/{name}`."""
    recipe: str
    """The recipe that all of them start from; a path."""
    settings: dict[str, Any] = {}
    """What is changed in the recipe for all of them, by dotted name."""
    algorithms: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")], Algorithm] = Field(min_length=2)
    """By name."""
    baseline: str
    """What the others are compared with: a name, with the values of its grid if it has one (`uniform, train.num_heads=2`)."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0, 1, 2), min_length=1)
    """Each algorithm learns once with each of these as the recipe's `seed`. With one seed nothing is known of what chance does."""

    @model_validator(mode="after")
    def _each_seed_once(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={list(self.seeds)}: one is there twice, and the same training counts once")
        return self

    @model_validator(mode="after")
    def _seed_is_not_an_algorithms(self) -> Self:
        places = {"settings": self.settings}
        for name, algorithm in self.algorithms.items():
            places |= {f"algorithms.{name}.settings": algorithm.settings, f"algorithms.{name}.grid": algorithm.grid}
        for place, settings in places.items():
            if "seed" in settings:
                raise ValueError(
                    f"{place} changes seed, which is each one of seeds={list(self.seeds)} in turn: leave it out, and say there which"
                )
        return self
