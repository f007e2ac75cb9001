"""Steps of a model that is as large as a GPU is for, in bfloat16: tokens a second, memory, and the share of the device's peak (MFU).

    python -m benchmarks.large_step                                  1.2 billion parameters, random weights, on the GPU that is here
    python -m benchmarks.large_step --width 64 --layers 1 --inner 128 --vocabulary 640 --batch 4      the same in small, anywhere

The peers are transformers' Trainer and TRL's SFTTrainer, where TRL is installed, with the same model, problems, batch and precision; their
rows are padded to the longest of a batch. All weights are learnt, in float32, with products in `--precision`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.pairs import Measured, Result, in_turns, measured, paired, write
from benchmarks.small_training import attempt, problems, sizes_of, small_llama
from benchmarks.training_speed import Padded, Peer, our_tokens_per_second, peers_tokens_per_second, transformers_trainer
from mlops_tasks.config.sources import Text
from mlops_tasks.data.tokens import encode
from mlops_tasks.machine import accelerator
from mlops_tasks.pretrained import load_model, load_tokenizer

PEAK_TERAFLOPS = {
    "H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10G": 125, "V100": 125,
}  # fmt: skip
"""Of 16 bits without sparsity, as the data sheets have them."""


def large_llama(sizes: argparse.Namespace, folder: Path) -> None:
    """Write a model of this size; its tokenizer is that of the small one, whose tokens are the first of the vocabulary."""
    small_llama(argparse.Namespace(width=32, layers=1, vocabulary=640), folder)
    ids = {name: LlamaConfig.from_pretrained(folder).to_dict()[name] for name in ("eos_token_id", "pad_token_id")}
    config = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        intermediate_size=sizes.inner,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.width // 64,
        num_key_value_heads=max(1, sizes.width // 256),
        tie_word_embeddings=True,
        bos_token_id=None,
        **ids,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def prepared(sizes: argparse.Namespace, folder: Path) -> float:
    """Make the inputs, in a process of its own; returns operations a token."""
    model = attempt(sizes, folder, write_model=large_llama).inputs["model"].folder("model")
    examples, _ = encode(problems(sizes), load_tokenizer(model), Text())
    num_tokens = sum(map(len, examples))
    num_targets = sum(int(one.is_target[1:].sum()) for one in examples)
    config = LlamaConfig.from_pretrained(model)
    return operations(config, num_tokens / len(examples), target_share=num_targets / num_tokens)


def operations(config: LlamaConfig, length: float, *, target_share: float) -> float:
    """Of a token in a step: six a weight, and attention to half of a document on average; of the output layer where there is a target alone.

    Args:
        config: of a model with tied weights.
        length: of a document, in tokens.
        target_share: of the tokens, those that are predicted; ours makes no logits for the others.

    Reference:
        arXiv 2204.02311, appendix B; there attention is to all of a row.
    """
    with torch.device("meta"):
        num_weights = LlamaForCausalLM(config).num_parameters()
    without_target = (1 - target_share) * config.vocab_size * config.hidden_size
    return float(6 * (num_weights - without_target) + 6 * config.num_hidden_layers * config.hidden_size * length)


def trl_trainer(model: Path, settings: dict[str, Any], data: Padded) -> Any:
    datasets, trl = (importlib.import_module(name) for name in ("datasets", "trl"))
    rows = [
        {"input_ids": one.token_ids.tolist(), "completion_mask": one.is_target.astype(int).tolist()}
        for one in data.examples
    ]
    arguments = trl.SFTConfig(**settings, max_length=None, completion_only_loss=True, gradient_checkpointing=False)
    return trl.SFTTrainer(
        model=load_model(model),
        args=arguments,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=load_tokenizer(model),
    )


def peers() -> dict[str, tuple[Peer, str]]:
    """Those that are installed, and what they are."""
    found: dict[str, tuple[Peer, str]] = {"trainer": (transformers_trainer, "transformers Trainer")}
    if importlib.util.find_spec("trl") is not None:
        found["trl"] = (trl_trainer, "TRL SFTTrainer")
    else:
        print("TRL is not installed, so it is no peer; pip install trl makes it one.")
    return found


def peak(sizes: argparse.Namespace) -> float | None:
    """Operations a second of the device; None: not known."""
    if sizes.peak_teraflops is not None:
        return float(sizes.peak_teraflops) * 1e12
    name = torch.cuda.get_device_name() if accelerator() == "cuda" else ""
    return next((one * 1e12 for part, one in PEAK_TERAFLOPS.items() if part in name), None)


def results(sizes: argparse.Namespace) -> list[Result]:
    with tempfile.TemporaryDirectory() as name:
        folder, known = Path(name), peers()
        operations_a_token = measured(partial(prepared, sizes, folder)).amount
        ways = {"ours": partial(our_tokens_per_second, sizes, folder, micro_batch_rows=sizes.batch)}
        ways |= {one: partial(peers_tokens_per_second, sizes, folder, peer) for one, (peer, _) in known.items()}
        found = in_turns(ways, rounds=sizes.rounds)
    return [
        line
        for one, (_, peer_is) in known.items()
        for line in beside(
            sizes, found["ours"], found[one], f"{peer_is}, {sizes.precision}, padded", operations_a_token
        )
    ]


def beside(
    sizes: argparse.Namespace, ours: list[Measured], peer: list[Measured], peer_is: str, operations_a_token: float
) -> list[Result]:
    """The lines of one peer."""
    found = [
        paired("large step", "tokens/s", ours, peer, peer_is=peer_is, is_more_better=True),
        paired("large step: memory", "MiB", ours, peer, part=1, peer_is=peer_is),
    ]
    if (most := peak(sizes)) is not None:
        mine, other = (
            [one._replace(amount=one.amount * operations_a_token / most) for one in way] for way in (ours, peer)
        )
        found.append(
            paired("large step: share of the device's peak", "MFU", mine, other, peer_is=peer_is, is_more_better=True)
        )
    return found


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = sizes_of(__doc__)
    parser.add_argument("--inner", type=int, default=8192, help="width of the feed-forward part")
    parser.add_argument("--peak-teraflops", type=float, help="of the device, where its name does not say it")
    parser.set_defaults(width=2048, layers=16, vocabulary=128_256, batch=32, steps=8, precision="bfloat16")
    return parser.parse_args(given)


if __name__ == "__main__":
    write("large_step", results(arguments()))
