"""The stage `select`: of a study that is done the best recipe, and whether it is better than the one that was tuned.

The best of many trials looks better than it is, for it was chosen by the very numbers. So it is believed only after it has learnt again with
seeds of its own beside the recipe as it was, and both were measured on problems that no trial was measured by; for a validation loss, on the
same validation problems, and then the seeds alone are new.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mlops_tasks.algorithms.inference import Estimate, over_seeds, over_seeds_and_problems
from mlops_tasks.config.loading import as_yaml, changed
from mlops_tasks.config.recipe import Recipe
from mlops_tasks.config.space import Objective
from mlops_tasks.errors import DataError, UserError
from mlops_tasks.stage import Attempt, Run, Spec
from mlops_tasks.tuning.adoption import RECIPE
from mlops_tasks.tuning.cell import Cell
from mlops_tasks.tuning.space import default_point, in_order, tuning_of
from mlops_tasks.tuning.study import Study
from mlops_tasks.tuning.trials import CHANGES, DIRECTIONS, WHY, is_done, row, saved_share

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)

_FEWEST_TRIALS = 4
NEW = ("problems that no trial was measured by", "the validation problems that trials were measured by too")
"""What both recipes are measured on in the end; the second for a validation loss."""
TRIALS, EVIDENCE = "trials.jsonl", "evidence.json"


def select(attempt: Attempt) -> dict[str, Any]:
    """Find the best trial, hold it against the recipe as it is, and write both the recipe and the evidence.

    Raises:
        UserError: trials are not done, and no worker is left that would do them.
        Unavailable: the database is away.
        DataError: no trial was trained to its end.
    """
    recipe = Recipe.model_validate(attempt.config["recipe"])
    run = _run_of(attempt, recipe)
    study = Study(run, attempt.key)
    with study.alone():
        slots = study.slots()
    _require_done(study, slots)
    best = best_of(study, slots)
    if best is None:
        raise DataError(
            f"No trial of {study.name} was trained to its end: {slots[0].user_attrs.get(WHY)}. Let the pruner begin later, or widen the space."
        )
    changes: dict[str, Any] = best.user_attrs[CHANGES]
    evidence: dict[str, Any] = {
        "best_slot": best.user_attrs["slot"],
        "changes": changes,
        "differences": differing(study.recipe, changed(study.recipe, in_order(changes), "the best trial")),
        "front": _front(study, slots),
        "importances": _importances(study),
    }
    evidence |= _believed(study, changes)
    _write(attempt, study, slots, evidence)
    return {
        "num_trials": len(slots),
        "num_complete": sum(trial.state.name == "COMPLETE" for trial in slots.values()),
        "num_pruned": sum(trial.state.name == "PRUNED" for trial in slots.values()),
        "num_failed": len(study.trials()) - len(slots),
        "steps_saved_share": saved_share(slots.values()),
        **{f"best_{name}": value for name, value in zip(study.objectives, best.values, strict=True)},
        **{name: evidence[name] for name in ("is_better", "reason", "interval")},
    }


def _run_of(attempt: Attempt, recipe: Recipe) -> Run:
    """What the study's cells are below; they find the data pinned as the workers did."""
    spec = Spec(recipe=recipe, pins=attempt.config["pins"], champion=None, created=datetime.now(UTC).isoformat())
    return Run(attempt.store, attempt.environment, attempt.prefix, spec)


def _require_done(study: Study, slots: Mapping[int, FrozenTrial]) -> None:
    open_slots = [str(slot) for slot in range(study.tuning.num_trials) if not is_done(slots.get(slot))]
    if open_slots:
        raise UserError(
            f"{len(open_slots)} of the {study.tuning.num_trials} trials of {study.name} are not done: {', '.join(open_slots[:10])}. Clear the "
            "task `search`: its workers take them."
        )


def best_of(study: Study, slots: Mapping[int, FrozenTrial]) -> FrozenTrial | None:
    """The best by the first objective, of those that no other one beats in all; of two the earlier slot. None: none is complete."""
    front = [(_costs(study, slots[slot]), slot) for slot in _front(study, slots)]
    return slots[min(front)[1]] if front else None


def _front(study: Study, slots: Mapping[int, FrozenTrial]) -> list[int]:
    costs = {slot: _costs(study, trial) for slot, trial in slots.items() if trial.state.name == "COMPLETE"}
    return sorted(slot for slot, own in costs.items() if not any(_beats(other, own) for other in costs.values()))


def _costs(study: Study, trial: FrozenTrial) -> tuple[float, ...]:
    """Values of which less is better."""
    pairs = zip(study.objectives, trial.values, strict=True)
    return tuple(-value if DIRECTIONS[name] == "maximize" else value for name, value in pairs)


def _beats(other: Sequence[float], own: Sequence[float]) -> bool:
    return other != own and all(a <= b for a, b in zip(other, own, strict=True))


def _importances(study: Study) -> dict[str, float]:
    """By setting, how much of what trials differ by in the first objective goes with it; of too few or equal trials nothing is said."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    complete = [trial for trial in study.trials() if trial.state.name == "COMPLETE"]
    if len(complete) < _FEWEST_TRIALS or len({trial.values[0] for trial in complete}) == 1:
        return {}
    # With a target of ours, low values are taken for the good ones.
    target = None if len(study.objectives) == 1 else lambda trial: _costs(study, trial)[0]
    return get_param_importances(study.database, evaluator=PedAnovaImportanceEvaluator(), target=target)


def _believed(study: Study, changes: Mapping[str, Any]) -> dict[str, Any]:
    """What learning again came to: the measure of each seed, the interval, and a sentence."""
    objective = study.objectives[0]
    if changes == default_point(study.recipe):
        return {
            "is_better": False,
            "reason": "No trial did better than the recipe itself.",
            "interval": None,
            "repeats": [],
        }
    repeats = [_repeat(study, changes, objective, seed) for seed in _seeds(study)]
    found = estimated(objective, repeats)
    is_better = believes(found, study.tuning.confidence)
    reason = in_words(objective, found, num_seeds=len(repeats), confidence=study.tuning.confidence)
    log.info("%s", reason)
    interval = {"difference": found.value, "low": found.low, "high": found.high, "p_value": one_sided(found)}
    shown = [{name: one[name] for name in ("seed", "recipe", "best")} for one in repeats]
    return {"is_better": is_better, "reason": reason, "interval": interval, "repeats": shown}


def differing(recipe: Recipe, best: Recipe) -> dict[str, list[Any]]:
    """Settings by dotted name that are others, before and after: a change of kind starts its part anew, outside of the space too."""
    before, after = (_flat(one.model_dump(mode="json", exclude={"tuning"})) for one in (recipe, best))
    return {name: [before.get(name), after.get(name)] for name in before | after if before.get(name) != after.get(name)}


def _flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _flat(value, f"{above}{name}.") if isinstance(value, Mapping) else {f"{above}{name}": value}
    return found


def _seeds(study: Study) -> range:
    """None of them is the trials'."""
    first = study.recipe.seed + 1
    return range(first, first + study.tuning.repeats)


def _repeat(study: Study, changes: Mapping[str, Any], objective: Objective, seed: int) -> dict[str, Any]:
    found: dict[str, Any] = {"seed": seed}
    for name, asked in (("recipe", {}), ("best", changes)):
        cell = Cell.below(study.run, study.prefix, confirmed(study.recipe, {**in_order(asked), "seed": seed}))
        found[name] = cell.measure([objective])[objective]
        found[f"{name}_rates"] = cell.rates() if objective == "pass_at_1" else None
    log.info(
        "seed %d: %s %.4f with the recipe, %.4f with the best trial's", seed, objective, found["recipe"], found["best"]
    )
    return found


def confirmed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe changed, and measured on what is left of the gate set when trials have had theirs."""
    gate = tuning_of(recipe).for_decisions(recipe.evaluation.gate)
    return changed(recipe, changes, "the best trial").untuned(gate)


def estimated(objective: Objective, repeats: Sequence[Mapping[str, Any]]) -> Estimate:
    """By how much the best recipe is better, for other seeds, and for other problems where programs are run.

    Args:
        objective: which was measured.
        repeats: by seed the measure of `recipe` and of `best`; of pass@1 `recipe_rates` and `best_rates` too, by problem.
    """
    if objective == "pass_at_1":
        return over_seeds_and_problems(
            [[b - a for a, b in zip(one["recipe_rates"], one["best_rates"], strict=True)] for one in repeats]
        )
    sign = 1.0 if DIRECTIONS[objective] == "maximize" else -1.0
    found = over_seeds([sign * (one["best"] - one["recipe"]) for one in repeats])
    assert found is not None, "tuning.repeats is two at least"
    return found


def one_sided(found: Estimate) -> float:
    """How likely a difference as good is by chance alone; of differences that are all the same nothing is known of chance."""
    if found.low == found.high:
        return 1.0
    return found.p_value / 2 if found.value > 0 else 1 - found.p_value / 2


def believes(found: Estimate, confidence: float) -> bool:
    """Whether a difference is better beyond chance."""
    return one_sided(found) < 1 - confidence


def in_words(objective: Objective, found: Estimate, *, num_seeds: int, confidence: float) -> str:
    """What learning again has shown, a sentence."""
    measured = f"on average over {num_seeds} seeds and {NEW[objective == 'validation_loss']}"
    if found.value <= 0:
        against = (
            f"worse than the recipe's own by {-found.value:.4f}" if found.value < 0 else "as good as the recipe's own"
        )
        return f"{objective} of the best trial's recipe is {against} {measured}, so it is not believed to be better."
    return (
        f"{objective} of the best trial's recipe is better than the recipe's own by {found.value:.4f} {measured}; by chance alone that happens with "
        f"a probability of {one_sided(found):.2g}, and it is believed below {1 - confidence:.2g}: "
        f"{'it is believed' if believes(found, confidence) else 'that may be chance'}."
    )


def _write(attempt: Attempt, study: Study, slots: Mapping[int, FrozenTrial], evidence: Mapping[str, Any]) -> None:
    recipe = changed(study.recipe, in_order(evidence["changes"]), "the best trial")
    lines = [
        f"# Of the study {study.name}: slot {evidence['best_slot']} of {len(slots)}.",
        f"# {evidence['reason']}",
        as_yaml(recipe.model_dump(mode="json")),
    ]
    (attempt.folder / RECIPE).write_text("\n".join(lines), encoding="utf-8")
    (attempt.folder / EVIDENCE).write_text(json.dumps(evidence, indent=1), encoding="utf-8")
    rows = [json.dumps(row(study.objectives, trial)) for trial in study.trials()]
    (attempt.folder / TRIALS).write_text("".join(f"{one}\n" for one in rows), encoding="utf-8")
