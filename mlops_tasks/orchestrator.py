"""What `wmtp doctor` asks of Airflow, by Airflow's own program: nothing of this package imports it.

Owns how the program is found and what its answers mean. What a connection opens, and whether a pool is enough, is said by whoever asks.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

from mlops_tasks.errors import Unavailable, UserError

_SECONDS = 120


def pools() -> dict[str, int]:
    """Slots of each pool by its name; -1: as many as are asked for.

    Raises:
        UserError: Airflow is not here.
        Unavailable: it does not answer.
    """
    return {one["pool"]: int(one["slots"]) for one in _told("pools", "list")}


def connection(name: str) -> dict[str, Any]:
    """The settings of a connection that belong to its kind (its `extra`).

    Raises:
        UserError: Airflow is not here.
        Unavailable: it does not answer, or knows no such connection.
    """
    found: dict[str, Any] = _told("connections", "get", name)[0]["extra_dejson"] or {}
    return found


def _told(*arguments: str) -> list[dict[str, Any]]:
    command = ["airflow", *arguments, "--output", "json"]
    if shutil.which("airflow") is None:
        raise UserError(
            f"Airflow is not installed here, so `{' '.join(command[:3])}` cannot be asked. Run this in Airflow's image, such as with "
            "`kubectl exec` into its scheduler."
        )
    asked = f"`{' '.join(command[:-2])}`"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise Unavailable(
            f"{asked} had not ended after {_SECONDS} s. Run this where Airflow's database is reached, or later."
        ) from None
    # Warnings come before the answer.
    last = (done.stdout.strip().splitlines() or [""])[-1]
    try:
        found: list[dict[str, Any]] = json.loads(last)
    except ValueError:
        if done.returncode == 0:  # what is told of a connection may be secret
            raise Unavailable(
                f"{asked} ended well, and its last line is no JSON. Run it yourself to see why; nothing else may write to its output."
            ) from None
        why = (done.stdout + done.stderr).strip().splitlines() or ["it says nothing"]
        raise Unavailable(
            f"{asked} ended with {done.returncode}: {why[-1]} Mend the name in the environment file, or run this where Airflow's database is "
            "reached."
        ) from None
    return found
