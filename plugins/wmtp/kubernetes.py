"""Stages as pods: for each task one object in the cluster.

`PodStage` is one pod; `JobStage` is a Job, which replaces pods that were interrupted, and so is for trainings; `SandboxStage` is a
pod without credentials, for programs that a model wrote. What is submitted is `manifest`'s, how it is found again, followed and
removed `submission`'s, and what is a hit, which submits nothing, `task`'s.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from airflow.providers.cncf.kubernetes.operators.job import KubernetesJobOperator
from airflow.sdk import Context
from kubernetes.client import ApiException
from kubernetes.client import models as k8s

from mlops_tasks import parcel, pipeline, stage
from mlops_tasks.config.environment import Environment
from mlops_tasks.errors import DataError, Unavailable, UserError, WmtpError
from mlops_tasks.stage import Attempt, Decision, Run, Stage, Task
from mlops_tasks.store.s3 import S3Backend
from wmtp import manifest, pods
from wmtp.manifest import ADDRESSES, ADDRESSES_FILE, ENVIRONMENT_FILE, Order
from wmtp.pods import REQUEST_SECONDS, Watch, patiently, refusal
from wmtp.submission import SubmittedTask
from wmtp.task import StageTask

log = logging.getLogger(__name__)

_SANDBOX = ("python", "-m", "mlops_tasks.parcel")
# An address lives no longer than the credentials that it was signed with. botocore gets new ones before theirs have only 10 minutes left,
# and a kubelet may take two to pass an address on.
_VALID_SECONDS, _SIGN_AFTER_SECONDS = 3600.0, 120.0


class PodStage(StageTask, SubmittedTask):
    """One task of the pipeline as a pod; a hit starts none."""

    template_fields = ("index", "cell")

    def __init__(self, *, index: int = 0, cell: str | None = None, **operator: Any) -> None:
        super().__init__(**operator)
        self.index = index
        self.cell = cell

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
        self.carry_out(run.environment, self.order(run, task, decision, context), context)

    def order(self, run: Run, task: Task, decision: Decision, context: Context) -> Order:
        """What this task is to do in a pod."""
        command = self.command(run, task, decision, environment_file=ENVIRONMENT_FILE)
        return Order(
            identity=self._identity_in(run.environment, context),
            stage=command[0],
            key=decision.key if decision.components else None,
            command=["wmtp", *command],
            variables=_traced(context),
            deadline_seconds=self.deadline_seconds,
        )


@contextmanager
def _told_in(bucket: S3Backend, back: str) -> Iterator[None]:
    """Give what a pod fails with the class that the pod itself has told, for an exit code does not say whether other settings may do."""
    try:
        yield
    except (UserError, DataError) as error:
        if bucket.size(back) is None:
            raise
        raise parcel.failure(bucket.local(back, anew=True), error.exit_code)(str(error)) from error


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
                    with _told_in(bucket, f"{place}/{back.name}"):
                        self.carry_out(run.environment, order, context)
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
        ended = _ended_how(job)
        watch.look(found, unmade="" if ended else self._why_unmade(job, found))
        if job.spec.suspend:
            watch.tell(self._why_held(job))
        if ended is not None and ended.type == "Failed":
            watch.refuse_failures(found)
            raise WmtpError(f"{self.label}: Job {name} failed ({ended.reason}): {ended.message}")
        return ended is not None

    def _why_unmade(self, job: k8s.V1Job, found: Sequence[k8s.V1Pod]) -> str:
        """Why a Job that is not held back has not all its pods, such as for want of room in a quota; empty: it has."""
        number, wanted = sum(pod.status.phase != "Failed" for pod in found), job.spec.parallelism
        if job.spec.suspend or number >= wanted:
            return ""
        return pods.last_warning(self.client, job) or f"{wanted - number} of {wanted} pods are not made yet"

    def _remove(self, name: str) -> None:
        self.job_client.delete_namespaced_job(
            name, self.namespace, propagation_policy="Foreground", _request_timeout=REQUEST_SECONDS
        )

    def _attach_or_create(self, wanted: k8s.V1Job, order: Order, watch: Watch) -> None:
        super()._attach_or_create(wanted, order, watch)
        try:
            job = patiently(lambda: self._present(wanted.metadata.name))
            patiently(lambda: self.client.create_namespaced_service(self.namespace, manifest.service(job)))
        except ApiException as error:
            if error.status != 409:
                raise refusal(error, f"Service {wanted.metadata.name}") from error


def _ended_how(job: k8s.V1Job) -> k8s.V1JobCondition | None:
    ends = ("Complete", "Failed")
    return next((one for one in job.status.conditions or [] if one.type in ends and one.status == "True"), None)


def _traced(context: Context) -> dict[str, str]:
    """Where Airflow's trace goes on, if there is one."""
    parent = (getattr(context["ti"], "context_carrier", None) or {}).get("traceparent")
    return {"TRACEPARENT": parent} if parent else {}
