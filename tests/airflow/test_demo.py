"""`make demo` and `airflow dags test`, on the toy pipeline."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

if TYPE_CHECKING:
    from conftest import Place, Toys


@pytest.mark.slow
def test_ctrl_c_ends_everything_and_the_next_run_goes_on_from_there(toys: Toys) -> None:
    toys.tell("train.hangs")
    process = toys.demo()
    toys.wait_until((toys.folder / "hanging").exists)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    first, _ = process.communicate(timeout=900)

    assert process.returncode == 130, first
    assert first.endswith("`make demo` goes on from there.\n")
    assert toys.processes() == []

    (toys.folder / "train.hangs").unlink()
    second, _ = (process := toys.demo()).communicate(timeout=900)

    assert process.returncode == 0, second
    done = ["pull_data[0]", "reference[0]", "reference[1]"]
    left = ["train[0]", "generate[0]", "generate[1]"]
    assert sorted(re.findall(r"(\S+): run ", first)) == sorted(re.findall(r"(\S+): hit ", second)) == done
    assert sorted(re.findall(r"(\S+): run ", second)) == sorted(left)
    assert sorted(re.findall(r"(\S+): starts", second)) == sorted(["plan", *left, "report[0]"]), "a hit starts nothing"
    assert "score[0]: skipped" in second and "report[0]: done" in second
    assert "Traceback" not in second and "{" not in second, "only what is worth a line"


# Ends its task at the first Ctrl-C, and says so until the second one, at which it has more to say than a pipe holds.
TALKATIVE = """#!{python}
import json, signal
CTRL_C = {{signal.SIGINT}}
def say(text):
    print(json.dumps(dict(timestamp="2026-01-01T00:00:00Z", event=text, logger="mlops_tasks")), flush=True)
signal.pthread_sigmask(signal.SIG_BLOCK, CTRL_C)
say("begun")
signal.sigwait(CTRL_C)
while signal.sigtimedwait(CTRL_C, 0.1) is None:
    say("[DAG TEST] end task")
print("words\\n" * 50_000, end="", flush=True)
"""


def test_ctrl_c_ends_an_airflow_that_has_much_to_say_at_its_end(tmp_path: Path) -> None:
    (tmp_path / "airflow").write_text(TALKATIVE.format(python=sys.executable))
    (tmp_path / "airflow").chmod(0o755)
    run = (
        "import pathlib, signal, sys; from scripts import airflow_home, demo; airflow_home.BIN = pathlib.Path(sys.argv[1]); "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "  # which a shell's background ignores
        "sys.exit(demo._run('x', airflow_home.BIN / 'log')[0])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", run, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None and "begun" in process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        process.communicate(timeout=60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert (tmp_path / "log").read_text().count("words\n") == 50_000


def specs_of(toys: Toys, stage: str) -> set[str]:
    """Of the runs whose process of a stage is there."""
    lines = [process.info["cmdline"] for process in toys.processes()]
    return {word for line in lines if stage in line for word in line if word.endswith("spec.json")}


@pytest.mark.slow
def test_two_runs_at_one_time_make_one_training(toys: Toys, tmp_path: Path) -> None:
    other = replace(toys, home=tmp_path / "airflow2")
    shutil.copytree(toys.home, other.home)
    toys.tell("train.waits")

    processes = [place.demo() for place in (toys, other)]
    toys.wait_until(lambda: len(specs_of(toys, "train")) == 2)
    (toys.folder / "train.waits").unlink()
    told = [process.communicate(timeout=900)[0] for process in processes]

    assert [process.returncode for process in processes] == [0, 0], told
    for stage in ("pull_data[0]", "reference[0]", "reference[1]", "train[0]", "generate[0]", "generate[1]"):
        outcomes = re.findall(rf"{re.escape(stage)}: (run|hit) ", "".join(told))
        assert sorted(outcomes) == ["hit", "run"], (stage, told)
        assert toys.starts.count(stage) == 1


# What is learnt in a few steps is nothing; that is good enough for a gate that lets a model pass which is not much worse.
TINY = {
    "name": "tiny",
    "data": {"source": {"kind": "generated", "num_train": 40, "num_validation": 6, "num_test": 4}, "on_contamination": "drop"},
    "model": {"name": "tiny-coder", "source": {"kind": "random", "hidden_size": 32, "num_layers": 1}},
    "text": {"max_length": 256},
    "scoring": {"scorer": "rho1", "reference": {"kind": "trained", "data": {"kind": "generated", "num_train": 40, "seed": 1}, "train": {"num_heads": 1, "steps": 2, "batch_size": 4}}},
    "train": {"num_heads": 2, "steps": 3, "batch_size": 8},
    "evaluation": {"max_new_tokens": 8},
    "gate": {"min_difference": -0.5},
}  # fmt: skip


@pytest.mark.slow
def test_the_real_day_promotes_and_the_next_one_computes_nothing(place: Place) -> None:
    recipe = place.folder / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(TINY))

    first, _ = (process := place.demo(str(recipe))).communicate(timeout=1200)

    assert process.returncode == 0, first
    outcome = dict(re.findall(r"^  (\S+) +(run|hit|skipped|done) +[\d.]+$", first, re.MULTILINE))
    assert outcome.pop("plan") == outcome.pop("promote") == outcome.pop("report") == "done"
    # Candidate and base may write the same programs after three steps, and then their verdicts are a hit.
    assert {task: what for task, what in outcome.items() if not task.startswith("judge")} == {
        "pull_data": "run", "pull_model": "run", "pull_reference": "run", "reference": "run", "reward": "skipped", "fit_critic": "skipped", "score_shard": "run", "score": "run",
        "train": "run", **{f"generate[{index}]": "run" for index in range(4)},
    }  # fmt: skip
    assert "  promoted: version 1. pass@1 is 0.0% against 0.0% of the base model on 6 problems" in first
    (report,) = re.findall(r"^  report: (.+)$", first, re.MULTILINE)
    assert Path(report).read_text().startswith("<!doctype html>")
    assert f"make demo RECIPE={recipe}" in first and f"wmtp plan --recipe {recipe} --set seed=1" in first

    second, _ = (process := place.demo(str(recipe))).communicate(timeout=1200)

    assert process.returncode == 0, second
    assert "Every stage was a hit: nothing had to be computed." in second
    # The baseline is the champion now, which is the candidate itself.
    assert "  already champion: version 1. " in second
    assert sorted(re.findall(r"(\S+): starts", second)) == ["plan", "promote[0]", "report[0]"]

    with closing(sqlite3.connect(place.home / "airflow.db")) as database:
        # Once: the second night has promoted nothing.
        ((uri, extra),) = database.execute(
            "SELECT asset.uri, asset_event.extra FROM asset_event JOIN asset ON asset.id = asset_event.asset_id"
        ).fetchall()
    event = json.loads(extra)
    assert (uri, event["version"]) == ("wmtp://champion/tiny-coder", "1")
    assert json.loads(Path(event["manifest"]).read_text())["digest"] == event["digest"]

    code, week = place.airflow("evaluate_champion", {"recipe": str(recipe)})

    assert code == 0, week
    # The champion has been asked all of it by night, when it was the candidate.
    hits = set(re.findall(r"(\w+\[\d\]): hit", week))
    assert {"pull_data[0]", "generate[2]", "judge[2]"} <= hits and "watch[0]: starts" in week
    held = json.loads(next((place.folder / "store/runs/toys/evaluate_champion").glob("*/watch.json")).read_text())
    assert (held["detail"]["outcome"], held["detail"]["change"]["difference"]) == ("holds", 0.0)


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
