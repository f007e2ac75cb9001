"""LoRA and QLoRA, through peft: small matrices A and B beside frozen linear layers, W + scale·B·A.

Owns which layers get one, how they begin (B is zero, so that nothing changes), where dropout stands, and both forms of the result: the adapter alone, in peft's
format, and a plain model with the adapter merged into it. Heads 2..H are `model`'s, and learn as they always do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import cast

import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mlops_tasks.config.learning import LowRank
from mlops_tasks.dropout import Dropout
from mlops_tasks.errors import Unfit, UserError
from mlops_tasks.model import MtpModel
from mlops_tasks.precision import Precision
from mlops_tasks.pretrained import load_quantized

FOLDER = "adapter"
_NAME = "default"
_A, _B, _FROZEN = f".lora_A.{_NAME}.weight", f".lora_B.{_NAME}.weight", ".base_layer."


class Adapter:
    """A model whose base is frozen, with small matrices beside its linear layers.

    Args:
        model: changed in place; its logits stay as they are.
        method: rank, scale and targets.
        seed: of A.

    Raises:
        UserError: a target that is no linear layer of the decoder, or a decoder without any.
    """

    def __init__(self, model: MtpModel, method: LowRank, *, seed: int) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        linear = linear_layers(model)
        self._model = model
        self._scale = 2.0 if method.alpha is None else method.alpha / method.rank
        self._is_transposed = any(isinstance(module, Conv1D) for module in linear.values())
        self._config = LoraConfig(
            r=method.rank,
            lora_alpha=self._scale * method.rank,  # type: ignore[arg-type] # peft only divides by r
            target_modules=_targets(method, linear),
            lora_dropout=method.dropout,
            fan_in_fan_out=self._is_transposed,
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(self._config, model.base, adapter_name=_NAME)
        if method.dropout > 0:
            _take_own_dropout(model.base, method.dropout)

    def merged(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A whole `state_dict` of the model as one of a model that has no adapter and gives the same logits.

        Made on the CPU, for beside model and optimiser a device may have no room for it.
        """
        full = _in_full(self._model, state)
        plain = {name.replace(_FROZEN, "."): value for name, value in full.items() if ".lora_" not in name}
        for layer, a, b in _matrices(state):
            added = self._scale * (b.cpu().float() @ a.cpu().float())
            weight = plain[f"{layer}.weight"].cpu()
            plain[f"{layer}.weight"] = (weight + (added.T if self._is_transposed else added)).to(weight.dtype)
        return plain

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write what `PeftModel.from_pretrained` reads, without what the base has already.

        Args:
            folder: is made.
            state: as `merged`.
        """
        folder.mkdir()
        tensors = {
            f"base_model.model.{layer.removeprefix('base.')}.{name}.weight": matrix.detach().cpu().contiguous()
            for layer, a, b in _matrices(state)
            for name, matrix in (("lora_A", a), ("lora_B", b))
        }
        safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors")
        # peft writes its sets in an order that differs from process to process.
        settings = self._config.to_dict() | {"inference_mode": True}  # type: ignore[no-untyped-call]
        tree = {name: sorted(value) if isinstance(value, set) else value for name, value in settings.items()}
        text = json.dumps(tree, indent=2, sort_keys=True)
        (folder / "adapter_config.json").write_text(f"{text}\n", encoding="utf-8")


def quantized(device: torch.device, *, is_spread: bool, precision: Precision) -> Callable[[Path], PreTrainedModel]:
    """How the base of a QLoRA is read.

    Raises:
        UserError: 4 bits cannot be had here.
    """
    if device.type != "cuda":
        raise UserError(
            f"train.method.kind is qlora, which holds the base in 4 bits on a GPU, but the device here is {device}. Train on a GPU, or set it to "
            "lora in the recipe."
        )
    if is_spread:
        raise UserError(
            "train.method.kind is qlora, whose 4-bit weights are whole on each rank, but train.parallelism is fsdp. Set that to ddp in the "
            "environment file, or the method to lora in the recipe."
        )
    return partial(load_quantized, device=device, products_in=getattr(torch, precision))


def linear_layers(model: MtpModel) -> dict[str, nn.Module]:
    """The linear layers of the decoder by last name, one of each."""
    return {
        name.rpartition(".")[2]: module
        for layer in model.layers()
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }


def _targets(method: LowRank, linear: Mapping[str, nn.Module]) -> list[str]:
    if not linear:
        raise UserError(
            "The decoder's layers have no linear layer to put an adapter beside. Set train.method.kind to full."
        )
    unknown = [name for name in method.targets or () if name not in linear]
    if unknown:
        raise Unfit(
            f"train.method.targets names {', '.join(unknown)}, which is no linear layer of this model's decoder. Take some of "
            f"{', '.join(sorted(linear))}, or leave targets out for all of them."
        )
    return sorted(set(method.targets or linear))


def _in_full(model: MtpModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A `state_dict` without 4-bit weights: their values as numbers, their scales left out."""
    from peft.utils.integrations import dequantize_module_weight, get_bnb_param_type

    full = dict(state)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and get_bnb_param_type(cast(nn.Parameter, module.weight)):
            full = {key: value for key, value in full.items() if not key.startswith(f"{name}.weight")}
            full[f"{name}.weight"] = dequantize_module_weight(module).cpu()
    return full


def _take_own_dropout(base: nn.Module, share: float) -> None:
    """Put ours in the place of peft's, whose masks would depend on ranks and micro-batches."""
    for name, module in base.named_modules():
        if isinstance(there := getattr(module, "lora_dropout", None), nn.ModuleDict):
            there[_NAME] = Dropout(share, layer=name)


def _matrices(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name of each adapted layer, with its A and B."""
    for name, a in state.items():
        if name.endswith(_A):
            layer = name.removesuffix(_A)
            yield layer, a, state[f"{layer}{_B}"]
