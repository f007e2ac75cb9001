"""`wmtp doctor` of a cluster: may whoever asks do what stages as pods need, and is there what the environment file names.

Only asks. What one's rights do not let one see is told, with who can look. Objects are made by the plugins of Airflow, which have this
client of Kubernetes; images whose stages are pods have none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from functools import cached_property
from typing import Any, Literal, get_args

from mlops_tasks.config.kubernetes import Kubernetes, Profile, TaskId
from mlops_tasks.errors import Unavailable, UserError

Answers = Iterator[tuple[Literal["ok", "warn"], str]]

RIGHTS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("", "pods"): ("create", "get", "list", "watch", "patch", "delete"),
    ("", "pods/log"): ("get",),
    ("", "events"): ("get", "list", "watch"),
    ("batch", "jobs"): ("create", "get", "list", "watch", "patch", "delete"),
    ("", "services"): ("create", "get", "list", "delete"),
    ("kueue.x-k8s.io", "workloads"): ("get", "list", "watch"),
}
"""What a task of Airflow does, by API group and resource: the Role `airflow-tasks` of charts/ml-platform."""

# Older servers drop podFailurePolicy or podReplacementPolicy of a training's Job without a word.
_OLDEST_MINOR = 29
_UNITS: Mapping[str, Decimal] = {
    "": Decimal(1), "m": Decimal("0.001"), "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9),
    "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30),
}  # fmt: skip


class Cluster:
    """The cluster that this process reaches: as a pod of it, or by `KUBECONFIG`."""

    def __init__(self, settings: Kubernetes) -> None:
        self._settings = settings

    def server(self) -> Answers:
        """Does the API server answer, and is it new enough?"""
        version = self._ask(lambda: self._client.VersionApi(self._api).get_code())
        told = f"{self._api.configuration.host} answers: Kubernetes {version.git_version}"
        if int(version.minor.rstrip("+")) < _OLDEST_MINOR:
            yield (
                "warn",
                f"{told}, older than 1.{_OLDEST_MINOR}: it drops what says which pods of a training are replaced. Update it, or trainings of "
                "several pods are retried by Airflow alone",
            )
        else:
            yield "ok", told

    def rights(self) -> Answers:
        """May we do what tasks do?"""
        has_queue = any(profile.queue for profile in self._settings.profiles.values())
        wanted = {of: verbs for of, verbs in RIGHTS.items() if has_queue or not of[0].startswith("kueue")}
        lacking = [
            f"{verb} {resource}"
            for (group, resource), verbs in wanted.items()
            for verb in verbs
            if not self._may(verb, group, resource)
        ]
        if lacking:
            raise UserError(
                f"This account may not {', '.join(lacking)} in the namespace {self._settings.namespace}. Bind the Role airflow-tasks of "
                "charts/ml-platform to it (airflow.taskServiceAccounts), or run this as the account of Airflow's tasks."
            )
        yield "ok", f"tasks may make, follow and remove pods, Jobs and Services in {self._settings.namespace}"

    def secrets(self) -> Answers:
        """Are the Secrets there that pods are given?"""
        namespace, hidden, lacking = self._settings.namespace, set(), []
        for variable, one in self._settings.secrets.items():
            there = self._keys_of(one.secret)
            if there is None:
                hidden.add(one.secret)
            elif one.key not in there:
                lacking.append(f"{variable} (Secret {one.secret}, key {one.key})")
        if lacking:
            raise UserError(
                f"In the namespace {namespace} there is nothing for {', '.join(lacking)}. `kubectl create secret generic NAME -n {namespace} "
                "--from-literal=KEY=…`, or mend kubernetes.secrets: a pod that names a Secret that is not there never starts."
            )
        if hidden:
            yield (
                "warn",
                f"{', '.join(sorted(hidden))}: this account may not read Secrets, and that of Airflow should not. Let an administrator run "
                f"`kubectl get secret {' '.join(sorted(hidden))} -n {namespace}`",
            )
        else:
            yield "ok", f"{len(self._settings.secrets)} variables come from Secrets that are there"

    def nodes(self) -> Answers:
        """Is there a node, or something that makes one, for each profile that asks for a device?"""
        for name, profile in self._profiles_in_use():
            wanted = {resource: one for resource, one in profile.requests.items() if "/" in resource}
            if wanted:
                yield self._node_for(name, profile, wanted)

    def _profiles_in_use(self) -> list[tuple[str, Profile]]:
        names = {self._settings.profile_of(task) for task in get_args(TaskId)}
        return sorted((name, self._settings.profiles[name]) for name in names)

    def _node_for(self, name: str, profile: Profile, wanted: Mapping[str, str]) -> tuple[Literal["ok", "warn"], str]:
        asked = ", ".join(f"{resource}: {one}" for resource, one in wanted.items())
        nodes = self._visible(lambda: self._core.list_node().items)
        if nodes is None:
            return (
                "warn",
                f"profile {name} asks for {asked}, and this account may not see nodes. Let an administrator run `wmtp doctor`",
            )
        fitting = [one for one in nodes if _has(one, profile.node_selector, wanted)]
        if fitting:
            return "ok", f"profile {name}: {len(fitting)} nodes have {asked}"
        if made := self._node_pool_for(profile.node_selector):
            return "ok", f"profile {name}: no node has {asked} now, and Karpenter's NodePool {made} makes some"
        status = self._visible(
            lambda: self._core.read_namespaced_config_map("cluster-autoscaler-status", "kube-system"), missing=None
        )
        if status is not None:
            return (
                "warn",
                f"profile {name}: no node has {asked} now. A cluster-autoscaler is there; whether it can make one, only it knows",
            )
        raise UserError(
            f"No node has what the profile {name} asks for ({asked}, labels {dict(profile.node_selector)}), and there is neither a NodePool "
            "of Karpenter with these labels nor a cluster-autoscaler. Add nodes, start the device plugin on those that there are, or mend the profile."
        )

    def _node_pool_for(self, labels: Mapping[str, str]) -> str | None:
        pools = self._visible(
            lambda: self._client.CustomObjectsApi(self._api).list_cluster_custom_object(
                "karpenter.sh", "v1", "nodepools"
            )["items"],
            missing=[],
        )
        for one in pools or []:
            given = one["spec"]["template"].get("metadata", {}).get("labels", {})
            if labels.items() <= given.items():
                return str(one["metadata"]["name"])
        return None

    def _keys_of(self, secret: str) -> Iterable[str] | None:
        """Names of its entries; None: this account may not see them."""
        found = self._visible(lambda: self._core.read_namespaced_secret(secret, self._settings.namespace), missing=())
        return found if found is None or found == () else (found.data or {})

    def _may(self, verb: str, group: str, resource: str) -> bool:
        resource, _, part = resource.partition("/")
        asked = {
            "namespace": self._settings.namespace,
            "verb": verb,
            "group": group,
            "resource": resource,
            "subresource": part,
        }
        review = self._client.AuthorizationV1Api(self._api).create_self_subject_access_review
        return bool(self._ask(lambda: review({"spec": {"resourceAttributes": asked}})).status.allowed)

    def _visible(self, ask: Any, *, missing: Any = None) -> Any:
        """What is there; None where this account may not look, `missing` where there is nothing."""
        try:
            return self._ask(ask)
        except self._client.ApiException as error:
            if error.status == 403:
                return None
            if error.status == 404:
                return missing
            raise

    def _ask(self, ask: Any) -> Any:
        from urllib3.exceptions import HTTPError

        host = self._api.configuration.host
        try:
            return ask()
        except HTTPError as error:
            raise Unavailable(
                f"{host} does not answer ({error}). Look at KUBECONFIG, and at the network between here and there."
            ) from error
        except self._client.ApiException as error:
            if error.status == 401:
                raise UserError(f"{host} does not know this account (401). Log in anew, or mend KUBECONFIG.") from error
            raise

    @cached_property
    def _client(self) -> Any:
        try:
            from kubernetes import client
        except ModuleNotFoundError as error:
            raise UserError(
                "There is no client of Kubernetes here, so that the cluster cannot be asked. Run this where Airflow's tasks run: in its image."
            ) from error
        return client

    @cached_property
    def _api(self) -> Any:
        client = self._client
        from kubernetes import config

        made = client.Configuration()
        made.retries = 1
        try:
            try:
                config.load_incluster_config(client_configuration=made)
            except config.ConfigException:
                config.load_kube_config(client_configuration=made)
        except config.ConfigException as error:
            raise UserError(
                f"No cluster is named here: {error}. Set KUBECONFIG, or run this in a pod with an account of Airflow's tasks."
            ) from error
        return client.ApiClient(made)

    @cached_property
    def _core(self) -> Any:
        return self._client.CoreV1Api(self._api)


def _has(node: Any, labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    offered = node.status.allocatable or {}
    return (
        labels.items() <= (node.metadata.labels or {}).items()
        and not node.spec.unschedulable
        and all(_number(offered.get(resource, "0")) >= _number(one) for resource, one in wanted.items())
    )


def _number(quantity: str) -> Decimal:
    """A quantity of Kubernetes as a number.

    >>> _number("2Ki") + _number("1")
    Decimal('2049')
    """
    digits = quantity.rstrip("".join(set("".join(_UNITS))))
    return Decimal(digits) * _UNITS[quantity[len(digits) :]]
