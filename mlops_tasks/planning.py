"""From a recipe to the spec that all tasks of a run read: everything that could move is pinned, and what cannot be is refused.

Which tasks a spec makes is said in `pipeline`; what they would do is `forecast`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from mlops_tasks.config.environment import Environment, S3Access
from mlops_tasks.config.learning import TrainedReference
from mlops_tasks.config.loading import load_recipe
from mlops_tasks.config.recipe import Recipe
from mlops_tasks.config.sources import HubModel, ModelSource
from mlops_tasks.data.pins import digest_of_model, digest_of_source
from mlops_tasks.data.prompts import mismatch
from mlops_tasks.data.protocols import protocol_named
from mlops_tasks.errors import UserError
from mlops_tasks.pipeline import STUDY, TASKS, fan_out_of, task_named, trusted_model
from mlops_tasks.stage import Pointer, Run, Spec, Stage, Tuned
from mlops_tasks.store import Store


def plan(
    environment: Environment,
    prefix: str,
    *,
    recipe: str | Path,
    overrides: Sequence[str] = (),
    force: Sequence[str] = (),
    only_champion: bool = False,
    is_study: bool = False,
) -> Run:
    """Resolve a recipe into the spec of a run and write it, or read the spec that is there already (a retry).

    Args:
        recipe: a file, or `tuned:NAME`: what the last study of the recipe NAME ended with.
        only_champion: see `Spec`.
        is_study: see `Spec`.

    Raises:
        UserError: a recipe that does not fit, a source that is not there, a task to force that does not exist.
    """
    started = time.monotonic()
    store = Store.of(environment)
    if store.read_json(f"{prefix}/spec.json") is None:
        spec = resolve(
            environment,
            recipe=recipe,
            overrides=overrides,
            force=force,
            only_champion=only_champion,
            is_study=is_study,
        )
        store.create_json(f"{prefix}/spec.json", spec.model_dump(mode="json"))
    run = Run.open(environment, prefix)
    run.point(Pointer(task="plan", index=0, stage="plan", outcome="done", seconds=round(time.monotonic() - started, 3)))
    return run


def resolve(
    environment: Environment,
    *,
    recipe: str | Path,
    overrides: Sequence[str] = (),
    force: Sequence[str] = (),
    only_evaluates: bool = False,
    only_champion: bool = False,
    is_study: bool = False,
) -> Spec:
    """Pin everything that could move: data, models, champion.

    Args:
        recipe: see `plan`.
        only_evaluates: nothing is trained, and the recipe's own model is asked, whoever the champion is.
        only_champion: see `Spec`.
        is_study: see `Spec`; its space is tried first.

    Raises:
        UserError: a recipe that does not fit, a source that is not there, a task to force that does not exist.
    """
    from mlops_tasks.registry import champion
    from mlops_tasks.tuning.space import require_space

    for name in force:
        if not isinstance(task_named(name).run, Stage):
            raise UserError(
                f"force names {name!r}, which is an action and always runs. Stages are {', '.join(id for id, task in TASKS.items() if isinstance(task.run, Stage))}."
            )
    asked, tuned = asked_for(environment, recipe, overrides)
    if is_study:
        require_space(asked, environment)
    elif tuned is not None and asked.tuning is not None:
        asked = asked.untuned(asked.tuning.for_decisions(asked.evaluation.gate))
    _require_protocols(asked, only_evaluates=only_evaluates)
    found, pins = _pinned(asked, *_digests(environment.s3))
    return Spec(
        recipe=found,
        pins=pins,
        champion=None if only_evaluates or is_study else champion(environment, found.model.name),
        # Shards are in no key: to make them anew is to make anew what is merged of them.
        force=tuple(dict.fromkeys([*force, *(TASKS[name].covered_by or name for name in force)])),
        created=datetime.now(UTC).isoformat(),
        fan_out=fan_out_of(found, environment, {**TASKS, **(STUDY if is_study else {})}),
        only_champion=only_champion,
        is_study=is_study,
        tuned=tuned,
    )


def resolve_candidates(environment: Environment, recipes: Sequence[Recipe]) -> list[Spec]:
    """Pin several recipes whose candidates alone are wanted (see `Spec.only_candidate`); what they share is looked at once.

    Raises:
        UserError: a source that is not there, or a protocol that cannot ask for what the data has.
    """
    digests, created = _digests(environment.s3), datetime.now(UTC).isoformat()
    specs = []
    for recipe in recipes:
        _require_protocols(recipe, only_evaluates=False)
        found, pins = _pinned(recipe, *digests)
        fan_out = fan_out_of(found, environment, TASKS)
        specs.append(
            Spec(recipe=found, pins=pins, champion=None, created=created, fan_out=fan_out, only_candidate=True)
        )
    return specs


def asked_for(
    environment: Environment,
    recipe: str | Path,
    overrides: Sequence[str],
    *,
    settings: Mapping[str, Any] | None = None,
) -> tuple[Recipe, Tuned | None]:
    """A recipe as it was asked for, with nothing pinned, and the study that it is the result of.

    Args:
        recipe: see `plan`.
        settings: as overrides, by dotted name.

    Raises:
        UserError: there is none, or an override does not fit it.
    """

    def fill_in(train: dict[str, Any], rest: Recipe) -> dict[str, Any]:
        from mlops_tasks import recommendation  # loads transformers, which a plan without `auto` does not need

        return recommendation.fill_in(train, model=rest.model.source, data=rest.data.source, access=environment.s3)

    if (name := tuned_name(recipe)) is None:
        return load_recipe(recipe, overrides, settings=settings, fill_in=fill_in), None
    from mlops_tasks.tuning.adoption import adopted

    tuned, file = adopted(Store.of(environment), name)
    return load_recipe(file, overrides, settings=settings, fill_in=fill_in), tuned


def tuned_name(recipe: str | Path) -> str | None:
    """The NAME of `tuned:NAME`, empty for `tuned` alone; None: it is a recipe's own name or file."""
    first, _, name = str(recipe).partition(":")
    return name if first == "tuned" else None


def _require_protocols(recipe: Recipe, *, only_evaluates: bool) -> None:
    """Before anything is trained: can the protocols ask for what the data has?"""
    kind = recipe.data.source.asks_for
    used = {"evaluation.protocol": recipe.evaluation.protocol}
    if not only_evaluates:
        used["text.prompt"] = recipe.text.prompt
    for place, protocol in used.items():
        if kind is not None and kind not in protocol_named(protocol).kinds:
            raise mismatch(
                protocol, kind, f"data.source ({recipe.data.source.kind}), which {place} is to be used with,"
            )


_DigestOf = Callable[[Any], str]


def _digests(access: S3Access) -> tuple[_DigestOf, _DigestOf]:
    """What lies at sources of data and of models now; each is looked at once."""
    return cache(lambda source: digest_of_source(source, access)), cache(lambda source: digest_of_model(source, access))


def _pinned(recipe: Recipe, digest_of_data: _DigestOf, digest_of_weights: _DigestOf) -> tuple[Recipe, dict[str, str]]:
    pins = {
        "pull_data": digest_of_data(recipe.data.source),
        "pull_model": digest_of_weights(recipe.model.source),
    }
    model = recipe.model.model_copy(update={"source": _at_commit(recipe.model.source, pins["pull_model"])})
    scoring, reference = recipe.scoring, recipe.reference
    if isinstance(reference, TrainedReference):
        pins["pull_reference"] = digest_of_data(reference.data)
    elif trusted := trusted_model(recipe):
        pins["pull_reference"] = digest_of_weights(trusted)
        name = "reference" if reference else "reward"
        pinned = getattr(scoring, name).model_copy(update={"model": _at_commit(trusted, pins["pull_reference"])})
        scoring = scoring.model_copy(update={name: pinned})
    return recipe.model_copy(update={"model": model, "scoring": scoring}), pins


def _at_commit(source: ModelSource, commit: str) -> ModelSource:
    return source.model_copy(update={"revision": commit}) if isinstance(source, HubModel) else source
