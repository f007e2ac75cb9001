"""One command as a process: its lines go into the task's log as they come, and nothing of it is left when `run` returns.

How everything that the command started is ended is `guard`'s; what an exit code means is `local`'s.
"""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

log = logging.getLogger(__name__)

_GUARD = Path(__file__).with_name("guard.py")

# A line as `mlops_tasks.logs` writes it.
_LINE = re.compile(r"\d\d:\d\d:\d\d (?P<level>[A-Z]+) +(?P<logger>[\w.]+): (?P<message>.*)")
_LONGEST_SENTENCE = 2000


class Process:
    """A command that is run once, and may be stopped by a signal handler."""

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str], grace_seconds: float) -> None:
        self.story = Story()
        self._command = [sys.executable, "-I", "-S", str(_GUARD), str(grace_seconds), *command]
        self._environment = environment
        self._process: subprocess.Popen[str] | None = None
        self._is_stopped = False

    def run(self) -> int:
        """Run to the end, whatever interrupts the wait; the exit code, 128 + N for signal N."""
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._environment,
            text=True,
            encoding="utf-8",
            errors="replace",
            # Ctrl-C reaches every process of the terminal's group; the command is to be ended once, and in order.
            start_new_session=True,
        )
        try:
            if not self._is_stopped:
                self._listen(self._process)
        finally:
            # Airflow calls `on_kill` neither on Ctrl-C nor when it is killed itself.
            self.stop()
            self._listen(self._process)
            code = self._process.wait()
        return code if code >= 0 else 128 - code

    def stop(self) -> None:
        """Have the guard end the command; returns at once."""
        self._is_stopped = True
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.story.hear(line.rstrip("\n"))


class Story:
    """What a process says: each line goes on to the log as it came, and its last error is kept."""

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._error: list[str] = []
        self._goes_on = False
        self._last = ""

    def hear(self, line: str) -> None:
        """Take one line."""
        if found := _LINE.fullmatch(line):
            level = logging.getLevelNamesMapping().get(found["level"], logging.INFO)
            logging.getLogger(found["logger"]).log(level, "%s%s", self._prefix, found["message"])
            self._goes_on = level >= logging.ERROR
            if self._goes_on:
                self._error = [found["message"]]
            return
        if line.startswith("Traceback "):  # nobody caught it, so what counts is how it ends
            self._error, self._goes_on = [], False
        if self._goes_on:
            self._error.append(line)
        if not line.strip():
            return
        self._last = line.strip()
        log.log(logging.ERROR if self._goes_on else logging.INFO, "%s%s", self._prefix, line)

    @property
    def last_line(self) -> str:
        """The last line that is not empty."""
        return self._last

    @property
    def last_error(self) -> str:
        """The last line of level ERROR with the lines that belong to it, or else the last line of a traceback."""
        return ("\n".join(self._error) or self._last)[:_LONGEST_SENTENCE]
