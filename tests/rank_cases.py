"""Launches of two ranks that end in many ways, each from a process of its own; `test_distributed` runs this file once.

A process that has imported torch is forked for each case, because importing it anew would cost seconds a case.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mlops_tasks import distributed
from mlops_tasks.errors import DataError, Interrupted, OutOfMemory, WmtpError


def tells_facts(folder: Path) -> dict[str, Any]:
    number = distributed.rank()
    return {
        "num_ranks": distributed.num_ranks(),
        "sum": distributed.sum_over_ranks(torch.tensor([1.0, number])).tolist(),
        "broadcast": distributed.broadcast(f"from {number}"),
        "gathered": distributed.gather(f"rank {number}"),
        "num_threads": torch.get_num_threads(),
    }


def raises_data_error(folder: Path) -> None:
    if distributed.rank() == 1:
        raise DataError("row 7 is bad")
    distributed.barrier()


def lacks_memory(folder: Path) -> None:
    if distributed.rank() == 1:
        raise OutOfMemory("8 rows are too many")
    distributed.barrier()


def has_a_bug(folder: Path) -> None:
    if distributed.rank() == 1:
        raise ZeroDivisionError("one by nought")
    distributed.barrier()


def loses_rank_1(folder: Path) -> None:
    if distributed.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.barrier()


def works_until_stopped(folder: Path) -> None:
    _ready(folder)
    while not distributed.sum_over_ranks(torch.tensor([int(distributed.stop_requested())])).item():
        time.sleep(0.01)
    raise Interrupted("stopped at a step")


def works_for_ever(folder: Path) -> None:
    _ready(folder)
    while True:
        distributed.barrier()


def ends_in_spite_of_signal(folder: Path) -> str:
    _ready(folder)
    while not distributed.stop_requested():
        time.sleep(0.01)
    return "done"


@dataclass(frozen=True)
class Case:
    worker: Callable[[Path], Any]
    is_resumable: bool = False
    signals: tuple[signal.Signals, ...] = ()
    """Sent to the launcher when both ranks are at work."""
    seconds_between_signals: float = 0.2
    start_method: str = "fork"


CASES = {
    "facts": Case(tells_facts),
    "facts of spawned ranks": Case(tells_facts, start_method="spawn"),
    "data error": Case(raises_data_error, is_resumable=True),
    "too little memory": Case(lacks_memory),
    "bug": Case(has_a_bug, is_resumable=True),
    "rank killed": Case(loses_rank_1),
    "rank killed after a checkpoint": Case(loses_rank_1, is_resumable=True),
    "stopped": Case(works_until_stopped, signals=(signal.SIGTERM,)),
    "stopped twice": Case(works_until_stopped, signals=(signal.SIGTERM, signal.SIGTERM)),
    # One that comes before the last was taken is lost.
    "stopped in vain": Case(
        works_for_ever, is_resumable=True, signals=(signal.SIGTERM,) * 3, seconds_between_signals=1.0
    ),
    "stopped when done": Case(ends_in_spite_of_signal, signals=(signal.SIGTERM,)),
    "launcher killed": Case(works_for_ever, signals=(signal.SIGKILL,)),
}


def _ready(folder: Path) -> None:
    (folder / f"{os.getpid()}.pid").touch()


def run(case: Case) -> dict[str, Any]:
    """What came of a case, and which of its ranks are still alive."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        launcher = os.fork()
        if launcher == 0:
            os._exit(_launch(case, folder))
        if case.signals:
            _wait(lambda: len(list(folder.glob("*.pid"))) == 2)
        for one in case.signals:
            os.kill(launcher, one)
            time.sleep(case.seconds_between_signals)
        started = time.monotonic()
        os.waitpid(launcher, 0)
        seconds = time.monotonic() - started
        ranks = [int(path.stem) for path in folder.glob("*.pid")]
        _wait(lambda: not any(map(_is_alive, ranks)), seconds=30)
        outcome = json.loads((folder / "outcome").read_text()) if (folder / "outcome").exists() else {}
        return {**outcome, "seconds": seconds, "alive": [rank for rank in ranks if _is_alive(rank)]}


def run_in_pods(case: Case) -> list[dict[str, Any]]:
    """What came of two launches of one rank each that meet as the pods of a Job do."""
    with tempfile.TemporaryDirectory() as name, socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
        probe.close()
        folders, started = [Path(name) / str(index) for index in range(2)], time.monotonic()
        launchers = []
        for index, folder in enumerate(folders):
            folder.mkdir()
            if (launcher := os.fork()) == 0:
                meeting = {"WMTP_NUM_PODS": "2", "WMTP_FIRST_POD": f"127.0.0.1:{port}", "WMTP_JOB": "j"}
                os.environ.update(meeting, JOB_COMPLETION_INDEX=str(index))
                os._exit(_launch(case, folder, num_ranks=1))
            launchers.append(launcher)
        for launcher in launchers:
            os.waitpid(launcher, 0)
        seconds = time.monotonic() - started
        told = [json.loads((folder / "outcome").read_text()) for folder in folders]
        return [{**one, "seconds": seconds, "alive": []} for one in told]


def _launch(case: Case, folder: Path, *, num_ranks: int = 2) -> int:
    handler = signal.getsignal(signal.SIGTERM)
    distributed._start_method = lambda: case.start_method  # type: ignore[assignment]
    outcome: dict[str, Any] = {}
    try:
        outcome["result"] = distributed.launch(
            case.worker, num_ranks=num_ranks, args=(folder,), is_resumable=lambda: case.is_resumable
        )
    except WmtpError as error:
        outcome = {"error": type(error).__name__, "message": str(error)}
    outcome["num_children"] = len(multiprocessing.active_children())
    outcome["handler restored"] = signal.getsignal(signal.SIGTERM) == handler
    (folder / "outcome").write_text(json.dumps(outcome))
    return 0


def _wait(is_over: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_over() and time.monotonic() < deadline:
        time.sleep(0.02)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    ended = {name: run(case) for name, case in CASES.items()}
    for name in ("facts", "data error", "rank killed", "bug"):
        pods = run_in_pods(CASES[name])
        ended |= {f"{name} in pod {index}": outcome for index, outcome in enumerate(pods)}
    json.dump(ended, sys.stdout)
