"""`make check-infra`: every check of charts/, in order, with its seconds.

    python -m scripts.check_infra [WORD …]    # only steps whose name holds one of the words

A step that lacks its tool is said to be skipped, and is an error under CI.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from scripts import check_charts
from scripts.charts import CHECKOUT
from scripts.check_charts import Fault, Skipped

STEPS: dict[str, Callable[[Path], str]] = {**check_charts.STEPS}


def main() -> int:
    """Run the steps, print the table; 1 if one found something."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="parts of the names of steps")
    words = parser.parse_args().words
    steps = {name: step for name, step in STEPS.items() if not words or any(word in name for word in words)}
    width, bad, began = max(map(len, steps), default=0), False, time.monotonic()
    for name, step in steps.items():
        start = time.monotonic()
        try:
            outcome, said = "ok", step(CHECKOUT)
        except Skipped as error:
            outcome, said = "SKIPPED", str(error)
            bad = bad or "CI" in os.environ
        except Fault as error:
            outcome, said, bad = "FAULT", f"\n{error}\n", True
        print(f"{name:<{width}}  {outcome:<7}  {time.monotonic() - start:5.1f} s  {said}", flush=True)
    print(f"{'in all':<{width}}  {'':<7}  {time.monotonic() - began:5.1f} s")
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
