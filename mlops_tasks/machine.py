"""What this machine grants a process: cores, accelerators, and memory that has been used before.

The only place that asks. How many ranks or workers there are is the environment file's choice.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from pathlib import Path
from typing import Literal

_CGROUPS = Path("/sys/fs/cgroup")

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BLOCK, _KEPT_IN_ALL = 32 * 2**20, 128 * 2**20


def num_cores() -> int:
    """Cores that this process may use at one time, at least 1: its CPU affinity, and no more than its container's quota."""
    granted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(granted, _quota(_CGROUPS, Path("/proc/self/cgroup")))))


def _quota(root: Path, membership: Path) -> float:
    """The smallest CPU quota of the control groups that this process is in, in cores; infinite where there is none."""
    try:
        groups = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return math.inf
    found = [math.inf]
    for _, controllers, path in groups:
        if controllers == "":
            # Beside the older hierarchy, the newer one lies in a folder of its own.
            found += [_quota_v2(folder) for top in (root, root / "unified") for folder in _upwards(top, path)]
        elif "cpu" in controllers.split(","):
            found += [_quota_v1(folder) for top in ("cpu", controllers) for folder in _upwards(root / top, path)]
    return min(found)


def _upwards(root: Path, path: str) -> list[Path]:
    """A group's folder and those above it. A container may see its own group as the root, whatever the path says."""
    own = root / path.lstrip("/")
    return [root, *(folder for folder in (own, *own.parents) if root in folder.parents)]


def _quota_v2(folder: Path) -> float:
    words = _words(folder / "cpu.max")
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0] != "max" else math.inf


def _quota_v1(folder: Path) -> float:
    quota, period = _words(folder / "cpu.cfs_quota_us"), _words(folder / "cpu.cfs_period_us")
    return int(quota[0]) / int(period[0]) if quota and period and int(quota[0]) > 0 else math.inf


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []


def accelerator() -> Literal["cuda", "mps", "cpu"]:
    """What models compute on here."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def keep_freed_memory() -> None:
    """Have this process use memory again that it has freed: blocks of up to 32 MiB, 128 MiB in all. Only glibc has such a setting.

    glibc gives most of a batch's activations back to the system as soon as they are freed, and the next batch pays for each page of them again: a sixth
    of the time of a small model's forward on a CPU. Larger blocks are given back as ever.

    Reference: mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BLOCK)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_IN_ALL)
