"""What Airflow's own program says, of a program in its place that says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlops_tasks import orchestrator
from mlops_tasks.errors import Unavailable, UserError


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file to write as Airflow's program; nothing else is found."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path / "airflow"


def says(program: Path, script: str) -> None:
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_the_answer_is_the_last_line(program: Path) -> None:
    says(program, """echo 'a warning'; echo '[{"pool": "gpu", "slots": "4"}, {"pool": "cpu", "slots": "-1"}]'""")
    assert orchestrator.pools() == {"gpu": 4, "cpu": -1}
    says(
        program,
        """test "$*" = 'connections get there --output json' && echo '[{"extra_dejson": {"in_cluster": true}}]'""",
    )
    assert orchestrator.connection("there") == {"in_cluster": True}


def test_without_airflow_its_absence_is_told(program: Path) -> None:
    with pytest.raises(UserError, match="Airflow is not installed here, so `airflow pools list` cannot be asked"):
        orchestrator.pools()


def test_what_airflow_refuses_is_told_with_its_last_words(program: Path) -> None:
    says(program, "echo starting; echo 'Connection not found.' >&2; exit 1")
    with pytest.raises(Unavailable, match=r"`airflow connections get other` ended with 1: Connection not found\. Mend"):
        orchestrator.connection("other")


def test_an_answer_that_cannot_be_read_is_not_quoted(program: Path) -> None:
    says(program, "echo 'conn_id=there password=hunter2'")
    with pytest.raises(
        Unavailable, match="`airflow connections get there` ended well, and its last line is no JSON"
    ) as told:
        orchestrator.connection("there")
    assert "hunter2" not in str(told.value)
    assert told.value.__cause__ is None


def test_an_airflow_that_does_not_end_is_not_waited_for(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orchestrator, "_SECONDS", 0.3)
    says(program, "while :; do :; done")
    with pytest.raises(Unavailable, match=r"`airflow pools list` had not ended after 0\.3 s"):
        orchestrator.pools()
