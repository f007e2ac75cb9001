"""How long it takes to find that there is nothing to do: a hit of one task, and the plan of a whole day, on a store with many artifacts.

    python -m benchmarks.store_latency [--artifacts 20000] [--runs 1428] [--rounds 9]

There is no peer: nothing else is keyed by content. The store is filled with copies of one real day, under other names; requests are
those that boto3 sends.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlops_tasks import forecast, pipeline, planning, stage
from mlops_tasks.config.environment import Environment
from mlops_tasks.stage import Run
from mlops_tasks.store import Store
from mlops_tasks.store.s3 import S3Backend

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from s3_server import BUCKET, S3Server

RECIPE = {
    "name": "latency",
    "data": {"source": {"kind": "generated", "num_train": 40, "num_validation": 6, "num_test": 4}, "on_contamination": "drop"},
    "model": {"name": "latency", "source": {"kind": "random", "hidden_size": 32, "num_layers": 1}},
    "scoring": {"scorer": "uniform"},
    "train": {"num_heads": 1, "steps": 1, "batch_size": 4},
}  # fmt: skip
HITS = ("pull_data", "pull_model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifacts", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=1428, help="that were planned; `wmtp gc` keeps the last 20")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wmtp-bench-") as name:
        top = Path(name)
        recipe = top / "recipe.json"
        recipe.write_text(json.dumps(RECIPE))
        where = {"mlflow_uri": f"sqlite:///{top / 'mlflow.db'}"}
        tell("folder", Environment.model_validate({"store": str(top / "store"), **where}), recipe, options)
        (top / "server").mkdir()
        with S3Server.started(top / "server") as server:
            os.environ.update(server.variables)
            s3 = {"store": f"s3://{BUCKET}/latency", "s3": server.access(top / "cache"), **where}
            tell("S3", Environment.model_validate(s3), recipe, options)


def tell(kind: str, environment: Environment, recipe: Path, options: argparse.Namespace) -> None:
    run = planning.plan(environment, Run.prefix_of(environment, "wmtp_daily", "first"), recipe=recipe)
    for task in HITS:
        stage.execute(run, pipeline.TASKS[task], tasks=pipeline.TASKS)
    filled(run, options.artifacts, options.runs)
    one = measured(lambda: hit(run), options.rounds)
    whole = measured(lambda: preview(environment, recipe), options.rounds)
    print(
        f"{kind}, {options.artifacts} artifacts, {options.runs} runs: a hit {one}; the plan of a day {whole}",
        flush=True,
    )


def hit(run: Run) -> None:
    task = pipeline.TASKS["pull_data"]
    assert stage.decide(run, task, tasks=pipeline.TASKS).outcome == "hit"


def preview(environment: Environment, recipe: Path) -> None:
    list(forecast.preview(environment, planning.resolve(environment, recipe=recipe)))


def filled(run: Run, num_artifacts: int, num_runs: int) -> None:
    """Copy the run's artifacts and its own folder until there are as many as asked for."""
    store = run.store
    model = [one for task in HITS if (one := run.artifact(task)) is not None]
    files = {
        path: store.backend.read(path) or b""
        for path in (f"{run.prefix}/{name}" for name in store.children(run.prefix))
    }
    put = store.backend.write if isinstance(store.backend, S3Backend) else put_into(store)
    for number in range(num_artifacts):
        one = model[number % len(model)]
        prefix = f"{one.manifest['stage']}/{number:064x}"
        attempt = one.manifest["attempt"]
        put(f"{prefix}/manifest.json", json.dumps({**one.manifest, "key": f"{number:064x}"}).encode())
        put(f"{prefix}/attempts/{attempt}/copy", b"copy")
    for number in range(num_runs - 1):
        for path, data in files.items():
            put(path.replace("/first/", f"/copy-{number}/"), data)


def put_into(store: Store) -> Callable[[str, bytes], Any]:
    """Writing without making it durable, which would take minutes for what is thrown away."""

    def put(name: str, data: bytes) -> None:
        path = Path(store.uri) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    return put


def measured(action: Callable[[], None], rounds: int) -> str:
    """Median seconds of some rounds after the first, and requests of one."""
    action()
    requests = counted(action)
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return f"{1000 * statistics.median(seconds):.1f} ms" + (f" ({requests} requests)" if requests else "")


def counted(action: Callable[[], None]) -> int:
    from botocore.endpoint import Endpoint

    sent, real = [], Endpoint._send

    def send(self: Endpoint, request: Any) -> Any:
        sent.append(request.url)
        return real(self, request)

    Endpoint._send = send
    try:
        action()
    finally:
        Endpoint._send = real
    return len(sent)


if __name__ == "__main__":
    main()
