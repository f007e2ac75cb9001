"""Claims about the precision of a training: gradients that fit float16, when the scale moves, and what a device must have."""

from __future__ import annotations

import pytest
import torch
from tiny_models import CONFIGS, model_of

from mlops_tasks import precision
from mlops_tasks.errors import UserError
from mlops_tasks.loss import head_balance, mtp_loss, shifted_targets, shifted_weights
from mlops_tasks.precision import LossScale

CPU = torch.device("cpu")


def gradient(scale: float, kind: precision.Precision) -> torch.Tensor:
    """Of the output layer, of a loss that is the mean of very many tokens."""
    model = model_of(CONFIGS["llama"]())
    ids = torch.arange(24)[None]
    targets = shifted_targets(
        ids, is_target_BS=torch.ones_like(ids, dtype=torch.bool), document_ids_BS=torch.zeros_like(ids), num_heads=1
    )
    with precision.autocast(CPU, kind):
        found = mtp_loss(
            model,
            model.hidden(ids, ids),
            targets_HBS=targets,
            weights_HBS=shifted_weights(torch.ones(1, 24), targets_HBS=targets),
            balance_H=scale * head_balance("equal", 1),
            num_targets_H=torch.tensor([10_000_000]),
            chunk_rows=8,
        )
    found.loss.backward()  # type: ignore[no-untyped-call]
    weight = model.base.get_output_embeddings().weight
    assert weight.grad is not None
    return weight.grad / scale


def test_the_scale_keeps_gradients_that_float16_would_lose() -> None:
    expected = gradient(1.0, "float32")
    scaled, plain = (gradient(scale, "float16") for scale in (2.0**16, 1.0))
    torch.testing.assert_close(scaled, expected, rtol=0.02, atol=float(expected.abs().max()) * 1e-3)
    assert (plain == 0).float().mean() > 2 * (scaled == 0).float().mean()


def test_an_overflow_halves_the_scale_and_many_good_steps_double_it() -> None:
    scale = LossScale.of("float16")
    assert scale.factor == 65536
    assert scale.shrink() and scale.factor == 32768
    for _ in range(1999):
        scale.count_step()
    assert scale.factor == 32768
    scale.count_step()
    assert (scale.factor, scale.num_overflows) == (65536, 1)


def test_a_step_that_is_left_out_leaves_the_scale_as_it_was() -> None:
    scale = LossScale.of("float16")
    assert scale.shrink()
    scale.count_step()
    halvings = 0
    while scale.shrink():
        halvings += 1
    assert (halvings, scale.factor) == (15, 1)
    scale.leave_out()
    assert (scale.factor, scale.num_overflows) == (32768, 1)


def test_a_scale_that_was_halved_down_to_one_grows_again() -> None:
    scale = LossScale(is_needed=True, factor=1.0)
    for _ in range(4000):
        scale.count_step()
    assert scale.factor == 4


def test_without_a_scale_there_is_nothing_to_halve() -> None:
    scale = LossScale.of("float32")
    assert not scale.shrink()
    for _ in range(4000):
        scale.count_step()
    assert scale.factor == 1


def test_every_precision_is_there_on_this_processor() -> None:
    for kind in ("float32", "bfloat16", "float16"):
        precision.require(CPU, kind)


def test_a_device_that_only_emulates_bfloat16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(
        UserError,
        match=r"bfloat16, which cuda does not have \(Tesla T4 only emulates it\)\. Set it to float32 or float16",
    ):
        precision.require(torch.device("cuda"), "bfloat16")


def test_a_precision_that_torch_would_replace_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def replaced(device: torch.device, kind: precision.Precision) -> torch.autocast:
        return torch.autocast(
            "cpu", dtype=torch.float64 if kind == "float16" else precision._DTYPES[kind], enabled=kind == "bfloat16"
        )

    monkeypatch.setattr(precision, "autocast", replaced)
    with pytest.raises(
        UserError,
        match=r"float16, which cpu does not have \(torch computes in torch\.float32 instead\)\. Set it to float32 or bfloat16",
    ):
        precision.require(CPU, "float16")
