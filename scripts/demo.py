"""Runs the daily DAG once in this terminal, and shows one line an event: `python -m scripts.demo [RECIPE]`.

Airflow says much more; all of it is in .wmtp/airflow/demo.log.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from scripts import airflow_home

DAG = "wmtp_daily"
OURS = ("mlops_tasks", "wmtp")
NEXT = """
  next:
    make demo RECIPE={recipe}    the same again: every stage is a hit
    make ui    Airflow and MLflow on localhost: trigger {dag} with another recipe or other settings
    .venv/bin/wmtp plan --recipe {file} --set seed=1    what another seed would run, and how long
    .venv/bin/wmtp why train --recipe {file} --set seed=1    and why"""


def main() -> int:
    """Run, show what the run came to, and end with 0 only if it succeeded."""
    recipe = sys.argv[1] if len(sys.argv) > 1 else "demo"
    airflow_home.migrate()
    print(f"{DAG} starts with the recipe {recipe}; Airflow takes some seconds to load.", flush=True)
    code, error = _run(recipe, airflow_home.home() / "demo.log")
    if code == 0:
        print(flush=True)
        shown = subprocess.run([sys.executable, "-m", "mlops_tasks", "show"], env=airflow_home.variables(), check=False)
        print(
            NEXT.format(dag=DAG, recipe=recipe, file=recipe if "." in recipe else f"configs/recipes/{recipe}.yaml"),
            flush=True,
        )
        return shown.returncode
    print(f"\n{error}", file=sys.stderr)
    return code


def _run(recipe: str, log: Path) -> tuple[int, str]:
    command = [str(airflow_home.BIN / "airflow"), "dags", "test", DAG, "--conf", json.dumps({"recipe": recipe})]
    process = subprocess.Popen(
        command, env=airflow_home.variables(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None

    def stop_both(*_: object) -> None:
        process.send_signal(signal.SIGINT)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop_both)
    with log.open("w") as copy:
        screen = Screen(copy)
        try:
            screen.show(process.stdout)
        except KeyboardInterrupt:
            # Airflow has the signal too and ends the task. Left alone it would then go through all later tasks, a second each.
            screen.show(process.stdout, until="[DAG TEST] end task")
            process.send_signal(signal.SIGINT)
            copy.writelines(process.stdout)  # unread, its last words may fill the pipe, and it would never end
            process.wait()
            return 130, "Stopped. What was done is kept, and `make demo` goes on from there."
    return process.wait(), f"The whole log is {log}.\n{screen.last_error}"


class Screen:
    """What is worth a line on a terminal, of all that Airflow says; the rest goes into a file only."""

    def __init__(self, copy: TextIO) -> None:
        self._copy = copy
        self._last_exception = ""
        self._last_bare_line = ""

    @property
    def last_error(self) -> str:
        """Why the last task failed, or else what Airflow said outside of its log, such as a traceback of its own."""
        return self._last_exception or self._last_bare_line

    def show(self, lines: Iterable[str], *, until: str = "\n\n") -> None:
        """Read lines to the end, or to an event that starts with `until`."""
        for line in lines:
            self._copy.write(line)
            try:
                event = json.loads(line)
            except ValueError:
                self._last_bare_line = line.strip() or self._last_bare_line
                continue
            self._show_event(event)
            if event["event"].startswith(until):
                return

    def _show_event(self, event: dict[str, Any]) -> None:
        text = event["event"]
        if "exception" in event:
            text = self._last_exception = event["exception"][-1]["exc_value"]
        if "exception" in event or event.get("logger", "").startswith(OURS):
            at = datetime.fromisoformat(event["timestamp"]).astimezone()
            print(f"{at:%H:%M:%S} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
