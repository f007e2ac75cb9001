"""What of a cluster nobody goes on with, by what Airflow says; how it is removed is shown by a real API server."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from wmtp.manifest import TASK_INSTANCE, Identity
from wmtp.sweep import _why_left

OWNER = Identity("toys", "wmtp_daily", "a run", "generate", 1, map_index=1)


class Airflow:
    """Answers as the API of the task instance does."""

    def __init__(self, *, run: str | None, tasks: dict[str, str | None]) -> None:
        self.run, self.tasks = run, tasks

    def get_dr_count(self, *, dag_id: str, run_ids: list[str], states: list[str] | None = None) -> int:
        return int(self.run is not None and (states is None or self.run in states))

    def get_task_states(self, *, dag_id: str, task_ids: list[str], run_ids: list[str]) -> dict[str, Any]:
        return {run_ids[0]: self.tasks}


@pytest.mark.parametrize(
    ("run", "tasks", "is_young", "why"),
    [
        ("running", {"generate_1": "running"}, True, None),
        ("running", {"generate_1": "up_for_retry"}, False, None),
        ("running", {"generate_1": None}, False, None),
        ("running", {"generate_1": "failed"}, True, "the task is failed"),
        ("running", {"generate_0": "running"}, True, "the run has no such task any more"),
        ("failed", {"generate_1": "running"}, True, "the run is finished"),
        (None, {}, False, "the run is gone"),
        (None, {}, True, None),
    ],
)
def test_somebody_goes_on_unless_airflow_says_that_nobody_does(
    run: str | None, tasks: dict[str, str | None], is_young: bool, why: str | None
) -> None:
    found = _why_left(OWNER, Airflow(run=run, tasks=tasks), is_young=is_young)
    assert found == (why and f"generate[1] of wmtp_daily/a run: {why}")


def test_what_a_pod_has_asked_for_goes_on_with_the_task_that_watches_the_pod() -> None:
    verdict = Identity("toys", "wmtp_tune", "a run", "judge", 0, map_index=1, cell="c", asked_by="search")
    assert _why_left(verdict, Airflow(run="running", tasks={"search_1": "running"}), is_young=False) is None
    told = _why_left(verdict, Airflow(run="running", tasks={"search_1": "failed"}), is_young=False)
    assert told == "judge[0] of wmtp_tune/a run: the task is failed"
    assert Identity.of(SimpleNamespace(metadata=SimpleNamespace(annotations=verdict.annotations))) == verdict


@pytest.mark.parametrize("told", [None, "{", "[]", '{"deployment": "toys"}', '{"a": 1}'])
def test_an_object_that_does_not_say_whose_it_is_in_todays_words_is_nobodys(told: str | None) -> None:
    annotations = None if told is None else {TASK_INSTANCE: told}
    assert Identity.of(SimpleNamespace(metadata=SimpleNamespace(annotations=annotations))) is None


def test_an_object_says_whose_it_is_in_full() -> None:
    assert Identity.of(SimpleNamespace(metadata=SimpleNamespace(annotations=OWNER.annotations))) == OWNER
