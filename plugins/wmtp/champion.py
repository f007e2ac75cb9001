"""What Airflow is told of the champion: an asset event when it changes, a failed task when it has decayed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.sdk import Asset, AssetAlias, Context

from mlops_tasks.stage import Pointer, Run
from mlops_tasks.store import MANIFEST
from wmtp.notices import ChampionDecayed

CHAMPIONS = AssetAlias("wmtp_champion")
"""What a DAG is scheduled by that wants every new champion; of one product line it is `champion_asset`."""


def champion_asset(model: str) -> Asset:
    """The champion of a product line, as Airflow knows it."""
    return Asset(name=f"wmtp_champion/{model}", uri=f"wmtp://champion/{model}")


def tell_promotion(context: Context, run: Run, pointer: Pointer) -> None:
    """Fill the alias only if production loads another model now: a static outlet fires on a refusal too."""
    if pointer.detail["outcome"] != "promoted":
        return
    train = run.artifact("train")
    assert train is not None
    found = {"version": pointer.detail["version"], "manifest": f"{train.uri}/{MANIFEST}", "digest": train.digest}
    _emit(context, run.spec.recipe.model.name, found)


def tell_rollback(context: Context, moved: Mapping[str, Any]) -> None:
    """Fill the alias for a version that production loads again.

    Args:
        moved: what `wmtp registry rollback --json` says.
    """
    _emit(context, moved["name"], {name: moved[name] for name in ("version", "manifest", "digest")})


def _emit(context: Context, model: str, facts: Mapping[str, str]) -> None:
    context["outlet_events"][CHAMPIONS].add(champion_asset(model), extra={"model": model, **facts})


def tell_decay(context: Context, run: Run, pointer: Pointer) -> None:
    """Raise the alarm, where there is cause: a task that fails is seen."""
    if pointer.detail["outcome"] == "decayed":
        name, version = run.spec.recipe.model.name, pointer.detail["version"]
        raise ChampionDecayed(
            f"Version {version} of {name}, the champion, has decayed. {pointer.detail['reason']} Train on the new data, or "
            f"`wmtp registry rollback {name}`."
        )
