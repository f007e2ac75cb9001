"""One cell of a study: a recipe as a run of its own, from the data up to a judged model, by the daily run's own stages.

Every result lies where a daily run would look for it, and is a hit there and here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any

from mlops_tasks import stage
from mlops_tasks.config.kubernetes import SANDBOXED
from mlops_tasks.config.recipe import Recipe
from mlops_tasks.config.space import Objective
from mlops_tasks.data.problems import natural_order
from mlops_tasks.errors import DataError
from mlops_tasks.evaluation.comparison import passes
from mlops_tasks.keys import require_locked
from mlops_tasks.pipeline import EVALUATIONS, PREPARATION, TASKS, TRAIN, fan_out_of
from mlops_tasks.stage import Attempt, Run, cell_prefix
from mlops_tasks.store import Artifact, canonical_json
from mlops_tasks.training import Overseer, train
from mlops_tasks.tuning import asks

CANDIDATE = EVALUATIONS.index(("candidate", "gate"))


@dataclass(frozen=True)
class Cell:
    """A recipe that is tried."""

    run: Run

    @classmethod
    def below(cls, parent: Run, prefix: str, recipe: Recipe) -> Cell:
        """The cell of a recipe.

        Args:
            parent: whose data and models are pinned.
            prefix: below which its pointers are put.
            recipe: with the parent's data and models.
        """
        name = hashlib.sha256(canonical_json(recipe.model_dump(mode="json"))).hexdigest()[:16]
        # A cell trains on this machine alone.
        here = parent.environment.train.model_copy(update={"num_pods": 1})
        environment = parent.environment.model_copy(update={"train": here})
        spec = parent.spec.model_copy(
            update={
                "recipe": recipe,
                "champion": None,
                "force": (),
                "is_study": False,
                "fan_out": fan_out_of(recipe, environment, TASKS),
            }
        )
        run = Run(parent.store, environment, cell_prefix(prefix, name), spec)
        run.store.create_json(f"{run.prefix}/spec.json", spec.model_dump(mode="json"))
        return cls(run)

    def train(self, overseer: Overseer | None = None) -> Artifact:
        """All up to the training; what is there is a hit.

        Raises:
            WmtpError: as the stages do.
        """
        for name in PREPARATION:
            for index in range(self.run.spec.fan_out.get(name, 1)):
                self._do(name, index)
        # Its curve is in MLflow with the trial, so that it needs no run there of its own.
        task = replace(TASKS["train"], labels=lambda spec: {})
        call = (
            None if overseer is None else partial(_overseen, packages=task.packages(self.run.spec), overseer=overseer)
        )
        outcome = stage.execute(self.run, task, tasks=TASKS, call=call).outcome
        trained = self._made("train", 0)
        if overseer is not None and outcome == "hit":
            _replay(trained, overseer)
        return trained

    def measure(self, objectives: Sequence[Objective], overseer: Overseer | None = None) -> dict[Objective, float]:
        """Train, and measure what is asked for on the gate set.

        Raises:
            WmtpError: as the stages do.
        """
        found: dict[Objective, float] = {}
        trained = self.train(overseer)
        if "validation_loss" in objectives:
            found["validation_loss"] = _validation_nats(trained)
        if {"pass_at_1", "tokens_per_second"} & {*objectives}:
            self._do("generate", CANDIDATE)
            found["tokens_per_second"] = float(self._made("generate", CANDIDATE).metrics["tokens_per_second"])
        if "pass_at_1" in objectives:
            self._do("judge", CANDIDATE)
            found["pass_at_1"] = float(self._made("judge", CANDIDATE).metrics["pass_at_k"]["1"])
        return {name: found[name] for name in objectives}

    def rates(self) -> list[float]:
        """pass@1 of each problem by which the cell was measured, in the order of their ids."""
        found = passes(self._made("judge", CANDIDATE))
        return [fmean(found[id]) for id in sorted(found, key=natural_order)]

    def _do(self, task: str, index: int) -> None:
        """Here, or beside this pod where it has credentials and a model wrote what is run."""
        is_asked = task in SANDBOXED and self.run.environment.executor == "kubernetes"
        do = asks.fetch if is_asked else stage.execute
        do(self.run, TASKS[task], index, tasks=TASKS)

    def _made(self, task: str, index: int) -> Artifact:
        artifact = self.run.artifact(task, index)
        assert artifact is not None, f"{task} is skipped by no recipe"
        return artifact


def _overseen(attempt: Attempt, *, packages: Sequence[str], overseer: Overseer) -> dict[str, Any]:
    require_locked({*TRAIN.packages, *packages})
    return train(attempt, overseer=overseer)


def _replay(trained: Artifact, overseer: Overseer) -> None:
    """Tell the losses of a training that is there already: later trials are held against them, and it is kept whatever is said."""
    lines = map(json.loads, trained.path("curves.jsonl").read_text(encoding="utf-8").splitlines())
    for line in lines:
        if line["step"] > 0 and "validation_nats" in line:
            overseer.goes_on(line["step"], trained.metrics["steps"], line["validation_nats"])


def _validation_nats(trained: Artifact) -> float:
    nats = trained.metrics["validation_nats_after"]
    if nats is None:
        raise DataError(
            f"{trained.uri} has no validation loss, for the data have no validation problems. Take validation_loss out of tuning.objectives."
        )
    return float(nats)
