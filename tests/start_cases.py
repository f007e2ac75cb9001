"""How a model in parts starts on two ranks, read at once and read in parts, and how it is saved; `test_parallel` runs this file once.

Memory is what a rank holds of its own, when it begins to spread a layer and when a tensor was put together: pages of a file that is mapped
are not counted.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from mlops_tasks import distributed, parallel
from mlops_tasks.config.learning import Train
from mlops_tasks.config.sources import Text
from mlops_tasks.corpus import Lesson, Scorer
from mlops_tasks.model import MtpModel
from mlops_tasks.objective import WeightedLoss


def own_mebibytes() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def start(folder: Path, in_parts: bool) -> list[tuple[float, float]]:
    """Spread a model, leave behind what this rank has then, and save it; MiB that each took at most, by rank."""
    before, seen = own_mebibytes(), list[float]()
    plain = parallel.fully_shard

    def fully_shard(module: nn.Module, **how: Any) -> Any:
        seen.append(own_mebibytes())
        return plain(module, **how)

    parallel.fully_shard = fully_shard
    load = MtpModel.load_in_parts if in_parts else MtpModel.load
    model = load(folder, num_heads=2, seed=0)
    assert model.is_in_parts == in_parts
    lesson = Lesson(
        train=Train(steps=1, num_heads=2), text=Text(), scoring=Scorer(scorer="uniform"), weighting=None, seed=0, fold=None
    )  # fmt: skip
    spread = parallel.Parallel(WeightedLoss(model, lesson, chunk_rows=8), "fsdp", rehearsal=None)  # type: ignore[arg-type]
    spread.probe("here")
    assert all(isinstance(one, DTensor) for one in model.parameters()), "an optimiser would learn copies"
    rows = {name: value.to_local() for name, value in model.state_dict().items()}
    torch.save(rows, folder.with_name(f"{folder.name}-{in_parts}-{distributed.rank()}.pt"))
    return distributed.gather((max(seen) - before, save(spread, folder.with_name(f"saved-{in_parts}"))))


def save(spread: parallel.Parallel, folder: Path) -> float:
    """MiB that it took at most."""
    before, seen = own_mebibytes(), list[float]()
    plain = parallel._whole

    def whole(value: torch.Tensor) -> torch.Tensor:
        found = plain(value)
        seen.append(own_mebibytes())
        return found

    parallel._whole = whole
    spread.loss.model.save(folder, spread.weights())
    return max(seen) - before


if __name__ == "__main__":
    given = Path(sys.argv[1])
    ended = {str(one): distributed.launch(start, num_ranks=2, args=(given, one)) for one in (False, True)}
    json.dump(ended, sys.stdout)
