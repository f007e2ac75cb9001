"""What a report may speak of: the pointers and artifacts of one run, present or not, and a few words that all sections use."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow.parquet as pq

from mlops_tasks.data.problems import Problem, read_problems
from mlops_tasks.errors import Unavailable, UserError
from mlops_tasks.pipeline import EVALUATIONS, TASKS
from mlops_tasks.report.markup import Child, Markup, element, join
from mlops_tasks.stage import Pointer, Run, runs
from mlops_tasks.store import Artifact

VERDICTS = ("passed", "failed", "error", "timeout", "crashed")
"""How a program can end; the style sheet has a colour for each."""
SHORT = 12
"""Characters of a digest that are shown."""
_NUM_EARLIER_RUNS = 20


@dataclass(frozen=True)
class Facts:
    """One run, read as far as it has come."""

    run: Run

    @cached_property
    def pointers(self) -> dict[tuple[str, int], Pointer]:
        """What the tasks that ended came to."""
        return {(pointer.task, pointer.index): pointer for pointer in self.run.pointers()}

    def in_order(self) -> Iterator[Pointer]:
        """Of the tasks that ended, in the order of the pipeline; without the report itself."""
        for name in ("plan", *TASKS):
            for index in range(self.run.spec.fan_out.get(name, 1)):
                if name != "report" and (pointer := self.pointers.get((name, index))):
                    yield pointer

    def title(self, pointer: Pointer) -> Markup:
        """A task's label, and of mapped evaluations whose and on which set they are."""
        of = EVALUATIONS[pointer.index] if pointer.task in ("generate", "judge") else None
        label = self.run.spec.label(pointer.task, pointer.index)
        return join([label, element("small", f"{of[0]}, {of[1]} set") if of else None])

    @cached_property
    def earlier(self) -> list[Run]:
        """The last runs of this recipe before this one, the newest first."""
        spec = self.run.spec
        before = (run for run in runs(self.run.environment, recipe=spec.recipe.name) if run.spec.created < spec.created)
        return list(itertools.islice(before, _NUM_EARLIER_RUNS))

    @property
    def last_run(self) -> Run | None:
        """The run of this recipe before this one."""
        return next(iter(self.earlier), None)

    def last_result(self, task: str, index: int) -> Artifact | None:
        """What a task came to in the last of the earlier runs in which it came to something that is still whole."""
        for run in self.earlier:
            with suppress(Unavailable, UserError):  # it did not get so far, or is of another version
                if artifact := run.artifact(task, index):
                    return artifact
        return None

    def artifact(self, task: str, index: int = 0) -> Artifact | None:
        """A task's artifact, or None if it was skipped, has not ended, or is not whole."""
        try:
            return self.run.artifact(task, index)
        except Unavailable:
            return None

    def why_absent(self, task: str, index: int = 0) -> str:
        """The reason why `artifact` is None."""
        pointer = self.pointers.get((task, index))
        if pointer is None:
            return f"The task {task} had not ended when this page was written."
        if pointer.outcome == "skipped":
            return f"The task {task} was skipped: this recipe needs none."
        return f"The artifact of {task} is not whole any more."

    @property
    def promotion(self) -> dict[str, Any]:
        """What `promote` came to; empty before it ended."""
        pointer = self.pointers.get(("promote", 0))
        return pointer.detail if pointer else {}

    @property
    def baseline(self) -> str:
        """Whom the candidate was compared with."""
        champion = self.run.spec.champion
        return f"champion, version {champion.version}" if champion else "base model"

    def scores(self, who: str, where: str) -> dict[str, Any] | None:
        """Metrics of one evaluation."""
        judged = self.artifact("judge", _place(who, where))
        return judged.metrics if judged else None

    def outcomes(self, who: str, where: str) -> list[dict[str, Any]] | None:
        """Rows of one evaluation, one a program."""
        judged = self.artifact("judge", _place(who, where))
        if judged is None:
            return None
        rows: list[dict[str, Any]] = pq.read_table(judged.path("outcomes.parquet")).to_pylist()
        return rows

    def why_unjudged(self, where: str) -> str:
        """The reason why one of the two evaluations on a set cannot be shown."""
        places = [_place(who, where) for who in ("candidate", "baseline")]
        missing = next(place for place in places if self.artifact("judge", place) is None)
        return self.why_absent("judge", missing)

    def problems(self, where: str) -> dict[str, Problem]:
        """The problems of the gate or the report set by id."""
        data = self.artifact("pull_data")
        split = getattr(self.run.spec.recipe.evaluation, where).split
        return {problem.id: problem for problem in read_problems(data.path(f"{split}.parquet"))} if data else {}

    @cached_property
    def curves(self) -> list[dict[str, Any]]:
        """Lines of the training's curves."""
        train = self.artifact("train")
        return [json.loads(line) for line in train.path("curves.jsonl").read_text().splitlines()] if train else []

    @cached_property
    def weights(self) -> dict[str, Any]:
        """How the training weighed its tokens."""
        train = self.artifact("train")
        found: dict[str, Any] = json.loads(train.path("weights.json").read_text()) if train else {}
        return found


def _place(who: str, where: str) -> int:
    return next(place for place, one in enumerate(EVALUATIONS) if one == (who, where))


def anchor_of(pointer: Pointer) -> str:
    """Where on the page the artifact of a task is told of."""
    return f"artifact-{pointer.task}-{pointer.index}"


def section(anchor: str, title: str, *children: Child) -> Markup:
    """A part of the page with a heading."""
    return element("section", element("h2", title), children, id=anchor)


def scrolling(label: str, table: Markup, *, is_card: bool = False) -> Markup:
    """A table that scrolls sideways where the page is too narrow for it, by keyboard too.

    Args:
        label: says what it is to who does not see it.
        table: the table.
        is_card: it has a frame of its own.
    """
    kind = "card scroll" if is_card else "scroll"
    return element("div", table, class_=kind, tabindex=0, role="region", aria_label=label)


def absent(reason: str) -> Markup:
    """What stands where something cannot be shown."""
    return element("div", reason, class_="absent")


def pill(text: str, kind: str) -> Markup:
    """A word in a frame; its colour is the style sheet's."""
    return element("span", text, class_=f"pill {kind}")


def percent(share: float) -> str:
    """A share as text."""
    return f"{100 * share:.1f}%"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
