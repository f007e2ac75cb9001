"""Which model production loads: register the candidate, hold it against the champion, move the alias if it is better.

The action `promote` owns the gate, the versions and the aliases of the registered model; what a training's run holds is
`tracking`'s. Everything is found before it is made and every step can be repeated, so that a kill at any point costs nothing.

    champion    what production loads
    previous    what it loaded before
    candidate   the newest version that the gate refused
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import pyarrow.parquet as pq

from mlops_tasks import tracking
from mlops_tasks.config import Environment, Gate
from mlops_tasks.errors import DataError, UserError
from mlops_tasks.evaluation.comparison import asked_differently, not_alike, passes
from mlops_tasks.evaluation.metrics import McNemar, mcnemar, paired_bootstrap
from mlops_tasks.stage import Champion, Run, champion_artifact
from mlops_tasks.store import Artifact, canonical_json

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

Outcome = Literal["promoted", "refused", "already champion"]

log = logging.getLogger(__name__)

# Of the mapped tasks generate and judge; the order is `pipeline.EVALUATIONS`.
CANDIDATE_GATE, CANDIDATE_REPORT, BASELINE_GATE, BASELINE_REPORT = range(4)
_PROMOTED_BY, _JUDGED_BY = "promoted_by", "gate.run"
_BY_HAND = "by hand"


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


def champion(environment: Environment, name: str) -> Champion | None:
    """The version of a product line that carries the alias `champion`, or None.

    Raises:
        Unavailable: the registry cannot be reached.
        UserError: the version was not registered by `promote`, so nobody knows where its artifact is.
    """
    if tracking.is_empty(environment):
        return None
    with tracking.connection(environment) as client:
        return _champion(client, name)


def _champion(client: MlflowClient, name: str) -> Champion | None:
    version = _aliases(client, name).get("champion")
    if version is None:
        return None
    tags = client.get_model_version(name, version).tags
    if tracking.KEY_TAG not in tags or "digest" not in tags:
        raise UserError(
            f"Version {version} of {name} is the champion but has no tags `{tracking.KEY_TAG}` and `digest`: it was not registered by promote. "
            "Move the alias `champion` to a version that was, or delete the alias to start from the base model."
        )
    return Champion(name=name, version=version, key=tags[tracking.KEY_TAG], digest=tags["digest"])


def _aliases(client: MlflowClient, name: str) -> dict[str, str]:
    from mlflow.exceptions import MlflowException

    try:
        return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise


@dataclass(frozen=True)
class Aliased:
    """A version that somebody may load by name, as far as the store is concerned."""

    name: str
    alias: str
    key: str
    """Names the artifact of `train` in the store."""
    digest: str


def aliased(environment: Environment) -> list[Aliased]:
    """Every version of every registered model that carries an alias, of ours or of somebody's own, and was registered by `promote`.

    Raises:
        Unavailable: the registry cannot be reached.
    """
    if tracking.is_empty(environment):
        return []
    with tracking.connection(environment) as client:
        return [found for name in _registered_names(client) for found in _aliased(client, name)]


def _registered_names(client: MlflowClient) -> list[str]:
    names: list[str] = []
    token: str | None = None
    while token != "":
        page = client.search_registered_models(page_token=token)
        names += [model.name for model in page]
        token = page.token or ""
    return names


def _aliased(client: MlflowClient, name: str) -> list[Aliased]:
    found: list[Aliased] = []
    for alias, version in _aliases(client, name).items():
        tags = client.get_model_version(name, version).tags
        if {tracking.KEY_TAG, "digest"} <= tags.keys():
            found.append(Aliased(name, alias, tags[tracking.KEY_TAG], tags["digest"]))
    return found


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
        now = _champion(client, name)
        if now is not None and now.digest == candidate.digest:
            return _of_champion(client, run, candidate, now)
        evidence = weigh(run, candidate)
        if (former := _former_champion(client, name, candidate)) is not None:
            return _result("refused", former, _former_in_words(former, now), asdict(evidence))
        version = _register(client, run, candidate, evidence)
        outcome, reason = _decide(client, run, version, evidence)
        log.info("%s version %s %s: %s", name, version, outcome, reason)
        return _result(outcome, version, reason, asdict(evidence))


def _of_champion(client: MlflowClient, run: Run, candidate: Artifact, now: Champion) -> dict[str, Any]:
    """What is said where the candidate is the champion: made so by this very run, which is repeated, or before."""
    _drop_candidate_alias(client, now.name, now.version)
    tags = client.get_model_version(now.name, now.version).tags
    # A kill between the move of the alias and the tag leaves a version that this run has let pass.
    is_ours = tags.get(_JUDGED_BY) == run.prefix and tags.get("gate.verdict") == "passed"
    by = tags.get(_PROMOTED_BY) or (run.prefix if is_ours else _BY_HAND)
    _set_tags(client, now.name, now.version, {_PROMOTED_BY: by})
    if by == run.prefix:
        evidence = weigh(run, candidate)
        return _result("promoted", now.version, _in_words(evidence), asdict(evidence))
    reason = f"Version {now.version} of {now.name} has the very same bytes and is the champion already, promoted {_whom(by)}."
    return _result("already champion", now.version, reason, {})


def _whom(by: str) -> str:
    return by if by == _BY_HAND else f"by {by.removeprefix('runs/')}"


def _former_champion(client: MlflowClient, name: str, candidate: Artifact) -> str | None:
    """The candidate's version if it was champion once; it is not now."""
    version = _version_of(client, name, _identity(candidate))
    if version is None or _PROMOTED_BY not in client.get_model_version(name, version).tags:
        return None
    return version


def _former_in_words(version: str, now: Champion | None) -> str:
    return (
        f"Version {version} has been the champion before, and {f'version {now.version}' if now else 'no version'} is now. A night does "
        "not undo that, for somebody may have taken it back. Move the alias `champion` by hand if it is to return."
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
        spec=hashlib.sha256(canonical_json(run.spec.model_dump(mode="json"))).hexdigest(),
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


def _paired(ours: Artifact, theirs: Artifact) -> tuple[list[list[bool]], list[list[bool]]]:
    """The verdicts of both, problem by problem in one order."""
    if differences := asked_differently(ours, theirs):
        raise not_alike(ours, theirs, differences)
    a, b = passes(ours), passes(theirs)
    return [a[id] for id in sorted(a)], [b[id] for id in sorted(a)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# Versions and aliases


def _register(client: MlflowClient, run: Run, candidate: Artifact, evidence: Evidence) -> str:
    """The version of the candidate, found or made, with the evidence on it."""
    name = run.spec.recipe.model.name
    facts = _facts(run, candidate)
    logged = tracking.complete(
        client, run.environment, train=candidate, experiment=tracking.experiment_name(run.spec.recipe),
        metrics=_final_metrics(run, evidence), tags=facts, prompt=_first_prompt(run),
    )  # fmt: skip
    identity = _identity(candidate)
    tags = {**identity, **facts, **{f"gate.{name}": str(value) for name, value in asdict(evidence).items()}}
    version = _version_of(client, name, identity)
    if version is not None:
        _set_tags(client, name, version, tags)
        return version
    _create_registered_model(client, name)
    made = client.create_model_version(
        name, source=logged.model_uri, run_id=logged.run_id, model_id=logged.model_id, tags=tags
    )
    log.info("registered version %s of %s from %s", made.version, name, candidate.uri)
    return str(made.version)


def _identity(candidate: Artifact) -> dict[str, str]:
    return {tracking.KEY_TAG: candidate.manifest["key"], "digest": candidate.digest}


def _set_tags(client: MlflowClient, name: str, version: str, tags: Mapping[str, str]) -> None:
    """Set those that differ: one call each is all that MLflow has."""
    present = client.get_model_version(name, version).tags
    for tag, value in tags.items():
        if present.get(tag) != value:
            client.set_model_version_tag(name, version, tag, value)


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


def _version_of(client: MlflowClient, name: str, identity: Mapping[str, str]) -> str | None:
    which = " AND ".join([f"name = '{name}'", *(f"tags.{tag} = '{value}'" for tag, value in identity.items())])
    return min((str(found.version) for found in client.search_model_versions(which)), key=int, default=None)


def _create_registered_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _decide(client: MlflowClient, run: Run, version: str, evidence: Evidence) -> tuple[Outcome, str]:
    name, pinned = run.spec.recipe.model.name, run.spec.champion
    now = _champion(client, name)  # MLflow's aliases have no compare-and-swap: read just before the move
    if (now and now.digest) != (pinned and pinned.digest):
        verdict = "stale"
        reason = (
            f"The evidence is stale: it compares with {evidence.compared_with}, and the champion is "
            f"{f'version {now.version}' if now else 'no version'} now. Run the DAG again to compare with that."
        )
    else:
        verdict, reason = "passed" if evidence.passed else "refused", _in_words(evidence)
    _set_tags(client, name, version, {"gate.verdict": verdict, "gate.reason": reason, _JUDGED_BY: run.prefix})
    if verdict != "passed":
        client.set_registered_model_alias(name, "candidate", version)
        return "refused", reason
    if now is not None:
        by = client.get_model_version(name, now.version).tags.get(_PROMOTED_BY, _BY_HAND)
        _set_tags(client, name, now.version, {_PROMOTED_BY: by})
        client.set_registered_model_alias(name, "previous", now.version)
    # After `previous`: a kill between the two leaves a champion that the repeated task still finds to be the old one.
    client.set_registered_model_alias(name, "champion", version)
    # After `champion`: a kill between the two must not leave a version that was never champion and seems to have been.
    _set_tags(client, name, version, {_PROMOTED_BY: run.prefix})
    _drop_candidate_alias(client, name, version)
    return "promoted", reason


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


def _drop_candidate_alias(client: MlflowClient, name: str, version: str) -> None:
    if _aliases(client, name).get("candidate") == version:
        client.delete_registered_model_alias(name, "candidate")
