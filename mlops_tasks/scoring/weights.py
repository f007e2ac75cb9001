"""From raw scores to the weights that the loss multiplies by: per document, mean 1.

Owns the one rule that every scorer shares, and the measures of how uneven weights are. Leaves what a score is to `scorers`,
and the shift from tokens to the heads that predict them to `loss`.

A document's weights depend on its own scores only, hence neither on the batch nor on packing. Everything is float64 and in
log space: in float32 one outlier among 8192 tokens leaves no factor that makes the mean 1.

Shapes: B packed rows, S position, G documents, N targets of the longest document.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mlops_tasks.config.learning import SelectWeights, SoftWeights

# Squares of larger scores would overflow; infinite ones count as this.
LARGEST_SCORE = 1e30
# The bracket is some hundreds wide, and 2^-64 of it is below float64's resolution.
NUM_BISECTIONS = 64


def document_weights(scores_n: Tensor, weighting: SoftWeights | SelectWeights) -> Tensor:
    """Weights of one document's targets.

    Args:
        scores_n: Raw scores, any floating dtype and scale; infinite ones count as huge.
        weighting: How scores become weights, λ and `target_ess` included.

    Returns:
        w_n, float64, detached: mean 1; within [min_weight, max_weight] for `soft`. All scores equal: all 1.

    Example:
        `select` with top_share 0.5 and strength 1: scores 1, 4, 2, 3 give 0, 2, 0, 2.
    """
    return _weights(scores_n[None], torch.ones_like(scores_n[None], dtype=torch.bool), weighting)[0]


def batch_weights(
    scores_BS: Tensor,
    *,
    is_target_BS: Tensor,
    document_ids_BS: Tensor,
    weighting: SoftWeights | SelectWeights,
) -> Tensor:
    """Weights of all documents of a packed batch, each on its own.

    Args:
        scores_BS: Raw score of token j at column j; anything where there is no target.
        is_target_BS: True at targets.
        document_ids_BS: Document in the row.
        weighting: As `document_weights`.

    Returns:
        w_BS, float32, detached: the weight of token j at column j, 0 where there is no target.
    """
    weights_BS = torch.zeros(scores_BS.shape, device=scores_BS.device)
    rows, columns = is_target_BS.nonzero(as_tuple=True)
    if len(rows) == 0:
        return weights_BS
    documents, slots = _places(rows * (document_ids_BS.max() + 1) + document_ids_BS[rows, columns])
    shape = (int(documents.max()) + 1, int(slots.max()) + 1)
    # Apple's GPUs have no float64.
    device = torch.device("cpu") if scores_BS.device.type == "mps" else scores_BS.device
    scores_GN = torch.zeros(shape, dtype=torch.float64, device=device)
    is_filled_GN = torch.zeros(shape, dtype=torch.bool, device=device)
    place = (documents.to(device), slots.to(device))
    scores_GN[place] = scores_BS.detach()[rows, columns].to(device, torch.float64)
    is_filled_GN[place] = True
    weights_BS[rows, columns] = _weights(scores_GN, is_filled_GN, weighting)[place].to(weights_BS)
    return weights_BS


def spread_sums(weights: Tensor) -> Tensor:
    """Σw, Σw² and Σw·log w: what `spread` needs, and adds up over parts of the tokens. Where there is no target the weight is 0."""
    return torch.stack([weights.sum(), weights.square().sum(), torch.xlogy(weights, weights).sum()])


def spread(sums: Tensor, num: int) -> tuple[float, float]:
    """How even weights are, 1 if all are equal: effective sample size and entropy.

    Args:
        sums: from `spread_sums`.
        num: n ≥ 1, targets.

    Returns:
        (Σw)² / (n·Σw²), the share of equally weighted tokens that would tell as much; and the entropy of w/Σw as a share of log n.
    """
    weights, squares, logs = sums.tolist()
    # Of p = w/Σw entropy is log Σw - Σ(w·log w)/Σw.
    entropy = (math.log(weights) - logs / weights) / math.log(num) if num > 1 else 1.0
    return weights**2 / (num * squares), entropy


def _weights(scores_GN: Tensor, is_filled_GN: Tensor, weighting: SoftWeights | SelectWeights) -> Tensor:
    scores_GN = scores_GN.detach().double().clamp(-LARGEST_SCORE, LARGEST_SCORE)
    kept_GN = _top(scores_GN, is_filled_GN, weighting.top_share)
    if isinstance(weighting, SelectWeights):
        weights_GN = kept_GN / _mean(kept_GN.double(), is_filled_GN)
        target_ess = None
    else:
        weights_GN = _soft(scores_GN, is_filled_GN, kept_GN, weighting)
        target_ess = weighting.target_ess
    highest_G = scores_GN.masked_fill(~is_filled_GN, -math.inf).amax(1, keepdim=True)
    lowest_G = scores_GN.masked_fill(~is_filled_GN, math.inf).amin(1, keepdim=True)
    weights_GN = torch.where(highest_G == lowest_G, 1.0, weights_GN)
    return _mixed(weights_GN, is_filled_GN, weighting.strength, target_ess) * is_filled_GN


def _soft(scores_GN: Tensor, is_filled_GN: Tensor, boosted_GN: Tensor, weighting: SoftWeights) -> Tensor:
    """w = clip(c·w0, ε, W_max) with log c by bisection such that the mean is 1."""
    mean_G = _mean(scores_GN, is_filled_GN)
    deviation_G = _mean((scores_GN - mean_G).square(), is_filled_GN).sqrt()
    log_w0_GN = (scores_GN - mean_G) / (deviation_G + 1e-6) / weighting.temperature
    log_w0_GN = log_w0_GN + boosted_GN * math.log(weighting.boost)
    # At these ends all c·w0 are at most 1, and at least 1, so that the root lies between them whatever ε and W_max are.
    low_G = -log_w0_GN.masked_fill(~is_filled_GN, -math.inf).amax(1, keepdim=True)
    high_G = -log_w0_GN.masked_fill(~is_filled_GN, math.inf).amin(1, keepdim=True)
    for _ in range(NUM_BISECTIONS):
        middle_G = (low_G + high_G) / 2
        is_low_G = _mean(_clipped(log_w0_GN + middle_G, weighting), is_filled_GN) < 1
        low_G, high_G = torch.where(is_low_G, middle_G, low_G), torch.where(is_low_G, high_G, middle_G)
    return _clipped(log_w0_GN + high_G, weighting)


def _clipped(log_weights: Tensor, weighting: SoftWeights) -> Tensor:
    # Clipping before exp keeps it finite.
    return log_weights.clamp(max=math.log(weighting.max_weight)).exp().clamp(weighting.min_weight, weighting.max_weight)


def _mixed(weights_GN: Tensor, is_filled_GN: Tensor, strength: float, target_ess: float | None) -> Tensor:
    """(1-λ)·1 + λ·w, with λ lowered for a document whose effective sample size would be below the target."""
    if target_ess is None:
        return (1 - strength) + strength * weights_GN
    # The mean is 1, so the effective sample size of the mix is 1 / (1 + λ²·variance).
    variance_G = _mean((weights_GN - 1).square(), is_filled_GN)
    largest_G = ((1 / target_ess - 1) / variance_G.clamp(min=1e-30)).sqrt()
    strength_G = largest_G.clamp(max=strength)
    return (1 - strength_G) + strength_G * weights_GN


def _top(scores_GN: Tensor, is_filled_GN: Tensor, share: float) -> Tensor:
    """True for the ⌈share·n⌉ highest of each document; of equal scores the first."""
    # share·n comes out a hair too high for, say, 0.1·30.
    num_kept_G = (is_filled_GN.double().sum(1, keepdim=True) * share - 1e-9).ceil()
    order_GN = scores_GN.masked_fill(~is_filled_GN, -math.inf).argsort(dim=1, descending=True, stable=True)
    return (order_GN.argsort(dim=1) < num_kept_G) & is_filled_GN


def _mean(values_GN: Tensor, is_filled_GN: Tensor) -> Tensor:
    return (values_GN * is_filled_GN).sum(1, keepdim=True) / is_filled_GN.sum(1, keepdim=True)


def _places(keys: Tensor) -> tuple[Tensor, Tensor]:
    """For each target, which document it belongs to (dense, from 0) and which place it has there."""
    _, documents, counts = torch.unique(keys, return_inverse=True, return_counts=True)
    order = documents.argsort(stable=True)
    starts = counts.cumsum(0) - counts
    slots = torch.empty_like(documents)
    slots[order] = torch.arange(len(keys), device=keys.device) - starts[documents[order]]
    return documents, slots
