"""Our own rules over what a chart renders to, and over the values that go into one.

Schemas say what Kubernetes accepts; these say what we accept of it. Each rule yields sentences that name the object.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from typing import Any

from scripts.charts import pods

Object = dict[str, Any]
_SECRET_KEY = re.compile(r"(?i)(password|passphrase|token|secret_?key|private_?key|access_?key|api_?key)$")
_SECRET_TEXT = re.compile(r"AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY|://[^/\s:@]+:[^/\s:@]+@")
# A name or a variable of a template, filled in where the secret is read.
_REFERENCE = re.compile(r"\{\{.*\}\}|.*\$\(.*\)")
# The policies that may open the internet, and for which pods.
_WAYS_OUT = {("wmtp", "pull"): {"matchLabels": {"wmtp.io/stage": "pull"}}, ("airflow", "outside"): {}}
_PRIVATE = {"10.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"}


def violations(items: list[Object]) -> list[str]:
    """Every sentence of every rule, in the order of the rules."""
    return [sentence for rule in RULES for sentence in rule(items)]


def values_with_secrets(tree: object, place: str = "") -> Iterator[str]:
    """Places in a values file that hold a secret itself and not the name of one."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            here = f"{place}.{key}".lstrip(".")
            named = _SECRET_KEY.search(str(key)) and key != "secretKey"  # external-secrets' word for a name
            if isinstance(value, str) and value and named and not _REFERENCE.match(value):
                yield f"{here} holds a secret; name the Secret that has it"
            yield from values_with_secrets(value, here)
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from values_with_secrets(value, f"{place}[{index}]")
    elif isinstance(tree, str) and _SECRET_TEXT.search(tree) and "{{" not in tree:
        yield f"{place} looks like a secret; name the Secret that has it"


def _name(item: Object) -> str:
    return f"{item['kind']} {item['metadata']['name']}"


def _kind(items: list[Object], kind: str) -> Iterator[Object]:
    return (item for item in items if item["kind"] == kind)


def _containers(items: list[Object]) -> Iterator[tuple[str, Object]]:
    for item in items:
        for pod in pods(item):
            for container in (*pod.get("initContainers", ()), *pod["containers"]):
                yield f"{_name(item)}, container {container['name']}", container


def _restricted_pods(items: list[Object]) -> Iterator[str]:
    for item in items:
        for pod in pods(item):
            context = pod.get("securityContext", {})
            if context.get("runAsNonRoot") is not True:
                yield f"{_name(item)} may run as root"
            if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
                yield f"{_name(item)} has no seccomp profile"
            if any(pod.get(field) for field in ("hostNetwork", "hostPID", "hostIPC")):
                yield f"{_name(item)} shares a namespace of its node"
            if any("hostPath" in volume for volume in pod.get("volumes", ())):
                yield f"{_name(item)} mounts a folder of its node"


def _restricted_containers(items: list[Object]) -> Iterator[str]:
    for name, container in _containers(items):
        context = container.get("securityContext", {})
        wanted = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        for field, value in wanted.items():
            if context.get(field) != value:
                yield f"{name}: securityContext.{field} is {context.get(field)}, not {value}"
        if context.get("privileged"):
            yield f"{name} is privileged"


def _tokens(items: list[Object]) -> Iterator[str]:
    for item in items:
        specs = [item] if item["kind"] == "ServiceAccount" else list(pods(item))
        # The operator gives a Ray head the account with which it asks for workers.
        for spec in specs[1:] if item["kind"] == "RayCluster" else specs:
            if spec.get("automountServiceAccountToken") is not False:
                yield f"{_name(item)} mounts a token of the cluster"


def _images(items: list[Object]) -> Iterator[str]:
    for name, container in _containers(items):
        repository, at, _ = container["image"].partition("@")
        tag = repository.rpartition("/")[2].partition(":")[2]
        if not at and tag in {"", "latest"}:
            yield f"{name}: image {container['image']} is pinned to nothing"


def _resources(items: list[Object]) -> Iterator[str]:
    for name, container in _containers(items):
        for part in ("requests", "limits"):
            for amount in ("cpu", "memory"):
                if amount not in container.get("resources", {}).get(part, {}):
                    yield f"{name} has no {part}.{amount}"


def _secrets(items: list[Object]) -> Iterator[str]:
    for item in _kind(items, "Secret"):
        yield f"{_name(item)} is rendered; it would be in the release's history"
    for name, container in _containers(items):
        for entry in container.get("env", ()):
            if entry.get("value") and _SECRET_KEY.search(entry["name"]):
                yield f"{name}: {entry['name']} is written out"
    for item in items:
        yield from (f"{_name(item)}: {found}" for found in values_with_secrets(item.get("spec") or item.get("data")))


def _namespaces(items: list[Object]) -> Iterator[str]:
    for item in _kind(items, "Namespace"):
        name, level = item["metadata"]["name"], item["metadata"]["labels"].get("pod-security.kubernetes.io/enforce")
        if level not in {"restricted", "baseline", "privileged"}:
            yield f"Namespace {name} has no level of Pod Security"
        denied = {
            direction
            for policy in _kind(items, "NetworkPolicy")
            if policy["metadata"]["namespace"] == name and policy["spec"]["podSelector"] == {}
            for direction in policy["spec"]["policyTypes"]
        }
        if "Ingress" not in denied:
            yield f"Namespace {name} has no policy for what may come in"
    for policy in _kind(items, "NetworkPolicy"):
        for rule in policy["spec"].get("ingress", ()):
            if not rule.get("from"):
                yield f"{_name(policy)} lets in the whole world"


def _workload_namespaces(items: list[Object]) -> Iterator[str]:
    namespaces = {item["metadata"]["name"] for item in _kind(items, "Namespace")}
    for name in namespaces & {"wmtp", "mlflow", "airflow", "ray", "database"}:
        deny = [
            policy
            for policy in _kind(items, "NetworkPolicy")
            if (policy["metadata"]["namespace"], policy["metadata"]["name"]) == (name, "default-deny")
        ]
        if not deny or deny[0]["spec"] != {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}:
            yield f"Namespace {name} does not deny everything by default"


def _ways_out(items: list[Object]) -> Iterator[str]:
    for policy in _kind(items, "NetworkPolicy"):
        spec, place = policy["spec"], (policy["metadata"]["namespace"], policy["metadata"]["name"])
        name = f"{_name(policy)} of {place[0]}"
        for rule in spec.get("egress", ()):
            if not rule.get("to"):
                yield f"{name} lets out into the whole world"
            blocks = [peer["ipBlock"] for peer in rule.get("to", ()) if "ipBlock" in peer]
            for block in (block for block in blocks if ip_network(block["cidr"]).prefixlen < 8):
                if _WAYS_OUT.get(place) != spec["podSelector"]:
                    yield f"{name} opens the internet ({block['cidr']})"
                if not set(block.get("except", ())) >= _PRIVATE:
                    yield f"{name} opens private networks with the internet"
            if "sandbox" in str(spec["podSelector"]) and (
                len(blocks) < len(rule.get("to", ())) or any(ip_network(block["cidr"]).is_private for block in blocks)
            ):
                yield f"{name} lets generated code reach what is inside"


def _exposure(items: list[Object]) -> Iterator[str]:
    for service in _kind(items, "Service"):
        if service["spec"].get("type", "ClusterIP") != "ClusterIP":
            yield f"{_name(service)} is a {service['spec']['type']}"
    for ingress in _kind(items, "Ingress"):
        notes = {key.rpartition("/")[2]: value for key, value in ingress["metadata"]["annotations"].items()}
        if notes.get("ssl-redirect") != "443" or not notes.get("certificate-arn"):
            yield f"{_name(ingress)} answers without TLS"
        if "TLS13" not in notes.get("ssl-policy", ""):
            yield f"{_name(ingress)} takes old versions of TLS"
        if notes.get("scheme") != "internal" and not notes.get("inbound-cidrs"):
            yield f"{_name(ingress)} is open to the internet"


def _ray(items: list[Object]) -> Iterator[str]:
    for cluster in _kind(items, "RayCluster"):
        head = cluster["spec"]["headGroupSpec"]
        if head.get("serviceType") != "ClusterIP" or head.get("enableIngress") is not False:
            yield f"{_name(cluster)} exposes its head"
        if head["rayStartParams"].get("dashboard-host") != "127.0.0.1":
            yield f"{_name(cluster)} shows its dashboard to other pods"
        if cluster["spec"].get("authOptions", {}).get("mode") != "token":
            yield f"{_name(cluster)} asks for no token"
        name = cluster["metadata"]["name"]
        own = {"podSelector": {"matchLabels": {"ray.io/cluster": name}}}
        policies = [policy["spec"] for policy in _kind(items, "NetworkPolicy")]
        if not any(
            spec["podSelector"] == own["podSelector"] and spec["ingress"] == [{"from": [own]}] for spec in policies
        ):
            yield f"{_name(cluster)} is reached by other pods than its own"


def _nodes(items: list[Object]) -> Iterator[str]:
    for node in _kind(items, "EC2NodeClass"):
        metadata = node["spec"].get("metadataOptions", {})
        if (metadata.get("httpTokens"), metadata.get("httpPutResponseHopLimit")) != ("required", 1):
            yield f"{_name(node)} gives its credentials to pods"
        if not all(disk["ebs"].get("encrypted") for disk in node["spec"]["blockDeviceMappings"]):
            yield f"{_name(node)} has a disk that is not encrypted"
        if any("latest" in term.get("alias", "") for term in node["spec"]["amiSelectorTerms"]):
            yield f"{_name(node)} takes whatever image is newest"
    for storage in _kind(items, "StorageClass"):
        if storage["parameters"].get("encrypted") != "true":
            yield f"{_name(storage)} makes disks that are not encrypted"
    for pool in _kind(items, "NodePool"):
        if not pool["spec"].get("limits"):
            yield f"{_name(pool)} may grow without end"


def _rights(items: list[Object]) -> Iterator[str]:
    for item in items:
        if item["kind"] in {"ClusterRole", "ClusterRoleBinding"}:
            yield f"{_name(item)} holds in every namespace"
        if item["kind"] == "Role":
            for rule in item["rules"]:
                if "*" in (*rule["resources"], *rule["verbs"], *rule["apiGroups"]):
                    yield f"{_name(item)} allows everything of something"
                if {"secrets", "pods/exec", "pods/attach"} & set(rule["resources"]):
                    yield f"{_name(item)} reads secrets or enters pods"
        if item["kind"] == "RoleBinding" and any(subject["name"] == "wmtp-judge" for subject in item["subjects"]):
            yield f"{_name(item)} gives rights to the account that runs generated code"


RULES: tuple[Callable[[list[Object]], Iterator[str]], ...] = (
    _restricted_pods, _restricted_containers, _tokens, _images, _resources, _secrets, _namespaces, _workload_namespaces,
    _ways_out, _exposure, _ray, _nodes, _rights,
)  # fmt: skip
