"""Runs trainings in processes of their own: reads paths of pickled attempts, forks for each, prints the process's id.

A process that has imported torch is forked, because importing it anew would cost seconds a training. `wait ID` prints an exit code.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from mlops_tasks import distributed, logs, training
from mlops_tasks.errors import Unavailable, WmtpError
from mlops_tasks.store.backend import FolderBackend


class ClosedToRank1(FolderBackend):
    """A store that takes no checkpoint of the second rank."""

    def sink(self, name: str) -> AbstractContextManager[BinaryIO]:
        if distributed.rank() == 1:
            raise Unavailable("The store is closed to rank 1.")
        return super().sink(name)


class NotesReads(FolderBackend):
    """A store that notes below itself which rank has read which file of a checkpoint."""

    def local(self, name: str, *, anew: bool = False) -> Path:
        if "/checkpoints/" in name:
            with (self.root / f"reads-{distributed.rank()}").open("a", encoding="utf-8") as notes:
                notes.write(f"{name.rpartition('/')[2]}\n")
        return super().local(name, anew=anew)


class SlowToCommit(FolderBackend):
    """A store that takes its time over each manifest of a checkpoint."""

    def create(self, name: str, data: bytes) -> bool:
        if "/checkpoints/step-" in name:
            time.sleep(0.5)
        return super().create(name, data)


def run(path: Path) -> int:
    logs.configure()
    try:
        metrics = training.train(pickle.loads(path.read_bytes()))
    except WmtpError as error:
        logging.getLogger("mlops_tasks").error("%s", error)
        path.with_suffix(".error").write_text(str(error))
        return error.exit_code
    path.with_suffix(".json").write_text(json.dumps(metrics))
    return 0


if __name__ == "__main__":
    for line in sys.stdin:
        request = line.strip()
        if request.startswith("wait "):
            _, status = os.waitpid(int(request.removeprefix("wait ")), 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
        elif (process := os.fork()) == 0:
            os._exit(run(Path(request)))
        else:
            print(process, flush=True)
