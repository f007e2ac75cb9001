"""`Recipe`: what to learn. All of it that can change a result is in the keys of the stages that it can change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

from pydantic import Field, model_validator

from mlops_tasks.config.evaluation import Evaluation, EvaluationSet, Gate, Watch
from mlops_tasks.config.learning import (
    CrossFittedReference,
    GivenReference,
    Rho1,
    Scoring,
    Shuffled,
    SoftWeights,
    Train,
    TrainedReference,
    Uniform,
    Weighting,
)
from mlops_tasks.config.settings import Settings
from mlops_tasks.config.sources import Data, GeneratedData, Model, Text
from mlops_tasks.config.space import Tuning


class Recipe(Settings):
    """What to learn."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """Names the dataset part of the MLflow experiment `wmtp/{scorer}/{name}`."""
    seed: int = Field(0, ge=0)
    """Of order, folds, initial heads and sampling."""
    data: Data
    model: Model
    text: Text = Text()
    scoring: Scoring
    weighting: Weighting = SoftWeights(kind="soft")
    train: Train
    evaluation: Evaluation = Evaluation()
    gate: Gate = Gate()
    watch: Watch = Watch()
    tuning: Tuning | None = None
    """Where `wmtp_tune` looks for a better recipe; None: it does not. In no key of a daily run."""

    @model_validator(mode="after")
    def _measured_on_others_than_chosen_by(self) -> Self:
        chooser = next(self._choosers(), None)
        for name, other, use in (("gate", "report", "decide on them"), ("report", "gate", "show them")):
            part: EvaluationSet = getattr(self.evaluation, name)
            if chooser and part.split == "validation":
                raise ValueError(
                    f"{chooser} by the validation problems, so evaluation.{name} must not {use} too: "
                    f"set evaluation.{name}.split to test, and part it from evaluation.{other} with skip and limit"
                )
        return self

    def _choosers(self) -> Iterator[str]:
        """What chooses weights or trials by the validation problems."""
        trainings = {"train": self.train}
        if isinstance(self.reference, CrossFittedReference):
            trainings["scoring.reference.train"] = self.reference.train
        for name, train in trainings.items():
            if train.keep == "best" or train.patience is not None:
                yield f"{name}.{'keep' if train.keep == 'best' else 'patience'} chooses weights"
        if self.tuning is not None:
            if self.tuning.pruner.kind != "none":
                yield f"tuning.pruner {self.tuning.pruner.kind} chooses trials"
            if "validation_loss" in self.tuning.objectives:
                yield "tuning.objectives chooses trials"

    @model_validator(mode="after")
    def _contamination_may_be_there(self) -> Self:
        if self.gate.max_contamination is not None and self.data.on_contamination == "refuse":
            raise ValueError(
                f"gate.max_contamination is {self.gate.max_contamination}, but data.on_contamination is refuse, which ends the run at the first "
                "equal problem: set that to drop, or leave the limit out"
            )
        return self

    @model_validator(mode="after")
    def _weighting_has_an_effect(self) -> Self:
        if isinstance(self.scoring, Uniform) and self.weighting != SoftWeights(kind="soft"):
            raise ValueError(
                "weighting has no effect with scoring.scorer uniform, where every token counts the same: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _enough_generated(self) -> Self:
        source = self.data.source
        if isinstance(source, GeneratedData):
            sizes = {"validation": source.num_validation, "test": source.num_test}
            for name in ("gate", "report"):
                part: EvaluationSet = getattr(self.evaluation, name)
                if part.skip >= sizes[part.split]:
                    raise ValueError(
                        f"evaluation.{name}.skip is {part.skip}, but the split {part.split} has {sizes[part.split]} problems: "
                        "none would be left"
                    )
        return self

    @model_validator(mode="after")
    def _problems_left_to_decide(self) -> Self:
        source, gate = self.data.source, self.evaluation.gate
        if self.tuning is None or not self.tuning.asks_problems:
            return self
        there = None
        if isinstance(source, GeneratedData):
            there = {"validation": source.num_validation, "test": source.num_test}[gate.split] - gate.skip
        sizes = [one for one in (there, gate.limit) if one is not None]
        if sizes and self.tuning.num_problems >= min(sizes):
            raise ValueError(
                f"tuning.num_problems is {self.tuning.num_problems} of the {min(sizes)} problems of evaluation.gate: none would "
                "be left to decide by. Set it to less"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _soft_by_default(cls, tree: Any) -> Any:
        weighting = tree.get("weighting") if isinstance(tree, dict) else None
        return {**tree, "weighting": {"kind": "soft", **weighting}} if isinstance(weighting, dict) else tree

    def untuned(self, gate: EvaluationSet) -> Recipe:
        """The same recipe without a space, decided about by a part of its gate set."""
        return self.model_copy(update={"evaluation": self.evaluation.model_copy(update={"gate": gate}), "tuning": None})

    @property
    def reference(self) -> GivenReference | TrainedReference | CrossFittedReference | None:
        """The reference that the scorer needs, if any."""
        return self.scoring.reference if isinstance(self.scoring, Rho1 | Shuffled) else None
