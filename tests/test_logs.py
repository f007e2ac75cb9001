"""What a process says of its work, and what it does not."""

from __future__ import annotations

import subprocess
import sys


def test_where_nobody_watches_libraries_draw_no_bars() -> None:
    program = (
        "from mlops_tasks import logs; logs.configure();"
        "from transformers.utils import logging; print(logging.is_progress_bar_enabled())"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert ended.stdout.split() == ["False"]
