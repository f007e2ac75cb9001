"""A plain transformers folder and other files of tensors, written one tensor at a time, so that a model in parts is never whole anywhere.

Owns the bytes, which are those that `save_pretrained` and safetensors would write. All ranks call what is here and ask for the same tensors
in the same order, for each may hold a part of one; rank 0 writes. Where a tensor comes from is told by whoever made the mapping.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from mlops_tasks import distributed

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 50 * 10**9
"""As transformers parts its files."""

# By rising rank: a file begins with the type that is highest.
_NAMES_OF_TYPES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int32: "I32", torch.float32: "F32", torch.float64: "F64", torch.int64: "I64",
}  # fmt: skip
_RANKS = {dtype: rank for rank, dtype in enumerate(_NAMES_OF_TYPES)}


class Tensors(Mapping[str, Tensor]):
    """Tensors by name that are made when they are asked for, and let go by whoever asked.

    Args:
        names: of all.
        make: one by its name.
    """

    def __init__(self, names: Collection[str], make: Callable[[str], Tensor]) -> None:
        self._names, self._make = names, make

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def write_tensors(
    file: Path, like: Mapping[str, Tensor], values: Mapping[str, Tensor], *, form: str | None = None
) -> None:
    """Write a safetensors file, a tensor at a time.

    Args:
        file: on rank 0.
        like: tensors of the shapes and types to be written; their numbers do not count.
        values: theirs, on rank 0; others only ask.
        form: in the file's own description, such as `pt`.
    """
    names = sorted(like, key=lambda name: (-_RANKS[like[name].dtype], name))
    with file.open("wb") if distributed.rank() == 0 else nullcontext() as stream:
        if stream is not None:
            stream.write(_header(names, like, form))
        for name in names:
            value = values[name]
            if stream is not None:
                given, wanted = (value.shape, value.dtype), (like[name].shape, like[name].dtype)
                assert given == wanted, f"{name} is {given} and not {wanted}"
                stream.write(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            del value  # before the next one is made


def _header(names: Sequence[str], like: Mapping[str, Tensor], form: str | None) -> bytes:
    """Where each tensor lies, behind its own length.

    Reference:
        https://github.com/huggingface/safetensors, "Format".
    """
    tree: dict[str, object] = {} if form is None else {"__metadata__": {"format": form}}
    at = 0
    for name in names:
        one = like[name]
        end = at + one.numel() * one.element_size()
        tree[name] = {"dtype": _NAMES_OF_TYPES[one.dtype], "shape": list(one.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(tree, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def save_pretrained(
    model: PreTrainedModel, folder: Path, like: Mapping[str, Tensor], values: Mapping[str, Tensor]
) -> None:
    """What the method of this name writes.

    Args:
        model: of the architecture; its weights do not count.
        folder: is made, by rank 0.
        like: each weight once, of the shapes and types to be written; the model's own names.
        values: theirs, on rank 0; others only ask.
    """
    kept = {name: one for name, one in like.items() if name not in (model._keys_to_ignore_on_save or ())}
    shapes = {name: torch.empty(one.shape, dtype=one.dtype, device="meta") for name, one in kept.items()}
    if not _has_own_names(model, shapes):
        log.warning(
            "%s names its weights otherwise in files, so rank 0 puts the whole model together", type(model).__name__
        )
        asked_for = ((name, values[name]) for name in shapes)
        whole = {name: one for name, one in asked_for if distributed.rank() == 0}
        if distributed.rank() == 0:
            model.save_pretrained(folder, state_dict=whole)
        return
    if distributed.rank() == 0:
        model.save_pretrained(folder, state_dict={})  # all but weights
    split = split_torch_state_dict_into_shards(dict(shapes), max_shard_size=MAX_FILE_BYTES)
    for file, names in split.filename_to_tensors.items():
        write_tensors(folder / file, {name: shapes[name] for name in names}, values, form="pt")
    if split.is_sharded and distributed.rank() == 0:
        total = {"total_parameters": sum(one.numel() for one in shapes.values()), **split.metadata}
        index = {"metadata": total, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True)
        (folder / "model.safetensors.index.json").write_text(f"{text}\n", encoding="utf-8")


def _has_own_names(model: PreTrainedModel, shapes: Mapping[str, Tensor]) -> bool:
    """Whether each weight lies in a file as it is in the model: those of a mixture's experts do not."""
    in_files = revert_weight_conversion(model, dict(shapes))
    return all(in_files.get(name) is one for name, one in shapes.items())
