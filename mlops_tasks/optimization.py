"""How far a step goes: the optimiser, with a rate and a decay for each kind of parameter, and the schedule of the rate."""

from __future__ import annotations

import math

import torch

from mlops_tasks.config.learning import Train
from mlops_tasks.model import MtpModel


def adamw(model: MtpModel, train: Train) -> torch.optim.AdamW:
    """The optimiser: trunk and heads each with their peak rate, decay on matrices only."""
    heads_rate = train.learning_rate if train.new_head_learning_rate is None else train.new_head_learning_rate
    groups = [
        {
            "params": [one for one in part.parameters() if one.requires_grad and (one.ndim >= 2) == is_matrix],
            "peak_rate": rate,
            "first_step": first_step,
            "weight_decay": train.weight_decay if is_matrix else 0.0,
        }
        for part, rate, first_step in (
            (model.base, train.learning_rate, train.head_warmup_steps),
            (model.heads, heads_rate, 0),
        )
        for is_matrix in (True, False)
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=train.learning_rate,
        betas=(train.beta1, train.beta2),
        fused=True,
    )


def rate_share(step: int, *, num_steps: int, warmup_share: float, final_share: float) -> float:
    """The rate of a step (from 0) as a share of the peak: a straight rise, then half a cosine down to `final_share`.

    Example:
        8 steps, half of them warm-up, final share 0: 0.25 0.5 0.75 1 | 0.85 0.5 0.15 0.
    """
    num_warmup = math.ceil(warmup_share * num_steps)
    if step < num_warmup:
        return (step + 1) / num_warmup
    done = (step + 1 - num_warmup) / max(1, num_steps - num_warmup)
    return final_share + (1 - final_share) * (1 + math.cos(math.pi * done)) / 2
