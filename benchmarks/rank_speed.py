"""Tokens a second of one rank and of several, and what the sums of gradients take of a step; wall seconds.

python -m benchmarks.rank_speed --ranks 2 4
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.pairs import Result, in_turns, measured, paired, write
from benchmarks.small_training import attempt, prepared, sized
from benchmarks.training_speed import learn
from mlops_tasks import distributed
from mlops_tasks.training import _Training


def tokens_per_second(sizes: argparse.Namespace, folder: Path, num_ranks: int, sums: bool) -> float:
    return distributed.launch(_work, num_ranks=num_ranks, args=(sizes, folder, num_ranks, sums))


def _work(sizes: argparse.Namespace, folder: Path, num_ranks: int, sums: bool) -> float:
    training = _Training(attempt(sizes, folder, num_ranks=num_ranks, micro_batch_rows=2))
    if not sums:
        plain = training.parallel.summing
        training.parallel.summing = lambda *, is_last: plain(is_last=False)  # type: ignore[method-assign]
    learn(training)
    distributed.barrier()
    tokens, started = training.progress.num_tokens, time.perf_counter()
    for _ in range(sizes.steps):
        learn(training)
    distributed.barrier()
    return (training.progress.num_tokens - tokens) / (time.perf_counter() - started)


def results(sizes: argparse.Namespace) -> list[Result]:
    with tempfile.TemporaryDirectory() as name:
        folder, found = Path(name), list[Result]()
        measured(partial(prepared, sizes, folder))
        for ranks in sizes.ranks:
            ways = {
                "one": partial(tokens_per_second, sizes, folder, 1, True),
                "all": partial(tokens_per_second, sizes, folder, ranks, True),
                "apart": partial(tokens_per_second, sizes, folder, ranks, False),
            }
            done = in_turns(ways, rounds=sizes.rounds)
            aim = 3.0 if ranks == 4 else None
            found += [
                paired(f"{ranks} ranks", "tokens/s", done["all"], done["one"], peer_is="one rank", is_more_better=True, aim=aim),
                paired(f"{ranks} ranks, with sums of gradients", "tokens/s", done["all"], done["apart"], peer_is="the same without: what is missing to 1 is their share of a step", is_more_better=True),
            ]  # fmt: skip
        return found


if __name__ == "__main__":
    write("rank_speed", results(sized(__doc__)))
