"""Comparisons whose cells end as a test says: real files in a real store, without a training."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from mlops_tasks import algorithms
from mlops_tasks.algorithms import Cell, Cells
from mlops_tasks.algorithms.findings import Findings
from mlops_tasks.config.environment import Environment
from mlops_tasks.scoring.scorers import ScoreRow, write_scores
from mlops_tasks.stage import Pointer, Run
from mlops_tasks.store import Artifact

NUM_PROBLEMS = 60
ASKED = {
    "protocol": "docstring-0shot", "prompt_sha256": "p" * 64, "num_problems": NUM_PROBLEMS, "num_samples": 1, "temperature": 0.0,
    "top_p": 1.0,
}  # fmt: skip
CONFIGS = Path(__file__).parents[1] / "configs"


def table_of(**score_of: float) -> bytes:
    """Of problems of three and of four tokens, each of which has one score."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "scores.parquet")
        rows = {
            name: ScoreRow(np.zeros(length, np.int32), np.ones(length, bool), score=np.full(length, score, np.float32))
            for length, (name, score) in enumerate(score_of.items(), start=3)
        }
        write_scores(path, rows)
        return path.read_bytes()


SCORES = table_of(three=1, four=1)
Solved = Callable[[Cell, int], bool]


@dataclass(frozen=True)
class Stand:
    """A comparison in a store of its own, whose cells end as a test says."""

    cells: Cells
    critics: Sequence[bytes] = ()
    """By seed what a critic's table of scores is."""

    @classmethod
    def of(cls, folder: Path, *names: str, seeds: Sequence[int] = (0, 1, 2)) -> Stand:
        tree = {
            "name": "made-up", "recipe": str(CONFIGS / "recipes/demo.yaml"), "baseline": names[0], "seeds": list(seeds),
            "algorithms": {name: {} for name in names},
        }  # fmt: skip
        (folder / "comparison.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        environment = Environment(store=str(folder / "store"), mlflow_uri=f"sqlite:///{folder}/mlflow.db")
        return cls(algorithms.plan(environment, folder / "comparison.yaml"))

    def failed(self, prefix: str, *, device_seconds: float, lost: float) -> None:
        """Record an attempt that ended without its artifact."""
        record = {"run": "another", "device_seconds": device_seconds, "lost_device_seconds": lost}
        self.cells.store.write_json(f"{prefix}/failures/first.json", record)

    def ended(self, solved: Solved, nats: Callable[[Cell], float] = lambda cell: 1.0, **changed: Any) -> Findings:
        """What is found when all cells have ended."""
        for cell in self.cells.plan.cells:
            self.end(cell, solved, nats(cell), **(changed if cell.arm == self.cells.plan.arms[-1] else {}))
        return Findings.of(self.cells)

    def end(self, cell: Cell, solved: Solved, nats: float, **changed: Any) -> None:
        """Commit what a cell makes, in hours of one device: a reference that those of a seed share, a training, an evaluation."""
        run = self.cells.run(cell)
        data = self.made(run, "pull_data", "pull", "data", {})
        inputs = {"data": data, "model": self.made(run, "pull_model", "pull", "base", {})}
        if run.spec.recipe.reference:
            reference = self.made(run, "reference", "train", f"reference-{cell.seed}", {"train_tokens": 100}, inputs)
            inputs["scores"] = self.made(
                run, "score", "score", f"score-{cell.name}", {}, {"data": data, "r": reference}, {"scores.parquet": SCORES}
            )  # fmt: skip
        learnt = {"batches_sha256": f"{cell.seed}" * 64, "steps": 4, "train_tokens": 1000, "num_skipped": 0}
        if run.spec.recipe.scoring.scorer == "critic":
            files = {"scores.parquet": self.critics[cell.seed]}
            inputs["scores"] = self.made(run, "score", "score", f"score-{cell.name}", {}, dict(inputs), files)
        curve = [{"step": step, "validation_nats": nats + 4 - step} for step in range(5)]
        train = self.made(
            run, "train", "train", cell.name, {**learnt, "validation_nats_after": nats, **changed}, inputs,
            {"curves.jsonl": "".join(f"{json.dumps(line)}\n" for line in curve).encode()},
        )  # fmt: skip
        written = self.made(run, "generate", "generate", cell.name, {}, {"data": data, "model": train})
        rows = [
            {"problem_id": str(n), "sample": 0, "passed": solved(cell, n), "program": ""} for n in range(NUM_PROBLEMS)
        ]
        self.made(
            run, "judge", "judge", cell.name, {**ASKED, "pass_at_k": {"1": 0.5}}, {"data": data, "completions": written},
            {"outcomes.parquet": parquet(rows)},
        )  # fmt: skip

    def made(  # noqa: PLR0917  read as a row: where, what, from what
        self, run: Run, task: str, stage: str, key: str, metrics: Mapping[str, Any],
        inputs: Mapping[str, Artifact] | None = None, files: Mapping[str, bytes] | None = None,
    ) -> Artifact:  # fmt: skip
        artifact = self.cells.store.find(f"{stage}/{key}")
        if artifact is None:
            draft = self.cells.store.begin(f"{stage}/{key}")
            for name, content in (files or {"content": key.encode()}).items():
                (draft.folder / name).write_bytes(content)
            given = {
                name: {"artifact": one.prefix, "digest": one.digest, "files": ["*"]}
                for name, one in (inputs or {}).items()
            }
            scoring = {"scoring": run.spec.recipe.scoring.model_dump(mode="json")}
            record = {
                "stage": stage, "key": key, "metrics": metrics, "inputs": given, "device_seconds": 3600.0,
                "components": {"config": scoring},
            }  # fmt: skip
            artifact = self.cells.store.commit(draft, record)
        place = 1 if task in ("generate", "judge") else 0
        made = {"key": key, "digest": artifact.digest}
        run.point(Pointer(task=task, index=place, stage=stage, outcome="run", seconds=1.0, **made))
        return artifact


def parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink)
    return bytes(sink.getvalue().to_pybytes())


def half(cell: Cell, problem: int) -> bool:
    """Every second problem, whoever is asked."""
    return problem % 2 == 0


def better(arm: str, by: int) -> Solved:
    """One algorithm solves so many problems more, and with every second seed one more than that."""
    return lambda cell, n: half(cell, n) or (cell.arm == arm and n < 2 * (by + cell.seed % 2))
