"""Looking after a store: is everything as it was committed (`verify`), and what does nobody need any more (`gc`).

What an artifact is and how it is taken away safely is said in `store`; who may still load one by name is `registry`'s. Nothing
here runs by itself, and `gc` removes nothing unless it is told to.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from mlops_tasks import algorithms, registry, tracking
from mlops_tasks.config.environment import Environment
from mlops_tasks.errors import Unavailable, UserError
from mlops_tasks.logs import watched
from mlops_tasks.registry import moves
from mlops_tasks.stage import Run, Stage, Task, artifact_prefix, carry_out, cell_prefixes, decide
from mlops_tasks.store import MANIFEST, Artifact, Inspection, Store
from mlops_tasks.tuning import adoption

log = logging.getLogger(__name__)

_RUNS = "runs"
_NO_STAGES = frozenset({_RUNS, moves.PLACE, adoption.PLACE})
_LEASE = "lease.json"
_NUM_STREAMS = 8
_STAMP = re.compile(r"(?:^|/)(\d{8}T\d{6})-")


def selected(store: Store, wanted: Sequence[str] = ()) -> list[str]:
    """Prefixes of artifacts: all of the store, or those that begin with one of the given `<stage>[/<key>]` or URIs.

    Raises:
        UserError: one of them begins none.
    """
    there = [f"{stage}/{key}" for stage in _stages(store) for key in store.children(stage)]
    starts = [one.removeprefix(f"{store.uri}/").removesuffix(f"/{MANIFEST}").rstrip("/") for one in wanted]
    for start in starts:
        if not any(_begins(prefix, start) for prefix in there):
            raise UserError(
                f"Nothing in {store.uri} begins with {start!r}. Give a stage ({', '.join(_stages(store)) or 'there is none yet'}), "
                "<stage>/<the first characters of a key>, or a URI of this store."
            )
    return [prefix for prefix in there if not starts or any(_begins(prefix, start) for start in starts)]


def _stages(store: Store) -> list[str]:
    return [name for name in store.children("") if name not in _NO_STAGES and not name.startswith(".")]


def _begins(prefix: str, start: str) -> bool:
    return prefix.startswith(start if "/" in start else f"{start}/")


def verify(store: Store, prefixes: Sequence[str]) -> Iterator[Inspection]:
    """Hash all files of these artifacts again; what is broken is quarantined, and what cannot be read is told of."""

    def rehashed(prefix: str) -> Inspection | None:
        try:
            return store.rehash(prefix)
        except Unavailable as error:
            return Inspection(prefix, 0, 0, str(error), is_readable=False)

    with ThreadPoolExecutor(_NUM_STREAMS) as pool:
        for found in watched(pool.map(rehashed, prefixes), "verify", len(prefixes), unit="artifacts"):
            if found is not None:
                yield found


@dataclass(frozen=True)
class Difference:
    """A file that came out otherwise when its stage ran again."""

    name: str
    committed: str | None
    """SHA-256; None: there was no such file."""
    recomputed: str | None


def recompute(run: Run, task: Task, index: int = 0, *, tasks: Mapping[str, Task]) -> list[Difference]:
    """Run a task's function again in the shadow, with a store and a tracking database of its own, and compare the files.

    Raises:
        UserError: the task has no artifact to compare with, or has another key by now.
    """
    decision = decide(run, task, index, tasks=tasks)
    if not isinstance(task.run, Stage) or decision.artifact is None:
        raise UserError(
            f"{run.spec.label(task.id, index)} of {run.name} has no artifact under the key that it has here and now, so there is nothing "
            f"to compare with ({decision.outcome}). `wmtp why {task.id}` says what changed since."
        )
    with tempfile.TemporaryDirectory(prefix="wmtp-shadow-") as name:
        shadow = _shadow_of(run, Path(name))
        draft = shadow.store.begin(decision.artifact.prefix)
        carry_out(shadow, task, index, decision, draft)
        return _compared(decision.artifact, shadow.store.commit(draft, {}))


def _shadow_of(run: Run, folder: Path) -> Run:
    """The run where it leaves no trace in what is real: no checkpoint is taken from there, no MLflow run is touched."""
    places = {
        "store": str(folder / "store"),
        "mlflow_uri": f"sqlite:///{folder / 'mlflow.db'}",
        "mlflow_artifacts": str(folder / "mlflow"),
    }
    environment = run.environment.model_copy(update=places)
    return replace(run, store=Store.of(environment), environment=environment)


def _compared(committed: Artifact, recomputed: Artifact) -> list[Difference]:
    before, after = committed.entries("*"), recomputed.entries("*")
    return [
        Difference(name, before.get(name), after.get(name))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


# What nobody needs any more


@dataclass(frozen=True)
class Garbage:
    """Something that can go."""

    prefix: str
    text: str
    """What it is and why nobody needs it."""
    num_bytes: int
    names: tuple[str, ...]
    """What to remove, in this order."""
    manifest: bytes | None = None
    """Of a committed artifact: taken away first, and only if it is still this one."""


@dataclass(frozen=True)
class _Reference:
    """Who is needed: as `Store.version_at` finds it."""

    prefix: str
    digest: str
    files: tuple[str, ...] = ("*",)


@dataclass
class _Content:
    """What lies below one prefix: pieces that live and die whole."""

    sizes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    stamps: dict[str, datetime] = field(default_factory=dict)
    """The newest time in the names below a piece."""
    manifests: dict[str, bytes] = field(default_factory=dict)
    """The committed one and those in quarantine, by piece."""
    trees: dict[str, dict[str, Any]] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)

    def add(self, name: str, size: int) -> None:
        piece = _piece_of(name)
        self.sizes[piece] += size
        for text in _STAMP.findall(name):
            stamp = datetime.strptime(text, "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
            self.stamps[piece] = max(stamp, self.stamps.get(piece, stamp))


def _piece_of(name: str) -> str:
    first, _, rest = name.partition("/")
    # A checkpoint may need another one: of all steps the newest says how old they are.
    return f"{first}/{rest.partition('/')[0]}" if first in ("attempts", "failures", "quarantine") else first


class Collector:
    """Marks what is needed in a store, beginning at what people and production load, and names the rest.

    Args:
        environment: its store, and its registry.
        num_runs: how many runs of each deployment are kept.
        grace: nothing younger is touched.
        pins: `<stage>/<key>` or URIs to keep.
        now: the present, if not the clock's.
    """

    def __init__(
        self,
        environment: Environment,
        *,
        num_runs: int = 20,
        grace: timedelta = timedelta(days=7),
        pins: Sequence[str] = (),
        now: datetime | None = None,
    ) -> None:
        if num_runs < 0 or grace < timedelta(days=1):
            raise UserError(
                f"gc was told to keep {num_runs} runs and to wait {grace.total_seconds() / 86400:g} days. It needs 0 runs or more, and a day or "
                "more: what a stage is writing now looks like garbage."
            )
        self.environment = environment
        self.store = Store.of(environment)
        self.backend = self.store.backend
        self.cutoff = (now or datetime.now(UTC)) - grace
        self._num_runs = num_runs
        self._pins = frozenset(selected(self.store, pins) if pins else ())

    def garbage(self) -> list[Garbage]:
        """All that can go, artifacts first."""
        contents = self._contents()
        # After the contents: what was committed or pointed to meanwhile is in a run that is read here.
        kept_runs, old_runs = self._runs()
        references = [*self._aliased(), *self._of_runs({*kept_runs, adoption.PLACE})]
        self._mark(contents, references)
        found = [one for prefix, content in contents.items() if (one := self._doomed(prefix, content))]
        return [*found, *old_runs]

    def remove(self, garbage: Sequence[Garbage]) -> Iterator[Garbage]:
        """Remove it, the manifest first; what came to life again since it was found stays. Yields what is gone."""
        for one in watched(garbage, "gc", len(garbage), unit="prefixes"):
            if self._has_lease(one.prefix):
                continue
            if one.manifest is not None and not self.store.withdraw(one.prefix, one.manifest):
                continue
            for name in one.names:
                if self._has_lease(one.prefix):  # somebody began to work there meanwhile
                    break
                self.backend.delete(name)
            log.info("removed %s: %s", one.prefix, one.text)
            yield one

    def uploads(self, *, dry_run: bool) -> int:
        """Writes that never ended; removed unless it is a dry run. Returns how many there are."""
        return self.backend.abort_uploads(self.cutoff, dry_run=dry_run)

    def _contents(self) -> dict[str, _Content]:
        contents: dict[str, _Content] = defaultdict(_Content)
        for stage in _stages(self.store):
            for name, size in self.backend.sizes(stage).items():
                key, _, rest = name.partition("/")
                contents[f"{stage}/{key}"].add(rest, size)
        wanted = [
            (prefix, piece)
            for prefix, content in contents.items()
            for piece in content.sizes
            if piece == MANIFEST or piece.startswith("quarantine/")
        ]
        with ThreadPoolExecutor(_NUM_STREAMS) as pool:
            read = pool.map(lambda one: self.backend.read("/".join(one)), wanted)
            for (prefix, piece), data in watched(
                zip(wanted, read, strict=True), "manifests", len(wanted), unit="manifests"
            ):
                if data is not None:
                    contents[prefix].manifests[piece] = data
                    contents[prefix].trees[piece] = _tree_of(data)
        return contents

    def _aliased(self) -> list[_Reference]:
        if tracking.is_empty(self.environment) and self.store.children("train"):
            raise UserError(
                f"{self.environment.mlflow_uri} does not exist, so nobody can tell which of the models in {self.store.uri} production loads, "
                "and nothing is collected. Set mlflow_uri in the environment file to the registry of this store; if it never had one, "
                "run the DAG once."
            )
        return [
            _Reference(one.prefix, one.digest)
            for version in registry.aliased(self.environment)
            for one in (version.model, version.outcomes)
            if one is not None
        ]

    def _runs(self) -> tuple[set[str], list[Garbage]]:
        """Prefixes of the runs that are kept, and the others."""
        sizes: dict[str, dict[str, int]] = defaultdict(dict)
        for name, size in self.backend.sizes(_RUNS).items():
            *run, rest = name.split("/", 3)
            if len(run) == 3:
                sizes["/".join((_RUNS, *run))][rest] = size
        created = {prefix: self._created(prefix, files) for prefix, files in sizes.items()}
        kept: set[str] = set()
        by_deployment: dict[str, list[str]] = defaultdict(list)
        for prefix in sorted(sizes, key=lambda prefix: (created[prefix], prefix), reverse=True):
            others = by_deployment[prefix.split("/")[1]]
            if (
                len(others) < self._num_runs
                or created[prefix] >= self.cutoff
                or self._is_touched(prefix, sizes[prefix])
            ):
                kept.add(prefix)
            others.append(prefix)
        old = [
            Garbage(
                prefix, f"run of {created[prefix]:%Y-%m-%d}, not among the last {self._num_runs} of its deployment",
                sum(files.values()), (f"{prefix}/spec.json", prefix),
            )
            for prefix, files in sizes.items() if prefix not in kept
        ]  # fmt: skip
        return kept, old

    def _is_touched(self, prefix: str, files: Iterable[str]) -> bool:
        """Whether a task of a run ended lately: somebody cleared it, and the run goes on."""
        with ThreadPoolExecutor(_NUM_STREAMS) as pool:
            times = pool.map(self.backend.modified, [f"{prefix}/{name}" for name in files])
            return any(at is not None and at >= self.cutoff for at in times)

    def _created(self, prefix: str, files: Mapping[str, int]) -> datetime:
        """When a run was planned; of one without a spec, when something was last written in it."""
        spec = self.store.read_json(f"{prefix}/spec.json") if "spec.json" in files else None
        if (found := _time((spec or {}).get("created"))) is not None:
            return found
        return max(
            (at for name in files if (at := self.backend.modified(f"{prefix}/{name}"))), default=datetime.now(UTC)
        )

    def _of_runs(self, prefixes: Iterable[str]) -> Iterator[_Reference]:
        names = [
            f"{place}/{name}"
            for prefix in prefixes
            for place in (prefix, *cell_prefixes(self.store, prefix))
            for name in self.store.children(place)
            if name.endswith(".json") and name != algorithms.FILE
        ]
        for name, tree in zip(names, self.store.read_jsons(names), strict=True):
            if tree is not None:
                yield from _references(f"{self.store.uri}/{name}", tree)

    def _mark(self, contents: Mapping[str, _Content], references: Iterable[_Reference]) -> None:
        waiting: list[tuple[str, str]] = []
        for prefix, content in contents.items():
            for piece in content.manifests:
                if prefix in self._pins or self._is_young(prefix, content, piece):
                    waiting.append((prefix, piece))
        for reference in references:
            waiting += self._versions(contents, reference)
        while waiting:
            prefix, piece = waiting.pop()
            content = contents[prefix]
            if piece in content.kept:
                continue
            tree = content.trees[piece]
            content.kept |= {piece, f"attempts/{tree.get('attempt')}"}
            for given in tree.get("inputs", {}).values():
                reference = _Reference(given["artifact"], given["digest"], tuple(given.get("files", ("*",))))
                waiting += self._versions(contents, reference)

    def _versions(self, contents: Mapping[str, _Content], reference: _Reference) -> Iterator[tuple[str, str]]:
        """What is committed there now, and whatever in quarantine is the very version that is meant."""
        content = contents.get(reference.prefix)
        for piece, tree in content.trees.items() if content else ():
            if piece == MANIFEST or _digest_of(self.store, reference, tree) == reference.digest:
                yield reference.prefix, piece

    def _doomed(self, prefix: str, content: _Content) -> Garbage | None:
        if self._has_lease(prefix, content.sizes):
            return None
        loose = [piece for piece in content.sizes if piece not in content.kept and piece != _LEASE]
        if content.kept:
            loose = [piece for piece in loose if not piece.startswith("failures/")]
        doomed = [piece for piece in loose if not self._is_young(prefix, content, piece)]
        if not doomed:
            return None
        if len(doomed) == len(loose) and not content.kept and _LEASE in content.sizes:
            doomed.append(_LEASE)
        # Manifests in quarantine before the files that they list.
        doomed.sort(key=lambda piece: (not piece.startswith("quarantine/"), piece))
        return Garbage(
            prefix,
            _in_words(content, doomed),
            sum(content.sizes[piece] for piece in doomed),
            tuple(f"{prefix}/{piece}" for piece in doomed if piece != MANIFEST),
            content.manifests[MANIFEST] if MANIFEST in doomed else None,
        )

    def _is_young(self, prefix: str, content: _Content, piece: str) -> bool:
        at = _time(content.trees.get(piece, {}).get("created")) or content.stamps.get(piece)
        at = at or self.backend.newest(f"{prefix}/{piece}")
        return at is None or at >= self.cutoff  # of what nobody can tell the age, nothing is taken

    def _has_lease(self, prefix: str, sizes: Mapping[str, int] | None = None) -> bool:
        """Whether somebody may be at work there: leases are renewed while their holder lives."""
        if sizes is not None and _LEASE not in sizes:
            return False
        at = self.backend.modified(f"{prefix}/{_LEASE}")
        return at is not None and at >= self.cutoff


def _references(uri: str, tree: Any) -> Iterator[_Reference]:
    """What a pointer, or the champion in a spec, needs.

    Raises:
        UserError: it has a form in which that cannot be told.
    """
    try:
        if "recipe" in tree:
            champion = tree["champion"]
            if champion is not None:
                yield _Reference(artifact_prefix("train", champion["key"]), champion["digest"])
        elif tree["key"] is not None:
            yield _Reference(artifact_prefix(tree["stage"], tree["key"]), tree["digest"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{uri} was written by another version: it does not say what its run needs ({error!r}). Remove the folder of that run, or keep "
            "fewer runs; until then nothing is collected."
        ) from error


def _tree_of(data: bytes) -> dict[str, Any]:
    try:
        tree = json.loads(data)
    except ValueError:
        return {}
    return tree if isinstance(tree, dict) and isinstance(tree.get("files"), list) else {}


def _digest_of(store: Store, reference: _Reference, tree: dict[str, Any]) -> str | None:
    return Artifact(store, reference.prefix, tree).digest_of(*reference.files) if tree else None


def _time(text: Any) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _in_words(content: _Content, doomed: Sequence[str]) -> str:
    if MANIFEST in doomed:
        tree = content.trees[MANIFEST]
        made = (
            f"made {str(tree.get('created', 'at an unknown time'))[:16]} by {tree.get('run', 'nobody that is known')}"
        )
        return f"artifact, {made}; no alias, pin, kept run or young artifact needs it"
    kinds: dict[str, int] = defaultdict(int)
    for piece in doomed:
        kinds[piece.partition("/")[0]] += 1
    return ", ".join(f"{_KINDS.get(kind, kind)}: {count}" for kind, count in kinds.items())


_KINDS = {
    "attempts": "attempts without a manifest",
    "failures": "records of failures",
    "quarantine": "manifests in quarantine",
    "checkpoints": "checkpoints and parts of work that nobody goes on with",
    "cells": "cells of a study that nobody goes on with",
}


def readable(num_bytes: int) -> str:
    """A number of bytes for people.

    >>> readable(2_500_000)
    '2.5 MB'
    """
    size, units = float(num_bytes), ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.0f} bytes" if units[0] == "bytes" else f"{size:.1f} {units[0]}"
