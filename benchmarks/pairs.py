"""Two ways of doing one thing, measured in turns: what else the machine does hits both alike, and what counts is the median of the pairs.

Each measurement is a process of its own, so that its peak memory is its own too. On a CPU seconds are the processor's, in one thread.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mlops_tasks.machine import accelerator, num_cores

RESULTS = Path(".wmtp/bench")
_STATUS = Path("/proc/self/status")

_ready: list[float] = []


class Measured(NamedTuple):
    """What one process came to."""

    amount: float
    """Seconds, or tokens a second."""
    mebibytes: float
    """Peak beyond what was there when the set-up was over."""


Way = Callable[[], float]
"""Does the work once, what only warms up included, and returns the amount; a function of a module, or a `partial` of one."""


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    name: str
    unit: str
    ours: float
    peer: float
    ratio: float
    """Ours by the peer's, the median of the pairs."""
    peer_is: str
    is_more_better: bool = False
    aim: float | None = None
    ours_mebibytes: float | None = None
    peer_mebibytes: float | None = None

    @property
    def is_reached(self) -> bool | None:
        """Whether the aim is; None where there is none."""
        if self.aim is None:
            return None
        return self.ratio >= self.aim if self.is_more_better else self.ratio <= self.aim


def in_turns(ways: Mapping[str, Way], *, rounds: int) -> dict[str, list[Measured]]:
    """Measure every way once a round, the second round the other way about."""
    found: dict[str, list[Measured]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways) if number % 2 == 0 else list(ways)[::-1]:
            found[name].append(measured(ways[name]))
    return found


def paired(
    name: str, unit: str, ours: Sequence[Measured], peer: Sequence[Measured], *, part: int = 0, **facts: Any
) -> Result:
    """The line of two ways; `part` is 0 for the amount and 1 for the memory."""
    pairs = [(mine[part], other[part]) for mine, other in zip(ours, peer, strict=True)]
    middle = statistics.median
    return Result(
        name,
        unit,
        middle(mine for mine, _ in pairs),
        middle(other for _, other in pairs),
        middle(mine / other for mine, other in pairs),
        ours_mebibytes=middle(one.mebibytes for one in ours),
        peer_mebibytes=middle(one.mebibytes for one in peer),
        **facts,
    )


def measured(way: Way) -> Measured:
    """One way, in a process of its own."""
    # Forked where that is safe: to import torch anew takes longer than what is measured.
    is_plain = sys.platform == "linux" and accelerator() == "cpu"
    context: Any = multiprocessing.get_context("fork" if is_plain else "spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(way, sender))
    process.start()
    sender.close()
    try:
        found = Measured(*receiver.recv())
    except EOFError:
        sys.exit(f"{way} ended without a result")
    process.join()
    return found


def _measure(way: Way, answer: Any) -> None:
    torch.set_num_threads(1)
    _ready.append(peak_mebibytes())
    amount = way()
    answer.send((amount, peak_mebibytes() - _ready[-1]))


def peak_mebibytes() -> float:
    """Of this process since `forget_peak`, or of its GPU; since its start where the system cannot forget."""
    if accelerator() == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    if _STATUS.exists():
        line = next(one for one in _STATUS.read_text().splitlines() if one.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    # Linux says kibibytes, macOS says bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def forget_peak() -> None:
    """Let the peak be what is held now: a set-up may have held more, and what comes after it would then look like less."""
    if accelerator() == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif _STATUS.exists():
        _STATUS.with_name("clear_refs").write_text("5")


def seconds_so_far() -> float:
    """Processor time on a CPU, which other work on the machine hardly changes; wall time on a GPU."""
    if accelerator() == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def ready() -> float:
    """Say that the set-up is over: memory counts from here, and the seconds so far are returned."""
    forget_peak()
    _ready.append(peak_mebibytes())
    return seconds_so_far()


def write(name: str, results: Sequence[Result]) -> None:
    """Print the lines, and keep them with the machine that they are of."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    machine = {
        "processor": platform.processor() or platform.machine(), "cores": num_cores(), "accelerator": accelerator(),
        "system": platform.platform(), "python": platform.python_version(), "torch": torch.__version__, "load": os.getloadavg()[0],
    }  # fmt: skip
    tree = {"at": datetime.now(UTC).isoformat(), "machine": machine, "results": [asdict(one) for one in results]}
    (RESULTS / f"{name}.json").write_text(json.dumps(tree, indent=1))
    for one in results:
        print(line(one), flush=True)


def line(one: Result) -> str:
    """A result in words."""
    aim = (
        ""
        if one.aim is None
        else f"   aim {'≥' if one.is_more_better else '≤'} {one.aim:g}: {'reached' if one.is_reached else 'missed'}"
    )
    memory = (
        "" if one.ours_mebibytes is None else f"   peak {one.ours_mebibytes:.0f} against {one.peer_mebibytes:.0f} MiB"
    )
    return f"{one.name:<44}{one.ours:>10.3g} against {one.peer:>8.3g} {one.unit:<9} ratio {one.ratio:.3f}{aim}{memory}\n    peer: {one.peer_is}"
