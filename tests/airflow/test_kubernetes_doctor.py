"""What `wmtp doctor` finds in a real cluster, asked by its administrator and by the account of Airflow's tasks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rig as rigs
import yaml
from kubernetes import client
from rig import IMAGE, NAMESPACE, Rig

from mlops_tasks.cluster import RIGHTS, Cluster
from mlops_tasks.config.kubernetes import Kubernetes
from mlops_tasks.errors import UserError

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
def test_a_profile_whose_device_no_node_has_and_nobody_brings_is_told(rig: Rig) -> None:
    cluster = Cluster(settings())
    with pytest.raises(UserError, match=r"the profile gpu asks for \(wmtp.io/device: 2, labels \{\}\).*device plugin"):
        list(cluster.nodes())

    (node,) = rig.core.list_node().items
    add = [
        {"op": "add", "path": f"/status/{part}/wmtp.io~1device", "value": "2"} for part in ("capacity", "allocatable")
    ]
    rig.core.patch_node_status(node.metadata.name, add)

    assert list(cluster.nodes()) == [("ok", "profile gpu: 1 nodes have wmtp.io/device: 2")]
