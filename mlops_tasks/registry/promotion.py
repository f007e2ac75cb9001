"""What a night's candidate has to show: hold it against the champion, register it, and have it made champion if it is better.

The action `promote` owns the gate and its evidence; what a version is said to be is `registry`'s, how an alias moves is
`registry.moves`'. Everything is found before it is made and every step can be repeated, so that a kill at any point costs nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import pyarrow.parquet as pq

from mlops_tasks import registry, tracking
from mlops_tasks.config import Gate
from mlops_tasks.errors import DataError
from mlops_tasks.evaluation.comparison import asked_differently, not_alike, passes
from mlops_tasks.evaluation.metrics import McNemar, mcnemar, paired_bootstrap
from mlops_tasks.registry import BY_HAND, PROMOTED_BY, Version
from mlops_tasks.registry.card import Card
from mlops_tasks.registry.moves import Order, moving
from mlops_tasks.stage import Champion, Run, champion_artifact
from mlops_tasks.store import Artifact

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

Outcome = Literal["promoted", "refused", "already champion"]

log = logging.getLogger(__name__)

# Of the mapped tasks generate and judge; the order is `pipeline.EVALUATIONS`.
CANDIDATE_GATE, CANDIDATE_REPORT, BASELINE_GATE, BASELINE_REPORT = range(4)


@dataclass(frozen=True)
class Evidence:
    """What the gate decides on, and all that one needs to check it later."""

    passed: bool
    num_problems: int
    candidate: float
    """Mean pass@1 on the gate set."""
    baseline: float
    difference: float
    lower_bound: float
    """One-sided, of the paired difference."""
    low: float
    high: float
    """Two-sided interval of the same confidence."""
    confidence: float
    min_difference: float
    only_candidate: int
    """Problems that only the candidate solves (by its first program)."""
    only_baseline: int
    mcnemar_p: float
    compared_with: str
    """`version 3`, or `the base model`."""
    candidate_outcomes: str
    """Digest of the judged outcomes."""
    baseline_outcomes: str
    spec: str
    """Digest of the spec."""


def promote(run: Run) -> dict[str, Any]:
    """Register the candidate of a run and make it the champion if the gate says so.

    Returns:
        outcome ("promoted", "refused" or "already champion"), version, reason, evidence.

    Raises:
        DataError: the outcomes are not of the candidate, of the pinned baseline, or of the same problems and protocol.
        Unavailable: the registry cannot be reached.
    """
    candidate = _present(run, "train")
    name = run.spec.recipe.model.name
    with tracking.connection(run.environment) as client:
        now = registry.champion_of(client, name)
        if now is not None and now.digest == candidate.digest:
            return _of_champion(client, run, candidate, now)
        evidence = weigh(run, candidate)
        known = registry.find(client, name, candidate)
        if known is not None and (reason := _why_not_by_night(known, now)):
            return _result("refused", known.number, reason, asdict(evidence))
        version = _register(client, run, candidate, evidence)
        outcome, reason = _decide(client, run, version, evidence)
        return _result(outcome, version, reason, asdict(evidence))


def _of_champion(client: MlflowClient, run: Run, candidate: Artifact, now: Champion) -> dict[str, Any]:
    """What is said where the candidate is the champion: made so by this very run, which is repeated, or before."""
    # What a kill left of this run's own move is brought to its end here.
    with moving(client, run.environment, now.name, by=run.prefix) as line:
        line.withdraw(now.version)
        by = client.get_model_version(now.name, now.version).tags.get(PROMOTED_BY, BY_HAND)
        registry.set_tags(client, now.name, now.version, {PROMOTED_BY: by})
    if by == run.prefix:
        evidence = weigh(run, candidate)
        return _result("promoted", now.version, _in_words(evidence), asdict(evidence))
    reason = f"Version {now.version} of {now.name} has the very same bytes and is the champion already, promoted {_whom(by)}."
    return _result("already champion", now.version, reason, {})


def _whom(by: str) -> str:
    return by if by == BY_HAND else f"by {by.removeprefix('runs/')}"


def _why_not_by_night(known: Version, now: Champion | None) -> str | None:
    """Why a version that is not the champion does not become it, however good: somebody may have decided so."""
    if known.is_archived:
        return (
            f"Version {known.number} was archived {known.who_and_why('archived')}. A night does not undo that. Delete its tag "
            "`archived_at` in MLflow if it is to return."
        )
    if PROMOTED_BY not in known.tags:
        return None
    why = f" It was rolled back {known.who_and_why('rolled_back')}." if known.is_taken_back else ""
    return (
        f"Version {known.number} has been the champion before, and {f'version {now.version}' if now else 'no version'} is now.{why} A night does "
        f"not undo that, for somebody may have taken it back. `wmtp registry promote {known.name} {known.number}` makes it return."
    )


def _result(outcome: Outcome, version: str, reason: str, evidence: dict[str, Any]) -> dict[str, Any]:
    return {"outcome": outcome, "version": version, "reason": reason, "evidence": evidence}


def _present(run: Run, task: str, index: int = 0) -> Artifact:
    artifact = run.artifact(task, index)
    if artifact is None:
        raise DataError(
            f"Task {task}[{index}] of {run.name} was skipped, and promote decides on its result. Clear it and run it."
        )
    return artifact


# The evidence


def weigh(run: Run, candidate: Artifact) -> Evidence:
    """Compare candidate and baseline problem by problem on the gate set.

    Raises:
        DataError: the two were not measured alike, or not on these models.
    """
    _require_judged(run, CANDIDATE_GATE, candidate)
    _require_judged(run, BASELINE_GATE, _baseline(run))
    ours, theirs = _present(run, "judge", CANDIDATE_GATE), _present(run, "judge", BASELINE_GATE)
    a, b = _paired(ours, theirs)
    gate, champion = run.spec.recipe.gate, run.spec.champion
    shares, other_shares = [_mean(passed) for passed in a], [_mean(passed) for passed in b]
    interval = paired_bootstrap(
        shares, other_shares, confidence=gate.confidence, num_resamples=gate.num_resamples, seed=run.spec.recipe.seed
    )
    test = mcnemar([passed[0] for passed in a], [passed[0] for passed in b])
    return Evidence(
        passed=interval.lower_bound > gate.min_difference and _is_no_chance(test, gate),
        num_problems=len(a), candidate=_mean(shares), baseline=_mean(other_shares),
        difference=interval.difference, lower_bound=interval.lower_bound, low=interval.low, high=interval.high,
        confidence=gate.confidence, min_difference=gate.min_difference,
        only_candidate=test.only_a, only_baseline=test.only_b, mcnemar_p=test.p_value,
        compared_with=f"version {champion.version}" if champion else "the base model",
        candidate_outcomes=ours.digest, baseline_outcomes=theirs.digest,
        spec=run.spec.digest,
    )  # fmt: skip


def _is_no_chance(test: McNemar, gate: Gate) -> bool:
    """Where better is asked for, the exact one-sided sign test must agree: of three problems that differ, equal models win all
    in one case of eight, and the bootstrap's bound is above zero then."""
    return gate.min_difference < 0 or (test.only_a > test.only_b and test.p_value / 2 <= 1 - gate.confidence)


def _baseline(run: Run) -> Artifact:
    """The model that the candidate is held against: the champion that `plan` pinned, or the base model."""
    if run.spec.champion is None:
        return _present(run, "pull_model")
    return champion_artifact(run)


def _require_judged(run: Run, index: int, model: Artifact) -> None:
    """The outcomes must come, through the completions, from this very model."""
    completions, outcomes = _present(run, "generate", index), _present(run, "judge", index)
    judged, asked = outcomes.manifest["inputs"]["completions"], completions.manifest["inputs"]["model"]
    if (judged["digest"], asked["digest"]) != (completions.digest, model.digest_of("model/*")):
        raise DataError(
            f"{outcomes.uri} does not speak of the model {model.uri}: judge[{index}] or generate[{index}] of {run.name} is older "
            f"than what it reads. Clear generate[{index}] and all below it."
        )
    # An artifact from before protections were recorded was confined: there was no other way.
    if "seccomp" not in outcomes.metrics.get("protections", ["seccomp"]) and not run.environment.judge.unsafe:
        raise DataError(
            f"{outcomes.uri} was judged where nothing kept the programs in (judge.unsafe), and what they did may be part of the verdict. Run "
            f"the DAG with `force: judge` on a machine that confines them."
        )


def _paired(ours: Artifact, theirs: Artifact) -> tuple[list[list[bool]], list[list[bool]]]:
    """The verdicts of both, problem by problem in one order."""
    if differences := asked_differently(ours, theirs):
        raise not_alike(ours, theirs, differences)
    a, b = passes(ours), passes(theirs)
    return [a[id] for id in sorted(a)], [b[id] for id in sorted(a)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# The registry


def _register(client: MlflowClient, run: Run, candidate: Artifact, evidence: Evidence) -> str:
    """The version of the candidate, found or made, with the evidence on it."""
    facts = _facts(run, candidate)
    logged = tracking.complete(
        client, run.environment, train=candidate, experiment=tracking.experiment_name(run.spec.recipe),
        metrics=_final_metrics(run, evidence), tags=facts, prompt=_first_prompt(run),
    )  # fmt: skip
    name = run.spec.recipe.model.name
    version = registry.register(
        client, name, train=candidate, logged=logged, outcomes=_present(run, "judge", CANDIDATE_GATE),
        tags={**facts, **{f"gate.{name}": str(value) for name, value in asdict(evidence).items()}},
    )  # fmt: skip
    card = Card(run, candidate, version=version, compared=_in_words(evidence))
    tracking.log_card(client, logged, card.readme())
    registry.describe(client, name, version, card.description(logged))
    return version


def _facts(run: Run, candidate: Artifact) -> dict[str, str]:
    return {
        "uri": candidate.uri,
        "digest": candidate.digest,
        "algorithm": run.spec.recipe.scoring.scorer,
        "dataset": run.spec.recipe.name,
        "data_digest": _present(run, "pull_data").digest,
        "code_version": candidate.manifest["versions"]["mlops-tasks"],
        "dag_run": run.name,
    }


def _final_metrics(run: Run, evidence: Evidence) -> dict[str, float]:
    found = {f"gate/{name}": getattr(evidence, name) for name in ("baseline", "difference", "lower_bound", "mcnemar_p")}
    for name, index in (("gate", CANDIDATE_GATE), ("report", CANDIDATE_REPORT)):
        scores = _present(run, "judge", index).metrics
        found |= {f"{name}/pass_at_{k}": share for k, share in scores["pass_at_k"].items()}
        others = ("tests_passed_share", "exact_match", "bits_per_byte", "num_passed_reading_answer")
        found |= {f"{name}/{other}": float(scores[other]) for other in others if scores.get(other) is not None}
    return found


def _first_prompt(run: Run) -> str:
    table = pq.read_table(_present(run, "generate", CANDIDATE_GATE).path("completions.parquet"), columns=["prompt"])
    return str(table["prompt"][0].as_py())


def _decide(client: MlflowClient, run: Run, version: str, evidence: Evidence) -> tuple[Outcome, str]:
    name = run.spec.recipe.model.name
    with moving(client, run.environment, name, by=run.prefix) as line:
        now = registry.champion_of(client, name)
        verdict, reason = _verdict(run, now, evidence)
        tags = {"gate.verdict": verdict, "gate.reason": reason, "gate.run": run.prefix}
        registry.set_tags(client, name, version, tags)
        if verdict != "passed":
            line.offer(version)
            log.info("%s: version %s refused: %s", name, version, reason)
            return "refused", reason
        order = Order("promote", version, by=run.prefix, reason=reason)
        line.move(order, version, over=now.version if now else None)
        return "promoted", reason


def _verdict(run: Run, now: Champion | None, evidence: Evidence) -> tuple[str, str]:
    pinned = run.spec.champion
    if (now and now.digest) == (pinned and pinned.digest):
        return "passed" if evidence.passed else "refused", _in_words(evidence)
    return "stale", (
        f"The evidence is stale: it compares with {evidence.compared_with}, and the champion is "
        f"{f'version {now.version}' if now else 'no version'} now. Run the DAG again to compare with that."
    )


def _in_words(evidence: Evidence) -> str:
    is_above = evidence.lower_bound > evidence.min_difference
    chance = (
        ""
        if evidence.passed or not is_above
        else (
            f" But only {evidence.only_candidate} against {evidence.only_baseline} problems differ, which may be chance."
        )
    )
    return (
        f"pass@1 is {evidence.candidate:.1%} against {evidence.baseline:.1%} of {evidence.compared_with} on "
        f"{evidence.num_problems} problems: {100 * evidence.difference:+.1f} points, whose {evidence.confidence:.0%} lower bound "
        f"{100 * evidence.lower_bound:+.1f} is {'above' if is_above else 'not above'} {100 * evidence.min_difference:+.1f}.{chance}"
    )
