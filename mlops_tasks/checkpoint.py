"""Training checkpoints: small commits of their own below a training's prefix, so that an interrupted one goes on exactly.

    <prefix>/checkpoints/step-00000100/   state.pt: model, optimiser, and whatever else `training` hands over
    <prefix>/checkpoints/latest.json      the last step, and the token of the lease under which it was written

Owns which steps are there, which of them are whole, and which are kept. What has to be in a state is `training`'s; removing all
of them after the training is committed is the runtime's. Only rank 0 writes, and only as long as nobody took over: `latest.json`
moves under its lease alone, and a step beyond it counts for nothing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import torch

from mlops_tasks import lease
from mlops_tasks.errors import DataError
from mlops_tasks.store import Artifact, Store

log = logging.getLogger(__name__)

STATE = "state.pt"


def save(store: Store, prefix: str, state: Mapping[str, Any], *, step: int, best_step: int | None, token: int) -> None:
    """Commit the state after `step` optimiser steps, without a local copy; a step that is there already stays as it is.

    Args:
        store: where the training itself will be committed.
        prefix: of the training.
        state: tensors, numbers, strings, and lists and dicts of them.
        step: optimiser steps done.
        best_step: an earlier checkpoint, or this one, that the result may have to be taken from; it is kept as long as this one.
        token: of the lease under which this process works.

    Raises:
        Unavailable: another process took over this training.
    """
    lease.require(store, prefix, token)
    at = _prefix(prefix, step)
    if store.find(at) is None:
        draft = store.begin(at)
        with draft.stream(STATE) as stream:
            torch.save(dict(state), stream)
        store.commit(draft, {"step": step, "best_step": best_step})
    lease.point(store, prefix, {"step": step}, token=token)


def steps(store: Store, prefix: str) -> list[int]:
    """Steps up to the latest with a complete checkpoint, in order."""
    return sorted(_complete(store, prefix))


def load(store: Store, prefix: str, step: int) -> dict[str, Any]:
    """The state that was committed at a step, on the CPU.

    Raises:
        DataError: it is not there, or its bytes are not those that were committed.
    """
    artifact = store.find(_prefix(prefix, step))
    if artifact is None:
        raise DataError(
            f"{store.uri}/{_prefix(prefix, step)} is not whole any more. Start the task again: it goes on from another checkpoint."
        )
    state: dict[str, Any] = torch.load(artifact.path(STATE), map_location="cpu", mmap=True, weights_only=True)
    return state


def newest(store: Store, prefix: str) -> int | None:
    """The last step whose checkpoint, and the best one that it needs, are there byte for byte; broken ones are passed over."""
    for step in reversed(steps(store, prefix)):
        try:
            artifact = _verified(store, _prefix(prefix, step))
            if (best_step := artifact.manifest["best_step"]) is not None:
                _verified(store, _prefix(prefix, best_step))
        except DataError as error:
            log.warning("the checkpoint of step %d cannot be used: %s", step, error)
        else:
            return step
    return None


def prune(store: Store, prefix: str, *, keep_last: int) -> None:
    """Remove all complete checkpoints but the last ones and the best ones that those need."""
    complete = _complete(store, prefix)
    kept = set(sorted(complete)[-keep_last:])
    kept |= {complete[step].manifest["best_step"] for step in kept}
    for step in sorted(complete.keys() - kept):
        store.remove(_prefix(prefix, step))


def _verified(store: Store, prefix: str) -> Artifact:
    artifact = store.find(prefix)
    if artifact is None:
        raise DataError(f"{store.uri}/{prefix} is not whole any more.")
    artifact.path(STATE)
    return artifact


def _complete(store: Store, prefix: str) -> dict[int, Artifact]:
    latest = lease.pointed(store, prefix)
    if latest is None:
        return {}
    listed = [re.fullmatch(r"step-(\d+)", name) for name in store.children(f"{prefix}/checkpoints")]
    # A listing may be behind; and what lies beyond was left by a process that was killed, or no longer held the lease.
    wanted = {latest["step"], *(int(one[1]) for one in listed if one and int(one[1]) <= latest["step"])}
    found = {step: store.find(_prefix(prefix, step)) for step in sorted(wanted)}
    return {step: artifact for step, artifact in found.items() if artifact is not None}


def _prefix(prefix: str, step: int) -> str:
    return f"{prefix}/checkpoints/step-{step:08d}"
