"""What `wmtp doctor` finds in a real cluster, asked by its administrator and by the account of Airflow's tasks."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import rig as rigs
import yaml
from kubernetes import client
from rig import IMAGE, NAMESPACE, Rig

from mlops_tasks import doctor
from mlops_tasks.cluster import RIGHTS, Cluster
from mlops_tasks.config.environment import Environment
from mlops_tasks.config.kubernetes import Kubernetes
from mlops_tasks.doctor import Finding
from mlops_tasks.errors import Unavailable, UserError

if TYPE_CHECKING:
    from conftest import Place

pytestmark = pytest.mark.kubernetes

ACCOUNT = "airflow-worker"


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with rigs.started() as started:
        yield started


def settings(**changes: Any) -> Kubernetes:
    profile = {"image": IMAGE, "requests": {"cpu": "1"}}
    profiles = {"cpu": profile, "sandbox": profile, "gpu": {**profile, "requests": {"cpu": "1", "wmtp.io/device": "2"}}}
    return Kubernetes.model_validate({"namespace": NAMESPACE, "profiles": profiles, **changes})


@pytest.fixture
def administrator(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", rig.kubeconfig)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", rig.kubeconfig)


def role_of_the_chart() -> list[dict[str, Any]]:
    """The rules of `airflow-tasks`, which hold no template."""
    text = (rigs.CHECKOUT / "charts/ml-platform/templates/accounts.yaml").read_text()
    rules = text.partition("name: airflow-tasks")[2].partition("rules:\n")[2].partition("---")[0]
    found: list[dict[str, Any]] = yaml.safe_load(rules)
    return found


@pytest.fixture
def account(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[client.RbacAuthorizationV1Api]:
    """This process is an account of the cluster that nobody has given any rights."""
    rig.core.create_namespaced_service_account(NAMESPACE, {"metadata": {"name": ACCOUNT}})
    tree = json.loads(Path(rig.kubeconfig).read_text())
    tree["users"] = [{"name": "rig", "user": {"token": rig.token_of(ACCOUNT)}}]
    (tmp_path / "kubeconfig").write_text(json.dumps(tree))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    yield client.RbacAuthorizationV1Api(rig.api)
    rig.core.delete_namespaced_service_account(ACCOUNT, NAMESPACE)


def test_the_rights_that_are_asked_for_are_those_of_the_chart() -> None:
    rules = {
        (group, resource): tuple(rule["verbs"])
        for rule in role_of_the_chart()
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert rules == dict(RIGHTS)


def test_the_account_of_tasks_may_do_what_they_do_once_the_role_is_bound(
    rig: Rig, account: client.RbacAuthorizationV1Api
) -> None:
    with pytest.raises(
        UserError, match=r"may not create pods, .*get pods/log, .*delete services in the namespace wmtp\. Bind the Role"
    ):
        list(Cluster(settings()).rights())
    account.create_namespaced_role(NAMESPACE, {"metadata": {"name": "airflow-tasks"}, "rules": role_of_the_chart()})
    binding = {
        "metadata": {"name": "airflow-tasks"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "airflow-tasks"},
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE}],
    }
    account.create_namespaced_role_binding(NAMESPACE, binding)

    secrets = {"MLFLOW_TRACKING_PASSWORD": {"secret": "mlflow", "key": "password"}}
    cluster = Cluster(settings(secrets=secrets))

    assert [status for status, _ in cluster.rights()] == ["ok"]
    ((status, text),) = cluster.secrets()
    assert status == "warn" and "mlflow: this account may not read Secrets" in text
    assert [status for status, _ in cluster.nodes()] == ["warn"]


@pytest.mark.usefixtures("administrator")
def test_a_server_that_drops_what_trainings_rest_on_is_told(rig: Rig) -> None:
    ((status, text),) = Cluster(settings()).server()
    assert status == "warn" and "Kubernetes v1.20" in text and "older than 1.29" in text


@pytest.mark.usefixtures("administrator")
def test_a_secret_that_is_not_there_is_named_with_its_variable(rig: Rig) -> None:
    rig.secret("mlflow", {"password": "hidden words"})
    secrets = {"PASSWORD": {"secret": "mlflow", "key": "password"}, "USER": {"secret": "mlflow", "key": "user"}, "URL": {"secret": "database", "key": "url"}}  # fmt: skip
    with pytest.raises(
        UserError, match=r"nothing for USER \(Secret mlflow, key user\), URL \(Secret database, key url\)\. `kubectl"
    ) as found:
        list(Cluster(settings(secrets=secrets)).secrets())
    assert "hidden words" not in str(found.value)

    ((status, text),) = Cluster(settings(secrets={"PASSWORD": secrets["PASSWORD"]})).secrets()
    assert (status, text) == ("ok", "1 variables come from Secrets that are there")


@pytest.mark.usefixtures("administrator")
def test_a_config_map_that_is_not_there_is_named(rig: Rig) -> None:
    rig.core.create_namespaced_config_map(NAMESPACE, {"metadata": {"name": "ca"}, "data": {"ca.pem": "x"}})
    maps = {"/etc/ca": "ca", "/etc/other": "other-ca"}
    with pytest.raises(UserError, match=r"In the namespace wmtp there is no ConfigMap other-ca\. .* never starts"):
        list(Cluster(settings(config_maps=maps)).config_maps())

    told = list(Cluster(settings(config_maps={"/etc/ca": "ca"})).config_maps())
    assert told == [("ok", "1 ConfigMaps that pods see as files are there")]
    assert list(Cluster(settings()).config_maps()) == []


def test_config_maps_that_an_account_may_not_read_are_not_taken_for_missing(
    account: client.RbacAuthorizationV1Api,
) -> None:
    ((status, text),) = Cluster(settings(config_maps={"/etc/ca": "ca"})).config_maps()
    assert status == "warn" and "ca: this account may not read ConfigMaps" in text


DEVICE = "wmtp.io~1device"


@pytest.fixture
def node(rig: Rig) -> Iterator[str]:
    """The one node, with two devices; as it was after the test."""
    (one,) = rig.core.list_node().items
    name = one.metadata.name
    parts = ("capacity", "allocatable")
    rig.core.patch_node_status(
        name, [{"op": "add", "path": f"/status/{part}/{DEVICE}", "value": "2"} for part in parts]
    )
    yield name
    rig.core.patch_node(name, {"spec": {"unschedulable": None, "taints": None}})
    rig.core.patch_node_status(name, [{"op": "remove", "path": f"/status/{part}/{DEVICE}"} for part in parts])


@pytest.mark.usefixtures("administrator")
def test_a_profile_whose_device_no_node_has_and_nobody_brings_is_told(rig: Rig) -> None:
    cluster = Cluster(settings())
    told = r"profile gpu: no node takes pods with cpu: 1, wmtp.io/device: 2 now, .*node \S+: offers wmtp.io/device: 0\. .*device plugin"
    answers = cluster.nodes()
    assert next(answers)[1].startswith("profile cpu: 1 of 1 nodes take pods"), "what is well is told too"
    with pytest.raises(UserError, match=told):
        list(answers)


@pytest.mark.usefixtures("administrator")
def test_a_node_counts_only_while_pods_may_run_on_it(rig: Rig, node: str) -> None:
    (gpu,) = [text for _, text in Cluster(settings()).nodes() if "profile gpu" in text]
    assert gpu == "profile gpu: 1 of 1 nodes take pods with cpu: 1, wmtp.io/device: 2"

    rig.core.patch_node(node, {"spec": {"unschedulable": True}})
    with pytest.raises(UserError, match=rf"profile gpu: .*node {node}: is cordoned"):
        list(Cluster(settings()).nodes())

    taints = [{"key": "team", "value": "other", "effect": "NoSchedule"}]
    rig.core.patch_node(node, {"spec": {"unschedulable": None, "taints": taints}})
    with pytest.raises(UserError, match=rf"profile gpu: .*node {node}: has the taint team:NoSchedule"):
        list(Cluster(settings()).nodes())


@pytest.mark.usefixtures("administrator", "nobodys_nodes")
def test_a_node_pool_of_karpenter_counts_if_it_makes_nodes_for_the_profile(rig: Rig) -> None:
    custom = client.CustomObjectsApi(rig.api)
    nvidia = {"nvidia.com/gpu": "1"}
    profiles = {name: one.model_dump(mode="json") for name, one in settings().profiles.items()}
    wanted = settings(profiles={**profiles, "gpu": {**profiles["gpu"], "requests": nvidia}})

    def pool(name: str, category: str, **spec: Any) -> None:
        requirements = [{"key": "karpenter.k8s.aws/instance-category", "operator": "In", "values": [category]}]
        template = {"metadata": {"labels": {}}, "spec": {"requirements": requirements}}
        body = {"apiVersion": "karpenter.sh/v1", "kind": "NodePool", "metadata": {"name": name}}
        custom.create_cluster_custom_object(
            "karpenter.sh", "v1", "nodepools", {**body, "spec": {"template": template, **spec}}
        )

    pool("cpu", "c")
    with pytest.raises(UserError, match=r"profile gpu: .*NodePool cpu: what it buys has no nvidia.com/gpu"):
        list(Cluster(wanted).nodes())

    pool("gpu", "g")
    (gpu,) = [answer for answer in Cluster(wanted).nodes() if "profile gpu" in answer[1]]
    assert gpu[0] == "ok" and gpu[1].endswith("Karpenter's NodePool gpu makes some")

    (efa,) = [answer for answer in Cluster(settings()).nodes() if "profile gpu" in answer[1]]
    assert efa[0] == "warn" and "NodePool cpu does not say what it buys" in efa[1]


@pytest.fixture
def nobodys_nodes(rig: Rig) -> Iterator[None]:
    """Karpenter's kind of objects, for the test."""
    rig.define("NodePool", "karpenter.sh", "v1", scope="Cluster")
    yield
    client.ApiextensionsV1Api(rig.api).delete_custom_resource_definition("nodepools.karpenter.sh")


def test_what_an_account_may_not_see_is_not_taken_for_missing(rig: Rig, account: client.RbacAuthorizationV1Api) -> None:
    rules = [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}]
    account.create_cluster_role({"metadata": {"name": "sees-nodes"}, "rules": rules})
    binding = {
        "metadata": {"name": "sees-nodes"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "sees-nodes"},
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE}],
    }
    account.create_cluster_role_binding(binding)

    (gpu,) = [answer for answer in Cluster(settings()).nodes() if "profile gpu" in answer[1]]

    assert gpu[0] == "warn"
    assert "this account may not see NodePools and the cluster-autoscaler. Let an administrator run" in gpu[1]


def airflows(place: Place, monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    """Have `airflow` be the one of this place."""
    for name, value in {**place.variables, **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("_AIRFLOW__AS_LIBRARY")  # a program is none
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize("form", ["kube_config_path", "kube_config"])
def test_the_cluster_that_is_asked_is_that_of_airflows_connection(
    form: str, rig: Rig, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = {form: rig.kubeconfig if form == "kube_config_path" else Path(rig.kubeconfig).read_text()}
    given = json.dumps({"conn_type": "kubernetes", "extra": extra})
    airflows(place, monkeypatch, AIRFLOW_CONN_RIG=given)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(place.folder / "nothing"))

    ((_, text),) = Cluster(settings(connection="rig")).server()
    assert "Kubernetes v1.20" in text

    with pytest.raises(Unavailable, match=r"`airflow connections get nobody` ended with 1: Connection not found\."):
        list(Cluster(settings(connection="nobody")).server())


def test_a_pool_that_profiles_name_is_one_of_airflows(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    airflows(place, monkeypatch)
    profiles = {name: one.model_dump(mode="json") for name, one in settings().profiles.items()}

    def asked(pool: str) -> Finding:
        kubernetes = settings(profiles={**profiles, "gpu": {**profiles["gpu"], "pool": pool}})
        here = Environment(store="s3://b/p", mlflow_uri="http://m", executor="kubernetes", kubernetes=kubernetes)
        (found,) = doctor._answered("pools", doctor._pools(here))
        return found

    assert asked("default_pool").text == "Airflow has the pools that profiles name: default_pool (128)"
    lacks = asked("gpus")
    assert lacks.exit_code == 64
    assert (
        "Airflow has no pool gpus, and tasks whose profile names one never start. `airflow pools set gpus" in lacks.text
    )
