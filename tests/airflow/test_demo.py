"""`make demo` and `airflow dags test`, on the toy pipeline."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Toys


def demo(toys: Toys, checkout: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "scripts.demo"],
        cwd=checkout,
        env=toys.variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_the_second_run_is_all_hits_and_starts_no_stage(toys: Toys, checkout: str) -> None:
    first, _ = (process := demo(toys, checkout)).communicate(timeout=240)
    assert process.returncode == 0, first
    starts = toys.starts
    second, _ = (process := demo(toys, checkout)).communicate(timeout=240)
    assert process.returncode == 0, second

    assert sorted(starts) == ["generate[0]", "generate[1]", "pull_data[0]", "reference[0]", "reference[1]", "train[0]"]
    assert toys.starts == starts
    for one in starts:
        assert f"{one}: run " in first
        assert f"{one}: hit " in second
    for said in (first, second):
        assert "score[0]: skipped" in said
        assert "report[0]: done" in said
        assert "Traceback" not in said and "{" not in said, "only what is worth a line"


@pytest.mark.slow
def test_ctrl_c_ends_everything_at_once(toys: Toys, checkout: str) -> None:
    toys.tell("pull_data.hangs")
    process = demo(toys, checkout)
    toys.wait_until((toys.folder / "hanging").exists)

    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said, _ = process.communicate(timeout=60)

    assert process.returncode == 130, said
    assert said.endswith("`make demo` goes on from there.\n")
    assert toys.processes() == []


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
