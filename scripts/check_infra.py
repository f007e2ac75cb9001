"""`make check-infra`: judge terraform/, charts/ and images/ without an account and without a cluster.

    python -m scripts.check_infra [--production] [WORD …]     the steps whose names hold one of the words, or all

Ends with 1 if a step found a fault; `--production` makes one of whatever is not pinned yet. A step that lacks a program is skipped and
says so; with `CI_INFRA_STRICT=1` it is a fault.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from scripts import check_charts, check_images, check_terraform
from scripts.infra_step import CHECKOUT, Fault, Skipped, Unpinned

STEPS: dict[str, Callable[[Path], str]] = {**check_terraform.STEPS, **check_charts.STEPS, **check_images.STEPS}

_ENDS = {"ok": "ok", "UNPINNED": "not pinned yet", "SKIPPED": "skipped", "FAULT": "with faults"}


def main(arguments: list[str]) -> int:
    """Run the steps in turn and print a table."""
    words = [word for word in arguments if word != "--production"]
    chosen = {name: step for name, step in STEPS.items() if not words or any(word in name for word in words)}
    if not chosen:
        print(f"No step's name holds one of {', '.join(words)}. The steps are: {', '.join(STEPS)}.")
        return 1
    started, ends = time.monotonic(), [_ended(name, step) for name, step in chosen.items()]
    counts = ", ".join(f"{ends.count(end)} {what}" for end, what in _ENDS.items())
    print(f"{counts}; {time.monotonic() - started:.0f} s")
    is_strict, is_production = os.environ.get("CI_INFRA_STRICT") == "1", "--production" in arguments
    return int("FAULT" in ends or (is_strict and "SKIPPED" in ends) or (is_production and "UNPINNED" in ends))


def _ended(name: str, step: Callable[[Path], str]) -> str:
    started = time.monotonic()
    try:
        end, said = "ok", step(CHECKOUT)
    except Skipped as lacking:
        end, said = "SKIPPED", str(lacking)
    except Unpinned as waiting:
        end, said = "UNPINNED", str(waiting)
    except Fault as found:
        end, said = "FAULT", str(found)
    print(f"{end:8} {time.monotonic() - started:6.1f} s  {name}: {said}", flush=True)
    return end


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
