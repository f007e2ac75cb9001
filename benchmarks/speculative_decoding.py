"""What heads 2..H are worth when a model writes: acceptance length, and tokens a second beside plain decoding.

    python -m benchmarks.speculative_decoding demo
    python -m benchmarks.speculative_decoding smollm2 --model FOLDER --mbpp mbpp.jsonl
    python -m benchmarks.speculative_decoding trained --model FOLDER --mbpp mbpp.jsonl   # of the stage `train`

`demo` trains the demo's small model whole on generated problems, as `make demo` does but without weights; `smollm2` keeps a model as
it is and trains heads on its hidden states of MBPP's training solutions; `trained` takes a model with the heads that were trained with
it, from an attempt's folder below `train/<key>` in a store. All then write greedily after 0-shot prompts of
problems that they have not seen: in each round plain, with guesses at every step, and as the run decides by itself. The tokens are
the same each time, which is checked; the table has the median of the rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from mlops_tasks.config.sources import GeneratedData, RandomModel, Text
from mlops_tasks.data.generated import generate_problems
from mlops_tasks.data.problems import Problem
from mlops_tasks.data.prompts import render_prompt
from mlops_tasks.data.random_model import build
from mlops_tasks.data.sources.mbpp import read_mbpp
from mlops_tasks.data.tokens import Batch, encode, pack, padding_id, to_batch
from mlops_tasks.evaluation.decoding import Request, Sampling, decode
from mlops_tasks.evaluation.speculation import Speculation
from mlops_tasks.logs import configure, watched
from mlops_tasks.loss import head_balance, mtp_loss, shifted_targets, shifted_weights
from mlops_tasks.machine import accelerator
from mlops_tasks.model import HEADS_FILE, MtpModel
from mlops_tasks.pretrained import load_model, load_tokenizer

MODES: tuple[Literal["never", "always", "auto"], ...] = ("never", "always", "auto")


@dataclass
class Work:
    model: MtpModel
    tokenizer: PreTrainedTokenizerBase
    learnt: list[Problem]
    asked: list[Problem]


def demo(arguments: argparse.Namespace) -> Work:
    """The sizes of configs/recipes/demo.yaml."""
    problems = generate_problems(GeneratedData(kind="generated", num_train=4000, noise=0.5))
    with tempfile.TemporaryDirectory() as name:
        build(RandomModel(kind="random", hidden_size=96, num_layers=2), Path(name))
        model, tokenizer = MtpModel.load(Path(name), num_heads=arguments.heads, seed=0), load_tokenizer(Path(name))
    return parted(model, tokenizer, problems, arguments)


def smollm2(arguments: argparse.Namespace) -> Work:
    model = MtpModel.load(arguments.model, num_heads=arguments.heads, seed=0)
    return parted(model, load_tokenizer(arguments.model), read_mbpp(arguments.mbpp), arguments)


def trained(arguments: argparse.Namespace) -> Work:
    folder = arguments.model / "model"
    model = MtpModel.with_saved_heads(load_model(folder), arguments.model / HEADS_FILE)
    return parted(model, load_tokenizer(folder), read_mbpp(arguments.mbpp), arguments)


def parted(
    model: MtpModel, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], arguments: argparse.Namespace
) -> Work:
    learnt = [problem for problem in problems if problem.split == "train"]
    asked = [problem for problem in problems if problem.split == "test"][: arguments.problems]
    return Work(model.to(accelerator()), tokenizer, learnt, asked)


def learn(work: Work, *, is_frozen: bool, num_steps: int, batch_size: int, rate: float) -> None:
    """Plain AdamW without weights of tokens, on all parameters or on the heads alone."""
    work.model.base.requires_grad_(not is_frozen)
    optimizer = torch.optim.AdamW(
        [one for one in work.model.parameters() if one.requires_grad], lr=rate, betas=(0.9, 0.95)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=num_steps, pct_start=0.1)
    examples, _ = encode(work.learnt, work.tokenizer, Text(max_length=256))
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0)).tolist()
    for step in watched(range(num_steps), "training", num_steps, unit="step"):
        some = [examples[order[(step * batch_size + index) % len(order)]] for index in range(batch_size)]
        batch = to_batch(pack(some, 256), pad_id=padding_id(work.tokenizer)).to(work.model.base.device)
        optimizer.zero_grad()
        loss(work.model, batch, is_frozen=is_frozen).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(work.model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def loss(model: MtpModel, batch: Batch, *, is_frozen: bool) -> torch.Tensor:
    with torch.set_grad_enabled(not is_frozen):
        hidden_BSD = model.hidden(batch.input_ids, batch.position_ids)
    targets_HBS = shifted_targets(
        batch.input_ids, is_target_BS=batch.is_target, document_ids_BS=batch.document_ids, num_heads=model.num_heads
    )
    return mtp_loss(
        model,
        hidden_BSD,
        targets_HBS=targets_HBS,
        weights_HBS=shifted_weights(torch.ones_like(hidden_BSD[:, :, 0]), targets_HBS=targets_HBS),
        balance_H=head_balance("equal" if is_frozen else "decaying", model.num_heads).to(hidden_BSD.device),
        num_targets_H=(targets_HBS >= 0).sum((1, 2)),
        chunk_rows=1024,
    ).loss


@dataclass
class Measured:
    tokens: dict[str, list[int]]
    tokens_per_second: float
    acceptance_length: float | None
    speculated_share: float


def measure(
    work: Work, mode: Literal["never", "always", "auto"], arguments: argparse.Namespace, batch_size: int
) -> Measured:
    prompts = [render_prompt(problem, "docstring-0shot") for problem in work.asked]
    requests = [
        Request(str(index), 0, tuple(work.tokenizer(prompt)["input_ids"]), arguments.max_new_tokens)
        for index, prompt in enumerate(prompts)
    ]
    speculation = Speculation(mode)
    started = time.perf_counter()
    done = decode(
        work.model,
        requests,
        sampling=Sampling(0),
        end_ids=frozenset({int(work.tokenizer.eos_token_id)}),
        batch_size=batch_size,
        speculation=speculation,
    )
    tokens = {one.request.problem_id: one.token_ids for one in done}
    seconds = time.perf_counter() - started
    return Measured(tokens, sum(map(len, tokens.values())) / seconds, **speculation.metrics())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["demo", "smollm2", "trained"])
    parser.add_argument("--model", type=Path, help="folder")
    parser.add_argument("--mbpp", type=Path)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--steps", type=int, help="of training; default 280 for demo, 60 for smollm2")
    parser.add_argument("--learnt", type=int, help="problems in a step of training; default 32 and 16")
    parser.add_argument("--problems", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    configure()
    started = time.perf_counter()
    if arguments.what == "demo":
        work = demo(arguments)
        learn(work, is_frozen=False, num_steps=arguments.steps or 280, batch_size=arguments.learnt or 32, rate=4e-3)
    elif arguments.what == "trained":
        work = trained(arguments)
    else:
        work = smollm2(arguments)
        learn(work, is_frozen=True, num_steps=arguments.steps or 60, batch_size=arguments.learnt or 16, rate=1e-3)
    print(f"trained in {time.perf_counter() - started:.0f} s; load {os.getloadavg()[0]:.1f}", flush=True)
    print(
        "| model | H | batch | acceptance length | tokens/s plain | always | ratio | auto | ratio | auto speculated | texts that differ |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for batch_size in arguments.batch_sizes:
        print(row(work, arguments, batch_size), flush=True)
    print(f"load {os.getloadavg()[0]:.1f}")


def row(work: Work, arguments: argparse.Namespace, batch_size: int) -> str:
    measure(work, "never", arguments, batch_size)  # warm
    rounds = [{mode: measure(work, mode, arguments, batch_size) for mode in MODES} for _ in range(arguments.rounds)]
    rate = {mode: statistics.median(one[mode].tokens_per_second for one in rounds) for mode in MODES}
    ratio = {
        mode: statistics.median(one[mode].tokens_per_second / one["never"].tokens_per_second for one in rounds)
        for mode in MODES
    }
    first = rounds[0]
    differing = sum(first["always"].tokens[name] != tokens for name, tokens in first["never"].tokens.items())
    return (
        f"| {arguments.what} | {work.model.num_heads} | {batch_size} | {first['always'].acceptance_length or 1:.2f} "
        f"| {rate['never']:.0f} | {rate['always']:.0f} | {ratio['always']:.2f} | {rate['auto']:.0f} | {ratio['auto']:.2f} "
        f"| {first['auto'].speculated_share:.2f} | {differing} of {len(work.asked)} |"
    )


if __name__ == "__main__":
    main()
