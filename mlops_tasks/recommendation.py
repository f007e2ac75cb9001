"""With which settings to begin: method, rank, learning rate, epochs, micro-batch, recomputation; each with its reason.

Owns the starting rules (by the size of the model and of the data, as people use them; a sweep finds better ones) and what a device's
memory allows, by the model of `memory`. Fills in what a recipe leaves `auto`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from transformers import CONFIG_NAME, AutoConfig, PretrainedConfig

from mlops_tasks.config.environment import S3Access
from mlops_tasks.config.learning import Train
from mlops_tasks.config.sources import DataSource, FolderModel, HubModel, ModelSource
from mlops_tasks.data import hub, remote
from mlops_tasks.data.pull import reading_of
from mlops_tasks.errors import UserError
from mlops_tasks.memory import Footprint, StepMemory, count

USABLE_SHARE = 0.9
"""Of a device's memory: the rest is for CUDA's own, and for gaps between tensors."""
_GB = 1e9


class Choice(NamedTuple):
    """A setting and why."""

    setting: str
    value: Any
    why: str


@dataclass(frozen=True)
class Fit:
    """What one way of training needs at its smallest, and the largest micro-batch that a device holds."""

    kind: str
    smallest: Footprint
    rows: int
    """0: not even one row."""
    recompute: bool
    footprint: Footprint | None


def by_size(num_parameters: int) -> Choice:
    """Method and rank by the parameters of the base."""
    told = f"{num_parameters / 1e9:.3g} billion parameters"
    if num_parameters < 1e9:
        return Choice(
            "train.method",
            {"kind": "lora", "rank": 32},
            f"{told}, fewer than 1: small models take a high rank, and need no 4 bits",
        )
    # "7B" models have up to 7.7 billion.
    rank = 16 if num_parameters < 8e9 else 8
    size = "1 to 7" if rank == 16 else "more than 7"
    return Choice(
        "train.method",
        {"kind": "qlora", "rank": rank},
        f"{told}, {size}: in 4 bits one device holds it, and rank {rank} is enough",
    )


def by_samples(num_samples: int) -> tuple[Choice, Choice]:
    """Learning rate and epochs by the number of training problems."""
    rate, epochs, size = 2e-5, 3, "more than 10,000"
    if num_samples < 1000:
        rate, epochs, size = 1e-4, 10, "fewer than 1,000"
    elif num_samples <= 10_000:
        rate, epochs, size = 5e-5, 5, "1,000 to 10,000"
    told = f"{num_samples:,} training problems, {size}"
    return (
        Choice("train.learning_rate", rate, f"{told}: the fewer there are, the larger a step may be"),
        Choice("train.epochs", epochs, f"{told}: the fewer there are, the more often each is seen"),
    )


@dataclass(frozen=True)
class Case:
    """What is to be trained, and on what."""

    config: PretrainedConfig
    """Of the base."""
    train: Train
    """Heads, batch and precision; its method, rate and duration are what is recommended."""
    memory: float
    """Bytes of one device."""
    length: int
    """Tokens in a row."""
    chunk_rows: int
    """Positions whose logits exist at one time."""

    @cached_property
    def method(self) -> Choice:
        """By the size of the base."""
        return by_size(count(self.config, Train(steps=1, num_heads=1)).total)

    @cached_property
    def ways(self) -> dict[str, Fit]:
        """What each method would need, by kind."""
        rank = self.method.value["rank"]
        methods: list[dict[str, Any]] = [
            {"kind": "full"},
            *({"kind": kind, "rank": rank} for kind in ("lora", "qlora")),
        ]
        return {one["kind"]: self._fit(one) for one in methods}

    def _fit(self, method: Mapping[str, Any]) -> Fit:
        """The largest micro-batch that fits; activations are recomputed only where not one row fits otherwise."""
        train = Train.model_validate(self.train.model_dump() | {"method": dict(method)})
        limit = USABLE_SHARE * self.memory
        for recompute in (False, True):
            held = StepMemory(self.config, train, length=self.length, recompute=recompute)
            sizes = [2**power for power in range(train.batch_size.bit_length())]
            by_rows = {rows: held.footprint(rows=rows, chunk_rows=self.chunk_rows) for rows in sizes}
            fitting = [rows for rows, one in by_rows.items() if one.total <= limit]
            if fitting:
                return Fit(train.method.kind, by_rows[1], fitting[-1], recompute, by_rows[fitting[-1]])
        return Fit(train.method.kind, by_rows[1], 0, True, None)


def recommend(case: Case, *, num_samples: int) -> Iterator[Choice]:
    """All settings to begin with.

    Args:
        case: model and device.
        num_samples: training problems.
    """
    method = case.method
    yield method
    yield from by_samples(num_samples)
    found = case.ways[method.value["kind"]]
    yield _micro_batch(found, case)
    if found.footprint is not None:
        size, why = case.train.batch_size, f"at most a row of {case.length} tokens each, {found.rows} at a time"
        steps = math.ceil(size / found.rows)
        yield Choice(
            "micro-batches a step", steps, f"{size} problems a step, {why}; fewer where several problems fit a row"
        )
        need = "not even one row fits otherwise" if found.recompute else "a row fits without"
        yield Choice("train.recompute_activations", found.recompute, need)


def fill_in(train: Mapping[str, Any], *, model: ModelSource, data: DataSource, access: S3Access) -> dict[str, Any]:
    """A recipe's part `train` with `auto` in method, learning_rate and epochs replaced by what is recommended.

    Raises:
        UserError: another setting is `auto`, or the size of the model cannot be had here.
        Unavailable: as `config_of`.
    """
    choices: dict[str, Any] = {}
    if "auto" in (train.get("learning_rate"), train.get("epochs")):
        problems = reading_of(data, access).problems
        choices |= {one.setting: one.value for one in by_samples(sum(one.split == "train" for one in problems))}
    if train.get("method") == "auto":
        choices["train.method"] = by_size(count(config_of(model, access), Train(steps=1, num_heads=1)).total).value
    unknown = [name for name, value in train.items() if value == "auto" and f"train.{name}" not in choices]
    if unknown:
        raise UserError(
            f"train.{unknown[0]} is auto, which only method, learning_rate and epochs may be. Give it a value."
        )
    return {name: choices[f"train.{name}"] if value == "auto" else value for name, value in train.items()}


def config_of(model: ModelSource, access: S3Access) -> PretrainedConfig:
    """The configuration of a model, without its weights.

    Raises:
        UserError: it has none that can be read here.
        Unavailable: the hub or the bucket does not answer.
    """
    if not isinstance(model, FolderModel | HubModel):
        raise UserError(
            f"train.method is auto, but a {model.kind} model is made up in the task `pull_model`. Give the method."
        )
    if isinstance(model, FolderModel) and not remote.is_remote(model.path):
        return _read(Path(model.path), model.path)
    with TemporaryDirectory(prefix="wmtp-config-") as folder:
        if isinstance(model, HubModel):
            hub.download(model, hub.commit_of(model), Path(folder), [CONFIG_NAME])
            return _read(Path(folder), model.repo)
        if found := remote.file_at(f"{model.path.rstrip('/')}/{CONFIG_NAME}", access):
            found.fetch(Path(folder, CONFIG_NAME))
        return _read(Path(folder), model.path)


def _read(folder: Path, name: str) -> PretrainedConfig:
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{name} has no configuration that transformers can read: {error}. Name a model with a {CONFIG_NAME}."
        ) from error
    return config


def _micro_batch(found: Fit, case: Case) -> Choice:
    room = f"{case.memory / _GB:g} GB, of which {USABLE_SHARE:.0%} are counted on"
    if found.footprint is None:
        need = found.smallest.total / _GB
        ways_out = (
            "take a larger device, a shorter text.max_length, or spread it (train.parallelism: fsdp; not with qlora)"
        )
        return Choice(
            "train.micro_batch_rows",
            None,
            f"{room}, and one row of {case.length} tokens takes {need:.1f} GB: {ways_out}",
        )
    return Choice("train.micro_batch_rows", found.rows, f"{room}: {in_words(found.footprint)}")


def in_words(held: Footprint) -> str:
    """A footprint, part by part."""
    of_peak = ("merging",) if held.merging > held.activations + held.loss else ("activations", "loss")
    parts = ("weights", "gradients", "moments", *of_peak)
    told = ", ".join(f"{name} {getattr(held, name) / _GB:.2f}" for name in parts)
    return f"{held.total / _GB:.2f} GB ({told})"
