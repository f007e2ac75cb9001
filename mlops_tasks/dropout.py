"""Dropout whose masks are a function of seed, step, problem, token and layer: of no rank, micro-batch or device.

Owns the numbers behind a mask and the module that makes it of them. Which tokens learn with it is `corpus`'s, where the
modules stand `adapters`'.

Shape letters: B packed rows, S position, D width.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mlops_tasks.errors import Unfit


def token_numbers(num_tokens: int, *, seed: int, step: int, problem_id: str) -> npt.NDArray[np.int32]:
    """What the masks of a problem's tokens are made of in one step: a number a token."""
    key = hashlib.sha256(f"{seed}:{step}:{problem_id}".encode()).digest()[:16]
    # Philox counts, and its raw numbers are the same in every version of numpy.
    raw = np.random.Philox(key=int.from_bytes(key)).random_raw(num_tokens)
    return (raw >> np.uint64(32)).astype(np.uint32).view(np.int32)


class Dropout(nn.Module):
    """Sets a share of a layer's input to zero and raises the rest, so that the mean stays.

    It does so in evaluation mode too, if tokens are named.

    Args:
        share: of the input that is dropped, in (0, 1).
        layer: name of the layer, so that each has other masks.
    """

    def __init__(self, share: float, *, layer: str) -> None:
        super().__init__()
        self.share = share
        self.layer = layer
        self.tokens_BS: Tensor | None = None
        """int32, see `token_numbers`; None: nothing is dropped.

        It stays until the next micro-batch, for a backward may compute activations again.
        """
        self._salt = int.from_bytes(hashlib.sha256(layer.encode()).digest()[:4], signed=True)

    def forward(self, x: Tensor) -> Tensor:
        """Drop some of [B, S, D] or [B·S, D]."""
        if self.tokens_BS is None:
            return x
        if x.shape[:-1].numel() != self.tokens_BS.numel():
            raise Unfit(
                f"train.method.dropout is {self.share}, but {self.layer} sees {x.shape[:-1].numel()} of "
                f"{self.tokens_BS.numel()} tokens, so nobody knows which mask is whose. "
                "Set it to 0, or name other layers in train.method.targets."
            )
        return x.masked_fill(self._is_dropped(x.shape), 0) / (1 - self.share)

    def _is_dropped(self, shape: torch.Size) -> Tensor:
        assert self.tokens_BS is not None
        token = _mixed(self.tokens_BS ^ self._salt).reshape(*shape[:-1], 1)
        columns = torch.arange(shape[-1], dtype=torch.int32, device=token.device)
        return (_mixed(token + columns) & 0x7FFFFFFF) < int(self.share * 2**31)


def dropouts_of(model: nn.Module) -> list[Dropout]:
    """All of a model's, to name tokens to."""
    return [module for module in model.modules() if isinstance(module, Dropout)]


def _mixed(numbers: Tensor) -> Tensor:
    """Turn int32 numbers, in their place, into others of which each bit depends on all bits.

    They wrap as unsigned ones would.

    Reference:
        C. Wellons, "Prospecting for Hash Functions": lowbias32.
    """
    for shift, factor in ((16, 0x7FEB352D), (15, -0x7B935975)):
        numbers ^= (numbers >> shift) & (0xFFFFFFFF >> shift)  # without the sign, which `>>` draws in
        numbers *= factor
    numbers ^= (numbers >> 16) & 0xFFFF
    return numbers
