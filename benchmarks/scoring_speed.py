"""Tokens a second that are scored, beside a bare forward of the same model on the same batches: the limit.

python -m benchmarks.scoring_speed
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.pairs import Result, in_turns, measured, paired, ready, seconds_so_far, write
from benchmarks.small_training import MAX_LENGTH, attempt, prepared, problems, sized
from mlops_tasks.config.sources import Text
from mlops_tasks.data.tokens import Example, Row, encode, to_batch
from mlops_tasks.machine import accelerator, keep_freed_memory
from mlops_tasks.model import MtpModel
from mlops_tasks.pretrained import load_tokenizer
from mlops_tasks.scoring.shards import BATCH_ROWS, BLOCK_PROBLEMS, example_losses


def tokens_per_second(sizes: argparse.Namespace, folder: Path, way: str) -> float:
    keep_freed_memory()  # as `wmtp` does; the limit has it too
    place = attempt(sizes, folder).inputs["model"].folder("model")
    model = MtpModel.load(place, num_heads=1, seed=0).to(accelerator())
    examples, _ = encode(problems(sizes), load_tokenizer(place), Text(max_length=MAX_LENGTH))
    blocks = [examples[at : at + BLOCK_PROBLEMS] for at in range(0, sizes.steps * BLOCK_PROBLEMS, BLOCK_PROBLEMS)]
    ways: dict[str, Callable[[list[Example]], object]] = {"scored": partial(example_losses, model, batch_rows=BATCH_ROWS), "logits": partial(bare, model, True), "trunk": partial(bare, model, False)}  # fmt: skip
    run = ways[way]
    run(blocks[0][:BATCH_ROWS])
    started = ready()
    for block in blocks:
        run(block)
    return sum(len(example) for block in blocks for example in block) / (seconds_so_far() - started)


@torch.no_grad()
def bare(model: MtpModel, has_logits: bool, examples: list[Example]) -> None:
    """A forward of rows as long as their neighbours, and nothing of it kept."""
    by_length = sorted(examples, key=len)
    for at in range(0, len(examples), BATCH_ROWS):
        batch = to_batch([Row((example,)) for example in by_length[at : at + BATCH_ROWS]], pad_id=0).to(
            model.base.device
        )
        if has_logits:
            model.base(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
        else:
            model.hidden(batch.input_ids, batch.position_ids)


def results(sizes: argparse.Namespace) -> list[Result]:
    """P4."""
    with tempfile.TemporaryDirectory() as name:
        measured(partial(prepared, sizes, Path(name)))
        found = in_turns({way: partial(tokens_per_second, sizes, Path(name), way) for way in ("scored", "logits", "trunk")}, rounds=sizes.rounds)  # fmt: skip
    return [
        paired("P4 scoring", "tokens/s", found["scored"], found["logits"], peer_is="a bare forward with logits", is_more_better=True, aim=0.9),
        paired("scoring, of the trunk's speed", "tokens/s", found["scored"], found["trunk"], peer_is="a bare forward of the trunk, no logits", is_more_better=True),
    ]  # fmt: skip


if __name__ == "__main__":
    write("scoring_speed", results(sized(__doc__)))
