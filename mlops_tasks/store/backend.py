"""Bytes by name, and the promises that commits rest on; here for a folder, in `s3` for a bucket.

Owns what is atomic and when a write is durable. What the names mean is left to whoever uses a backend.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Protocol

from mlops_tasks.errors import Unavailable, UserError

_TEMPORARY = ".tmp-"
_LOCK = f"{_TEMPORARY}lock"
_PIECE_BYTES = 2**20
_NUM_SYNCS = 8

_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_AWAY = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EREMOTEIO, errno.ENOTCONN})
_UNSUPPORTED = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.ENOLCK})
"""What a file system says to a hard link or a lock if it has none. EPERM is no matter of rights then: the file is our own."""


def is_disk_full(error: BaseException, place: Path) -> bool:
    """Whether something went wrong because nothing can be written at a place any more."""
    return (isinstance(error, OSError) and error.errno in _FULL) or shutil.disk_usage(place).free < _PIECE_BYTES


class Backend(Protocol):
    """Bytes by name; a name is relative and separated by `/`. Every write is durable when the call returns.

    All methods raise `UserError` where the store refuses us (no permission, no such bucket) and `Unavailable` where it cannot now
    (unreachable, overloaded, disk full).
    """

    @property
    def uri(self) -> str:
        """Where it is."""

    def read(self, name: str) -> bytes | None:
        """The bytes, or None where nothing is."""

    def write(self, name: str, data: bytes) -> None:
        """Replace atomically: a reader sees the old bytes or the new, never a part."""

    def create(self, name: str, data: bytes) -> bool:
        """Write only if nothing is there. Of many writers exactly one gets True."""

    def swap(self, name: str, data: bytes, *, over: bytes) -> bool:
        """Replace if `over` is still there, byte for byte. Of many writers over the same bytes exactly one gets True."""

    def retire(self, name: str, data: bytes, to: str) -> bool:
        """Move `name` to `to` if it still holds `data`; False if it is gone or another by now."""

    def size(self, name: str) -> int | None:
        """Bytes, or None where nothing is."""

    def sizes(self, name: str) -> dict[str, int]:
        """Bytes of every file below, by its name relative to this one."""

    def children(self, name: str) -> list[str]:
        """Sorted names directly below; empty where nothing is."""

    def delete(self, name: str) -> None:
        """Remove a file or all that is below; nothing there is fine."""

    def scratch(self, name: str) -> Path:
        """A new local folder to fill, whose files `publish` puts under `name`."""

    def publish(self, name: str, folder: Path, files: Iterable[str]) -> None:
        """Make files of `scratch(name)` durable under `name`; the folder is the backend's from then on."""

    def sink(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A stream whose bytes are durable under `name` when the context ends without an error; nothing may be there yet."""

    def local(self, name: str, *, anew: bool = False) -> Path:
        """A local path with the bytes of a write-once file, for reading only; the path of nothing where nothing is.

        Args:
            name: never one that is replaced.
            anew: do not trust a copy that is there already.
        """

    def pieces(self, name: str) -> Iterator[bytes]:
        """The bytes of a write-once file one after another, from the store itself and never from a copy.

        Raises:
            FileNotFoundError: nothing is there.
        """

    def modified(self, name: str) -> datetime | None:
        """When a file was last written; None where no file is."""

    def newest(self, name: str) -> datetime | None:
        """When a file, or the newest one below a folder, was last written; None where nothing is."""

    def abort_uploads(self, older_than: datetime, *, dry_run: bool = False) -> int:
        """Remove what writes that never ended left behind, where it was begun before a time; returns how many there were."""


@dataclass(frozen=True)
class FolderBackend:
    """A folder on a file system with hard links."""

    root: Path

    @property
    def uri(self) -> str:
        return str(self.root)

    def read(self, name: str) -> bytes | None:
        with self._explained(self.root / name):
            try:
                return (self.root / name).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def write(self, name: str, data: bytes) -> None:
        with self._temporary(name, data) as temporary:
            os.replace(temporary, self.root / name)
            _sync(temporary.parent)

    def create(self, name: str, data: bytes) -> bool:
        # A rename would overwrite what another process has just committed; a hard link fails instead.
        with self._temporary(name, data) as temporary:
            try:
                os.link(temporary, self.root / name)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                raise self._unsupported("make hard links", error) from error
            _sync(temporary.parent)
            return True

    def swap(self, name: str, data: bytes, *, over: bytes) -> bool:
        with self._locked(name):
            if self.read(name) != over:
                return False
            self.write(name, data)
            return True

    def retire(self, name: str, data: bytes, to: str) -> bool:
        aside = self.root / to
        # Nothing else takes a file away or replaces it without the lock, and `create` waits for nothing but its absence.
        with self._locked(name), self._explained(aside.parent):
            if self.read(name) != data:
                return False
            _make_folder(aside.parent)
            os.rename(self.root / name, aside)
            _sync(aside.parent)
            return True

    def size(self, name: str) -> int | None:
        with self._explained(self.root / name):
            try:
                return (self.root / name).stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

    def sizes(self, name: str) -> dict[str, int]:
        found: dict[str, int] = {}
        with self._explained(self.root / name):
            for folder, _, files in os.walk(self.root / name):
                for file in files:
                    if not file.startswith(_TEMPORARY):
                        path = Path(folder, file)
                        with suppress(FileNotFoundError):  # removed while we look
                            found[path.relative_to(self.root / name).as_posix()] = path.stat().st_size
        return found

    def children(self, name: str) -> list[str]:
        with self._explained(self.root / name):
            try:
                names = os.listdir(self.root / name)
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted(child for child in names if not child.startswith(_TEMPORARY))

    def delete(self, name: str) -> None:
        path = self.root / name
        with self._explained(path):
            while path.is_dir():
                try:
                    shutil.rmtree(path)
                except FileNotFoundError:
                    continue  # another process removes it too
                except OSError as error:
                    if error.errno != errno.ENOTEMPTY:  # somebody writes there again
                        raise
                return
            with suppress(NotADirectoryError):  # below a file is nothing
                path.unlink(missing_ok=True)

    def scratch(self, name: str) -> Path:
        folder = self.root / name
        with self._explained(folder):
            _make_folder(folder.parent)
            folder.mkdir()
        return folder

    def publish(self, name: str, folder: Path, files: Iterable[str]) -> None:
        assert folder == self.root / name, f"{folder} is not where {name} belongs"
        with self._explained(folder):
            # Side by side, so that the file system's journal makes many durable in one go.
            with ThreadPoolExecutor(_NUM_SYNCS) as pool:
                list(pool.map(lambda file: _sync(folder / file), files))
            for below in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
                _sync(below)
            _sync(folder.parent)

    @contextmanager
    def sink(self, name: str) -> Iterator[BinaryIO]:
        path = self.root / name
        with self._explained(path.parent):
            _make_folder(path.parent)
            with path.open("xb") as stream, _removed_unless_done(path):
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            _sync(path.parent)

    def local(self, name: str, *, anew: bool = False) -> Path:
        return self.root / name

    def pieces(self, name: str) -> Iterator[bytes]:
        with self._explained(self.root / name), (self.root / name).open("rb") as stream:
            while piece := stream.read(_PIECE_BYTES):
                yield piece

    def modified(self, name: str) -> datetime | None:
        path = self.root / name
        with self._explained(path):
            return _written(path) if path.is_file() else None

    def newest(self, name: str) -> datetime | None:
        path = self.root / name
        with self._explained(path):
            times = [one for file in (path, *path.rglob("*")) if (one := _written(file)) is not None]
        return max(times, default=None)

    def abort_uploads(self, older_than: datetime, *, dry_run: bool = False) -> int:
        """As promised; folders that have been empty for as long go too, which a bucket does not have."""
        count = 0
        for folder, below, files in os.walk(self.root, topdown=False):
            for name in files:
                # Whoever waits for a lock has its file open: another one in its place would be another lock.
                if name.startswith(_TEMPORARY) and name != _LOCK and _is_older(path := Path(folder, name), older_than):
                    count += 1
                    if not dry_run:
                        path.unlink(missing_ok=True)
            if (
                not dry_run
                and not files
                and not below
                and Path(folder) != self.root
                and _is_older(Path(folder), older_than)
            ):
                with suppress(OSError):  # somebody writes there again
                    os.rmdir(folder)
        return count

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """One process at a time; the lock is the kernel's, so that it ends with whoever holds it."""
        folder = (self.root / name).parent
        with self._explained(folder):
            _make_folder(folder)
            with (folder / _LOCK).open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                except OSError as error:
                    if error.errno not in _UNSUPPORTED:
                        raise
                    raise self._unsupported("lock files", error) from error
                yield

    @contextmanager
    def _temporary(self, name: str, data: bytes) -> Iterator[Path]:
        """A durable file with these bytes, in the folder where `name` belongs, that is gone in the end."""
        folder = (self.root / name).parent
        temporary = folder / f"{_TEMPORARY}{uuid.uuid4().hex}"
        with self._explained(folder):
            _make_folder(folder)
            try:
                with temporary.open("xb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)

    @contextmanager
    def _explained(self, place: Path) -> Iterator[None]:
        """What the system refuses, as an error that says what to do."""
        try:
            yield
        except OSError as error:
            if error.errno in _REFUSED:
                raise UserError(
                    f"{place} cannot be read or written ({error}). Set `store` in the environment file to a folder of yours."
                ) from error
            if error.errno in _FULL:
                raise Unavailable(
                    f"The disk of {self.root} is full ({error}). Free some space (`wmtp gc` says what is not needed any more) "
                    "and run this again."
                ) from error
            if error.errno in _AWAY:
                raise Unavailable(
                    f"The file system of {self.root} does not answer as it should ({error}). Run this again when it is back."
                ) from error
            raise

    def _unsupported(self, what: str, error: OSError) -> UserError:
        return UserError(
            f"The file system of {self.root} cannot {what} ({error}), and commits rest on that. "
            "Set `store` in the environment file to a folder on a local or NFS file system."
        )


@contextmanager
def _removed_unless_done(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, each durable: a file in a folder that is lost with the power is lost too."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir()
    _sync(folder.parent)


def _written(path: Path) -> datetime | None:
    with suppress(FileNotFoundError, NotADirectoryError):
        return datetime.fromtimestamp(path.lstat().st_mtime, UTC)
    return None


def _is_older(path: Path, than: datetime) -> bool:
    with suppress(FileNotFoundError):
        return path.stat().st_mtime < than.timestamp()
    return False


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
