"""A training to measure: the stage's own steps, on problems as long as MBPP's and a small Llama with random weights.

Owns what is learnt and the sizes; `training_speed`, `rank_speed` and `large_step` measure.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlops_tasks.config.environment import Environment, TrainResources
from mlops_tasks.config.learning import Train
from mlops_tasks.config.sources import RandomModel, Text
from mlops_tasks.data.problems import Problem, write_problems
from mlops_tasks.data.random_model import build
from mlops_tasks.data.sources.mbpp import read_mbpp
from mlops_tasks.stage import Attempt
from mlops_tasks.store import Artifact, Store

MAX_LENGTH = 512


def sized(description: str | None, given: list[str] | None = None) -> argparse.Namespace:
    return sizes_of(description).parse_args(given)


def sizes_of(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mbpp", type=Path, help="mbpp.jsonl as published; without it, made-up problems as long")
    for name, default in (("width", 128), ("layers", 4), ("vocabulary", 3072), ("batch", 16), ("steps", 2), ("rounds", 3)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2])
    parser.add_argument("--precision", choices=("float32", "bfloat16", "float16"), default="float32")
    return parser


def problems(sizes: argparse.Namespace) -> list[Problem]:
    """Training problems: MBPP's own, or made-up ones whose prompts and solutions are spread as MBPP's are."""
    if sizes.mbpp is not None:
        return [problem for problem in read_mbpp(sizes.mbpp) if problem.split == "train"]
    rng = random.Random(0)
    words = [
        "write",
        "a",
        "function",
        "to",
        "find",
        "the",
        "list",
        "of",
        "numbers",
        "in",
        "given",
        "string",
        "tuple",
        "that",
        "sum",
        "max",
    ]
    return [
        Problem(
            id=str(number),
            prompt=" ".join(rng.choices(words, k=max(6, round(rng.lognormvariate(2.6, 0.35))))),
            solution="def f(x):\n" + "".join(f"    x{line} = x + {rng.randrange(100)}\n" for line in range(max(1, round(rng.lognormvariate(1.7, 0.7))))) + "    return x\n",
            tests=tuple(f"assert f({rng.randrange(100)}) == {rng.randrange(100)}" for _ in range(3)),
            entry_point="f", split="train", source="made up", licence="none",
        )
        for number in range(374)
    ]  # fmt: skip


def prepared(sizes: argparse.Namespace, folder: Path) -> float:
    """Make the inputs; in a process of its own, because a tokenizer that was trained leaves threads behind."""
    attempt(sizes, folder)
    return 0.0


def small_llama(sizes: argparse.Namespace, folder: Path) -> None:
    """Write the model."""
    build(
        RandomModel(kind="random", hidden_size=sizes.width, num_layers=sizes.layers, vocab_size=sizes.vocabulary),
        folder,
    )


def _data(sizes: argparse.Namespace, folder: Path) -> None:
    for split in ("train", "validation", "prompt"):
        write_problems(folder / f"{split}.parquet", problems(sizes) if split == "train" else [])


def _made(store: Store, prefix: str, write: Callable[[Path], None]) -> Artifact:
    if (there := store.find(prefix)) is not None:
        return there
    attempt = store.begin(prefix)
    write(attempt.folder)
    return store.commit(attempt, {})


def attempt(
    sizes: argparse.Namespace,
    folder: Path,
    *,
    train: dict[str, Any] | None = None,
    write_model: Callable[[argparse.Namespace, Path], None] = small_llama,
    **resources: Any,
) -> Attempt:
    """What the stage `train` is called with; inputs are made once in a folder."""
    store = Store.open(str(folder / "store"))
    made = {
        "data": _made(store, "pull/data", lambda place: _data(sizes, place)),
        "model": _made(store, "pull/model", lambda place: write_model(sizes, place / "model")),
    }
    learnt = Train(
        **{
            "num_heads": 1,
            "steps": sizes.steps + 1,
            "batch_size": sizes.batch,
            "learning_rate": 1e-3,
            "precision": sizes.precision,
            **(train or {}),
        }
    )
    lesson = {"train": learnt, "text": Text(max_length=MAX_LENGTH), "scoring": {"scorer": "uniform"}, "weighting": None, "seed": 0, "fold": None}  # fmt: skip
    environment = Environment(store=store.uri, mlflow_uri="http://127.0.0.1:9", train=TrainResources(**resources))
    result = folder / "result"
    result.mkdir(exist_ok=True)
    return Attempt(
        config=json.loads(json.dumps(lesson, default=lambda part: part.model_dump(mode="json"))),
        inputs=made,
        folder=result,
        environment=environment,
        store=store,
        key="k",
        prefix="train/k",
    )
