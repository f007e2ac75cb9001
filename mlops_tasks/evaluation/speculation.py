"""When heads 2..H guess ahead, and what came of it.

Owns the decision and its numbers; guessing and checking are part of `decoding`'s step. Since neither changes what is written, the
decision may look at the clock: it is made anew for each size of the batch, from steps of both kinds on the run itself.

A step with guesses makes `count` tokens a row (1 to H) and takes longer than a plain one; it is worth it where
mean count · seconds of a plain step > seconds of a step with guesses.

Reference: Daliri, Musco, Suresh, "Coupling without communication and drafter-invariant speculative decoding" (2408.07978): the
token is drawn from the target's distribution with shared randomness and the guess accepted if it is that token. We guess
the likeliest token of a head, for which this accepts as often as the accept-or-resample rule of Leviathan et al. (2211.17192).
"""

from __future__ import annotations

import logging
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

log = logging.getLogger(__name__)

_NUM_TRIALS = 6  # steps of each kind that a verdict rests on
_STEPS_PER_VERDICT = 192


@dataclass
class _Trial:
    """Steps of a batch of one size since the last verdict."""

    num_steps: int = 0
    counts: list[int] = field(default_factory=list)
    """Tokens a row that guesses yielded."""
    seconds: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})
    """By whether there were guesses."""

    @property
    def missing(self) -> bool | None:
        """The kind of step to try next; None: both are known."""
        return next((kind for kind in (True, False) if len(self.seconds[kind]) < _NUM_TRIALS), None)

    @property
    def gain(self) -> float:
        """How many times as fast tokens are made with guesses."""
        plain, guessing = (statistics.median(self.seconds[kind]) for kind in (False, True))
        return statistics.fmean(self.counts) * plain / guessing


class Speculation:
    """Whether the next step has guesses.

    Args:
        mode: `auto` guesses where it is faster, `always` and `never` do not ask.
    """

    def __init__(self, mode: Literal["auto", "always", "never"] = "auto") -> None:
        self.mode = mode
        self._trials: defaultdict[int, _Trial] = defaultdict(_Trial)
        self._verdicts: dict[int, bool] = {}
        self._counts: Counter[int] = Counter()
        self._num_plain_tokens = 0

    def is_wanted(self, num_rows: int) -> bool:
        """Whether to guess for the next step of so many rows."""
        if self.mode != "auto":
            return self.mode == "always"
        size = _size(num_rows)
        trial = self._trials[size]
        return self._verdicts[size] if trial.missing is None else trial.missing

    def record(self, num_rows: int, *, has_guesses: bool, counts: Sequence[int], seconds: float) -> None:
        """Take note of a step.

        Args:
            counts: tokens made for each row that was alive.
            seconds: what the step took, with the guessing for the next one.
        """
        if has_guesses:
            self._counts.update(counts)
        else:
            self._num_plain_tokens += sum(counts)
        if self.mode == "auto":
            self._judge(_size(num_rows), has_guesses, counts, seconds)

    def _judge(self, size: int, has_guesses: bool, counts: Sequence[int], seconds: float) -> None:
        trial = self._trials[size]
        trial.num_steps += 1
        if trial.missing is not None:
            if has_guesses:
                trial.counts += counts
            trial.seconds[has_guesses].append(seconds)
            if trial.missing is None:
                self._tell(size, trial)
        elif trial.num_steps >= _STEPS_PER_VERDICT:
            del self._trials[size]  # texts change, and so may what a guess is worth

    def _tell(self, size: int, trial: _Trial) -> None:
        before, now = self._verdicts.get(size), trial.gain > 1
        self._verdicts[size] = now
        if now != before:
            log.info(
                "speculative decoding %s for up to %d rows: %.2f tokens a step, %.2f times as fast as plain steps",
                "on" if now else "off: it does not pay", size, statistics.fmean(trial.counts), trial.gain,
            )  # fmt: skip

    def metrics(self) -> dict[str, Any]:
        """What came of it: tokens a row and step with guesses (None: there was none), and their share of all tokens."""
        num_tokens = sum(count * times for count, times in self._counts.items())
        return {
            "acceptance_length": num_tokens / self._counts.total() if self._counts else None,
            "speculated_share": num_tokens / max(1, num_tokens + self._num_plain_tokens),
        }


def _size(num_rows: int) -> int:
    """The power of two that so many rows are counted under."""
    return 1 << (num_rows - 1).bit_length()
