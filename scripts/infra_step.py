"""What the steps of `make check-infra` have in common: how one says what it found or lacks, and where programs are."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
# Where programs may lie that are not on PATH: the environment of the checks, and a folder of tools beside the checkout.
_PLACES = (CHECKOUT / ".venv-infra" / "bin", CHECKOUT.parent / "shared" / "tools" / "bin")


class Fault(Exception):
    """What a step found."""


class Unpinned(Exception):
    """What of others' work is not pinned yet, and what pins it. It fails a check for production only."""


class Skipped(Exception):
    """What a step lacks, and how to get it."""


def tool(name: str) -> str:
    """The path of a program.

    Raises:
        Skipped: this machine has none.
    """
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *map(str, _PLACES)]))
    if not found:
        raise Skipped(f"there is no {name} on PATH or in .venv-infra/bin; `make check-infra` installs what pip has")
    return found


def run(command: list[str], **options: str | Path) -> str:
    """Run a program and give what it printed.

    Raises:
        Fault: it ended with another code than 0; holds the end of what it printed.
    """
    ended = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if ended.returncode:
        raise Fault((ended.stdout + ended.stderr).strip()[-6000:])
    return str(ended.stdout)
