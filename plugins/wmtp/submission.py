"""One task of Airflow as one object in the cluster: made or found again by its name, followed to its end, and then removed.

Keeps of the provider's operators the connection, the policies of the Airflow installation and its labels. What is submitted is
`manifest`'s, what becomes of its pods `pods`', and which tasks are submitted how `kubernetes`' and `sweep`'s.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import Context
from kubernetes.client import ApiException, CustomObjectsApi

from mlops_tasks.config.environment import Environment
from mlops_tasks.config.loading import load_environment
from mlops_tasks.errors import Interrupted, Unavailable, UserError
from wmtp import manifest, pods
from wmtp.manifest import CONTAINER, KEY, OWNER, Identity, Order
from wmtp.pods import PARTING_SECONDS, PATIENCE_SECONDS, REQUEST_SECONDS, Watch, patiently, refusal
from wmtp.task import GRACE_SECONDS, note_stop, stopped

log = logging.getLogger(__name__)


class SubmittedTask(KubernetesPodOperator):
    """A task that has one pod do its work, or whatever else its `request` makes."""

    ui_color = "#e8f0fe"
    template_fields: Sequence[str] = ()
    index: int = 0
    cell: str | None = None

    def __init__(self, *, environment_file: str, **operator: Any) -> None:
        cluster = load_environment(environment_file).kubernetes
        assert cluster is not None
        super().__init__(
            kubernetes_conn_id=cluster.connection,
            namespace=cluster.namespace,
            base_container_name=CONTAINER,
            random_name_suffix=False,
            deferrable=False,
            **operator,
        )
        self.environment_file = environment_file
        self._is_following = False
        self.has_left = False
        """Whether the API server did not answer when what was made was to be removed."""

    @property
    def label(self) -> str:
        """The task, as people are told of it."""
        return str(self.task_id)

    @property
    def deadline_seconds(self) -> int | None:
        """After which what was submitted ends, whoever has forgotten it."""
        return int(self.execution_timeout.total_seconds()) if self.execution_timeout else None

    def request(self, environment: Environment, order: Order, context: Context) -> Any:
        """The object that is submitted."""
        self.full_pod_spec = manifest.pod(environment, order)
        self.full_pod_spec.metadata.labels |= manifest.queue(environment, order.identity.task)
        return self.build_pod_request_obj(context)

    def on_kill(self) -> None:
        """Airflow got SIGTERM for this task, or its time is up: `execute` ends, whatever it waits for, and removes what it has made.

        Raises:
            Interrupted: in the midst of that, since a request to an API server that is away may take minutes.
        """
        note_stop()
        if self._is_following:
            self._end_if_stopped()

    def _end_if_stopped(self) -> None:
        if stopped.is_set():
            raise Interrupted(f"{self.label}: this process was asked to stop. Started again, it goes on.")

    def _identity_in(self, environment: Environment, context: Context) -> Identity:
        run, number = context["run_id"], context["ti"].map_index
        mapped = -1 if number is None else number
        return Identity(environment.deployment, self.dag_id, run, self.task_id, self.index, mapped, cell=self.cell)

    def carry_out(self, environment: Environment, order: Order, context: Context) -> str:
        """Submit an order, or find it again, and follow it to its end; returns the last line that its first pod said.

        Raises:
            WmtpError: of the class that its end means.
        """
        cluster = environment.kubernetes
        assert cluster is not None
        profile = cluster.profiles[cluster.profile_of(self.task_id)]
        watch = Watch(self.client, cluster.namespace, self.label, profile.start_seconds)
        self._is_following = True
        try:
            self._attach_or_create(self.request(environment, order, context), order, watch)
            while not patiently(lambda: self._is_done(order.identity.name, watch)):
                self._end_if_stopped()  # what `on_kill` raised may have been caught: a handler of logging does
                self._pause()
            return watch.last_line
        except KeyboardInterrupt:
            stopped.set()
            raise
        finally:
            self._is_following = False
            # Airflow calls `on_kill` neither on Ctrl-C nor after a failure.
            self._part_with(order.identity)

    def _pause(self) -> None:
        """What is done between two looks at what works."""
        self._rest()

    def _rest(self) -> None:
        """Wait for the next look, also for room to begin in."""
        time.sleep(pods.SECONDS_BETWEEN_LOOKS)

    def _attach_or_create(self, wanted: Any, order: Order, watch: Watch) -> None:
        name, what = wanted.metadata.name, f"{type(wanted).__name__[2:]} {wanted.metadata.name}"
        while True:
            try:
                patiently(lambda: self._create(wanted))
                log.info("%s: %s is made", self.label, what)
                return
            except ApiException as error:
                full = None if error.status == 409 else no_room(error, what)
            # A quota refuses before a name does, and what is there already may be what leaves no room.
            found = self._found(name)
            if found is None:
                if full is not None:
                    self._await_room(full, watch)
                continue
            if not _is_of(order.identity, found):
                raise UserError(
                    f"{what} is there already and not ours. Delete it, or give this deployment a namespace of its own."
                )
            if self._is_of_use(found, order):
                log.info("%s: %s is there already; attached", self.label, what)
                return
            self._delete(order.identity)
            self._await_removal(name, what, watch)

    def _await_room(self, full: Unavailable, watch: Watch) -> None:
        watch.wait([str(full)])
        self._end_if_stopped()
        self._rest()

    def _await_removal(self, name: str, what: str, watch: Watch) -> None:
        started = time.monotonic()
        while (found := self._found(name)) is not None:
            self._end_if_stopped()
            held = ", ".join(found.metadata.finalizers or []) or "its node"
            watch.tell(f"{what} of an earlier try is being removed; {held} holds it")
            if time.monotonic() - started > watch.start_seconds:
                raise Unavailable(
                    f"{what} of an earlier try is not gone after {watch.start_seconds:.0f} s (start_seconds of its profile); {held} holds it. If "
                    "its node is lost, `kubectl delete --force` it; a finalizer is its controller's to take away."
                )
            time.sleep(0.5)

    def _is_of_use(self, found: Any, order: Order) -> bool:
        """Whether it still works on what is wanted; what has ended is made anew, and so is what works on another key."""
        is_wanted = (found.metadata.annotations or {}).get(KEY) == order.key
        return is_wanted and not found.metadata.deletion_timestamp and not self._has_ended(found)

    # What differs between a pod and a Job.

    def _create(self, wanted: Any) -> None:
        self.client.create_namespaced_pod(self.namespace, wanted)

    def _read(self, name: str) -> Any:
        return self.client.read_namespaced_pod(name, self.namespace, _request_timeout=REQUEST_SECONDS)

    def _has_ended(self, found: Any) -> bool:
        return found.status.phase in ("Succeeded", "Failed")

    def _is_done(self, name: str, watch: Watch) -> bool:
        pod = self._present(name)
        if pod.spec.scheduling_gates:
            watch.tell(self._why_held(pod))
        watch.look([pod])
        watch.refuse_failures([pod])
        return bool(pod.status.phase == "Succeeded")

    def _remove(self, name: str) -> None:
        grace = int(GRACE_SECONDS)
        self.client.delete_namespaced_pod(
            name, self.namespace, grace_period_seconds=grace, _request_timeout=REQUEST_SECONDS
        )

    # What does not.

    def _found(self, name: str, *, seconds: float = PATIENCE_SECONDS) -> Any | None:
        try:
            return patiently(lambda: self._read(name), seconds=seconds)
        except ApiException as error:
            if error.status != 404:
                raise
            return None

    def _present(self, name: str) -> Any:
        try:
            return self._read(name)
        except ApiException as error:
            if error.status != 404:
                raise
            raise Interrupted(f"{self.label}: {name} was deleted from outside. Started again, it goes on.") from error

    def _why_held(self, found: Any) -> str:
        """What Kueue says of a Job that is suspended, or of a pod that no scheduler may look at yet."""
        kueue = CustomObjectsApi(self.client.api_client)
        try:
            workloads = kueue.list_namespaced_custom_object("kueue.x-k8s.io", "v1beta2", self.namespace, "workloads")
        except ApiException as error:
            if error.status not in (403, 404):
                raise
            return f"{found.metadata.name} is held back, and Kueue cannot be asked why ({error.status} {error.reason})"
        return pods.admission(workloads["items"], found.metadata.uid)

    def _part_with(self, identity: Identity) -> None:
        try:
            self._delete(identity, seconds=PARTING_SECONDS)
        except Unavailable as error:
            self.has_left = True
            log.warning(
                "%s: %s may be left; the next try or housekeeping finds it. %s", self.label, identity.name, error
            )

    def _delete(self, identity: Identity, *, seconds: float = PATIENCE_SECONDS) -> None:
        found = self._found(identity.name, seconds=seconds)
        if found is None or not _is_of(identity, found):
            return
        try:
            patiently(lambda: self._remove(identity.name), seconds=seconds)
        except ApiException as error:
            if error.status != 404:
                raise


def no_room(error: ApiException, what: str) -> Unavailable:
    """Of a refusal, that a quota is full, for which there is no more to do than to wait.

    Raises:
        UserError: it is refused for another reason.
    """
    refused = refusal(error, what)
    if not isinstance(refused, Unavailable):
        raise refused from error
    return refused


def _is_of(identity: Identity, found: Any) -> bool:
    return (found.metadata.labels or {}).get(OWNER) == identity.digest
