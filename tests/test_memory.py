"""The memory model against real steps, byte for byte of live tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    PhiConfig,
    PretrainedConfig,
)

from mlops_tasks.adapters import Adapter
from mlops_tasks.config.learning import LowRank, Train
from mlops_tasks.dropout import dropouts_of
from mlops_tasks.loss import head_balance, mtp_loss, shifted_targets, shifted_weights
from mlops_tasks.memory import PeakBytes, StepMemory
from mlops_tasks.model import MtpModel
from mlops_tasks.optimization import adamw

FULL, LORA = {"kind": "full"}, {"kind": "lora", "rank": 8}
SMALL = {"vocab_size": 2000, "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3, "eos_token_id": None}
# 29 million parameters.
MEDIUM: dict[str, Any] = {
    "vocab_size": 16000, "hidden_size": 384, "intermediate_size": 1024, "num_attention_heads": 6, "num_key_value_heads": 3,
    "num_hidden_layers": 10, "tie_word_embeddings": False,
}  # fmt: skip


ROWS, LENGTH, CHUNK_ROWS = 3, 96, 64


def measured(config: PretrainedConfig, train: Train, *, recompute: bool) -> tuple[int, int]:
    """Weights, and the most bytes beside them in a micro-batch that is not the first one."""
    torch.manual_seed(0)
    base: Any = AutoModelForCausalLM.from_config(config)
    model = MtpModel(base.eval(), num_heads=train.num_heads, seed=0)
    if isinstance(train.method, LowRank):
        Adapter(model, train.method, seed=0)
    if recompute:
        model.recompute_activations()
    ids = torch.randint(2, 1000, (ROWS, LENGTH))
    positions = (torch.arange(LENGTH) % (LENGTH // 2)).expand(ROWS, -1)
    targets = shifted_targets(
        ids,
        is_target_BS=torch.ones_like(ids, dtype=torch.bool),
        document_ids_BS=torch.zeros_like(ids),
        num_heads=train.num_heads,
    )
    weights = shifted_weights(torch.ones(ids.shape), targets_HBS=targets)
    for dropout in dropouts_of(model):
        dropout.tokens_BS = ids.int()
    optimizer = adamw(model, train)
    counted = PeakBytes(*(one.untyped_storage() for one in (*model.parameters(), *model.buffers(), ids, positions)))
    with counted:
        for one in model.parameters():
            one.grad = torch.zeros_like(one) if one.requires_grad else None
        optimizer.step()  # makes the moments
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=train.precision == "bfloat16"):
            loss = mtp_loss(
                model,
                model.hidden(ids, positions),
                targets_HBS=targets,
                weights_HBS=weights,
                balance_H=head_balance("decaying", train.num_heads),
                num_targets_H=(targets >= 0).sum((1, 2)),
                chunk_rows=CHUNK_ROWS,
            ).loss
        torch.autograd.backward([loss])
        optimizer.step()
    return sum(one.numel() * one.element_size() for one in model.parameters()), counted.peak


LLAMA = LlamaConfig(**SMALL, intermediate_size=128)
GEMMA2 = Gemma2Config(**SMALL, intermediate_size=128, head_dim=16, num_key_value_heads=2, sliding_window=32)


# Logits that are divided by a number, and logits with a bias; so many tokens that they are the most of the memory.
GRANITE = GraniteConfig(**{**SMALL, "vocab_size": 20_000}, intermediate_size=128, logits_scaling=8.0)
PHI = PhiConfig(**{**SMALL, "vocab_size": 20_000, "hidden_size": 16}, intermediate_size=128, tie_word_embeddings=False)


@pytest.mark.parametrize(
    ("config", "method", "recompute", "precision"),
    [
        (LLAMA, FULL, False, "float32"),
        (LLAMA, LORA, False, "float32"),
        (LLAMA, LORA, False, "bfloat16"),
        (LLAMA, {**LORA, "dropout": 0.1}, False, "float32"),
        (LLAMA, FULL, True, "float32"),
        (GPT2Config(**SMALL, bos_token_id=None), FULL, False, "float32"),
        (GEMMA2, LORA, False, "float32"),
        (GRANITE, LORA, False, "float32"),
        (GRANITE, LORA, False, "bfloat16"),
        (PHI, FULL, False, "float32"),
        (LlamaConfig(**MEDIUM), FULL, False, "float32"),
    ],
    ids=[
        "llama",
        "lora",
        "lora-bfloat16",
        "lora-dropout",
        "recomputed",
        "gpt2",
        "gemma2-lora",
        "scaled-logits",
        "scaled-logits-bfloat16",
        "logits-with-bias",
        "llama-29M",
    ],
)
def test_the_model_agrees_with_real_peaks(
    config: PretrainedConfig, method: dict[str, Any], recompute: bool, precision: str
) -> None:
    train = Train.model_validate({"steps": 1, "num_heads": 3, "method": method, "precision": precision})
    weights, beside = measured(config, train, recompute=recompute)
    found = StepMemory(config, train, length=LENGTH, recompute=recompute).footprint(rows=ROWS, chunk_rows=CHUNK_ROWS)
    assert found.weights == weights
    assert found.total - found.weights == pytest.approx(beside, rel=0.15)


WIDE = LlamaConfig(**{**SMALL, "vocab_size": 100}, intermediate_size=4096)


@pytest.mark.parametrize("config", [LLAMA, WIDE, GPT2Config(**SMALL, bos_token_id=None)], ids=["llama", "wide", "gpt2"])
def test_merging_an_adapter_at_the_end_takes_what_the_model_says(config: PretrainedConfig, tmp_path: Path) -> None:
    train = Train.model_validate({"steps": 1, "num_heads": 2, "method": LORA})
    torch.manual_seed(0)
    base: Any = AutoModelForCausalLM.from_config(config)
    model = MtpModel(base.eval(), num_heads=2, seed=0)
    adapter = Adapter(model, train.method, seed=0)  # type: ignore[arg-type]
    state = model.state_dict()
    with PeakBytes(*(one.untyped_storage() for one in state.values())) as counted:
        model.save(tmp_path, adapter.merged(state))
    found = StepMemory(config, train, length=2, recompute=False).footprint(rows=1, chunk_rows=2)
    assert found.merging == pytest.approx(counted.peak, rel=0.15)
    assert found.total - found.weights - found.gradients - found.moments == max(
        found.activations + found.loss, found.merging
    )
    # A row of two tokens takes less than a matrix of 64 x 4096.
    assert (found.merging > found.activations + found.loss) == (config is WIDE)


def test_four_bits_are_counted_for_the_linear_layers_of_the_decoder_alone() -> None:
    lora, qlora = (
        StepMemory(LLAMA, train, length=32, recompute=False).footprint(rows=1, chunk_rows=32)
        for train in (
            Train.model_validate({"steps": 1, "num_heads": 1, "method": {"kind": kind, "rank": 8}})
            for kind in ("lora", "qlora")
        )
    )
    # Three layers of four matrices 64 x 64 and three of 64 x 128.
    assert lora.weights - qlora.weights == pytest.approx((4 - 0.5 - 1 / 64) * 3 * (4 * 64 * 64 + 3 * 64 * 128), abs=1)
    assert lora.activations == qlora.activations
