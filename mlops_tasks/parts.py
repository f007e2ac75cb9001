"""Rows that a stage has made so far: small commits below its prefix, so that one that is killed goes on where it was.

    <prefix>/checkpoints/rows-00000003-1/rows.parquet     the fourth part; of the holder of token 1

They are a training's checkpoints in another form: committed under the same lease, counted as saved work when an attempt fails, and
removed by the runtime once the result is committed. Owns when rows are put away and which parts are whole; what a row is, is the
stage's. A key names what was asked, so rows below it answer the same question: where a process that was taken for dead and its
successor both made one, the first counts.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mlops_tasks import lease
from mlops_tasks.errors import DataError
from mlops_tasks.store import Store

log = logging.getLogger(__name__)

SECONDS_BETWEEN_PARTS = 20.0
"""What a kill costs at most, beside the rows that were under way."""

_FILE = "rows.parquet"
_NAME = re.compile(r"rows-(\d{8})-\d+")


class Parts:
    """The rows of one stage's key.

    Args:
        store: where the result will be committed.
        prefix: of the result.
        schema: of a row.
        identity: the columns by which a row is known.
        token: of the lease under which this process works.
    """

    def __init__(self, store: Store, prefix: str, schema: pa.Schema, *, identity: Sequence[str], token: int) -> None:
        self._store, self._prefix, self._schema, self._token = store, f"{prefix}/checkpoints", schema, token
        self._of_result, self._identity = prefix, identity
        self._waiting: list[Mapping[str, Any]] = []
        self._saved = time.monotonic()
        self._next = 0

    def read(self) -> list[dict[str, Any]]:
        """All rows that were put away, each once; those of a broken part are made anew."""
        rows: dict[tuple[Any, ...], dict[str, Any]] = {}
        for name in self._store.children(self._prefix):
            if (part := _NAME.fullmatch(name)) is not None:
                self._next = max(self._next, int(part[1]) + 1)
                for row in self._rows_of(f"{self._prefix}/{name}"):
                    rows.setdefault(tuple(row[column] for column in self._identity), row)
        return list(rows.values())

    def add(self, row: Mapping[str, Any]) -> None:
        """Take a row in, and put all that wait away now and then.

        Raises:
            Unavailable: another process took over.
        """
        self._waiting.append(row)
        if time.monotonic() - self._saved >= SECONDS_BETWEEN_PARTS:
            self._put_away()

    def _put_away(self) -> None:
        lease.require(self._store, self._of_result, self._token)
        draft = self._store.begin(f"{self._prefix}/rows-{self._next:08d}-{self._token}")
        pq.write_table(pa.Table.from_pylist(self._waiting, schema=self._schema), draft.folder / _FILE)
        self._store.commit(draft, {"num_rows": len(self._waiting)})
        self._next += 1
        self._waiting, self._saved = [], time.monotonic()

    def _rows_of(self, prefix: str) -> list[dict[str, Any]]:
        artifact = self._store.find(prefix)
        if artifact is None:
            return []
        try:
            rows: list[dict[str, Any]] = pq.read_table(artifact.path(_FILE), schema=self._schema).to_pylist()
        except DataError as error:
            log.warning("rows are made anew: %s", error)
            return []
        return rows
