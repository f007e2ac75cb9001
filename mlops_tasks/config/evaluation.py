"""Settings: how a model is asked and judged, and what it must show to be promoted."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from mlops_tasks.config.settings import Settings
from mlops_tasks.config.sources import ProtocolId


class EvaluationSet(Settings):
    """Problems that decide or are shown."""

    split: Literal["validation", "test"]
    skip: int = Field(0, ge=0)
    """Leave out the first so many by id."""
    limit: int | None = Field(None, ge=1)
    """The first so many of the rest; None: all."""

    def shares_problems_with(self, other: EvaluationSet) -> bool:
        """Whether a problem may be in both sets."""
        first, second = sorted((self, other), key=lambda one: one.skip)
        return self.split == other.split and (first.limit is None or first.skip + first.limit > second.skip)


class Evaluation(Settings):
    """How a model is measured: by running what it writes."""

    protocol: ProtocolId = "docstring-0shot"
    """Form of the prompt."""
    num_samples: int = Field(1, ge=1)
    """n: programs per problem."""
    temperature: float = Field(0.0, ge=0)
    """0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling."""
    k: tuple[int, ...] = (1,)
    """pass@k is reported for each k here."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest program in tokens."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the weights while a model writes, candidate and baseline alike, whatever they were saved in; `bfloat16` takes half the
    memory."""
    min_seconds: float = Field(3.0, gt=0)
    """Least time limit of a program."""
    reference_factor: float = Field(5.0, ge=1)
    """The limit is this many times what the reference solution took, if that is more."""
    gate: EvaluationSet = EvaluationSet(split="validation")
    """Problems on which candidate and champion are compared."""
    report: EvaluationSet = EvaluationSet(split="test")
    """Problems that are only shown, never decided on."""

    @model_validator(mode="before")
    @classmethod
    def _splits_by_default(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        splits = {"gate": "validation", "report": "test"}
        sets = {name: {"split": splits[name], **tree[name]} for name in splits if isinstance(tree.get(name), dict)}
        return {**tree, **sets}

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if max(self.k, default=0) > self.num_samples or min(self.k, default=0) < 1:
            raise ValueError(f"k={list(self.k)}: each k must be from 1 to num_samples={self.num_samples}")
        if self.temperature == 0 and (self.num_samples > 1 or self.top_p < 1):
            raise ValueError("temperature 0 is greedy: it wants num_samples 1 and top_p 1")
        if self.gate.shares_problems_with(self.report):
            raise ValueError(
                f"gate and report share problems of the split {self.gate.split}: a set that decides must not be the one that "
                "is shown; take another split, or part this one with skip and limit"
            )
        return self


class NamedSet(Settings):
    """A part of the gate set on which a candidate must not be worse, however good it is on the whole."""

    ids: tuple[str, ...] = Field(min_length=1)
    """Its problems: ids, or patterns such as `strings-*`, in which `*` stands for anything."""
    max_loss: float = Field(0.05, ge=0, le=1)
    """The lower bound of the paired difference in pass@1 on these problems must be at least minus this. Few problems have a wide
    interval, and then a loss that may be chance is refused too."""


class Gate(Settings):
    """When a candidate takes the champion's place: every gate that is asked for must hold."""

    min_difference: float = Field(0.0, ge=-1, le=1)
    """The lower bound of the paired difference in pass@1 must be above this."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Of the one-sided lower bounds and of the intervals shown."""
    num_resamples: int = Field(10_000, ge=100)
    """Resamples of the paired bootstrap."""
    min_score: float | None = Field(None, ge=0, le=1)
    """Least pass@1 of the candidate on the gate set; None: any."""
    no_regression: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")], NamedSet] = {}
    """Parts of the gate set by name, each with a bound of its own."""
    max_model_bytes: int | None = Field(None, ge=1)
    """Largest size of the files that a model is loaded from, without heads 2..H; None: any."""
    min_tokens_per_second: float | None = Field(None, gt=0)
    """Least speed at which `generate` saw the candidate write; None: any. Other work on the machine only slows it down, so the
    fastest of its sets decides, of those that were written in one go and have a thousand tokens. It is a speed of that machine and batch
    size: set it well below what the champion reaches there."""
    max_contamination: float | None = Field(None, ge=0, lt=1)
    """Largest share of the training problems that equalled an evaluation problem and were left out: a source with many has near
    copies too, which no comparison finds. None: any. It needs `data.on_contamination: drop`."""


class Watch(Settings):
    """When the champion is said to have decayed: judged on the gate set of the data as they are now, and beyond chance."""

    max_loss: float = Field(0.05, ge=0, le=1)
    """The interval of the difference between its pass@1 now and when it was judged last as a candidate lies below minus this. Paired
    where the problems are the same."""
    min_score: float | None = Field(None, ge=0, le=1)
    """The interval of its pass@1 lies below this; None: any score is good enough."""
