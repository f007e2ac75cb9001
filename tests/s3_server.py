"""SeaweedFS from PyPI as the S3 server of tests: one process on this machine, its data in a temporary folder."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import boto3

BUCKET = "wmtp"
_KEY, _SECRET = "tester", "no-secret-of-anyone"
_IDENTITIES = {
    "identities": [
        {
            "name": _KEY,
            "credentials": [{"accessKey": _KEY, "secretKey": _SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
    ]
}


@dataclass(frozen=True)
class S3Server:
    """Where it is, and who may use it."""

    endpoint: str
    folder: Path

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables with which AWS's usual chain finds credentials, and nothing of this machine's user."""
        return {
            "AWS_ACCESS_KEY_ID": _KEY,
            "AWS_SECRET_ACCESS_KEY": _SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": str(self.folder / "none"),
            "AWS_SHARED_CREDENTIALS_FILE": str(self.folder / "none"),
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def access(self, cache: Path, endpoint: str | None = None) -> dict[str, str]:
        """The part `s3` of an environment file."""
        return {"endpoint": endpoint or self.endpoint, "addressing_style": "path", "cache": str(cache)}

    @classmethod
    @contextmanager
    def started(cls, folder: Path) -> Iterator[S3Server]:
        """Start the server, make the bucket, and end it with the context."""
        (folder / "data").mkdir()
        (folder / "identities.json").write_text(json.dumps(_IDENTITIES))
        s3, master, volume, filer = free_ports(4)
        options = [
            "-dir=data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-s3.port={s3}", "-s3.config=identities.json",
            f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", "-volume.max=0", "-s3.port.iceberg=0", "-s3.allowEmptyFolder=false",
            "-s3.port.lance=0", "-master.telemetry=false", "-master.volumeSizeLimitMB=1024",
        ]  # fmt: skip
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                [Path(sys.executable).with_name("weed"), "server", *options], cwd=folder, stdout=log, stderr=log
            )
        try:
            server = cls(f"http://127.0.0.1:{s3}", folder)
            server._make_bucket(process)
            yield server
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(2)
            process.kill()
            process.wait()

    def _make_bucket(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 300
        while True:
            assert process.poll() is None, (self.folder / "log").read_text()[-3000:]
            try:
                with suppress(urllib.error.HTTPError):
                    urllib.request.urlopen(self.endpoint, timeout=2).close()
                client = boto3.client(
                    "s3",
                    endpoint_url=self.endpoint,
                    aws_access_key_id=_KEY,
                    aws_secret_access_key=_SECRET,
                    region_name="us-east-1",
                )
                client.create_bucket(Bucket=BUCKET)
                client.put_object(Bucket=BUCKET, Key="ready", Body=b"")
                return
            except Exception:
                assert time.monotonic() < deadline, (self.folder / "log").read_text()[-3000:]
                time.sleep(0.3)


class OldServer(BaseHTTPRequestHandler):
    """As much of S3 as a probe asks for, from before there were conditional writes."""

    protocol_version = "HTTP/1.1"
    status = 200

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(self.status if "If-None-Match" in self.headers or "If-Match" in self.headers else 200)

    def do_DELETE(self) -> None:
        self._answer(204)

    def do_GET(self) -> None:
        self._answer(200, b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200, b"<DeleteResult></DeleteResult>")

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("ETag", '"d41d8cd98f00b204e9800998ecf8427e"')
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


def free_ports(count: int) -> list[int]:
    """Ports that are free, and whose partner 10000 higher, which SeaweedFS takes for itself, is free too.

    They are below those that Linux gives to whoever asks for any, so that nobody is given one before the server has it.
    """
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(10_000, 20_000)
        with suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 10_000))
            found += [port] if port not in found else []
    return found
