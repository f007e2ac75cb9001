"""What a machine grants, on made-up control groups."""

from __future__ import annotations

import math
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from mlops_tasks import machine


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def test_the_tightest_quota_above_a_process_counts(tmp_path: Path) -> None:
    root, membership = tmp_path / "cgroup", tmp_path / "self"
    membership.write_text("0::/pods/mine\n")
    group(root)
    group(root / "pods", cpu__max="150000 100000")
    group(root / "pods" / "mine", cpu__max="max 100000")
    assert machine._quota(root, membership) == 1.5


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    root, membership = tmp_path / "cgroup", tmp_path / "self"
    membership.write_text("0::/\n")
    group(root, cpu__max="400000 200000")
    assert machine._quota(root, membership) == 2


def test_the_older_hierarchy_has_a_file_each_for_quota_and_period(tmp_path: Path) -> None:
    root, membership = tmp_path / "cgroup", tmp_path / "self"
    membership.write_text("5:memory:/pods\n4:cpu,cpuacct:/pods\n")
    group(root / "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    group(root / "cpu" / "pods", cpu__cfs_quota_us="300000", cpu__cfs_period_us="100000")
    assert machine._quota(root, membership) == 3


def test_both_hierarchies_may_be_there_and_the_older_one_under_its_full_name(tmp_path: Path) -> None:
    root, membership = tmp_path / "cgroup", tmp_path / "self"
    membership.write_text("4:cpu,cpuacct:/pods\n0::/pods\n")
    group(root / "cpu,cpuacct" / "pods", cpu__cfs_quota_us="300000", cpu__cfs_period_us="100000")
    assert machine._quota(root, membership) == 3
    group(root / "unified" / "pods", cpu__max="200000 100000")
    assert machine._quota(root, membership) == 2


@pytest.mark.parametrize("text", ["", "max", "max 100000"])
def test_no_group_and_no_number_are_no_limit(tmp_path: Path, text: str) -> None:
    assert machine._quota(tmp_path, tmp_path / "none") == math.inf
    (tmp_path / "self").write_text("0::/\n")
    group(tmp_path, cpu__max=text)
    assert machine._quota(tmp_path, tmp_path / "self") == math.inf


@pytest.mark.parametrize(("quota", "cores"), [(0.5, 1), (1.5, 2), (math.inf, 4), (9.0, 4)])
def test_a_part_of_a_core_is_one_and_affinity_is_a_limit_too(
    quota: float, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_quota", lambda *_: quota)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert machine.num_cores() == cores


FAULTS = """
import resource
import torch
from mlops_tasks import machine
machine.keep_freed_memory()
def batch():
    [torch.ones(1 << 20) for _ in range(8)]  # 4 MiB each; all are freed together
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    batch()
before = faults()
for _ in range(10):
    batch()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_memory_that_was_freed_is_used_again_without_asking_the_system_for_it() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True)
    # Ten times 8 blocks of 1,024 pages would be 80,000.
    assert int(done.stdout) < 8_000
