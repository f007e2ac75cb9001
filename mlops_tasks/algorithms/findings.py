"""What a comparison came to, read from its artifacts: scores, differences from the baseline, what was equal, what each has cost.

Owns which figures are compared and what they are charged with; how a difference is told from chance is `inference`'s, and what is
said of it on a page `report.algorithms`'.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from mlops_tasks.algorithms import Cell, Cells
from mlops_tasks.algorithms.inference import Estimate, holm, over_seeds, over_seeds_and_problems
from mlops_tasks.config.recipe import Recipe
from mlops_tasks.data.problems import natural_order
from mlops_tasks.errors import Unavailable
from mlops_tasks.evaluation.comparison import asked_differently, not_alike, passes
from mlops_tasks.evaluation.metrics import McNemar, mcnemar
from mlops_tasks.ledger import failures
from mlops_tasks.pipeline import CANDIDATE_REPORT
from mlops_tasks.scoring.scorers import read_scores
from mlops_tasks.stage import Run
from mlops_tasks.store import Artifact

ALPHA = 0.05
Name = TypeVar("Name", bound=Hashable)
PLACEBOS = frozenset({"shuffled", "random", "position"})
_LEARNT_ALIKE = {
    "batches_sha256": "the problems of each step, in order",
    "steps": "optimiser steps",
    "train_tokens": "tokens through the model",
    "num_skipped": "steps left out",
}
"""Metrics of a training that must be the same for all algorithms of one seed."""
_PURPOSES = {
    "pull": "data and models",
    "reward": "critic",
    "fit_critic": "critic",
    "score_shard": "scores",
    "score": "scores",
    "generate": "evaluation",
    "judge": "evaluation",
}
_NUM_SCORING_MODELS = {"rho1": 1, "shuffled": 2, "critic": 1}
"""Models that read all training problems for their scores; static rho-1 has the base model read them too."""
PURPOSES = ("training", "reference", "scores", "critic", "evaluation", "data and models")
"""What device time goes to, in the order in which it is told."""


@dataclass(frozen=True)
class Result:
    """One cell that has ended."""

    cell: Cell
    run: Run
    train: Artifact
    judged: Artifact

    @classmethod
    def of(cls, cells: Cells, cell: Cell) -> Self:
        """What a cell came to.

        Raises:
            Unavailable: it has not ended, or an artifact of it is not whole any more.
        """
        run = cells.run(cell)
        train, judged = run.artifact("train"), run.artifact("judge", CANDIDATE_REPORT)
        assert train is not None and judged is not None, "no recipe skips these"
        return cls(cell, run, train, judged)

    @cached_property
    def passes(self) -> dict[str, list[bool]]:
        """Of each problem whether its programs passed, in the order of their ids."""
        found = passes(self.judged)
        return {id: found[id] for id in sorted(found, key=natural_order)}

    @property
    def rates(self) -> list[float]:
        """pass@1 of each problem, in the order of `passes`."""
        return [fmean(found) for found in self.passes.values()]

    @property
    def nats(self) -> float | None:
        """Validation loss of head 1 in nats a token; None: there are no validation problems."""
        found: float | None = self.train.metrics["validation_nats_after"]
        return found

    @cached_property
    def curve(self) -> list[tuple[int, float]]:
        """Validation loss of head 1 by step."""
        lines = map(json.loads, self.train.path("curves.jsonl").read_text(encoding="utf-8").splitlines())
        return [(line["step"], line["validation_nats"]) for line in lines if "validation_nats" in line]

    @cached_property
    def charges(self) -> dict[str, float]:
        """Device-seconds by purpose of all that this cell needs, whether it was made for it or found made.

        Of attempts that failed, what the next one went on from counts too; what was done again is chance, and no algorithm's.
        """
        seconds = dict.fromkeys(PURPOSES, 0.0)
        for artifact in self.needed.values():
            kept = sum(one["device_seconds"] - one["lost_device_seconds"] for one in self._failures[artifact.prefix])
            seconds[self._purpose(artifact)] += float(artifact.manifest["device_seconds"]) + kept
        return seconds

    @cached_property
    def spent(self) -> dict[str, float]:
        """Device-seconds of all that this cell needs, by prefix, failed attempts and what they lost among them."""
        return {
            prefix: float(artifact.manifest["device_seconds"])
            + sum(one["device_seconds"] for one in self._failures[prefix])
            for prefix, artifact in self.needed.items()
        }

    @property
    def is_continued(self) -> bool:
        """Whether something of it went on from an attempt that failed: one that was killed outright has recorded no seconds."""
        return any(
            one.metrics.get("resumed_from") is not None or one.metrics.get("num_resumed")
            for one in self.needed.values()
        )

    @cached_property
    def _failures(self) -> dict[str, list[Mapping[str, Any]]]:
        return {prefix: list(failures(one.store, prefix)) for prefix, one in self.needed.items()}

    @cached_property
    def needed(self) -> dict[str, Artifact]:
        """All that this cell needs, by prefix: what its model is made from, and its own evaluation.

        Not what its programs are recorded to be made from: another algorithm may have come to the same weights first.
        """
        written = self.run.artifact("generate", CANDIDATE_REPORT)
        assert written is not None
        return {one.prefix: one for one in (*_lineage(self.train), written, self.judged)}

    def _purpose(self, artifact: Artifact) -> str:
        if artifact.manifest["stage"] == "train":
            return "training" if artifact.prefix == self.train.prefix else "reference"
        return _PURPOSES[artifact.manifest["stage"]]

    @property
    def num_tokens(self) -> int:
        """Tokens that went through a model that learns: this one, and its references."""
        return sum(int(one.metrics["train_tokens"]) for one in self.needed.values() if one.manifest["stage"] == "train")

    @property
    def num_scored_tokens(self) -> int:
        """Tokens that went through a reference or the base model for the scores; those of a critic's candidates are not counted."""
        return sum(_num_forwarded(one) for one in self.needed.values() if one.manifest["stage"] == "score")


def _num_forwarded(scores: Artifact) -> int:
    scoring = scores.manifest["components"]["config"]["scoring"]
    num_models = _NUM_SCORING_MODELS.get(scoring["scorer"], 0) + int(scoring.get("mode") == "static")
    rows = read_scores(scores.path("scores.parquet")).values()
    # A critic that is refused reads nothing, and another one only problems whose candidates differ in their rewards.
    read = [row for row in rows if row.is_scored] if scoring["scorer"] == "critic" else rows
    return num_models * sum(len(row.token_ids) for row in read)


def _lineage(artifact: Artifact) -> Iterator[Artifact]:
    yield artifact
    for given in artifact.manifest["inputs"].values():
        found = artifact.store.version_at(given["artifact"], given["digest"], given["files"])
        if found is None:
            raise Unavailable(
                f"{given['artifact']}, which {artifact.uri} was made from, is not in the store any more, so nobody can tell what it has cost. "
                "Run the comparison again."
            )
        yield from _lineage(found)


@dataclass(frozen=True)
class Contrast:
    """An algorithm against the baseline, by one measure."""

    estimate: Estimate
    corrected_p: float
    """Over all algorithms, by Holm."""

    @property
    def is_shown(self) -> bool:
        """Whether there is a difference beyond chance."""
        return self.corrected_p < ALPHA

    @property
    def is_better(self) -> bool:
        """Whether it is shown to be above zero."""
        return self.is_shown and self.estimate.value > 0

    def in_words(self) -> str:
        """A difference of shares: its value, interval and p."""
        return f"{points(self.estimate.value)} points, {span(self.estimate)}, corrected p {p_text(self.corrected_p)}"


@dataclass(frozen=True)
class Arm:
    """One algorithm over all seeds."""

    name: str
    recipe: Recipe
    """With the first seed."""
    results: Sequence[Result]
    """By seed."""

    @cached_property
    def rates_SN(self) -> npt.NDArray[np.float64]:
        """pass@1 by seed and problem."""
        return np.array([result.rates for result in self.results])

    @property
    def by_seed(self) -> list[float]:
        """pass@1 of each seed."""
        return [float(rate) for rate in self.rates_SN.mean(1)]

    @cached_property
    def estimate(self) -> Estimate:
        """pass@1, for other seeds and other problems."""
        return over_seeds_and_problems(self.rates_SN)

    @property
    def nats(self) -> list[float] | None:
        """Validation loss of each seed; None: there are no validation problems."""
        found = [result.nats for result in self.results]
        return [one for one in found if one is not None] if None not in found else None

    @property
    def is_placebo(self) -> bool:
        """Whether its weights have nothing to do with importance."""
        return self.recipe.scoring.scorer in PLACEBOS

    @property
    def is_weighted(self) -> bool:
        """Whether its weights are to be of importance."""
        return not self.is_placebo and self.recipe.scoring.scorer != "uniform"

    @property
    def notes(self) -> list[str]:
        """What a scorer said of itself: a critic that was refused learnt with uniform weights."""
        found = [result.run.artifact("score") for result in self.results if result.run.pointer("score")]
        words = [one.metrics["critic_verdict"] for one in found if one and "critic_verdict" in one.metrics]
        return list(dict.fromkeys(words))

    @property
    def is_continued(self) -> bool:
        """Whether what it is charged with is the least that it can have taken: see `Result.is_continued`."""
        return any(result.is_continued for result in self.results)

    def charge(self, purpose: str) -> float:
        """Device-seconds of one training with all that it needs: the mean over the seeds."""
        return fmean(result.charges[purpose] for result in self.results)

    @property
    def num_tokens(self) -> float:
        """Tokens that went through learning models, references among them: the mean over the seeds."""
        return fmean(result.num_tokens for result in self.results)

    @property
    def num_scored_tokens(self) -> float:
        """Tokens that were scored by another model: the mean over the seeds."""
        return fmean(result.num_scored_tokens for result in self.results)


@dataclass(frozen=True)
class Findings:
    """A comparison whose cells have all ended."""

    cells: Cells
    arms: Sequence[Arm]
    """The baseline first."""
    passed: Mapping[str, Contrast]
    """By algorithm its difference in pass@1 from the baseline."""
    flips: Mapping[str, tuple[McNemar, float]]
    """By algorithm the first programs that only it, or only the baseline, has right, over problems and seeds; and the corrected p."""
    losses: Mapping[str, Contrast]
    """By algorithm its difference in validation loss; empty where there is none, or one seed alone."""
    over_placebos: Mapping[tuple[str, str], Contrast]
    """By weighted algorithm and placebo the difference in pass@1 between the two; those with the baseline are in `passed`."""
    unequal: Sequence[str]
    """In what the trainings were not equal; empty if they were."""
    equal: Sequence[str]
    """In what they were, with the values, in words."""

    @classmethod
    def of(cls, cells: Cells) -> Self:
        """Read and compare.

        Raises:
            Unavailable: a cell has not ended.
            DataError: the cells were not asked alike.
        """
        baseline = _arm(cells, cells.plan.comparison.baseline)
        others = [_arm(cells, name) for name in cells.plan.arms if name != baseline.name]
        arms = [baseline, *others]
        _require_asked_alike(arms, baseline)
        flips = [_flips(arm, baseline) for arm in others]
        corrected = holm([one.p_value for one in flips])
        unequal, equal = _equality(arms, baseline)
        return cls(
            cells,
            arms,
            _corrected({arm.name: over_seeds_and_problems(arm.rates_SN - baseline.rates_SN) for arm in others}),
            {arm.name: (test, p) for arm, test, p in zip(others, flips, corrected, strict=True)},
            _losses(others, baseline),
            _over_placebos(others),
            unequal,
            equal,
        )

    @property
    def baseline(self) -> Arm:
        """What the others are compared with."""
        return self.arms[0]

    @property
    def others(self) -> Sequence[Arm]:
        """All but the baseline."""
        return self.arms[1:]

    @property
    def num_problems(self) -> int:
        """Judged of each cell."""
        return int(self.baseline.rates_SN.shape[1])

    @property
    def num_seeds(self) -> int:
        """Trainings of each algorithm."""
        return len(self.cells.plan.comparison.seeds)

    @property
    def spent(self) -> float:
        """Device-seconds of all artifacts of the comparison with the attempts that failed, what several need counted once."""
        found: dict[str, float] = {}
        for arm in self.arms:
            for result in arm.results:
                found |= result.spent
        return sum(found.values())

    def verdicts(self) -> list[str]:
        """What may be concluded, a sentence each: first what was not equal, then one for each algorithm."""
        warnings = [f"NOT EQUAL, so no conclusion is safe: {one}" for one in self.unequal]
        if self.num_seeds == 1:
            warnings.append("One seed: what is shown may be chance of the training. Compare with three or more.")
        found = [verdict(self, arm) for arm in self.others]
        doubts = [
            over_placebo(arm, placebo, contrast)
            for (arm, placebo), contrast in self.over_placebos.items()
            if self.passed[arm].is_better
        ]
        return [*warnings, *found, *doubts]

    @property
    def headline(self) -> str:
        """The whole in one sentence."""
        shown = [arm.name for arm in self.others if self.passed[arm.name].is_shown]
        if not shown:
            return f"No algorithm is shown to differ from {self.baseline.name} in pass@1."
        words = [f"{name} {_better(self.passed[name].estimate.value)}" for name in shown]
        return f"In pass@1, against {self.baseline.name}: {', '.join(words)}; for the others no difference is shown."


def verdict(findings: Findings, arm: Arm) -> str:
    """What may be concluded of one algorithm."""
    contrast, baseline = findings.passed[arm.name], findings.baseline.name
    estimate = contrast.estimate
    figures = contrast.in_words()
    if contrast.is_shown:
        words = f"{arm.name} is {_better(estimate.value)} than {baseline} ({figures})."
    elif estimate.value == estimate.margin() == 0:
        words = f"{arm.name}: no difference from {baseline} is shown: with each seed it is right on the same problems."
    else:
        least = 100 * estimate.margin(ALPHA / len(findings.passed))
        words = (
            f"{arm.name}: no difference from {baseline} is shown ({figures}); one of less than about {least:.0f} points "
            "would not show here."
        )
    loss = findings.losses.get(arm.name)
    if loss is None:
        return words
    lower = "lower" if loss.estimate.value < 0 else "higher"
    told = f"is {lower} by {abs(loss.estimate.value):.3f} nats" if loss.is_shown else "is not shown to differ"
    return f"{words} Its validation loss {told} (corrected p {p_text(loss.corrected_p)})."


def over_placebo(arm: str, placebo: str, contrast: Contrast) -> str:
    """What may be concluded of an algorithm from one whose weights have nothing to do with importance."""
    figures = contrast.in_words()
    if contrast.is_better:
        return f"{arm} is better than the placebo {placebo} as well ({figures}): which tokens have the weights matters."
    return (
        f"{arm} is not shown to be better than the placebo {placebo} ({figures}), whose weights have nothing to do with importance: what helps "
        "need not be that."
    )


def _better(difference: float) -> str:
    return "better" if difference > 0 else "worse"


def points(share: float) -> str:
    """A difference of shares in points, signed."""
    return f"{100 * share:+.1f}"


def span(estimate: Estimate) -> str:
    """The interval of a difference of shares in points."""
    return " to ".join(map(points, estimate.interval))


def p_text(value: float) -> str:
    """A p-value as text."""
    return "< 0.001" if value < 0.001 else f"{value:.2g}"


def _arm(cells: Cells, name: str) -> Arm:
    results = [Result.of(cells, cell) for cell in cells.of_arm(name)]
    return Arm(name, results[0].run.spec.recipe, results)


def _require_asked_alike(arms: Sequence[Arm], baseline: Arm) -> None:
    first = baseline.results[0].judged
    for result in (result for arm in arms for result in arm.results):
        if differences := asked_differently(result.judged, first):
            raise not_alike(result.judged, first, differences)


def _corrected(estimates: Mapping[Name, Estimate]) -> dict[Name, Contrast]:
    corrected = holm([one.p_value for one in estimates.values()])
    return {name: Contrast(one, p) for (name, one), p in zip(estimates.items(), corrected, strict=True)}


def _over_placebos(others: Sequence[Arm]) -> dict[tuple[str, str], Contrast]:
    pairs = itertools.product((arm for arm in others if arm.is_weighted), (arm for arm in others if arm.is_placebo))
    return _corrected(
        {(arm.name, placebo.name): over_seeds_and_problems(arm.rates_SN - placebo.rates_SN) for arm, placebo in pairs}
    )


def _losses(others: Sequence[Arm], baseline: Arm) -> dict[str, Contrast]:
    found: dict[str, Estimate] = {}
    for arm in others:
        if arm.nats is None or baseline.nats is None:
            return {}
        estimate = over_seeds([ours - theirs for ours, theirs in zip(arm.nats, baseline.nats, strict=True)])
        if estimate is None:
            return {}
        found[arm.name] = estimate
    return _corrected(found)


def _flips(arm: Arm, baseline: Arm) -> McNemar:
    ours, theirs = ([one[0] for result in side.results for one in result.passes.values()] for side in (arm, baseline))
    return mcnemar(ours, theirs)


def _equality(arms: Sequence[Arm], baseline: Arm) -> tuple[list[str], list[str]]:
    """What of the trainings of one seed differs between algorithms, and what does not: by what they recorded themselves."""
    unequal, equal = [], []
    for name, words in _made_alike(baseline.results[0]):
        values = [[_recorded(result, name) for result in arm.results] for arm in arms]
        theirs = values[arms.index(baseline)]
        different = [arm.name for arm, ours in zip(arms, values, strict=True) if ours != theirs]
        if different:
            unequal.append(
                f"{words} of {', '.join(different)} {'is' if len(different) == 1 else 'are'} not that of {baseline.name}."
            )
        else:
            equal.append(f"{words} ({_shown(theirs)})")
    return unequal, equal


def _made_alike(result: Result) -> Iterator[tuple[str, str]]:
    yield "data", "the training data"
    yield "model", "the model that learns"
    yield from _LEARNT_ALIKE.items()


def _recorded(result: Result, name: str) -> Any:
    given: Mapping[str, Any] = result.train.manifest["inputs"]
    return given[name]["digest"] if name in given else result.train.metrics.get(name)


def _shown(values: Sequence[Any]) -> str:
    distinct = list(dict.fromkeys(values))
    words = [one[:8] if isinstance(one, str) else f"{one:,}" for one in distinct]
    return words[0] if len(words) == 1 else f"by seed {', '.join(words)}"
