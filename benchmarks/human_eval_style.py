"""Judges programs as OpenAI's human-eval does: `exec` in a process for each, with a timeout, on a pool of threads.

    python benchmarks/human_eval_style.py programs.json verdicts.json

`programs.json` is a list of program texts, tests included. It is run on its own, so that its processes are forked from a small one.
This is the peer that `evaluation_speed` measures, and contains nothing: do not give it programs that you do not trust.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.queues import SimpleQueue
from pathlib import Path

NUM_WORKERS = 4  # human-eval's defaults
TIMEOUT_SECONDS = 3.0


def passes(program: str) -> bool:
    context = multiprocessing.get_context("fork")
    answer: SimpleQueue[bool] = context.SimpleQueue()
    process = context.Process(target=_execute, args=(program, answer))
    process.start()
    process.join(TIMEOUT_SECONDS + 1)
    if process.is_alive():
        process.kill()
        process.join()
    return not answer.empty() and answer.get()


def _execute(program: str, answer: SimpleQueue[bool]) -> None:
    def stop(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, TIMEOUT_SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            exec(program, {})
    except BaseException:
        answer.put(False)
    else:
        answer.put(True)


def main() -> None:
    programs = json.loads(Path(sys.argv[1]).read_text())
    with ThreadPoolExecutor(NUM_WORKERS) as pool:
        verdicts = list(pool.map(passes, programs))
    Path(sys.argv[2]).write_text(json.dumps(verdicts))


if __name__ == "__main__":
    main()
