"""Models that were trained with several heads from the start, in the layout in which they are published: made into a folder for `model`.

    consolidated.pth   Llama's own names: tok_embeddings, layers.N, norm, output; heads 2..H are extra_heads.N, one layer each
    params.json        n_layers (trunk and all heads), n_heads, n_future_tokens (H), …

Head 1 is the last of `layers`; all heads share norm and output. Owns names and rotary order; the result is a plain Llama, and the other heads in a file in its folder.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from pydantic import BaseModel, Field, ValidationError
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from mlops_tasks.errors import UserError
from mlops_tasks.model import HEADS_FILE

WEIGHTS_FILE, PARAMS_FILE = "consolidated.pth", "params.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json")

log = logging.getLogger(__name__)

_OF_LAYER = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_BESIDE_LAYERS = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_COMPUTED = {"rope.freqs", "freqs_cis"}


class _Params(BaseModel, extra="ignore"):
    """What params.json says that weights do not; defaults are Llama's own."""

    n_layers: int = Field(ge=1)
    n_heads: int = Field(ge=1)
    n_kv_heads: int | None = Field(None, ge=1)
    n_future_tokens: int = Field(1, ge=1)
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    use_scaled_rope: bool = False

    @property
    def num_key_value_heads(self) -> int:
        return self.n_kv_heads or self.n_heads


def convert(source: Path, target: Path, *, max_positions: int) -> int:
    """Write a folder with the plain model, its other heads and its tokenizer files.

    Args:
        source: a folder with both files of the layout.
        target: is made.
        max_positions: of the result; the layout does not say what the model was trained with.

    Returns:
        H.

    Raises:
        UserError: the folder has another layout, or `target` is there already.

    Reference:
        arXiv 2404.19737, section 2; names and order as in the code that is published with its checkpoints.
    """
    if target.exists():
        raise UserError(f"{target} is there already. Give a folder that is not, or remove it.")
    params, tokenizer = _read_params(source), _tokenizer_files(source)
    tensors = _read_weights(source)
    _require_whole(tensors, source)
    base, heads = _renamed(tensors, params, source)
    _require_layers(base, heads, params, source)
    _require_heads_of_width(base, params, source)
    config = _config(base, params, max_positions)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    config.dtype = base["model.norm.weight"].dtype
    _require_shapes(base, {name: value.shape for name, value in model.state_dict().items()}, source)
    _require_shapes(
        {f"extra_heads.{name}": value for name, value in heads.items()}, _shapes_of_heads(base, params), source
    )
    _require_tokens(tokenizer, config.vocab_size)
    model.save_pretrained(target, state_dict=base)
    if heads:
        safetensors.torch.save_file(heads, target / HEADS_FILE)
    for file in tokenizer:
        shutil.copyfile(file, target / file.name)
    return params.n_future_tokens


def _tokenizer_files(source: Path) -> list[Path]:
    """Those beside the weights; several published models share those in the folder above."""
    for folder in (source, source.resolve().parent):
        if any((folder / name).is_file() for name in TOKENIZER_FILES if name.startswith("tokenizer")):
            found = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
            log.info("tokenizer of %s: %s", folder, ", ".join(file.name for file in found))
            return found
    log.info("no tokenizer in %s or in the folder above; the result has none", source)
    return []


def _require_tokens(files: list[Path], num_tokens: int) -> None:
    """Refuse a tokenizer with tokens that the model does not have; fewer are what padding of the embeddings makes."""
    readable = [file for file in files if file.name == "tokenizer.json"]
    if readable and (num_known := Tokenizer.from_file(str(readable[0])).get_vocab_size()) > num_tokens:
        raise UserError(
            f"{readable[0]} has {num_known} tokens, but tok_embeddings in {WEIGHTS_FILE} has {num_tokens}. Put the model's own "
            f"tokenizer beside {WEIGHTS_FILE}."
        )


def _read_params(source: Path) -> _Params:
    try:
        params = _Params.model_validate_json((source / PARAMS_FILE).read_bytes())
    except (OSError, ValidationError) as error:
        raise UserError(
            f"{source / PARAMS_FILE} does not say what model it is: {error}. Give the folder of a published checkpoint, with {PARAMS_FILE} and "
            f"{WEIGHTS_FILE}."
        ) from error
    if params.use_scaled_rope:
        raise UserError(
            f"{source / PARAMS_FILE} says use_scaled_rope, and no file of this layout says by how much positions are scaled. Take the model as it "
            "is published for transformers, whose config.json says it."
        )
    return params


def _read_weights(source: Path) -> dict[str, Tensor]:
    try:
        # Only tensors: a pickle of anything else would run code.
        found = torch.load(source / WEIGHTS_FILE, map_location="cpu", mmap=True, weights_only=True)
        if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
            raise ValueError("it holds no mapping of names to tensors")
    except (OSError, RuntimeError, ValueError, EOFError, json.JSONDecodeError, pickle.UnpicklingError) as error:
        parts = sorted(file.name for file in source.glob("consolidated.*"))
        reason = "it holds other things than tensors" if isinstance(error, pickle.UnpicklingError) else error
        raise UserError(
            f"{source} has no {WEIGHTS_FILE} that torch reads ({reason}); there are {', '.join(parts) or 'no consolidated files'}. Weights that are "
            "split over several files are not read; put them together first."
        ) from error
    return found


def _require_whole(tensors: Mapping[str, Tensor], source: Path) -> None:
    places = {place[0] for place in (re.match(r"(layers|extra_heads)\.\d+\.", name) for name in tensors) if place}
    wanted = {f"{place}{part}.weight" for place in {"layers.0."} | places for part in _OF_LAYER} | _BESIDE_LAYERS.keys()
    missing = sorted(
        name for name in wanted if name not in tensors or tensors[name].ndim != 2 - name.endswith("norm.weight")
    )
    if missing:
        raise UserError(
            f"{source / WEIGHTS_FILE} lacks {len(missing)} weights of a Llama, the first is {missing[0]}. Give the whole of a model in the original "
            "naming, with an output of its own."
        )


def _renamed(
    tensors: Mapping[str, Tensor], params: _Params, source: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The plain model's weights, and those of the other heads."""
    base: dict[str, Tensor] = {}
    heads: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        place = re.fullmatch(r"(layers|extra_heads)\.(\d+)\.(.+)\.weight", name)
        if name in _BESIDE_LAYERS:
            base[_BESIDE_LAYERS[name]] = tensor
        elif place is not None and place[3] in _OF_LAYER:
            is_base = place[1] == "layers"
            new_name = f"{'model.layers.' if is_base else ''}{place[2]}.{_OF_LAYER[place[3]]}.weight"
            (base if is_base else heads)[new_name] = _halved(tensor, place[3], params).contiguous()
        elif name not in _COMPUTED:
            raise UserError(
                f"{source / WEIGHTS_FILE} holds {name!r}, which this layout has not. Give a Llama with {'.N., '.join(('layers', 'extra_heads'))}.N. in "
                "the original naming."
            )
    return base, heads


def _halved(weight: Tensor, name: str, params: _Params) -> Tensor:
    """Rows of queries and keys in transformers' order: rotary pairs are halves of a head here, and neighbours in the original."""
    num_heads = {"attention.wq": params.n_heads, "attention.wk": params.num_key_value_heads}.get(name)
    # Of another number of rows it is refused later on, as it is.
    if num_heads is None or len(weight) % (2 * num_heads):
        return weight
    return weight.view(num_heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _require_layers(base: Mapping[str, Tensor], heads: Mapping[str, Tensor], params: _Params, source: Path) -> None:
    num_heads = params.n_future_tokens
    wanted = {f"model.layers.{place}" for place in range(params.n_layers - num_heads + 1)}
    wanted |= {str(place) for place in range(num_heads - 1)}
    found = {".".join(name.split(".")[:3]) for name in base if ".layers." in name}
    found |= {name.partition(".")[0] for name in heads}
    if found != wanted:
        raise UserError(
            f"{source / PARAMS_FILE} says n_layers {params.n_layers} and n_future_tokens {num_heads}, which is {params.n_layers - num_heads + 1} layers "
            f"and {num_heads - 1} extra heads, but {WEIGHTS_FILE} and that differ in {', '.join(sorted(found ^ wanted))}. Give both files of one model."
        )


def _require_heads_of_width(base: Mapping[str, Tensor], params: _Params, source: Path) -> None:
    width = len(base["model.norm.weight"])
    if width % (2 * params.n_heads) or params.n_heads % params.num_key_value_heads:
        raise UserError(
            f"{source / PARAMS_FILE} says n_heads {params.n_heads} and n_kv_heads {params.num_key_value_heads}, but the width of {WEIGHTS_FILE} is "
            f"{width}: a head takes an even share of it, and n_kv_heads divides n_heads. Give both files of one model."
        )


def _shapes_of_heads(base: Mapping[str, Tensor], params: _Params) -> dict[str, torch.Size]:
    """Each head is a layer like those of the base."""
    first = "model.layers.0."
    layer = {name.removeprefix(first): value.shape for name, value in base.items() if name.startswith(first)}
    return {
        f"extra_heads.{head}.{name}": shape
        for head in range(params.n_future_tokens - 1)
        for name, shape in layer.items()
    }


def _config(base: Mapping[str, Tensor], params: _Params, max_positions: int) -> LlamaConfig:
    num_tokens, width = base["model.embed_tokens.weight"].shape
    return LlamaConfig(
        vocab_size=num_tokens,
        hidden_size=width,
        intermediate_size=len(base["model.layers.0.mlp.gate_proj.weight"]),
        num_hidden_layers=params.n_layers - params.n_future_tokens + 1,
        num_attention_heads=params.n_heads,
        num_key_value_heads=params.num_key_value_heads,
        max_position_embeddings=max_positions,
        rms_norm_eps=params.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": params.rope_theta},
        tie_word_embeddings=False,
    )


def _require_shapes(tensors: Mapping[str, Tensor], wanted: Mapping[str, torch.Size], source: Path) -> None:
    found = {name: value.shape for name, value in tensors.items()}
    wrong = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    if wrong:
        raise UserError(
            f"{source / WEIGHTS_FILE} has {wrong[0]} as {found.get(wrong[0], 'nothing')}, and {PARAMS_FILE} makes it "
            f"{wanted.get(wrong[0], 'nothing')}. Give both files of one model."
        )
