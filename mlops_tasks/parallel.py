"""One model on all ranks: whole on each of them (`ddp`), or a part on each (`fsdp`).

Owns where parameters, gradients and the optimiser's state lie, when gradients are summed, and a training's state in one form whatever the
number of ranks and the way: `model` and `optimizer` by parameter name, whole, on the CPU of rank 0, without what is frozen. So a training
goes on with other ranks or the other way. The processes are `distributed`'s, what is in a checkpoint beside this is `training`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from mlops_tasks import distributed
from mlops_tasks.corpus import MicroBatch
from mlops_tasks.objective import StepSums, WeightedLoss


class Parallel:
    """A loss whose gradients are those of all ranks.

    Args:
        loss: on this rank's device; its parameters are replaced where they are spread, so an optimiser is made afterwards.
        way: `ddp` or `fsdp`; of one rank alone neither is used.
        rehearsal: a micro-batch without targets, on the device.
    """

    def __init__(self, loss: WeightedLoss, way: Literal["ddp", "fsdp"], *, rehearsal: MicroBatch) -> None:
        self.loss = loss
        self._module: nn.Module = loss
        if distributed.num_ranks() == 1:
            return
        if way == "fsdp":
            _shard(loss)
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

    def clip(self, max_norm: float, *, scale: float = 1.0) -> float:
        """Take the loss's scale from the gradients, and scale them down to a norm over all ranks; returns what that was."""
        parameters = list(self.loss.model.parameters())
        if scale != 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.div_(scale)
        norm = nn.utils.clip_grad_norm_(parameters, max_norm)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def weights(self) -> dict[str, Tensor]:
        """The model's `state_dict`, whole on rank 0; all ranks call it."""
        return {name: _whole(value) for name, value in self.loss.model.state_dict().items()}

    def state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """What `load` goes on from, on rank 0; all ranks call it."""
        if isinstance(self._module, FSDPModule):
            # After a forward without a backward the parameters are whole, and others than those that the optimiser knows.
            self._module.reshard()
        states = {name: optimizer.state.get(parameter, {}) for name, parameter in _learnt(self.loss.model)}
        moments = {name: {key: _whole(value) for key, value in state.items()} for name, state in states.items()}
        model = {name: _whole(value) for name, value in _without_frozen(self.loss.model).items()}
        return {"model": model, "optimizer": moments}

    def load(self, state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
        """Go on from what `state` gave on rank 0; all ranks call it with the same."""
        model = self.loss.model
        with torch.no_grad():
            for name, own in _without_frozen(model).items():
                own.copy_(_like(state["model"][name], own))
        for name, parameter in _learnt(model):
            moments = state["optimizer"][name]
            optimizer.state[parameter] = {
                key: _like(value, parameter) if value.shape == parameter.shape else value.to(parameter.device)
                for key, value in moments.items()
            }


def _learnt(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _without_frozen(model: nn.Module) -> dict[str, Tensor]:
    """The `state_dict` without what a training does not change, since it is in the model that it begins with."""
    all_names = model.named_parameters(remove_duplicate=False)
    frozen = {name for name, parameter in all_names if not parameter.requires_grad}
    # A quantized weight has scales in the `state_dict`, below its own name.
    return {
        name: value
        for name, value in model.state_dict().items()
        if frozen.isdisjoint(accumulate(name.split("."), "{}.{}".format))
    }


def _whole(value: Tensor) -> Tensor:
    """A tensor of which each rank may have a part; whole on rank 0 alone, where it then is on the CPU."""
    if not isinstance(value, DTensor):
        return value
    whole = value.full_tensor()
    return whole.cpu() if distributed.rank() == 0 else whole[:0]


def _like(whole: Tensor, own: Tensor) -> Tensor:
    """This rank's part of a tensor."""
    if not isinstance(own, DTensor):
        return whole.to(own.device)
    return distribute_tensor(whole.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


def _shard(loss: WeightedLoss) -> None:
    """Spread the decoder's layers one by one, so that one of them is whole at a time, and all the rest together.

    What gives logits stays whole from the loss's forward to the end of its backward, as `mtp_loss` takes its gradients by hand.
    """
    mesh = init_device_mesh(distributed.device().type, (distributed.num_ranks(),))
    for layer in loss.model.layers():
        fully_shard(layer, mesh=mesh)
    fully_shard(loss, mesh=mesh, reshard_after_forward=False)
    for name in ("weights_of", "sureness_of"):
        register_fsdp_forward_method(loss, name)
