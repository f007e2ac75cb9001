"""LoRA and QLoRA, through peft: small matrices A and B beside frozen linear layers, W + scale·B·A.

Owns which layers get one, how they begin (B is zero, so that nothing changes), where dropout stands, and both forms of
the result: the adapter alone, in peft's format, and a plain model with the adapter merged into it. Heads 2..H are
`model`'s, and learn as they always do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mlops_tasks import distributed, export
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

    def merged(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A `state_dict` of the model as one of a model that has no adapter and gives the same logits.

        All ranks ask for the same tensors, in the same order. A tensor is merged when it is asked for, on the CPU, for
        beside model and optimiser a device may have no room for it.
        """
        in_four_bits = _in_four_bits(self._model)
        frozen = {name.replace(_FROZEN, "."): name for name in state if ".lora_" not in name}
        adapted = {f"{name.removesuffix(_A)}.weight": name.removesuffix(_A) for name in state if name.endswith(_A)}
        # Scales of 4 bits are no weights.
        names = [name for name in frozen if not any(name.startswith(f"{weight}.") for weight in in_four_bits)]

        def make(name: str) -> Tensor:
            weight = in_four_bits[name]() if name in in_four_bits else state[frozen[name]]
            return self._merged(weight, state, adapted[name]) if name in adapted else weight

        return export.Tensors(names, make)

    def _merged(self, weight: Tensor, state: Mapping[str, Tensor], layer: str) -> Tensor:
        a, b = state[f"{layer}{_A}"], state[f"{layer}{_B}"]
        if distributed.rank() > 0:
            return weight
        a, b = a.cpu().float(), b.cpu().float()
        # As the weight lies, for a transposed one would be copied when it is written.
        added = a.T @ b.T if self._is_transposed else b @ a
        return added.mul_(self._scale).add_(weight.cpu()).to(weight.dtype)

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write what `PeftModel.from_pretrained` reads, without what the base has already; all ranks call it.

        Args:
            folder: is made, by rank 0.
            state: as `merged`.
        """
        names = {_peft_name(name): name for name in state if ".lora_" in name}
        own = self._model.state_dict()
        if distributed.rank() == 0:
            folder.mkdir()
            self._save_settings(folder)
        export.write_tensors(
            folder / "adapter_model.safetensors",
            {new: own[name] for new, name in names.items()},
            export.Tensors(names, lambda new: state[names[new]]),
        )

    def _save_settings(self, folder: Path) -> None:
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
            f"train.method.kind is qlora, which holds the base in 4 bits on a GPU, but the device here is {device}. "
            "Train on a GPU, or set it to lora in the recipe."
        )
    if is_spread:
        raise UserError(
            "train.method.kind is qlora, whose 4-bit weights are whole on each rank, but train.parallelism is fsdp. "
            "Set that to ddp in the environment file, or the method to lora in the recipe."
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
            f"train.method.targets names {', '.join(unknown)}, which is no linear layer of this model's decoder. "
            f"Take some of {', '.join(sorted(linear))}, or leave targets out for all of them."
        )
    return sorted(set(method.targets or linear))


def _in_four_bits(model: MtpModel) -> dict[str, Callable[[], Tensor]]:
    """How the weights that are held in 4 bits become numbers, by their plain names."""
    from peft.utils.integrations import dequantize_module_weight, get_bnb_param_type

    return {
        f"{name}.weight".replace(_FROZEN, "."): partial(_numbers, dequantize_module_weight, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and get_bnb_param_type(cast(nn.Parameter, module.weight))
    }


def _numbers(dequantize: Callable[[nn.Module], Tensor], module: nn.Module) -> Tensor:
    """Of a 4-bit weight: on the CPU, and in float32 in whatever format they come."""
    return dequantize(module).cpu().float()


def _peft_name(name: str) -> str:
    return f"base_model.model.{name.removeprefix('base.')}".replace(f".{_NAME}.weight", ".weight")


def _take_own_dropout(base: nn.Module, share: float) -> None:
    """Put ours in the place of peft's, whose masks would depend on ranks and micro-batches."""
    for name, module in base.named_modules():
        if isinstance(there := getattr(module, "lora_dropout", None), nn.ModuleDict):
            there[_NAME] = Dropout(share, layer=name)
