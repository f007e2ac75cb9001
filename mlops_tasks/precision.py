"""In which number format a training's matrix products are made, and the loss scale that float16 needs.

Owns whether a device has a format, and when the scale moves. Weights, statistics and loss are float32 always; where the scale enters
the loss is `objective`'s, what follows from an overflow `training`'s.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch

from mlops_tasks.errors import UserError

Precision = Literal["float32", "bfloat16", "float16"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_FIRST_FACTOR, _LARGEST_FACTOR = 2.0**16, 2.0**24
_STEPS_TO_GROW = 2000


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context in which matrix products are made in a precision."""
    return torch.autocast(device.type, dtype=_DTYPES[precision], enabled=precision != "float32")


def require(device: torch.device, precision: Precision) -> None:
    """Refuse a precision that the device does not have, instead of computing slowly or in another one.

    Raises:
        UserError: it does not have it.
    """
    if (reason := _fault(device, precision)) is not None:
        others = [one for one in _DTYPES if one != precision]
        raise UserError(
            f"train.precision is {precision}, which {device} does not have ({reason}). Set it to {' or '.join(others)} in the recipe, or "
            "train on another device."
        )


def _fault(device: torch.device, precision: Precision) -> str | None:
    if (
        precision == "bfloat16"
        and device.type == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        return f"{torch.cuda.get_device_name(device)} only emulates it"
    one = torch.ones(2, 2, device=device, requires_grad=True)
    try:
        with warnings.catch_warnings(), autocast(device, precision):
            warnings.simplefilter("ignore")  # torch goes on in another one and only warns
            product = one @ one
        product.sum().backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        return str(error)
    return None if product.dtype == _DTYPES[precision] else f"torch computes in {product.dtype} instead"


@dataclass
class LossScale:
    """What the loss is multiplied by, so that its gradients fit float16; a power of two, which changes no digit.

    Reference:
        arXiv 1710.03740, section 3.2. A step whose gradients overflow is made again here with half the scale, and not left out.
    """

    is_needed: bool = False
    factor: float = 1.0
    num_steps: int = 0
    """Since it last moved."""
    num_halvings: int = 0
    """In the step that is being made."""
    num_overflows: int = 0

    @classmethod
    def of(cls, precision: Precision) -> LossScale:
        """Where a training starts."""
        return cls(is_needed=True, factor=_FIRST_FACTOR) if precision == "float16" else cls()

    def shrink(self) -> bool:
        """Halve it after an overflow; False where there is nothing to halve, so that it was none."""
        if self.factor == 1:
            return False
        self.factor, self.num_steps = self.factor / 2, 0
        self.num_halvings += 1
        return True

    def leave_out(self) -> None:
        """Take the halvings of a step back that is left out: with no scale at all its gradients were finite."""
        self.factor, self.num_halvings = self.factor * 2**self.num_halvings, 0

    def count_step(self) -> None:
        """Double it now and then, where gradients have fit for long."""
        self.num_overflows, self.num_halvings = self.num_overflows + self.num_halvings, 0
        self.num_steps += 1
        if self.is_needed and self.num_steps >= _STEPS_TO_GROW and self.factor < _LARGEST_FACTOR:
            self.factor, self.num_steps = self.factor * 2, 0

    def metrics(self) -> dict[str, Any]:
        """For curves and manifest; nothing where no scale is needed."""
        return {"loss_scale": self.factor, "num_overflows": self.num_overflows} if self.is_needed else {}
