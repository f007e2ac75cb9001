"""Properties 4 and 8, and the weights' part of 3 and 6, of the design's list."""

from __future__ import annotations

import itertools
import math
import time

import pytest
import torch
from torch import Tensor

from mlops_tasks.config.learning import SelectWeights, SoftWeights
from mlops_tasks.scoring.weights import batch_weights, document_weights, spread, spread_sums

SOFT = SoftWeights(kind="soft")
SELECT = SelectWeights(kind="select")


def normal(size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(scores: list[float], weighting: SoftWeights) -> list[float]:
    """The formula of the design, in plain Python, with the factor found by a scan of the clip's breakpoints."""
    n = len(scores)
    mean = sum(scores) / n
    deviation = math.sqrt(sum((s - mean) ** 2 for s in scores) / n)
    first = [math.exp((s - mean) / (deviation + 1e-6) / weighting.temperature) for s in scores]
    top = sorted(range(n), key=lambda i: (-scores[i], i))[: math.ceil(weighting.top_share * n)]
    first = [w * weighting.boost if i in top else w for i, w in enumerate(first)]
    low, high = weighting.min_weight, weighting.max_weight
    breaks = sorted([low / w for w in first] + [high / w for w in first])
    for left, right in itertools.pairwise(breaks):
        middle = (left + right) / 2
        free = [w for w in first if low < middle * w < high]
        fixed = sum(low if middle * w <= low else high for w in first if not low < middle * w < high)
        c = (n - fixed) / sum(free) if free else 0.0
        if left <= c <= right:
            return [min(max(c * w, low), high) for w in first]
    raise AssertionError("no factor")


@pytest.mark.parametrize("size", [5, 40, 333])
def test_soft_weights_equal_the_formula_worked_in_plain_python(size: int) -> None:
    scores = normal(size)
    expected = torch.tensor(by_hand(scores.tolist(), SOFT), dtype=torch.float64)
    torch.testing.assert_close(document_weights(scores, SOFT), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "scores",
    [
        normal(1),
        normal(2),
        normal(1000),
        torch.cat([normal(8191), torch.tensor([1e4], dtype=torch.float64)]),
        normal(50) * 1e25,
        torch.tensor([math.inf, 1.0, 2.0, -math.inf, 3e38]),
        torch.tensor([math.inf, math.inf, 0.0]),
        torch.tensor([1e308, -1e308, 0.0], dtype=torch.float64),
        torch.zeros(9),
        torch.arange(7).float() * 1e-30,
    ],
    ids=["one", "two", "many", "outlier", "huge", "infinite", "two-infinite", "overflowing", "constant", "tiny"],
)
@pytest.mark.parametrize(
    "weighting",
    [
        SOFT,
        SoftWeights(kind="soft", min_weight=0, max_weight=8, temperature=0.1),
        SoftWeights(kind="soft", min_weight=1),
        SoftWeights(kind="soft", max_weight=1),
        SoftWeights(kind="soft", strength=0.3, target_ess=0.9),
    ],
    ids=["default", "no-floor", "floor-one", "ceiling-one", "mixed"],
)
def test_soft_weights_have_mean_one_within_their_bounds(scores: Tensor, weighting: SoftWeights) -> None:
    weights = document_weights(scores, weighting)
    assert torch.isfinite(weights).all()
    assert weights.mean().item() == pytest.approx(1, abs=1e-6)
    assert weights.min() >= weighting.min_weight - 1e-12
    assert weights.max() <= weighting.max_weight + 1e-12


def test_a_plain_clip_would_break_the_mean_and_the_projection_does_not() -> None:
    scores = normal(1000)
    plain = (1000 * torch.softmax((scores - scores.mean()) / scores.std() / 0.7, 0)).clamp(0.05, 3)
    assert plain.mean() < 0.8
    weights = document_weights(scores, SoftWeights(kind="soft", boost=1))
    assert weights.mean().item() == pytest.approx(1, abs=1e-9)
    assert effective_sample_size(weights) == pytest.approx(0.50, abs=0.03)


def effective_sample_size(weights: Tensor) -> float:
    return spread(spread_sums(weights), len(weights))[0]


def test_soft_weights_rise_with_the_score() -> None:
    scores = normal(300)
    in_order = document_weights(scores, SOFT)[scores.argsort()]
    assert (in_order.diff() >= 0).all()
    assert in_order[-1] > in_order[0]


@pytest.mark.parametrize("weighting", [SOFT, SELECT], ids=["soft", "select"])
def test_weights_do_not_change_with_shift_or_scale_of_the_score(weighting: SoftWeights | SelectWeights) -> None:
    scores = normal(200)
    expected = document_weights(scores, weighting)
    torch.testing.assert_close(document_weights(scores + 7, weighting), expected, rtol=0, atol=1e-9)
    # 1e-6 beside the deviation is all that scaling changes.
    torch.testing.assert_close(document_weights(scores * 1000, weighting), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("weighting", [SOFT, SELECT, SoftWeights(kind="soft", target_ess=0.5)])
def test_equal_scores_weigh_one_in_every_mode(weighting: SoftWeights | SelectWeights) -> None:
    for scores in (torch.zeros(7), torch.full((11,), 0.1), torch.full((1,), -5e37)):
        assert document_weights(scores, weighting).tolist() == [1.0] * len(scores)


def test_strength_zero_is_exactly_one_everywhere() -> None:
    for weighting in (SoftWeights(kind="soft", strength=0), SelectWeights(kind="select", strength=0)):
        assert document_weights(normal(100), weighting).tolist() == [1.0] * 100


def test_strength_mixes_with_one() -> None:
    full = document_weights(normal(100), SOFT)
    half = document_weights(normal(100), SoftWeights(kind="soft", strength=0.5))
    torch.testing.assert_close(half, 0.5 + 0.5 * full)


def test_no_gradient_flows_through_weights() -> None:
    scores = normal(20).requires_grad_()
    assert not document_weights(scores, SOFT).requires_grad
    batch = batch_weights(
        scores[None],
        is_target_BS=torch.ones(1, 20, dtype=torch.bool),
        document_ids_BS=torch.zeros(1, 20, dtype=torch.long),
        weighting=SOFT,
    )
    assert not batch.requires_grad


@pytest.mark.parametrize(
    ("size", "share", "kept"), [(10, 0.6, 6), (11, 0.6, 7), (1, 0.6, 1), (100, 0.07, 7), (8190, 0.7, 5733), (7, 1, 7)]
)
def test_select_keeps_exactly_the_share_rounded_up(size: int, share: float, kept: int) -> None:
    weights = document_weights(normal(size), SelectWeights(kind="select", top_share=share))
    assert (weights > 0).sum() == kept
    assert weights.max().item() == pytest.approx(size / kept, abs=1e-12)
    assert weights.mean().item() == pytest.approx(1, abs=1e-12)


def test_select_of_everything_is_uniform() -> None:
    assert document_weights(normal(13), SelectWeights(kind="select", top_share=1)).tolist() == [1.0] * 13


def test_select_keeps_the_first_of_equal_scores() -> None:
    weights = document_weights(torch.tensor([1.0, 2, 1, 1, 0]), SelectWeights(kind="select", top_share=0.4))
    assert weights.tolist() == [2.5, 2.5, 0, 0, 0]


def test_target_ess_lowers_the_strength_of_uneven_documents_only() -> None:
    scores = torch.cat([normal(50), torch.tensor([30.0, 40.0], dtype=torch.float64)])
    assert effective_sample_size(document_weights(scores, SOFT)) < 0.9
    backed_off = document_weights(scores, SoftWeights(kind="soft", target_ess=0.9))
    assert effective_sample_size(backed_off) == pytest.approx(0.9, abs=1e-9)
    already_even = SoftWeights(kind="soft", temperature=100, boost=1)
    eased = already_even.model_copy(update={"target_ess": 0.9})
    torch.testing.assert_close(document_weights(scores, eased), document_weights(scores, already_even))


def test_target_ess_by_hand() -> None:
    # Weights 0 and 2 have variance 1; 1 / (1 + λ²) = 0.8 for λ = 1/2, and a λ below that stays as it is.
    sharp = SoftWeights(kind="soft", temperature=0.01, min_weight=0)
    scores = torch.tensor([0.0, 1.0])
    assert document_weights(scores, sharp).tolist() == pytest.approx([0, 2])
    for strength, weights in ((1.0, [0.5, 1.5]), (0.25, [0.75, 1.25])):
        weighting = sharp.model_copy(update={"target_ess": 0.8, "strength": strength})
        assert document_weights(scores, weighting).tolist() == pytest.approx(weights)


def test_effective_sample_size_and_entropy_of_known_weights() -> None:
    assert spread(spread_sums(torch.ones(5)), 5) == pytest.approx((1, 1))
    # Half of the tokens count, and the entropy is log 2 of log 4.
    assert spread(spread_sums(torch.tensor([2.0, 2, 0, 0])), 4) == pytest.approx((0.5, 0.5))
    assert spread(spread_sums(torch.tensor([3.0])), 1) == (1, 1)


def test_sums_of_the_spread_add_up_over_parts_of_the_tokens() -> None:
    weights = torch.tensor([2.0, 1.5, 0.5, 0])
    assert spread(spread_sums(weights[:1]) + spread_sums(weights[1:]), 4) == pytest.approx(
        spread(spread_sums(weights), 4)
    )


@pytest.mark.parametrize("weighting", [SOFT, SELECT, SoftWeights(kind="soft", target_ess=0.8)])
def test_a_packed_batch_weighs_each_document_as_if_it_were_alone(weighting: SoftWeights | SelectWeights) -> None:
    # Row 0: document 0 in columns 0-5, document 1 in 6-8, padding; row 1: document 0, whose prompt is 4 columns long.
    document_ids = torch.tensor([[0, 0, 0, 0, 0, 0, 1, 1, 1, -1], [0] * 10])
    is_target = torch.tensor([[0, 0, 1, 1, 1, 1, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]]).bool()
    scores = normal(20).float().view(2, 10)
    weights = batch_weights(scores, is_target_BS=is_target, document_ids_BS=document_ids, weighting=weighting)
    assert weights.dtype == torch.float32
    assert (weights[~is_target] == 0).all()
    for row, columns in [(0, [2, 3, 4, 5]), (0, [7, 8]), (1, [4, 5, 6, 7, 8, 9])]:
        alone = document_weights(scores[row, columns], weighting).float()
        torch.testing.assert_close(weights[row, columns], alone, rtol=0, atol=1e-7)


def test_a_batch_without_targets_has_no_weights() -> None:
    nothing = torch.zeros(2, 5, dtype=torch.bool)
    weights = batch_weights(
        torch.randn(2, 5), is_target_BS=nothing, document_ids_BS=torch.zeros(2, 5, dtype=torch.long), weighting=SOFT
    )
    assert weights.tolist() == [[0.0] * 5] * 2


def test_weights_of_a_step_take_milliseconds() -> None:
    documents = torch.arange(8).repeat_interleave(64).expand(8, 512)
    scores = normal(8 * 512).float().view(8, 512)
    is_target = torch.ones(8, 512, dtype=torch.bool)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        batch_weights(scores, is_target_BS=is_target, document_ids_BS=documents, weighting=SOFT)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.1
