"""Where pods of a profile may run: nodes as the API server tells of them, NodePools as Karpenter has them."""

from __future__ import annotations

import json
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from kubernetes.client import ApiClient
from kubernetes.client import models as k8s

from mlops_tasks.config.kubernetes import Profile
from mlops_tasks.placement import Place, quantity

GPU: dict[str, Any] = {"image": "i", "requests": {"cpu": "6", "memory": "24Gi", "nvidia.com/gpu": "1"}}
TOLERANT: dict[str, Any] = {**GPU, "tolerations": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]}
GPU_TAINT = {"key": "nvidia.com/gpu", "value": "true", "effect": "NoSchedule"}


def node(
    *, allocatable: dict[str, str] | None = None, is_ready: bool = True, labels: Any = None, **spec: Any
) -> k8s.V1Node:
    offered = {"cpu": "7910m", "memory": "31482284Ki", "nvidia.com/gpu": "1", **(allocatable or {})}
    tree = {
        "metadata": {"name": "a", "labels": labels or {}},
        "spec": spec,
        "status": {
            "allocatable": offered,
            "conditions": [
                {"type": "MemoryPressure", "status": "False"},
                {"type": "Ready", "status": "True" if is_ready else "Unknown"},
            ],
        },
    }
    found: k8s.V1Node = ApiClient().deserialize(SimpleNamespace(data=json.dumps(tree)), k8s.V1Node)
    return found


@pytest.mark.parametrize(
    ("one", "profile", "refusal"),
    [
        (node(), GPU, None),
        (node(labels={"pool": "gpu"}), {**GPU, "node_selector": {"pool": "gpu"}}, None),
        (node(labels={"pool": "cpu"}), {**GPU, "node_selector": {"pool": "gpu"}}, "has no label pool=gpu"),
        (node(allocatable={"nvidia.com/gpu": "0"}), GPU, "offers nvidia.com/gpu: 0"),
        (node(allocatable={"cpu": "3920m"}), GPU, "offers cpu: 3920m"),
        (node(unschedulable=True), GPU, "is cordoned (`kubectl uncordon`)"),
        (node(is_ready=False), GPU, "is not ready"),
        (node(taints=[GPU_TAINT]), GPU, "has the taint nvidia.com/gpu:NoSchedule, which the profile does not tolerate"),
        (node(taints=[GPU_TAINT]), TOLERANT, None),
        (node(taints=[{**GPU_TAINT, "effect": "NoExecute"}]), TOLERANT, "has the taint nvidia.com/gpu:NoExecute, which the profile does not tolerate"),
        (node(taints=[{**GPU_TAINT, "effect": "PreferNoSchedule"}]), GPU, None),
        (node(taints=[GPU_TAINT]), {**GPU, "tolerations": [{"key": "nvidia.com/gpu", "operator": "Equal", "value": "false"}]}, "has the taint nvidia.com/gpu:NoSchedule, which the profile does not tolerate"),
        (node(taints=[GPU_TAINT]), {**GPU, "tolerations": [{"key": "nvidia.com/gpu", "operator": "Equal", "value": "true"}]}, None),
    ],
)  # fmt: skip
def test_a_node_takes_pods_or_says_why_not(one: k8s.V1Node, profile: dict[str, Any], refusal: str | None) -> None:
    assert Place.of_node(one, Profile.model_validate(profile)).refusal == refusal


def pool(*requirements: dict[str, Any], labels: Any = None, taints: Any = (), limits: Any = None) -> dict[str, Any]:
    """As `kubectl get nodepool -o json` has it."""
    arch = {"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]}
    return {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodePool",
        "metadata": {"name": "p"},
        "spec": {
            "template": {
                "metadata": {"labels": labels or {}},
                "spec": {
                    "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "c"},
                    "requirements": [arch, *requirements],
                    **({"taints": taints} if taints else {}),
                },
            },
            **({"limits": limits} if limits else {}),
        },
    }


def buys(what: str, operator: str, *values: str) -> dict[str, Any]:
    return {"key": f"karpenter.k8s.aws/instance-{what}", "operator": operator, "values": list(values)}


CPU_POOL = pool(buys("category", "In", "c", "m", "r"), labels={"wmtp.io/pool": "cpu"}, limits={"cpu": "256"})
GPU_POOL = pool(
    buys("family", "In", "g5", "g6"), buys("gpu-count", "Lt", "5"),
    labels={"wmtp.io/pool": "gpu"}, taints=[GPU_TAINT], limits={"nvidia.com/gpu": 5},
)  # fmt: skip


@pytest.mark.parametrize(
    ("one", "profile", "refusal", "is_sure"),
    [
        (GPU_POOL, TOLERANT, None, True),
        (GPU_POOL, GPU, "has the taint nvidia.com/gpu:NoSchedule, which the profile does not tolerate", True),
        (GPU_POOL, {**TOLERANT, "node_selector": {"wmtp.io/pool": "gpu"}}, None, True),
        (GPU_POOL, {**TOLERANT, "node_selector": {"wmtp.io/pool": "cpu"}}, "its nodes have no label wmtp.io/pool=cpu", True),
        (GPU_POOL, {**TOLERANT, "node_selector": {"kubernetes.io/arch": "arm64"}}, "its nodes have no label kubernetes.io/arch=arm64", True),
        (GPU_POOL, {**TOLERANT, "node_selector": {"topology.kubernetes.io/zone": "eu-central-1a"}}, None, True),
        (GPU_POOL, {**TOLERANT, "node_selector": {"karpenter.sh/nodepool": "q"}}, "its nodes have no label karpenter.sh/nodepool=q", True),
        (GPU_POOL, {**TOLERANT, "node_selector": {"disk": "fast"}}, "its nodes have no label disk=fast", True),
        (GPU_POOL, {**TOLERANT, "requests": {"nvidia.com/gpu": "8"}}, "its limit of nvidia.com/gpu is 5", True),
        (CPU_POOL, GPU, "what it buys has no nvidia.com/gpu", False),
        (CPU_POOL, {"image": "i", "requests": {"cpu": "2"}}, None, True),
        (pool(buys("family", "In", "g4ad", "c7i")), GPU, "what it buys has no nvidia.com/gpu", False),
        (pool(buys("gpu-name", "DoesNotExist")), GPU, "what it buys has no nvidia.com/gpu", False),
        (pool(buys("category", "In", "c", "p")), GPU, None, True),
        (pool({"key": "node.kubernetes.io/instance-type", "operator": "In", "values": ["g6.xlarge"]}), GPU, None, True),
        (pool({"key": "disk", "operator": "In", "values": ["fast", "slow"]}), {"image": "i", "requests": {"cpu": "2"}, "node_selector": {"disk": "fast"}}, None, True),
        (pool(), GPU, None, False),
        (pool(limits={"vpc.amazonaws.com/efa": 4}), {"image": "i", "requests": {"vpc.amazonaws.com/efa": "1"}}, None, True),
        (pool(), {"image": "i", "requests": {"vpc.amazonaws.com/efa": "1"}}, None, False),
    ],
)  # fmt: skip
def test_a_node_pool_makes_a_node_for_pods_or_says_why_not(
    one: dict[str, Any], profile: dict[str, Any], refusal: str | None, is_sure: bool
) -> None:
    found = Place.of_pool(one, Profile.model_validate(profile))
    assert (found.refusal, found.is_sure) == (refusal, is_sure)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7", "7"), ("1.5k", "1500"), ("2M", "2e6"), ("3G", "3e9"), ("4T", "4e12"), ("1P", "1e15"), ("2E", "2e18"), ("1E3", "1000"), ("1e3", "1000"),
        ("100m", "0.1"), ("500u", "0.0005"), ("7n", "0.000000007"), ("1Ki", "1024"), ("1Gi", "1073741824"), ("5Pi", "5629499534213120"), ("1Ei", "1152921504606846976"),
    ],
)  # fmt: skip
def test_every_unit_of_kubernetes_is_read(text: str, number: str) -> None:
    assert quantity(text) == Decimal(number)
