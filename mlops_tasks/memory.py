"""How much memory a training takes, before there is a device: weights, gradients, moments, activations, a chunk of logits.

Parameters are counted on the meta device. Activations are counted, not estimated: the architecture's own forward and backward run on
tensors without contents (two and four layers of it; all layers are alike), and every byte that lives at once is added up. What the loss
holds beside them is known, for `loss` bounds it. Leaves which settings follow from it to `recommendation`.
"""

from __future__ import annotations

import copy
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.pytorch_utils import Conv1D

from mlops_tasks.adapters import Adapter
from mlops_tasks.config.learning import LowRank, QLora, Train
from mlops_tasks.dropout import dropouts_of
from mlops_tasks.loss import ProductsIntoSums
from mlops_tasks.model import MtpModel
from mlops_tasks.precision import autocast

# NF4 and, for 64 of them, one scale of 8 bits; the scales' own scales are a hundredth of that.
_BYTES_OF_FOUR_BITS = 0.5 + 1 / 64
_FEW_LAYERS, _MORE_LAYERS = 2, 4
# So many that what does not grow with them is not the peak.
_ROWS_OF_A_CHUNK = 2**14


@dataclass(frozen=True)
class Footprint:
    """Bytes that one rank's training holds at its peak."""

    weights: int
    gradients: int
    moments: int
    """Of AdamW."""
    activations: int
    """Of a micro-batch: what the trunk keeps for its backward."""
    loss: int
    """Logits of a chunk, and gradients on their way, beyond activations."""
    merging: int = 0
    """When all steps are done, in their place: one matrix of an adapted layer.

    On a CPU the adapter is merged into it. A GPU merges on the host: there it is what 4 bits or the ranks' rows become.
    """

    @property
    def total(self) -> int:
        """At the higher of both peaks."""
        beside = max(self.activations + self.loss, self.merging)
        return self.weights + self.gradients + self.moments + beside


@dataclass(frozen=True)
class Parameters:
    """How many there are of each kind."""

    total: int
    trainable: int
    linear: int
    """Of the decoder's linear layers, without what an adapter adds."""
    logit: int
    """Trainable ones that the loss takes the gradients of: output layer and heads."""
    adapted: int
    """Of the largest matrix that has an adapter; 0: none has."""


def count(config: PretrainedConfig, train: Train) -> Parameters:
    """Count the parameters of a training's model without making any.

    Args:
        config: of the base.
        train: heads and method.
    """
    model = _model(config, train)
    linear = sum(
        module.weight.numel()
        for layer in model.layers()
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and ".lora_" not in name
    )
    logit = sum(one.numel() for one in model.logit_parameters() if one.requires_grad)
    adapted = [_frozen_weight(module).numel() for module in model.modules() if isinstance(module, LoraLayer)]
    return Parameters(model.num_parameters(), model.num_trainable(), linear, logit, max(adapted, default=0))


def _frozen_weight(module: LoraLayer) -> Tensor:
    """The frozen weight beside an adapter's matrices."""
    weight: Tensor = module.get_base_layer().weight  # type: ignore[assignment]
    return weight


class StepMemory:
    """What steps of a training hold, whatever the size of their micro-batches.

    Args:
        config: of the base.
        train: heads, method and precision.
        length: tokens in a row.
        recompute: whether activations are computed again in the backward.
    """

    def __init__(self, config: PretrainedConfig, train: Train, *, length: int, recompute: bool) -> None:
        self._text, self._train, self._length = config.get_text_config(), train, length
        self._parameters = count(config, train)
        self._bytes_of_a_logit = _bytes_of_a_logit(_cut(config, _FEW_LAYERS), train)
        # Of one row and of two, for few layers and for more: rows are alike, and so are layers.
        self._runs = [
            [_run_without_contents(_cut(config, num_layers), train, (rows, length), recompute) for rows in (1, 2)]
            for num_layers in (_FEW_LAYERS, _MORE_LAYERS)
        ]

    def footprint(self, *, rows: int, chunk_rows: int) -> Footprint:
        """At the peak of a micro-batch that is not the first one of its step.

        Args:
            rows: packed rows in it.
            chunk_rows: positions whose logits exist at one time.
        """
        found = self._parameters
        in_four_bits = found.linear if isinstance(self._train.method, QLora) else 0
        saved, highest = self._activations(rows)
        beside = 4 * found.logit
        hidden = 4 * rows * self._length * self._text.hidden_size
        logits = self._logits(min(chunk_rows, rows * self._length) * self._text.vocab_size, beside)
        return Footprint(
            weights=int(4 * (found.total - in_four_bits) + _BYTES_OF_FOUR_BITS * in_four_bits),
            gradients=4 * found.trainable,
            moments=8 * found.trainable,
            activations=saved,
            loss=max(saved + hidden + beside + logits, highest + beside) - saved,
            merging=4 * found.adapted,
        )

    def _logits(self, chunk: int, beside: int) -> int:
        """Bytes of a chunk of so many logits, in whose place their gradient is made."""
        if self._train.precision == "float32":
            return self._bytes_of_a_logit * chunk
        # In 16 bits logits are made into float32 first and gradients back, parts of the parameters' gradients are there in both, and so is the output layer.
        output_layer: int = 2 * self._text.vocab_size * self._text.hidden_size
        return self._bytes_of_a_logit * chunk + 3 * beside // 2 + output_layer

    def _activations(self, rows: int) -> tuple[int, int]:
        """Bytes that the trunk's forward leaves, and the most that its backward holds."""
        share = (self._text.num_hidden_layers - _FEW_LAYERS) / (_MORE_LAYERS - _FEW_LAYERS)
        few, more = ([a + (rows - 1) * (b - a) for a, b in zip(*run, strict=True)] for run in self._runs)
        saved, highest = (round(a + share * (b - a)) for a, b in zip(few, more, strict=True))
        return saved, highest


def _bytes_of_a_logit(config: PretrainedConfig, train: Train) -> int:
    """Those that live at once while a chunk is learnt from, with all that the architecture makes of the product (bias, scale, soft cap)."""
    few, more = (_chunk_without_contents(config, train, times * _ROWS_OF_A_CHUNK) for times in (1, 2))
    num_logits: int = _ROWS_OF_A_CHUNK * config.get_text_config().vocab_size
    return round((more - few) / num_logits)


def _chunk_without_contents(config: PretrainedConfig, train: Train, rows: int) -> int:
    """The peak of a chunk's logits and their backward."""
    model = _model(config, train)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _pretend_to_fill(model, frozen_linear=torch.float32)
        hidden_ND = torch.zeros(rows, config.get_text_config().hidden_size, requires_grad=True)
        parameters = [one for one in model.logit_parameters() if one.requires_grad]
        sums = [torch.zeros_like(one) for one in parameters]
        there = (*model.parameters(), *model.buffers(), *sums, hidden_ND)
        counted = PeakBytes(*(one.untyped_storage() for one in there))
        with counted:
            with autocast(torch.device("cpu"), train.precision), ProductsIntoSums(zip(parameters, sums, strict=True)):
                logits_NV = model.head_logits(hidden_ND, 1)
            edge, dtype, logits_NV = get_gradient_edge(logits_NV), logits_NV.dtype, logits_NV.detach()
            gradient_NV = logits_NV.float()
            del logits_NV
            torch.autograd.grad([edge], [hidden_ND, *parameters], [gradient_NV.to(dtype)], allow_unused=True)
    return counted.peak


def _run_without_contents(
    config: PretrainedConfig, train: Train, rows_and_length: tuple[int, int], recompute: bool
) -> tuple[int, int]:
    model = _model(config, train)
    with FakeTensorMode(allow_non_fake_inputs=True):
        # A product with 4 bits makes its 16 bits anew in the backward; of a float32 weight autocast keeps a copy in 16.
        dtype = getattr(torch, train.precision) if isinstance(train.method, QLora) else torch.float32
        _pretend_to_fill(model, frozen_linear=dtype)
        if recompute:
            model.recompute_activations()
        for one in model.parameters():
            one.grad = torch.zeros_like(one) if one.requires_grad else None
        ids_BS = torch.zeros(rows_and_length, dtype=torch.long)
        positions_BS = torch.zeros(rows_and_length, dtype=torch.long)
        for dropout in dropouts_of(model):
            dropout.tokens_BS = torch.zeros(rows_and_length, dtype=torch.int32)
        there = [one for each in model.parameters() for one in (each, each.grad) if one is not None]
        counted = PeakBytes(*(one.untyped_storage() for one in (ids_BS, positions_BS, *there, *model.buffers())))
        with counted:
            rows, length = rows_and_length
            mask = torch.zeros(rows, 1, length, length, dtype=torch.bool)
            kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
            with autocast(torch.device("cpu"), train.precision):
                hidden = model.base.base_model(
                    input_ids=ids_BS,
                    position_ids=positions_BS,
                    attention_mask=dict.fromkeys(kinds, mask) if len(kinds) > 1 else mask,
                    use_cache=False,
                ).last_hidden_state
            saved = counted.live
            torch.autograd.backward([hidden], [torch.zeros_like(hidden)])
    return saved, counted.peak


def _model(config: PretrainedConfig, train: Train) -> MtpModel:
    """On the meta device."""
    with torch.device("meta"):
        base: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
        model = MtpModel(base.eval(), num_heads=train.num_heads, seed=0, head_kind=train.head_kind)
        if isinstance(train.method, LowRank):
            Adapter(model, train.method, seed=0)
    return model


def _pretend_to_fill(model: nn.Module, *, frozen_linear: torch.dtype) -> None:
    """Put tensors without contents in the place of those on the meta device, on which attention is another one than on a real device."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for own in (module._parameters, module._buffers):
            for name, old in own.items():
                if old is not None and id(old) not in made:
                    is_frozen_linear = isinstance(module, nn.Linear | Conv1D) and not old.requires_grad
                    new = torch.zeros(old.shape, dtype=frozen_linear if is_frozen_linear else old.dtype)
                    made[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
                own[name] = None if old is None else made[id(old)]


def _cut(config: PretrainedConfig, num_layers: int) -> PretrainedConfig:
    """The same architecture with fewer or more layers."""
    cut = copy.deepcopy(config)
    text = cut.get_text_config()
    text.num_hidden_layers = num_layers
    if kinds := getattr(text, "layer_types", None):
        text.layer_types = [kinds[at % len(kinds)] for at in range(num_layers)]
    return cut


class PeakBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most bytes that lived at once in storages that operations made, of those not there before."""

    def __init__(self, *before: torch.UntypedStorage) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: int = 0
        self.peak: int = 0
        self.seen: weakref.WeakSet[Any] = weakref.WeakSet(before)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count what an operation made."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.device.type != "meta":
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self.seen:
            return
        self.seen.add(storage)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, num_bytes: int) -> None:
        self.live -= num_bytes
