"""What stands between the trunk and the output layer for heads 2..H: a residual block, or a whole decoder layer.

Owns both kinds and what a layer needs to run beside the base's last one; which of them a model has, and its logits, are `model`'s.

Shapes: B batch, S position, D width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from mlops_tasks.errors import Unfit

HeadKind = Literal["residual", "layer"]


class ResidualHead(nn.Module):
    """R_k: D → D, SiLU, D → D. The output layer starts at zero, so that head k starts exactly as head 1."""

    def __init__(self, hidden_size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.inner = nn.Linear(hidden_size, hidden_size)
        self.outer = nn.Linear(hidden_size, hidden_size)
        nn.init.normal_(self.inner.weight, std=1 / math.sqrt(hidden_size), generator=generator)
        for zero in (self.inner.bias, self.outer.weight, self.outer.bias):
            nn.init.zeros_(zero)

    def forward(self, hidden: Tensor) -> Tensor:
        return cast(Tensor, self.outer(nn.functional.silu(self.inner(hidden))))


class LayerCall(NamedTuple):
    """What the base's last layer was called with, which heads that are layers are called with too."""

    hidden_BSD: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def of(self, layer: nn.Module) -> Tensor:
        """What another layer makes of it: [B, S, D]."""
        found = layer(self.hidden_BSD, *self.args, **self.kwargs)
        return cast(Tensor, found[0] if isinstance(found, tuple) else found)


@contextmanager
def calls_of(layer: nn.Module) -> Iterator[list[LayerCall]]:
    """The list into which each call of a layer is put."""
    calls: list[LayerCall] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rest = dict(kwargs)
        hidden, *others = args or (rest.pop("hidden_states"),)
        calls.append(LayerCall(hidden, tuple(others), rest))

    handle = layer.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def copies(layer: nn.Module, count: int) -> nn.ModuleList:
    """Heads that start as the base's last layer, which is head 1's.

    Reference:
        arXiv 2404.19737, section 2: a shared trunk, a layer for each head, one unembedding. There all are trained from scratch.
    """
    return nn.ModuleList(copy.deepcopy(layer) for _ in range(count))


def final_norm(trunk: nn.Module, layers: nn.ModuleList) -> nn.Module:
    """The norm behind a trunk's last layer.

    Raises:
        Unfit: there is none beside the list of layers.
    """
    parent = next(one for one in trunk.modules() if any(child is layers for child in one.children()))
    norms = [one for one in parent.children() if "norm" in type(one).__name__.lower()]
    if not norms:
        raise Unfit(
            f"{type(trunk).__name__} has no norm beside its layers, so train.head_kind cannot be layer. Set it to residual in the recipe."
        )
    return norms[-1]
