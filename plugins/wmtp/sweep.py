"""Housekeeping where stages are pods: `wmtp gc` in a pod, and before it what is left in the cluster of tasks that nobody goes on with.

A task removes what it made, however it ends, and its retry finds again what a killed worker left. What no retry comes for, because its run
was deleted or its task marked meanwhile, is found here by the task that it names. Which runs and tasks there are is Airflow's to say.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
from airflow.providers.cncf.kubernetes.pod_generator import make_safe_label_value
from airflow.sdk import Context
from kubernetes.client import ApiException

from mlops_tasks.config.environment import Environment
from mlops_tasks.config.kubernetes import Kubernetes
from mlops_tasks.config.loading import load_environment
from wmtp.local import CleaningTask
from wmtp.manifest import ENVIRONMENT_FILE, Identity, Order
from wmtp.pods import patiently
from wmtp.submission import SubmittedTask
from wmtp.task import GRACE_SECONDS

log = logging.getLogger(__name__)

_UNFINISHED_RUN = ["queued", "running"]
_FINISHED_TASK = {"success", "failed", "skipped", "upstream_failed", "removed"}


@dataclass(frozen=True)
class Leftover:
    """An object that its task has left."""

    kind: str
    name: str
    uid: str
    why: str
    """Nobody goes on with it."""


class ClusterCleaning(CleaningTask, SubmittedTask):
    """What is left in the cluster, and then `wmtp gc` in a pod: the account that may delete in the store is no other task's."""

    def __init__(self, *, removes: bool, **operator: Any) -> None:
        super().__init__(**operator)
        self.removes = removes

    def execute(self, context: Context) -> str:
        """Look, or remove; the return value says what went or would go."""
        told = super().execute(context)
        self.do_xcom_push = True  # only now: to the provider it means a sidecar
        return told

    def clean(self, context: Context) -> str:
        """Look at the cluster, then at the store; remove what there is where this task may."""
        environment = load_environment(self.environment_file)
        assert environment.kubernetes is not None
        ours, number = Ours(environment.kubernetes, environment.deployment), 0
        young = timedelta(days=environment.housekeeping.grace_days)
        # One at a time: a task that is cleared meanwhile goes on with what is its own.
        for one in ours.leftovers(context["ti"], young=young):
            number += 1
            log.info("%s %s: %s", one.kind, one.name, one.why)
            if self.removes:
                ours.remove(one)
        told = f"{number} objects {'removed from the cluster' if self.removes else 'in the cluster would be removed'}"
        log.info("%s", told)
        return f"{told}; {self.carry_out(environment, self.order(environment, context), context)}"

    def order(self, environment: Environment, context: Context) -> Order:
        """`wmtp gc` as it is to run in a pod."""
        return Order(
            identity=self._identity_in(environment, context),
            stage="gc",
            key=None,
            command=["wmtp", *self.command(ENVIRONMENT_FILE)],
            variables={},
            deadline_seconds=self.deadline_seconds,
        )


class Ours:
    """The objects of one deployment in its namespace."""

    def __init__(self, settings: Kubernetes, deployment: str) -> None:
        hook = KubernetesHook(conn_id=settings.connection)
        core, batch, self._namespace = hook.core_v1_client, hook.batch_v1_client, settings.namespace
        self._deployment = deployment
        self._list: Mapping[str, Callable[..., Any]] = {
            "Job": batch.list_namespaced_job,
            "Pod": core.list_namespaced_pod,
            "Service": core.list_namespaced_service,
        }
        self._delete: Mapping[str, Callable[..., Any]] = {
            "Job": batch.delete_namespaced_job,
            "Pod": core.delete_namespaced_pod,
            "Service": core.delete_namespaced_service,
        }

    def leftovers(self, airflow: Any, *, young: timedelta) -> Iterator[Leftover]:
        """What nobody goes on with, asked of each when it is its turn.

        Args:
            airflow: the task instance that asks, by which Airflow's API says how others are.
            young: no object that is younger is taken for left because this Airflow does not know its run, which another one may.
        """
        label = f"app.kubernetes.io/managed-by=wmtp,wmtp.io/deployment={make_safe_label_value(self._deployment)}"
        for kind, ask in self._list.items():
            for one in patiently(partial(ask, self._namespace, label_selector=label)).items:
                # What belongs to an object goes with it.
                if one.metadata.owner_references or one.metadata.deletion_timestamp:
                    continue
                owner = Identity.of(one)
                if owner is None or owner.deployment != self._deployment:
                    log.warning("%s %s does not say which task it is of, and is left alone", kind, one.metadata.name)
                elif (why := _why_left(owner, airflow, is_young=_age(one) < young)) is not None:
                    yield Leftover(kind, one.metadata.name, one.metadata.uid, why)

    def remove(self, one: Leftover) -> None:
        """Have it end in order; what has been made anew under its name stays."""
        body: dict[str, Any] = {"preconditions": {"uid": one.uid}, "propagationPolicy": "Foreground"}
        if one.kind == "Pod":
            body["gracePeriodSeconds"] = int(GRACE_SECONDS)
        try:
            patiently(lambda: self._delete[one.kind](one.name, self._namespace, body=body))
        except ApiException as error:
            if error.status not in (404, 409):
                raise


def _age(found: Any) -> timedelta:
    made: datetime = found.metadata.creation_timestamp
    return datetime.now(UTC) - made


def _why_left(owner: Identity, airflow: Any, *, is_young: bool) -> str | None:
    """Why nobody goes on with what a task has made; None: somebody does, will, or may."""
    task = f"{owner.task}[{owner.index}] of {owner.dag}/{owner.run}"
    if not airflow.get_dr_count(dag_id=owner.dag, run_ids=[owner.run]):
        if is_young:
            log.warning(
                "%s: this Airflow does not know the run, and another one may; left alone while it is young", task
            )
        return None if is_young else f"{task}: the run is gone"
    if not airflow.get_dr_count(dag_id=owner.dag, run_ids=[owner.run], states=_UNFINISHED_RUN):
        return f"{task}: the run is finished"
    known = owner.airflow_task
    states = airflow.get_task_states(dag_id=owner.dag, task_ids=[known], run_ids=[owner.run]).get(owner.run, {})
    name = known if owner.map_index < 0 else f"{known}_{owner.map_index}"
    if name not in states:
        return f"{task}: the run has no such task any more"
    return f"{task}: the task is {states[name]}" if states[name] in _FINISHED_TASK else None
