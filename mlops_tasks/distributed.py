"""Ranks: the processes that share one training, how they start and end, and what they say to one another.

Owns the launch, the process group, the device, reductions, and the wish to stop (SIGTERM, SIGINT, SIGHUP). All of it works
unlaunched too, as one process. What the ranks compute, and when they stop, is `training`'s.

A rank leaves a record of how it ended in a folder of the launcher, because torch's agent reports only the failure that it
happened to see first, often a survivor that misses its peer, and drops all exit codes on a signal.

Ranks of several pods find each other at the address of the first pod (`Pods`). Each pod launches its own and answers for them alone: one
whose peers in another pod vanished is `Interrupted`, and the exit code of that other pod says why.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from tqdm import tqdm

from mlops_tasks import logs
from mlops_tasks.errors import BY_EXIT_CODE, Interrupted, UserError, WmtpError, class_of
from mlops_tasks.lease import THREAD_NAME
from mlops_tasks.machine import accelerator, num_cores

log = logging.getLogger(__name__)

R = TypeVar("R")

# Time for a step and a checkpoint; a Spot notice is 120 s.
GRACE_SECONDS = 110
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# pyarrow's allocator starts its thread anew in the child; the one that renews a lease is asleep when this process forks.
_FORK_SAFE_THREADS = {"jemalloc_bg_thd", THREAD_NAME}
_HANDLED_BY_TORCH = (*STOP_SIGNALS, signal.SIGQUIT)

_SECONDS_FOR_THREADS_TO_END = 1.0

# A node may be started for the last pod of a training.
_SECONDS_TO_MEET = 1800

_stop = threading.Event()


@dataclass(frozen=True)
class Pods:
    """The pods that share a training, as their Job tells each of them."""

    number: int = 1
    index: int = 0
    address: str = ""
    """Of the first one, as host:port."""
    name: str = ""
    """Of this training among all that ever meet at an address."""

    @classmethod
    def of_environment(cls) -> Pods:
        """As the variables of this process say; one pod where they say nothing."""
        number = int(os.environ.get("WMTP_NUM_PODS", "1"))
        if number == 1:
            return cls()
        given = [os.environ[name] for name in ("JOB_COMPLETION_INDEX", "WMTP_FIRST_POD", "WMTP_JOB")]
        return cls(number, int(given[0]), given[1], given[2])

    def is_first_there(self) -> bool:
        """Whether the first pod waits for the others."""
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=2).close()
        except OSError:
            return False
        return True


def launch(
    worker: Callable[..., R],
    *,
    num_ranks: int,
    args: tuple[Any, ...] = (),
    is_resumable: Callable[[], bool] = lambda: False,
) -> R:
    """Run `worker(*args)` in every rank; one rank is this process itself.

    Args:
        worker: a function of a module; in several ranks its result must be JSON.
        num_ranks: processes on this machine, or in each pod.
        args: picklable.
        is_resumable: whether the work could go on from a checkpoint, asked when ranks were stopped or lost.

    Returns:
        What rank 0 returned; in another pod than the first, nothing of use.

    Raises:
        WmtpError: of the class and with the message of the first rank that failed; `Interrupted` when ranks were stopped
            or killed and the work is resumable.
    """
    pods = Pods.of_environment()
    if _usable_ranks(num_ranks) == pods.number == 1:
        with _noting_stop_signals():
            return worker(*args)
    with tempfile.TemporaryDirectory(prefix="wmtp-ranks-") as folder, _signals_restored(_HANDLED_BY_TORCH):
        ended = _run_agent(worker, args, num_ranks=num_ranks, pods=pods, folder=Path(folder))
        records = _read_records(Path(folder))
    if len(records) == num_ranks and all(record.code == 0 for record in records.values()):
        result: R = records[pods.index * num_ranks].result
        return result
    raise _failure(records, ended, num_ranks=num_ranks, pods=pods, is_resumable=is_resumable)


def rank() -> int:
    """This process's number among the ranks; 0 unlaunched."""
    return dist.get_rank() if dist.is_initialized() else 0


def num_ranks() -> int:
    """How many ranks there are; 1 unlaunched."""
    return dist.get_world_size() if dist.is_initialized() else 1


def device() -> torch.device:
    """Where this rank computes: its own CUDA device, Apple's MPS, or the CPU."""
    kind = accelerator()
    return torch.device(kind, _local_rank()) if kind == "cuda" else torch.device(kind)


def stop_requested() -> bool:
    """Whether this rank was asked to stop; the ranks must agree on a step (see `sum_over_ranks`) before they do."""
    return _stop.is_set()


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The sum of a CPU tensor over all ranks; every rank must call it, with the same shape and type."""
    total = values.clone()
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


def broadcast(value: R) -> R:
    """What rank 0 gave, in every rank; a small picklable value."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def gather(value: R) -> list[R]:
    """What every rank gave, by rank; small picklable values."""
    if not dist.is_initialized():
        return [value]
    values: list[R] = [value] * num_ranks()
    dist.all_gather_object(values, value)
    return values


class Aside:
    """What ranks say to one another beside their steps, each from one thread of its own; all ranks make one at the same time."""

    def __init__(self) -> None:
        # Of its own, so that it is not mixed up with what the steps say meanwhile.
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None

    def gather(self, value: R) -> list[R]:
        """What every rank gave, by rank; small picklable values."""
        if self._group is None:
            return [value]
        values: list[R] = [value] * num_ranks()
        dist.all_gather_object(values, value, group=self._group)
        return values


def barrier() -> None:
    """Wait until every rank is here."""
    sum_over_ranks(torch.zeros(1))


# How ranks start.


@dataclass(frozen=True)
class _Record:
    """How a rank ended."""

    rank: int
    code: int
    message: str = ""
    trace: str = ""
    misses_peer: bool = False
    result: Any = None
    at: float = 0.0
    error: str = ""
    """Name of its class."""


@dataclass(frozen=True)
class _Ending:
    """How torch's agent ended."""

    signal: signal.Signals | None = None
    exit_codes: tuple[tuple[int, int], ...] = ()
    """By rank, of those that the agent saw fail."""
    lost: str = ""
    """How it lost the agent of the first pod; empty: it did not."""


def _usable_ranks(wanted: int) -> int:
    if accelerator() == "cuda":
        found = torch.cuda.device_count()
        if wanted > found:
            raise UserError(
                f"train.num_ranks of the environment is {wanted}, but this machine has {found} CUDA devices. Set it to {found} or less."
            )
    elif accelerator() == "mps" and wanted > 1:
        log.warning("train.num_ranks is %d, but MPS cannot reduce over processes: training runs in one process", wanted)
        return 1
    return wanted


def _run_agent(worker: Callable[..., R], args: tuple[Any, ...], *, num_ranks: int, pods: Pods, folder: Path) -> _Ending:
    config = LaunchConfig(
        min_nodes=pods.number,
        max_nodes=pods.number,
        nproc_per_node=num_ranks,
        run_id=pods.name or uuid.uuid4().hex,
        **_meeting(pods),
        max_restarts=0,
        monitor_interval=0.05,
        start_method=_start_method(),
        signals_to_handle=",".join(one.name for one in _HANDLED_BY_TORCH),
        shutdown_timeout=GRACE_SECONDS,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / "agent")),
    )
    others = set(multiprocessing.active_children())
    try:
        with _quiet_agent():
            elastic_launch(config, _run_rank)(worker, args, folder, os.getpid())
    except ChildFailedError as error:
        return _Ending(exit_codes=tuple((number, failure.exitcode) for number, failure in error.failures.items()))
    except SignalException as error:
        return _Ending(signal=error.sigval)
    except dist.DistError as error:
        return _Ending(lost=str(error))
    finally:
        # A second signal can make the agent leave ranks behind.
        for child in set(multiprocessing.active_children()) - others:
            child.kill()
            child.join()
    return _Ending()


def _meeting(pods: Pods) -> dict[str, Any]:
    if pods.number == 1:
        return {"rdzv_backend": "c10d", "rdzv_endpoint": "127.0.0.1:0", "local_addr": "127.0.0.1"}
    # Static: the first pod, which holds the lease, must also hold rank 0.
    meeting = {"rank": pods.index, "timeout": _SECONDS_TO_MEET}
    return {"rdzv_backend": "static", "rdzv_endpoint": pods.address, "rdzv_configs": meeting}


def _start_method() -> str:
    """Fork where it is safe, which saves every rank the import of torch and transformers (3 s); spawn elsewhere.

    A fork copies only the thread that calls it: a pool of OpenMP or BLAS threads would be missing in the child, which then
    waits for it for ever. CUDA does not survive a fork at all, nor do Apple's frameworks.
    """
    if sys.platform != "linux" or accelerator() != "cpu":
        return "spawn"
    # A thread that was joined is seen for a moment more, on a busy machine for longer.
    deadline = time.monotonic() + _SECONDS_FOR_THREADS_TO_END
    while not _other_threads() <= _FORK_SAFE_THREADS:
        if time.monotonic() > deadline:
            return "spawn"
        time.sleep(0.01)
    return "fork"


def _other_threads() -> set[str]:
    """Names of this process's threads beside the main one, those of libraries among them."""
    found = set()
    for one in Path("/proc/self/task").iterdir():
        if one.name != str(os.getpid()):
            with suppress(FileNotFoundError, ProcessLookupError):  # it ended while we look
                found.add((one / "comm").read_text().strip())
    return found


def _run_rank(worker: Callable[..., Any], args: tuple[Any, ...], folder: Path, launcher: int) -> None:
    """What a rank's process does; it never raises, and leaves its record."""
    _die_with(launcher)
    number = int(os.environ["RANK"])
    _configure_logging(number)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore between processes, which `os._exit` would leak
    with _noting_stop_signals():
        try:
            _join_group()
            record = _Record(number, 0, result=worker(*args))
            _write_record(folder, record if number == 0 else _Record(number, 0))
            dist.destroy_process_group()
        except BaseException as error:
            code = error.exit_code if isinstance(error, WmtpError) else 1
            message = str(error) if isinstance(error, WmtpError) else f"{type(error).__name__}: {error}"
            _write_record(
                folder,
                _Record(
                    number,
                    code,
                    message,
                    traceback.format_exc(),
                    misses_peer=_misses_peer(error),
                    at=time.monotonic(),
                    error=type(error).__name__,
                ),
            )
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # the destructors of a broken process group may wait for ever
    if _stop.is_set():
        # Too late to stop at a step: the work is done and recorded. Without the signal the agent would wait for this process.
        os.kill(os.getpid(), signal.SIGTERM)


def _misses_peer(error: BaseException) -> bool:
    # gloo has no class of its own for a connection that ended.
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/transport" in str(error))


def _die_with(launcher: int) -> None:
    """End this process when the launcher is gone, by whatever signal: nobody would collect the result."""

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="die-with-launcher", daemon=True).start()


def _configure_logging(number: int) -> None:
    if not logging.getLogger().handlers:
        logs.configure()
    if number > 0:
        logging.getLogger("mlops_tasks").setLevel(logging.WARNING)


def _join_group() -> None:
    here = device()
    if os.environ["MASTER_ADDR"] == "127.0.0.1":
        # gloo otherwise looks this machine's name up, which fails or waits where there is no network
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    if here.type == "cuda":
        torch.cuda.set_device(here)
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=here)
    else:
        dist.init_process_group("gloo")
    torch.set_num_threads(min(torch.get_num_threads(), max(1, num_cores() // int(os.environ["LOCAL_WORLD_SIZE"]))))


def _local_rank() -> int:
    return int(os.environ["LOCAL_RANK"]) if "TORCHELASTIC_RUN_ID" in os.environ else 0


# How ranks end.


@contextmanager
def _noting_stop_signals() -> Iterator[None]:
    """Turn a signal to stop into a wish, so that a step and a checkpoint are not torn."""
    _stop.clear()
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    with _signals_restored(STOP_SIGNALS):
        for one in STOP_SIGNALS:
            signal.signal(one, _note_stop)
        yield


def _note_stop(number: int, frame: FrameType | None) -> None:
    _stop.set()


@contextmanager
def _signals_restored(signals: tuple[signal.Signals, ...]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {one: signal.getsignal(one) for one in signals}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler if handler is not None else signal.SIG_DFL)


@contextmanager
def _quiet_agent() -> Iterator[None]:
    """Keep the agent's own story of a failure out of the log: `launch` tells it once, and about the right rank."""
    names = ("torch.distributed.elastic", "torch.multiprocessing")
    loggers = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict) if name.startswith(names)]
    levels = [one.level for one in loggers]
    try:
        for one in loggers:
            one.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            # Python 3.12 warns of any fork with threads; those here are the agent's store, which no rank uses.
            warnings.filterwarnings("ignore", message=".*use of fork", category=DeprecationWarning)
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


def _write_record(folder: Path, record: _Record) -> None:
    temporary = folder / f".{record.rank}"
    temporary.write_text(json.dumps(asdict(record)), encoding="utf-8")
    temporary.replace(folder / f"{record.rank}.json")


def _read_records(folder: Path) -> dict[int, _Record]:
    records = [_Record(**json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.json"))]
    return {record.rank: record for record in records}


def _failure(
    records: dict[int, _Record], ended: _Ending, *, num_ranks: int, pods: Pods, is_resumable: Callable[[], bool]
) -> WmtpError:
    mine = range(pods.index * num_ranks, (pods.index + 1) * num_ranks)
    num_ranks *= pods.number
    told = sorted((record for record in records.values() if record.code in BY_EXIT_CODE), key=lambda one: one.at)
    if told:
        kind = class_of(told[0].code, told[0].error)
        return kind(f"Rank {told[0].rank} of {num_ranks}: {told[0].message}")
    if ended.signal is not None:
        return _stopped(f"The ranks were stopped by {ended.signal.name}", is_resumable)
    # A rank that was killed leaves no record; the others fail because they miss it.
    killed = [number for number, code in ended.exit_codes if code < 0] or sorted(set(mine) - set(records))
    if ended.lost or (pods.number > 1 and not killed and any(one.misses_peer for one in records.values())):
        why = ended.lost or next(one.message for one in records.values() if one.misses_peer)
        return Interrupted(f"A rank of another pod was lost ({why[:200]}). Started again, this pod waits for it.")
    if killed:
        names = {number: signal.Signals(-code).name for number, code in ended.exit_codes if code < 0}
        return _stopped(
            f"Rank {killed[0]} of {num_ranks} was killed by {names.get(killed[0], 'a signal')}", is_resumable
        )
    first = min((record for record in records.values() if record.code), key=lambda one: one.at)
    log.error("rank %d of %d failed first:\n%s", first.rank, num_ranks, first.trace)
    return WmtpError(f"Rank {first.rank} of {num_ranks} failed: {first.message}. The traceback is in the log.")


def _stopped(what: str, is_resumable: Callable[[], bool]) -> WmtpError:
    if is_resumable():
        return Interrupted(f"{what}. A checkpoint is kept: start the task again and it resumes.")
    return WmtpError(
        f"{what}, before the first checkpoint. Start the task again; if it recurs, look for a lack of memory."
    )
