"""A causal language model, or its tokenizer, from a folder that `save_pretrained` wrote, and nothing from anywhere else.

Owns what is refused: what transformers cannot load, and a model that lacks weights. What a whole snapshot of a model is, is
said in `data.pull`; heads are `model`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import safetensors
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D

from mlops_tasks.errors import UserError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder.

    Raises:
        UserError: there is none that transformers can load.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable("tokenizer", folder, error) from error
    return tokenizer


def load_model(folder: Path, *, dtype: Literal["float32", "bfloat16"] = "float32") -> PreTrainedModel:
    """The causal language model of a folder, on the CPU and in evaluation mode.

    Args:
        folder: as `save_pretrained` writes it.
        dtype: of all weights, whatever they were saved in.

    Raises:
        UserError: there is none that transformers can load, or it lacks weights.
    """
    return _loaded(folder, dtype=_DTYPES[dtype])


def load_quantized(folder: Path, *, device: torch.device, products_in: torch.dtype) -> PreTrainedModel:
    """`load_model`, with the linear layers of the decoder in 4 bits and the rest in float32.

    Args:
        folder: as `load_model`.
        device: where it is to lie.
        products_in: what 4 bits are turned into for a matrix product.

    Raises:
        UserError: as `load_model`, or its layers keep their weights the other way round, as GPT-2's do, which 4 bits do not.

    Reference:
        arXiv 2305.14314: NF4, and the scales quantized too.
    """
    _require_no_conv1d(folder)
    four_bits = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=products_in,
    )
    return _loaded(folder, dtype=torch.float32, quantization_config=four_bits, device_map={"": device})


def _require_no_conv1d(folder: Path) -> None:
    model = UnreadModel(folder).model
    if any(isinstance(module, Conv1D) for module in model.modules()):
        raise UserError(
            f"{type(model).__name__} in {folder} keeps its weights as [in, out], and in 4 bits they would be the other way round. Set "
            "train.method.kind to lora in the recipe."
        )


class UnreadModel:
    """A causal language model whose weights are still in its folder; each module is given its own when it is needed.

    Args:
        folder: as `load_model`.

    Raises:
        UserError: no configuration is there that transformers knows.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            with _parameters_without_data(), no_init_weights():
                config = AutoConfig.from_pretrained(folder, local_files_only=True)
                build: Any = AutoModelForCausalLM.from_config
                self.model: PreTrainedModel = build(config, dtype=torch.float32).eval()
            if (folder / "generation_config.json").exists():
                self.model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise _unreadable("causal language model", folder, error) from error
        if not dict(self.model.named_parameters()).keys() <= self._files.keys():
            self.model.tie_weights()  # only what has no numbers of its own, as `from_pretrained` does
        self._names = {id(parameter): name for name, parameter in self.model.named_parameters()}

    @property
    def is_readable(self) -> bool:
        """Whether the files hold just these weights, under the names that the model has for them."""
        wanted = set(self._names.values())
        with_ties = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        buffers = dict(self.model.named_buffers()).keys() & self.model.state_dict().keys()
        return not buffers and wanted <= self._files.keys() <= with_ties

    def read(self, module: nn.Module) -> None:
        """Give the parameters of a part of the model their weights, in float32; those that have them stay."""
        for parameter in module.parameters():
            if parameter.is_meta:
                name = self._names[id(parameter)]
                with safetensors.safe_open(self._files[name], framework="pt") as file:
                    weight = file.get_tensor(name).to(torch.float32, copy=True)
                assert weight.shape == parameter.shape, f"{name} is {weight.shape} and not {parameter.shape}"
                # In its place, so that what is tied to it has it too.
                swap: Any = torch.utils.swap_tensors
                swap(parameter, nn.Parameter(weight, parameter.requires_grad))

    @cached_property
    def _files(self) -> dict[str, Path]:
        """In which file each tensor lies; empty where they are of another kind."""
        found = {}
        for path in sorted(self._folder.glob("model*.safetensors")):
            with safetensors.safe_open(path, framework="pt") as file:
                found.update(dict.fromkeys(file.keys(), path))
        return found


@contextmanager
def _parameters_without_data() -> Iterator[None]:
    """Models that are made here have parameters on the meta device; buffers, which no file holds, are real."""
    plain = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        plain(module, name, parameter)

    nn.Module.register_parameter = register  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = plain  # type: ignore[method-assign]


def _loaded(folder: Path, **how: Any) -> PreTrainedModel:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, **how
        )
    except (OSError, ValueError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
        raise _unreadable("causal language model", folder, error) from error
    model, notes = loaded
    if notes["missing_keys"]:
        # transformers fills them with random numbers and only warns.
        missing = sorted(notes["missing_keys"])
        raise UserError(
            f"The model in {folder} lacks {len(missing)} of its weights, {missing[0]} among them. Its files are of another "
            "architecture than its config.json; save it again."
        )
    whole: PreTrainedModel = model.eval()
    return whole


def _unreadable(what: str, folder: Path, error: Exception) -> UserError:
    return UserError(
        f"{folder} holds no {what} that transformers can load: {error}. It must be what `save_pretrained` of model and "
        "tokenizer wrote; pull or train the model again."
    )
