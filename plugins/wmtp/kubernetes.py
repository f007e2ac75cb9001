"""What a DAG does as pods: one object for each task, by a name that a retry finds again, followed to its end and then removed.

`PodStage` is one pod; `JobStage` is a Job, which replaces pods that were interrupted, and so is for trainings; `SandboxStage` is a
pod without credentials, for programs that a model wrote. All keep of
the provider's operators the connection, the policies of the Airflow installation and its labels. What is submitted is
`manifest`'s, what becomes of it `pods`', and what is a hit, which submits nothing, `task`'s.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from airflow.providers.cncf.kubernetes.operators.job import KubernetesJobOperator
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import Context
from kubernetes.client import ApiException, CustomObjectsApi
from kubernetes.client import models as k8s

from mlops_tasks import parcel, pipeline, stage
from mlops_tasks.config.environment import Environment
from mlops_tasks.config.loading import load_environment
from mlops_tasks.errors import Interrupted, Unavailable, UserError, WmtpError
from mlops_tasks.stage import Attempt, Decision, Run, Stage, Task
from mlops_tasks.store.s3 import S3Backend
from wmtp import manifest, pods
from wmtp.manifest import ADDRESSES, ADDRESSES_FILE, CONTAINER, ENVIRONMENT_FILE, KEY, OWNER, Identity, Order
from wmtp.pods import PARTING_SECONDS, PATIENCE_SECONDS, REQUEST_SECONDS, Watch, patiently, refusal
from wmtp.task import GRACE_SECONDS, StageTask, note_stop, stopped

log = logging.getLogger(__name__)

_SANDBOX = ("python", "-m", "mlops_tasks.parcel")
# An address lives no longer than the credentials that it was signed with. botocore gets new ones before theirs have only 10 minutes left,
# and a kubelet may take two to pass an address on.
_VALID_SECONDS, _SIGN_AFTER_SECONDS = 3600.0, 120.0


class PodStage(StageTask, KubernetesPodOperator):
    """One task of the pipeline as a pod; a hit starts none."""

    template_fields = ("index", "cell")
    ui_color = "#e8f0fe"

    def __init__(self, *, environment_file: str, index: int = 0, cell: str | None = None, **operator: Any) -> None:
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
        self.index = index
        self.cell = cell
        self._is_following = False

    def execute(self, context: Context) -> Any:
        """Look up, or run, and say where the result is."""
        found = super().execute(context)
        self.do_xcom_push = True  # only now: to the provider it means a sidecar
        return found

    def settle(self, run: Run, task: Task, context: Context) -> dict[str, Any]:
        """Look one place of the task up, or run it in a pod."""
        found = super().settle(run, task, context)
        if found["cache"] == "hit" and context["ti"].try_number > 1:
            # An earlier try's worker was killed, and what it had started ended well since.
            self._delete(self._identity_in(run.environment, context))
        return found

    def make(self, run: Run, task: Task, decision: Decision, context: Context) -> None:
        """Run `wmtp` in a pod."""
        self._run(run.environment, self.order(run, task, decision, context), context)

    def order(self, run: Run, task: Task, decision: Decision, context: Context) -> Order:
        """What this task is to do in a pod."""
        command = self.command(run, task, decision, environment_file=ENVIRONMENT_FILE)
        return Order(
            identity=self._identity_in(run.environment, context),
            stage=command[0],
            key=decision.key if decision.components else None,
            command=["wmtp", *command],
            variables=_traced(context),
            deadline_seconds=int(limit.total_seconds()) if (limit := self.execution_timeout) else None,
        )

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
        mapped = {} if number is None else {"map_index": number}
        return Identity(environment.deployment, self.dag_id, run, self.task_id, self.index, cell=self.cell, **mapped)

    def _run(self, environment: Environment, order: Order, context: Context) -> None:
        cluster = environment.kubernetes
        assert cluster is not None
        profile = cluster.profiles[cluster.profile_of(self.task_id)]
        watch = Watch(self.client, cluster.namespace, self.label, profile.start_seconds)
        self._is_following = True
        try:
            self._attach_or_create(self.request(environment, order, context), order)
            while not patiently(lambda: self._is_done(order.identity.name, watch)):
                self._end_if_stopped()  # what `on_kill` raised may have been caught: a handler of logging does
                time.sleep(pods.SECONDS_BETWEEN_LOOKS)
        except KeyboardInterrupt:
            stopped.set()
            raise
        finally:
            self._is_following = False
            # Airflow calls `on_kill` neither on Ctrl-C nor after a failure.
            self._part_with(order.identity)

    def _attach_or_create(self, wanted: Any, order: Order) -> None:
        name, what = wanted.metadata.name, f"{type(wanted).__name__[2:]} {wanted.metadata.name}"
        while True:
            try:
                patiently(lambda: self._create(wanted))
                log.info("%s: %s is made", self.label, what)
                return
            except ApiException as error:
                if error.status != 409:
                    raise refusal(error, what) from error
            found = self._found(name)
            if found is None:
                continue
            if not _is_of(order.identity, found):
                raise UserError(
                    f"{what} is there already and not ours. Delete it, or give this deployment a namespace of its own."
                )
            if self._is_of_use(found, order):
                log.info("%s: %s is there already; attached", self.label, what)
                return
            self._delete(order.identity)
            while self._found(name) is not None:
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


class SandboxStage(PodStage):
    """A stage that runs what a model wrote: its pod has no credentials, and the operator holds the lease and commits."""

    template_fields = ("index", "cell")
    _sign: Callable[[], str]
    """The addresses of the pod that runs, by the credentials of now."""
    _signed_at: float

    @staticmethod
    def in_sandbox(order: Order, function: str, addresses: str) -> Order:
        """The order with nothing in it but signed addresses."""
        variables = {parcel.FUNCTION: function, parcel.ADDRESSES: ADDRESSES_FILE}
        return replace(order, command=_SANDBOX, variables=variables, addresses=addresses)

    def make(self, run: Run, task: Task, decision: Decision, context: Context) -> None:
        """Have a pod work on one file, and put what comes back into the store."""
        files = {name: wanted.files for name, wanted in task.inputs(run.spec, self.index).items()}
        assert isinstance(task.run, Stage) and isinstance(run.store.backend, S3Backend)
        function, bucket = task.run.function, run.store.backend

        def by_parcel(attempt: Attempt) -> dict[str, Any]:
            # Below attempts, so that `gc` finds what a killed worker left.
            place = f"{attempt.prefix}/attempts/parcel-{attempt.folder.name}"
            with tempfile.TemporaryDirectory() as folder:
                there, back = Path(folder) / "there.tar", Path(folder) / "back.tar"
                parcel.pack(attempt, files, there, build=decision.components)
                bucket.publish(place, Path(folder), [there.name])
                self._sign = lambda: parcel.addresses(
                    source=bucket.signed(f"{place}/{there.name}", "get_object", seconds=_VALID_SECONDS),
                    target=bucket.signed(f"{place}/{back.name}", "put_object", seconds=_VALID_SECONDS),
                )
                self._signed_at = time.monotonic()
                order = self.in_sandbox(self.order(run, task, decision, context), function, self._sign())
                try:
                    self._run(run.environment, order, context)
                    return parcel.unpack_result(bucket.local(f"{place}/{back.name}", anew=True), attempt.folder)
                finally:
                    run.store.remove(place)

        key = decision.key
        stage.execute(run, task, self.index, tasks=pipeline.every(), expect_key=key, call=by_parcel)

    def _is_of_use(self, found: Any, order: Order) -> bool:
        return False  # its addresses are those of a worker that is gone

    def _is_done(self, name: str, watch: Watch) -> bool:
        is_done = super()._is_done(name, watch)
        if not is_done and time.monotonic() - self._signed_at > _SIGN_AFTER_SECONDS:
            self._sign_again(name)
        return is_done

    def _sign_again(self, name: str) -> None:
        self._signed_at = time.monotonic()
        try:
            annotations = {ADDRESSES: self._sign()}
            self.client.patch_namespaced_pod(name, self.namespace, {"metadata": {"annotations": annotations}})
        except Unavailable as error:
            log.warning("%s: its pod's addresses are not renewed now: %s", self.label, error)
        except ApiException as error:
            if error.status != 404:  # what becomes of a pod that is gone is told by the next look
                raise


class JobStage(PodStage, KubernetesJobOperator):
    """A training as a Job of as many pods as the environment says; a hit starts none."""

    template_fields = ("index", "cell")

    def order(self, run: Run, task: Task, decision: Decision, context: Context) -> Order:
        """What this task is to do in each pod."""
        order = super().order(run, task, decision, context)
        ranks = manifest.variables_of_ranks(order.identity, run.environment.train.num_pods)
        return replace(order, variables={**order.variables, **ranks})

    def request(self, environment: Environment, order: Order, context: Context) -> k8s.V1Job:
        """The Job that is submitted."""
        pod = manifest.pod(environment, order)
        pod.spec.subdomain = order.identity.name
        pod.spec.active_deadline_seconds = None  # the Job's, of which a pod that replaces another has the rest
        self.full_pod_spec = pod
        self.parallelism = environment.train.num_pods  # the provider's default is not None, and so wins
        self.full_job_spec = manifest.job(environment, order)
        job = self.build_job_request_obj(context)
        job.metadata.name, job.metadata.annotations = order.identity.name, pod.metadata.annotations
        job.metadata.labels = {**job.spec.template.metadata.labels, **job.metadata.labels}
        return job

    def _create(self, wanted: k8s.V1Job) -> None:
        self.job_client.create_namespaced_job(self.namespace, wanted)

    def _read(self, name: str) -> k8s.V1Job:
        return self.job_client.read_namespaced_job(name, self.namespace, _request_timeout=REQUEST_SECONDS)

    def _has_ended(self, found: k8s.V1Job) -> bool:
        return _ended_how(found) is not None

    def _is_done(self, name: str, watch: Watch) -> bool:
        job = self._present(name)
        found = self.client.list_namespaced_pod(self.namespace, label_selector=f"job-name={name}").items
        watch.look(found)
        if job.spec.suspend:
            watch.tell(self._why_held(job))
        elif not found:
            watch.tell(pods.last_warning(self.client, job) or "no pod has been made yet")
        ended = _ended_how(job)
        if ended is not None and ended.type == "Failed":
            watch.refuse_failures(found)
            raise WmtpError(f"{self.label}: Job {name} failed ({ended.reason}): {ended.message}")
        return ended is not None

    def _remove(self, name: str) -> None:
        self.job_client.delete_namespaced_job(
            name, self.namespace, propagation_policy="Foreground", _request_timeout=REQUEST_SECONDS
        )

    def _attach_or_create(self, wanted: k8s.V1Job, order: Order) -> None:
        super()._attach_or_create(wanted, order)
        try:
            job = patiently(lambda: self._present(wanted.metadata.name))
            patiently(lambda: self.client.create_namespaced_service(self.namespace, manifest.service(job)))
        except ApiException as error:
            if error.status != 409:
                raise refusal(error, f"Service {wanted.metadata.name}") from error


def _is_of(identity: Identity, found: Any) -> bool:
    return (found.metadata.labels or {}).get(OWNER) == identity.digest


def _ended_how(job: k8s.V1Job) -> k8s.V1JobCondition | None:
    ends = ("Complete", "Failed")
    return next((one for one in job.status.conditions or [] if one.type in ends and one.status == "True"), None)


def _traced(context: Context) -> dict[str, str]:
    """Where Airflow's trace goes on, if there is one."""
    parent = (getattr(context["ti"], "context_carrier", None) or {}).get("traceparent")
    return {"TRACEPARENT": parent} if parent else {}
