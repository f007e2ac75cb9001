"""Verdicts per second: the sandbox against a fresh interpreter for each test, on the reference solutions of MBPP.

    python -m benchmarks.sandbox_speed mbpp.jsonl [--repeats 3] [--peer-problems 100]

The peer is what a plain harness does: solution, set-up and one test in `python -c`, as many at one time as there are cores, with
no confinement at all. It runs a part of the problems; both figures are tests per second.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mlops_tasks.data.sources.mbpp import read_mbpp
from mlops_tasks.evaluation.sandbox import Program, Sandbox
from mlops_tasks.machine import num_cores


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer-problems", type=int, default=100)
    options = parser.parse_args()
    programs = [Program(one.solution, one.tests, one.setup, 120.0) for one in read_mbpp(options.path)]
    few = programs[:: max(1, len(programs) // options.peer_problems)]
    out = sys.stdout
    ours: list[float] = []
    theirs: list[float] = []
    with Sandbox() as sandbox:
        for _ in range(options.repeats):  # in turns, so that both see the same load
            ours.append(_tests_per_second(programs, lambda: _num_passed(sandbox, programs)))
            theirs.append(_tests_per_second(few, lambda: _num_passed_plainly(few)))
            out.write(f"sandbox {ours[-1]:.1f}, plain {theirs[-1]:.1f} tests/s at load {os.getloadavg()[0]:.1f}\n")
    ours_median, theirs_median = statistics.median(ours), statistics.median(theirs)
    num_tests = sum(len(program.tests) for program in programs)
    out.write(
        f"{num_tests} tests of {len(programs)} programs on {num_cores()} cores: median {ours_median:.1f} tests/s, "
        f"{num_tests / ours_median:.1f} s; a process for each test {theirs_median:.1f} tests/s; ratio {ours_median / theirs_median:.1f}\n"
    )


def _tests_per_second(programs: list[Program], judge: Callable[[], int]) -> float:
    num_tests = sum(len(program.tests) for program in programs)
    started = time.perf_counter()
    num_passed = judge()
    seconds = time.perf_counter() - started
    if num_passed != num_tests:
        raise SystemExit(f"only {num_passed} of {num_tests} tests passed: these figures would mean nothing")
    return num_tests / seconds


def _num_passed(sandbox: Sandbox, programs: list[Program]) -> int:
    return sum(outcome.tests_passed for outcome in sandbox.run(programs))


def _num_passed_plainly(programs: list[Program]) -> int:
    texts = [f"{one.solution}\n{one.setup}\n{test}" for one in programs for test in one.tests]
    with ThreadPoolExecutor(num_cores()) as pool:
        return sum(
            pool.map(lambda text: subprocess.run([sys.executable, "-c", text], check=False).returncode == 0, texts)
        )


if __name__ == "__main__":
    main()
