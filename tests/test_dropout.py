"""Masks that hang on seed, step, problem, token and layer, and on nothing else. Trainings with them are in `test_training`."""

from __future__ import annotations

import pytest
import torch
from tiny_models import CONFIGS, model_of

from mlops_tasks.adapters import Adapter
from mlops_tasks.config.learning import Lora
from mlops_tasks.dropout import Dropout, _mixed, dropouts_of, token_numbers
from mlops_tasks.errors import Unfit

NUM_TOKENS, WIDTH = 200, 300


def numbers(*, seed: int = 1, step: int = 2, problem_id: str = "p", num_tokens: int = NUM_TOKENS) -> torch.Tensor:
    return torch.from_numpy(token_numbers(num_tokens, seed=seed, step=step, problem_id=problem_id))[None]


def kept(tokens: torch.Tensor, share: float = 0.25, layer: str = "a") -> torch.Tensor:
    """1 where an input stays: [S, D]."""
    dropout = Dropout(share, layer=layer)
    dropout.tokens_BS = tokens
    return (dropout(torch.ones(*tokens.shape, WIDTH, device=tokens.device)) != 0)[0].float()


def test_numbers_are_mixed_as_the_published_function_mixes_them() -> None:
    def lowbias32(x: int) -> int:
        x = ((x ^ (x >> 16)) * 0x7FEB352D) % 2**32
        x = ((x ^ (x >> 15)) * 0x846CA68B) % 2**32
        return x ^ (x >> 16)

    given = [0, 1, 2, 2**31 - 1, -1, -(2**31), 123456789, -987654321]
    found = _mixed(torch.tensor(given, dtype=torch.int32)).tolist()
    assert [number % 2**32 for number in found] == [lowbias32(number % 2**32) for number in given]


def test_the_share_is_dropped_and_the_rest_raised_so_that_the_mean_stays() -> None:
    dropout = Dropout(0.25, layer="a")
    dropout.tokens_BS = numbers()
    found = dropout(torch.full((1, NUM_TOKENS, WIDTH), 3.0))
    assert found.unique().tolist() == [0, 4]
    # 60,000 draws: a standard error of 0.002.
    assert (found == 0).float().mean().item() == pytest.approx(0.25, abs=0.008)


def test_without_tokens_nothing_is_dropped() -> None:
    x = torch.randn(1, 3, 4)
    assert torch.equal(Dropout(0.5, layer="a")(x), x)


def test_masks_of_another_seed_step_problem_layer_token_or_column_have_nothing_in_common() -> None:
    one = kept(numbers())
    assert torch.equal(one, kept(numbers()))
    others = {
        "seed": kept(numbers(seed=2)),
        "step": kept(numbers(step=3)),
        "problem": kept(numbers(problem_id="q")),
        "layer": kept(numbers(), layer="b"),
        "token": one.roll(1, 0),
        "column": one.roll(1, 1),
    }
    for name, other in others.items():
        correlation = torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1].item()
        assert abs(correlation) < 0.02, name  # five standard errors


def test_a_token_has_its_mask_wherever_it_lies() -> None:
    first, second = numbers(problem_id="p", num_tokens=7), numbers(problem_id="q", num_tokens=5)
    packed = torch.cat([second, first], dim=1)
    assert torch.equal(kept(packed)[5:], kept(first))
    assert torch.equal(kept(packed)[:5], kept(second))
    # A layer may see tokens in one line.
    dropout = Dropout(0.25, layer="a")
    dropout.tokens_BS = packed.view(2, 6)
    assert torch.equal(dropout(torch.ones(12, WIDTH)) != 0, kept(packed).bool())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_drops_what_a_cpu_drops() -> None:
    assert torch.equal(kept(numbers().cuda()).cpu(), kept(numbers()))


def test_a_layer_that_sees_some_of_the_tokens_only_is_refused() -> None:
    dropout = Dropout(0.25, layer="experts.0.up_proj")
    dropout.tokens_BS = numbers()
    with pytest.raises(Unfit, match=r"dropout is 0\.25, but experts\.0\.up_proj sees 7 of 200 tokens"):
        dropout(torch.ones(7, WIDTH))


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_drops_what_its_matrices_see_and_nothing_that_the_base_sees(name: str) -> None:
    plain, adapted = (model_of(CONFIGS[name]()) for _ in range(2))
    Adapter(adapted, Lora(kind="lora", rank=4, dropout=0.5), seed=1)
    dropouts = dropouts_of(adapted)
    assert len({one.layer for one in dropouts}) == len(dropouts) > 0
    ids, positions = torch.arange(2, 22)[None], torch.arange(20)[None]

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return adapted.head_logits(adapted.hidden(ids, positions)[0], 1)

    for one in dropouts:
        one.tokens_BS = numbers(num_tokens=20)
    with torch.no_grad():
        assert torch.equal(logits(), plain.head_logits(plain.hidden(ids, positions)[0], 1))  # B is zero
        for weight_name, weight in adapted.named_parameters():
            if "lora_B" in weight_name:
                weight.add_(0.1)
    with_masks = logits()
    for one in dropouts:
        one.tokens_BS = None
    assert not torch.allclose(with_masks, logits(), atol=1e-3)
