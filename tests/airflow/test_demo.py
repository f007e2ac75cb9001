"""`make demo` and `airflow dags test`, on the toy pipeline."""

from __future__ import annotations

import io
import json
import os
import re
import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Toys


@pytest.mark.slow
def test_ctrl_c_ends_everything_and_the_next_run_goes_on_from_there(toys: Toys) -> None:
    toys.tell("train.hangs")
    process = toys.demo()
    toys.wait_until((toys.folder / "hanging").exists)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    first, _ = process.communicate(timeout=400)

    assert process.returncode == 130, first
    assert first.endswith("`make demo` goes on from there.\n")
    assert toys.processes() == []

    (toys.folder / "train.hangs").unlink()
    second, _ = (process := toys.demo()).communicate(timeout=400)

    assert process.returncode == 0, second
    done = ["pull_data[0]", "reference[0]", "reference[1]"]
    left = ["train[0]", "generate[0]", "generate[1]"]
    assert sorted(re.findall(r"(\S+): run ", first)) == sorted(re.findall(r"(\S+): hit ", second)) == done
    assert sorted(re.findall(r"(\S+): run ", second)) == sorted(left)
    assert sorted(re.findall(r"(\S+): starts", second)) == sorted(["plan", *left, "report[0]"]), "a hit starts nothing"
    assert "score[0]: skipped" in second and "report[0]: done" in second
    assert "Traceback" not in second and "{" not in second, "only what is worth a line"


def test_the_screen_shows_our_lines_and_keeps_the_last_error(capsys: pytest.CaptureFixture[str]) -> None:
    from scripts.demo import Screen

    ours = {"timestamp": "2026-01-01T00:00:00Z", "event": "train[0]: hit", "logger": "mlops_tasks.stage"}
    airflows = ours | {"event": "Task started", "logger": "airflow.x"}
    error = airflows | {"event": "Task failed", "exception": [{"exc_value": "train[0] ended with 64: no"}]}
    copy = io.StringIO()

    screen = Screen(copy)
    screen.show([f"{json.dumps(one)}\n" for one in (ours, airflows, error)])

    shown = [line[9:] for line in capsys.readouterr().out.splitlines()]
    assert shown == ["train[0]: hit", "train[0] ended with 64: no"]
    assert screen.last_error == "train[0] ended with 64: no"
    assert copy.getvalue().count("\n") == 3

    screen.show(["DagRun failed\n"])
    assert screen.last_error == "train[0] ended with 64: no"
