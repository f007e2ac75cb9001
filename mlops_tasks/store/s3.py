"""A bucket, or a part of one, as a backend.

Owns how S3's answers are read: a refused condition may be our own success whose reply was lost, a head or a body may break off, a
conflict is tried again. Requests are repeated by botocore (500, 503, slow-down, time-outs, with jitter); what it cannot repeat, a body
that breaks off while it is read, is repeated here. Credentials come by AWS's usual chain and from nowhere else.
"""

from __future__ import annotations

import base64
import hashlib
import os
import random
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar, cast

import boto3
from boto3.exceptions import Boto3Error, RetriesExceededError, S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.client import BaseClient
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConfigNotFound,
    ConfigParseError,
    IncompleteReadError,
    InvalidRegionError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    ResponseStreamingError,
    UnauthorizedSSOTokenError,
)

from mlops_tasks.config.environment import S3Access
from mlops_tasks.errors import Unavailable, UserError, WmtpError
from mlops_tasks.store.backend import is_disk_full

R = TypeVar("R")

NUM_ATTEMPTS = 8
_CONNECT_SECONDS, _READ_SECONDS = 5, 20
_MIB = 2**20
_TRANSFER = TransferConfig(multipart_threshold=16 * _MIB, multipart_chunksize=16 * _MIB, max_concurrency=8)
_PIECE_BYTES = 16 * _MIB
_NUM_STREAMS = 16  # small files are many requests, and each waits for a reply
_MAX_KEYS_A_DELETE = 1000
_WRITER = "wmtp-writer"
CHECKPOINT_TAG = "wmtp=checkpoint"
"""On every object of a checkpoint: a lifecycle rule goes by prefix or tag, and no prefix tells it from the model of its training."""
_CACHE_DAYS = 7

# What botocore cannot repeat, because it happens while a body is read.
_BROKEN_OFF = (IncompleteReadError, ResponseStreamingError, RetriesExceededError)

_ABSENT = frozenset({"404", "NoSuchKey", "NoSuchUpload", "NotFound"})
_CONFLICT = frozenset({"409", "ConditionalRequestConflict", "OperationAborted"})
_UNMET = frozenset({"412", "PreconditionFailed"})
_REFUSED = frozenset({
    "301", "400", "403", "501", "AccessDenied", "AllAccessDisabled", "AuthorizationHeaderMalformed", "ExpiredToken", "InvalidAccessKeyId",
    "InvalidBucketName", "InvalidToken", "MethodNotAllowed", "NoSuchBucket", "NotImplemented", "PermanentRedirect", "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
})  # fmt: skip
# What no repetition mends: our settings, not the server.
_MISCONFIGURED = (
    ConfigNotFound,
    ConfigParseError,
    InvalidRegionError,
    ParamValidationError,
    ProfileNotFound,
    UnauthorizedSSOTokenError,
)

# The end of a connection ends a reply's head too, for Python, so that a head that was cut off looks like one with fewer fields.
_FIELDS_OF_WHOLE_HEADS = {
    "GetObject": ("ETag", "Content-Length"),
    "HeadObject": ("ETag", "Content-Length"),
    "PutObject": ("ETag",),
    "UploadPart": ("ETag",),
}
_WITH_BODY = frozenset(
    {"CompleteMultipartUpload", "CreateMultipartUpload", "DeleteObjects", "ListMultipartUploads", "ListObjectsV2"}
)


@dataclass(frozen=True)
class Stamp:
    """What S3 says of an object without its bytes; other bytes have another one."""

    size: int
    etag: str
    version: str | None
    """None where the bucket keeps no versions."""


@dataclass(frozen=True)
class S3Backend:
    """Objects below `s3://<bucket>/<prefix>`."""

    bucket: str
    prefix: str
    access: S3Access = field(default_factory=S3Access)

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def read(self, name: str) -> bytes | None:
        found = self._get(name)
        return None if found is None else found[0]

    def write(self, name: str, data: bytes) -> None:
        self._ask(lambda: self.client.put_object(**self._put(name, data, uuid.uuid4().hex)))

    def create(self, name: str, data: bytes) -> bool:
        self._require_conditions()
        return self._put_if(name, data, {"IfNoneMatch": "*"})

    def swap(self, name: str, data: bytes, *, over: bytes) -> bool:
        self._require_conditions()
        found = self._get(name)
        if found is None or found[0] != over:
            return False
        return self._put_if(name, data, {"IfMatch": found[1]})

    def retire(self, name: str, data: bytes, to: str) -> bool:
        self._require_conditions()
        found = self._get(name)
        if found is None or found[0] != data:
            return False
        # Copy, then remove: after a kill in between both are there, and the next one to look retires it again.
        self.write(to, data)
        if self._delete_if(name, found[1]):
            return True
        self.delete(to)
        return False

    def size(self, name: str) -> int | None:
        found = self._head(name)
        return None if found is None else int(found["ContentLength"])

    def sizes(self, name: str) -> dict[str, int]:
        start = self._key(f"{name}/")
        return {entry["Key"].removeprefix(start): int(entry["Size"]) for entry in self._entries(start)}

    def children(self, name: str) -> list[str]:
        start = self._key(f"{name}/" if name else "")
        found: set[str] = set()
        for page in self._pages(start, Delimiter="/"):
            found |= {entry["Key"].removeprefix(start) for entry in page.get("Contents", [])}
            found |= {entry["Prefix"].removeprefix(start).rstrip("/") for entry in page.get("CommonPrefixes", [])}
        return sorted(found - {""})

    def delete(self, name: str) -> None:
        keys = [self._key(name), *(entry["Key"] for entry in self._entries(self._key(f"{name}/")))]
        for first in range(0, len(keys), _MAX_KEYS_A_DELETE):
            objects = [{"Key": key} for key in keys[first : first + _MAX_KEYS_A_DELETE]]
            request = {"Objects": objects, "Quiet": True}
            reply = self._ask(lambda request=request: self.client.delete_objects(Bucket=self.bucket, Delete=request))  # type: ignore[misc]
            if errors := [one for one in reply.get("Errors", []) if one.get("Code") not in _ABSENT]:
                raise Unavailable(
                    f"{self.uri}: {len(errors)} of {len(objects)} objects were not removed, the first is {errors[0]['Key']} "
                    f"({errors[0].get('Code')}: {errors[0].get('Message')}). Run this again, or grant s3:DeleteObject."
                )

    def scratch(self, name: str) -> Path:
        with self._room():
            folder = self._cache / name
            folder.mkdir(parents=True)
        return folder

    def publish(self, name: str, folder: Path, files: Iterable[str]) -> None:
        # The folder stays where `local` looks: what was just made is not fetched again.
        self._many(lambda file: self._upload(folder / file, f"{name}/{file}"), files)

    @contextmanager
    def sink(self, name: str) -> Iterator[BinaryIO]:
        reader, writer = os.pipe()
        pipe = _Pipe(os.fdopen(reader, "rb"))
        failed: list[BaseException] = []

        def send() -> None:
            with pipe.stream:
                try:
                    # What has gone through a pipe cannot be sent again; botocore repeats each part.
                    self._send(
                        lambda: self.client.upload_fileobj(
                            pipe, self.bucket, self._key(name), ExtraArgs=_tags(name), Config=_TRANSFER
                        ),
                        name,
                        num_attempts=1,
                        size=lambda: pipe.num_read,
                    )
                except BaseException as error:
                    failed.append(error)

        thread = threading.Thread(target=send, name="upload", daemon=True)
        thread.start()
        try:
            with suppress(BrokenPipeError), os.fdopen(writer, "wb") as stream:
                try:
                    yield stream
                except BaseException:
                    pipe.is_broken = True  # before the end of the stream is seen, or a part would be kept as the whole
                    raise
        finally:
            thread.join()
        if failed:
            raise failed[0]

    def local(self, name: str, *, anew: bool = False) -> Path:
        path = self._cache / name
        if anew:
            path.unlink(missing_ok=True)
        if path.exists():
            with suppress(FileNotFoundError):
                os.utime(path)
            return path
        with self._room():
            self._download(name, path)
        return path

    def _download(self, name: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Several processes may want it at once: each fetches, and the last rename wins.
        temporary = path.parent / f".tmp-{uuid.uuid4().hex}"
        try:
            self._ask(
                lambda: self.client.download_file(self.bucket, self._key(name), str(temporary), Config=_TRANSFER),
                if_absent=None,
            )
            if temporary.exists():
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not is_disk_full(error, self._cache):
                raise
            raise Unavailable(
                f"The disk of {self._cache}, where files of {self.uri} are kept while they are used, is full ({error}). Free some space, or "
                "set s3.cache in the environment file to a folder with more, and run this again."
            ) from error

    def pieces(self, name: str) -> Iterator[bytes]:
        found = self._head(name)
        # Each piece is a request of its own, so that one whose body breaks off can be repeated.
        for start in range(0, int(found["ContentLength"]) if found else 0, _PIECE_BYTES):
            piece: bytes | None = self._ask(lambda start=start: self._piece(name, start), if_absent=None)  # type: ignore[misc]
            if piece is None:
                found = None
                break
            yield piece
        if found is None:
            raise FileNotFoundError(f"{self.uri}/{name}")

    def modified(self, name: str) -> datetime | None:
        found = self._head(name)
        return None if found is None else cast("datetime", found["LastModified"])

    def newest(self, name: str) -> datetime | None:
        if (at := self.modified(name)) is not None:
            return at
        return max((entry["LastModified"] for entry in self._entries(self._key(f"{name}/"))), default=None)

    def abort_uploads(self, older_than: datetime, *, dry_run: bool = False) -> int:
        pages = self.client.get_paginator("list_multipart_uploads")
        found: list[dict[str, Any]] = self._ask(
            lambda: list(pages.paginate(Bucket=self.bucket, Prefix=self._key("")).search("Uploads[]"))
        )
        old = [upload for upload in found if upload and upload["Initiated"] < older_than]
        for upload in () if dry_run else old:
            which = {"Bucket": self.bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
            self._ask(
                lambda which=which: self.client.abort_multipart_upload(**which),  # type: ignore[misc]
                if_absent=None,
            )
        return len(old)

    def stamp(self, name: str) -> Stamp | None:
        """What tells the object there from others, or None where nothing is."""
        found = self._head(name)
        return None if found is None else Stamp(int(found["ContentLength"]), found["ETag"], found.get("VersionId"))

    def fetch(self, name: str, path: Path, stamp: Stamp) -> bool:
        """Write the object's bytes to a file; False if it does not bear this stamp any more."""
        with path.open("wb") as file, ThreadPoolExecutor(_TRANSFER.max_request_concurrency) as pool:
            firsts = range(0, stamp.size, _TRANSFER.multipart_chunksize)
            parts = pool.map(lambda first: self._fetch_part(name, file, first, stamp), firsts)
            return all(parts)

    def _fetch_part(self, name: str, file: BinaryIO, first: int, stamp: Stamp) -> bool:
        last = min(first + _TRANSFER.multipart_chunksize, stamp.size) - 1
        request = {"Bucket": self.bucket, "Key": self._key(name), "IfMatch": stamp.etag}

        def get() -> None:
            reply = self.client.get_object(**request, Range=f"bytes={first}-{last}")
            os.pwrite(file.fileno(), reply["Body"].read(), first)

        return self._refusal(get) is None

    def signed(self, name: str, operation: Literal["get_object", "put_object"], *, seconds: float) -> str:
        """An address by which whoever has it may read or write one object for a while, and no longer than our credentials live."""
        place = {"Bucket": self.bucket, "Key": self._key(name)}
        sign = self.client.generate_presigned_url
        return str(self._ask(lambda: sign(operation, Params=place, ExpiresIn=int(seconds))))

    @property
    def client(self) -> BaseClient:
        """One for all threads of a process; a forked one must not speak on its parent's connections."""
        place = (os.getpid(), self.access)
        if place not in _clients:
            _clients.setdefault(place, self._connected())
        return _clients[place]

    def _connected(self) -> BaseClient:
        settings = Config(
            # Signed addresses would be of the old version, which an encrypted bucket refuses.
            signature_version="s3v4",
            region_name=self.access.region,
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=_READ_SECONDS,
            retries={"mode": "standard", "total_max_attempts": NUM_ATTEMPTS},
            max_pool_connections=2 * _NUM_STREAMS,
            s3={"addressing_style": self.access.addressing_style},
            # Our own SHA-256 is checked on every read; other servers than Amazon's do not all know the newer checksums.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        try:
            client = boto3.session.Session().client("s3", endpoint_url=self.access.endpoint, config=settings)
        except ValueError as error:
            raise UserError(
                f"`s3` in the environment file does not fit: {error}. The endpoint is like http://host:8333, the region like eu-central-1."
            ) from error
        client.meta.events.register("before-parse.s3", _repeat_if_cut)
        for operation in ("PutObject", "UploadPart"):
            client.meta.events.register(f"before-call.s3.{operation}", _add_md5)
        return client

    @cached_property
    def _cache(self) -> Path:
        """Where files of this store lie on this machine; what was not used for some days is removed."""
        top = Path(self.access.cache or Path(tempfile.gettempdir()) / f"wmtp-{os.getuid()}").expanduser()
        server = hashlib.sha256(str(self.access.endpoint).encode()).hexdigest()[:8]
        folder = top / server / self.bucket / self.prefix
        folder.mkdir(parents=True, exist_ok=True)
        _forget_old(folder)
        return folder

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _many(self, action: Callable[[str], None], names: Iterable[str]) -> None:
        with ThreadPoolExecutor(_NUM_STREAMS) as pool:
            for _ in pool.map(action, names):
                pass

    def _put(self, name: str, data: bytes, writer: str) -> dict[str, Any]:
        where = {"Bucket": self.bucket, "Key": self._key(name)}
        return {**where, "Body": data, "Metadata": {_WRITER: writer}, **_tags(name)}

    def _upload(self, file: Path, name: str) -> None:
        self._send(
            lambda: self.client.upload_file(
                str(file), self.bucket, self._key(name), ExtraArgs=_tags(name), Config=_TRANSFER
            ),
            name,
            num_attempts=NUM_ATTEMPTS,
            size=lambda: file.stat().st_size,
        )

    def _send(self, upload: Callable[[], None], name: str, *, num_attempts: int, size: Callable[[], int]) -> None:
        try:
            self._ask(upload, num_attempts=num_attempts)
        except Unavailable as error:
            # The reply to the last request of a multipart upload was lost, and to its repetition the upload is unknown.
            is_unknown = isinstance(error.__cause__, ClientError) and _code(error.__cause__) == "NoSuchUpload"
            if not is_unknown or self.size(name) != size():
                raise

    def _get(self, name: str) -> tuple[bytes, str] | None:
        """Bytes and ETag of a small object."""

        def get() -> tuple[bytes, str]:
            reply = self.client.get_object(Bucket=self.bucket, Key=self._key(name))
            return reply["Body"].read(), reply["ETag"]

        found: tuple[bytes, str] | None = self._ask(get, if_absent=None)
        return found

    def _piece(self, name: str, start: int) -> bytes:
        span = f"bytes={start}-{start + _PIECE_BYTES - 1}"
        data: bytes = self.client.get_object(Bucket=self.bucket, Key=self._key(name), Range=span)["Body"].read()
        return data

    def _head(self, name: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self._ask(
            lambda: self.client.head_object(Bucket=self.bucket, Key=self._key(name)), if_absent=None
        )
        return found

    def _entries(self, start: str) -> list[dict[str, Any]]:
        return [entry for page in self._pages(start) for entry in page.get("Contents", [])]

    def _pages(self, start: str, **options: Any) -> list[dict[str, Any]]:
        def ask() -> list[dict[str, Any]]:
            pages = self.client.get_paginator("list_objects_v2")
            return list(pages.paginate(Bucket=self.bucket, Prefix=start, **options))

        found: list[dict[str, Any]] = self._ask(ask)
        return found

    def _put_if(self, name: str, data: bytes, condition: dict[str, str]) -> bool:
        """A conditional PUT. A condition that is not met may be our own success, whose reply was lost: who wrote it tells."""
        writer = uuid.uuid4().hex
        request = self._put(name, data, writer)
        for attempt in range(NUM_ATTEMPTS):
            refused = self._refusal(lambda: self.client.put_object(**request, **condition))
            if refused is None:
                return True
            if _code(refused) in _UNMET | _ABSENT:  # If-Match on nothing is 404
                return self._is_by(name, writer)
            _wait(attempt)
        raise self._always_busy(name)

    def _is_by(self, name: str, writer: str) -> bool:
        for _ in range(NUM_ATTEMPTS):
            found = self._head(name)
            if found is None:
                return False
            by = found["Metadata"].get(_WRITER, "")
            if len(by) == len(writer):  # else the head was cut off before or within it, or no one of us wrote it
                return bool(by == writer)
        return False

    def _delete_if(self, name: str, etag: str) -> bool:
        """Whether the object with this ETag is gone. By whom is not known if the first reply was lost."""
        for attempt in range(NUM_ATTEMPTS):
            refused = self._refusal(
                lambda: self.client.delete_object(Bucket=self.bucket, Key=self._key(name), IfMatch=etag)
            )
            if refused is None or _code(refused) in _ABSENT:
                return True
            if _code(refused) in _UNMET:
                return attempt > 0 or _was_repeated(refused) or self._head(name) is None
            _wait(attempt)
        raise self._always_busy(name)

    def _always_busy(self, name: str) -> Unavailable:
        return Unavailable(
            f"{self.uri}/{name}: another request on the same object was always under way. Run this again later."
        )

    def _refusal(self, request: Callable[[], object]) -> ClientError | None:
        """With what a condition was refused, or None if it was met."""
        try:
            self._ask(request, conditions=True)
        except ClientError as error:
            return error
        return None

    def _require_conditions(self) -> None:
        """Refuse a server that ignores conditions, once a process: two writers would both commit there.

        Raises:
            UserError: it ignores one of them.
        """
        place = (self.access.endpoint, self.bucket)
        if place in _honest:
            return
        name = f".probe/{uuid.uuid4().hex}"
        target = {"Bucket": self.bucket, "Key": self._key(name)}
        self.write(name, b"1")
        put, delete = self.client.put_object, self.client.delete_object
        wrong = '"00000000000000000000000000000000"'
        ignored = [
            header
            for header, request in (
                ("If-None-Match on PUT", lambda: put(**target, Body=b"2", IfNoneMatch="*")),
                ("If-Match on PUT", lambda: put(**target, Body=b"3", IfMatch=wrong)),
                ("If-Match on DELETE", lambda: delete(**target, IfMatch=wrong)),
            )
            if self._refusal(request) is None
        ]
        self.delete(name)
        if ignored:
            raise UserError(
                f"The server of {self.uri} ({self.access.endpoint or 'AWS'}) ignores {', '.join(ignored)}, and commits rest on it: two "
                "writers would overwrite one another. Use a store that honours conditional writes: Amazon S3, SeaweedFS 4, or a folder."
            )
        _honest.add(place)

    def _ask(
        self, request: Callable[[], R], *, conditions: bool = False, num_attempts: int = NUM_ATTEMPTS, **absent: Any
    ) -> Any:
        """Make a request; errors become ours.

        Args:
            request: made up to `num_attempts` times, where its body breaks off.
            conditions: leave a refused condition to the caller.
            absent: `if_absent`, what to return where nothing is.
        """
        for attempt in range(num_attempts):
            try:
                return request()
            except (ClientError, S3UploadFailedError) as error:
                refused = _refusal_in(error)
                code = _code(refused)
                if code in _ABSENT and absent:
                    return absent["if_absent"]
                if conditions and code in _ABSENT | _UNMET | _CONFLICT:
                    raise
                raise self._explained(refused, code) from refused
            except (BotoCoreError, Boto3Error) as error:
                if attempt + 1 == num_attempts or not isinstance(error, _BROKEN_OFF):
                    raise self._unanswered(error) from error
                _wait(attempt)
        raise AssertionError("unreachable")

    def _unanswered(self, error: Exception) -> WmtpError:
        if isinstance(error, NoCredentialsError | PartialCredentialsError):
            return UserError(
                f"There are no credentials for {self.uri} ({error}). Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or the "
                "pod's role; the environment file never holds them."
            )
        where = f"{self.uri} ({self.access.endpoint or 'AWS'})"
        if isinstance(error, _MISCONFIGURED):
            return UserError(
                f"{where} cannot be asked: {error}. Mend `store` and `s3` in the environment file, or AWS's own settings."
            )
        return Unavailable(
            f"{where} does not answer as it should ({error}). Run this again later, or mend `store` and `s3` in the environment file."
        )

    def _explained(self, error: ClientError, code: str) -> WmtpError:
        where = f"{self.uri} ({self.access.endpoint or 'AWS'})"
        if code in _REFUSED:
            return UserError(
                f"{where} refuses us: {error}. Check the bucket's name and region, and that these credentials may read and write below this "
                "prefix (docs/store.md has a policy)."
            )
        return Unavailable(f"{where} cannot now: {error}. Run this again later.")


_clients: dict[tuple[int, S3Access], BaseClient] = {}

_honest: set[tuple[str | None, str]] = set()
"""Servers and buckets that have shown in this process that they honour conditions."""


def parts_of(uri: str) -> tuple[str, str]:
    """Bucket and key of `s3://bucket/key`.

    Raises:
        UserError: no bucket is named.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise UserError(f"{uri!r} names no bucket. Write s3://bucket/prefix.")
    return bucket, key.strip("/")


def _code(error: ClientError) -> str:
    reply = error.response
    code = str(reply.get("Error", {}).get("Code", ""))
    status = str(reply.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    return status if code in ("", "Unknown") else code


def _refusal_in(error: ClientError | S3UploadFailedError) -> ClientError:
    # boto3 raises its own while it handles the client's.
    found = error if isinstance(error, ClientError) else error.__context__
    assert isinstance(found, ClientError), f"{error!r} stands for no answer of the server"
    return found


def _tags(name: str) -> dict[str, str]:
    """Of an object `<stage>/<key>/checkpoints/…`."""
    return {"Tagging": CHECKPOINT_TAG} if name.split("/")[2:3] == ["checkpoints"] else {}


def _was_repeated(error: ClientError) -> bool:
    return bool(error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0))


def _repeat_if_cut(operation_model: Any, response_dict: dict[str, Any], **_: Any) -> None:
    """Turn a reply whose head was cut off into one that botocore repeats."""
    if response_dict["status_code"] >= 300:
        return
    name, head = operation_model.name, response_dict["headers"]
    is_whole = all(head.get(field) for field in _FIELDS_OF_WHOLE_HEADS.get(name, ()))
    is_whole &= str(head.get("ETag", '"')).endswith('"') and str(head.get("Last-Modified", "GMT")).endswith("GMT")
    if not is_whole or (name in _WITH_BODY and not response_dict["body"]):
        response_dict.update(status_code=500, body=b"")


def _add_md5(params: dict[str, Any], **_: Any) -> None:
    """Let the server check the body: SeaweedFS 4.48 keeps one that broke off before its first byte as an empty object."""
    body, md5 = params["body"], hashlib.md5(usedforsecurity=False)
    if isinstance(body, bytes | bytearray):
        md5.update(body)
    else:
        start = body.tell()
        while piece := body.read(_MIB):
            md5.update(piece)
        body.seek(start)
    params["headers"]["Content-MD5"] = base64.b64encode(md5.digest()).decode()


class _Pipe:
    """The reading end of a pipe that does not end where its writer failed."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.num_read = 0
        self.is_broken = False

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(size)
        if self.is_broken:
            raise Boto3Error("the writer failed")
        self.num_read += len(data)
        return data


def _wait(attempt: int) -> None:
    time.sleep(random.uniform(0, min(5.0, 0.1 * 2**attempt)))


def _forget_old(folder: Path) -> None:
    oldest = time.time() - _CACHE_DAYS * 86400
    with suppress(FileNotFoundError):  # another process may clear up too
        for stage in folder.iterdir():
            for kept in stage.iterdir() if stage.is_dir() else ():
                if kept.is_dir() and _last_use(kept) < oldest:
                    shutil.rmtree(kept, ignore_errors=True)


def _last_use(folder: Path) -> float:
    """When a file below was written or read; a folder's own times change whenever somebody looks into it."""
    files = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return max((max(found.st_atime, found.st_mtime) for found in files), default=folder.stat().st_mtime)
