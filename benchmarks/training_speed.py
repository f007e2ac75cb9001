"""Steps of the stage `train`: tokens a second beside transformers' Trainer, what more heads cost, and what a kill costs.

    python -m benchmarks.training_speed --mbpp mbpp.jsonl

The Trainer gets the same model, problems, batch and precision; its rows are padded to the longest of a batch, ours are packed.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from benchmarks.pairs import Result, in_turns, measured, paired, ready, seconds_so_far, write
from benchmarks.small_training import attempt, prepared, sized
from mlops_tasks.pretrained import load_model
from mlops_tasks.training import _Training

HEADS = (2, 4, 8)


def our_tokens_per_second(sizes: argparse.Namespace, folder: Path, **resources: Any) -> float:
    training = _Training(attempt(sizes, folder, **resources))
    started, tokens = warmed_up(training), training.progress.num_tokens
    for _ in range(sizes.steps):
        learn(training)
    return (training.progress.num_tokens - tokens) / (seconds_so_far() - started)


def warmed_up(training: _Training) -> float:
    """Make a step, which makes the optimiser's state, and say that the set-up is over; returns the seconds so far."""
    learn(training)
    training.optimizer.zero_grad()  # or gradients would be held before memory counts; the Trainer frees them too
    return ready()


def learn(training: _Training) -> None:
    training._learn(*training._next_batch())


class Padded(Dataset[dict[str, torch.Tensor]]):
    """The examples of our steps in their order, each alone."""

    def __init__(self, training: _Training) -> None:
        steps = range(training.corpus.num_steps)
        self.examples = [example for step in steps for example in training.corpus.of_step(step)]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        example = self.examples[index]
        ids, is_target = torch.from_numpy(example.token_ids), torch.from_numpy(example.is_target)
        return {"input_ids": ids, "labels": ids.where(is_target, -100)}


def collate(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    padded = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    lengths = torch.tensor([len(one["input_ids"]) for one in examples])
    return {
        "input_ids": padded([one["input_ids"] for one in examples], padding_value=0),
        "labels": padded([one["labels"] for one in examples], padding_value=-100),
        "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
    }


def peers_tokens_per_second(sizes: argparse.Namespace, folder: Path, peer: Peer) -> float:
    from transformers import TrainerCallback

    given = attempt(sizes, folder)
    data, ends = Padded(_Training(given)), list[float]()

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(seconds_so_far() if ends else ready())

    settings: dict[str, Any] = {
        "max_steps": sizes.steps + 1, "per_device_train_batch_size": sizes.batch, "learning_rate": 1e-3, "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused", "max_grad_norm": 1.0, "report_to": "none", "save_strategy": "no", "logging_strategy": "no",
        "disable_tqdm": True, "dataloader_pin_memory": False, "seed": 0, "output_dir": str(folder / "trainer"),
        "bf16": sizes.precision == "bfloat16", "fp16": sizes.precision == "float16",
    }  # fmt: skip
    trainer = peer(given.inputs["model"].folder("model"), settings, data)
    trainer.add_callback(Clock())
    trainer.train()
    # It shuffles, so a step has its share of all tokens.
    tokens = sum(map(len, data.examples)) * sizes.steps / (sizes.steps + 1)
    return float(tokens / (ends[-1] - ends[0]))


def transformers_trainer(model: Path, settings: dict[str, Any], data: Padded) -> Any:
    from transformers import Trainer, TrainingArguments

    return Trainer(
        model=load_model(model), args=TrainingArguments(**settings), train_dataset=data, data_collator=collate
    )


def seconds_a_step(sizes: argparse.Namespace, folder: Path, num_heads: int) -> float:
    training = _Training(attempt(sizes, folder, train={"num_heads": num_heads}))
    started = warmed_up(training)
    for _ in range(sizes.steps):
        learn(training)
    return float((seconds_so_far() - started) / sizes.steps)


Peer = Callable[[Path, dict[str, Any], Padded], Any]
"""Makes a trainer from a model's folder, settings and examples."""


class FirstStep(Exception):
    """The step that was waited for is done."""


def seconds_until(sizes: argparse.Namespace, folder: Path, *, step: int, keeps: bool) -> float:
    """From the start of a training until a step is done; with a checkpoint of the step before it, or without."""
    started = seconds_so_far()
    training = _Training(
        attempt(sizes, folder, train={"steps": 100}, checkpoint_every_steps=step - 1 if keeps else 1000)
    )
    plain = training._learn

    def one_more(*batch: Any) -> Any:
        line = plain(*batch)
        if training.progress.step == step:
            raise FirstStep
        return line

    training._learn = one_more  # type: ignore[method-assign,assignment]
    try:
        training.run()
    except FirstStep:
        return seconds_so_far() - started
    raise AssertionError("it ended before")


def stall(sizes: argparse.Namespace, folder: Path, *, waits: bool) -> float:
    """Wall seconds for which steps wait for a checkpoint: until it is copied, or until it is committed."""
    shutil.rmtree(folder / "store/train", ignore_errors=True)
    training = _Training(attempt(sizes, folder))
    stalled = []
    with training.saver:
        for _ in range(sizes.steps + 1):
            learn(training)
            started = time.perf_counter()
            training._save_checkpoint()
            if waits:
                training.saver.wait()
            stalled.append(time.perf_counter() - started)
            training.saver.wait()
    return statistics.median(stalled)


def results(sizes: argparse.Namespace) -> list[Result]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measured(partial(prepared, sizes, folder))
        return [*beside_trainer(sizes, folder), *with_heads(sizes, folder), *after_a_kill(sizes, folder)]


def beside_trainer(sizes: argparse.Namespace, folder: Path) -> list[Result]:
    """P3."""
    ways = {
        "ours": partial(our_tokens_per_second, sizes, folder),
        "trainer": partial(peers_tokens_per_second, sizes, folder, transformers_trainer),
    }
    found = in_turns(ways, rounds=sizes.rounds)
    peer = f"transformers Trainer, same model, problems, batch, {sizes.precision}; padded"
    return [paired("P3 training, one head", "tokens/s", found["ours"], found["trainer"], peer_is=peer, is_more_better=True, aim=1.2)]  # fmt: skip


def with_heads(sizes: argparse.Namespace, folder: Path) -> list[Result]:
    found = in_turns(
        {str(heads): partial(seconds_a_step, sizes, folder, heads) for heads in (1, *HEADS)}, rounds=sizes.rounds
    )
    return [
        paired(f"step with {heads} heads", "s", found[str(heads)], found["1"], peer_is="the same trunk with one head")
        for heads in HEADS
    ]


def after_a_kill(sizes: argparse.Namespace, folder: Path) -> list[Result]:
    step = 4 * sizes.steps
    measured(partial(seconds_until, sizes, folder, step=step, keeps=True))
    resumed, anew = [], []
    for _ in range(sizes.rounds):
        resumed.append(measured(partial(seconds_until, sizes, folder, step=step, keeps=False)))
        kept = folder / "store/train"
        kept.rename(folder / "kept")
        anew.append(measured(partial(seconds_until, sizes, folder, step=step, keeps=False)))
        shutil.rmtree(kept, ignore_errors=True)
        (folder / "kept").rename(kept)
    waits = in_turns({"ours": partial(stall, sizes, folder, waits=False), "waiting": partial(stall, sizes, folder, waits=True)}, rounds=sizes.rounds)  # fmt: skip
    return [
        paired(f"to step {step} after a kill", "s", resumed, anew, peer_is=f"from zero, {step} steps"),
        paired("steps wait for a checkpoint", "s", waits["ours"], waits["waiting"], peer_is="the same, waiting until it is committed"),
    ]  # fmt: skip


if __name__ == "__main__":
    write("training_speed", results(sized(__doc__)))
