"""Commit and read against plain copies: `cp` for a folder, boto3's own transfers for S3, in one run and in turns.

    python -m benchmarks.store_bandwidth [--rounds 3] [--large-mib 1024] [--num-small 2000]

A commit hashes every file, makes it durable and writes the manifest; a read finds the artifact and holds every file against its
SHA-256. The peers do neither, but for `cp` the files are synced too, or it would only have filled the page cache. SeaweedFS from PyPI
is the S3 server, on this machine, so its own work shares the cores with both.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
from botocore.config import Config

from mlops_tasks.config.environment import S3Access
from mlops_tasks.store import Artifact, Store

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from s3_server import BUCKET, S3Server

MIB = 2**20
SMALL_BYTES = 64 * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large-mib", type=int, default=1024)
    parser.add_argument("--num-small", type=int, default=2000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wmtp-bench-") as name:
        top = Path(name)
        sources = {
            f"one file of {options.large_mib} MiB": made(top / "large", 1, options.large_mib * MIB),
            f"{options.num_small} files of {SMALL_BYTES // 1024} KiB": made(
                top / "small", options.num_small, SMALL_BYTES
            ),
        }
        print(f"{'':<8}{'':<26}{'commit MB/s':>13}{'peer':>8}{'ratio':>7}{'read MB/s':>12}{'peer':>8}{'ratio':>7}")
        for what, source in sources.items():
            tell("folder", what, source, list(in_folder(top, source, options.rounds)))
        (top / "server").mkdir()
        with S3Server.started(top / "server") as server:
            os.environ.update(server.variables)
            for what, source in sources.items():
                tell("S3", what, source, list(on_s3(top, source, server, options.rounds)))


def made(folder: Path, count: int, size: int) -> Path:
    """Files of random bytes."""
    folder.mkdir()
    for number in range(count):
        with (folder / f"{number:05}.bin").open("wb") as stream:
            for _ in range(max(1, size // (8 * MIB))):
                stream.write(os.urandom(min(size, 8 * MIB)))
    return folder


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def copied(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-r", f"{source}/.", str(target)], check=True)


def committed(store: Store, prefix: str, source: Path) -> Callable[[], Artifact]:
    """The commit of a draft that is filled already, as a stage has done by then."""
    draft = store.begin(prefix)
    copied(source, draft.folder)
    os.sync()
    return lambda: store.commit(draft, {"metrics": {}})


def read_all(store: Store, prefix: str) -> None:
    artifact = store.find(prefix)
    assert artifact is not None
    artifact.paths(artifact.names)


def in_folder(top: Path, source: Path, rounds: int) -> Iterator[tuple[float, float, float, float]]:
    for number in range(rounds):
        place, peer = top / f"store{number}", top / f"peer{number}"
        store = Store.open(str(place))

        def whole_commit(store: Store = store) -> None:
            draft = store.begin("bench/k")
            copied(source, draft.folder)
            store.commit(draft, {"metrics": {}})

        def peer_copy(peer: Path = peer) -> None:
            peer.mkdir()
            copied(source, peer)
            for file in peer.iterdir():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())

        commit, peer_commit = seconds(whole_commit), seconds(peer_copy)
        read = seconds(lambda store=store: read_all(store, "bench/k"))  # type: ignore[misc]
        (top / "read").mkdir()
        peer_read = seconds(lambda peer=peer: copied(peer, top / "read"))  # type: ignore[misc]
        for folder in (place, peer, top / "read"):
            shutil.rmtree(folder)
        yield commit, peer_commit, read, peer_read


def on_s3(top: Path, source: Path, server: S3Server, rounds: int) -> Iterator[tuple[float, float, float, float]]:
    client = boto3.client(
        "s3", endpoint_url=server.endpoint, config=Config(max_pool_connections=32, s3={"addressing_style": "path"})
    )
    files = sorted(source.iterdir())

    def many(action: Callable[[Path], object]) -> None:
        with ThreadPoolExecutor(10) as pool:  # as many as boto3's own default
            list(pool.map(action, files))

    cache, back = top / "cache", top / "back"
    for number in range(rounds):
        uri = f"s3://{BUCKET}/bench{number}"
        store = Store.open(uri, S3Access.model_validate(server.access(cache)))
        commit = seconds(committed(store, "bench/k", source))
        peer_commit = seconds(
            lambda number=number: many(lambda file: client.upload_file(str(file), BUCKET, f"peer{number}/{file.name}"))  # type: ignore[misc]
        )
        shutil.rmtree(cache)
        fresh = Store.open(uri, S3Access.model_validate(server.access(cache)))
        read = seconds(lambda fresh=fresh: read_all(fresh, "bench/k"))  # type: ignore[misc]
        back.mkdir()
        peer_read = seconds(
            lambda number=number: many(  # type: ignore[misc]
                lambda file: client.download_file(BUCKET, f"peer{number}/{file.name}", str(back / file.name))
            )
        )
        for folder in (cache, back):
            shutil.rmtree(folder)
        store.backend.delete("bench")
        yield commit, peer_commit, read, peer_read


def tell(kind: str, what: str, source: Path, rounds: list[tuple[float, float, float, float]]) -> None:
    megabytes = sum(file.stat().st_size for file in source.iterdir()) / 1e6
    commit, peer_commit, read, peer_read = (statistics.median(column) for column in zip(*rounds, strict=True))
    commit_ratio = statistics.median(one[1] / one[0] for one in rounds)
    read_ratio = statistics.median(one[3] / one[2] for one in rounds)
    print(
        f"{kind:<8}{what:<26}{megabytes / commit:>13.0f}{megabytes / peer_commit:>8.0f}{commit_ratio:>7.2f}"
        f"{megabytes / read:>12.0f}{megabytes / peer_read:>8.0f}{read_ratio:>7.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
