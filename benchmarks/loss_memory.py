"""Peak memory and time of the chunked loss with H heads, beside the naive one and torch's own.

    python -m benchmarks.loss_memory --rows 512 --chunk-rows 256

The default has the width and the vocabulary of SmolLM2-135M, and no decoder layer: what is measured is the loss, forward and
backward, all parameter gradients included. `naive` stacks the logits of all heads; `torch` calls `linear_cross_entropy` head by head.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.pairs import Result, in_turns, paired, ready, seconds_so_far, write
from mlops_tasks.loss import head_balance, mtp_loss, shifted_targets, shifted_weights, token_losses
from mlops_tasks.machine import accelerator
from mlops_tasks.model import MtpModel


def chunked(model: MtpModel, hidden_BSD: Tensor, targets_HBS: Tensor, chunk_rows: int) -> Tensor:
    return mtp_loss(
        model,
        hidden_BSD,
        targets_HBS=targets_HBS,
        weights_HBS=shifted_weights(torch.ones_like(hidden_BSD[:, :, 0]), targets_HBS=targets_HBS),
        balance_H=head_balance("equal", model.num_heads),
        num_targets_H=(targets_HBS >= 0).sum((1, 2)),
        chunk_rows=chunk_rows,
    ).loss


def dynamic(model: MtpModel, hidden_BSD: Tensor, targets_HBS: Tensor, chunk_rows: int) -> Tensor:
    """What weights that follow the student need beforehand, and then the loss."""
    token_losses(model, hidden_BSD, targets_BS=targets_HBS[0], chunk_rows=chunk_rows)
    return chunked(model, hidden_BSD, targets_HBS, chunk_rows)


def naive(model: MtpModel, hidden_BSD: Tensor, targets_HBS: Tensor, chunk_rows: int) -> Tensor:
    logits_HNV = torch.stack([model.head_logits(hidden_BSD[0], head) for head in range(1, model.num_heads + 1)])
    nats = nn.functional.cross_entropy(logits_HNV.flatten(0, 1), targets_HBS.flatten(), reduction="none")
    per_head = nats.view(model.num_heads, -1).sum(1) / (targets_HBS >= 0).sum((1, 2))
    return (per_head * head_balance("equal", model.num_heads).to(nats)).sum()


def torchs_own(model: MtpModel, hidden_BSD: Tensor, targets_HBS: Tensor, chunk_rows: int) -> Tensor:
    hidden_ND, weight_VD = hidden_BSD[0], model.get_parameter("base.lm_head.weight")
    moved = [hidden_ND, *(hidden_ND + head(hidden_ND) for head in model.heads)]
    losses = [
        nn.functional.linear_cross_entropy(one, weight_VD, targets_BS[0], ignore_index=-100)
        for one, targets_BS in zip(moved, targets_HBS, strict=True)
    ]
    return torch.stack(losses).mean()


WAYS = {"chunked": chunked, "dynamic": dynamic, "naive": naive, "torch": torchs_own}


def seconds(sizes: argparse.Namespace, way: str) -> float:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=sizes.vocabulary, hidden_size=sizes.width, num_hidden_layers=0, tie_word_embeddings=True
    )
    model = MtpModel(LlamaForCausalLM(config), num_heads=sizes.heads, seed=0).to(accelerator())
    input_ids = torch.randint(sizes.vocabulary, (1, sizes.rows), device=accelerator())
    targets = shifted_targets(
        input_ids,
        is_target_BS=torch.ones_like(input_ids, dtype=torch.bool),
        document_ids_BS=torch.zeros_like(input_ids),
        num_heads=sizes.heads,
    )
    hidden = torch.randn(1, sizes.rows, sizes.width, device=accelerator(), requires_grad=True)
    started = ready()
    WAYS[way](model, hidden, targets, sizes.chunk_rows).backward()  # type: ignore[no-untyped-call]
    return seconds_so_far() - started


def results(sizes: argparse.Namespace) -> list[Result]:
    """P1 and P2, of the same runs."""
    found = in_turns({name: partial(seconds, sizes, name) for name in WAYS}, rounds=sizes.rounds)
    peers = {
        "naive": "all heads' logits at one time",
        "torch": "torch.nn.functional.linear_cross_entropy, head by head",
    }
    loss, ours = f"loss of {sizes.heads} heads, chunks of {sizes.chunk_rows}", found["chunked"]
    return [
        paired(f"P1 {loss}: memory", "MiB", ours, found["naive"], part=1, peer_is=peers["naive"], aim=1 / 20),
        *(paired(f"P2 {loss}: time, {name}", "s", ours, found[name], peer_is=what, aim=0.95) for name, what in peers.items()),
        paired(f"{loss}: time with dynamic weights", "s", found["dynamic"], ours, peer_is="the same with static weights"),
    ]  # fmt: skip


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("rows", 2048), ("chunk-rows", 256), ("width", 576), ("vocabulary", 49152), ("heads", 4), ("rounds", 3),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args(given)


if __name__ == "__main__":
    write("loss_memory", results(arguments()))
