"""Runs in MLflow that nobody needs any more: trainings that no version came of, and that have left the store too.

Owns which those are; what else is garbage is `housekeeping`'s. A server may hold the runs of several stores, and whether a training has left
another one cannot be told from here: only runs that name this store are looked at. A deleted run is only hidden: `mlflow gc` removes it for good.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from mlops_tasks import registry, tracking
from mlops_tasks.config.environment import Environment
from mlops_tasks.stage import artifact_prefix
from mlops_tasks.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OldRun:
    """A training's run in MLflow that can go."""

    run_id: str
    name: str
    started: datetime

    def __str__(self) -> str:
        return f"MLflow run {self.run_id}  {self.name} of {self.started:%Y-%m-%d}: no version, and nothing of it is in the store"


def find(environment: Environment, *, now: datetime | None = None) -> list[OldRun]:
    """The runs that the environment's policy lets go, the oldest first.

    Args:
        environment: its registry, its store, and its policy.
        now: the present, if not the clock's.

    Raises:
        Unavailable: the tracking server cannot be reached.
    """
    days = environment.housekeeping.mlflow_days
    if days is None or tracking.is_empty(environment):
        return []
    before = (now or datetime.now(UTC)) - timedelta(days=days)
    store = Store.of(environment)
    with tracking.connection(environment) as client:
        needed = {version.run_id for name in registry.names(client) for version in registry.versions(client, name)}
        ours = _trainings(client, before, store)
        found = [run for run in ours if run.info.run_id not in needed and _has_left(store, run)]
    old = [OldRun(run.info.run_id, run.info.run_name, _time(run.info.start_time)) for run in found]
    return sorted(old, key=lambda run: run.started)


def delete(environment: Environment, runs: Sequence[OldRun]) -> None:
    """Delete them; MLflow can restore each until its own `gc`."""
    if not runs:
        return
    with tracking.connection(environment) as client:
        for run in runs:
            client.delete_run(run.run_id)
            log.info("deleted %s", run)


def _trainings(client: MlflowClient, before: datetime, store: Store) -> Iterator[Run]:
    experiments = [one.experiment_id for one in client.search_experiments(filter_string="name LIKE 'wmtp/%'")]
    mine = f"tags.{tracking.STORE_TAG} = '{store.uri}' AND tags.{tracking.KIND_TAG} = 'train'"
    which = f"attributes.start_time < {int(before.timestamp() * 1000)} AND {mine}"
    token: str | None = None
    while experiments and token != "":
        page = client.search_runs(experiments, which, page_token=token)
        yield from (run for run in page if tracking.KEY_TAG in run.data.tags)
        token = page.token or ""


def _has_left(store: Store, run: Run) -> bool:
    """Neither its artifact nor a checkpoint to go on from is there."""
    return not store.children(artifact_prefix("train", run.data.tags[tracking.KEY_TAG]))


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
