"""Training checkpoints: small commits of their own below a training's prefix, so that an interrupted one goes on exactly.

    <prefix>/checkpoints/step-00000100/   rank-00000.pt, …: what each rank has of the tensors; index.pt: which rows lie where, what has none, and the rest
    <prefix>/checkpoints/latest.json      the last step, and the token of the lease under which it was written

Owns how a state gets into the store while the training goes on, which steps are there, which of them are whole, and which are kept. What
has to be in a state is `training`'s, which rank has what of a tensor `parallel`'s; removing all of them after the training is committed is
the runtime's. Every rank writes its own file; rank 0 alone commits, and only as long as nobody took over: `latest.json` moves under its
lease alone, and a step beyond it counts for nothing. Whoever goes on reads the index and the files with rows that it needs.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from mlops_tasks import distributed, lease
from mlops_tasks.errors import DataError
from mlops_tasks.store import Artifact, Draft, Store

log = logging.getLogger(__name__)

R = TypeVar("R")

Slab = tuple[int, Tensor]
"""Some rows of a tensor, and which is the first of them."""

INDEX = "index.pt"


@dataclass(frozen=True)
class Part:
    """What one rank adds to a checkpoint."""

    slabs: Mapping[str, Slab]
    """By name of the tensor; on the CPU, and changed by nobody any more. Of those without rows rank 0 has all."""
    rest: Mapping[str, Any]
    """Numbers, strings, and lists and dicts of them; rank 0's counts."""


class Saver:
    """Commits a training's checkpoints beside its steps, one at a time; all ranks do the same with theirs.

    Args:
        store: where the training itself will be committed.
        prefix: of the training.
        token: of the lease under which this process works.
        keep_last: checkpoints that are kept, beside the best ones that they need.
    """

    def __init__(self, store: Store, prefix: str, *, token: int, keep_last: int) -> None:
        self._store, self._prefix, self._token, self._keep_last = store, prefix, token, keep_last
        self._aside = distributed.Aside()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A rank that fails ends at once: it may be for want of it that another one's save does not.
        self._pool.shutdown(wait=error is None or distributed.num_ranks() == 1)

    def begin(self, part: Part, *, step: int, best_step: int | None) -> None:
        """Save the state after `step` optimiser steps, when the one before is saved.

        Args:
            part: of this rank.
            step: optimiser steps done.
            best_step: an earlier checkpoint, or this one, that the result may have to be taken from; it is kept as long as this one.

        Raises:
            Unavailable: another process took over this training; this may come with any later call.
        """
        self.wait()
        at = _prefix(self._prefix, step)
        draft = self._begun(at) if distributed.rank() == 0 else None
        attempt = distributed.broadcast(draft.attempt if draft else "")
        mine = draft or self._store.joined(at, attempt)
        record = {"step": step, "best_step": best_step, "token": self._token}
        self._running = self._pool.submit(self._save, mine, part, record)

    def _begun(self, at: str) -> Draft:
        there = self._store.find(at)
        if there is not None and there.manifest["token"] != self._token:
            self._store.remove(at)  # committed by a process that held the lease no more
        return self._store.begin(at)

    def check(self) -> None:
        """Fail if a save did."""
        if self._running is not None and self._running.done():
            self.wait()

    def wait(self) -> None:
        """Until all is saved that was begun, or failed to be."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def _save(self, draft: Draft, part: Part, record: dict[str, Any]) -> None:
        told = self._together(lambda: self._write(draft, part))
        if told is None or distributed.rank() > 0:
            return
        if self._store.find(draft.prefix) is None:
            draft.streamed[:] = [entry for entry, _ in told]
            with draft.stream(INDEX) as stream:
                rows = {entry["name"]: rows for entry, rows in told}
                torch.save({"rows": rows, "scalars": _scalars(part), "rest": dict(part.rest)}, stream)
            self._store.commit(draft, record)
        else:
            self._store.abandon(draft)
        lease.point(self._store, self._prefix, {"step": record["step"]}, token=self._token)
        prune(self._store, self._prefix, keep_last=self._keep_last)

    def _write(self, draft: Draft, part: Part) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
        """Put this rank's file into the store; returns its entry in the manifest, and first and number of the rows in it."""
        if distributed.rank() == 0:
            lease.require(self._store, self._prefix, self._token)
        with draft.stream(f"rank-{distributed.rank():05d}.pt") as stream:
            slabs = {name: slab for name, slab in part.slabs.items() if slab[1].ndim}
            torch.save({name: value for name, (_, value) in slabs.items()}, stream)
        return draft.streamed[-1], {name: (first, len(value)) for name, (first, value) in slabs.items()}

    def _together(self, action: Callable[[], R]) -> list[R] | None:
        """What an action gave on each rank; None where it failed on another one, which will end this one too."""
        found, is_done = None, False
        try:
            found = action()
            is_done = True
        finally:
            told = self._aside.gather((found, is_done))
        return [one for one, _ in told] if all(is_done for _, is_done in told) else None


def _scalars(part: Part) -> dict[str, Tensor]:
    return {name: value for name, (_, value) in part.slabs.items() if not value.ndim}


class Saved:
    """A checkpoint to go on from; tensors are read by rows, and of the files only those with rows that are asked for.

    Args:
        artifact: whole.
    """

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        self._files: dict[str, dict[str, Tensor]] = {}
        index = torch.load(artifact.path(INDEX), weights_only=True)
        self.rest: dict[str, Any] = index["rest"]
        self._scalars: dict[str, Tensor] = index["scalars"]
        self._places: dict[str, list[tuple[int, int, str]]] = {}
        """First row, number of rows and file, in order, by name of the tensor."""
        for file, rows in index["rows"].items():
            for name, (first, num) in rows.items():
                self._places.setdefault(name, []).append((first, num, file))
        for places in self._places.values():
            places.sort()

    @property
    def names(self) -> list[str]:
        """Of all tensors."""
        return [*self._places, *self._scalars]

    def rows(self, name: str, first: int = 0, num: int | None = None) -> Tensor:
        """Some rows of a tensor, or all of it; a copy of no more than these."""
        if name in self._scalars:
            return self._scalars[name]
        places = self._places[name]
        end = places[-1][0] + places[-1][1] if num is None else first + num
        needed = [(start, file) for start, count, file in places if start < end and first < start + count]
        slabs = [(start, self._file(file)[name]) for start, file in needed or [(first, places[0][2])]]
        if num is None and len(slabs) == 1:
            return slabs[0][1]
        return torch.cat([rows[max(0, first - start) : max(0, end - start)] for start, rows in slabs])

    def _file(self, name: str) -> dict[str, Tensor]:
        if name not in self._files:
            path = self._artifact.path(name)
            self._files[name] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        return self._files[name]


def steps(store: Store, prefix: str) -> list[int]:
    """Steps up to the latest with a complete checkpoint, in order."""
    return sorted(_complete(store, prefix))


def load(store: Store, prefix: str, step: int) -> Saved:
    """The state that was committed at a step.

    Raises:
        DataError: it is not there, or its bytes are not those that were committed.
    """
    artifact = store.find(_prefix(prefix, step))
    if artifact is None:
        raise DataError(
            f"{store.uri}/{_prefix(prefix, step)} is not whole any more. Start the task again: it goes on from another checkpoint."
        )
    return Saved(artifact)


def newest(store: Store, prefix: str) -> int | None:
    """The last step whose checkpoint, and the best one that it needs, are there byte for byte; broken ones are passed over.

    All ranks call it, and each reads its share of the files: where as many go on in the same way, those that it needs.
    """
    there = distributed.broadcast(steps(store, prefix) if distributed.rank() == 0 else [])
    return next((step for step in reversed(there) if _is_usable(store, prefix, step)), None)


def _is_usable(store: Store, prefix: str, step: int) -> bool:
    flaw = None
    try:
        artifact = _verified(store, _prefix(prefix, step))
        if (best_step := artifact.manifest["best_step"]) is not None:
            _verified(store, _prefix(prefix, best_step))
    except DataError as error:
        flaw = str(error)
    flaws = [one for one in distributed.gather(flaw) if one is not None]
    if flaws and distributed.rank() == 0:
        log.warning("the checkpoint of step %d cannot be used: %s", step, flaws[0])
    return not flaws


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
    of_ranks = [name for name in artifact.names if name != INDEX]
    artifact.paths([INDEX, *of_ranks[distributed.rank() :: distributed.num_ranks()]])
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
