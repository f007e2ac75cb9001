"""What would be submitted for each task, held against Kubernetes' own schemas and our rules for pods; no cluster is asked."""

from __future__ import annotations

import json
import re
import subprocess
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from airflow.sdk import DAG
from kubernetes.client import ApiClient, ApiException
from kubernetes.client import models as k8s
from wmtp import cleaning, limits, manifest, pods, stage
from wmtp.kubernetes import JobStage, PodStage, SandboxStage
from wmtp.manifest import Identity, Order
from wmtp.study import StudyStage
from wmtp.trigger import Trigger

from mlops_tasks import pipeline
from mlops_tasks.__main__ import _parser
from mlops_tasks.config.environment import Environment
from mlops_tasks.config.kubernetes import SANDBOXED
from mlops_tasks.config.loading import load_environment, load_recipe
from mlops_tasks.errors import Unavailable, UserError
from mlops_tasks.stage import Decision, Run, Spec, Stage
from mlops_tasks.store import Store
from mlops_tasks.tuning.asks import ASKERS
from scripts.chart_policy import violations

CHECKOUT = Path(__file__).resolve().parents[2]
EKS = CHECKOUT / "configs" / "environments" / "eks.yaml"
VALIDATE = CHECKOUT.parent / "shared" / "tools" / "k8s-validate"


def submitted(task_id: str, environment_file: Path = EKS) -> list[dict[str, Any]]:
    """Objects as they go over the wire, after the provider's operator has added its part."""
    environment = load_environment(environment_file)
    spec = Spec(recipe=load_recipe(Trigger(recipe="demo").recipe_file), pins={}, champion=None, created="")
    run = Run(Store.open("/nowhere"), environment, "runs/a/b/c", spec)
    task = pipeline.every()[task_id]
    kinds = {**dict.fromkeys(("train", "reference"), JobStage), **dict.fromkeys(SANDBOXED, SandboxStage)}
    kind: type[PodStage] = {**kinds, **dict.fromkeys(ASKERS, StudyStage)}.get(task_id, PodStage)
    operator = kind(task_id=task_id, environment_file=str(environment_file), execution_timeout=timedelta(hours=1))
    operator.__dict__["hook"] = SimpleNamespace(is_in_cluster=True)  # all that would ask a cluster
    instance = SimpleNamespace(
        dag_id="d", task_id=task_id, map_index=-1, try_number=1, context_carrier={"traceparent": "00-1-2-01"}
    )
    context: Any = {"ti": instance, "run_id": "manual__2026-01-01T00:00:00+00:00", "dag": None}
    decision = Decision("run", {"stage": "x"} if isinstance(task.run, Stage) else {})
    order = operator.order(run, task, decision, context)
    if task_id in SANDBOXED:
        order = operator.in_sandbox(order, "module:function", "the addresses")
    objects = [operator.request(environment, order, context)]
    if kind is JobStage:
        objects[0].metadata.uid = "0"
        objects.append(manifest.service(objects[0]))
    found: list[dict[str, Any]] = [ApiClient().sanitize_for_serialization(one) for one in objects]
    found[0]["spec"].get("template", {}).pop("status", None)
    return found


def pod_of(item: dict[str, Any]) -> dict[str, Any]:
    """The pod, or the template of a Job."""
    found: dict[str, Any] = item["spec"]["template"] if item["kind"] == "Job" else item
    return found


@pytest.mark.parametrize("task", [*pipeline.TASKS, *pipeline.STUDY])
def test_every_pod_is_restricted(task: str) -> None:
    objects = submitted(task)
    assert (
        violations(
            [{**one, "apiVersion": one.get("apiVersion", "v1"), "kind": one.get("kind", "Service")} for one in objects]
        )
        == []
    )
    assert pod_of(objects[0])["spec"]["automountServiceAccountToken"] is False


@pytest.mark.parametrize("version", ["1.31", "1.35"])
def test_every_object_fits_the_schemas_of_kubernetes(version: str, tmp_path: Path) -> None:
    if not VALIDATE.is_file():
        pytest.skip(f"needs {VALIDATE}")
    rendered = tmp_path / "rendered.yaml"
    objects = [one for task in [*pipeline.TASKS, *pipeline.STUDY] for one in submitted(task)]
    rendered.write_text(yaml.safe_dump_all([{"apiVersion": "v1", "kind": "Service", **one} for one in objects]))
    done = subprocess.run(
        [VALIDATE, "-k", version, "--fail-unchecked", rendered], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("task", sorted({*pipeline.TASKS, *pipeline.STUDY} - {*SANDBOXED}))
def test_the_command_of_a_pod_is_one_that_the_program_takes(task: str) -> None:
    container = pod_of(submitted(task)[0])["spec"]["containers"][0]
    program, *arguments = container["command"]
    options = vars(_parser().parse_args(arguments))
    assert (program, options["task"], options["env"]) == ("wmtp", task, manifest.ENVIRONMENT_FILE)


def test_a_pod_reads_the_environment_that_the_operator_has() -> None:
    text = pod_of(submitted("score")[0])["metadata"]["annotations"]["wmtp.io/environment"]
    assert Environment.model_validate_json(text) == load_environment(EKS)


def test_every_object_says_whose_it_is() -> None:
    task = "train"
    for one in submitted(task):
        labels = one["metadata"]["labels"]
        assert labels["wmtp.io/deployment"] == "wmtp-prod" and labels["wmtp.io/dag"] == "adhoc_airflow"
        assert (labels["wmtp.io/task"], labels["wmtp.io/stage"]) == (task, "train")
        assert len(labels["wmtp.io/short-key"]) == 12
        assert labels["wmtp.io/run"].startswith("manual__2026-01-01")


def test_a_training_is_an_indexed_job_of_which_only_interrupted_pods_are_replaced() -> None:
    job, service = submitted("train")
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)
    assert (spec["activeDeadlineSeconds"], spec["podReplacementPolicy"]) == (3600, "Failed")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpu"
    rules = [
        (one["action"], one.get("onExitCodes", one.get("onPodConditions"))) for one in spec["podFailurePolicy"]["rules"]
    ]
    assert rules == [
        ("Ignore", [{"type": "DisruptionTarget", "status": "True"}]),
        ("Ignore", {"containerName": "stage", "operator": "In", "values": [85]}),
        ("FailJob", {"containerName": "stage", "operator": "NotIn", "values": [0]}),
    ]
    pod = spec["template"]["spec"]
    variables = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
    name = job["metadata"]["name"]
    assert variables["WMTP_FIRST_POD"] == f"{name}-0.{name}:29400" and variables["WMTP_NUM_PODS"] == "2"
    assert variables["TRACEPARENT"] == "00-1-2-01"
    assert service["metadata"]["name"] == pod["subdomain"] == name
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"] is True
    assert service["metadata"]["ownerReferences"][0]["name"] == name
    assert len(f"{name}-0") <= 63
    affinity = pod["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]
    assert affinity["labelSelector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()


@pytest.mark.parametrize(("task", "profile"), [("judge", "sandbox"), ("reward", "sandbox-gpu")])
def test_a_pod_of_generated_code_has_no_credentials_and_no_environment(task: str, profile: str) -> None:
    (item,) = submitted(task)
    spec = item["spec"]
    assert spec["containers"][0]["command"] == ["python", "-m", "mlops_tasks.parcel"]
    assert spec["serviceAccountName"] == "wmtp-judge"
    assert item["metadata"]["labels"]["wmtp.io/profile"] == profile
    assert not any(one.get("valueFrom") for one in spec["containers"][0]["env"])
    assert "wmtp.io/environment" not in item["metadata"]["annotations"]
    (file,) = [one["downwardAPI"]["items"] for one in spec["volumes"] if "emptyDir" not in one]
    assert file == [{"path": "addresses.json", "fieldRef": {"fieldPath": "metadata.annotations['wmtp.io/addresses']"}}]
    assert item["metadata"]["annotations"]["wmtp.io/addresses"] == "the addresses"
    variables = {one["name"]: one["value"] for one in spec["containers"][0]["env"]}
    assert variables["WMTP_PARCEL_ADDRESSES"] == "/etc/wmtp/addresses.json"


def test_a_secret_is_a_reference_everywhere() -> None:
    for task in pipeline.TASKS:
        container = pod_of(submitted(task)[0])["spec"]["containers"][0]
        secret = [one for one in container["env"] if one["name"].startswith("MLFLOW_TRACKING")]
        assert [set(one) for one in secret] == [{"name", "valueFrom"}] * (0 if task in SANDBOXED else 2), task


@pytest.mark.parametrize("task", pipeline.STUDY)
def test_a_study_finds_the_certificates_that_the_address_of_its_database_names(task: str) -> None:
    chart = (CHECKOUT / "charts/ml-platform/templates/secrets.yaml").read_text()
    [file] = re.findall(r'"database" "optuna" "ca" "([^"]+)"', chart)
    spec = submitted(task)[0]["spec"]
    mounts = {one["mountPath"]: one for one in spec["containers"][0]["volumeMounts"]}
    mount = mounts[file.removesuffix("/ca.pem")]
    assert mount["readOnly"] is True
    [volume] = [one for one in spec["volumes"] if one["name"] == mount["name"]]
    assert volume["configMap"] == {"name": "database-ca"}


@pytest.mark.parametrize("task", SANDBOXED)
def test_what_a_model_wrote_runs_where_there_are_no_credentials(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WMTP_ENVIRONMENT", str(EKS))
    assert isinstance(stage(task), SandboxStage)


def test_two_tasks_never_share_a_name_and_a_retry_has_the_same() -> None:
    one = Identity("d", "dag", "run", "train", 0)
    others = [
        Identity("e", "dag", "run", "train", 0),
        Identity("d", "dag", "run2", "train", 0),
        Identity("d", "dag", "run", "train", 1),
        Identity("d", "dagrun", "", "train", 0),
        Identity("d", "dag", "run", "train", 0, cell="uniform-0"),
    ]
    assert len({each.name for each in (one, *others)}) == 6
    assert one.name == Identity("d", "dag", "run", "train", 0).name
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", one.name)


def test_a_cell_of_a_comparison_has_pods_of_its_own() -> None:
    made = {"task_id": "train", "environment_file": str(EKS)}
    context: Any = {"run_id": "by hand", "ti": SimpleNamespace(map_index=-1)}
    environment = load_environment(EKS)
    names = []
    for cell in (None, "ntp-seed-0", "ntp-seed-1"):
        operator = JobStage(**made, cell=cell)
        operator.dag = DAG("wmtp_compare", schedule=None)
        names.append(operator._identity_in(environment, context).name)
    assert len(set(names)) == 3


def changed(tmp_path: Path, **changes: Any) -> Path:
    file = tmp_path / "environment.yaml"
    tree = yaml.safe_load(EKS.read_text())
    for place, value in changes.items():
        *parents, leaf = place.split("__")
        part = tree
        for name in parents:
            part = part[name]
        part[leaf] = value
    file.write_text(yaml.safe_dump(tree))
    return file


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kubernetes__tasks": {"train": "gpus"}}, r"profile 'gpus', which is not among kubernetes.profiles: cpu, gpu, gpu-multinode, sandbox, sandbox-gpu, tuning"),
        ({"kubernetes__tasks": {"trian": "gpu"}}, r"kubernetes.tasks.trian"),
        ({"kubernetes__profiles__cpu__requests": {"cpu": "two"}}, r"requests.cpu is 'two'"),
        ({"store": "/data/store"}, r"store is /data/store, which a pod cannot reach"),
        ({"mlflow_uri": "sqlite:///mlflow.db"}, r"mlflow_uri is sqlite:///"),
        ({"kubernetes": None}, r"no part `kubernetes`"),
        ({"executor": "local"}, r"train.num_pods is 2, but executor is local"),
        ({"kubernetes__service_accounts": {"judge": "wmtp-train"}}, r"generated code has no account"),
        ({"kubernetes__config_maps": {"/etc": "database-ca"}}, r"config_maps: /etc and /etc/wmtp, which a pod has of its own"),
        ({"kubernetes__config_maps": {"/scratch": "database-ca"}}, r"config_maps: /scratch and /scratch, which"),
        ({"kubernetes__config_maps": {"/etc/wmtp/ca": "database-ca"}}, r"config_maps: /etc/wmtp/ca and /etc/wmtp, which"),
        ({"kubernetes__config_maps": {"database-ca": "database-ca"}}, r"config_maps.database-ca.*should match pattern"),
        ({"kubernetes__tasks": {"judge": "cpu"}}, r"judge and .* have one profile, 'cpu': generated code would have their account"),
        ({"kubernetes__tasks": {"reward": "gpu"}}, r"reward and .* have one profile, 'gpu': generated code would have their account"),
        ({"kubernetes__profiles__sandbox-gpu__service_account": "wmtp-train"}, r"the profile 'sandbox-gpu' of reward has the account 'wmtp-train'"),
        ({"kubernetes__profiles__sandbox__service_account": "wmtp-train"}, r"the account 'wmtp-train' of other tasks"),
    ],
)  # fmt: skip
def test_an_environment_that_cannot_work_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_environment(changed(tmp_path, **changes))


def test_every_part_of_a_profile_is_in_the_pod(tmp_path: Path) -> None:
    profile = {
        "image": "i", "service_account": "a", "requests": {"cpu": "3"}, "limits": {"memory": "1Gi", "vpc.amazonaws.com/efa": "4"}, "node_selector": {"n": "s"},
        "tolerations": [{"key": "spot", "operator": "Equal", "value": "v", "effect": "NoExecute"}], "runtime_class": "gvisor",
        "priority_class": "p", "shared_memory": "2Gi", "scratch": "3Gi", "variables": {"V": "w"},
    }  # fmt: skip
    (item,) = submitted("score", changed(tmp_path, kubernetes__profiles__cpu=profile, kubernetes__service_accounts={}))
    spec = item["spec"]
    container = spec["containers"][0]
    assert (container["image"], spec["serviceAccountName"], spec["runtimeClassName"]) == ("i", "a", "gvisor")
    assert container["resources"] == {"requests": profile["requests"], "limits": profile["limits"]}
    assert (spec["nodeSelector"], spec["priorityClassName"]) == ({"n": "s"}, "p")
    assert spec["tolerations"] == profile["tolerations"]
    sizes = {one["name"]: one["emptyDir"] for one in spec["volumes"] if "emptyDir" in one}
    assert sizes == {"scratch": {"sizeLimit": "3Gi"}, "shared-memory": {"medium": "Memory", "sizeLimit": "2Gi"}}
    assert {"name": "V", "value": "w"} in container["env"]


SPOT = {"key": "spot", "operator": "Equal", "value": "v", "effect": "NoExecute"}
CHANGED = {
    "namespace": "other", "tasks": {"reward": "sandbox-gpu", "train": "gpu-2"}, "service_accounts": {"train": "other"}, "config_maps": {"/etc/more": "more"},
    "secrets": {"T": {"secret": "s", "key": "k"}}, "secrets.secret": {"T": {"secret": "s2", "key": "k"}},
    "secrets.key": {"T": {"secret": "s", "key": "k2"}},
    "profiles.image": "i", "profiles.service_account": "a", "profiles.requests": {"cpu": "3"}, "profiles.limits": {"memory": "1Gi"},
    "profiles.node_selector": {"n": "s"}, "profiles.tolerations": [SPOT],
    **{
        f"profiles.tolerations.{name}": [SPOT | {name: value}]
        for name, value in {"key": "gpu", "operator": "Exists", "value": "w", "effect": "NoSchedule"}.items()
    },
    "profiles.runtime_class": "gvisor", "profiles.priority_class": "p", "profiles.queue": "q", "profiles.same_zone": True,
    "profiles.shared_memory": "2Gi", "profiles.scratch": "3Gi", "profiles.variables": {"V": "w"},
}  # fmt: skip


def test_every_setting_of_a_pod_changes_what_is_submitted(tmp_path: Path) -> None:
    given = yaml.safe_load(EKS.read_text())["kubernetes"]
    profiles = given["profiles"]
    gpu = {"image": "plain", "requests": {"cpu": "1"}}
    plain = given | {
        "service_accounts": {},
        "tasks": {"reward": "sandbox-gpu"},
        "profiles": profiles | {"gpu": gpu, "gpu-2": gpu | {"image": "second"}},
    }
    found: dict[str, Any] = {}
    for place, value in {"": None, **CHANGED}.items():
        part, _, rest = place.partition(".")
        change = (
            {"profiles": plain["profiles"] | {"gpu": gpu | {rest.split(".")[0]: value}}}
            if part == "profiles"
            else {part: value}
        )
        file = changed(tmp_path, kubernetes=plain | (change if place else {}))
        found[place] = submitted("train", file)
        for one in (found[place][0], found[place][0]["spec"]["template"]):
            one["metadata"]["annotations"].pop("wmtp.io/environment", None)  # which holds every setting
    seen = [json.dumps(one, sort_keys=True) for one in found.values()]
    assert len(set(seen)) == len(seen), "two of them submit the same"


def test_what_an_operator_asks_the_cluster_with_is_the_environment_files_business(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def watch(client: object, namespace: str, label: str, start_seconds: float) -> None:
        raise Unavailable(f"{start_seconds:g} s")

    monkeypatch.setattr("wmtp.submission.Watch", watch)
    file = changed(
        tmp_path, kubernetes__connection="far", kubernetes__tasks={}, kubernetes__profiles__gpu__start_seconds=7.0
    )
    operator = JobStage(task_id="train", environment_file=str(file))
    operator.__dict__["client"] = None  # would ask a cluster
    assert operator.kubernetes_conn_id == "far"
    with pytest.raises(Unavailable, match=r"^7 s$"):
        operator.carry_out(load_environment(file), SimpleNamespace(), {})  # type: ignore[arg-type]


def test_what_runs_at_one_time_is_the_environment_files_business_and_on_a_laptop_one_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"kubernetes__max_runs": 3, "kubernetes__max_tasks": 4, "kubernetes__profiles__gpu__pool": "gpus"}
    changes["kubernetes__profiles__cpu__pool"] = "sweeps"
    monkeypatch.setenv("WMTP_ENVIRONMENT", str(changed(tmp_path, **changes)))
    assert limits() == {"max_active_runs": 3, "max_active_tasks": 4}
    with DAG("d", schedule=None):
        found = [stage("score_shard", index=[0, 1]), stage("generate"), stage("score"), stage("plan")]
        found.append(cleaning("look", removes=False))
    pools = [getattr(one, "pool", None) for one in found]
    assert pools == ["gpus", "gpus", "sweeps", "default_pool", "sweeps"]

    monkeypatch.setenv("WMTP_ENVIRONMENT", str(EKS.with_name("laptop.yaml")))
    assert limits() == {"max_active_runs": 1, "max_active_tasks": 1}


def test_a_pod_ends_with_its_tasks_time_and_a_training_with_its_jobs() -> None:
    assert submitted("score")[0]["spec"]["activeDeadlineSeconds"] == 3600
    job = submitted("train")[0]["spec"]
    assert job["activeDeadlineSeconds"] == 3600 and "activeDeadlineSeconds" not in job["template"]["spec"]


def test_every_object_says_in_full_which_task_it_is_of() -> None:
    run = "manual__2026-01-01T00:00:00+00:00"
    for one in submitted("train"):
        found = Identity.of(SimpleNamespace(metadata=SimpleNamespace(annotations=one["metadata"]["annotations"])))
        assert found == Identity("wmtp-prod", "adhoc_airflow", run, "train", 0)


# What is read from a pod's status.


def pod(phase: str = "Failed", *, state: dict[str, Any] | None = None, **status: Any) -> k8s.V1Pod:
    containers = [
        {"name": "stage", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state or {}}
    ]
    tree = {
        "metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"containers": [{"name": "stage", "resources": {"limits": {"memory": "2Gi"}}}]},
        "status": {"phase": phase, "containerStatuses": containers, **status},
    }
    found: k8s.V1Pod = ApiClient().deserialize(SimpleNamespace(data=json.dumps(tree)), k8s.V1Pod)
    return found


def terminated(code: int, reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason, "finishedAt": "2026-01-01T00:00:05Z"}}


DISRUPTED = [
    {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "the node is drained"}
]


@pytest.mark.parametrize(
    ("failed", "kind", "sentence"),
    [
        (pod(state=terminated(64)), "UserError", "ended with 64"),
        (pod(state=terminated(65)), "DataError", "ended with 65"),
        (pod(state=terminated(75)), "Unavailable", "ended with 75"),
        (pod(state=terminated(85)), "Interrupted", "ended with 85"),
        (pod(state=terminated(1)), "WmtpError", "ended with 1"),
        (pod(state=terminated(139)), "Killed", "ended with 139, killed by signal 11"),
        (pod(state=terminated(137, "OOMKilled")), "Killed", r"was OOMKilled \(137\): over its memory limit of 2Gi"),
        (pod(state=terminated(137), conditions=DISRUPTED), "Interrupted", r"taken away \(EvictionByEvictionAPI\): the node is drained"),
        (pod(reason="Evicted", message="The node was low on memory"), "Interrupted", r"taken away \(Evicted\): The node was low"),
        (pod(reason="DeadlineExceeded", message="Pod was active"), "WmtpError", "ended after its time: Pod was active"),
        (pod(reason="UnexpectedAdmissionError", message="no GPU"), "WmtpError", r"without having run \(UnexpectedAdmissionError\): no GPU"),
    ],
)  # fmt: skip
def test_how_a_pod_ended_is_one_sentence_and_one_class(failed: k8s.V1Pod, kind: str, sentence: str) -> None:
    found = pods.ending(failed)
    assert found is not None and found.kind.__name__ == kind
    assert re.search(sentence, found.sentence), found.sentence


def test_a_pod_that_runs_or_succeeded_has_not_failed() -> None:
    assert pods.ending(pod("Running")) is None and pods.ending(pod("Succeeded", state=terminated(0))) is None


def waiting(reason: str, message: str) -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (waiting("CreateContainerConfigError", 'secret "store" not found'), 'CreateContainerConfigError: secret "store" not found'),
        (waiting("ErrImagePull", "manifest unknown"), "ErrImagePull: manifest unknown"),
        (waiting("ImagePullBackOff", "pull access denied"), "ImagePullBackOff: pull access denied"),
        (waiting("InvalidImageName", "bad"), "InvalidImageName: bad"),
    ],
)  # fmt: skip
def test_what_never_starts_fails_at_once_with_the_reason(state: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pods.waits_for(pod("Pending", state=state))


@pytest.mark.parametrize(
    ("waiting_pod", "reason"),
    [
        (pod("Pending", state=waiting("ImagePullBackOff", "429 too many requests")), "ImagePullBackOff: 429 too many requests"),
        (
            pod("Pending", conditions=[{"type": "PodScheduled", "status": "False", "message": "0/3 nodes: insufficient nvidia.com/gpu"}]),
            "0/3 nodes: insufficient nvidia.com/gpu",
        ),
        (pod("Running"), None),
    ],
)  # fmt: skip
def test_why_a_pod_waits_is_told(waiting_pod: k8s.V1Pod, reason: str | None) -> None:
    assert pods.waits_for(waiting_pod) == reason


def test_a_queue_holds_back_pods_and_jobs_and_never_a_pod_of_a_job() -> None:
    label = "kueue.x-k8s.io/queue-name"
    for task, queue in (("generate", "gpu"), ("reward", "gpu"), ("score", None)):
        (item,) = submitted(task)
        assert item["metadata"]["labels"].get(label) == queue, task
    job = submitted("train")[0]
    assert job["metadata"]["labels"][label] == "gpu"
    assert label not in job["spec"]["template"]["metadata"]["labels"]


def test_to_wait_in_a_queue_is_not_to_wait_for_a_node() -> None:
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "SchedulingGated",
        "message": "Scheduling is blocked",
    }
    held = pod("Pending", conditions=[condition])
    held.spec.scheduling_gates = [k8s.V1PodSchedulingGate(name="kueue.x-k8s.io/admission")]
    watch = pods.Watch(client=None, namespace="n", label="generate[0]", start_seconds=0.0)  # type: ignore[arg-type]
    for _ in range(2):
        watch.look([held])

    held.spec.scheduling_gates = None
    watch.look([held])
    with pytest.raises(Unavailable, match=r"generate\[0\] has waited 0 s .* could not start: Scheduling is blocked"):
        watch.look([held])


def test_a_job_waits_for_room_in_a_quota_as_long_as_a_pod_for_a_node() -> None:
    """For one of its two pods there is room."""
    operator = JobStage(task_id="train", environment_file=str(EKS))
    job = k8s.V1Job(
        metadata=k8s.V1ObjectMeta(name="j", namespace="n", uid="0"),
        spec=k8s.V1JobSpec(template=k8s.V1PodTemplateSpec(), parallelism=2),
        status=k8s.V1JobStatus(),
    )
    quota = SimpleNamespace(reason="FailedCreate", message="exceeded quota: gpus", last_timestamp=None, event_time="1")
    there = [pod("Succeeded", state=terminated(0))]
    operator.__dict__["job_client"] = SimpleNamespace(read_namespaced_job=lambda *given, **more: job)
    operator.__dict__["client"] = SimpleNamespace(
        list_namespaced_pod=lambda *given, **more: SimpleNamespace(items=there),
        list_namespaced_event=lambda *given, **more: SimpleNamespace(items=[quota]),
        read_namespaced_pod_log=lambda *given, **more: SimpleNamespace(data=b""),
    )
    watch = pods.Watch(operator.client, namespace="n", label="train[0]", start_seconds=0.0)
    assert not operator._is_done("j", watch)
    with pytest.raises(
        Unavailable, match=r"train\[0\] has waited 0 s .* could not start: FailedCreate: exceeded quota: gpus"
    ):
        operator._is_done("j", watch)

    there.append(pod("Running"))
    for _ in range(2):
        assert not operator._is_done("j", watch)
    there[:] = []
    job.status.conditions = [k8s.V1JobCondition(type="Complete", status="True")]
    for _ in range(2):
        assert operator._is_done("j", watch), "its pods were removed since"


def beyond_the_quota() -> ApiException:
    refused = ApiException(status=403, reason="Forbidden")
    refused.body = json.dumps({"message": 'pods "p" is forbidden: exceeded quota: gpus'})
    return refused


def test_a_pod_waits_for_room_in_a_quota_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wmtp.pods.SECONDS_BETWEEN_LOOKS", 0.0)
    made: list[str] = []

    def create(namespace: str, wanted: k8s.V1Pod) -> None:
        made.append(wanted.metadata.name)
        if len(made) < 3:
            raise beyond_the_quota()

    def nothing(*given: object, **more: object) -> None:
        raise ApiException(status=404)

    operator = PodStage(task_id="generate", environment_file=str(EKS))
    operator.__dict__["client"] = SimpleNamespace(create_namespaced_pod=create, read_namespaced_pod=nothing)
    identity = Identity("d", "wmtp_daily", "night", "generate", 0)
    order = Order(identity, "generate", "0", [], {}, deadline_seconds=None)
    for seconds, number in ((60.0, 3), (0.0, 2)):
        made.clear()
        watch = pods.Watch(operator.client, namespace="n", label="generate[0]", start_seconds=seconds)
        told = r"generate\[0\] has waited 0 s .* start: Pod p has no room: pods .p. is forbidden: exceeded quota: gpus"
        with nullcontext() if seconds else pytest.raises(Unavailable, match=told):
            operator._attach_or_create(pod(), order, watch)
        assert made == ["p"] * number


def test_a_pod_that_works_is_attached_to_though_it_is_what_leaves_no_room() -> None:
    def create(namespace: str, wanted: k8s.V1Pod) -> None:
        raise beyond_the_quota()  # before the server looks whether there is one of that name

    identity = Identity("d", "wmtp_daily", "night", "generate", 0)
    mine = pod("Running")
    mine.metadata.labels, mine.metadata.annotations = {manifest.OWNER: identity.digest}, {manifest.KEY: "0"}
    operator = PodStage(task_id="generate", environment_file=str(EKS))
    operator.__dict__["client"] = SimpleNamespace(
        create_namespaced_pod=create, read_namespaced_pod=lambda *given, **more: mine
    )
    order = Order(identity, "generate", "0", [], {}, deadline_seconds=None)
    watch = pods.Watch(operator.client, namespace="n", label="generate[0]", start_seconds=0.0)
    operator._attach_or_create(pod(), order, watch)


def test_why_kueue_holds_a_job_back_is_told() -> None:
    owner = [{"uid": "mine"}]
    conditions = [
        {
            "type": "QuotaReserved",
            "status": "False",
            "message": "insufficient unused quota for nvidia.com/gpu, 2 more needed",
        }
    ]
    mine = {"metadata": {"ownerReferences": owner}, "status": {"conditions": conditions}}
    other = {"metadata": {"ownerReferences": [{"uid": "other"}]}}
    assert (
        pods.admission([other, mine], "mine")
        == "Kueue has not admitted it: insufficient unused quota for nvidia.com/gpu, 2 more needed"
    )
    assert pods.admission([other], "mine") == "Kueue has not taken it up yet"
