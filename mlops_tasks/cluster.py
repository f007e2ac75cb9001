"""`wmtp doctor` of a cluster: may whoever asks do what stages as pods need, and is there what the environment file names.

Only asks. What one's rights do not let one see is told, with who can look. Objects are made by the plugins of Airflow, which have this
client of Kubernetes; images whose stages are pods have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, get_args

import yaml

from mlops_tasks import orchestrator
from mlops_tasks.config.kubernetes import Kubernetes, Profile, TaskId
from mlops_tasks.errors import Unavailable, UserError, WmtpError
from mlops_tasks.placement import Place

Answer = tuple[Literal["ok", "warn"], str]
Answers = Iterator[Answer]

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
_NUM_REASONS = 6


class Cluster:
    """The cluster that Airflow's tasks reach: by Airflow's connection, or else as a pod of it or by `KUBECONFIG`."""

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

    def config_maps(self) -> Answers:
        """Are the ConfigMaps there that pods are given?"""
        names, namespace = sorted(set(self._settings.config_maps.values())), self._settings.namespace
        read = self._core.read_namespaced_config_map
        there = {
            name: self._ask(lambda name=name: bool(read(name, namespace)), {403: None, 404: False})  # type: ignore[misc]
            for name in names
        }
        if lacking := [name for name in names if there[name] is False]:
            raise UserError(
                f"In the namespace {namespace} there is no ConfigMap {', '.join(lacking)}. Install charts/ml-platform whole, or mend "
                "kubernetes.config_maps: a pod that names one that is not there never starts."
            )
        if hidden := [name for name in names if there[name] is None]:
            yield (
                "warn",
                f"{', '.join(hidden)}: this account may not read ConfigMaps. Let an administrator run `kubectl get configmap "
                f"{' '.join(hidden)} -n {namespace}`",
            )
        elif names:
            yield "ok", f"{len(names)} ConfigMaps that pods see as files are there"

    def nodes(self) -> Answers:
        """Is there a node, or something that makes one, for each profile that a task has?"""
        nodes = self._ask(lambda: self._core.list_node().items, {403: None})
        if nodes is None:
            yield "warn", "this account may not see nodes. Let an administrator run `wmtp doctor`"
            return
        lacking = []
        for name in sorted({self._settings.profile_of(task) for task in get_args(TaskId)}):
            answer = self._place_for(name, self._settings.profiles[name], nodes)
            if isinstance(answer, str):
                lacking.append(answer)
            else:
                yield answer
        if lacking:
            raise UserError(
                f"{' '.join(lacking)} Add nodes, start the device plugin on those that there are, or mend the profile."
            )

    def _place_for(self, name: str, profile: Profile, nodes: Sequence[Any]) -> Answer | str:
        """What is said of a profile; a text alone: there is no place for its pods."""
        asked = ", ".join(f"{resource}: {one}" for resource, one in profile.requests.items())
        here = [Place.of_node(one, profile) for one in nodes]
        if num_fitting := sum(one.refusal is None for one in here):
            return "ok", f"profile {name}: {num_fitting} of {len(nodes)} nodes take pods with {asked}"
        told = f"profile {name}: no node takes pods with {asked} now"
        pools = self._node_pools()
        made = [Place.of_pool(one, profile) for one in pools or []]
        return _made_by(made, told) or self._without_pool(told, [*made, *here], may_see_pools=pools is not None)

    def _without_pool(self, told: str, places: Sequence[Place], *, may_see_pools: bool) -> Answer | str:
        read = self._core.read_namespaced_config_map
        is_there = self._ask(lambda: bool(read("cluster-autoscaler-status", "kube-system")), {403: None, 404: False})
        if is_there:
            return "warn", f"{told}. A cluster-autoscaler is there; whether it can make one, only it knows"
        hidden = ["NodePools"] * (not may_see_pools) + ["the cluster-autoscaler"] * (is_there is None)
        if hidden:
            return (
                "warn",
                f"{told}, and this account may not see {' and '.join(hidden)}. Let an administrator run `wmtp doctor`",
            )
        reasons = "; ".join(f"{one.name}: {one.refusal}" for one in places[:_NUM_REASONS])
        return f"{told}, and neither Karpenter nor a cluster-autoscaler makes one: {reasons or 'there is no node'}."

    def _node_pools(self) -> list[Any] | None:
        """Of Karpenter; None: this account may not see them."""
        ask = self._client.CustomObjectsApi(self._api).list_cluster_custom_object
        found: list[Any] | None = self._ask(
            lambda: ask("karpenter.sh", "v1", "nodepools")["items"], {403: None, 404: []}
        )
        return found

    def _keys_of(self, secret: str) -> Iterable[str] | None:
        """Names of its entries; None: this account may not see them."""
        read = self._core.read_namespaced_secret
        found: Iterable[str] | None = self._ask(
            lambda: read(secret, self._settings.namespace).data or {}, {403: None, 404: ()}
        )
        return found

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

    def _ask(self, ask: Callable[[], Any], instead: Mapping[int, Any] = MappingProxyType({})) -> Any:
        """What the server answers.

        Args:
            ask: makes the request.
            instead: what is returned where the server refuses with one of these codes: 403 is "this account may not look", 404 "not there".
        """
        from urllib3.exceptions import HTTPError

        host = self._api.configuration.host
        try:
            return ask()
        except HTTPError as error:
            raise Unavailable(
                f"{host} does not answer ({error}). Look at KUBECONFIG, and at the network between here and there."
            ) from error
        except self._client.ApiException as error:
            if error.status in instead:
                return instead[error.status]
            raise _refused(host, error.status, error.reason) from error

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
        made = self._client.Configuration()
        made.retries = 1
        self._configure(made)
        return self._client.ApiClient(made)

    def _configure(self, made: Any) -> None:
        """Read which cluster it is as the provider of Airflow does, of whose connection the names are."""
        from kubernetes import config

        name = self._settings.connection
        given = orchestrator.connection(name) if name else {}
        context, path, tree = (given.get(one) for one in ("cluster_context", "kube_config_path", "kube_config"))
        try:
            if tree:
                tree = yaml.safe_load(tree) if isinstance(tree, str) else tree
                config.load_kube_config_from_dict(tree, context=context, client_configuration=made)
            elif path:
                config.load_kube_config(path, context=context, client_configuration=made)
            else:
                self._configure_here(made, context, is_pod=bool(given.get("in_cluster")))
        except config.ConfigException as error:
            where = f"Airflow's connection {name}" if name else "KUBECONFIG"
            raise UserError(
                f"No cluster is named by {where}: {error}. Mend it, or run this in a pod with an account of Airflow's tasks."
            ) from error

    @staticmethod
    def _configure_here(made: Any, context: str | None, *, is_pod: bool) -> None:
        from kubernetes import config

        try:
            config.load_incluster_config(client_configuration=made)
        except config.ConfigException:
            if is_pod:
                raise
            config.load_kube_config(context=context, client_configuration=made)

    @cached_property
    def _core(self) -> Any:
        return self._client.CoreV1Api(self._api)


def _made_by(pools: Iterable[Place], told: str) -> Answer | None:
    """Who makes a node; None: nobody."""
    makers = sorted((one for one in pools if one.refusal is None), key=lambda one: not one.is_sure)
    if not makers:
        return None
    if makers[0].is_sure:
        return "ok", f"{told}, and Karpenter's {makers[0].name} makes some"
    return (
        "warn",
        f"{told}, and Karpenter's {makers[0].name} does not say what it buys. Name instance families in it, or a limit for the device, if it "
        "is meant for them",
    )


def _refused(host: str, status: int, reason: str) -> WmtpError:
    if status == 401:
        return UserError(f"{host} does not know this account (401). Log in anew, or mend KUBECONFIG.")
    if status == 429 or status >= 500:
        return Unavailable(f"{host} cannot answer now ({status} {reason}). Ask again later.")
    return UserError(
        f"{host} refuses what is asked ({status} {reason}). Look whether it is the API server of a cluster and what stands between, and whether "
        "this account may ask it."
    )
