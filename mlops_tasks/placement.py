"""Whether pods of a profile may run on a node, or on one that Karpenter would make: labels, taints, and what the pods ask for.

Judges what the API server tells; asks nothing. Of a node that is not there yet only what its NodePool says is known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Self

from mlops_tasks.config.kubernetes import Profile, Toleration

_UNITS: Mapping[str, Decimal] = {
    **{
        unit: Decimal(1000) ** power for power, unit in enumerate(("n", "u", "m", "", "k", "M", "G", "T", "P", "E"), -3)
    },
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", 1)},
}
_GPU = "nvidia.com/gpu"
_KINDS_OF_INSTANCE = {
    "karpenter.k8s.aws/instance-category": re.compile(r"g|gr|p"),
    "karpenter.k8s.aws/instance-family": re.compile(r"(g(?!4ad)|gr|p)\d.*"),
    "node.kubernetes.io/instance-type": re.compile(r"(g(?!4ad)|gr|p)\d.*"),
}
"""By what a NodePool says what it buys, and which of it has GPUs of NVIDIA."""
_SET_BY_KARPENTER = (
    "kubernetes.io/",
    "node.kubernetes.io/",
    "topology.kubernetes.io/",
    "karpenter.sh/",
    "karpenter.k8s.aws/",
)


@dataclass(frozen=True)
class Place:
    """A node, or a NodePool, as a place for a profile's pods."""

    name: str
    refusal: str | None
    """Why it takes none; None: it does."""
    is_sure: bool = True
    """False: it may, and nothing that can be read says so."""

    @classmethod
    def of_node(cls, node: Any, profile: Profile) -> Self:
        """A node as the API server tells of it."""
        return cls(f"node {node.metadata.name}", _refusal_of_node(node, profile))

    @classmethod
    def of_pool(cls, pool: Mapping[str, Any], profile: Profile) -> Self:
        """A NodePool of Karpenter, as JSON."""
        refusal = _refusal_of_pool(pool, profile)
        is_sure = all(_brings(resource, pool) for resource in profile.requests if "/" in resource)
        return cls(f"NodePool {pool['metadata']['name']}", refusal, is_sure)


def _refusal_of_node(node: Any, profile: Profile) -> str | None:
    labels, offered = node.metadata.labels or {}, node.status.allocatable or {}
    is_ready = any(one.type == "Ready" and one.status == "True" for one in node.status.conditions or [])
    lacking = [name for name, value in profile.node_selector.items() if labels.get(name) != value]
    short = [name for name, wanted in profile.requests.items() if quantity(offered.get(name, "0")) < quantity(wanted)]
    if short:
        return f"offers {', '.join(f'{name}: {offered.get(name, 0)}' for name in short)}"
    if lacking:
        return f"has no label {', '.join(f'{name}={profile.node_selector[name]}' for name in lacking)}"
    if node.spec.unschedulable:
        return "is cordoned (`kubectl uncordon`)"
    if not is_ready:
        return "is not ready"
    taints = [(one.key, one.value, one.effect) for one in node.spec.taints or []]
    return _refusal_of_taints(taints, profile.tolerations)


def _refusal_of_pool(pool: Mapping[str, Any], profile: Profile) -> str | None:
    spec, limits = pool["spec"]["template"]["spec"], pool["spec"].get("limits", {})
    for label, value in profile.node_selector.items():
        if not _may_have(label, value, pool):
            return f"its nodes have no label {label}={value}"
    for resource in (one for one in profile.requests if "/" in one):
        if _brings(resource, pool) is False:
            return f"what it buys has no {resource}"
        limit = str(limits.get(resource, profile.requests[resource]))
        if quantity(limit) < quantity(profile.requests[resource]):
            return f"its limit of {resource} is {limit}"
    taints = [(one["key"], one.get("value"), one["effect"]) for one in spec.get("taints", [])]
    return _refusal_of_taints(taints, profile.tolerations)


def _refusal_of_taints(taints: Iterable[tuple[str, str | None, str]], given: Iterable[Toleration]) -> str | None:
    for key, value, effect in taints:
        if effect != "PreferNoSchedule" and not any(_tolerates(one, key, value, effect) for one in given):
            return f"has the taint {key}:{effect}, which the profile does not tolerate"
    return None


def _tolerates(given: Toleration, key: str, value: str | None, effect: str) -> bool:
    is_same = given.operator == "Exists" or (given.value or "") == (value or "")
    return given.key == key and given.effect in (None, effect) and is_same


def _may_have(label: str, value: str, pool: Mapping[str, Any]) -> bool:
    template = pool["spec"]["template"]
    labels = {**template.get("metadata", {}).get("labels", {}), "karpenter.sh/nodepool": pool["metadata"]["name"]}
    if label in labels:
        return bool(labels[label] == value)
    requirements = [one for one in template["spec"].get("requirements", []) if one["key"] == label]
    return all(_admits(one, value) for one in requirements) and bool(
        requirements or label.startswith(_SET_BY_KARPENTER)
    )


def _admits(requirement: Mapping[str, Any], value: str) -> bool:
    """Of the operators that compare numbers nothing is held against the value."""
    operator, values = requirement["operator"], requirement.get("values", [])
    return {"In": value in values, "NotIn": value not in values, "DoesNotExist": False}.get(operator, True)


def _brings(resource: str, pool: Mapping[str, Any]) -> bool | None:
    """Whether its nodes have some of a device; None: it does not say."""
    requirements = pool["spec"]["template"]["spec"].get("requirements", [])
    if resource == _GPU:
        for one in requirements:
            if one["key"].startswith("karpenter.k8s.aws/instance-gpu-"):
                return bool(one["operator"] != "DoesNotExist")
            kinds = _KINDS_OF_INSTANCE.get(one["key"])
            if kinds and one["operator"] == "In":
                return any(kinds.fullmatch(value) for value in one["values"])
    return True if resource in pool["spec"].get("limits", {}) else None


def quantity(text: str) -> Decimal:
    """A quantity of Kubernetes as a number.

    >>> quantity("2Ki") + quantity("1")
    Decimal('2049')
    """
    digits = text.rstrip("".join(set("".join(_UNITS))))
    return Decimal(digits) * _UNITS[text[len(digits) :]]
