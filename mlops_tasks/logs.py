"""What a process says of its work: one line an event on standard error, and how far a long piece of work is.

The only place that configures logging.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Self, TypeVar

from tqdm import tqdm

log = logging.getLogger(__name__)

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 30.0


def configure(*, verbose: bool = False) -> None:
    """Send this process's log lines to standard error; libraries speak from WARNING on, and draw bars on a terminal alone."""
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers reads it when it is imported
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("mlops_tasks").setLevel(logging.DEBUG if verbose else logging.INFO)


class ProgressBar:
    """How far a long piece of work is: a bar on a terminal, elsewhere a line now and then. A context manager.

    Args:
        title: what is done.
        total: how many steps there are in all.
        unit: what a step is.
        done: steps that were done before.
        is_told: False says nothing, as all ranks but the first should.
    """

    def __init__(self, title: str, total: int, *, unit: str, done: int = 0, is_told: bool = True) -> None:
        self._title, self._total, self._before, self._is_told = title, total, done, is_told
        self._done = done
        self._started = self._said = time.monotonic()
        self._bar = tqdm(total=total, initial=done, desc=title, unit=unit, disable=None if is_told else True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, note: str = "") -> None:
        """One more step is done; `note` says how it went."""
        self._done += 1
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update()
        now = time.monotonic()
        if self._is_told and self._bar.disable and now - self._said >= SECONDS_BETWEEN_LINES:
            self._said = now
            left = (now - self._started) / (self._done - self._before) * (self._total - self._done)
            told = f"{note}, " if note else ""
            log.info("%s: %d of %d, %sabout %.0f s left", self._title, self._done, self._total, told, left)


def watched(items: Iterable[T], title: str, total: int, *, unit: str) -> Iterator[T]:
    """The same items, with a `ProgressBar`."""
    with ProgressBar(title, total, unit=unit) as progress:
        for item in items:
            yield item
            progress.advance()
