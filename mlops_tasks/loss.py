"""The weighted multi-token loss, in chunks: targets and weights of each head, losses per token, the training loss.

Owns the alignment of heads and targets, and the bound on memory: logits exist for one head and one chunk of rows at a time,
their gradient in the same place, and activations of one head that is a layer.
Leaves scores and weights to `scoring`, and sums over micro-batches and ranks to whoever knows them.

Shapes: B batch, S position, H head, V vocabulary, D width, N rows. Head k is index k-1 of a dimension H.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from mlops_tasks.heads import LayerCall
from mlops_tasks.model import MtpModel

NO_TARGET = -100


class MtpLoss(NamedTuple):
    """Result of `mtp_loss`."""

    loss: Tensor
    """Scalar with gradient: this call's part of the step's loss."""
    head_nats_H: Tensor
    """Unweighted sums of nats over this call's targets, float32 or wider, detached."""


def head_balance(kind: Literal["decaying", "equal"], num_heads: int) -> Tensor:
    """β [H]: `equal` is 1/H each; `decaying` is 1 for head 1 and 0.3 in all for the others, falling by 0.6 a head."""
    if kind == "equal":
        return torch.full((num_heads,), 1 / num_heads)
    falling = 0.6 ** torch.arange(num_heads - 1, dtype=torch.float64)
    return torch.cat([torch.ones(1, dtype=torch.float64), 0.3 * falling / falling.sum()]).float()


def shifted_targets(
    input_ids_BS: Tensor,
    *,
    is_target_BS: Tensor,
    document_ids_BS: Tensor,
    num_heads: int,
) -> Tensor:
    """What each head predicts at each position.

    Args:
        input_ids_BS: Token ids.
        is_target_BS: True where the token is to be learnt (completion, neither prompt nor padding).
        document_ids_BS: Document in the packed row; -1 is padding.
        num_heads: H.

    Returns:
        y_HBS: x[b, t+k] where that is a target of the same document, else -100.

    Example:
        x = 5 6 7 8, targets 7 and 8, one document: y_1 = -100 7 8 -100 and y_2 = 7 8 -100 -100.
    """
    targets_HBS = torch.full(
        (num_heads, *input_ids_BS.shape),
        NO_TARGET,
        dtype=torch.long,
        device=input_ids_BS.device,
    )
    length = input_ids_BS.shape[1]
    for head in range(1, min(num_heads, length - 1) + 1):
        same_document = document_ids_BS[:, head:] == document_ids_BS[:, : length - head]
        is_learnt = is_target_BS[:, head:].bool() & same_document & (document_ids_BS[:, head:] >= 0)
        targets_HBS[head - 1, :, : length - head] = torch.where(is_learnt, input_ids_BS[:, head:], NO_TARGET)
    return targets_HBS


def shifted_weights(weights_BS: Tensor, *, targets_HBS: Tensor) -> Tensor:
    """W_HBS: W_k[b,t] = w[b,t+k], and 0 where head k has no target, so that all heads agree on a token's importance."""
    shifted_HBS = weights_BS.new_zeros(targets_HBS.shape)
    length = weights_BS.shape[1]
    for head in range(1, min(len(targets_HBS), length - 1) + 1):
        shifted_HBS[head - 1, :, : length - head] = weights_BS[:, head:]
    return shifted_HBS.masked_fill(targets_HBS == NO_TARGET, 0)


def at_tokens(nats_BS: Tensor) -> Tensor:
    """Move head 1's losses from the position that predicts to the token that is predicted: out[b, j] = in[b, j-1]."""
    return nn.functional.pad(nats_BS[:, :-1], (1, 0))


@torch.no_grad()
def token_losses(model: MtpModel, hidden_BSD: Tensor, *, targets_BS: Tensor, chunk_rows: int) -> Tensor:
    """Losses of head 1, token by token, without gradient.

    Args:
        model: Gives the logits.
        hidden_BSD: The trunk's output.
        targets_BS: Head 1 of `shifted_targets`.
        chunk_rows: Positions whose logits exist at one time.

    Returns:
        nats_BS, float32: at t the loss of token t+1; 0 where there is no target.
    """
    nats_N = torch.zeros(targets_BS.numel(), device=targets_BS.device)
    hidden_ND = hidden_BSD.detach().flatten(0, 1)
    for rows in torch.split(_rows_with_target(targets_BS), chunk_rows):
        logits = model.head_logits(hidden_ND[rows], 1)
        nats, _ = _softmax_in_place(_widened(logits), targets_BS.flatten()[rows])
        nats_N[rows] = nats.float()
    return nats_N.view_as(targets_BS)


def mtp_loss(
    model: MtpModel,
    hidden_BSD: Tensor,
    *,
    call: LayerCall | None = None,
    targets_HBS: Tensor,
    weights_HBS: Tensor,
    balance_H: Tensor,
    num_targets_H: Tensor,
    chunk_rows: int,
) -> MtpLoss:
    """L = Σ_k β_k · Σ_{b,t} W_k · c_k / N_k, with c_k = -log p_k(y_k).

    Every parameter that gives logits gets one gradient (zeros if it was not used), so that DistributedDataParallel sees each
    of them exactly once, on a rank without targets too.

    Args:
        model: Gives the logits of each head.
        hidden_BSD: The trunk's output.
        call: With it, from `MtpModel.states`, where heads 2..H are layers.
        targets_HBS: From `shifted_targets`.
        weights_HBS: From `shifted_weights`; no gradient flows through it.
        balance_H: β.
        num_targets_H: N_k, over all micro-batches and all ranks of the step.
        chunk_rows: Positions whose logits exist at one time.

    Returns:
        This call's part of the loss (local to the rank; the parts of a step add up), and its unweighted sums per head.
    """
    parameters = [parameter for parameter in model.logit_parameters() if parameter.requires_grad]
    beside_BSD = None if call is None else call.hidden_BSD
    given = [one for one in (hidden_BSD, beside_BSD) if one is not None]
    scale_H = balance_H.to(weights_HBS) / num_targets_H.to(weights_HBS).clamp(min=1)
    work = _Work(
        model=model,
        parameters=parameters,
        call=None if call is None else call._replace(hidden_BSD=call.hidden_BSD.detach()),
        targets_HBS=targets_HBS,
        scaled_weights_HBS=weights_HBS.detach() * scale_H[:, None, None],
        chunk_rows=chunk_rows,
        # A Function's forward always runs without gradient mode, so it must be told.
        wants_gradient=torch.is_grad_enabled() and any(one.requires_grad for one in (*given, *parameters)),
    )
    return MtpLoss(*_ChunkedLoss.apply(work, hidden_BSD, beside_BSD, *parameters))  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class _Work:
    """What `_ChunkedLoss` needs beside the tensors that it differentiates."""

    model: MtpModel
    parameters: list[nn.Parameter]
    call: LayerCall | None
    """Without gradient."""
    targets_HBS: Tensor
    scaled_weights_HBS: Tensor
    chunk_rows: int
    wants_gradient: bool

    def chunks(self, head: int) -> Iterator[_Chunk]:
        """All that a head has to predict."""
        targets_N, weights_N = (one[head - 1].flatten() for one in (self.targets_HBS, self.scaled_weights_HBS))
        for rows in torch.split(_rows_with_target(targets_N), self.chunk_rows):
            if len(rows):
                yield _Chunk(head, rows, targets_N[rows], weights_N[rows])


class _Chunk(NamedTuple):
    """Some predictions of one head."""

    head: int
    rows: Tensor
    """Indices into B·S; rows without a target never come."""
    targets: Tensor
    weights: Tensor


class _ChunkedLoss(torch.autograd.Function):
    """Takes a chunk's gradient while its logits exist; backward only hands out the sums.

    Several `backward()` calls in one step would mark shared parameters ready twice in DistributedDataParallel.
    """

    @staticmethod
    def forward(
        ctx: Any, work: _Work, hidden_BSD: Tensor, beside_BSD: Tensor | None, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        sums = _Sums(work, hidden_BSD)
        trunk = _Seen.of(hidden_BSD, wants_gradient=work.wants_gradient and hidden_BSD.requires_grad)
        beside = beside_BSD is not None and work.wants_gradient and beside_BSD.requires_grad
        beside_gradient = torch.zeros_like(beside_BSD) if beside_BSD is not None and beside else None
        for head in range(1, len(work.targets_HBS) + 1):
            if work.call is None or head == 1:
                sums.add(work.chunks(head), trunk)
            else:
                sums.add_layer(head, work.call, beside_gradient)
        ctx.gradients = [trunk.gradient(hidden_BSD), beside_gradient, *sums.gradients]
        ctx.mark_non_differentiable(sums.head_nats_H)
        return sums.loss, sums.head_nats_H

    @staticmethod
    def backward(ctx: Any, loss_gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # scaled in place, hence good for one backward only
        assert gradients is not None, "a loss of mtp_loss can be differentiated once"
        return None, *(each if each is None else each.mul_(loss_gradient) for each in gradients)


class _Seen(NamedTuple):
    """What chunks of a head are made from, and its gradient so far."""

    hidden_ND: Tensor
    gradient_ND: Tensor | None

    @classmethod
    def of(cls, hidden_BSD: Tensor, *, wants_gradient: bool) -> _Seen:
        hidden_ND = hidden_BSD.detach().flatten(0, 1)
        return cls(hidden_ND, torch.zeros_like(hidden_ND) if wants_gradient else None)

    def gradient(self, hidden_BSD: Tensor) -> Tensor | None:
        return None if self.gradient_ND is None else self.gradient_ND.view(hidden_BSD.shape)


class _Sums:
    """Loss and gradients so far; what a chunk or a layer needs beside them is gone when `add` or `add_layer` returns."""

    def __init__(self, work: _Work, hidden_BSD: Tensor) -> None:
        self.work = work
        self.gradients = [torch.zeros_like(each) for each in work.parameters] if work.wants_gradient else []
        self.products = ProductsIntoSums(zip(work.parameters, self.gradients, strict=False))
        dtype = torch.promote_types(hidden_BSD.dtype, torch.float32)
        self.loss = torch.zeros((), dtype=dtype, device=hidden_BSD.device)
        self.head_nats_H = torch.zeros(len(work.targets_HBS), dtype=dtype, device=hidden_BSD.device)

    def add_layer(self, head: int, call: LayerCall, gradient_BSD: Tensor | None) -> None:
        """Add all chunks of a head that is a layer, whose activations live no longer than that."""
        if (self.work.targets_HBS[head - 1] == NO_TARGET).all():
            return
        leaf = call.hidden_BSD.detach().requires_grad_(gradient_BSD is not None)
        with torch.set_grad_enabled(self.work.wants_gradient):
            hidden_BSD = self.work.model.layer_hidden(call._replace(hidden_BSD=leaf), head)
        seen = _Seen.of(hidden_BSD, wants_gradient=hidden_BSD.requires_grad)
        self.add(self.work.chunks(head), seen)
        if hidden_BSD.requires_grad:
            edge = get_gradient_edge(hidden_BSD)
            found = self._add_gradients(leaf, edge, cast(Tensor, seen.gradient(hidden_BSD)))
            if gradient_BSD is not None and found is not None:
                gradient_BSD += found

    def add(self, chunks: Iterable[_Chunk], seen: _Seen) -> None:
        """Add chunks of one head."""
        for chunk in chunks:
            self._add_chunk(chunk, seen)

    def _add_chunk(self, chunk: _Chunk, seen: _Seen) -> None:
        head, rows, targets, weights = chunk
        leaf = seen.hidden_ND[rows].requires_grad_(seen.gradient_ND is not None)
        with torch.set_grad_enabled(self.work.wants_gradient), self.products:
            logits = self.work.model.head_logits(leaf, head)
        edge = get_gradient_edge(logits) if logits.requires_grad else None
        dtype, logits = logits.dtype, logits.detach()
        exponentials = _widened(logits)
        del logits  # where they have 16 bits, before their gradient takes the same room again
        nats, sums = _softmax_in_place(exponentials, targets)
        self.head_nats_H[head - 1] += nats.sum()
        self.loss += (weights * nats).sum()
        if edge is not None:
            gradient = exponentials.mul_((weights / sums)[:, None])
            gradient.scatter_add_(1, targets[:, None], -weights[:, None].to(gradient.dtype))
            found = self._add_gradients(leaf, edge, gradient.to(dtype))
            if seen.gradient_ND is not None and found is not None:
                seen.gradient_ND[rows] += found

    def _add_gradients(self, leaf: Tensor, edge: GradientEdge, output_gradient: Tensor) -> Tensor | None:
        """Add what the parameters get; returns what the leaf gets, if it wants any."""
        inputs = [leaf, *self.work.parameters] if leaf.requires_grad else self.work.parameters
        found = list(torch.autograd.grad([edge], inputs, [output_gradient], allow_unused=True))
        of_leaf = found.pop(0) if leaf.requires_grad else None
        for total, gradient in zip(self.gradients, found, strict=True):
            if gradient is not None:
                total.add_(gradient)
        return of_leaf


class ProductsIntoSums(TorchFunctionMode):
    """Linear layers whose weight's gradient is added to its sum by the product that makes it, and whose results lie in one place.

    As a tensor of its own, which autograd would make of it, the gradient of a whole vocabulary's weight takes as much memory as the sum, and its
    adding up as much time as a product with a hundred rows. Only where rows and sums have one dtype, which is so in float32: under autocast
    products are made as ever.

    Args:
        sums: weights, and the sums of their gradients.
    """

    def __init__(self, sums: Iterable[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.sums = {id(weight): total for weight, total in sums}
        self.rooms: dict[int, Tensor] = {}
        self.used: set[int] = set()

    def __enter__(self) -> Self:
        self.used.clear()
        return cast(Self, super().__enter__())  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, function: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if function is not nn.functional.linear or kwargs or not self._is_plain(*args[:2]):
            return function(*args, **(kwargs or {}))
        rows, weight, *bias = args
        self.used.add(id(weight))
        into = _Into(self.sums[id(weight)], self._room(rows, weight))
        product = _ProductIntoSum.apply(rows, weight, into)  # type: ignore[no-untyped-call]
        return product if not bias or bias[0] is None else product + bias[0]

    def _is_plain(self, rows: Tensor, weight: Tensor) -> bool:
        # A room holds one product of a chunk, and autocast makes products in another dtype than the sums'.
        is_free = id(weight) in self.sums and id(weight) not in self.used
        return is_free and rows.dtype == weight.dtype and not torch.is_autocast_enabled(rows.device.type)

    def _room(self, rows: Tensor, weight: Tensor) -> Tensor:
        """The same for all chunks: to give memory back and get it anew takes longer than to write to it."""
        size = (rows.numel() // rows.shape[-1], len(weight))
        if id(weight) not in self.rooms or len(self.rooms[id(weight)]) < size[0]:
            self.rooms[id(weight)] = rows.new_empty(size)
        return self.rooms[id(weight)][: size[0]]


class _Into(NamedTuple):
    """Where a product and its weight's gradient go; not to be seen by autograd."""

    total_VD: Tensor
    room_NV: Tensor


class _ProductIntoSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight_VD: Tensor, into: _Into) -> Tensor:
        ctx.save_for_backward(rows, weight_VD)
        ctx.total_VD = into.total_VD
        torch.mm(rows.flatten(0, -2), weight_VD.T, out=into.room_NV)
        return into.room_NV.view(*rows.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None]:
        rows, weight_VD = ctx.saved_tensors
        ctx.total_VD.addmm_(gradient.flatten(0, -2).T, rows.flatten(0, -2))
        return gradient @ weight_VD if ctx.needs_input_grad[0] else None, None, None


def _softmax_in_place(logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Turn logits into exponentials; returns nats of the targets, and the sums [N] that make probabilities of the exponentials."""
    logits_NV.sub_(logits_NV.amax(1, keepdim=True))
    of_targets_N = logits_NV.gather(1, targets_N[:, None])[:, 0]
    sums_N = logits_NV.exp_().sum(1)
    return sums_N.log() - of_targets_N, sums_N


def _rows_with_target(targets_BS: Tensor) -> Tensor:
    return (targets_BS.flatten() != NO_TARGET).nonzero().flatten()


def _widened(logits_NV: Tensor) -> Tensor:
    """In float32 or wider: themselves, or a copy."""
    return logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
