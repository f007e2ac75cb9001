"""What a night's candidate has to show: hold it against the champion, register it, and have it made champion if it is better.

The action `promote` owns the evidence and what follows from it; what each gate asks is `registry.gates`', what a version is said to be
`registry`'s, how an alias moves `registry.moves`'. Everything is found before it is made and every step can be repeated, so that a kill at any point costs nothing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

import pyarrow.parquet as pq

from mlops_tasks import registry, tracking
from mlops_tasks.errors import DataError
from mlops_tasks.evaluation.comparison import asked_differently, not_alike, passes
from mlops_tasks.evaluation.metrics import mcnemar, paired_bootstrap
from mlops_tasks.registry import BY_HAND, PROMOTED_BY, Version
from mlops_tasks.registry.card import Card, algorithm_of
from mlops_tasks.registry.gates import GateOutcome, Measured, Passes, Speed, hold, pass_at_1
from mlops_tasks.registry.moves import Order, moving
from mlops_tasks.stage import Champion, Run, champion_artifact
from mlops_tasks.store import Artifact

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

Outcome = Literal["promoted", "refused", "already champion"]

GATES_TAG = "gates"
"""Tag of a version: what each gate said when it was judged last, as JSON."""

log = logging.getLogger(__name__)

# Of the mapped tasks generate and judge; the order is `pipeline.EVALUATIONS`.
CANDIDATE_GATE, CANDIDATE_REPORT, BASELINE_GATE, BASELINE_REPORT = range(4)


@dataclass(frozen=True)
class Evidence:
    """What the gates decide on, and all that one needs to check it later."""

    passed: bool
    """Whether every gate holds."""
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


@dataclass(frozen=True)
class Weighed:
    """A candidate's evidence, and what each gate says of it."""

    evidence: Evidence
    gates: tuple[GateOutcome, ...]

    @property
    def in_words(self) -> str:
        """The comparison, and each other gate that does not hold."""
        better, *others = self.gates
        return " ".join([better.text, *(f"Gate {gate.name}: {gate.text}" for gate in others if not gate.passed)])


@dataclass(frozen=True)
class Settled:
    """Where a candidate stands whose place no night changes, however good it is and whoever approves."""

    outcome: Outcome
    version: str
    reason: str


def why_not_by_night(run: Run, candidate: Artifact) -> str | None:
    """Why `promote` does not make a candidate the champion, whatever gates and people say; None: it is theirs to say.

    Raises:
        Unavailable: the registry cannot be reached.
    """
    if tracking.is_empty(run.environment):
        return None
    with tracking.connection(run.environment) as client:
        settled = _settled(client, run.spec.recipe.model.name, candidate)
        return settled.reason if settled else None


def promote(run: Run) -> dict[str, Any]:
    """Register the candidate of a run and make it the champion if the gates say so.

    Returns:
        outcome ("promoted", "refused" or "already champion"), version, reason, evidence (see `Evidence`; empty for "already champion"),
        and gates: a list of `gates.GateOutcome` as mappings, empty likewise.

    Raises:
        DataError: the outcomes are not of the candidate, of the pinned baseline, or of the same problems and protocol.
        Unavailable: the registry cannot be reached.
    """
    candidate = _present(run, "train")
    with tracking.connection(run.environment) as client:
        settled = _settled(client, run.spec.recipe.model.name, candidate)
        if settled and settled.outcome == "already champion":
            return _of_champion(client, run, candidate, settled)
        weighed = weigh(run, candidate)
        if settled:
            return _result(settled.outcome, settled.version, settled.reason, weighed)
        version = _register(client, run, candidate, weighed)
        outcome, reason = _decide(client, run, version, weighed)
        return _result(outcome, version, reason, weighed)


def _of_champion(client: MlflowClient, run: Run, candidate: Artifact, settled: Settled) -> dict[str, Any]:
    """What is said where the candidate is the champion: made so by this very run, which is repeated, or before."""
    name, version = run.spec.recipe.model.name, settled.version
    # What a kill left of this run's own move is brought to its end here.
    with moving(client, run.environment, name, by=run.prefix) as line:
        line.withdraw(version)
        by = client.get_model_version(name, version).tags.get(PROMOTED_BY, BY_HAND)
        registry.set_tags(client, name, version, {PROMOTED_BY: by})
    if by == run.prefix:
        weighed = weigh(run, candidate)
        return _result("promoted", version, weighed.in_words, weighed)
    return _result(settled.outcome, version, f"{settled.reason}, promoted {_whom(by)}.", None)


def _whom(by: str) -> str:
    return by if by == BY_HAND else f"by {by.removeprefix('runs/')}"


def _settled(client: MlflowClient, name: str, candidate: Artifact) -> Settled | None:
    now = registry.champion_of(client, name)
    if now is not None and now.digest == candidate.digest:
        told = f"Version {now.version} of {name} has the very same bytes and is the champion already"
        return Settled("already champion", now.version, told)
    known = registry.find(client, name, candidate)
    if known is None or (reason := _decided_against(known, now)) is None:
        return None
    return Settled("refused", known.number, reason)


def _decided_against(known: Version, now: Champion | None) -> str | None:
    """Why a version that is not the champion does not become it: somebody may have decided so."""
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


def _result(outcome: Outcome, version: str, reason: str, weighed: Weighed | None) -> dict[str, Any]:
    found = {"evidence": asdict(weighed.evidence), "gates": _as_data(weighed.gates)} if weighed else {}
    return {"outcome": outcome, "version": version, "reason": reason, "evidence": {}, "gates": [], **found}


def _as_data(gates: tuple[GateOutcome, ...]) -> list[dict[str, Any]]:
    return [asdict(gate) for gate in gates]


def _present(run: Run, task: str, index: int = 0) -> Artifact:
    artifact = run.artifact(task, index)
    if artifact is None:
        raise DataError(
            f"Task {task}[{index}] of {run.name} was skipped, and promote decides on its result. Clear it and run it."
        )
    return artifact


# The evidence


def weigh(run: Run, candidate: Artifact) -> Weighed:
    """Compare candidate and baseline problem by problem on the gate set, and ask every gate.

    Raises:
        DataError: the two were not measured alike, or not on these models; or a gate is about problems that are not there.
    """
    require_judged(run, CANDIDATE_GATE, candidate)
    require_judged(run, BASELINE_GATE, _baseline(run))
    ours, theirs = _present(run, "judge", CANDIDATE_GATE), _present(run, "judge", BASELINE_GATE)
    measured = _measured(run, candidate, *_paired(ours, theirs))
    gate, interval, test = run.spec.recipe.gate, measured.interval, measured.mcnemar
    gates = hold(gate, measured)
    evidence = Evidence(
        passed=all(outcome.passed for outcome in gates),
        num_problems=len(measured.candidate), candidate=pass_at_1(measured.candidate), baseline=pass_at_1(measured.baseline),
        difference=interval.difference, lower_bound=interval.lower_bound, low=interval.low, high=interval.high,
        confidence=gate.confidence, min_difference=gate.min_difference,
        only_candidate=test.only_a, only_baseline=test.only_b, mcnemar_p=test.p_value,
        compared_with=measured.compared_with, candidate_outcomes=ours.digest, baseline_outcomes=theirs.digest,
        spec=run.spec.digest,
    )  # fmt: skip
    return Weighed(evidence, gates)


def _measured(run: Run, candidate: Artifact, ours: Passes, theirs: Passes) -> Measured:
    gate, champion, data = run.spec.recipe.gate, run.spec.champion, _present(run, "pull_data").metrics
    shares, other_shares = ([fmean(programs) for programs in passes.values()] for passes in (ours, theirs))
    interval = paired_bootstrap(
        shares, other_shares, confidence=gate.confidence, num_resamples=gate.num_resamples, seed=run.spec.recipe.seed
    )
    return Measured(
        candidate=ours, baseline=theirs, compared_with=f"version {champion.version}" if champion else "the base model",
        interval=interval, mcnemar=mcnemar(*([programs[0] for programs in passes.values()] for passes in (ours, theirs))),
        model_bytes=sum(file["size"] for file in candidate.manifest["files"] if file["name"].startswith("model/")),
        speeds=tuple(_speeds(run)), num_train=data.get("num_train"), num_dropped=data.get("num_dropped"),
        seed=run.spec.recipe.seed,
    )  # fmt: skip


def _speeds(run: Run) -> Iterator[Speed]:
    for name, index in (("gate", CANDIDATE_GATE), ("report", CANDIDATE_REPORT)):
        written = _present(run, "generate", index).metrics
        if "tokens_per_second" in written:
            yield Speed(
                name, written["tokens_per_second"], written["tokens"], written["num_resumed"], written["device"]
            )


def _baseline(run: Run) -> Artifact:
    """The model that the candidate is held against: the champion that `plan` pinned, or the base model."""
    if run.spec.champion is None:
        return _present(run, "pull_model")
    return champion_artifact(run)


def require_judged(run: Run, index: int, model: Artifact) -> None:
    """The outcomes must come, through the completions, from this very model.

    Raises:
        DataError: they do not, or nothing kept the programs in.
    """
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


def _paired(ours: Artifact, theirs: Artifact) -> tuple[Passes, Passes]:
    """The verdicts of both, problem by problem in one order."""
    if differences := asked_differently(ours, theirs):
        raise not_alike(ours, theirs, differences)
    a, b = passes(ours), passes(theirs)
    return {id: a[id] for id in sorted(a)}, {id: b[id] for id in sorted(a)}


# The registry


def _register(client: MlflowClient, run: Run, candidate: Artifact, weighed: Weighed) -> str:
    """The version of the candidate, found or made, with the evidence on it."""
    evidence, facts = weighed.evidence, _facts(run, candidate)
    logged = tracking.complete(
        client, run.environment, train=candidate, experiment=tracking.experiment_name(run.spec.recipe),
        metrics=_final_metrics(run, evidence), tags=facts, prompt=_first_prompt(run),
    )  # fmt: skip
    name = run.spec.recipe.model.name
    version = registry.register(
        client, name, train=candidate, logged=logged, outcomes=_present(run, "judge", CANDIDATE_GATE),
        tags={**facts, **{f"gate.{key}": str(value) for key, value in asdict(evidence).items()}, GATES_TAG: json.dumps(_as_data(weighed.gates))},
    )  # fmt: skip
    card = Card(run, candidate, version=version, compared=weighed.in_words)
    tracking.log_card(client, logged, card.readme())
    registry.describe(client, name, version, card.description(logged))
    return version


def _facts(run: Run, candidate: Artifact) -> dict[str, str]:
    return {
        "uri": candidate.uri,
        "digest": candidate.digest,
        "algorithm": algorithm_of(run),
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


def _decide(client: MlflowClient, run: Run, version: str, weighed: Weighed) -> tuple[Outcome, str]:
    name = run.spec.recipe.model.name
    with moving(client, run.environment, name, by=run.prefix) as line:
        now = registry.champion_of(client, name)
        verdict, reason = _verdict(run, now, weighed)
        tags = {"gate.verdict": verdict, "gate.reason": reason, "gate.run": run.prefix}
        registry.set_tags(client, name, version, tags)
        if verdict != "passed":
            line.offer(version)
            log.info("%s: version %s refused: %s", name, version, reason)
            return "refused", reason
        order = Order("promote", version, by=run.prefix, reason=reason)
        line.move(order, version, over=now.version if now else None)
        return "promoted", reason


def _verdict(run: Run, now: Champion | None, weighed: Weighed) -> tuple[str, str]:
    pinned = run.spec.champion
    if (now and now.digest) == (pinned and pinned.digest):
        return "passed" if weighed.evidence.passed else "refused", weighed.in_words
    return "stale", (
        f"The evidence is stale: it compares with {weighed.evidence.compared_with}, and the champion is "
        f"{f'version {now.version}' if now else 'no version'} now. Run the DAG again to compare with that."
    )
