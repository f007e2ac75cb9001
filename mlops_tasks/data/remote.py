"""Files of sources that lie on `s3://`: what they are now, and their bytes exactly as they were pinned.

Owns what pins an object: size, ETag, and version where the bucket keeps them, all of which S3 tells without the bytes. Which objects
make a source is `pins`', how a bucket is asked is `store.s3`'s; its client is imported only when it is used, since the scheduler pins
sources too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlops_tasks.config.environment import S3Access
from mlops_tasks.errors import DataError, UserError
from mlops_tasks.store import canonical_json

if TYPE_CHECKING:
    from mlops_tasks.store.s3 import S3Backend, Stamp

_NUM_ASKED_AT_ONE_TIME = 8


@dataclass(frozen=True)
class RemoteFile:
    """An object as it was found."""

    bucket: S3Backend
    key: str
    stamp: Stamp

    @property
    def name(self) -> str:
        """The last part of its key."""
        return self.key.rpartition("/")[2]

    def fetch(self, path: Path) -> None:
        """Write its bytes to a local file.

        Raises:
            DataError: it is another object by now.
        """
        if not self.bucket.fetch(self.key, path, self.stamp):
            raise DataError(
                f"{self.bucket.uri}/{self.key} changed while it was fetched: it had the ETag {self.stamp.etag} and has another one now. "
                "Start a new run; and put new data beside the old, under a name of its own."
            )


def is_remote(path: str) -> bool:
    """Whether a source's path is a URI on S3 rather than a path on this machine.

    Raises:
        UserError: a URI of another kind.
    """
    scheme, separator, _ = path.partition("://")
    if separator and scheme != "s3":
        raise UserError(
            f"The source's path {path} has the scheme {scheme}; known are s3://bucket/key and plain paths. Change it in the recipe."
        )
    return bool(separator)


def file_at(uri: str, access: S3Access | None) -> RemoteFile | None:
    """The object at a URI, or None."""
    bucket, key = _opened(uri, access)
    return _found(bucket, key) if key else None


def files_in(uri: str, access: S3Access | None, is_wanted: Callable[[str], bool]) -> list[RemoteFile]:
    """The objects directly below a prefix whose names are wanted, sorted by name."""
    bucket, prefix = _opened(uri, access)
    keys = [f"{prefix}/{name}".lstrip("/") for name in bucket.children(prefix) if is_wanted(name)]
    with ThreadPoolExecutor(_NUM_ASKED_AT_ONE_TIME) as pool:  # one by one, for a listing tells no versions
        found = list(pool.map(lambda key: _found(bucket, key), keys))
    return [file for file in found if file is not None]


def names_beside(uri: str, access: S3Access | None) -> list[str]:
    """What lies where an object was expected."""
    bucket, key = _opened(uri, access)
    return bucket.children(key.rpartition("/")[0])


def digest_of_objects(files: Iterable[RemoteFile], *, is_named: bool) -> str:
    """SHA-256 over what pins each object, and over its name where that counts."""
    stamps = [
        [*([file.name] if is_named else []), file.stamp.etag, file.stamp.size, file.stamp.version] for file in files
    ]
    return hashlib.sha256(canonical_json(stamps)).hexdigest()


def _found(bucket: S3Backend, key: str) -> RemoteFile | None:
    stamp = bucket.stamp(key)
    return None if stamp is None else RemoteFile(bucket, key, stamp)


def _opened(uri: str, access: S3Access | None) -> tuple[S3Backend, str]:
    from mlops_tasks.store.s3 import S3Backend, parts_of

    bucket, key = parts_of(uri)
    return S3Backend(bucket, "", access or S3Access()), key
