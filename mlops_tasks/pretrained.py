"""A causal language model, or its tokenizer, from a folder that `save_pretrained` wrote, and nothing from anywhere else.

Owns what is refused: what transformers cannot load, and a model that lacks weights. What a whole snapshot of a model is, is
said in `data.pull`; heads are `model`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import safetensors
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

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
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=_DTYPES[dtype], local_files_only=True, output_loading_info=True
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
