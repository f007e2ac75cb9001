"""Masks worked by hand, and attention without copies against transformers' own."""

import pytest
import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mlops_tasks.evaluation.attention import Masks, _grouped_sdpa


def test_a_position_sees_its_rows_past_and_within_a_window_only_the_newest_part_of_it() -> None:
    # Two rows, the newest two columns of each: at 1 and 2, and at 3 and 4.
    masks = Masks([None, 2, None])(torch.tensor([[1, 2], [3, 4]]), 5, torch.float32)
    assert isinstance(masks, dict)
    assert (masks["full_attention"][:, 0] == 0).int().tolist() == [
        [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]],
        [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]],
    ]
    assert (masks["sliding_attention"][:, 0] == 0).int().tolist() == [
        [[1, 1, 0, 0, 0], [0, 1, 1, 0, 0]],
        [[0, 0, 1, 1, 0], [0, 0, 0, 1, 1]],
    ]


def test_layers_of_one_kind_have_one_mask() -> None:
    assert isinstance(Masks([3, 3])(torch.tensor([[0]]), 1, torch.float32), torch.Tensor)


def test_windows_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"windows of 2 sizes \(4, 6 tokens\)"):
        Masks([4, None, 6])


@pytest.mark.parametrize("num_columns", [1, 3, 40])  # 40 are more than keys and values are worth copying for
def test_heads_that_share_a_key_attend_as_transformers_has_them(num_columns: int) -> None:
    module = nn.Module()
    module.num_key_value_groups = 3
    torch.manual_seed(0)
    query = torch.randn(2, 6, num_columns, 4)
    key, value = torch.randn(2, 2, 2, 50, 4)
    mask = Masks([None])(torch.arange(num_columns) + torch.tensor([[3], [9]]), 50, torch.float32)
    assert isinstance(mask, torch.Tensor)
    found, _ = _grouped_sdpa(module, query, key, value, mask, scaling=0.3)
    expected, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
