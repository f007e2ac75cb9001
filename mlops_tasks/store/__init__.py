"""Artifacts by URI: what is committed, whole and unchanged, and what is not there at all.

    <store>/<prefix>/manifest.json        the only commit point: lists every file with its size and SHA-256
    <store>/<prefix>/attempts/<attempt>/  write-once files
    <store>/<prefix>/quarantine/          manifests that stopped being true
    <store>/runs/…, registry/…, tuned/…   small files that people and tasks find by name

A `Backend` moves bytes and gives a few promises (atomic replace, create-if-absent, replace- and remove-if-unchanged); a `Store`
makes artifacts of them. Which prefix means what, and who needs an artifact, is left to `stage`.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import logging
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar, cast

from mlops_tasks.config.environment import Environment, S3Access
from mlops_tasks.errors import DataError, UserError
from mlops_tasks.store.backend import Backend, FolderBackend

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"

R = TypeVar("R")

_NUM_READERS = 8
_PIECE_BYTES = 2**18
_NUM_SMALL_READERS = 32


def canonical_json(value: object) -> bytes:
    """The one byte form of a JSON value: sorted keys, no spaces, no NaN, UTF-8.

    Raises:
        ValueError: a float that is not finite.
        TypeError: something that JSON has no form for.
    """
    return json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces."""
    sha256 = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        while piece := stream.read(_PIECE_BYTES):
            sha256.update(piece)
    return sha256.hexdigest()


class _Hashing:
    """A stream to write to that knows what went through it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._sha256 = hashlib.sha256()
        self._size = 0
        self.error: OSError | None = None
        """Why a write failed, which a writer such as torch's may not pass on."""

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._sha256.update(view)
        self._size += len(view)
        try:
            self._stream.write(view)
        except OSError as error:
            self.error = self.error or error
            raise
        return len(view)

    def flush(self) -> None:
        self._stream.flush()

    def entry(self, name: str) -> dict[str, Any]:
        return {"name": name, "size": self._size, "sha256": self._sha256.hexdigest()}


@dataclass(frozen=True)
class Draft:
    """An attempt at an artifact: files that nobody else sees until it is committed."""

    backend: Backend
    prefix: str
    attempt: str
    folder: Path
    """Local; what lies here is committed."""
    streamed: list[dict[str, Any]] = field(default_factory=list)
    """Entries of files that went straight to the store."""

    @property
    def place(self) -> str:
        """Where the files lie in the store."""
        return f"{self.prefix}/attempts/{self.attempt}"

    @contextmanager
    def stream(self, name: str) -> Iterator[BinaryIO]:
        """Write one file straight to the store, without a local copy where the store is not local."""
        with self.backend.sink(f"{self.place}/{name}") as stream:
            hashing = _Hashing(stream)
            try:
                yield cast(BinaryIO, hashing)
            except Exception:
                if hashing.error is not None:
                    raise hashing.error from None
                raise
        self.streamed.append(hashing.entry(name))


@dataclass(frozen=True)
class Artifact:
    """A committed result. Its files are checked against the manifest when they are read."""

    store: Store
    prefix: str
    manifest: dict[str, Any]
    _verified: set[str] = field(default_factory=set, compare=False, repr=False)

    @property
    def uri(self) -> str:
        return f"{self.store.uri}/{self.prefix}"

    @property
    def digest(self) -> str:
        """SHA-256 over the names and contents of all files."""
        return str(self.manifest["digest"])

    @property
    def metrics(self) -> dict[str, Any]:
        """What the stage said of its result."""
        return dict(self.manifest.get("metrics", {}))

    @property
    def names(self) -> list[str]:
        """Relative names of all files."""
        return _names_in(self.manifest)

    def digest_of(self, *patterns: str) -> str:
        """SHA-256 over the names and contents of the files that match a glob (`*` crosses `/`); of none: of nothing."""
        return _digest({"name": name, "sha256": sha256} for name, sha256 in self.entries(*patterns).items())

    def entries(self, *patterns: str) -> dict[str, str]:
        """SHA-256 by name of the files that match a glob."""
        return {
            file["name"]: file["sha256"]
            for file in self.manifest["files"]
            if any(fnmatch.fnmatchcase(file["name"], one) for one in patterns)
        }

    def path(self, name: str) -> Path:
        """A local path to one file.

        Raises:
            DataError: no such file in the manifest, or its bytes are not those that were committed.
        """
        entry = self._by_name.get(name)
        if entry is None:
            raise DataError(f"{self.uri} holds no file {name}; it holds {', '.join(self.names)}.")
        place = f"{self.prefix}/attempts/{self.manifest['attempt']}/{name}"
        local = self.store.backend.local(place)
        if name not in self._verified:
            if _found(local) != entry["sha256"]:
                self._require(_found(self.store.backend.local(place, anew=True)), entry)
            self._verified.add(name)
        return local

    def folder(self, name: str) -> Path:
        """A local folder with all files below `name`, each checked.

        Raises:
            DataError: nothing is below `name`, or a file is not what was committed.
        """
        below = [file for file in self.names if file.startswith(f"{name}/")]
        if not below:
            raise DataError(f"{self.uri} holds no folder {name}; it holds {', '.join(self.names)}.")
        first, *_ = self.paths(below)
        return first.parents[below[0].removeprefix(f"{name}/").count("/")]

    def paths(self, names: Sequence[str]) -> list[Path]:
        """Local paths to several files, fetched and checked side by side.

        Raises:
            DataError: as `path`.
        """
        return _side_by_side(self.path, names)

    @cached_property
    def _by_name(self) -> dict[str, dict[str, Any]]:
        return {file["name"]: file for file in self.manifest["files"]}

    def _require(self, found: str, entry: dict[str, Any]) -> None:
        if found == entry["sha256"]:
            return
        # Another attempt may have taken this one's place since; what is committed now is not what is broken here.
        if (self.store.read_json(f"{self.prefix}/{MANIFEST}") or {}).get("attempt") == self.manifest["attempt"]:
            self.store.quarantine(self.prefix, f"{entry['name']} has SHA-256 {found}")
        raise DataError(
            f"{self.uri}: {entry['name']} was committed with SHA-256 {entry['sha256'][:12]}… and now is {found[:12]}…. "
            "The artifact is quarantined; run the DAG again and it is made anew."
        )


@dataclass(frozen=True)
class Inspection:
    """What it came to, to hash all files of an artifact again."""

    prefix: str
    num_files: int
    num_bytes: int
    flaw: str | None
    """What is not as it was committed; None: nothing."""
    is_readable: bool = True
    """False: the store cannot tell now, so nothing was quarantined."""


def _found(path: Path) -> str:
    return sha256_of_file(path) if path.is_file() else "nothing"


@dataclass(frozen=True)
class Store:
    """Artifacts on a backend."""

    backend: Backend

    @classmethod
    def of(cls, environment: Environment) -> Store:
        """The store of an environment."""
        return cls.open(environment.store, environment.s3)

    @classmethod
    def open(cls, uri: str, access: S3Access | None = None) -> Store:
        """The store at a URI.

        Raises:
            UserError: a scheme that no backend knows.
        """
        scheme, separator, rest = uri.partition("://")
        if scheme == "s3" and separator:
            from mlops_tasks.store.s3 import S3Backend, parts_of

            return cls(S3Backend(*parts_of(uri), access or S3Access()))
        if separator and scheme != "file":
            raise UserError(
                f"The store {uri} has the scheme {scheme}; known are s3 and file (or a plain path). Change `store` in the environment file."
            )
        return cls(FolderBackend(Path(rest if separator else uri)))

    @property
    def uri(self) -> str:
        return self.backend.uri

    def begin(self, prefix: str) -> Draft:
        """Start an attempt with a folder of its own."""
        attempt = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{socket.gethostname()[:20]}-{uuid.uuid4().hex[:8]}"
        return Draft(self.backend, prefix, attempt, self.backend.scratch(f"{prefix}/attempts/{attempt}"))

    def joined(self, prefix: str, attempt: str) -> Draft:
        """An attempt that another process has begun and commits, with the entries of what is streamed into it here."""
        return Draft(self.backend, prefix, attempt, Path(os.devnull))

    def commit(self, draft: Draft, record: dict[str, Any]) -> Artifact:
        """Make the draft's files the artifact, unless another attempt was first: then theirs is returned.

        Args:
            draft: what `begin` gave, its folder filled.
            record: further fields of the manifest; JSON.

        Returns:
            The artifact that is committed now, ours or the first writer's.
        """
        streamed = {file["name"] for file in draft.streamed}
        names = [name for name in _names_below(draft.folder) if name not in streamed]
        with ThreadPoolExecutor(1) as pool:  # one reads and one sends: each waits for another part of the machine
            published = pool.submit(self.backend.publish, draft.place, draft.folder, names)
            local = _file_entries(draft.folder, names)
            published.result()
        files = sorted([*local, *draft.streamed], key=lambda file: str(file["name"]))
        manifest = {
            "schema": 1,
            **record,
            "attempt": draft.attempt,
            "created": datetime.now(UTC).isoformat(),
            "files": files,
            "digest": _digest(files),
        }
        data = json.dumps(manifest, indent=1, allow_nan=False, ensure_ascii=False).encode()
        while not self.backend.create(f"{draft.prefix}/{MANIFEST}", data):
            if (first := self.find(draft.prefix)) is not None:
                self._give_way(draft, manifest, first)
                return first
        return Artifact(self, draft.prefix, manifest)

    def abandon(self, draft: Draft) -> None:
        """Remove a draft that will not be committed."""
        shutil.rmtree(draft.folder, ignore_errors=True)
        self.backend.delete(draft.place)

    def find(self, prefix: str) -> Artifact | None:
        """The artifact if its manifest and every file are there with their sizes; a broken one is quarantined."""
        data = self.backend.read(f"{prefix}/{MANIFEST}")
        if data is None:
            return None
        manifest, flaw = self._inspected(prefix, data)
        if flaw is None:
            return Artifact(self, prefix, manifest)
        log.warning("%s/%s is no hit: %s; quarantined", self.uri, prefix, flaw)
        self._retire(prefix, data)
        return None

    def artifact_at(self, uri: str) -> Artifact | None:
        """The artifact of a URI of this store, complete, or None.

        Raises:
            UserError: a URI of another store.
        """
        if not uri.startswith(f"{self.uri}/"):
            raise UserError(
                f"{uri} is not in the store {self.uri}. Set `store` in the environment file to the store that holds it."
            )
        return self.find(uri.removeprefix(f"{self.uri}/"))

    def version_at(self, prefix: str, digest: str, files: Sequence[str] = ("*",)) -> Artifact | None:
        """The artifact whose files had this digest, also where another one took its place since (see `force`), or None.

        Args:
            prefix: where it lies.
            digest: of the files that match one of the globs `files`; by default of all.
            files: as a manifest names them beside an input.
        """
        current = self.find(prefix)
        if current is not None and current.digest_of(*files) == digest:
            return current
        for name in self.children(f"{prefix}/quarantine"):
            data = self.backend.read(f"{prefix}/quarantine/{name}") or b""
            manifest, flaw = self._inspected(prefix, data)
            version = Artifact(self, prefix, manifest)
            if flaw is None and version.digest_of(*files) == digest:
                return version
        return None

    def quarantine(self, prefix: str, reason: str) -> None:
        """Take the manifest away, so that the artifact is no hit any more; its files stay for a look."""
        data = self.backend.read(f"{prefix}/{MANIFEST}")
        if data is not None:
            log.warning("%s/%s quarantined: %s", self.uri, prefix, reason)
            self._retire(prefix, data)

    def rehash(self, prefix: str) -> Inspection | None:
        """Hash every file again, from the store itself and never from a copy; None where nothing is committed.

        What is broken is quarantined.
        """
        data = self.backend.read(f"{prefix}/{MANIFEST}")
        if data is None:
            return None
        manifest, flaw = self._inspected(prefix, data)
        files = manifest.get("files", [])
        flaw = flaw or self._changed(prefix, manifest)
        if flaw is not None and not self._retire(prefix, data):
            return self.rehash(prefix)  # it was replaced or removed while we read
        return Inspection(prefix, len(files), sum(file["size"] for file in files), flaw)

    def withdraw(self, prefix: str, manifest: bytes) -> bool:
        """Take a manifest away for good if it is still this one, byte for byte; its files are the caller's to remove."""
        aside = f"{prefix}/quarantine/{uuid.uuid4().hex}.json"
        is_ours = self.backend.retire(f"{prefix}/{MANIFEST}", manifest, aside)
        if is_ours:
            self.backend.delete(aside)
        return is_ours

    def children(self, prefix: str) -> list[str]:
        """Sorted names directly below a prefix."""
        return self.backend.children(prefix)

    def remove(self, prefix: str) -> None:
        """Remove an artifact: the manifest first, so that it is never seen half gone."""
        self.backend.delete(f"{prefix}/{MANIFEST}")
        self.backend.delete(prefix)

    def read_json(self, name: str) -> Any | None:
        """A small JSON file, or None."""
        data = self.backend.read(name)
        return None if data is None else json.loads(data)

    def read_jsons(self, names: Sequence[str]) -> list[Any | None]:
        """Several small JSON files side by side: in a bucket each is a request that waits for its reply."""
        with ThreadPoolExecutor(_NUM_SMALL_READERS) as pool:
            return list(pool.map(self.read_json, names))

    def write_json(self, name: str, value: object) -> None:
        """Replace a small JSON file."""
        self.backend.write(name, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False).encode())

    def create_json(self, name: str, value: object) -> bool:
        """Write a small JSON file if there is none; False if there is."""
        return self.backend.create(name, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False).encode())

    def _inspected(self, prefix: str, data: bytes) -> tuple[dict[str, Any], str | None]:
        """A manifest, and what is wrong with it or with the files that it lists."""
        try:
            manifest = json.loads(data)
            return manifest, self._flaw(prefix, manifest)
        except (ValueError, KeyError, TypeError) as error:
            return {}, f"the manifest cannot be read: {error!r}"

    def _flaw(self, prefix: str, manifest: dict[str, Any]) -> str | None:
        # Whoever may write to the store writes manifests too, and what they name is fetched into a folder of this machine.
        if outside := [one for one in (manifest["attempt"], *_names_in(manifest)) if not _is_below(one)]:
            return f"{outside[0]} is no place below an artifact"
        base = f"{prefix}/attempts/{manifest['attempt']}"
        sizes = self.backend.sizes(base)
        for file in manifest["files"]:
            size = sizes.get(file["name"])
            if size != file["size"]:
                size = self.backend.size(f"{base}/{file['name']}")  # a listing may be behind; one file never is
            if size != file["size"]:
                return f"{file['name']} has {'no file' if size is None else f'{size} bytes'}, committed were {file['size']} bytes"
        return None

    def _changed(self, prefix: str, manifest: dict[str, Any]) -> str | None:
        if (digest := manifest.get("digest")) != _digest(manifest["files"]):
            return f"the manifest has the digest {digest}, which is not that of the files that it lists"
        base = f"{prefix}/attempts/{manifest['attempt']}"
        found = _side_by_side(lambda name: self._sha256_of(f"{base}/{name}"), _names_in(manifest))
        for file, sha256 in zip(manifest["files"], found, strict=True):
            if sha256 != file["sha256"]:
                return f"{file['name']} was committed with SHA-256 {file['sha256']} and now has {sha256}"
        return None

    def _sha256_of(self, name: str) -> str:
        sha256 = hashlib.sha256()
        try:
            for piece in self.backend.pieces(name):
                sha256.update(piece)
        except FileNotFoundError:
            return "nothing"
        return sha256.hexdigest()

    def _retire(self, prefix: str, data: bytes) -> bool:
        return self.backend.retire(f"{prefix}/{MANIFEST}", data, f"{prefix}/quarantine/{uuid.uuid4().hex}.json")

    def _give_way(self, draft: Draft, manifest: dict[str, Any], first: Artifact) -> None:
        if first.digest == manifest["digest"]:
            log.info("%s was committed by another attempt with the same bytes; theirs is used", first.uri)
        else:
            self.write_json(
                f"{draft.prefix}/failures/{draft.attempt}.json", {"kind": "non-determinism", "second": manifest}
            )
            log.warning(
                "%s is not deterministic: attempt %s made %s, attempt %s made %s; the first one stays",
                first.uri,
                first.manifest["attempt"],
                first.digest[:12],
                draft.attempt,
                manifest["digest"][:12],
            )
        self.abandon(draft)


def _names_in(manifest: dict[str, Any]) -> list[str]:
    return [file["name"] for file in manifest["files"]]


def _is_below(name: str) -> bool:
    """Whether a name stays in the folder that it is joined to."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _names_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _file_entries(folder: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    hashes = _side_by_side(lambda name: sha256_of_file(folder / name), names)
    return [
        {"name": name, "size": (folder / name).stat().st_size, "sha256": sha256}
        for name, sha256 in zip(names, hashes, strict=True)
    ]


def _side_by_side(action: Callable[[str], R], names: Sequence[str]) -> list[R]:
    """What an action returns for each file; hashlib and system calls let go of the interpreter lock."""
    # Many small files are handed over in batches: handing over takes as long as hashing one.
    batch = max(1, len(names) // _NUM_READERS**2)
    batches = [names[first : first + batch] for first in range(0, len(names), batch)]
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        return [one for some in pool.map(lambda some: [action(name) for name in some], batches) for one in some]


def _digest(files: Iterable[dict[str, Any]]) -> str:
    return hashlib.sha256(canonical_json(sorted([file["name"], file["sha256"]] for file in files))).hexdigest()
