"""A causal language model with H future-token heads: load and probe, hidden states, logits of a head, save.

Owns how any transformers causal LM is taken apart into trunk and logits, and what is saved. Leaves targets, weights and the
loss to `loss`, what a head is to `heads`, and tokenizer files to whoever calls `save`.

Shapes: B batch, S position, V vocabulary, D width, N rows.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from mlops_tasks import export
from mlops_tasks.errors import Unfit, UserError
from mlops_tasks.heads import HeadKind, LayerCall, ResidualHead, calls_of, copies, final_norm
from mlops_tasks.pretrained import UnreadModel, load_model

log = logging.getLogger(__name__)

HEADS_FILE = "heads.safetensors"

# Rounding in float32 is some 1e-6 of the largest value; another document that is seen changes 1e-2 of it.
PROBE_TOLERANCE = 1e-4
# Of 16 bits, some 5e-3.
_PROBE_TOLERANCE_16_BITS = 1e-2


class States(NamedTuple):
    """What the trunk makes of tokens."""

    hidden_BSD: Tensor
    """After the final norm: what head 1 sees."""
    call: LayerCall | None
    """Of the last layer, where other heads are layers beside it."""


class MtpModel(nn.Module):
    """A base model whose head k predicts the token k ahead.

    With residual heads `logits_k = base_head(h + R_k(h))`, R_1 = 0 and h the trunk's output; with layers
    `logits_k = base_head(norm(layer_k(z)))`, layer_1 the base's last one and z what that is given.
    """

    def __init__(self, base: PreTrainedModel, *, num_heads: int, seed: int, head_kind: HeadKind = "residual") -> None:
        super().__init__()
        self.base = base
        self.num_heads = num_heads
        self.head_kind = head_kind
        self._unread: UnreadModel | None = None
        if self._has_layers:
            self.heads = copies(self.layers()[-1], num_heads - 1)
        else:
            generator = torch.Generator().manual_seed(seed)
            hidden_size: int = base.config.get_text_config().hidden_size
            self.heads = nn.ModuleList(ResidualHead(hidden_size, generator) for _ in range(num_heads - 1))
        self.train(base.training)

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        num_heads: int,
        seed: int,
        head_kind: HeadKind = "residual",
        read: Callable[[Path], PreTrainedModel] = load_model,
    ) -> Self:
        """Read a transformers folder, add heads and prove on a few tokens that the parts fit together.

        Heads are new, or those of a natively trained model that lie in the folder itself (see `native`). As after `from_pretrained`, dropout is off until somebody calls `train`.

        Args:
            folder: As `save_pretrained` writes it.
            num_heads: H.
            seed: Of new residual heads. Head k is the same for every H.
            head_kind: What heads 2..H are.
            read: Reads the base; as it is, in float32.

        Raises:
            UserError: no causal language model is there, its architecture cannot be packed or taken apart, or the folder has
                other heads.
        """
        base = read(folder)
        model = cls(base, num_heads=num_heads, seed=seed, head_kind=head_kind)
        model.probe(str(folder))
        model._take_native_heads(folder)
        return model

    @classmethod
    def load_in_parts(cls, folder: Path, *, num_heads: int, seed: int, head_kind: HeadKind = "residual") -> Self:
        """`load`, but the base has no weights yet: `read` gives a part of it its own, and whoever has read all calls `probe`.

        A folder whose files name weights in another way than the model is read at once.

        Raises:
            UserError: as `load`.
        """
        unread = UnreadModel(folder)
        if not unread.is_readable:
            log.warning("%s cannot be read in parts: each rank reads the whole model when it starts", folder)
            return cls.load(folder, num_heads=num_heads, seed=seed, head_kind=head_kind)
        if head_kind == "layer" and num_heads > 1:
            unread.read(_list_of_layers(unread.model)[-1])  # of which heads are copies
        model = cls(unread.model, num_heads=num_heads, seed=seed, head_kind=head_kind)
        model._unread = unread
        model._take_native_heads(folder)
        return model

    @property
    def is_in_parts(self) -> bool:
        """Whether it was loaded so that parts of it have to be read."""
        return self._unread is not None

    def read(self, module: nn.Module) -> None:
        """Give a part of the model the weights that it lacks."""
        if self._unread is not None:
            self._unread.read(module)

    @classmethod
    def with_saved_heads(cls, base: PreTrainedModel, file: Path) -> Self:
        """A base and all heads of a file that `save` wrote beside it, in the base's precision."""
        head_kind, num_heads = _heads_in(safetensors.torch.load_file(file))
        model = cls(base, num_heads=num_heads, seed=0, head_kind=head_kind)
        model.load_heads(file)
        return model.to(base.dtype)

    def hidden(self, input_ids_BS: Tensor, position_ids_BS: Tensor) -> Tensor:
        """The trunk's output after its final norm.

        Args:
            input_ids_BS: Token ids; padding holds any id.
            position_ids_BS: Position in the document, from 0. A position that does not follow the one before it starts a
                new document, which sees nothing of what lies before it.

        Returns:
            hidden_BSD.
        """
        return self.states(input_ids_BS, position_ids_BS).hidden_BSD

    def states(self, input_ids_BS: Tensor, position_ids_BS: Tensor) -> States:
        """`hidden`, with what other heads need beside it."""
        with calls_of(self.layers()[-1]) if self._has_layers else nullcontext([None]) as calls:
            # Without a cache, and only then, transformers 5 reads document boundaries off the positions.
            outputs = self.base.base_model(input_ids=input_ids_BS, position_ids=position_ids_BS, use_cache=False)
        return States(outputs.last_hidden_state, calls[-1])

    @property
    def _has_layers(self) -> bool:
        return self.head_kind == "layer" and self.num_heads > 1

    @property
    def can_guess(self) -> bool:
        """Whether heads 2..H see no more than the trunk's output, so that `guess` can ask them."""
        return self.num_heads > 1 and not self._has_layers

    def layer_hidden(self, call: LayerCall, head: int) -> Tensor:
        """What a head that is a layer, 2 ≤ k ≤ H, gives to the output layer: hidden_BSD, after the final norm."""
        return self._after_norm(call, self.heads[head - 2])

    def _after_norm(self, call: LayerCall, layer: nn.Module) -> Tensor:
        return cast(Tensor, self._norm()(call.of(layer)))

    def _norm(self) -> nn.Module:
        return final_norm(self.base.base_model, _list_of_layers(self.base))

    def hidden_behind(
        self, input_ids_BS: Tensor, position_ids_BS: Tensor, *, mask: Tensor | dict[str, Tensor], cache: Cache
    ) -> Tensor:
        """`hidden` of tokens that follow others.

        Args:
            mask: Added to attention's scores, [B, 1, S, columns of the cache with these tokens]; one for each kind of layer
                where there are two.
            cache: Keys and values; those of these tokens are added.

        Returns:
            hidden_BSD.
        """
        outputs = self.base.base_model(
            input_ids=input_ids_BS,
            position_ids=position_ids_BS,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        )
        return cast(Tensor, outputs.last_hidden_state)

    def guess(self, hidden_ND: Tensor) -> Tensor:
        """The likeliest token of each head 2..H, where the model `can_guess`.

        Returns:
            int64 [N, H - 1].
        """
        assert self.can_guess, "heads that are layers see more than the trunk's output"
        # One product for all heads: on a CPU it is the reading of the output layer that takes the time.
        moved_HND = torch.stack([hidden_ND + head(hidden_ND) for head in self.heads])
        tokens = self.head_logits(moved_HND.flatten(0, 1), 1).argmax(dim=-1)
        return tokens.view(len(self.heads), -1).T

    def head_logits(self, hidden_ND: Tensor, head: int) -> Tensor:
        """Logits of head k, 1 ≤ k ≤ H, with all that the base does to its own (soft cap, scale).

        Args:
            hidden_ND: The trunk's output; of a head that is a layer its own (`layer_hidden`).
            head: k.

        Returns:
            logits_NV in the dtype that the base gives them.
        """
        if head > 1 and not self._has_layers:
            hidden_ND = hidden_ND + self.heads[head - 2](hidden_ND)
        tail = self._tail(_GivenHidden(hidden_ND[None]))
        return cast(Tensor, tail(inputs_embeds=hidden_ND[None], use_cache=False).logits.squeeze(0))

    def layers(self) -> list[nn.Module]:
        """The decoder's layers.

        Raises:
            UserError: the architecture has no list of them.
        """
        return list(_list_of_layers(self.base))

    def recompute_activations(self) -> None:
        """Keep only the input of each layer for the backward, and compute the rest again there.

        transformers' own way is off in evaluation mode, in which models are trained here.
        """
        for layer in self.layers():
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)

    def logit_parameters(self) -> list[nn.Parameter]:
        """Parameters of the heads, of the base's output layer (tied or not), and of its final norm where heads are layers: each once."""
        norm = self._norm().parameters() if self._has_layers else ()
        tail = self._tail(_GivenHidden(None))
        return list(dict.fromkeys([*tail.parameters(), *norm, *self.heads.parameters()]))

    def num_parameters(self) -> int:
        """Weights of the base and the heads, of an adapter too."""
        return self.base.num_parameters() + sum(one.numel() for one in self.heads.parameters())

    def num_trainable(self) -> int:
        """Those of them that a training changes."""
        return sum(one.numel() for one in self.parameters() if one.requires_grad)

    def check_length(self, max_length: int) -> None:
        """Refuse documents that are longer than the base has positions."""
        num_positions = getattr(self.base.config.get_text_config(), "max_position_embeddings", None)
        if num_positions is not None and max_length > num_positions:
            raise Unfit(
                f"text.max_length is {max_length} but {type(self.base).__name__} has {num_positions} positions. "
                f"Set text.max_length to {num_positions} or less, or take a model with more positions."
            )

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write the plain base to `folder/model` and, if H > 1, the heads to `folder/heads.safetensors`; all ranks call it.

        Args:
            state: What `state_dict` gives, where this process holds a part of the parameters only, or others under other names; asked for
                one tensor at a time.
        """
        own = self.state_dict()
        whole = own if state is None else state
        tied = own.keys() - {name for name, _ in (*self.named_parameters(), *self.named_buffers())}
        plain = _plain(self.base)
        base = {name: value for name, value in plain.state_dict().items() if f"base.{name}" not in tied}
        export.save_pretrained(plain, folder / "model", base, _below("base.", base, whole))
        if self.num_heads > 1:
            heads = self.heads.state_dict()
            export.write_tensors(folder / HEADS_FILE, heads, _below("heads.", heads, whole))

    def load_heads(self, file: Path) -> None:
        """Take heads 2..H from a file that `save` wrote.

        Raises:
            Unfit: the file holds other heads, of another number or another width.
        """
        stored = safetensors.torch.load_file(file)
        own = self.heads.state_dict()
        if {name: value.shape for name, value in stored.items()} != {name: value.shape for name, value in own.items()}:
            kind, num_stored = _heads_in(stored)
            widths = sorted({value.shape[0] for value in stored.values()})
            raise Unfit(
                f"train.head_kind is {self.head_kind}, train.num_heads is {self.num_heads} and the model is "
                f"{next(iter(own.values())).shape[0] if own else '?'} wide, but {file} holds {num_stored} heads of width {widths}, which are "
                f"{kind}s. Set train.num_heads to {num_stored} and train.head_kind to {kind}, or take the heads that were trained with this model."
            )
        self.heads.load_state_dict(stored)

    def _take_native_heads(self, folder: Path) -> None:
        if (file := folder / HEADS_FILE).is_file() and self.num_heads > 1:
            log.info("%s has heads of its own, and training begins with these", folder)
            self.load_heads(file)

    def probe(self, name: str) -> None:
        """Prove on a few tokens that trunk and head make the base's logits, and that packed documents are separate.

        Raises:
            UserError: they do not, or the architecture cannot be called in this way; it names the architecture.
        """
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                fault = self._fault()
        # Whatever a foreign architecture raises here means one thing to the user: it cannot be used.
        except (
            TypeError,
            ValueError,
            AttributeError,
            KeyError,
            IndexError,
            RuntimeError,
        ) as error:
            # Of a model in parts it may be a rank that is gone.
            if isinstance(error, torch.OutOfMemoryError) or (self.is_in_parts and isinstance(error, RuntimeError)):
                raise
            fault = f"it fails on eight tokens: {type(error).__name__}: {error}"
        finally:
            self.train(was_training)
        if fault:
            raise UserError(
                f"The architecture {type(self.base).__name__} ({self.base.config.model_type}) of {name} cannot be trained "
                f"here: {fault}. Take a decoder-only model with ordinary attention, such as Llama, Qwen, Gemma or GPT-2."
            )

    def _fault(self) -> str:
        device = self.base.device
        ids_S = torch.arange(8, device=device) % self.base.config.get_text_config().vocab_size
        positions_S = torch.arange(8, device=device)
        whole = self.states(ids_S[None], positions_S[None])
        whole_SD = whole.hidden_BSD[0]
        logits_SV = self.base(input_ids=ids_S[None], use_cache=False).logits[0]
        tolerance = _tolerance(self.base)
        if not _is_close(self.head_logits(whole_SD, 1), logits_SV, tolerance):
            return "its trunk and output layer, called apart, do not give its own logits"
        if whole.call and not _is_close(self._after_norm(whole.call, self.layers()[-1])[0], whole_SD, tolerance):
            return "its last layer and final norm, called apart, do not give its trunk's output; train.head_kind residual does without"
        packed_SD = self.hidden(ids_S[None], positions_S[None] % 5)[0]
        apart = [self.hidden(part[None], positions_S[None, : len(part)])[0] for part in (ids_S[:5], ids_S[5:])]
        if not _is_close(packed_SD, torch.cat(apart), tolerance):
            return "documents that are packed into one row see one another"
        return ""

    def _tail(self, trunk: _GivenHidden) -> nn.Module:
        """The base with another module in its trunk's place; parameters are shared."""
        tail = copy.copy(self.base)
        tail._modules = {**self.base._modules, self.base.base_model_prefix: trunk}
        return tail


def _list_of_layers(base: PreTrainedModel) -> nn.ModuleList:
    lists = [one for one in base.base_model.modules() if isinstance(one, nn.ModuleList)]
    wanted = base.config.get_text_config().num_hidden_layers
    found = next((one for one in lists if len(one) == wanted), None)
    if found is None:
        raise UserError(
            f"{type(base).__name__} has no list of its {wanted} layers. Set train.parallelism to ddp and train.recompute_activations to false in the "
            "environment file, and train.method.kind to full and train.head_kind to residual in the recipe."
        )
    return found


def _heads_in(tensors: Mapping[str, Tensor]) -> tuple[HeadKind, int]:
    """Kind and number, with head 1, of stored heads."""
    numbers = {name.partition(".")[0] for name in tensors}
    return "residual" if "0.inner.weight" in tensors else "layer", 1 + len(numbers)


def _below(part: str, names: Collection[str], whole: Mapping[str, Tensor]) -> export.Tensors:
    """Those of a model's tensors that lie in a part of it, by their names there."""
    return export.Tensors(names, lambda name: whole[part + name])


def _plain(base: PreTrainedModel) -> PreTrainedModel:
    """The architecture of a base that may be quantized or have adapters, without its weights if it is or has."""
    if not any(type(module).__module__.startswith(("peft.", "bitsandbytes.")) for module in base.modules()):
        return base
    config = copy.deepcopy(base.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain = type(base)(config)
    plain.generation_config = base.generation_config
    return plain


class _GivenHidden(nn.Module):
    """Stands where the trunk was, and returns what it was given."""

    def __init__(self, hidden: Tensor | None) -> None:
        super().__init__()
        self.given = hidden

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPastAndCrossAttentions:
        return _TrunkOutput(last_hidden_state=self.given)


class _TrunkOutput(BaseModelOutputWithPastAndCrossAttentions):
    """A trunk's output of any architecture: what one of them adds (router logits, for example) is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


def _tolerance(base: PreTrainedModel) -> float:
    quantized = getattr(base.config, "quantization_config", None)
    is_exact = quantized is None or quantized.bnb_4bit_compute_dtype == torch.float32
    return PROBE_TOLERANCE if is_exact else _PROBE_TOLERANCE_16_BITS


def _is_close(value: Tensor, expected: Tensor, tolerance: float) -> bool:
    difference = (value - expected).abs().max()
    return bool(difference <= tolerance * expected.abs().max())
