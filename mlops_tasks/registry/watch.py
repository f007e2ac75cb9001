"""Is the champion still as good as it was? The action `watch`, after its evaluation on the data as they are now.

What it was judged by as a candidate is kept for as long as it has an alias, so the two can be held against each other: problem by problem
where they are the same, which shows a change of what runs them, and otherwise as two samples, which shows a change of the problems.
"""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from mlops_tasks import registry, tracking
from mlops_tasks.config.recipe import Recipe
from mlops_tasks.errors import UserError
from mlops_tasks.evaluation.comparison import passes
from mlops_tasks.evaluation.metrics import paired_bootstrap, wilson_interval
from mlops_tasks.registry.gates import Passes, pass_at_1
from mlops_tasks.registry.promotion import BASELINE_GATE, require_judged
from mlops_tasks.stage import Champion, Run, champion_artifact
from mlops_tasks.store import Artifact

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)

_ASKED = ("protocol", "num_samples", "temperature", "top_p")


@dataclass(frozen=True)
class Score:
    """pass@1 of the champion on the data as they are."""

    value: float
    low: float
    high: float
    num_problems: int


@dataclass(frozen=True)
class Change:
    """How that differs from when it was judged as a candidate."""

    before: float
    difference: float
    low: float
    """Of the two-sided interval."""
    high: float
    is_paired: bool
    """The problems are the same."""


def watch(run: Run) -> dict[str, Any]:
    """Say whether the champion has decayed, and note it on its version.

    Returns:
        outcome ("holds", "decayed", or "replaced": decayed, and not the champion any more), version, reason, score (see `Score`), change (see `Change`; None: there is nothing to compare with).

    Raises:
        UserError: the run has no champion.
        DataError: what was judged is not the champion.
        Unavailable: the registry cannot be reached.
    """
    champion = run.spec.champion
    if champion is None:
        raise UserError(
            f"{run.name} has no champion to watch: {run.spec.recipe.model.name} had none when it was planned."
        )
    require_judged(run, BASELINE_GATE, champion_artifact(run))
    judged = run.artifact("judge", BASELINE_GATE)
    assert judged is not None
    with tracking.connection(run.environment) as client:
        score, change, verdict, reason = held_against(judged, _before(client, run, champion), run.spec.recipe)
        current, outcome = registry.champion_of(client, champion.name), str(verdict)
        if outcome == "decayed" and (current is None or current.version != champion.version):
            outcome, reason = "replaced", f"{reason} It is not the champion any more, so nothing is to be done."
        tags = {"verdict": outcome, "reason": reason, "score": str(score.value), "run": run.prefix, "at": _now()}
        named = {f"watch.{name}": value for name, value in tags.items()}
        registry.set_tags(client, champion.name, champion.version, named)
    log.log(
        logging.INFO if outcome == "holds" else logging.WARNING,
        "%s version %s: %s",
        champion.name,
        champion.version,
        reason,
    )
    found = {"score": asdict(score), "change": asdict(change) if change else None}
    return {"outcome": outcome, "version": champion.version, "reason": reason, **found}


def held_against(
    now: Artifact, before: Artifact | None, recipe: Recipe
) -> tuple[Score, Change | None, Literal["holds", "decayed"], str]:
    """What a champion's outcomes say of it.

    Args:
        now: its artifact of `judge` on the data as they are.
        before: that of when it was a candidate; None: nobody knows it any more.
        recipe: its limits and its confidence.

    Returns:
        Its score, how that changed, the verdict, and the verdict in words.
    """
    score, change = _score(passes(now), recipe), _change(now, before, recipe)
    return score, change, *_verdict(score, change, recipe)


def _before(client: MlflowClient, run: Run, champion: Champion) -> Artifact | None:
    """The outcomes that it was judged by as a candidate; None: nobody knows them any more."""
    version = registry.version_named(client, champion.name, champion.version)
    return version.outcomes.artifact(run.store) if version.outcomes else None


def _score(now: Passes, recipe: Recipe) -> Score:
    value = pass_at_1(now)
    return Score(value, *wilson_interval(value, len(now), confidence=recipe.gate.confidence), len(now))


def _change(judged: Artifact, before: Artifact | None, recipe: Recipe) -> Change | None:
    if before is None or any(judged.metrics.get(name) != before.metrics.get(name) for name in _ASKED):
        return None
    now, then = passes(judged), passes(before)
    if now.keys() == then.keys() and judged.metrics.get("prompt_sha256") == before.metrics.get("prompt_sha256"):
        shares = ([fmean(programs[id]) for id in sorted(now)] for programs in (now, then))
        gate = recipe.gate
        interval = paired_bootstrap(
            *shares, confidence=gate.confidence, num_resamples=gate.num_resamples, seed=recipe.seed
        )
        return Change(pass_at_1(then), interval.difference, interval.low, interval.high, is_paired=True)
    low, high = unpaired_interval(
        (pass_at_1(now), len(now)), (pass_at_1(then), len(then)), confidence=recipe.gate.confidence
    )
    return Change(pass_at_1(then), pass_at_1(now) - pass_at_1(then), low, high, is_paired=False)


def unpaired_interval(a: tuple[float, int], b: tuple[float, int], *, confidence: float) -> tuple[float, float]:
    """Two-sided interval of the difference of two shares of different problems, a - b.

    Args:
        a: a share, and of how many problems.
        b: the other one.
        confidence: of the interval.

    Reference:
        Newcombe 1998, hybrid score interval (method 10): each share's Wilson interval, joined.
    """
    (a_low, a_high), (b_low, b_high) = (wilson_interval(*one, confidence=confidence) for one in (a, b))
    difference = a[0] - b[0]
    return (
        difference - math.hypot(a[0] - a_low, b_high - b[0]),
        difference + math.hypot(a_high - a[0], b[0] - b_low),
    )


def _verdict(score: Score, change: Change | None, recipe: Recipe) -> tuple[Literal["holds", "decayed"], str]:
    watched = recipe.watch
    has_lost = change is not None and change.high < -watched.max_loss
    is_poor = watched.min_score is not None and score.high < watched.min_score
    reasons = [_score_in_words(score, watched.min_score), _change_in_words(change, watched.max_loss)]
    return ("decayed" if has_lost or is_poor else "holds"), " ".join(reasons)


def _score_in_words(score: Score, limit: float | None) -> str:
    wanted = "" if limit is None else f"; at least {limit:.1%} is asked for"
    return f"pass@1 is {score.value:.1%} ({score.low:.1%} to {score.high:.1%}) on {score.num_problems} problems as they are now{wanted}."


def _change_in_words(change: Change | None, limit: float) -> str:
    if change is None:
        return "It cannot be compared with what it was as a candidate: that is not kept, or was asked for differently."
    low, difference, high = (100 * one for one in (change.low, change.difference, change.high))
    return (
        f"As a candidate it had {change.before:.1%} on {'the same' if change.is_paired else 'other'} problems: {difference:+.1f} points "
        f"({low:+.1f} to {high:+.1f}), and {-100 * limit:+.1f} may be lost."
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
