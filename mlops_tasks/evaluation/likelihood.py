"""How well a model knows the reference solutions: bits per byte, which moves long before a program passes.

Owns the forward passes. Prompts and tokens are `data`'s, the figure that is made of the bits is `metrics`'.

Shape letters: B rows, S position, T target, V vocabulary.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

_MAX_LOGITS = 2**26
"""Logits at one time; a batch is made smaller for it."""


@dataclass(frozen=True)
class Known:
    """A reference solution behind its prompt."""

    prompt_ids: Sequence[int]
    solution_ids: Sequence[int]

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.solution_ids)


@torch.inference_mode()
def solution_bits(model: PreTrainedModel, knowns: Sequence[Known], *, batch_size: int) -> list[float]:
    """Of each solution the sum of -log2 p over its tokens, given the prompt and the tokens before.

    Args:
        model: in evaluation mode.
        batch_size: rows in one forward, at most; another number changes the last bits.

    Example:
        a model that gives each of 256 tokens the same probability needs 8 bits a token; if each is a byte, 8 bits per byte.
    """
    order = sorted(range(len(knowns)), key=lambda index: knowns[index].num_tokens, reverse=True)
    vocabulary: int = model.config.get_text_config().vocab_size
    bits: dict[int, float] = {}
    while order:
        num_targets = max(len(knowns[index].solution_ids) for index in order[:batch_size])
        rows = order[: max(1, min(batch_size, _MAX_LOGITS // (max(1, num_targets) * vocabulary)))]
        order = order[len(rows) :]
        bits.update(zip(rows, _bits(model, [knowns[index] for index in rows]), strict=True))
    return [bits[index] for index in range(len(knowns))]


def _bits(model: PreTrainedModel, knowns: Sequence[Known]) -> list[float]:
    # Padded on the left, so that all solutions end in the last column and only the last columns need logits.
    width, num_targets = max(one.num_tokens for one in knowns), max(len(one.solution_ids) for one in knowns)
    ids_BS = torch.zeros(len(knowns), width, dtype=torch.int64)
    mask_BS = torch.zeros(len(knowns), width, dtype=torch.int64)
    targets_BT = torch.full((len(knowns), num_targets), -100)
    for b, one in enumerate(knowns):
        ids_BS[b, width - one.num_tokens :] = torch.tensor([*one.prompt_ids, *one.solution_ids])
        mask_BS[b, width - one.num_tokens :] = 1
        targets_BT[b, num_targets - len(one.solution_ids) :] = torch.tensor(one.solution_ids)
    device = model.device
    wished: dict[str, Any] = {
        "position_ids": (mask_BS.cumsum(dim=1) - 1).clamp(min=0).to(device),
        "logits_to_keep": num_targets + 1,
    }
    takes = inspect.signature(model.forward).parameters
    arguments = {name: value for name, value in wished.items() if name in takes}
    logits = model(input_ids=ids_BS.to(device), attention_mask=mask_BS.to(device), use_cache=False, **arguments).logits
    # The logits of a column tell of the next one.
    logits_BTV = logits[:, -(num_targets + 1) : -1].float()
    nats_BT = cross_entropy(logits_BTV.transpose(1, 2), targets_BT.to(device), ignore_index=-100, reduction="none")
    return [float(nats) / math.log(2) for nats in nats_BT.double().sum(dim=1)]
