"""What judging while a model writes saves: MBPP's own solutions come in as a device would write them, and this process only waits.

python -m benchmarks.overlap --data mbpp.jsonl --programs-per-second 20
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from mlops_tasks.data.problems import Problem
from mlops_tasks.data.sources.mbpp import read_mbpp
from mlops_tasks.evaluation.referee import Referee


def seconds(problems: Sequence[Problem], *, rate: float, is_overlapped: bool) -> float:
    """From the first program to the last verdict, the reference solutions' own runs included."""
    started = time.monotonic()
    with Referee(problems, "docstring-0shot", min_seconds=3.0, reference_factor=5.0, num_workers=None) as referee:
        for problem in problems:
            time.sleep(1 / rate)
            if is_overlapped:
                referee.submit(problem.id, problem.solution)
        for problem in problems:
            referee.submit(problem.id, problem.solution)
        verdicts = referee.finish()
    assert all(outcome.passed for outcome in verdicts.outcomes.values())
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--programs-per-second", type=float, default=20.0)
    parser.add_argument("--problems", type=int, default=300)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    problems = [one for one in read_mbpp(options.data) if one.split == "test"][: options.problems]
    pairs = [
        [seconds(problems, rate=options.programs_per_second, is_overlapped=one) for one in (False, True)]
        for _ in range(options.pairs)
    ]
    for name, times in zip(("one after the other", "overlapped"), zip(*pairs, strict=True), strict=True):
        print(f"{name:<20}{statistics.median(times):6.1f} s   ({', '.join(f'{one:.1f}' for one in times)})")
    print(f"writing alone       {len(problems) / options.programs_per_second:6.1f} s")


if __name__ == "__main__":
    main()
