"""A stage's attempt there and back in a file, for a process that never sees the store."""

from __future__ import annotations

import json
import os
import socketserver
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from s3_server import BUCKET, S3Server

from mlops_tasks import keys, parcel
from mlops_tasks.config.environment import Environment, S3Access
from mlops_tasks.errors import DataError, OutOfMemory, Unavailable, UserError
from mlops_tasks.evaluation.confinement import landlock_version
from mlops_tasks.stage import Attempt
from mlops_tasks.store import Artifact, Store
from mlops_tasks.store.s3 import S3Backend

READ = "words.txt"
BUILD = keys.key_components(
    stage="judge", generation=1, function="mlops_tasks.evaluation.outputs:x", config={}, inputs={}, packages=["numpy"]
)


def shouts(attempt: Attempt) -> dict[str, Any]:
    words = attempt.inputs["data"].path(READ).read_text()
    (attempt.folder / "deep").mkdir()
    (attempt.folder / "deep" / "loud.txt").write_text(words.upper() * attempt.config["times"])
    return {"workers": attempt.environment.judge.num_workers, "index": attempt.index}


def attempt_of(tmp_path: Path) -> Attempt:
    store = Store.open(str(tmp_path / "store"))
    draft = store.begin("pull/k")
    (draft.folder / READ).write_text("abc")
    (draft.folder / "unread.txt").write_text("secret answers")
    data: Artifact = store.commit(draft, {"stage": "pull"})
    environment = Environment.model_validate(
        {"store": str(tmp_path / "store"), "mlflow_uri": "m", "judge": {"num_workers": 3}}
    )
    (tmp_path / "out").mkdir()
    return Attempt(
        config={"times": 2}, inputs={"data": data}, folder=tmp_path / "out", environment=environment, store=store, key="k", prefix="judge/k", index=1
    )  # fmt: skip


def test_a_stage_does_the_same_at_the_other_end_with_only_the_files_that_it_reads(tmp_path: Path) -> None:
    attempt = attempt_of(tmp_path)
    parcel.pack(attempt, {"data": ["words*"]}, tmp_path / "there.tar", build=BUILD)
    with tarfile.open(tmp_path / "there.tar") as tar:
        assert not any("unread" in name for name in tar.getnames())

    parcel.carry_out(shouts, tmp_path / "there.tar", tmp_path / "back.tar")

    assert parcel.unpack_result(tmp_path / "back.tar", attempt.folder) == {"workers": 3, "index": 1}
    assert (attempt.folder / "deep" / "loud.txt").read_text() == "ABCABC"


@pytest.mark.parametrize(
    ("part", "name", "other"), [("code", "mlops_tasks.evaluation.outputs", "0" * 64), ("packages", "numpy", "0.1")]
)
def test_another_build_at_the_other_end_is_refused_and_the_difference_named(
    tmp_path: Path, part: str, name: str, other: str
) -> None:
    build = {**BUILD, part: {**BUILD[part], name: other}}
    parcel.pack(attempt_of(tmp_path), {"data": ["*"]}, tmp_path / "there.tar", build=build)

    with pytest.raises(Unavailable, match=rf"Another build .* begun: {part}\.{name}: "):
        parcel.carry_out(shouts, tmp_path / "there.tar", tmp_path / "back.tar")


def test_another_version_that_is_installed_at_the_other_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "locked_versions", lambda: {"numpy": "0.1"})
    build = {**BUILD, "packages": {"numpy": "0.1"}}
    parcel.pack(attempt_of(tmp_path), {"data": ["*"]}, tmp_path / "there.tar", build=build)

    with pytest.raises(UserError, match=r"numpy [\d.]+ runs here, but the lock that keys are made of says 0\.1"):
        parcel.carry_out(shouts, tmp_path / "there.tar", tmp_path / "back.tar")


def test_an_input_that_was_changed_on_the_way_is_refused(tmp_path: Path) -> None:
    attempt = attempt_of(tmp_path)
    parcel.pack(attempt, {"data": ["*"]}, tmp_path / "there.tar", build=BUILD)
    data = (tmp_path / "there.tar").read_bytes()
    (tmp_path / "there.tar").write_bytes(data.replace(b"abc\0", b"abd\0"))

    with pytest.raises(DataError, match=r"words.txt was committed with SHA-256"):
        parcel.carry_out(shouts, tmp_path / "there.tar", tmp_path / "back.tar")


def test_a_result_that_is_none_or_would_write_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.tar").write_bytes(b"nothing")
    with pytest.raises(DataError, match="What came back is no result"):
        parcel.unpack_result(tmp_path / "no.tar", tmp_path / "out")

    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        (tmp_path / "x").write_text(json.dumps({}))
        tar.add(tmp_path / "x", "../escaped")
    with pytest.raises(DataError, match="outside the destination"):
        parcel.unpack_result(tmp_path / "bad.tar", tmp_path / "out")


class Far:
    """The other end: a process without credentials, and the file with the addresses that it is given."""

    def __init__(self, folder: Path, bucket: S3Backend | None, function: str) -> None:
        self.addresses, self._bucket = folder / "addresses.json", bucket
        here = Path(__file__)
        self._variables = {
            parcel.ADDRESSES: str(self.addresses),
            parcel.FUNCTION: f"test_parcel:{function}",
            "PYTHONPATH": os.pathsep.join([str(here.parent), str(here.parents[1])]),
            "PATH": os.environ["PATH"],
            "PLACE": str(folder),
        }

    def write(self, *, seconds: float, target_seconds: float | None = None) -> None:
        """Sign both, and put them where the process reads them, as a kubelet does: at once."""
        assert self._bucket is not None
        target = self._bucket.signed("p/back.tar", "put_object", seconds=target_seconds or seconds)
        source = self._bucket.signed("p/there.tar", "get_object", seconds=seconds)
        (new := self.addresses.with_suffix(".new")).write_text(parcel.addresses(source=source, target=target))
        new.rename(self.addresses)

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "mlops_tasks.parcel"]
        out = subprocess.PIPE
        return subprocess.Popen(command, env=self._variables, stdout=out, stderr=subprocess.STDOUT, text=True)


@pytest.fixture
def bucket(tmp_path: Path, s3: S3Server) -> S3Backend:
    return S3Backend(BUCKET, tmp_path.name, S3Access.model_validate(s3.access(tmp_path / "cache")))


def test_a_process_with_two_signed_addresses_needs_no_credentials(tmp_path: Path, bucket: S3Backend) -> None:
    attempt = attempt_of(tmp_path)
    parcel.pack(attempt, {"data": ["words*"]}, tmp_path / "there.tar", build=BUILD)
    bucket.publish("p", tmp_path, ["there.tar"])
    far = Far(tmp_path, bucket, "shouts")
    far.write(seconds=60)

    said, _ = (done := far.start()).communicate()
    assert done.returncode == 0, said
    assert ("this kernel has no Landlock" in said) is (landlock_version() == 0)
    assert parcel.unpack_result(bucket.local("p/back.tar", anew=True), attempt.folder)["workers"] == 3

    far.addresses.write_text(far.addresses.read_text().replace("there.tar", "other.tar"))
    said, _ = (refused := far.start()).communicate()
    assert refused.returncode == 75
    assert "HTTP Error 403" in said and "Signature=" not in said


@pytest.mark.skipif(sys.platform != "linux", reason="pods are Linux")
@pytest.mark.parametrize("version", [0, 1])
def test_without_landlock_the_process_warns_of_what_programs_can_read(
    version: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(parcel, "landlock_version", lambda: version)
    parcel._warn_of_readers(Path("/etc/wmtp/addresses.json"))
    told = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert len(told) == (not version)
    assert all("can read /etc/wmtp/addresses.json" in one and "docs/sandbox.md" in one for one in told)


def outgrows(attempt: Attempt) -> dict[str, Any]:
    raise OutOfMemory("8 rows are too many")


def test_a_process_that_fails_by_its_settings_tells_how(tmp_path: Path, bucket: S3Backend) -> None:
    parcel.pack(attempt_of(tmp_path), {"data": ["words*"]}, tmp_path / "there.tar", build=BUILD)
    bucket.publish("p", tmp_path, ["there.tar"])
    far = Far(tmp_path, bucket, "outgrows")
    far.write(seconds=60)
    said, _ = (failed := far.start()).communicate()
    assert failed.returncode == 65 and "ERROR   __main__: 8 rows are too many" in said
    back = bucket.local("p/back.tar", anew=True)
    assert parcel.failure(back, 65) is OutOfMemory
    assert parcel.failure(back, 64) is UserError, "its word does not go with the exit code"
    with pytest.raises(DataError, match=r"tells of no error .* See the log of the process"):
        parcel.failure(tmp_path / "there.tar", 65)


@contextmanager
def answering(reply: bytes) -> Iterator[str]:
    """The address of a server that sends these bytes, whatever it is asked, and hangs up."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline() not in (b"\r\n", b""):
                pass
            self.wfile.write(reply)

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/there.tar?Signature=secret"
        finally:
            server.shutdown()
            thread.join()


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (OK + b"Content-Length: 1000\r\n\r\n" + bytes(100), "it ended after 100 of 1000 bytes"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n3e8\r\n" + bytes(100), "IncompleteRead"),
        (b"nonsense\r\n\r\n", "nonsense"),
    ],
)
def test_a_download_that_broke_off_can_be_tried_again(reply: bytes, told: str, tmp_path: Path) -> None:
    with answering(reply) as source:
        far = Far(tmp_path, None, "shouts")
        far.addresses.write_text(parcel.addresses(source=source, target=source))
        said, _ = (done := far.start()).communicate()
    assert done.returncode == 75, said
    assert f"GET {source.partition('?')[0]} failed: " in said and told in said
    assert "Signature=" not in said and "Traceback" not in said


def dawdles(attempt: Attempt) -> dict[str, Any]:
    place = Path(os.environ["PLACE"])
    (place / "begun").touch()
    while not (place / "go-on").exists():
        time.sleep(0.05)
    return shouts(attempt)


@pytest.mark.parametrize("is_renewed", [False, True])
def test_work_may_take_longer_than_an_address_lives_if_it_is_signed_anew(
    is_renewed: bool, tmp_path: Path, bucket: S3Backend
) -> None:
    parcel.pack(attempt_of(tmp_path), {"data": ["words*"]}, tmp_path / "there.tar", build=BUILD)
    bucket.publish("p", tmp_path, ["there.tar"])
    far = Far(tmp_path, bucket, "dawdles")
    far.write(seconds=60, target_seconds=1)
    process = far.start()
    while not (tmp_path / "begun").exists() and process.poll() is None:
        time.sleep(0.05)

    time.sleep(2)
    if is_renewed:
        far.write(seconds=60)
    (tmp_path / "go-on").touch()
    said, _ = process.communicate()

    assert process.returncode == (0 if is_renewed else 75), said
    assert ("HTTP Error 403" in said) is not is_renewed
    assert (bucket.size("p/back.tar") is not None) is is_renewed
