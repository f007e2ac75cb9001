"""`Environment`: where to run. Nothing of it is in any key."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mlops_tasks.config.kubernetes import Kubernetes
from mlops_tasks.config.settings import Settings

Price = Annotated[float, Field(ge=0)]
Priced = Literal[
    "default", "pull", "train", "reward", "fit_critic", "score_shard", "score", "generate", "judge", "select"
]


class S3Access(Settings):
    """How `s3://` is reached. Credentials never stand here: they come by AWS's usual chain (variables, profile, role)."""

    endpoint: str | None = Field(None, pattern=r"^[^@]*$")
    """Address of another server than Amazon's: `http://…`; None: Amazon's."""
    region: str | None = None
    """None: as AWS's own settings say."""
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    """`path` for most servers other than Amazon's."""
    cache: str | None = None
    """Folder for what is fetched; None: a temporary one of this machine."""


class LeaseTerms(Settings):
    """When two processes want one result, one works and the other waits."""

    ttl_seconds: float = Field(120.0, gt=0)
    """Without a sign of life for so long, another process takes over. It is renewed three times in that time."""
    wait_seconds: float | None = Field(None, ge=0)
    """How long to wait for another process's result before ending with 75; None: as long as it takes."""


class ScoreResources(Settings):
    """Where `score_shard` runs."""

    num_shards: int = Field(1, ge=1)
    """Mapped tasks that share the problems."""


class TrainResources(Settings):
    """Where `train` runs; nothing here changes the result beyond floating-point order."""

    num_ranks: int = Field(1, ge=1)
    """Processes on this machine, or in each pod."""
    num_pods: int = Field(1, ge=1)
    """Pods that train together; more than one only with executor `kubernetes`."""
    micro_batch_rows: int = Field(8, ge=1)
    """Packed rows in one forward."""
    loss_chunk_rows: int = Field(256, ge=1)
    """Token positions whose logits exist at one time. More take more memory and, on a CPU, save no time to speak of."""
    parallelism: Literal["ddp", "fsdp"] = "ddp"
    """Of several ranks each holds the whole model (`ddp`), or a part of weights, gradients and optimiser (`fsdp`)."""
    recompute_activations: bool = False
    """Keep each layer's input alone for the backward: far less memory for a third more time."""
    on_oom: Literal["fail", "shrink"] = "shrink"
    """Where a device's memory is too small: fail, or go on from the last checkpoint with micro-batches of half as many rows."""
    checkpoint_every_steps: int = Field(100, ge=1)
    """Optimiser steps between two checkpoints."""
    keep_last: int = Field(2, ge=1)
    """Checkpoints kept."""


class GenerateResources(Settings):
    """Where `generate` runs."""

    batch_size: int = Field(32, ge=1)
    """Sequences decoded at one time."""
    speculation: Literal["auto", "always", "never"] = "auto"
    """Heads 2..H of a trained model guess tokens ahead, which head 1 checks in one forward. Like `batch_size`, this changes a
    completion only where two tokens are equally likely up to rounding; `auto`, where it is faster, goes by the clock, so there
    two runs may differ in that; with `always` and `never` they do not."""


class JudgeResources(Settings):
    """Where `judge` runs."""

    num_workers: int | None = Field(None, ge=1)
    """Programs run at one time; None: one per core."""
    unsafe: bool = False
    """Where the system cannot confine programs (macOS), run them all the same, as your user, with limits of memory and time only."""


class TuneResources(Settings):
    """How trials are shared out."""

    storage: str | None = Field(None, pattern=r"^(sqlite:///.+|env:[A-Za-z_][A-Za-z0-9_]*)$")
    """Database of the studies: `sqlite:///…` with one worker, or `env:NAME`, the environment variable that holds the address of a PostgreSQL,
    `postgresql+psycopg2://user:password@host:5432/database`, which never stands here. None: there is no tuning."""
    num_workers: int = Field(1, ge=1)
    """Mapped tasks that take trials until none is left."""
    heartbeat_seconds: int = Field(60, ge=1)
    """Between two signs of life of a running trial."""
    grace_seconds: int = Field(300, ge=2)
    """Without one for so long, a trial counts as dead and is tried again. Too short a time kills healthy ones."""

    @model_validator(mode="after")
    def _can_be_shared(self) -> Self:
        if self.num_workers > 1 and (self.storage or "").startswith("sqlite"):
            raise ValueError(
                f"num_workers is {self.num_workers}, but {self.storage} is one file, which several workers lock for one another: "
                "set it to 1, or storage to env:NAME, a variable with the address of a PostgreSQL"
            )
        if self.grace_seconds < 2 * self.heartbeat_seconds:
            raise ValueError(
                f"grace_seconds is {self.grace_seconds}, less than two beats of {self.heartbeat_seconds} s: a healthy trial would count as dead"
            )
        return self


class Housekeeping(Settings):
    """What `wmtp gc` and the weekly DAG `housekeeping` let go."""

    keep_runs: int = Field(20, ge=0)
    """Last runs of each deployment whose artifacts are kept."""
    grace_days: float = Field(7.0, ge=1)
    """Nothing younger is touched; in a cluster, nothing younger whose run Airflow does not know."""
    mlflow_days: float | None = Field(90.0, ge=1)
    """Age from which a training's run in MLflow is deleted, if no version came of it and nothing of it is left in the store; None: never.
    MLflow keeps what is deleted until `mlflow gc`."""
    delete: bool = False
    """Whether the weekly DAG removes what it has shown; a run's form may say otherwise."""


class AutomaticApproval(Settings):
    """Nobody is asked: what the gates let pass is promoted."""

    kind: Literal["automatic"]


class PersonalApproval(Settings):
    """A person is asked in Airflow before a candidate that every gate lets pass is promoted."""

    kind: Literal["person"]
    hours: float = Field(12.0, gt=0)
    """Without an answer for so long it is rejected, and production stays as it is."""


Approval = Annotated[AutomaticApproval | PersonalApproval, Field(discriminator="kind")]


Event = Literal["failure", "refusal", "promotion", "decay", "rollback"]
"""What people may want to be told: a task failed for good, a candidate was refused or promoted, the champion has decayed or was rolled back."""
_EVERY_EVENT: tuple[Event, ...] = ("failure", "refusal", "promotion", "decay", "rollback")


class SmtpNotice(Settings):
    """Mail."""

    kind: Literal["smtp"]
    connection: str = Field("smtp_default", min_length=1)
    """Id of the Airflow connection that holds server, user and password."""
    to: tuple[str, ...] = Field(min_length=1)
    """Addresses."""
    sender: str | None = None
    """Address; None: `from_email` of the connection."""
    events: tuple[Event, ...] = Field(_EVERY_EVENT, min_length=1)
    """What is told."""


class SlackNotice(Settings):
    """A message through an incoming webhook of Slack, or of a chat that takes the same (`{"text": …}`)."""

    kind: Literal["slack"]
    connection: str = Field("slack_default", min_length=1)
    """Id of the Airflow connection whose password is what comes after https://hooks.slack.com/services/ in the webhook's address. Its
    host, if it has one, stands for that beginning."""
    events: tuple[Event, ...] = Field(_EVERY_EVENT, min_length=1)
    """What is told."""


class WebhookNotice(Settings):
    """A POST of JSON: event, title, sentence, links, dag, run, task."""

    kind: Literal["webhook"]
    connection: str = Field("wmtp_webhook", min_length=1)
    """Id of the Airflow connection whose host is the address, `https://…`; its password, if it has one, is sent as a bearer token."""
    events: tuple[Event, ...] = Field(_EVERY_EVENT, min_length=1)
    """What is told."""


Notice = Annotated[SmtpNotice | SlackNotice | WebhookNotice, Field(discriminator="kind")]


class Environment(Settings):
    """Where to run."""

    scheduled_recipe: str = "demo"
    """What a scheduled run learns: a name in configs/recipes, the path of a file on the machine that runs Airflow, or `tuned:NAME`, what the
    last study of that recipe has found."""
    deployment: str = Field("laptop", pattern=r"^[A-Za-z0-9._-]+$")
    """Tells the runs of two Airflows on one store apart."""
    executor: Literal["local", "kubernetes"] = "local"
    """`local`: a stage is a process beside the Airflow task; `kubernetes`: a pod."""
    kubernetes: Kubernetes | None = None
    """For executor `kubernetes`."""
    store: str
    """Where artifacts lie: a folder, or `s3://bucket/prefix`."""
    s3: S3Access = S3Access()
    """For a store, data or models on `s3://`."""
    lease: LeaseTerms = LeaseTerms()
    mlflow_uri: str = Field(pattern=r"^[^@]*$")
    """Tracking server and registry: `http://…`, or `sqlite:///…` on a laptop. Name and password never stand here, for this
    is written into manifests and reports: they are in `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`."""
    mlflow_artifacts: str | None = None
    """Where a local `sqlite` tracking store puts files; None: the server's own choice."""
    prices: dict[Priced, Price] = {}
    """Price of a device-hour by stage; `default` for the others. Without one, no cost is told."""
    currency: str = "USD"
    """Of the prices."""
    score: ScoreResources = ScoreResources()
    train: TrainResources = TrainResources()
    generate: GenerateResources = GenerateResources()
    judge: JudgeResources = JudgeResources()
    tune: TuneResources = TuneResources()
    housekeeping: Housekeeping = Housekeeping()
    approval: Approval = AutomaticApproval(kind="automatic")
    """Who lets a candidate take the champion's place after the gates."""
    notices: tuple[Notice, ...] = ()
    """Who is told what, and how. Secrets never stand here: they are in Airflow's connections."""

    @model_validator(mode="after")
    def _pods_reach_everything(self) -> Self:
        if self.executor == "local":
            if self.train.num_pods > 1:
                raise ValueError(
                    f"train.num_pods is {self.train.num_pods}, but executor is local: set it to 1, or executor to kubernetes"
                )
            return self
        if self.kubernetes is None:
            raise ValueError(
                "executor is kubernetes, but there is no part `kubernetes`: see configs/environments/eks.yaml"
            )
        if not self.store.startswith("s3://"):
            raise ValueError(f"store is {self.store}, which a pod cannot reach: with executor kubernetes it is s3://…")
        if (self.tune.storage or "").startswith("sqlite"):
            raise ValueError(
                f"tune.storage is {self.tune.storage}, which a pod cannot reach: with executor kubernetes it is env:NAME"
            )
        if not self.mlflow_uri.startswith("http"):
            raise ValueError(
                f"mlflow_uri is {self.mlflow_uri}, which a pod cannot reach: with executor kubernetes it is http(s)://…"
            )
        return self

    def cost(self, stage: str, device_seconds: float) -> float | None:
        """What device time of a stage costs, in `currency`; None where it has no price."""
        prices = {str(name): price for name, price in self.prices.items()}
        price = prices.get(stage, prices.get("default"))
        return None if price is None else device_seconds / 3600 * price
