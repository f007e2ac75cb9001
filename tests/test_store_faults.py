"""What the S3 backend promises, on a network that breaks its promises; and what a folder says when its disk is full or not ours.

The waits between repetitions are cut to a twentieth: how long they are is tested once, by itself.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import fault_proxy
import pytest
from botocore.retries.standard import ExponentialBackoff
from fault_proxy import KINDS, FaultProxy
from s3_server import BUCKET, OldServer, S3Server

from mlops_tasks.config.environment import S3Access
from mlops_tasks.errors import Unavailable, UserError, WmtpError
from mlops_tasks.store import Store
from mlops_tasks.store import s3 as s3_module
from mlops_tasks.store.backend import FolderBackend
from mlops_tasks.store.s3 import S3Backend

R = TypeVar("R")

# A connection that was cut is closed when the client's pool is collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

_SEEDS = (1, 2, 3)
_TOLD: dict[str, dict[str, int]] = {}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ExponentialBackoff.delay_amount
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda self, context: whole(self, context) / 20)


@pytest.fixture(params=_SEEDS)
def proxy(request: pytest.FixtureRequest, s3: S3Server) -> Iterator[FaultProxy]:
    """Spoils no request until its rate is set."""
    with FaultProxy.before(s3.endpoint, rate=0, seed=request.param) as proxy:
        yield proxy
    _TOLD[request.node.name] = dict(sorted(proxy.done.items()))


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    """Says, with -s, what was done to how many requests."""
    yield
    for name, done in _TOLD.items():
        print(f"\n{name}: {done}", end="")


def backend_at(endpoint: str, tmp_path: Path, *, bucket: str = BUCKET, cache: str = "cache") -> S3Backend:
    access = S3Access(endpoint=endpoint, addressing_style="path", cache=str(tmp_path / cache))
    return S3Backend(bucket, f"faults/{tmp_path.name}", access)


@pytest.fixture
def through(proxy: FaultProxy, tmp_path: Path) -> S3Backend:
    """The store, seen through the proxy; one request in five goes wrong."""
    backend = backend_at(proxy.endpoint, tmp_path)
    proxy.rate = 0.2
    return backend


def replaced_cache(access: S3Access, name: str) -> S3Access:
    return access.model_copy(update={"cache": f"{access.cache}-{name}"})


@pytest.fixture
def direct(s3: S3Server, tmp_path: Path) -> S3Backend:
    """The same store without anything in between, and without the other's copies."""
    return backend_at(s3.endpoint, tmp_path, cache="other")


def together(count: int, action: Callable[[int], R]) -> list[R]:
    """What `count` threads that start at one time come to."""
    gate = threading.Barrier(count)

    def one(index: int) -> R:
        gate.wait()
        return action(index)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


@pytest.mark.parametrize("action", ["create", "swap"])
def test_of_racing_writers_exactly_one_is_told_that_it_won(through: S3Backend, direct: S3Backend, action: str) -> None:
    def write(number: int, index: int) -> bool:
        data = b"writer %d" % index
        if action == "create":
            return through.create(f"race/{number}", data)
        return through.swap(f"race/{number}", data, over=b"first")

    for number in range(4):
        if action == "swap":
            direct.write(f"race/{number}", b"first")
        told = together(5, lambda index, number=number: write(number, index))  # type: ignore[misc]
        assert told.count(True) == 1
        assert direct.read(f"race/{number}") == b"writer %d" % told.index(True)


@pytest.mark.parametrize("kind", ["lose_reply", "cut_reply"])
def test_a_winner_is_told_so_though_its_reply_was_lost(
    proxy: FaultProxy, through: S3Backend, direct: S3Backend, kind: str
) -> None:
    proxy.kinds, proxy.rate = (kind,), 0.3
    for number in range(10):
        assert through.create(f"lost/{number}", b"one")
        assert not through.create(f"lost/{number}", b"two")
        assert through.swap(f"lost/{number}", b"three", over=b"one")
        assert not through.swap(f"lost/{number}", b"four", over=b"one")
        assert direct.read(f"lost/{number}") == b"three"
    assert proxy.done[kind] > 10


def test_what_is_retired_is_kept_aside(through: S3Backend, direct: S3Backend) -> None:
    for number in range(10):
        through.write(f"m/{number}", b"old")
        assert through.retire(f"m/{number}", b"old", f"q/{number}")
        assert (direct.read(f"m/{number}"), direct.read(f"q/{number}")) == (None, b"old")
        direct.write(f"m/{number}", b"new")
        assert not through.retire(f"m/{number}", b"old", f"q/{number}-again")
        assert direct.read(f"m/{number}") == b"new"


def test_what_is_retired_is_kept_though_another_took_its_place_before_that_was_known(
    proxy: FaultProxy, through: S3Backend, direct: S3Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    through.write("m", b"old")
    faults, broken = iter(["lose_reply"]), proxy._break

    def break_(client: socket.socket) -> None:
        direct.write("m", b"new")
        broken(client)

    monkeypatch.setattr(
        proxy,
        "_draw",
        lambda request: next(faults, None) if request.method == "DELETE" and "probe" not in request.target else None,
    )
    monkeypatch.setattr(proxy, "_break", break_)
    assert through.retire("m", b"old", "q")
    assert (direct.read("m"), direct.read("q")) == (b"new", b"old")


def test_small_files_are_written_read_listed_and_deleted(through: S3Backend, direct: S3Backend) -> None:
    names = [f"{number:02}" for number in range(20)]
    for name in names:
        through.write(f"small/{name}/data", name.encode())
    assert [through.read(f"small/{name}/data") for name in names] == [name.encode() for name in names]
    assert through.read("small/none") is None
    assert {through.size(f"small/{name}/data") for name in names} == {2}
    assert through.children("small") == direct.children("small") == names
    assert through.sizes("small") == {f"{name}/data": 2 for name in names}
    through.delete("small")
    assert direct.sizes("small") == {}


def test_a_committed_artifact_is_whole_and_reads_back(through: S3Backend, direct: S3Backend) -> None:
    files = {f"deep/{number}.bin": os.urandom(number * 1000) for number in range(30)}
    store = Store(through)
    draft = store.begin("make/k")
    (draft.folder / "deep").mkdir()
    for name, data in files.items():
        (draft.folder / name).write_bytes(data)
    with draft.stream("streamed.bin") as stream:
        stream.write(files["deep/29.bin"])
    made = store.commit(draft, {"metrics": {}})
    for reader in (store, Store(direct), Store(replace(through, access=replaced_cache(through.access, "third")))):
        found = reader.find("make/k")
        assert found is not None and found.manifest == made.manifest
        assert {name: found.path(name).read_bytes() for name in files} == files
        assert found.path("streamed.bin").read_bytes() == files["deep/29.bin"]
    assert store.commit(store.begin("make/k"), {"metrics": {}}).digest == made.digest
    assert Store(direct).children("make/k/quarantine") == []


def test_forty_mebibytes_go_through_whole(through: S3Backend, direct: S3Backend) -> None:
    data = os.urandom(2**20) * 40 + b"end"
    digest = hashlib.sha256(data).hexdigest()
    folder = through.scratch("large/attempt")
    (folder / "weights.bin").write_bytes(data)
    through.publish("large/attempt", folder, ["weights.bin"])
    for index in range(3):
        with through.sink(f"large/streamed{index}") as stream:
            for start in range(0, len(data), 3 * 2**20 + 7):
                stream.write(data[start : start + 3 * 2**20 + 7])
    for name in ("attempt/weights.bin", *(f"streamed{index}" for index in range(3))):
        assert hashlib.sha256(direct.local(f"large/{name}").read_bytes()).hexdigest() == digest
    fresh = replace(through, access=replaced_cache(through.access, "fresh"))
    assert hashlib.sha256(fresh.local("large/attempt/weights.bin").read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("faults", [["lose_reply", "no_such_upload"], ["no_such_upload"]])
def test_an_upload_that_is_unknown_when_it_is_ended_again_is_there_or_not(
    proxy: FaultProxy, through: S3Backend, monkeypatch: pytest.MonkeyPatch, faults: list[str]
) -> None:
    left = list(faults)
    monkeypatch.setitem(fault_proxy._ANSWERS, "no_such_upload", ("404 Not Found", "NoSuchUpload"))
    monkeypatch.setattr(
        proxy,
        "_draw",
        lambda request: left.pop(0) if left and request.method == "POST" and "uploadId=" in request.target else None,
    )
    expected: AbstractContextManager[Any] = (
        nullcontext() if "lose_reply" in faults else pytest.raises(Unavailable, match="NoSuchUpload")
    )
    with expected, through.sink("ended") as stream:
        stream.write(bytes(20 * 2**20))
    assert left == []
    assert through.size("ended") == (20 * 2**20 if "lose_reply" in faults else None)


@pytest.mark.parametrize("kind", ["stale_list", "cut_reply", "lose_reply"])
def test_no_fault_makes_a_whole_artifact_look_broken(
    proxy: FaultProxy, through: S3Backend, direct: S3Backend, kind: str
) -> None:
    store = Store(through)
    proxy.kinds, proxy.rate = (kind,), 0.3
    for number in range(8):
        prefix = f"make/{number}"
        assert store.find(prefix) is None
        draft = store.begin(prefix)
        assert through.sizes(draft.place) == {}  # from here on the listing may be stale
        for name in ("a", "b"):
            (draft.folder / name).write_text(name)
        store.commit(draft, {"metrics": {}})
        for _ in range(5):
            assert store.find(prefix) is not None
        assert direct.children(f"{prefix}/quarantine") == []
    assert proxy.done[kind] >= 3


def test_a_stream_whose_writer_fails_leaves_nothing(direct: S3Backend) -> None:
    for size in (10, 20 * 2**20):
        with pytest.raises(ZeroDivisionError), direct.sink(f"half/{size}") as stream:  # noqa: PT012
            stream.write(bytes(size))
            raise ZeroDivisionError
    assert direct.sizes("half") == {}
    assert "Uploads" not in direct.client.list_multipart_uploads(Bucket=BUCKET, Prefix=f"{direct.prefix}/half")


def test_a_body_that_breaks_off_is_never_kept_as_a_whole(
    proxy: FaultProxy, through: S3Backend, direct: S3Backend
) -> None:
    proxy.kinds, proxy.rate = ("cut_request",), 0.3
    for number in range(40):  # SeaweedFS would keep some of them, empty, without a checksum in the request
        assert through.create(f"cut/{number}", b"data")
    assert direct.sizes("cut") == {f"{number}": 4 for number in range(40)}


def test_every_kind_of_fault_is_survived_by_itself(proxy: FaultProxy, through: S3Backend, direct: S3Backend) -> None:
    for kind in KINDS:
        proxy.kinds, proxy.rate = (kind,), 0.3
        before = proxy.done[kind]
        for number in range(60):
            name = f"each/{kind}/{number}"
            assert through.create(name, b"data")
            assert through.read(name) == b"data"
            assert through.size(name) == 4
            through.children("each")
            if proxy.done[kind] - before > 8:
                break
        assert proxy.done[kind] > before
    assert direct.children("each") == sorted(KINDS)


# Servers that do not do what they should.


def test_a_server_that_is_always_busy_is_unavailable_in_bounded_time(
    proxy: FaultProxy, through: S3Backend, tmp_path: Path
) -> None:
    folder = through.scratch("busy/attempt")
    for number in range(50):
        (folder / f"{number}").write_text("x")
    proxy.kinds, proxy.rate = ("503", "slow_down"), 1
    asks: tuple[Callable[[], Any], ...] = (
        lambda: through.read("a"),
        lambda: through.write("a", b""),
        lambda: through.create("a", b""),
        lambda: through.children("a"),
        lambda: through.delete("a"),
        lambda: through.local("a"),
        lambda: through.publish("busy/attempt", folder, [f"{number}" for number in range(50)]),
    )
    for ask in asks:
        started = time.monotonic()
        with pytest.raises(
            Unavailable, match=rf"s3://{BUCKET}/faults/.* cannot now: .*(503|SlowDown|ServiceUnavailable)"
        ) as caught:
            ask()
        assert caught.value.exit_code == 75
        assert time.monotonic() - started < 60


@pytest.mark.slow
def test_the_whole_waits_are_bounded(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for name, value in s3.variables.items():
        monkeypatch.setenv(name, value)
    with FaultProxy.before(s3.endpoint, rate=1, kinds=("503",)) as proxy:
        started = time.monotonic()
        with pytest.raises(Unavailable):
            backend_at(proxy.endpoint, tmp_path).read("a")
        assert proxy.done["503"] == s3_module.NUM_ATTEMPTS
        assert time.monotonic() - started < 30  # botocore's waits after 503: 6.4 s at most; 71 s after SlowDown


def test_nothing_that_listens_is_unavailable(s3: S3Server, tmp_path: Path) -> None:
    with pytest.raises(
        Unavailable, match=r"http://127\.0\.0\.1:9\) does not answer as it should .*Run this again later"
    ):
        backend_at("http://127.0.0.1:9", tmp_path).read("a")


@pytest.mark.parametrize("operation", ["read", "create", "children", "publish"])
def test_refused_credentials_are_the_users_mistake(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    backend = backend_at(s3.endpoint.replace("127.0.0.1", "localhost"), tmp_path)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_text("x")
    asks: dict[str, Callable[[], Any]] = {
        "read": lambda: backend.read("a"),
        "create": lambda: backend.create("a", b""),
        "children": lambda: backend.children("a"),
        "publish": lambda: backend.publish("a", folder, ["file"]),
    }
    s3_module._clients.clear()
    with pytest.raises(
        UserError, match=rf"s3://{BUCKET}/.* refuses us: .*SignatureDoesNotMatch.*credentials"
    ) as caught:
        asks[operation]()
    assert caught.value.exit_code == 64
    s3_module._clients.clear()


@pytest.mark.parametrize("operation", ["read", "children", "local"])
def test_a_missing_bucket_is_the_users_mistake(s3: S3Server, tmp_path: Path, operation: str) -> None:
    backend = backend_at(s3.endpoint, tmp_path, bucket="not-there")
    with pytest.raises(UserError, match=r"s3://not-there/.* refuses us: .*NoSuchBucket.*Check the bucket's name"):
        getattr(backend, operation)("a/b")


def test_no_credentials_at_all_are_named_as_such(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    s3_module._clients.clear()
    with pytest.raises(
        UserError, match=rf"There are no credentials for s3://{BUCKET}/.*AWS_ACCESS_KEY_ID.*never holds them"
    ):
        backend_at(s3.endpoint, tmp_path).read("a")
    s3_module._clients.clear()


def test_a_profile_or_endpoint_that_does_not_exist_is_the_users_mistake(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"`s3` in the environment file does not fit: .*nonsense"):
        backend_at("nonsense", tmp_path).read("a")
    s3_module._clients.clear()
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UserError, match=r"cannot be asked: .*\(nobody\) could not be found.*AWS's own settings"):
        backend_at(s3.endpoint, tmp_path).children("a")
    s3_module._clients.clear()


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (200, r"ignores If-None-Match on PUT, If-Match on PUT, If-Match on DELETE.*honours conditional writes"),
        (501, r"refuses us: .*501.*"),
    ],
)
def test_a_server_that_does_not_know_conditions_is_refused(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, message: str
) -> None:
    monkeypatch.setattr(OldServer, "status", status)
    with ThreadingHTTPServer(("127.0.0.1", 0), OldServer) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        backend = backend_at(f"http://127.0.0.1:{server.server_port}", tmp_path)
        for _ in range(2):  # asked again, refused again
            with pytest.raises(UserError, match=message):
                backend.create("make/k/manifest.json", b"{}")
        server.shutdown()
        thread.join()


# A folder whose disk is full, or that is not ours.


def _stream(backend: FolderBackend) -> None:
    with backend.sink("new/a") as stream:
        stream.write(b"data")


_OPERATIONS: dict[str, Callable[[FolderBackend], Any]] = {
    "write": lambda backend: backend.write("new/a", b"data"),
    "create": lambda backend: backend.create("new/a", b"data"),
    "swap": lambda backend: backend.swap("old/a", b"data", over=b"old"),
    "retire": lambda backend: backend.retire("old/a", b"old", "aside/a"),
    "sink": _stream,
    "publish": lambda backend: backend.publish("old", backend.root / "old", ["a"]),
    "scratch": lambda backend: backend.scratch("new/b/c"),
}
_WRITING = ("fsync", "link", "mkdir", "rename", "replace")


def _fail_at(monkeypatch: pytest.MonkeyPatch, point: int, code: int) -> Counter[str]:
    """Let the call number `point` of all that writes fail; counts the calls."""
    calls: Counter[str] = Counter()

    def failing(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            calls[name] += 1
            if calls.total() == point:
                raise OSError(code, os.strerror(code))
            return real(*args, **options)

        return call

    for name in _WRITING:
        monkeypatch.setattr(os, name, failing(name, getattr(os, name)))
    opens = failing("open", Path.open)
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode="r": (real if "r" in mode else opens)(self, mode))
    return calls


_REFUSALS: dict[int, tuple[type[WmtpError], str]] = {
    errno.ENOSPC: (Unavailable, r"The disk of .*/store is full \(.*No space left.*wmtp gc"),
    errno.EDQUOT: (Unavailable, r"The disk of .*/store is full \(.*quota"),
    errno.ESTALE: (Unavailable, r"The file system of .*/store does not answer"),
    errno.EROFS: (UserError, r"store.* cannot be read or written \(.*Read-only.*Set `store`"),
    errno.EACCES: (UserError, r"store.* cannot be read or written \(.*Permission denied.*Set `store`"),
}


@pytest.mark.parametrize("code", list(_REFUSALS))
@pytest.mark.parametrize("operation", list(_OPERATIONS))
def test_a_folder_that_cannot_be_written_is_told_and_nothing_is_left_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, code: int
) -> None:
    def run(point: int) -> tuple[FolderBackend, int]:
        """The operation on a fresh store, with the write of this number failing; how many writes there were."""
        backend = FolderBackend(tmp_path / f"{point}" / "store")
        backend.write("old/a", b"old")
        with monkeypatch.context() as patch:
            calls = _fail_at(patch, point, code)
            _OPERATIONS[operation](backend)
        return backend, calls.total()

    _, num_points = run(0)
    assert num_points >= (2 if operation == "publish" else 3)
    kind, message = _REFUSALS[code]
    for point in range(1, num_points + 1):
        with pytest.raises(kind, match=message):
            run(point)
        found = {path for path in (tmp_path / f"{point}").rglob("*") if path.is_file() and path.name != ".tmp-lock"}
        assert {path.name for path in found} == {"a"}  # nothing temporary
        assert {path.read_bytes() for path in found} <= {b"old", b"data"}  # and nothing in part


def test_a_full_disk_while_bytes_are_written_leaves_no_part(tmp_path: Path) -> None:
    program = """if True:
        import resource, signal, sys
        from pathlib import Path
        from mlops_tasks.errors import Unavailable
        from mlops_tasks.store.backend import FolderBackend
        backend = FolderBackend(Path(sys.argv[1]))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        def stream():
            with backend.sink("a/s") as sink:
                for _ in range(100):
                    sink.write(bytes(1000))
        for action in (lambda: backend.write("a/b", bytes(20_000)), lambda: backend.create("a/c", bytes(20_000)), stream):
            try:
                action()
            except Unavailable as error:
                print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "store")], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.count("is full") == 3
    assert list((tmp_path / "store" / "a").iterdir()) == []


def test_a_full_disk_under_the_cache_of_a_bucket_names_the_cache_and_keeps_no_part(
    direct: S3Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    direct.write("a", b"data")
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(Unavailable, match=r"is full .*or set s3\.cache"):
        direct.local("a")
    assert not [path for path in direct._cache.rglob("*") if path.is_file()]
    monkeypatch.undo()


def test_every_new_folder_is_durable_in_the_one_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd))[1])
    backend = FolderBackend(tmp_path / "store")
    backend.create("train/key/manifest.json", b"{}")
    folders = [tmp_path, tmp_path / "store", tmp_path / "store" / "train", tmp_path / "store" / "train" / "key"]
    assert [place for place in synced if Path(place).is_dir()] == [str(folder) for folder in folders]


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.EMLINK])
def test_only_what_means_so_is_called_a_file_system_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def link(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(UserError, match="cannot make hard links"):
        FolderBackend(tmp_path).create("a/manifest.json", b"{}")
    assert list((tmp_path / "a").iterdir()) == []
