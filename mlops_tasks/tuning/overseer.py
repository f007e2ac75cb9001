"""A worker's ear for the training that it has started, whose first rank may be another process.

Owns how a validation loss comes to the worker and its answer back. What the answer is decided by is `study`'s.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

from mlops_tasks.errors import WmtpError

log = logging.getLogger(__name__)

Judgement = Callable[[int, int, float], bool]
"""Of step, number of steps and validation loss in nats, whether the training goes on."""


@dataclass(frozen=True)
class Line:
    """The training's end: a `training.Overseer`. It can be pickled, for it is an address alone."""

    address: str

    def goes_on(self, step: int, num_steps: int, validation_nats: float) -> bool:
        """Ask the worker."""
        with Client(self.address, family="AF_UNIX") as worker:
            worker.send((step, num_steps, validation_nats))
            return bool(worker.recv())


@contextmanager
def listening(judgement: Judgement) -> Iterator[Line]:
    """A line to this process, in which each validation loss is judged by a thread of its own."""
    # Nobody else may write into the folder, so whoever calls is one of ours.
    with (
        tempfile.TemporaryDirectory(prefix="wmtp-line-") as folder,
        Listener(str(Path(folder, "line")), family="AF_UNIX") as listener,
    ):
        line = Line(str(listener.address))
        thread = threading.Thread(target=_answer_all, args=(listener, judgement), name="overseer", daemon=True)
        thread.start()
        try:
            yield line
        finally:
            with Client(line.address, family="AF_UNIX") as last:
                last.send(None)
            thread.join()


def _answer_all(listener: Listener, judgement: Judgement) -> None:
    while True:
        with listener.accept() as caller:
            if not _answer(caller, judgement):
                return


def _answer(caller: Connection, judgement: Judgement) -> bool:
    try:
        told = caller.recv()
    except (EOFError, OSError):  # it was killed
        return True
    if told is None:
        return False
    try:
        goes_on = judgement(*told)
    except WmtpError as error:
        goes_on = True
        log.warning("whether the training goes on cannot be asked now, so it does: %s", error)
    with suppress(OSError):  # it was killed while it waited
        caller.send(goes_on)
    return True
