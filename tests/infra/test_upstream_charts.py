"""Fetching charts by the lock, from a repository that helm itself made and a server on this machine."""

from __future__ import annotations

import hashlib
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mlops_tasks.errors import UserError
from scripts.infra_step import CHECKOUT, Fault
from scripts.upstream_charts import fetch, locked


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def repository(helm: str, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A tree whose lock names one chart of a repository, and the archive of that chart."""
    served = tmp_path / "served"
    served.mkdir()
    subprocess.run(
        [helm, "package", CHECKOUT / "charts" / "ray-cluster", "-d", served], check=True, capture_output=True
    )
    subprocess.run([helm, "repo", "index", served], check=True, capture_output=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(served)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        lock = tmp_path / "charts" / "upstream.lock.yaml"
        lock.parent.mkdir()
        place = f"http://127.0.0.1:{server.server_port}"
        lock.write_text(
            "# kept\ncharts:\n"
            f'  - {{name: ray-cluster, namespace: ray, repository: "{place}", version: 0.1.0, digest: ""}}\n'
        )
        yield tmp_path, served / "ray-cluster-0.1.0.tgz"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_fetching_fills_in_the_digest_of_the_archive_and_leaves_the_rest(repository: tuple[Path, Path]) -> None:
    root, archive = repository

    fetch(root / "archives", root)

    (entry,) = locked(root)
    assert entry.digest == f"sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}"
    assert (root / "charts" / "upstream.lock.yaml").read_text().startswith("# kept\n")
    fetch(root / "archives", root)
    assert locked(root) == [entry]


def test_an_archive_that_changed_is_refused(repository: tuple[Path, Path]) -> None:
    root, _ = repository
    fetch(root / "archives", root)
    lock = root / "charts" / "upstream.lock.yaml"
    lock.write_text(lock.read_text().replace(locked(root)[0].digest, f"sha256:{'0' * 64}"))

    with pytest.raises(UserError, match=r"ray-cluster 0\.1\.0 .* but the lock says sha256:000.*do not install"):
        fetch(root / "archives", root)
    assert not list((root / "archives").iterdir())


def test_a_version_that_is_not_there_is_told(repository: tuple[Path, Path]) -> None:
    root, _ = repository
    lock = root / "charts" / "upstream.lock.yaml"
    lock.write_text(lock.read_text().replace("0.1.0", "9.9.9"))

    with pytest.raises(Fault, match=r"9\.9\.9"):
        fetch(root / "archives", root)
