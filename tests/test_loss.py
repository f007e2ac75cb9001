"""Properties 1, 2, 3, 5, 6, 7 (in one process) and 11 of the design's list."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import destroy_process_group, init_process_group
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.loss.loss_utils import fixed_cross_entropy

from mlops_tasks.config.learning import SoftWeights
from mlops_tasks.loss import (
    MtpLoss,
    ProductsIntoSums,
    at_tokens,
    head_balance,
    mtp_loss,
    shifted_targets,
    shifted_weights,
    token_losses,
)
from mlops_tasks.memory import PeakBytes
from mlops_tasks.model import MtpModel
from mlops_tasks.scoring.weights import batch_weights

VOCABULARY = 40
# 1, and 0.3 in all for the others, each 0.6 of the one before: 1 + 0.6 + 0.36 = 1.96.
BALANCE = [1, 0.3 / 1.96, 0.18 / 1.96, 0.108 / 1.96]


def tiny(
    *, kind: str = "llama", tied: bool = True, num_heads: int = 4, width: int = 16, vocabulary: int = VOCABULARY
) -> MtpModel:
    """A random model whose heads have left their zero start, so that every gradient counts."""
    torch.manual_seed(1)
    shape: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    if kind != "gpt2":
        shape |= {"intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0}
    if kind == "gemma2":
        shape |= {"final_logit_softcapping": 1.0}
    models: Any = AutoModelForCausalLM
    base = models.from_config(AutoConfig.for_model(kind, **shape, tie_word_embeddings=tied)).eval()
    model = MtpModel(base, num_heads=num_heads, seed=0)
    for parameter in model.heads.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


class Texts(NamedTuple):
    """A batch: by default three rows of one document each, the second with a prompt and the third with padding."""

    input_ids: Tensor
    is_target: Tensor
    document_ids: Tensor
    position_ids: Tensor


def texts(*, rows: int = 3, length: int = 10, vocabulary: int = VOCABULARY) -> Texts:
    input_ids = torch.randint(3, vocabulary, (rows, length), generator=torch.Generator().manual_seed(2))
    is_target = torch.ones(rows, length, dtype=torch.bool)
    document_ids = torch.zeros(rows, length, dtype=torch.long)
    if rows > 1:
        is_target[1, :4] = False
    if rows > 2:
        is_target[2, -3:], document_ids[2, -3:] = False, -1
    return Texts(input_ids, is_target, document_ids, torch.arange(length).expand(rows, length))


def targets_of(batch: Texts, num_heads: int) -> Tensor:
    return shifted_targets(
        batch.input_ids, is_target_BS=batch.is_target, document_ids_BS=batch.document_ids, num_heads=num_heads
    )


def loss_of(
    model: MtpModel,
    batch: Texts,
    *,
    weights_BS: Tensor | None = None,
    num_targets_H: Tensor | None = None,
    chunk_rows: int = 7,
) -> MtpLoss:
    targets = targets_of(batch, model.num_heads)
    hidden = model.hidden(batch.input_ids, batch.position_ids)
    weights = torch.ones(batch.input_ids.shape, dtype=hidden.dtype) if weights_BS is None else weights_BS
    return mtp_loss(
        model,
        hidden,
        targets_HBS=targets,
        weights_HBS=shifted_weights(weights, targets_HBS=targets),
        balance_H=torch.tensor(BALANCE[: model.num_heads], dtype=torch.float64),
        num_targets_H=(targets != -100).sum((1, 2)) if num_targets_H is None else num_targets_H,
        chunk_rows=chunk_rows,
    )


def naive_loss(model: MtpModel, batch: Texts, weights_BS: Tensor) -> Tensor:
    """The sum of the design, with all logits of all heads at once, and targets found token by token."""
    hidden = model.base.base_model(batch.input_ids, position_ids=batch.position_ids, use_cache=False).last_hidden_state
    total = torch.zeros((), dtype=hidden.dtype)
    base: Any = model.base
    output_layer = base.get_output_embeddings().weight
    for k in range(1, model.num_heads + 1):
        shifted = hidden if k == 1 else hidden + model.heads[k - 2](hidden)
        logits = nn.functional.linear(shifted, output_layer)
        if (cap := getattr(model.base.config, "final_logit_softcapping", None)) is not None:
            logits = cap * torch.tanh(logits / cap)
        terms = [
            -weights_BS[b, t + k] * torch.log_softmax(logits[b, t], -1)[batch.input_ids[b, t + k]]
            for b in range(len(batch.input_ids))
            for t in range(batch.input_ids.shape[1] - k)
            if batch.is_target[b, t + k] and batch.document_ids[b, t + k] == batch.document_ids[b, t]
        ]
        total = total + BALANCE[k - 1] * torch.stack(terms).sum() / len(terms)
    return total


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in found.values()), [name for name in found if found[name] is None]
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


def backward(model: nn.Module, *losses: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    for loss in losses:
        loss.backward()  # type: ignore[no-untyped-call]
    return gradients(model)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], *, tolerance: float) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# 1. One head, uniform weights: what transformers itself computes.


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_one_uniform_head_equals_transformers_own_loss_and_gradients_in_float32(kind: str, tied: bool) -> None:
    model = tiny(kind=kind, tied=tied, num_heads=1)
    batch = texts()
    labels = batch.input_ids.masked_fill(~batch.is_target, -100)
    expected = model.base(input_ids=batch.input_ids, labels=labels).loss
    expected_gradients = backward(model, expected)
    found = loss_of(model, batch).loss
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert_same(backward(model, found), expected_gradients, tolerance=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_one_uniform_head_equals_transformers_own_loss_and_gradients_in_float64(kind: str, tied: bool) -> None:
    model = tiny(kind=kind, tied=tied, num_heads=1).double()
    batch = texts()
    labels = batch.input_ids.masked_fill(~batch.is_target, -100)
    # `labels=` would round the logits to float32 first; this is the cross-entropy that it calls after that.
    logits = model.base(input_ids=batch.input_ids).logits[:, :-1]
    expected = fixed_cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
    expected_gradients = backward(model, expected)
    found = loss_of(model, batch).loss
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert_same(backward(model, found), expected_gradients, tolerance=1e-10)


# 2. Chunks change nothing.


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("chunk_rows", [1, 3, 27, 1000])
def test_chunked_equals_naive_in_loss_and_all_gradients(kind: str, tied: bool, chunk_rows: int) -> None:
    model = tiny(kind=kind, tied=tied).double()
    batch = texts()
    weights = torch.rand(batch.input_ids.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 3
    expected = naive_loss(model, batch, weights)
    expected_gradients = backward(model, expected)
    found = loss_of(model, batch, weights_BS=weights, chunk_rows=chunk_rows).loss
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    # Transformers' norms round to float32 on the way, hence not 1e-10 for the trunk's gradients.
    assert_same(backward(model, found), expected_gradients, tolerance=1e-7)


def test_an_output_layer_that_is_used_twice_in_a_chunk_gets_both_gradients() -> None:
    model, batch = tiny(tied=False).double(), texts()
    output_layer = model.base.get_output_embeddings()
    plain = output_layer.forward
    output_layer.forward = lambda hidden: plain(hidden) + 0.5 * plain(hidden * hidden)
    weights = torch.ones(batch.input_ids.shape, dtype=torch.float64)
    found = backward(model, loss_of(model, batch, weights_BS=weights).loss)
    weight = output_layer.weight.detach().clone().requires_grad_()
    hidden, targets = model.hidden(batch.input_ids, batch.position_ids).detach().flatten(0, 1), targets_of(batch, 4)
    total = torch.zeros((), dtype=torch.float64)
    for k in range(4):
        moved = hidden if k == 0 else hidden + model.heads[k - 1](hidden)
        logits = moved @ weight.T + 0.5 * (moved * moved) @ weight.T
        nats = nn.functional.cross_entropy(logits, targets[k].flatten(), ignore_index=-100)
        total = total + BALANCE[k] * nats
    total.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found["base.lm_head.weight"], weight.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_the_output_layers_product_goes_into_its_sum_in_float32_and_not_under_autocast(kind: str) -> None:
    model, hidden = tiny(kind=kind), torch.randn(5, 16)
    output_layer: Any = model.base.get_output_embeddings()
    products = ProductsIntoSums([(output_layer.weight, torch.zeros_like(output_layer.weight))])
    with products:
        model.head_logits(hidden, 1)
    assert products.used == {id(output_layer.weight)}
    with torch.autocast("cpu", torch.bfloat16), products:
        model.head_logits(hidden, 1)
    assert products.used == set()


def test_the_loss_passes_an_outer_factor_on() -> None:
    model = tiny()
    once = backward(model, loss_of(model, texts()).loss)
    twice = backward(model, loss_of(model, texts()).loss * 2)
    assert_same(twice, {name: 2 * gradient for name, gradient in once.items()}, tolerance=1e-6)


# 3. Weights.


def test_strength_zero_is_uniform_bit_for_bit() -> None:
    model, batch = tiny(), texts()
    scores = torch.randn(batch.input_ids.shape)
    weights = batch_weights(
        scores,
        is_target_BS=batch.is_target,
        document_ids_BS=batch.document_ids,
        weighting=SoftWeights(kind="soft", strength=0),
    )
    uniform, weighted = loss_of(model, batch), loss_of(model, batch, weights_BS=weights)
    assert torch.equal(weighted.loss, uniform.loss)
    expected = backward(model, uniform.loss)
    found = backward(model, weighted.loss)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_tokens_contribution_is_proportional_to_its_weight() -> None:
    model, batch = tiny().double(), texts()
    gone, once, twice = (torch.ones(batch.input_ids.shape, dtype=torch.float64) for _ in range(3))
    gone[0, 6], twice[0, 6] = 0, 2
    losses = [loss_of(model, batch, weights_BS=weights).loss for weights in (gone, once, twice)]
    torch.testing.assert_close(losses[2] - losses[1], losses[1] - losses[0], rtol=1e-9, atol=1e-12)
    assert losses[1] - losses[0] > 1e-3
    found = [backward(model, loss) for loss in losses]
    for name in found[0]:
        torch.testing.assert_close(
            found[2][name] - found[1][name], found[1][name] - found[0][name], rtol=1e-5, atol=1e-8
        )


def test_a_zero_weight_removes_the_token() -> None:
    model, batch = tiny().double(), texts()
    weights = torch.ones(batch.input_ids.shape, dtype=torch.float64)
    weights[1, 9] = 0
    unlearnt = batch._replace(is_target=batch.is_target.clone())
    unlearnt.is_target[1, 9] = False
    counts = (targets_of(batch, 4) != -100).sum((1, 2))
    found = loss_of(model, batch, weights_BS=weights)
    expected = loss_of(model, unlearnt, num_targets_H=counts)
    torch.testing.assert_close(found.loss, expected.loss)
    assert_same(backward(model, found.loss), backward(model, expected.loss), tolerance=1e-9)


def test_head_sums_are_unweighted_and_carry_no_gradient() -> None:
    model, batch = tiny(), texts()
    plain = loss_of(model, batch)
    weighted = loss_of(model, batch, weights_BS=torch.rand(batch.input_ids.shape))
    assert torch.equal(plain.head_nats_H, weighted.head_nats_H)
    assert not plain.head_nats_H.requires_grad
    counts = (targets_of(batch, 4) != -100).sum((1, 2))
    torch.testing.assert_close((head_balance("decaying", 4) * plain.head_nats_H / counts).sum(), plain.loss.detach())


def test_no_gradient_flows_through_the_weights() -> None:
    model, batch = tiny(), texts()
    weights = torch.rand(batch.input_ids.shape).requires_grad_()
    loss_of(model, batch, weights_BS=weights).loss.backward()  # type: ignore[no-untyped-call]
    assert weights.grad is None


def test_head_balance_of_both_kinds() -> None:
    assert head_balance("equal", 4).tolist() == [0.25] * 4
    decaying = head_balance("decaying", 3)
    torch.testing.assert_close(decaying, torch.tensor([1, 0.3 / 1.6, 0.18 / 1.6]))
    assert head_balance("decaying", 1).tolist() == [1]


# 5. Alignment.


def test_head_k_predicts_the_token_k_ahead() -> None:
    ids = torch.arange(6)[None]
    targets = shifted_targets(
        ids, is_target_BS=torch.ones_like(ids).bool(), document_ids_BS=torch.zeros_like(ids), num_heads=3
    )
    assert targets[:, 0].tolist() == [
        [1, 2, 3, 4, 5, -100],
        [2, 3, 4, 5, -100, -100],
        [3, 4, 5, -100, -100, -100],
    ]


def test_prompts_and_padding_are_no_targets() -> None:
    targets = shifted_targets(
        torch.arange(6)[None],
        is_target_BS=torch.tensor([[0, 0, 1, 1, 0, 0]]).bool(),
        document_ids_BS=torch.tensor([[0, 0, 0, 0, -1, -1]]),
        num_heads=2,
    )
    assert targets[:, 0].tolist() == [[-100, 2, 3, -100, -100, -100], [2, 3, -100, -100, -100, -100]]


def test_targets_do_not_cross_document_boundary_for_any_head() -> None:
    document_ids = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2]])
    targets = shifted_targets(
        torch.arange(8)[None], is_target_BS=torch.ones(1, 8).bool(), document_ids_BS=document_ids, num_heads=4
    )
    assert targets[:, 0].tolist() == [
        [1, 2, -100, 4, -100, 6, 7, -100],
        [2, -100, -100, -100, -100, 7, -100, -100],
        [-100] * 8,
        [-100] * 8,
    ]


def test_padding_marked_as_target_is_none() -> None:
    padding = torch.full((1, 4), -1)
    targets = shifted_targets(
        torch.arange(4)[None], is_target_BS=torch.ones(1, 4).bool(), document_ids_BS=padding, num_heads=2
    )
    assert (targets == -100).all()


def test_more_heads_than_tokens_have_no_targets() -> None:
    ids = torch.arange(2)[None]
    targets = shifted_targets(
        ids, is_target_BS=torch.ones_like(ids).bool(), document_ids_BS=torch.zeros_like(ids), num_heads=4
    )
    assert targets[:, 0].tolist() == [[1, -100], [-100, -100], [-100, -100], [-100, -100]]
    assert shifted_weights(torch.ones(1, 2), targets_HBS=targets)[:, 0].tolist() == [[1, 0], [0, 0], [0, 0], [0, 0]]


def test_all_heads_take_a_tokens_weight_from_the_token() -> None:
    ids = torch.arange(4)[None]
    targets = shifted_targets(
        ids, is_target_BS=torch.ones_like(ids).bool(), document_ids_BS=torch.zeros_like(ids), num_heads=2
    )
    weights = shifted_weights(torch.tensor([[9.0, 5, 6, 7]]), targets_HBS=targets)
    assert weights[:, 0].tolist() == [[5, 6, 7, 0], [6, 7, 0, 0]]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("chunk_rows", [1, 4, 100])
def test_token_losses_equal_an_independent_transformers_loss_per_token(kind: str, chunk_rows: int) -> None:
    model, batch = tiny(kind=kind), texts()
    targets = targets_of(batch, 1)[0]
    hidden = model.hidden(batch.input_ids, batch.position_ids)
    found = at_tokens(token_losses(model, hidden, targets_BS=targets, chunk_rows=chunk_rows))
    assert not found.requires_grad
    for b in range(3):
        for j in range(10):
            # The loss of one token alone: all other labels are ignored.
            labels = torch.full((1, 10), -100)
            labels[0, j] = batch.input_ids[b, j]
            alone = model.base(input_ids=batch.input_ids[b : b + 1], labels=labels).loss
            expected = alone if batch.is_target[b, j] and j > 0 else torch.tensor(0.0)
            torch.testing.assert_close(found[b, j], expected, rtol=1e-5, atol=1e-5)


# 6. Packing.


def test_packed_documents_equal_separate_sequences_in_loss_weights_and_gradients() -> None:
    model = tiny(tied=False).double()
    lengths = [5, 7, 4]
    ids = torch.randint(3, VOCABULARY, (sum(lengths),), generator=torch.Generator().manual_seed(4))
    scores = torch.randn(sum(lengths), generator=torch.Generator().manual_seed(4))
    is_target = torch.cat([torch.arange(length) > 1 for length in lengths])
    document = torch.arange(3).repeat_interleave(torch.tensor(lengths))
    position = torch.cat([torch.arange(length) for length in lengths])
    packed = Texts(*(each[None] for each in (ids, is_target, document, position)))
    counts = (targets_of(packed, 4) != -100).sum((1, 2))

    def weighted(batch: Texts, scores_BS: Tensor) -> MtpLoss:
        weights = batch_weights(
            scores_BS,
            is_target_BS=batch.is_target,
            document_ids_BS=batch.document_ids,
            weighting=SoftWeights(kind="soft"),
        )
        return loss_of(model, batch, weights_BS=weights.double(), num_targets_H=counts, chunk_rows=3)

    together = weighted(packed, scores[None])
    together_gradients = backward(model, together.loss)
    parts = [torch.arange(sum(lengths))[document == d] for d in range(3)]
    apart = [weighted(Texts(*(each[:, part] for each in packed)), scores[None, part]) for part in parts]
    torch.testing.assert_close(together.loss, torch.stack([part.loss for part in apart]).sum(), rtol=1e-6, atol=1e-7)
    assert_same(backward(model, *(part.loss for part in apart)), together_gradients, tolerance=1e-6)


def test_the_side_of_padding_is_irrelevant() -> None:
    model = tiny().double()
    ids = torch.randint(3, VOCABULARY, (6,), generator=torch.Generator().manual_seed(6))
    real, padding = torch.ones(6, dtype=torch.bool), torch.zeros(4, dtype=torch.long)

    def padded(*, left: bool) -> Texts:
        def joined(values: Tensor, fill: Tensor) -> Tensor:
            return torch.cat([fill, values] if left else [values, fill])[None]

        return Texts(
            joined(ids, padding),
            joined(real, padding.bool()),
            joined(padding.new_zeros(6), padding - 1),
            joined(torch.arange(6), torch.arange(4)),
        )

    right, left = loss_of(model, padded(left=False)), loss_of(model, padded(left=True))
    torch.testing.assert_close(right.loss, left.loss, rtol=1e-7, atol=1e-8)
    assert_same(backward(model, right.loss), backward(model, left.loss), tolerance=1e-7)


# 7. Micro-batches, and ranks as far as one process can show it (two are the launcher's tests).


@pytest.mark.parametrize("rows", [8, 4, 1])
def test_micro_batches_add_up_to_the_whole_batch(rows: int) -> None:
    model, batch = tiny().double(), texts(rows=8)
    counts = (targets_of(batch, 4) != -100).sum((1, 2))
    whole = loss_of(model, batch)
    expected = backward(model, whole.loss)
    micro = [Texts(*(each[start : start + rows] for each in batch)) for start in range(0, 8, rows)]
    parts = [loss_of(model, each, num_targets_H=counts).loss for each in micro]
    torch.testing.assert_close(torch.stack(parts).sum(), whole.loss, rtol=1e-9, atol=1e-10)
    assert_same(backward(model, *parts), expected, tolerance=1e-7)


def without_targets() -> Texts:
    batch = texts()
    return batch._replace(is_target=torch.zeros_like(batch.is_target))


@pytest.mark.parametrize("tied", [True, False])
def test_a_batch_without_targets_has_zero_loss_and_zero_gradients_for_all(tied: bool) -> None:
    model = tiny(tied=tied)
    loss, head_nats = loss_of(model, without_targets(), num_targets_H=torch.tensor([5, 4, 3, 2]))
    assert loss.item() == 0
    assert head_nats.tolist() == [0] * 4
    assert all((gradient == 0).all() for gradient in backward(model, loss).values())


@contextmanager
def process_group_of_one(folder: Path) -> Iterator[None]:
    init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=0, world_size=1)
    try:
        yield
    finally:
        destroy_process_group()


class WithLoss(torch.nn.Module):
    """Model and loss as one module, as a training wraps them."""

    def __init__(self, model: MtpModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Texts) -> Tensor:
        return loss_of(self.model, batch, num_targets_H=(targets_of(texts(), 4) != -100).sum((1, 2))).loss


@pytest.mark.parametrize("tied", [True, False])
def test_each_parameter_is_ready_exactly_once_in_distributed_data_parallel(tied: bool, tmp_path: Path) -> None:
    plain = tiny(tied=tied)
    expected = backward(plain, loss_of(plain, texts()).loss)
    with process_group_of_one(tmp_path):
        # Without `find_unused_parameters`: twice ready raises at once, never ready raises at the next forward.
        model = tiny(tied=tied)
        wrapped = DistributedDataParallel(WithLoss(model))
        for batch in (texts(), without_targets(), texts()):
            model.zero_grad()
            wrapped(batch).backward()
    assert_same(gradients(model), expected, tolerance=1e-6)


# Modes: validation, frozen parts, bfloat16.


def test_validation_under_no_grad_gives_the_same_numbers() -> None:
    model, batch = tiny(), texts()
    expected = loss_of(model, batch)
    with torch.no_grad():
        found = loss_of(model, batch)
    assert not found.loss.requires_grad
    assert torch.equal(found.loss, expected.loss.detach())
    assert torch.equal(found.head_nats_H, expected.head_nats_H)


def test_validation_makes_no_gradients() -> None:
    with torch.no_grad():
        without = peak_bytes(num_heads=4, chunk_rows=16)
    # The output layer's gradient alone is 4096 · 16 numbers.
    assert without < peak_bytes(num_heads=4, chunk_rows=16) - 4 * 4096 * 16


def test_a_wholly_frozen_model_has_a_loss_without_gradient() -> None:
    model = tiny().requires_grad_(False)
    assert not loss_of(model, texts()).loss.requires_grad


def test_with_a_frozen_base_only_the_heads_learn() -> None:
    model = tiny()
    everything = backward(model, loss_of(model, texts()).loss)
    model.zero_grad()
    model.base.requires_grad_(False)
    loss_of(model, texts()).loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None for parameter in model.base.parameters())
    heads = {f"heads.{name}": gradient for name, gradient in gradients(model.heads).items()}
    assert_same(heads, {name: everything[name] for name in heads}, tolerance=1e-6)


def test_with_frozen_logit_parameters_the_trunk_still_learns() -> None:
    model = tiny(tied=False)
    everything = backward(model, loss_of(model, texts()).loss)
    model.zero_grad()
    for parameter in model.logit_parameters():
        parameter.requires_grad_(False)
    loss_of(model, texts()).loss.backward()  # type: ignore[no-untyped-call]
    trunk = {f"base.model.{name}": gradient for name, gradient in gradients(model.base.base_model).items()}
    assert_same(trunk, {name: everything[name] for name in trunk}, tolerance=1e-6)


def test_bfloat16_autocast_is_near_float32_after_scores_were_taken_without_gradient() -> None:
    model, batch = tiny(tied=False), texts()
    exact = loss_of(model, batch)
    expected = backward(model, exact.loss)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        # As in training with dynamic scores: within one autocast, the output layer is used first without gradient.
        hidden = model.hidden(batch.input_ids, batch.position_ids)
        token_losses(model, hidden, targets_BS=targets_of(batch, 1)[0], chunk_rows=4)
        targets = targets_of(batch, 4)
        found = mtp_loss(
            model,
            hidden,
            targets_HBS=targets,
            weights_HBS=shifted_weights(torch.ones(batch.input_ids.shape), targets_HBS=targets),
            balance_H=head_balance("decaying", 4),
            num_targets_H=(targets != -100).sum((1, 2)),
            chunk_rows=4,
        )
    assert found.loss.dtype == found.head_nats_H.dtype == torch.float32
    torch.testing.assert_close(found.loss, exact.loss, rtol=0.01, atol=0.01)
    found.loss.backward()  # type: ignore[no-untyped-call]
    for name, gradient in gradients(model).items():
        assert gradient.dtype == torch.float32
        assert (gradient - expected[name]).norm() < 0.05 * expected[name].norm() + 1e-6, name


def test_a_loss_can_be_differentiated_only_once() -> None:
    model = tiny()
    loss = loss_of(model, texts()).loss
    loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    with pytest.raises(AssertionError, match="differentiated once"):
        loss.backward()  # type: ignore[no-untyped-call]


# 11. Memory, counted in bytes of live tensors: exact and the same on every machine.


def peak_bytes(*, num_heads: int, chunk_rows: int, length: int = 256, is_naive: bool = False) -> int:
    vocabulary = 4096
    model = tiny(num_heads=num_heads, vocabulary=vocabulary)
    batch = texts(rows=1, length=length, vocabulary=vocabulary)
    targets = targets_of(batch, num_heads)
    weights = shifted_weights(torch.ones(1, length), targets_HBS=targets)
    hidden = torch.randn(1, length, 16, requires_grad=True)
    there = [each.untyped_storage() for each in (*model.parameters(), hidden)]
    counted = PeakBytes(*there)
    with counted:
        if is_naive:
            heads = [model.head_logits(hidden[0], head) for head in range(1, num_heads + 1)]
            nats = nn.functional.cross_entropy(torch.stack(heads).flatten(0, 1), targets.flatten(), reduction="none")
            (nats * weights.flatten()).sum().backward()  # type: ignore[no-untyped-call]
        else:
            loss = mtp_loss(
                model,
                hidden,
                targets_HBS=targets,
                weights_HBS=weights,
                balance_H=head_balance("equal", num_heads),
                num_targets_H=(targets != -100).sum((1, 2)),
                chunk_rows=chunk_rows,
            ).loss
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
    return counted.peak


def test_peak_memory_does_not_grow_with_the_number_of_heads() -> None:
    assert peak_bytes(num_heads=8, chunk_rows=64) == pytest.approx(peak_bytes(num_heads=1, chunk_rows=64), rel=0.1)


def test_peak_memory_grows_with_the_chunk() -> None:
    output_layer, logits = 4096 * 16 * 4, 4096 * 4
    for chunk_rows in (16, 32, 64, 128):
        # The output layer's gradient, and the logits, in whose place their gradient is made. What is beside them has the width of 16 and not the
        # vocabulary's: hidden states, small heads, indices. They took 41 KB and 0.7 KB a row; logits a second time would be 16 KB a row.
        beside = peak_bytes(num_heads=4, chunk_rows=chunk_rows) - output_layer - logits * chunk_rows
        assert 0 < beside < 50_000 + 1_000 * chunk_rows


def test_peak_memory_does_not_grow_with_sequence_times_vocabulary() -> None:
    short, long = (peak_bytes(num_heads=4, chunk_rows=32, length=length) for length in (256, 1024))
    assert long - short < 0.02 * (1024 - 256) * 4096 * 4
    assert peak_bytes(num_heads=4, chunk_rows=32, is_naive=True) > 20 * short
