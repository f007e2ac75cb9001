"""Settings: how stages become pods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from mlops_tasks.config.settings import Settings

SCRATCH, SHARED_MEMORY, SETTINGS = "/scratch", "/dev/shm", "/etc/wmtp"
"""Folders that pods have of their own."""

_Folder = Annotated[str, Field(pattern=r"^(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+$")]
_Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|[MGTPE]i?)?$")]
TaskId = Literal[
    "pull_data", "pull_model", "pull_reference", "reference", "reward", "fit_critic", "score_shard", "score", "train",
    "generate", "judge", "promote", "report", "watch", "contrast", "search", "select", "conclude", "look", "remove",
]  # fmt: skip


class Toleration(Settings):
    """A taint that a pod of this profile puts up with."""

    key: str
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """None: all of them."""


class SecretKey(Settings):
    """Where a secret lies; its value is read by the kubelet alone."""

    secret: str
    """Name of a Secret in the namespace of the pods."""
    key: str
    """Which of its entries."""


class Profile(Settings):
    """What a pod gets, and where it may run."""

    image: str
    """With the first-party sources and the locked packages that its stages need; best by digest."""
    service_account: str = "default"
    """Whose role in AWS the pod has (EKS Pod Identity); no token of the API server is ever mounted."""
    requests: dict[str, Quantity]
    """By resource: cpu, memory, and what a node plugin offers, such as nvidia.com/gpu or vpc.amazonaws.com/efa."""
    limits: dict[str, Quantity] = {}
    """By resource; memory over its limit is exit code 137."""
    node_selector: dict[str, str] = {}
    """Labels that a node must have."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints of nodes that it may run on, such as those of GPU and Spot nodes."""
    runtime_class: str | None = None
    """Such as `gvisor`; None: the cluster's own."""
    priority_class: str | None = None
    """PriorityClass of the pods; Kueue goes by it too."""
    queue: str | None = None
    """LocalQueue of Kueue that admits the pods, all of a training at once; None: no queue."""
    same_zone: bool = False
    """All pods of a training in one availability zone, which NCCL over EFA needs and traffic between zones costs."""
    shared_memory: Quantity = "64Mi"
    """Size of /dev/shm, which counts as memory of the pod."""
    scratch: Quantity = "20Gi"
    """Most that the pod may write to its disk: inputs, results before they are stored."""
    variables: dict[str, str] = {}
    """Environment variables that are no secret, such as NCCL_DEBUG."""
    pool: str | None = None
    """Pool of Airflow of which a task with this profile takes a slot, so that no more of them run than it has, of whatever runs; None:
    Airflow's default one."""
    start_seconds: float = Field(1800.0, gt=0)
    """How long a pod may wait for room in a quota, a node and its image before the task ends with 75; waiting in a queue does not count."""


_PROFILE_OF: dict[TaskId, str] = {
    "reference": "gpu",
    "reward": "sandbox",
    "fit_critic": "gpu",
    "score_shard": "gpu",
    "train": "gpu",
    "generate": "gpu",
    "search": "gpu",
    "select": "gpu",
    "judge": "sandbox",
}
SANDBOXED: tuple[TaskId, ...] = ("reward", "judge")
"""Tasks that run programs which a model wrote: on a cluster their pods have no credentials."""


class Kubernetes(Settings):
    """How stages become pods. Their credentials come by pod identity and from Secrets, never from here."""

    namespace: str = "wmtp"
    """Of pods, Jobs, Services and Secrets."""
    connection: str | None = None
    """Airflow's connection to the cluster; None: that of the pod that Airflow runs in, or `KUBECONFIG`."""
    max_runs: int = Field(5, ge=1)
    """Runs of `wmtp_daily` at one time, such as those of different recipes, and of `wmtp_compare`; further ones wait. A laptop has one."""
    max_tasks: int = Field(8, ge=1)
    """Tasks of one such run at one time, such as shards of the scores; a laptop has one."""
    profiles: dict[str, Profile]
    """By name; `cpu`, and each that a task is given."""
    tasks: dict[TaskId, str] = {}
    """Profile by task; those not named here have `gpu` (reference, fit_critic, score_shard, train, generate, search, select), `sandbox` (judge, reward) or `cpu`.
    A `reward` whose base model writes candidates needs one with a GPU and the trainer's image."""
    service_accounts: dict[TaskId, str] = {}
    """By task, where it is not the profile's. `look` and `remove` are those of housekeeping, whose pods alone may delete below every stage."""
    secrets: dict[str, SecretKey] = {}
    """By environment variable, such as MLFLOW_TRACKING_PASSWORD; pods of `judge` and `reward` get none."""
    config_maps: dict[_Folder, _Name] = {}
    """ConfigMaps by the folder in which pods see their entries as files, such as the certificates that a database's URL names; pods of
    `judge` and `reward` get none."""

    def profile_of(self, task: str) -> str:
        """Name of the profile of a task."""
        named: Mapping[Any, str] = {**_PROFILE_OF, **self.tasks}
        return named.get(task, "cpu")

    def _require_sandbox_apart(self, task: TaskId) -> None:
        if task in self.service_accounts:
            raise ValueError(f"service_accounts.{task}: generated code has no account of its own; leave it out")
        name, others = self.profile_of(task), [one for one in get_args(TaskId) if one not in SANDBOXED]
        sharing = [other for other in others if self.profile_of(other) == name]
        if sharing:
            raise ValueError(
                f"{task} and {', '.join(sharing)} have one profile, {name!r}: generated code would have their account. Give {task} its own"
            )
        account = self.profiles[name].service_account
        taken = {self.profiles[self.profile_of(other)].service_account for other in others}
        if account != "default" and account in {*taken, *self.service_accounts.values()}:
            raise ValueError(
                f"the profile {name!r} of {task} has the account {account!r} of other tasks, and generated code would have its rights"
            )

    @model_validator(mode="after")
    def _folders_apart(self) -> Self:
        for folder in self.config_maps:
            for own in (SCRATCH, SHARED_MEMORY, SETTINGS):
                if f"{own}/".startswith(f"{folder}/") or folder.startswith(f"{own}/"):
                    raise ValueError(
                        f"config_maps: {folder} and {own}, which a pod has of its own, lie in one another; take another folder"
                    )
        return self

    @model_validator(mode="after")
    def _known_profiles(self) -> Self:
        for task in get_args(TaskId):
            if (name := self.profile_of(task)) not in self.profiles:
                raise ValueError(
                    f"the task {task} has the profile {name!r}, which is not among kubernetes.profiles: {', '.join(sorted(self.profiles))}. "
                    f"Add it there, or name another one in kubernetes.tasks.{task}"
                )
        for task in SANDBOXED:
            self._require_sandbox_apart(task)
        return self
