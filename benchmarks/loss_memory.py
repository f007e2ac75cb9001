"""Peak memory and time of the chunked loss beside the naive one, which stacks the logits of all heads.

    python benchmarks/loss_memory.py --rows 512 --chunk-rows 256

The default has the width and the vocabulary of SmolLM2-135M, and no decoder layer: what is measured is the loss, forward and
backward, all parameter gradients included. On a CPU each way runs in a process of its own, whose peak resident size is read.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from mlops_tasks.loss import head_balance, mtp_loss, shifted_targets, shifted_weights
from mlops_tasks.model import MtpModel


class Measured(NamedTuple):
    loss: float
    gradient_norm: float
    mebibytes: float
    seconds: float


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


def naive(model: MtpModel, hidden_BSD: Tensor, targets_HBS: Tensor, chunk_rows: int) -> Tensor:
    logits_HNV = torch.stack([model.head_logits(hidden_BSD[0], head) for head in range(1, model.num_heads + 1)])
    nats = nn.functional.cross_entropy(logits_HNV.flatten(0, 1), targets_HBS.flatten(), reduction="none")
    per_head = nats.view(model.num_heads, -1).sum(1) / (targets_HBS >= 0).sum((1, 2))
    return (per_head * head_balance("equal", model.num_heads).to(nats)).sum()


def measure(sizes: argparse.Namespace, way: str, answer: Connection) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=sizes.vocabulary, hidden_size=sizes.width, num_hidden_layers=0, tie_word_embeddings=True
    )
    model = MtpModel(LlamaForCausalLM(config), num_heads=sizes.heads, seed=0).to(sizes.device)
    input_ids = torch.randint(sizes.vocabulary, (1, sizes.rows), device=sizes.device)
    targets = shifted_targets(
        input_ids,
        is_target_BS=torch.ones_like(input_ids, dtype=torch.bool),
        document_ids_BS=torch.zeros_like(input_ids),
        num_heads=sizes.heads,
    )
    hidden = torch.randn(1, sizes.rows, sizes.width, device=sizes.device, requires_grad=True)
    before, start = peak_mebibytes(sizes.device), seconds_so_far(sizes.device)
    loss = {"chunked": chunked, "naive": naive}[way](model, hidden, targets, sizes.chunk_rows)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.get_total_norm([each.grad for each in model.parameters() if each.grad is not None])
    found = Measured(
        loss.item(), norm.item(), peak_mebibytes(sizes.device) - before, seconds_so_far(sizes.device) - start
    )
    answer.send(found)


def peak_mebibytes(device: str) -> float:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**20
    # Linux says kibibytes, macOS says bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def seconds_so_far(device: str) -> float:
    """Processor time on a CPU, which other work on the machine does not change; wall time on a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def measured(sizes: argparse.Namespace, way: str) -> Measured:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(sizes, way, sender))
    process.start()
    sender.close()
    found: Any = receiver.recv()
    process.join()
    return Measured(*found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 512), ("chunk-rows", 256), ("width", 576), ("vocabulary", 49152), ("heads", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    sizes = parser.parse_args()
    results = {way: measured(sizes, way) for way in ("naive", "chunked")}
    for way, found in results.items():
        print(
            f"{way:8} loss {found.loss:.5f}  gradient norm {found.gradient_norm:.5f}  "
            f"peak {found.mebibytes:7.0f} MiB  {found.seconds:6.2f} s"
        )
    memory = results["naive"].mebibytes / results["chunked"].mebibytes
    seconds = results["naive"].seconds / results["chunked"].seconds
    print(f"naive / chunked: {memory:.1f} times the memory, {seconds:.2f} times the seconds")


if __name__ == "__main__":
    main()
