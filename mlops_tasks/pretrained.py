"""A causal language model, or its tokenizer, from a folder that `save_pretrained` wrote, and nothing from anywhere else.

Owns what is refused: what transformers cannot load, and a model that lacks weights. What a whole snapshot of a model is, is
said in `data.pull`; heads are `model`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import safetensors
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

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
        UserError: as `load_model`.

    Reference:
        arXiv 2305.14314: NF4, and the scales quantized too.
    """
    four_bits = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=products_in,
    )
    return _loaded(folder, dtype=torch.float32, quantization_config=four_bits, device_map={"": device})


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
