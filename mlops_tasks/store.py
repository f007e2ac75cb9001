"""Artifacts by URI: what is committed, whole and unchanged, and what is not there at all.

    <store>/<prefix>/manifest.json        the only commit point: lists every file with its size and SHA-256
    <store>/<prefix>/attempts/<attempt>/  write-once files
    <store>/<prefix>/quarantine/          manifests that stopped being true
    <store>/runs/…                        small files that people and tasks find by name

A `Backend` moves bytes and gives three promises (atomic replace, create-if-absent, remove-if-unchanged); a `Store` makes
artifacts of them. Which prefix means what, and who needs an artifact, is left to `stage`.
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
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from mlops_tasks.errors import DataError, UserError

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_TEMPORARY = ".tmp-"


def canonical_json(value: object) -> bytes:
    """The one byte form of a JSON value: sorted keys, no spaces, no NaN, UTF-8.

    Raises:
        ValueError: a float that is not finite.
        TypeError: something that JSON has no form for.
    """
    return json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Backend(Protocol):
    """Bytes by name; a name is relative and separated by `/`. Every write is durable when the call returns."""

    @property
    def uri(self) -> str:
        """Where it is."""

    def read(self, name: str) -> bytes | None:
        """The bytes, or None where nothing is."""

    def write(self, name: str, data: bytes) -> None:
        """Replace atomically: a reader sees the old bytes or the new, never a part."""

    def create(self, name: str, data: bytes) -> bool:
        """Write only if nothing is there. Of many writers exactly one gets True."""

    def retire(self, name: str, data: bytes, to: str) -> bool:
        """Move `name` to `to` if it still holds `data`; False if it is gone or another by now."""

    def size(self, name: str) -> int | None:
        """Bytes, or None where nothing is."""

    def children(self, name: str) -> list[str]:
        """Sorted names directly below; empty where nothing is."""

    def delete(self, name: str) -> None:
        """Remove a file or all that is below; nothing there is fine."""

    def scratch(self, name: str) -> Path:
        """A new local folder to fill, which `publish` then makes durable under `name`."""

    def publish(self, name: str, files: Iterable[str]) -> None:
        """Make the files of `scratch(name)` durable."""

    def local(self, name: str) -> Path:
        """A local path with the bytes of `name`, which must exist."""


@dataclass(frozen=True)
class FolderBackend:
    """A folder on a file system with hard links."""

    root: Path

    @property
    def uri(self) -> str:
        return str(self.root)

    def read(self, name: str) -> bytes | None:
        try:
            return (self.root / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, data: bytes) -> None:
        temporary = self._durable_temporary(name, data)
        os.replace(temporary, self.root / name)
        _sync_folder(temporary.parent)

    def create(self, name: str, data: bytes) -> bool:
        # A rename would overwrite what another process has just committed; a hard link fails instead.
        temporary = self._durable_temporary(name, data)
        try:
            os.link(temporary, self.root / name)
        except FileExistsError:
            return False
        except OSError as error:
            raise UserError(
                f"The file system of {self.root} cannot make hard links ({error}), and commits rest on them. "
                "Set `store` in the environment file to a folder on a local or NFS file system."
            ) from error
        finally:
            temporary.unlink()
        _sync_folder(temporary.parent)
        return True

    def retire(self, name: str, data: bytes, to: str) -> bool:
        aside = self.root / to
        aside.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(self.root / name, aside)
        except FileNotFoundError:
            return False
        if (moved := aside.read_bytes()) == data:
            _sync_folder(aside.parent)
            return True
        # Somebody committed anew between our read and the rename: put theirs back.
        self.create(name, moved)
        aside.unlink()
        return False

    def size(self, name: str) -> int | None:
        try:
            return (self.root / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def children(self, name: str) -> list[str]:
        try:
            names = os.listdir(self.root / name)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(child for child in names if not child.startswith(_TEMPORARY))

    def delete(self, name: str) -> None:
        path = self.root / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def scratch(self, name: str) -> Path:
        folder = self.root / name
        folder.mkdir(parents=True)
        return folder

    def publish(self, name: str, files: Iterable[str]) -> None:
        folder = self.root / name
        for file in files:
            with (folder / file).open("rb") as stream:
                os.fsync(stream.fileno())
        for below in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
            _sync_folder(below)
        _sync_folder(folder.parent)

    def local(self, name: str) -> Path:
        return self.root / name

    def _durable_temporary(self, name: str, data: bytes) -> Path:
        folder = (self.root / name).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            temporary = folder / f"{_TEMPORARY}{uuid.uuid4().hex}"
            with temporary.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        except PermissionError as error:
            raise UserError(
                f"{folder} cannot be written ({error}). Set `store` in the environment file to a folder of yours."
            ) from error
        return temporary


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Draft:
    """An attempt at an artifact: a local folder that nobody else sees until it is committed."""

    prefix: str
    attempt: str
    folder: Path


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
        return [file["name"] for file in self.manifest["files"]]

    def digest_of(self, *patterns: str) -> str:
        """SHA-256 over the names and contents of the files that match a glob (`*` crosses `/`); of none: of nothing."""
        return _digest(
            file for file in self.manifest["files"] if any(fnmatch.fnmatchcase(file["name"], one) for one in patterns)
        )

    def path(self, name: str) -> Path:
        """A local path to one file.

        Raises:
            DataError: no such file in the manifest, or its bytes are not those that were committed.
        """
        entry = next((file for file in self.manifest["files"] if file["name"] == name), None)
        if entry is None:
            raise DataError(f"{self.uri} holds no file {name}; it holds {', '.join(self.names)}.")
        local = self.store.backend.local(f"{self.prefix}/attempts/{self.manifest['attempt']}/{name}")
        if name not in self._verified:
            self._verify(local, entry)
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
        first = self.path(below[0])
        for file in below[1:]:
            self.path(file)
        return first.parents[below[0].removeprefix(f"{name}/").count("/")]

    def _verify(self, local: Path, entry: dict[str, Any]) -> None:
        found = sha256_of_file(local) if local.is_file() else "nothing"
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
class Store:
    """Artifacts on a backend."""

    backend: Backend

    @classmethod
    def open(cls, uri: str) -> Store:
        """The store at a URI.

        Raises:
            UserError: a scheme that no backend knows.
        """
        scheme, separator, rest = uri.partition("://")
        if separator and scheme != "file":
            raise UserError(
                f"The store {uri} has the scheme {scheme}; known is file (or a plain path). Change `store` in the environment file."
            )
        return cls(FolderBackend(Path(rest if separator else uri)))

    @property
    def uri(self) -> str:
        return self.backend.uri

    def begin(self, prefix: str) -> Draft:
        """Start an attempt with a folder of its own."""
        attempt = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{socket.gethostname()[:20]}-{uuid.uuid4().hex[:8]}"
        return Draft(prefix, attempt, self.backend.scratch(f"{prefix}/attempts/{attempt}"))

    def commit(self, draft: Draft, record: dict[str, Any]) -> Artifact:
        """Make the draft's files the artifact, unless another attempt was first: then theirs is returned.

        Args:
            draft: what `begin` gave, its folder filled.
            record: further fields of the manifest; JSON.

        Returns:
            The artifact that is committed now, ours or the first writer's.
        """
        files = _file_entries(draft.folder)
        self.backend.publish(f"{draft.prefix}/attempts/{draft.attempt}", [file["name"] for file in files])
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
        self.backend.delete(f"{draft.prefix}/attempts/{draft.attempt}")

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

    def version_at(self, prefix: str, digest: str) -> Artifact | None:
        """The artifact that had this digest, also where another one took its place since (see `force`), or None."""
        current = self.find(prefix)
        if current is not None and current.digest == digest:
            return current
        for name in self.children(f"{prefix}/quarantine"):
            data = self.backend.read(f"{prefix}/quarantine/{name}") or b""
            manifest, flaw = self._inspected(prefix, data)
            if flaw is None and manifest["digest"] == digest:
                return Artifact(self, prefix, manifest)
        return None

    def quarantine(self, prefix: str, reason: str) -> None:
        """Take the manifest away, so that the artifact is no hit any more; its files stay for a look."""
        data = self.backend.read(f"{prefix}/{MANIFEST}")
        if data is not None:
            log.warning("%s/%s quarantined: %s", self.uri, prefix, reason)
            self._retire(prefix, data)

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
        base = f"{prefix}/attempts/{manifest['attempt']}"
        for file in manifest["files"]:
            size = self.backend.size(f"{base}/{file['name']}")
            if size != file["size"]:
                return f"{file['name']} has {'no file' if size is None else f'{size} bytes'}, committed were {file['size']} bytes"
        return None

    def _retire(self, prefix: str, data: bytes) -> None:
        self.backend.retire(f"{prefix}/{MANIFEST}", data, f"{prefix}/quarantine/{uuid.uuid4().hex}.json")

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


def _file_entries(folder: Path) -> list[dict[str, Any]]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor() as pool:  # hashlib lets go of the interpreter lock
        hashes = list(pool.map(sha256_of_file, paths))
    return [
        {"name": path.relative_to(folder).as_posix(), "size": path.stat().st_size, "sha256": sha256}
        for path, sha256 in zip(paths, hashes, strict=True)
    ]


def _digest(files: Iterable[dict[str, Any]]) -> str:
    return hashlib.sha256(canonical_json(sorted([file["name"], file["sha256"]] for file in files))).hexdigest()
