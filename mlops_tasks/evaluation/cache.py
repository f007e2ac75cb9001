"""Keys and values of rows of different lengths.

Position p of a row lies in column p, whatever the other rows do: a row that writes a column again forgets what was there, so
nothing is ever cropped or moved, and positions and windows are those of the row alone. What a row may see is `attention`'s.

Shape letters: B rows, J new columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicLayer

_SPARE_COLUMNS = 64  # the cache grows by so many, so that a step writes its columns and copies none


class RowCache(Cache):
    """What attention keeps of some rows; transformers' models write into it."""

    def __init__(self, num_layers: int) -> None:
        self._rows = [_RowLayer() for _ in range(num_layers)]  # type: ignore[no-untyped-call]
        super().__init__(layers=list(self._rows))

    def aim(self, columns_BJ: Tensor, num_columns: int) -> None:
        """Say where the next forward writes, and how many columns it may see.

        Args:
            columns_BJ: int64.
            num_columns: above each of the columns.
        """
        rows_B1 = torch.arange(len(columns_BJ), device=columns_BJ.device)[:, None]
        for layer in self._rows:
            layer.target = (rows_B1, columns_BJ, num_columns)

    def rows(self, chosen: Sequence[int], num_columns: int) -> RowCache:
        """A copy of some rows, in this order, one of them perhaps several times; their first columns only."""
        copied = RowCache(len(self._rows))
        for layer, source in zip(copied._rows, self._rows, strict=True):
            if source.is_initialized:
                index_B = torch.tensor(chosen, device=source.device)
                layer.keep(*(kept[:, :, :num_columns][index_B] for kept in source.kept))
        return copied

    def put(self, places: Sequence[int], other: RowCache, chosen: Sequence[int]) -> None:
        """Let some rows of another cache take places here: of other rows, or new ones."""
        for layer, source in zip(self._rows, other._rows, strict=True):
            num_columns = source.kept[0].shape[2]
            if not layer.is_initialized:
                layer.keep(*(kept[:0, :, :0] for kept in source.kept))
            layer.grow(1 + max(places), num_columns)
            to_B, from_B = (torch.tensor(indexes, device=layer.device) for indexes in (places, chosen))
            for kept, new in zip(layer.kept, source.kept, strict=True):
                kept[to_B, :, :num_columns] = new[from_B]


class _RowLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's part, with columns to spare."""

    kept: tuple[Tensor, Tensor]
    """Keys and values."""
    target: tuple[Tensor, Tensor, int]
    """Rows and columns to write to, and how many columns are seen."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        rows_B1, columns_BJ, num_columns = self.target
        if not self.is_initialized:
            self.keep(key_states[:, :, :0], value_states[:, :, :0])
        self.grow(len(key_states), num_columns)
        for kept, states in zip(self.kept, (key_states, value_states), strict=True):
            kept[rows_B1, :, columns_BJ] = states.transpose(1, 2)
        keys, values = self.kept
        return keys[:, :, :num_columns], values[:, :, :num_columns]

    def keep(self, keys: Tensor, values: Tensor) -> None:
        self.lazy_initialization(keys, values)
        self.kept = keys, values

    def grow(self, num_rows: int, num_columns: int) -> None:
        keys, values = self.kept
        more_rows = max(0, num_rows - keys.shape[0])
        missing = num_columns - keys.shape[2]
        if more_rows or missing > 0:
            sides = (0, 0, 0, missing + _SPARE_COLUMNS if missing > 0 else 0, 0, 0, 0, more_rows)
            # Zeros, not what happens to be in memory: a masked NaN is still NaN.
            self.kept = pad(keys, sides), pad(values, sides)
