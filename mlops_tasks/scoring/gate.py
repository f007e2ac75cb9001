"""The critic's gate: whether values explain rewards so much better than the position alone that they may weigh tokens.

Owns the verdict's file and the rule. What is measured is `fitting`'s. No torch is loaded here.
"""

from __future__ import annotations

from pathlib import Path

from mlops_tasks.config.settings import Settings

VERDICT_FILE = "verdict.json"


class Verdict(Settings):
    """How well values foresee rewards, on problems that they were not learnt from."""

    num_problems: int
    """With candidates of different rewards; the others teach nothing."""
    num_folds: int
    seed: int
    """Of the folds."""
    explained_variance: float | None
    """1 - Var(R - V)/Var(R) over all states of all candidates, each valued by the head that did not see its problem; None: there
    were too few problems to learn from."""
    position_explained_variance: float | None
    """The same of a head that was given nothing but the state's position."""

    @property
    def gain(self) -> float | None:
        """What the hidden states explain beyond the position. A position that explains less than nothing counts as a constant, which explains nothing."""
        if self.explained_variance is None or self.position_explained_variance is None:
            return None
        return self.explained_variance - max(0.0, self.position_explained_variance)

    def is_used(self, min_gain: float) -> bool:
        """Whether the values may weigh tokens."""
        return self.gain is not None and self.gain >= min_gain

    def in_words(self, min_gain: float) -> str:
        """What came of it, for logs and pages."""
        if self.gain is None:
            return (
                f"critic refused, every token weighs 1: {self.num_problems} problems have candidates of different rewards, too few for "
                f"{self.num_folds} folds"
            )
        outcome = "used" if self.is_used(min_gain) else "refused, every token weighs 1"
        return (
            f"critic {outcome}: explained variance {self.explained_variance:.3f} against {self.position_explained_variance:.3f} of the "
            f"position alone on {self.num_problems} problems, a gain of {self.gain:.3f} where {min_gain:g} is asked"
        )

    def write(self, folder: Path) -> None:
        """Write it beside the heads."""
        (folder / VERDICT_FILE).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Verdict:
        """Read what `write` wrote."""
        return cls.model_validate_json(path.read_text(encoding="utf-8"))
