"""Nights that have come to `promote`, as the store and a real registry look then; and a way to be killed there."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlops_tasks.config.environment import Environment
from mlops_tasks.config.recipe import Recipe
from mlops_tasks.evaluation.metrics import wilson_interval
from mlops_tasks.registry import champion
from mlops_tasks.stage import Champion, Pointer, Run, Spec
from mlops_tasks.store import Artifact, Store
from mlops_tasks.store.backend import FolderBackend
from mlops_tasks.tracking import connection

NAME = "coder"
RECIPE = Recipe.model_validate(
    {
        "name": "demo",
        "data": {"source": {"kind": "mbpp", "path": "x"}},
        "model": {"name": NAME, "source": {"kind": "folder", "path": "x"}},
        "scoring": {"scorer": "uniform"},
        "train": {"steps": 4},
        "gate": {"num_resamples": 2000},
    }
)
MEASURED = {
    "protocol": "docstring-0shot",
    "prompt_sha256": "p",
    "num_problems": 40,
    "num_samples": 1,
    "temperature": 0.0,
    "top_p": 1.0,
}
PINS = {"pull_data": "data-digest", "pull_model": "model-digest"}
PULLED = {
    "num_train": 64, "num_validation": 40, "num_test": 40, "num_prompt": 0, "num_dropped": 0, "num_unsupported": 0,
    "origins": [{"source": "mbpp", "licence": "CC-BY-4.0", "num_problems": 144}],
}  # fmt: skip
TRAINED = {
    "steps": 4, "stopped_early": False, "num_examples": 64, "num_too_long": 0, "train_tokens": 4096, "num_trainable": 640, "trainable_share": 1.0,
    "validation_nats_before": 2.0, "validation_nats_after": 1.5,
}  # fmt: skip
PROMPT = '"""\nWrite a function to add two numbers.\n"""\n'


def solved(*problems: int, of: int = 40) -> list[list[bool]]:
    """One program a problem; those at these places pass."""
    return [[place in problems] for place in range(of)]


WEAK, STRONG, STRONGER = solved(*range(10)), solved(*range(30)), solved(*range(38))


@dataclass(frozen=True)
class Night:
    """Makes the store look as it does when a night's DAG run has come to `promote`."""

    environment: Environment
    name: str = "monday"
    dag: str = "wmtp_daily"
    weights: str = "first"
    """Stands for the model; other weights, other bytes."""
    key: str = "abc"
    champion: Champion | None = None
    model: Path | None = None
    """What `MtpModel.save` wrote, where a real model is needed."""

    @property
    def store(self) -> Store:
        return Store.open(self.environment.store)

    def run(self, candidate: Sequence[Sequence[bool]], baseline: Sequence[Sequence[bool]], **measured: Any) -> Run:
        """The run, its candidate and its baseline judged with these outcomes (gate set and report set alike)."""
        spec = Spec(
            recipe=RECIPE, pins=PINS, champion=self.champion, fan_out={"generate": 4, "judge": 4}, created="2026-01-01"
        )
        prefix = Run.prefix_of(self.environment, self.dag, self.name)
        self.store.write_json(f"{prefix}/spec.json", spec.model_dump(mode="json"))
        run = Run.open(self.environment, prefix)
        data = self.commit(run, "pull_data", {"test.parquet": b"problems"}, PULLED)
        base = self.commit(run, "pull_model", {"model/weights": b"base"}, {"licence": "apache-2.0"})
        inputs = {
            name: {"artifact": one.prefix, "digest": one.digest, "files": ["*"]}
            for name, one in (("data", data), ("model", base))
        }
        trained = self.commit(run, "train", self.training_files(), TRAINED, key=self.key, inputs=inputs)
        champion = self.store.find(self.champion.prefix) if self.champion else base
        assert champion is not None
        for index, (model, outcomes) in enumerate([(trained, candidate)] * 2 + [(champion, baseline)] * 2):
            self.evaluate(run, index, model, outcomes, MEASURED | measured if index == 2 else MEASURED)
        return run

    def training_files(self) -> dict[str, bytes]:
        curves = b'{"step": 1, "loss": 2.0}\n'
        if self.model is None:
            return {"model/weights": self.weights.encode(), "curves.jsonl": curves}
        files = {file.relative_to(self.model).as_posix(): file for file in self.model.rglob("*") if file.is_file()}
        return {name: file.read_bytes() for name, file in files.items()} | {"curves.jsonl": curves}

    def evaluate(
        self, run: Run, index: int, model: Artifact, outcomes: Sequence[Sequence[bool]], measured: Mapping[str, Any]
    ) -> None:
        inputs = {"model": {"artifact": model.prefix, "digest": model.digest_of("model/*")}}
        completions = {"completions.parquet": parquet([{"prompt": PROMPT}]), "note": f"{model.digest}{index}".encode()}
        generated = self.commit(run, "generate", completions, {}, index=index, inputs=inputs)
        rows = [
            {"problem_id": f"p{problem:02}", "sample": sample, "passed": passed}
            for problem, samples in enumerate(outcomes)
            for sample, passed in reversed(list(enumerate(samples)))  # whatever order they are stored in
        ]
        share = sum(row["passed"] is True for row in rows) / len(rows)
        inputs = {"completions": {"artifact": generated.prefix, "digest": generated.digest}}
        interval = list(wilson_interval(share, len(outcomes)))
        metrics = {**measured, "pass_at_k": {"1": share}, "pass_at_k_interval": {"1": interval}}
        self.commit(run, "judge", {"outcomes.parquet": parquet(rows)}, metrics, index=index, inputs=inputs)

    def commit(
        self, run: Run, task: str, files: Mapping[str, bytes], metrics: Mapping[str, Any], *,
        index: int = 0, key: str | None = None, inputs: Mapping[str, Any] | None = None,
    ) -> Artifact:  # fmt: skip
        """An artifact of a task, and the pointer that says so."""
        key = key or f"{self.name}-{task}-{index}"
        draft = self.store.begin(f"{task}/{key}")
        for name, data in files.items():
            (draft.folder / name).parent.mkdir(exist_ok=True)
            (draft.folder / name).write_bytes(data)
        record = {
            "key": key, "metrics": metrics, "inputs": inputs or {}, "versions": {"mlops-tasks": "0.1.0"}, "run": run.name,
            "components": {"config": {"seed": 0, "text": RECIPE.text.model_dump(mode="json")}},
            "environment": self.environment.model_dump(mode="json"), "device_seconds": 3600.0,
            "cost": self.environment.cost(task, 3600.0),
        }  # fmt: skip
        artifact = self.store.commit(draft, record)
        made = {"digest": artifact.digest, "key": key}
        run.point(Pointer(task=task, index=index, stage=task, outcome="run", seconds=1.0, **made))
        return artifact


def parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink)
    return bytes(sink.getvalue().to_pybytes())


def tuesday(monday: Night) -> Night:
    """The next night, with other weights, whose plan has pinned the champion."""
    pinned = champion(monday.environment, NAME)
    return replace(monday, name="tuesday", weights="second", key="def", champion=pinned)


def registered(environment: Environment) -> tuple[int, dict[str, str]]:
    """Number of versions, and the aliases."""
    with connection(environment) as client:
        versions = client.search_model_versions(f"name = '{NAME}'")
        model = client.get_registered_model(NAME)
        return len(versions), {alias: str(version) for alias, version in model.aliases.items()}


def tags_of(environment: Environment, version: str) -> dict[str, str]:
    with connection(environment) as client:
        return dict(client.get_model_version(NAME, version).tags)


WRITES = (
    "create_experiment", "create_run", "log_batch", "create_logged_model", "log_model_artifacts", "finalize_logged_model",
    "log_outputs", "set_terminated", "create_registered_model", "create_model_version", "set_model_version_tag",
    "log_model_artifact", "update_model_version",
    "set_registered_model_alias", "delete_registered_model_alias",
)  # fmt: skip


class Killed(BaseException):
    """Stands for SIGKILL: nothing in between may catch it."""


def kill_after(monkeypatch: pytest.MonkeyPatch, num_writes: int) -> None:
    """Let that many writes reach MLflow, or the store's small files, and end there."""
    from mlflow.tracking import MlflowClient

    done = 0

    def counted(write: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal done
            result = write(*arguments, **named)
            done += 1
            if done == num_writes:
                raise Killed
            return result

        return call

    for kind, names in ((MlflowClient, WRITES), (FolderBackend, ("create", "swap"))):
        for name in names:
            monkeypatch.setattr(kind, name, counted(getattr(kind, name)))


def copy_database(source: Path, target: Path) -> None:
    """Through SQLite, since MLflow keeps the target open."""
    with closing(sqlite3.connect(source)) as given, closing(sqlite3.connect(target)) as taken:
        given.backup(taken)


def three_versions(environment: Environment) -> None:
    """Register three versions that are whole in the store; version 1 is the champion."""
    store = Store.of(environment)
    with connection(environment) as client:
        client.create_registered_model(NAME)
        for number in "123":
            draft = store.begin(f"train/k{number}")
            (draft.folder / "weights").write_text(number)
            made = store.commit(draft, {})
            client.create_model_version(
                NAME, source="s3://elsewhere/x", tags={"stage_key": f"k{number}", "digest": made.digest}
            )
        client.set_registered_model_alias(NAME, "champion", "1")
