"""How a model in parts starts on two ranks, read at once, read in parts and with an adapter, and how it is saved; `test_parallel` runs this file
once.

Memory is what a rank holds of its own, when it begins to spread a layer, when a tensor was put together and when it is about to be written: pages
of a file that is mapped are not counted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from mlops_tasks import distributed, parallel
from mlops_tasks.adapters import Adapter
from mlops_tasks.config.learning import Lora, Train
from mlops_tasks.config.sources import Text
from mlops_tasks.corpus import Lesson, Scorer
from mlops_tasks.model import MtpModel
from mlops_tasks.objective import WeightedLoss


def own_mebibytes() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def start(folder: Path, way: Literal["at_once", "in_parts", "adapted"]) -> list[tuple[float, float]]:
    """Spread a model, leave behind what this rank has then, and save it; MiB that each took at most, by rank."""
    before, seen = own_mebibytes(), list[float]()
    plain = parallel.fully_shard

    def fully_shard(module: nn.Module, **how: Any) -> Any:
        seen.append(own_mebibytes())
        return plain(module, **how)

    parallel.fully_shard = fully_shard
    load = MtpModel.load_in_parts if way == "in_parts" else MtpModel.load
    model = load(folder, num_heads=2, seed=0)
    assert model.is_in_parts == (way == "in_parts")
    adapter = Adapter(model, Lora(kind="lora", rank=4), seed=0) if way == "adapted" else None
    lesson = Lesson(
        train=Train(steps=1, num_heads=2), text=Text(), scoring=Scorer(scorer="uniform"), weighting=None, seed=0, fold=None
    )  # fmt: skip
    spread = parallel.Parallel(WeightedLoss(model, lesson, chunk_rows=8), "fsdp", rehearsal=None)  # type: ignore[arg-type]
    spread.probe("here")
    assert all(isinstance(one, DTensor) for one in model.parameters()), "an optimiser would learn copies"
    rows = {name: value.to_local() for name, value in model.state_dict().items()}
    torch.save(rows, folder.with_name(f"{folder.name}-{way}-{distributed.rank()}.pt"))
    return distributed.gather((max(seen) - before, save(spread, adapter, folder.with_name(f"saved-{way}"))))


def save(spread: parallel.Parallel, adapter: Adapter | None, folder: Path) -> float:
    """MiB that it took at most."""
    before, seen = own_mebibytes(), list[float]()

    def noting(plain: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        def noted(value: torch.Tensor) -> torch.Tensor:
            found = plain(value)
            seen.append(own_mebibytes())
            return found

        return noted

    parallel._whole = noting(parallel._whole)
    torch.Tensor.contiguous = noting(torch.Tensor.contiguous)  # type: ignore[assignment] # the last thing before a tensor is written
    weights: Mapping[str, torch.Tensor] = spread.weights()
    spread.loss.model.save(folder, weights if adapter is None else adapter.merged(weights))
    return max(seen) - before


if __name__ == "__main__":
    given = Path(sys.argv[1])
    ways = ("at_once", "in_parts", "adapted")
    ended = {way: distributed.launch(start, num_ranks=2, args=(given, way)) for way in ways}
    json.dump(ended, sys.stdout)
