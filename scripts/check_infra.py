"""`make check-infra`: judge terraform/, charts/ and images/ without an account and without a cluster.

    python -m scripts.check_infra [WORD …]     the steps whose names hold one of the words, or all

Ends with 1 if a step found a fault. A step that lacks a program is skipped and says so; with `CI_INFRA_STRICT=1` it is a fault.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from scripts import check_charts, check_images, check_terraform
from scripts.infra_step import CHECKOUT, Fault, Skipped

STEPS: dict[str, Callable[[Path], str]] = {**check_terraform.STEPS, **check_charts.STEPS, **check_images.STEPS}


def main(words: list[str]) -> int:
    """Run the steps in turn and print a table."""
    chosen = {name: step for name, step in STEPS.items() if not words or any(word in name for word in words)}
    if not chosen:
        print(f"No step's name holds one of {', '.join(words)}. The steps are: {', '.join(STEPS)}.")
        return 1
    started, ends = time.monotonic(), [_ended(name, step) for name, step in chosen.items()]
    print(
        f"{ends.count('ok')} ok, {ends.count('SKIPPED')} skipped, {ends.count('FAULT')} with faults; {time.monotonic() - started:.0f} s"
    )
    is_strict = os.environ.get("CI_INFRA_STRICT") == "1"
    return int("FAULT" in ends or (is_strict and "SKIPPED" in ends))


def _ended(name: str, step: Callable[[Path], str]) -> str:
    started = time.monotonic()
    try:
        end, said = "ok", step(CHECKOUT)
    except Skipped as lacking:
        end, said = "SKIPPED", str(lacking)
    except Fault as found:
        end, said = "FAULT", str(found)
    print(f"{end:7} {time.monotonic() - started:6.1f} s  {name}: {said}", flush=True)
    return end


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
