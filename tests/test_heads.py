"""Heads that are whole layers: they start as head 1, learn as the sum of all says, in memory that does not grow, and are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_loss import (
    BALANCE,
    Texts,
    assert_same,
    backward,
    process_group_of_one,
    targets_of,
    texts,
    without_targets,
)
from test_model import ARCHITECTURES
from test_model import tiny as tiny_base
from tiny_models import CONFIGS, model_of, requests_of
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, LlamaConfig

from mlops_tasks.calibration import bin_sums
from mlops_tasks.errors import UserError
from mlops_tasks.evaluation.decoding import Sampling, decode
from mlops_tasks.evaluation.speculation import Speculation
from mlops_tasks.loss import MtpLoss, head_balance, mtp_loss, shifted_targets, shifted_weights
from mlops_tasks.memory import PeakBytes
from mlops_tasks.model import HEADS_FILE, MtpModel


@pytest.fixture(
    params=[(*each, tied) for each in ARCHITECTURES for tied in (True, False)], ids=lambda p: f"{p[0]}-{p[2]}"
)
def base(request: pytest.FixtureRequest) -> Any:
    kind, shape, tied = request.param
    return tiny_base(kind, shape, tied=tied)


def layered(base: Any, num_heads: int = 4) -> MtpModel:
    """Heads that have left their start, each in another direction, so that every gradient counts."""
    model = MtpModel(base, num_heads=num_heads, seed=0, head_kind="layer")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.heads.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def loss_of(model: MtpModel, batch: Texts, weights_BS: Tensor, *, chunk_rows: int = 7) -> MtpLoss:
    targets = targets_of(batch, model.num_heads)
    states = model.states(batch.input_ids, batch.position_ids)
    return mtp_loss(
        model,
        states.hidden_BSD,
        call=states.call,
        targets_HBS=targets,
        weights_HBS=shifted_weights(weights_BS, targets_HBS=targets),
        balance_H=torch.tensor(BALANCE[: model.num_heads], dtype=torch.float64),
        num_targets_H=(targets != -100).sum((1, 2)),
        chunk_rows=chunk_rows,
    )


def all_logits(model: MtpModel, batch: Texts) -> list[Tensor]:
    """Of each head, by the plain base with its last layer replaced by the head's."""
    layers = model.layers()
    holder = next(
        one for one in model.base.base_model.modules() if isinstance(one, nn.ModuleList) and one[-1] is layers[-1]
    )
    found = []
    for layer in (layers[-1], *model.heads):
        holder[-1] = layer
        hidden = model.base.base_model(
            batch.input_ids, position_ids=batch.position_ids, use_cache=False
        ).last_hidden_state
        logits = nn.functional.linear(hidden, model.base.get_output_embeddings().weight)
        cap = getattr(model.base.config, "final_logit_softcapping", None)
        found.append(logits if cap is None else cap * torch.tanh(logits / cap))
    holder[-1] = layers[-1]
    return found


def naive_loss(model: MtpModel, batch: Texts, weights_BS: Tensor) -> Tensor:
    targets = targets_of(batch, model.num_heads)
    weights = shifted_weights(weights_BS, targets_HBS=targets)
    return torch.stack(
        [
            BALANCE[k] * (weights[k] * nn.functional.cross_entropy(one.transpose(1, 2), targets[k], reduction="none")).sum()
            / (targets[k] != -100).sum()
            for k, one in enumerate(all_logits(model, batch))
        ]
    ).sum()  # fmt: skip


def packed() -> Texts:
    """A row of two documents beside a row of one."""
    plain = texts(rows=2)
    documents, positions = plain.document_ids.clone(), plain.position_ids.clone()
    documents[0, 6:], positions[0, 6:] = 1, torch.arange(4)
    return plain._replace(document_ids=documents, position_ids=positions)


def weights_for(batch: Texts) -> Tensor:
    return torch.rand(batch.input_ids.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 3


def test_heads_start_exactly_as_the_first(base: Any, tmp_path: Path) -> None:
    base.save_pretrained(tmp_path)
    model = MtpModel.load(tmp_path, num_heads=3, seed=0, head_kind="layer")
    batch = packed()
    states = model.states(batch.input_ids, batch.position_ids)
    assert states.call is not None
    for head in (2, 3):
        assert torch.equal(model.layer_hidden(states.call, head), states.hidden_BSD)


@pytest.mark.parametrize("chunk_rows", [3, 1000])
def test_chunked_equals_naive_in_loss_and_all_gradients(base: Any, chunk_rows: int) -> None:
    model, batch = layered(base.double()), packed()
    expected = naive_loss(model, batch, weights_for(batch))
    expected_gradients = backward(model, expected)
    found = loss_of(model, batch, weights_for(batch), chunk_rows=chunk_rows).loss
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
    # Norms round to float32 on the way.
    assert_same(backward(model, found), expected_gradients, tolerance=1e-6)


def test_recomputed_activations_change_no_gradient(base: Any) -> None:
    model, batch = layered(base), packed()
    expected = backward(model, loss_of(model, batch, weights_for(batch)).loss)
    model.recompute_activations()
    found = backward(model, loss_of(model, batch, weights_for(batch)).loss)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_only_the_heads_learn_beside_a_frozen_base(base: Any) -> None:
    model, batch = layered(base), packed()
    expected = backward(model, loss_of(model, batch, weights_for(batch)).loss)
    model.zero_grad()
    model.base.requires_grad_(False)
    loss_of(model, batch, weights_for(batch)).loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        if name.startswith("base."):
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-6)


def test_each_parameter_is_ready_exactly_once_in_distributed_data_parallel(base: Any, tmp_path: Path) -> None:
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = layered(base)

        def forward(self, batch: Texts) -> Tensor:
            return loss_of(self.model, batch, weights_for(batch)).loss

    module = Loss()
    expected = backward(module, module(packed()))
    with process_group_of_one(tmp_path):
        wrapped = DistributedDataParallel(module, forward_sync_buffers=False)
        for batch in (packed(), without_targets(), packed()):
            module.zero_grad()
            wrapped(batch).backward()
    assert_same({name: gradient_of(one) for name, one in module.named_parameters()}, expected, tolerance=1e-6)


def gradient_of(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def peak_bytes(num_heads: int, *, keeps_all: bool = False) -> int:
    """Of the loss and its backward to the trunk, without the gradients of the heads' own parameters."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
    }
    models: Any = AutoModelForCausalLM
    model = MtpModel(
        models.from_config(LlamaConfig(vocab_size=2048, **shape)).eval(), num_heads=num_heads, seed=0, head_kind="layer"
    )
    ids, positions = torch.randint(3, 2048, (1, 1024)), torch.arange(1024)[None]
    targets = shifted_targets(
        ids, is_target_BS=torch.ones_like(ids).bool(), document_ids_BS=torch.zeros_like(ids), num_heads=num_heads
    )
    with torch.no_grad():
        states = model.states(ids, positions)
    assert states.call is not None
    call = states.call._replace(hidden_BSD=states.call.hidden_BSD.detach().requires_grad_())
    hidden = states.hidden_BSD.detach().requires_grad_()
    weights = shifted_weights(torch.ones(ids.shape), targets_HBS=targets)
    given = [call.hidden_BSD, hidden, weights, targets, *model.parameters(), *model.buffers()]
    counted = PeakBytes(*(one.untyped_storage() for one in given))
    with counted:
        kept = [model.layer_hidden(call, head) for head in range(2, num_heads + 1)] if keeps_all else []
        mtp_loss(
            model,
            hidden,
            call=call,
            targets_HBS=targets,
            weights_HBS=weights,
            balance_H=head_balance("equal", num_heads),
            num_targets_H=(targets != -100).sum((1, 2)),
            chunk_rows=32,
        ).loss.backward()  # type: ignore[no-untyped-call]
    del kept
    return counted.peak - 4 * sum(one.numel() for one in model.heads.parameters())


def test_peak_memory_does_not_grow_with_the_number_of_layers_as_heads() -> None:
    few, many = peak_bytes(2), peak_bytes(8)
    assert many == pytest.approx(few, rel=0.1)
    assert peak_bytes(8, keeps_all=True) > 1.5 * many


def test_saved_heads_are_loaded_again_beside_a_plain_base(base: Any, tmp_path: Path) -> None:
    model = layered(base)
    model.save(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    again = MtpModel.with_saved_heads(plain, tmp_path / HEADS_FILE)
    assert (again.head_kind, again.num_heads) == ("layer", 4)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    batch = packed()
    logits = plain(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
    torch.testing.assert_close(logits, all_logits(model, batch)[0], rtol=1e-5, atol=1e-6)


def test_heads_of_the_other_kind_are_refused(tmp_path: Path) -> None:
    model = model_of(CONFIGS["llama"](), 3)
    model.save(tmp_path)
    with pytest.raises(UserError, match=r"head_kind is layer.* holds 3 heads .*Set .* train\.head_kind to residual"):
        MtpModel(model.base, num_heads=3, seed=0, head_kind="layer").load_heads(tmp_path / HEADS_FILE)


def test_calibration_is_of_each_heads_own_logits() -> None:
    model, batch = layered(model_of(CONFIGS["llama"]()).base, 3), packed()
    targets = targets_of(batch, 3)
    found = bin_sums(model, model.states(batch.input_ids, batch.position_ids), targets_HBS=targets, chunk_rows=4)
    for head, logits in enumerate(all_logits(model, batch)):
        is_right = logits.argmax(-1) == targets[head]
        confidence = logits.softmax(-1).amax(-1)[targets[head] != -100].sum()
        assert found[head, 2].sum() == is_right.sum()
        assert found[head, 1].sum().item() == pytest.approx(confidence.item(), rel=1e-5)


def test_layers_do_not_guess_and_forcing_them_is_refused() -> None:
    model = layered(model_of(CONFIGS["llama"]()).base)
    how: dict[str, Any] = {"sampling": Sampling(0), "end_ids": frozenset(), "batch_size": 2}
    automatic = Speculation("auto")
    found, plain = (
        {one.request.problem_id: one.token_ids for one in decode(model, requests_of(4), speculation=speculation, **how)}
        for speculation in (automatic, None)
    )
    assert found == plain
    assert automatic.metrics()["speculated_share"] == 0
    with pytest.raises(UserError, match=r"generate\.speculation is always, but heads 2 to 4 .* whole layers"):
        list(decode(model, requests_of(4), speculation=Speculation("always"), **how))


def test_a_base_without_a_final_norm_is_refused() -> None:
    model = layered(model_of(CONFIGS["llama"]()).base)
    model.base.base_model.norm = nn.Identity()
    with pytest.raises(
        UserError, match=r"LlamaModel has no norm beside its layers, so train\.head_kind cannot be layer"
    ):
        model.logit_parameters()


def test_a_base_whose_norm_is_not_all_that_follows_its_last_layer_is_refused() -> None:
    model = MtpModel(model_of(CONFIGS["llama"]()).base, num_heads=2, seed=0, head_kind="layer")
    model.base.base_model.register_forward_hook(_doubled)
    with pytest.raises(UserError, match=r"its last layer and final norm, called apart, do not give its trunk's output"):
        model.probe("here")
    MtpModel(model.base, num_heads=2, seed=0).probe("here")


def _doubled(module: nn.Module, args: Any, found: Any) -> Any:
    found.last_hidden_state = 2 * found.last_hidden_state
    return found
