"""One model on all ranks: whole on each of them (`ddp`), or a part on each (`fsdp`).

Owns where parameters, gradients and the optimiser's state lie, when gradients are summed, and a training's state in one form whatever the
number of ranks and the way: rows of tensors by parameter name, without what is frozen. So a training goes on with other ranks or the other
way. The processes are `distributed`'s, how a state is kept `checkpoint`'s, what is in it beside this `training`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel

from mlops_tasks import distributed
from mlops_tasks.checkpoint import Saved, Slab
from mlops_tasks.corpus import MicroBatch
from mlops_tasks.export import Tensors
from mlops_tasks.objective import StepSums, WeightedLoss


class Parallel:
    """A loss whose gradients are those of all ranks.

    Args:
        loss: goes to this rank's device; its parameters are replaced where they are spread, so an optimiser is made afterwards.
        way: `ddp` or `fsdp`; of one rank alone neither is used.
        rehearsal: a micro-batch without targets, on the device.
    """

    def __init__(self, loss: WeightedLoss, way: Literal["ddp", "fsdp"], *, rehearsal: MicroBatch) -> None:
        self.loss = loss
        self._module: nn.Module = loss
        if way == "fsdp" and distributed.num_ranks() > 1:
            _shard(loss)
            return
        loss.to(distributed.device())
        if distributed.num_ranks() == 1:
            return
        self._module = DistributedDataParallel(loss, forward_sync_buffers=False, gradient_as_bucket_view=True)
        # The first backward decides in which order gradients are summed from the second one on. It is spent here, on a row
        # without targets, because a resumed training of three ranks or more must sum as an unbroken one does.
        torch.autograd.backward([self(rehearsal, rehearsal.num_targets_H()).loss])

    def __call__(self, micro: MicroBatch, num_targets_H: Tensor, scale: float = 1.0) -> StepSums:
        """`WeightedLoss`; all ranks call it equally often."""
        found: StepSums = self._module(micro, num_targets_H, scale)
        return found

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a rank's part of the loss, for both ways take the mean over ranks."""
        torch.autograd.backward([loss * distributed.num_ranks()])

    @contextmanager
    def summing(self, *, is_last: bool) -> Iterator[None]:
        """Forward and backward of a micro-batch; the ranks' gradients are summed with the last one of a step."""
        if isinstance(self._module, FSDPModule):
            self._module.set_requires_gradient_sync(is_last)
        without = isinstance(self._module, DistributedDataParallel) and not is_last
        with self._module.no_sync() if without else nullcontext():  # type: ignore[operator]
            yield

    def probe(self, name: str) -> None:
        """`MtpModel.probe`; afterwards parameters are those that an optimiser has to know."""
        self.loss.probe(name)
        self._reshard()

    def clip(self, max_norm: float, *, scale: float = 1.0) -> float:
        """Take the loss's scale from the gradients, and scale them down to a norm over all ranks; returns what that was."""
        parameters = list(self.loss.model.parameters())
        if scale != 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.div_(scale)
        norm = nn.utils.clip_grad_norm_(parameters, max_norm)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def weights(self) -> Mapping[str, Tensor]:
        """The model's `state_dict`, a tensor of which is whole on rank 0 when all ranks ask for it; they ask in the same order."""
        self._reshard()
        parts = self.loss.model.state_dict()
        return Tensors(parts, lambda name: _whole(parts[name]))

    def state(self, optimizer: torch.optim.Optimizer) -> dict[str, Slab]:
        """This rank's part of what `load` goes on from: copies on the CPU, by name; all ranks call it.

        What is spread is told by each rank's rows, and of the rest each tensor by one rank, so that all have as much to write; what has no
        rows by rank 0.
        """
        self._reshard()
        found = {f"model/{name}": value for name, value in _kept(self.loss.model).items()}
        for name, parameter in _learnt(self.loss.model):
            found |= {f"{key}/{name}": value for key, value in optimizer.state.get(parameter, {}).items()}
        writers = _shared_out(
            {name: value.nbytes for name, value in found.items() if value.ndim and not isinstance(value, DTensor)}
        )
        return {
            name: (_first_row(value), _local(value).to("cpu", copy=True))
            for name, value in found.items()
            if writers.get(name, distributed.rank() if value.ndim else 0) == distributed.rank()
        }

    def _reshard(self) -> None:
        if isinstance(self._module, FSDPModule):
            # After a forward without a backward the parameters are whole, and others than those that the optimiser knows.
            self._module.reshard()

    def load(self, saved: Saved, optimizer: torch.optim.Optimizer) -> None:
        """Go on from what `state` gave on all ranks, whichever they were; all ranks call it with the same."""
        self._reshard()
        model = self.loss.model
        kinds: dict[str, list[str]] = {}
        for kind, _, name in (one.partition("/") for one in saved.names):
            kinds.setdefault(name, []).append(kind)
        with torch.no_grad():
            for name, own in _kept(model).items():
                _fill(own, saved, f"model/{name}")
            for name, parameter in _learnt(model):
                optimizer.state[parameter] = {
                    kind: _moment(saved, f"{kind}/{name}", parameter) for kind in kinds[name] if kind != "model"
                }


def _learnt(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _kept(model: nn.Module) -> dict[str, Tensor]:
    """The `state_dict` with what is tied only once, and without what a training does not change: that is in the model it begins with."""
    names = {name for name, _ in (*_learnt(model), *model.named_buffers())}
    return {name: value for name, value in model.state_dict().items() if name in names}


def _shared_out(num_bytes: Mapping[str, int]) -> dict[str, int]:
    """Which rank writes which tensor: the largest first, each to the rank that has the least so far."""
    loads = [0] * distributed.num_ranks()
    found = {}
    for name in sorted(num_bytes, key=lambda name: (-num_bytes[name], name)):
        found[name] = loads.index(min(loads))
        loads[found[name]] += num_bytes[name]
    return found


def _local(value: Tensor) -> Tensor:
    """This rank's rows of a tensor, or all of one that is not spread."""
    return value.to_local() if isinstance(value, DTensor) else value.detach()


def _first_row(value: Tensor) -> int:
    """Which row of a tensor is the first that this rank has."""
    if not isinstance(value, DTensor):
        return 0
    assert value.placements == (Shard(0),), f"rows are spread as {value.placements}"
    first = min(len(value), distributed.rank() * -(-len(value) // distributed.num_ranks()))
    assert len(_local(value)) == min(len(value) - first, -(-len(value) // distributed.num_ranks()))
    return first


def _fill(own: Tensor, saved: Saved, name: str) -> None:
    local = _local(own)
    local.copy_(saved.rows(name, _first_row(own), len(local)) if own.ndim else saved.rows(name))


def _moment(saved: Saved, name: str, parameter: nn.Parameter) -> Tensor:
    """A part of the optimiser's state, spread as the parameter is if it is as large."""
    if name.startswith("step/"):
        return saved.rows(name).to(parameter.device, copy=True)
    moment = torch.zeros_like(parameter, requires_grad=False)
    _fill(moment, saved, name)
    return moment


def _whole(value: Tensor) -> Tensor:
    """A tensor of which each rank may have a part; whole on rank 0 alone, where it then is on the CPU."""
    if not isinstance(value, DTensor):
        return value
    whole = value.full_tensor()
    return whole.cpu() if distributed.rank() == 0 else whole.new_empty(0)  # a view would keep the whole


def _shard(loss: WeightedLoss) -> None:
    """Spread the decoder's layers one by one, so that one of them is whole at a time, and all the rest together.

    What gives logits stays whole from the loss's forward to the end of its backward, as `mtp_loss` takes its gradients by hand.
    """
    mesh = init_device_mesh(distributed.device().type, (distributed.num_ranks(),))
    for part in (*loss.model.layers(), loss):
        # A layer is whole here until it is spread, and no two are.
        loss.model.read(part)
        part.to(mesh.device_type)
        fully_shard(part, mesh=mesh, reshard_after_forward=part is not loss)
    for name in ("weights_of", "sureness_of", "probe"):
        register_fsdp_forward_method(loss, name)
