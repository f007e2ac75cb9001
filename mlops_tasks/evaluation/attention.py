"""Attention over the columns of a `cache`: what each position sees, and that no key is copied for it.

Shape letters: B rows, J new columns, S all columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

_GROUPED = "wmtp_grouped_sdpa"


class Masks:
    """What each position sees, in the form in which a model takes it.

    Args:
        windows: of each layer; None: it sees all that is behind.

    Raises:
        ValueError: there are windows of several sizes, and a model can be given a mask for one.
    """

    def __init__(self, windows: Sequence[int | None]) -> None:
        sizes = sorted({one for one in windows if one is not None})
        if len(sizes) > 1:
            raise ValueError(f"its layers have windows of {len(sizes)} sizes ({', '.join(map(str, sizes))} tokens)")
        self._windows = {"full_attention" if one is None else "sliding_attention": one for one in windows}

    def __call__(self, positions_BJ: Tensor, num_columns: int, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
        """Added to attention's scores: 0 for a row's own past, the lowest number elsewhere; [B, 1, J, S].

        A model whose layers are of two kinds takes a mask for each.
        """
        columns_S = torch.arange(num_columns, device=positions_BJ.device)
        behind_BJS = positions_BJ[:, :, None] - columns_S
        masks = {}
        for name, window in self._windows.items():
            is_hidden_BJS = behind_BJS < 0 if window is None else (behind_BJS < 0) | (behind_BJS >= window)
            mask_BJS = torch.zeros(is_hidden_BJS.shape, dtype=dtype, device=positions_BJ.device)
            masks[name] = mask_BJS.masked_fill_(is_hidden_BJS, torch.finfo(dtype).min)[:, None]
        return masks if len(masks) > 1 else next(iter(masks.values()))


@contextmanager
def grouped_attention(config: PretrainedConfig) -> Iterator[None]:
    """Within it a model that uses torch's attention has keys and values that several query heads share read in place.

    transformers does so for a single column; for several it copies keys and values for each query head, which for a long cache
    takes longer than all else.
    """
    before = config._attn_implementation
    if before == "sdpa":
        config._attn_implementation = _GROUPED
    try:
        yield
    finally:
        config._attn_implementation = before


def _grouped_sdpa(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    num_rows, num_heads, num_columns, width = query.shape
    num_groups = num_heads // key.shape[1]
    is_plain = attention_mask is not None and all(kwargs.get(name) is None for name in ("softcap", "position_bias"))
    # Copies of the mask take the place of copies of keys and values; for very many columns those are the smaller.
    if num_groups == 1 or not is_plain or num_columns > 2 * key.shape[1] * width:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    # The heads of a group are, for their key, so many more columns of queries.
    queries = query.reshape(num_rows, key.shape[1], num_groups * num_columns, width)
    assert attention_mask is not None
    mask = attention_mask.repeat(1, 1, num_groups, 1)
    found = scaled_dot_product_attention(queries, key, value, attn_mask=mask, scale=kwargs.get("scaling"))
    return found.view(num_rows, num_heads, num_columns, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(_GROUPED, _grouped_sdpa)
