"""What is submitted for a task: a pod, or a Job with the Service by which its pods find each other, as its profile says.

Every pod meets the Pod Security Standard `restricted`. It gets the environment file through an annotation, secrets by reference, and no
token; one that runs what a model wrote gets signed addresses in the same way, and none of the others. Which task is submitted how, and what becomes of it, is `kubernetes`'.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from airflow.providers.cncf.kubernetes.pod_generator import make_safe_label_value
from kubernetes.client import models as k8s

from mlops_tasks.config.environment import Environment
from mlops_tasks.config.kubernetes import SCRATCH, SETTINGS, SHARED_MEMORY, Kubernetes, Profile
from mlops_tasks.errors import Interrupted
from wmtp.task import GRACE_SECONDS

ENVIRONMENT_FILE = f"{SETTINGS}/environment.json"
ADDRESSES_FILE = f"{SETTINGS}/addresses.json"
CONTAINER = "stage"
INDEX = "batch.kubernetes.io/job-completion-index"
OWNER = "wmtp.io/owner"
KEY = "wmtp.io/key"
ADDRESSES = "wmtp.io/addresses"
"""Annotation of a pod without credentials. The kubelet writes the pod's file anew within two minutes after it was changed."""
TASK_INSTANCE = "wmtp.io/task-instance"

_PORT = 29400
_HOUR = 3600


@dataclass(frozen=True)
class Identity:
    """Which task of which run an object belongs to; a retry has the same one."""

    deployment: str
    dag: str
    run: str
    task: str
    index: int
    map_index: int = -1
    """Airflow's own number, by which it knows the task; -1: the task is not mapped."""
    cell: str | None = None
    """Of a comparison or of a study; None: it is a task of the run itself."""
    asked_by: str | None = None
    """The task of Airflow that has it done for the pod it watches; None: it is a task of Airflow itself."""

    @property
    def digest(self) -> str:
        """Tells it from every other task of any run."""
        told = [self.deployment, self.dag, self.run, self.task, self.index, self.cell]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """Of the object; short enough for a host name with the number of a pod."""
        return f"wmtp-{self.task.replace('_', '-')[:20]}-{self.index}-{self.digest}"

    @property
    def airflow_task(self) -> str:
        """The task by which Airflow knows it."""
        return self.asked_by or self.task

    @property
    def labels(self) -> dict[str, str]:
        """By which it is found and counted."""
        told = {"deployment": self.deployment, "dag": self.dag, "run": self.run, "task": self.task}
        return {
            "app.kubernetes.io/managed-by": "wmtp",
            OWNER: self.digest,
            **{f"wmtp.io/{name}": make_safe_label_value(value) for name, value in told.items()},
        }

    @property
    def annotations(self) -> dict[str, str]:
        """What Airflow calls it, in full: a label may have been shortened."""
        return {TASK_INSTANCE: json.dumps(vars(self))}

    @classmethod
    def of(cls, found: Any) -> Self | None:
        """Of an object of the cluster; None: it was not made here, or by another version."""
        told = (found.metadata.annotations or {}).get(TASK_INSTANCE)
        try:
            return None if told is None else cls(**json.loads(told))
        except (TypeError, ValueError):
            return None


@dataclass(frozen=True)
class Order:
    """One task as it is to run in a pod."""

    identity: Identity
    stage: str
    key: str | None
    """None: an action."""
    command: Sequence[str]
    variables: Mapping[str, str]
    deadline_seconds: int | None
    """After which nobody waits for it any more; it ends then, whoever has forgotten it."""
    addresses: str | None = None
    """Of `parcel`, for a pod with no credentials and no environment file; None: it has both."""

    @property
    def is_sandboxed(self) -> bool:
        """Whether it runs what a model wrote."""
        return self.addresses is not None


def pod(environment: Environment, order: Order) -> k8s.V1Pod:
    """The pod of an order."""
    cluster = environment.kubernetes
    assert cluster is not None
    name = cluster.profile_of(order.identity.task)
    profile = cluster.profiles[name]
    annotations = order.identity.annotations
    if order.key:
        annotations[KEY] = order.key
    annotations |= (
        {"wmtp.io/environment": environment.model_dump_json()}
        if order.addresses is None
        else {ADDRESSES: order.addresses}
    )
    short = {"wmtp.io/stage": order.stage, "wmtp.io/profile": name, "wmtp.io/short-key": (order.key or "none")[:12]}
    return k8s.V1Pod(
        metadata=k8s.V1ObjectMeta(
            name=order.identity.name,
            namespace=cluster.namespace,
            labels={**order.identity.labels, **short},
            annotations=annotations,
        ),
        spec=k8s.V1PodSpec(
            containers=[_container(cluster, profile, order)],
            volumes=list(_volumes(cluster, profile, order).values()),
            restart_policy="Never",
            active_deadline_seconds=order.deadline_seconds,
            service_account_name=cluster.service_accounts.get(order.identity.task, profile.service_account),  # type: ignore[call-overload]
            automount_service_account_token=False,
            enable_service_links=False,
            node_selector=profile.node_selector or None,
            tolerations=[k8s.V1Toleration(**one.model_dump()) for one in profile.tolerations],
            affinity=_same_zone(order) if profile.same_zone else None,
            runtime_class_name=profile.runtime_class,
            priority_class_name=profile.priority_class,
            termination_grace_period_seconds=int(GRACE_SECONDS),
            # Which user is the image's own choice; root is refused.
            security_context=k8s.V1PodSecurityContext(
                run_as_non_root=True, seccomp_profile=k8s.V1SeccompProfile(type="RuntimeDefault")
            ),
        ),
    )


def job(environment: Environment, order: Order) -> k8s.V1Job:
    """The Job around an order's pods, without their template."""
    num_pods = environment.train.num_pods
    return k8s.V1Job(
        metadata=k8s.V1ObjectMeta(labels=queue(environment, order.identity.task)),
        spec=k8s.V1JobSpec(
            template=k8s.V1PodTemplateSpec(),
            completion_mode="Indexed",
            completions=num_pods,
            parallelism=num_pods,
            active_deadline_seconds=order.deadline_seconds,
            ttl_seconds_after_finished=_HOUR,
            pod_replacement_policy="Failed",
            pod_failure_policy=k8s.V1PodFailurePolicy(
                rules=[_disrupted(), _ended("Ignore", "In", [Interrupted.exit_code]), _ended("FailJob", "NotIn", [0])]
            ),
        ),
    )


def queue(environment: Environment, task: str) -> dict[str, str]:
    """The label by which Kueue holds a Job or a pod back until there is room; none without a queue, and the pods of a Job have none."""
    cluster = environment.kubernetes
    assert cluster is not None
    name = cluster.profiles[cluster.profile_of(task)].queue
    return {"kueue.x-k8s.io/queue-name": name} if name else {}


def service(job: k8s.V1Job) -> k8s.V1Service:
    """The headless Service that gives a Job's pods their names; it goes when the Job goes."""
    meta = job.metadata
    owner = k8s.V1OwnerReference(api_version="batch/v1", kind="Job", name=meta.name, uid=meta.uid)
    return k8s.V1Service(
        metadata=k8s.V1ObjectMeta(
            name=meta.name,
            namespace=meta.namespace,
            labels=dict(meta.labels),
            annotations={TASK_INSTANCE: meta.annotations[TASK_INSTANCE]},
            owner_references=[owner],
        ),
        spec=k8s.V1ServiceSpec(
            cluster_ip="None",
            # They look for each other before any of them is ready.
            publish_not_ready_addresses=True,
            selector={"job-name": meta.name},
            ports=[k8s.V1ServicePort(name="rendezvous", port=_PORT)],
        ),
    )


def variables_of_ranks(identity: Identity, num_pods: int) -> dict[str, str]:
    """What `mlops_tasks.distributed` is told in each pod of a Job."""
    first = f"{identity.name}-0.{identity.name}:{_PORT}"
    return {"WMTP_NUM_PODS": str(num_pods), "WMTP_FIRST_POD": first, "WMTP_JOB": identity.digest}


def _container(cluster: Kubernetes, profile: Profile, order: Order) -> k8s.V1Container:
    given = {
        "HOME": SCRATCH,
        "TMPDIR": SCRATCH,
        "PYTHONUNBUFFERED": "1",
        "TQDM_DISABLE": "1",
        **profile.variables,
        **order.variables,
    }
    variables = [k8s.V1EnvVar(name=name, value=value) for name, value in given.items()]
    if not order.is_sandboxed:
        variables += [
            k8s.V1EnvVar(
                name=name,
                value_from=k8s.V1EnvVarSource(
                    secret_key_ref=k8s.V1SecretKeySelector(name=secret.secret, key=secret.key)
                ),
            )
            for name, secret in cluster.secrets.items()
        ]
    return k8s.V1Container(
        name=CONTAINER,
        image=profile.image,
        command=list(order.command),
        env=variables,
        resources=k8s.V1ResourceRequirements(requests=dict(profile.requests), limits=dict(profile.limits)),
        volume_mounts=[
            k8s.V1VolumeMount(name=one.name, mount_path=folder, read_only=one.empty_dir is None or None)
            for folder, one in _volumes(cluster, profile, order).items()
        ],
        termination_message_policy="FallbackToLogsOnError",
        security_context=k8s.V1SecurityContext(
            allow_privilege_escalation=False,
            read_only_root_filesystem=True,
            run_as_non_root=True,
            capabilities=k8s.V1Capabilities(drop=["ALL"]),
            seccomp_profile=k8s.V1SeccompProfile(type="RuntimeDefault"),
        ),
    )


def _volumes(cluster: Kubernetes, profile: Profile, order: Order) -> dict[str, k8s.V1Volume]:
    """By the folder in which the pod sees each."""
    memory = k8s.V1EmptyDirVolumeSource(medium="Memory", size_limit=profile.shared_memory)
    file = "addresses" if order.is_sandboxed else "environment"
    annotation = k8s.V1ObjectFieldSelector(field_path=f"metadata.annotations['wmtp.io/{file}']")
    item = k8s.V1DownwardAPIVolumeFile(path=f"{file}.json", field_ref=annotation)
    own = {
        SCRATCH: k8s.V1Volume(name="scratch", empty_dir=k8s.V1EmptyDirVolumeSource(size_limit=profile.scratch)),
        SHARED_MEMORY: k8s.V1Volume(name="shared-memory", empty_dir=memory),
        SETTINGS: k8s.V1Volume(name="file", downward_api=k8s.V1DownwardAPIVolumeSource(items=[item])),
    }
    given = {} if order.is_sandboxed else cluster.config_maps
    maps = {
        folder: k8s.V1Volume(name=f"config-map-{number}", config_map=k8s.V1ConfigMapVolumeSource(name=name))
        for number, (folder, name) in enumerate(given.items())
    }
    return own | maps


def _same_zone(order: Order) -> k8s.V1Affinity:
    together = k8s.V1PodAffinityTerm(
        topology_key="topology.kubernetes.io/zone",
        label_selector=k8s.V1LabelSelector(match_labels={OWNER: order.identity.digest}),
    )
    return k8s.V1Affinity(
        pod_affinity=k8s.V1PodAffinity(required_during_scheduling_ignored_during_execution=[together])
    )


# What was interrupted is replaced, and anything else that failed ends the Job: Airflow decides about a retry.


def _disrupted() -> k8s.V1PodFailurePolicyRule:
    condition = k8s.V1PodFailurePolicyOnPodConditionsPattern(type="DisruptionTarget", status="True")
    return k8s.V1PodFailurePolicyRule(action="Ignore", on_pod_conditions=[condition])


def _ended(action: str, operator: str, codes: list[int]) -> k8s.V1PodFailurePolicyRule:
    values = k8s.V1PodFailurePolicyOnExitCodesRequirement(container_name=CONTAINER, operator=operator, values=codes)
    return k8s.V1PodFailurePolicyRule(action=action, on_exit_codes=values)
