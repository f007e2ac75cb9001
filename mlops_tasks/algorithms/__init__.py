"""Algorithms side by side: what each cell of a comparison learns, and where it lies in the store.

A comparison is algorithms × seeds. A *cell* is one of each: a run of its own whose tasks are the pipeline's stages, so that what any
run has made before is a hit, cells share what they have in common, and a comparison that was killed goes on where it was. What the
cells came to is `findings`', how chance is told from more `inference`'s, the page is `report.algorithms`'.

    runs/<deployment>/<dag>/<run>/comparison.json              the comparison and its cells; written once, by `plan`
    runs/<deployment>/<dag>/<run>/cells/<cell>/spec.json, …    what a run is made of
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from mlops_tasks import stage
from mlops_tasks.config.comparison import Comparison
from mlops_tasks.config.environment import Environment
from mlops_tasks.config.loading import changed, load_comparison
from mlops_tasks.config.recipe import Recipe
from mlops_tasks.config.settings import Settings
from mlops_tasks.errors import UserError
from mlops_tasks.pipeline import TASKS, places
from mlops_tasks.planning import asked_for, resolve_candidates
from mlops_tasks.stage import Run, Spec, cell_prefix
from mlops_tasks.store import Store, canonical_json

log = logging.getLogger(__name__)

FILE = "comparison.json"
_EQUAL = ("data", "model.source", "text", "evaluation", "train.batch_size", "train.steps", "train.epochs")
"""Settings in which all algorithms must agree: what is learnt, in which batches, for how long, and how it is measured."""
_WEIGHTING_OF = {"rho1-soft": "soft", "rho1-select": "select"}


class Cell(Settings):
    """One algorithm with one seed."""

    name: str
    """Its folder."""
    arm: str
    """The algorithm, with the values of its grid."""
    seed: int


class Plan(Settings):
    """A comparison as it lies in the store."""

    comparison: Comparison
    arms: tuple[str, ...]
    """All algorithms, each with the values of its grid, in order."""
    cells: tuple[Cell, ...]
    created: str
    """UTC."""


@dataclass(frozen=True)
class Cells:
    """A planned comparison: its cells as runs."""

    store: Store
    environment: Environment
    prefix: str
    plan: Plan

    @classmethod
    def open(cls, environment: Environment, prefix: str) -> Self:
        """A comparison that has been planned.

        Raises:
            UserError: there is none, or it is of a version with other settings.
        """
        store = Store.of(environment)
        tree = store.read_json(f"{prefix}/{FILE}")
        if tree is None:
            raise UserError(f"There is no {store.uri}/{prefix}/{FILE}. Run the task `plan` of this comparison first.")
        try:
            return cls(store, environment, prefix, Plan.model_validate(tree))
        except ValidationError as error:
            raise UserError(
                f"{store.uri}/{prefix}/{FILE} was written by a version with other settings: {error}. Start a new comparison."
            ) from error

    @property
    def name(self) -> str:
        """`<dag>/<run>`, quoted."""
        return "/".join(self.prefix.split("/")[2:])

    def run(self, cell: Cell) -> Run:
        """A cell as a run."""
        return Run.open(self.environment, cell_prefix(self.prefix, cell.name))

    def of_arm(self, arm: str) -> list[Cell]:
        """The cells of an algorithm, by seed."""
        return [cell for cell in self.plan.cells if cell.arm == arm]


def own_prefix(environment: Environment, specs: Mapping[Cell, Spec], comparison: Comparison) -> str:
    """Where a comparison lies that no DAG has started: the same file, recipes and data are the same comparison, wherever the file lies."""
    told = [[cell.name, spec.recipe.model_dump(mode="json"), spec.pins] for cell, spec in specs.items()]
    asked = comparison.model_dump(mode="json", exclude={"recipe"})
    digest = hashlib.sha256(canonical_json([asked, told])).hexdigest()
    return Run.prefix_of(environment, "comparison", f"{comparison.name}-{digest[:12]}")


def plan(environment: Environment, file: str | Path, prefix: str | None = None) -> Cells:
    """Resolve a comparison into the specs of its cells and write them, or read what is there already (a retry).

    Args:
        prefix: where it is to lie; None: see `own_prefix`.

    Raises:
        UserError: a file that does not fit, algorithms that cannot be compared, a source that is not there.
    """
    store = Store.of(environment)
    if prefix is None or store.read_json(f"{prefix}/{FILE}") is None:
        comparison, specs = resolve(environment, file)
        prefix = prefix or own_prefix(environment, specs, comparison)
        for cell, spec in specs.items():
            store.create_json(f"{cell_prefix(prefix, cell.name)}/spec.json", spec.model_dump(mode="json"))
        arms = tuple(dict.fromkeys(cell.arm for cell in specs))
        whole = Plan(comparison=comparison, arms=arms, cells=tuple(specs), created=datetime.now(UTC).isoformat())
        store.create_json(f"{prefix}/{FILE}", whole.model_dump(mode="json"))
    return Cells.open(environment, prefix)


def resolve(environment: Environment, file: str | Path) -> tuple[Comparison, dict[Cell, Spec]]:
    """The specs of all cells, seed by seed; writes nothing.

    Raises:
        UserError: see `plan`.
    """
    comparison = load_comparison(file)
    recipe, _ = asked_for(environment, comparison.recipe, (), settings=comparison.settings)
    recipes = arms(comparison, recipe)
    cells = [
        Cell(name=_name_of(arm, seed), arm=arm, seed=seed) for seed, arm in itertools.product(comparison.seeds, recipes)
    ]
    if len({cell.name for cell in cells}) < len(cells):
        raise UserError(f"{file}: two algorithms have names that make one folder: {', '.join(recipes)}. Rename one.")
    seeded = [recipes[cell.arm].model_copy(update={"seed": cell.seed}) for cell in cells]
    return comparison, dict(zip(cells, resolve_candidates(environment, seeded), strict=True))


def _name_of(arm: str, seed: int) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{arm} seed {seed}")


def execute(cells: Cells, cell: Cell) -> None:
    """Make one cell: run each of its tasks, or find that there is nothing to do.

    Raises:
        WmtpError: as the tasks do.
    """
    run = cells.run(cell)
    for task, index in places(run.spec):
        stage.execute(run, task, index, tasks=TASKS)


def arms(comparison: Comparison, recipe: Recipe) -> dict[str, Recipe]:
    """The recipe of each algorithm, and of each combination of its grid.

    Args:
        comparison: as it was asked for.
        recipe: what `comparison.recipe` names, with `comparison.settings`.

    Raises:
        UserError: a setting that does not fit, a baseline that there is not, algorithms that are not learnt from the same batches, or
            two that are one and the same.
    """
    found: dict[str, Recipe] = {}
    for name, algorithm in comparison.algorithms.items():
        ready = _ready(recipe, algorithm.like or name, name)
        for values in _combinations(algorithm.grid):
            arm = ", ".join([name, *(f"{setting}={value}" for setting, value in values.items())])
            found[arm] = changed(
                ready, {**algorithm.settings, **values}, f"{comparison.name}: algorithms.{name} ({arm})"
            )
    if comparison.baseline not in found:
        raise UserError(
            f"{comparison.name}: the baseline is {comparison.baseline!r}, which is none of {'; '.join(found)}. Name one of them."
        )
    _require_equal_batches(comparison, found)
    _require_distinct(comparison, found)
    return found


def _combinations(grid: Mapping[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _ready(recipe: Recipe, algorithm: str, name: str) -> Recipe:
    """The recipe with the scoring, and with it the weighting, of a ready algorithm; the recipe as it is for any other name."""
    scoring = _scoring_of(recipe, algorithm, name)
    if scoring is None:
        return recipe
    changes: dict[str, Any] = {"scoring": scoring, "weighting": {"kind": "soft"}}
    if scoring["scorer"] != "uniform":
        kind = _WEIGHTING_OF.get(algorithm, recipe.weighting.kind)
        changes["weighting"] = (
            recipe.weighting.model_dump(mode="json") if kind == recipe.weighting.kind else {"kind": kind}
        )
    if algorithm == "ntp":
        changes |= {"train.num_heads": 1, "train.head_warmup_steps": 0}
    return changed(recipe, changes, f"{name}, as the ready {algorithm}")


def _scoring_of(recipe: Recipe, algorithm: str, name: str) -> dict[str, Any] | None:
    own = recipe.scoring.model_dump(mode="json")
    if algorithm in ("ntp", "uniform"):
        return {"scorer": "uniform"}
    if algorithm in ("random", "position", "critic"):
        return own if own["scorer"] == algorithm else {"scorer": algorithm}
    if algorithm not in ("rho1-soft", "rho1-select", "shuffled"):
        return None
    if recipe.reference is None:
        raise UserError(
            f"algorithms.{name} compares losses with a reference's, and scoring.scorer of the recipe {recipe.name} is {own['scorer']}, which has "
            "none. Name a recipe with scoring.scorer rho1, or set `scoring: {scorer: rho1, reference: …}` in the comparison's settings."
        )
    scorer = "shuffled" if algorithm == "shuffled" else "rho1"
    return own if own["scorer"] == scorer else {"scorer": scorer, "reference": own["reference"]}


def _require_equal_batches(comparison: Comparison, found: Mapping[str, Recipe]) -> None:
    baseline = found[comparison.baseline]
    for arm, recipe in found.items():
        for place in _EQUAL:
            ours, theirs = _at(recipe, place), _at(baseline, place)
            if ours != theirs:
                raise UserError(
                    f"{comparison.name}: {place} of {arm} is {ours}, but that of the baseline {comparison.baseline} is {theirs}. Algorithms are compared "
                    "at equal data, order and tokens: change it for all of them, in `settings`."
                )


def _at(recipe: Recipe, dotted: str) -> Any:
    value: Any = recipe
    for name in dotted.split("."):
        value = getattr(value, name)
    return value


def _require_distinct(comparison: Comparison, found: Mapping[str, Recipe]) -> None:
    for (one, recipe), (other, same) in itertools.combinations(found.items(), 2):
        if _learnt(recipe) == _learnt(same):
            raise UserError(
                f"{comparison.name}: {one} and {other} are one and the same recipe, so there is nothing to compare. Leave one out, or change a "
                "setting that has an effect."
            )


def _learnt(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe a cell depends on: nothing is promoted, watched or tuned there."""
    return recipe.model_dump(exclude={"name", "gate", "watch", "tuning"})


def planned(environment: Environment) -> Iterator[Cells]:
    """All comparisons of this deployment, the newest first."""
    store, top = Store.of(environment), f"runs/{environment.deployment}"
    prefixes = [f"{top}/{dag}/{run}" for dag in store.children(top) for run in store.children(f"{top}/{dag}")]
    trees = store.read_jsons([f"{prefix}/{FILE}" for prefix in prefixes])
    there = [
        (tree.get("created", ""), prefix) for prefix, tree in zip(prefixes, trees, strict=True) if tree is not None
    ]
    for _, prefix in sorted(there, reverse=True):
        try:
            yield Cells.open(environment, prefix)
        except UserError as error:
            log.warning("%s", error)


def progress(cells: Cells) -> Iterator[tuple[Cell, list[str]]]:
    """Of each cell what its tasks came to so far, in their order: an outcome, or `not yet`."""
    for cell in cells.plan.cells:
        run = cells.run(cell)
        ended = {(one.task, one.index): one.outcome for one in run.pointers()}
        yield cell, [str(ended.get((task.id, index), "not yet")) for task, index in places(run.spec)]
