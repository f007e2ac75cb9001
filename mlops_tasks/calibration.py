"""Is a head right as often as it is sure? Tokens in bins of the probability that a head gives its likeliest one.

Shape letters: H head, B packed rows, S position, D width, V vocabulary; N positions with a target, or bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mlops_tasks.loss import NO_TARGET
from mlops_tasks.model import MtpModel, States

NUM_BINS = 10


@dataclass(frozen=True)
class Bin:
    """Tokens about which a head is about as sure."""

    count: int
    confidence: float
    """Mean probability of the likeliest token; 0 in an empty bin."""
    accuracy: float
    """Share in which that token is the right one; 0 in an empty bin."""


def bin_sums(model: MtpModel, states: States, *, targets_HBS: Tensor, chunk_rows: int) -> Tensor:
    """What a micro-batch adds to each head's bins, of equal width over [0, 1]; sums add up over micro-batches.

    Args:
        model: gives the logits.
        states: what the trunk made of it.
        targets_HBS: from `shifted_targets`; only positions with a target count.
        chunk_rows: positions whose logits exist at one time.

    Returns:
        sums_H3N, float64 on the CPU: by bin the number of tokens, the sum of confidences, the number that are right.

    Example:
        Of a head that is 0.25 sure of each of 8 tokens and right about 4 of them, bin 2 is 8, 2.0, 4, and the others are 0.

    Reference:
        Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2.
    """
    sums_H3N = no_sums(len(targets_HBS))
    for head, targets_BS in enumerate(targets_HBS, start=1):
        call = states.call if head > 1 else None
        hidden_ND = (model.layer_hidden(call, head) if call else states.hidden_BSD).flatten(0, 1)
        places = (targets_BS.flatten() != NO_TARGET).nonzero().flatten()
        for rows in torch.split(places, chunk_rows):
            logits_NV = model.head_logits(hidden_ND[rows], head).float()
            sums_H3N[head - 1] += _sums(logits_NV, targets_BS.flatten()[rows])
    return sums_H3N


def no_sums(num_heads: int) -> Tensor:
    """Of no token."""
    return torch.zeros(num_heads, 3, NUM_BINS, dtype=torch.float64)


def bins_of(sums_H3N: Tensor) -> list[list[Bin]]:
    """The bins of each head, head 1 first."""
    return [_bins(sums_3N) for sums_3N in sums_H3N]


def _sums(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Count, sum of confidence and number right, by bin."""
    confidence_N, likeliest_N = logits_NV.softmax(-1).max(-1)
    bins_N = (confidence_N * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    parts_3N = torch.stack([torch.ones_like(confidence_N), confidence_N, (likeliest_N == targets_N).float()])
    return torch.zeros(3, NUM_BINS, dtype=torch.float64).index_add_(1, bins_N.cpu(), parts_3N.double().cpu())


def _bins(sums_3N: Tensor) -> list[Bin]:
    counts, confidences, rights = sums_3N.tolist()
    return [
        Bin(int(count), round(confidence / max(count, 1), 6), round(right / max(count, 1), 6))
        for count, confidence, right in zip(counts, confidences, rights, strict=True)
    ]
