"""The gates: what each asks of a candidate, with its number, its limit, and whether it holds.

Pure functions of what was measured. `promotion` finds that in the store and acts on the outcomes; the limits are `config.Gate`'s.

What decides must not be noise. Scores are compared problem by problem, through the lower bound of the difference. Of the speeds the
best counts: whatever else a machine does slows a model down and never makes it faster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from statistics import fmean

from mlops_tasks.config.evaluation import Gate, NamedSet
from mlops_tasks.errors import DataError
from mlops_tasks.evaluation.metrics import Interval, McNemar, paired_bootstrap

Passes = Mapping[str, Sequence[bool]]
"""Of each problem whether its programs passed."""

_MIN_TOKENS = 1000  # of fewer, the first steps are too large a part


@dataclass(frozen=True)
class GateOutcome:
    """What one gate said."""

    name: str
    """`better`, `score`, `size`, `latency`, `contamination`, or `no_regression.<name of the set>`."""
    passed: bool
    value: float | None
    """What is held against the limit; None: nobody measured it."""
    limit: float
    text: str
    """One sentence with all numbers."""
    interval: tuple[float, float] | None = None
    """Two-sided, of the paired difference, where there is one."""


@dataclass(frozen=True)
class Speed:
    """How fast the candidate wrote for one evaluation set."""

    name: str
    tokens_per_second: float
    num_tokens: int
    num_resumed: int
    """Completions of an attempt before, which are in no speed."""
    device: str

    @property
    def counts(self) -> bool:
        """Whether it was measured for long enough, and in one go."""
        return self.num_tokens >= _MIN_TOKENS and self.num_resumed == 0


@dataclass(frozen=True)
class Measured:
    """All that is known of a candidate and of whom it is compared with."""

    candidate: Passes
    baseline: Passes
    """The same problems."""
    compared_with: str
    """`version 3`, or `the base model`."""
    interval: Interval
    """Of the difference in pass@1 over all problems."""
    mcnemar: McNemar
    """Of the first program of each problem."""
    model_bytes: int
    speeds: Sequence[Speed]
    num_train: int | None
    """Training problems that were used; None: nobody counted."""
    num_dropped: int | None
    """Those that equalled an evaluation problem."""
    seed: int
    """Of the resampling."""


def hold(gate: Gate, measured: Measured) -> tuple[GateOutcome, ...]:
    """What each gate that is asked for says, the paired comparison first.

    Raises:
        DataError: a named set has no problem in the gate set.
    """
    return (_better(gate, measured), *_optional(gate, measured))


def _optional(gate: Gate, measured: Measured) -> Iterator[GateOutcome]:
    if gate.min_score is not None:
        yield _score(gate.min_score, measured)
    for name, part in gate.no_regression.items():
        yield _no_regression(name, part, gate, measured)
    if gate.max_model_bytes is not None:
        yield _size(gate.max_model_bytes, measured.model_bytes)
    if gate.min_tokens_per_second is not None:
        yield _latency(gate.min_tokens_per_second, measured.speeds)
    if gate.max_contamination is not None:
        yield _contamination(gate.max_contamination, measured)


def pass_at_1(passes: Passes) -> float:
    """Mean over the problems of the share of programs that passed."""
    return fmean(fmean(programs) for programs in passes.values())


def _better(gate: Gate, measured: Measured) -> GateOutcome:
    interval, test = measured.interval, measured.mcnemar
    is_above, is_no_chance = interval.lower_bound > gate.min_difference, _is_no_chance(test, gate)
    chance = (
        f" But only {test.only_a} against {test.only_b} problems differ, which may be chance."
        if is_above and not is_no_chance
        else ""
    )
    text = (
        f"pass@1 is {pass_at_1(measured.candidate):.1%} against {pass_at_1(measured.baseline):.1%} of {measured.compared_with} on "
        f"{len(measured.candidate)} problems: {100 * interval.difference:+.1f} points, whose {gate.confidence:.0%} lower bound "
        f"{100 * interval.lower_bound:+.1f} is {'above' if is_above else 'not above'} {100 * gate.min_difference:+.1f}.{chance}"
    )
    passed = is_above and is_no_chance
    return GateOutcome("better", passed, interval.lower_bound, gate.min_difference, text, (interval.low, interval.high))


def _is_no_chance(test: McNemar, gate: Gate) -> bool:
    """Where better is asked for, the exact one-sided sign test must agree: of three problems that differ, equal models win all
    in one case of eight, and the bootstrap's bound is above zero then."""
    return gate.min_difference < 0 or (test.only_a > test.only_b and test.p_value / 2 <= 1 - gate.confidence)


def _score(limit: float, measured: Measured) -> GateOutcome:
    score = pass_at_1(measured.candidate)
    text = f"pass@1 is {score:.1%} on the gate set, and at least {limit:.1%} is asked for."
    return GateOutcome("score", score >= limit, score, limit, text)


def _no_regression(name: str, part: NamedSet, gate: Gate, measured: Measured) -> GateOutcome:
    ids = [id for id in measured.candidate if any(fnmatchcase(id, pattern) for pattern in part.ids)]
    if not ids:
        raise DataError(
            f"gate.no_regression.{name}.ids is {', '.join(part.ids)}, which none of the {len(measured.candidate)} problems of the gate set is "
            f"called; they are called {', '.join(sorted(measured.candidate)[:3])}, … Mend the patterns, or leave the set out."
        )
    ours, theirs = ([fmean(passes[id]) for id in ids] for passes in (measured.candidate, measured.baseline))
    interval = paired_bootstrap(
        ours, theirs, confidence=gate.confidence, num_resamples=gate.num_resamples, seed=measured.seed
    )
    passed = interval.lower_bound >= -part.max_loss
    text = (
        f"On {name}, {len(ids)} problems, pass@1 is {fmean(ours):.1%} against {fmean(theirs):.1%}: {100 * interval.difference:+.1f} points, whose "
        f"{gate.confidence:.0%} lower bound {100 * interval.lower_bound:+.1f} is {'not below' if passed else 'below'} {-100 * part.max_loss:+.1f}."
    )
    return GateOutcome(
        f"no_regression.{name}", passed, interval.lower_bound, -part.max_loss, text, (interval.low, interval.high)
    )


def _size(limit: int, num_bytes: int) -> GateOutcome:
    text = f"The model takes {num_bytes / 1e6:.1f} MB, and at most {limit / 1e6:.1f} MB is allowed."
    return GateOutcome("size", num_bytes <= limit, num_bytes, limit, text)


def _latency(limit: float, speeds: Sequence[Speed]) -> GateOutcome:
    best = max((speed for speed in speeds if speed.counts), key=lambda speed: speed.tokens_per_second, default=None)
    if best is None:
        text = (
            f"Nobody knows how fast it writes: no evaluation set has {_MIN_TOKENS} tokens that were written in one go, and at least {limit:g} "
            "tokens a second are asked for. Give the sets more problems, or run again with `force: generate` if an attempt was broken off."
        )
        return GateOutcome("latency", False, None, limit, text)
    told = ", ".join(f"{speed.name} set {speed.tokens_per_second:.1f} on {speed.device}" for speed in speeds)
    text = f"It writes {best.tokens_per_second:.1f} tokens a second at best ({told}), and at least {limit:g} are asked for."
    return GateOutcome("latency", best.tokens_per_second >= limit, best.tokens_per_second, limit, text)


def _contamination(limit: float, measured: Measured) -> GateOutcome:
    if measured.num_train is None or measured.num_dropped is None:
        text = f"Nobody counted the training problems that equalled evaluation problems, and at most {limit:.1%} is allowed. Run again with `force: pull_data`."
        return GateOutcome("contamination", False, None, limit, text)
    there = measured.num_train + measured.num_dropped
    share = measured.num_dropped / max(1, there)
    text = (
        f"{measured.num_dropped} of {there} training problems ({share:.1%}) equalled evaluation problems and were left out, and at most "
        f"{limit:.1%} is allowed."
    )
    return GateOutcome("contamination", share <= limit, share, limit, text)
