"""Which recipe `tuned` stands for: the best one of the last study that was believed, by the name of the recipe that was tuned.

<store>/tuned/<name>.json   a pointer to the artifact of `select`
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from mlops_tasks.errors import UserError
from mlops_tasks.stage import Tuned, artifact_prefix
from mlops_tasks.store import Artifact, Store

PLACE = "tuned"
RECIPE = "recipe.yaml"


def adopt(store: Store, name: str, artifact: Artifact) -> bool:
    """Have `tuned:NAME` stand for this result from now on, unless it stands for that of a newer study.

    Returns:
        Whether it does.
    """
    place = f"{PLACE}/{quote(name, safe='')}.json"
    there = store.read_json(place)
    if there is not None and there["key"] != artifact.manifest["key"]:
        other = store.find(artifact_prefix("select", there["key"]))
        if other is not None and _made(other) > _made(artifact):
            return False
    tuned = Tuned(name=name, key=artifact.manifest["key"], digest=artifact.digest)
    # As a run's pointers are written, so that `gc` reads it as one.
    store.write_json(place, {"stage": "select", **tuned.model_dump(mode="json")})
    return True


def _made(artifact: Artifact) -> datetime:
    return datetime.fromisoformat(artifact.manifest["created"])


def adopted(store: Store, name: str) -> tuple[Tuned, Path]:
    """What `tuned:NAME` stands for, and its recipe as a file.

    Args:
        name: of the recipe that was tuned; empty: there is one only.

    Raises:
        UserError: there is none, or there are several and none is named.
    """
    there = [one.removesuffix(".json") for one in store.children(PLACE)]
    found = quote(name, safe="") if name else there[0] if len(there) == 1 else ""
    if found not in there:
        wanted = f"tuned:{name}" if name else "tuned"
        raise UserError(
            f"There is no recipe {wanted} in {store.uri}; there is {', '.join(f'tuned:{one}' for one in there) or 'none yet'}. Run the DAG wmtp_tune "
            "with the recipe first: it is there once a study has beaten that, or name the recipe itself."
        )
    tree: dict[str, str] = store.read_json(f"{PLACE}/{found}.json") or {}
    tuned = Tuned(name=tree["name"], key=tree["key"], digest=tree["digest"])
    artifact = store.version_at(artifact_prefix("select", tuned.key), tuned.digest)
    if artifact is None:
        raise UserError(
            f"{store.uri}/{artifact_prefix('select', tuned.key)}, which tuned:{tuned.name} stands for, is not whole any more. Run wmtp_tune again: the "
            "trials that are there are hits."
        )
    return tuned, artifact.path(RECIPE)
