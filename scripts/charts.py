"""The charts as a cluster would get them: which values are tried, how they are rendered, and the pods that they make.

A chart's `ci/<name>-values.yaml` holds what a deployment adds; `values-<name>.yaml`, if there is one, lies beneath it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scripts.infra_step import CHECKOUT, run, tool

KUBERNETES = "1.35"
_NAMESPACES = {"mlflow": "mlflow", "ml-platform": "kube-system", "ray-cluster": "ray"}


@dataclass(frozen=True)
class Release:
    """One chart with one set of values."""

    chart: str
    values: str
    root: Path = CHECKOUT

    def __str__(self) -> str:
        return f"{self.chart} with {self.values}"

    @property
    def folder(self) -> Path:
        """Of the chart."""
        return self.root / "charts" / self.chart

    @property
    def files(self) -> list[Path]:
        """Its values, the later over the earlier."""
        own = self.folder / f"values-{self.values}.yaml"
        return [*([own] if own.exists() else []), self.folder / "ci" / f"{self.values}-values.yaml"]

    def options(self) -> list[str]:
        """What helm is told of them."""
        return [option for file in self.files for option in ("--values", str(file))]


def releases(root: Path = CHECKOUT) -> list[Release]:
    """Every chart of our own with every set of values that it is tried with."""
    found = sorted((root / "charts").glob("*/ci/*-values.yaml"))
    charts = [(file.parents[1], file.name.removesuffix("-values.yaml")) for file in found]
    return [Release(chart.name, values, root) for chart, values in charts if (chart / "Chart.yaml").exists()]


def render(release: Release, *options: str) -> str:
    """The manifests, as `helm template` writes them.

    Raises:
        Fault: the chart refuses the values; holds helm's words.
        Skipped: this machine has no helm.
    """
    command = [tool("helm"), "template", release.chart, str(release.folder), "--namespace", _NAMESPACES[release.chart]]
    command += ["--kube-version", KUBERNETES, *release.options(), *options]
    return run(command)


def objects(manifests: str) -> list[dict[str, Any]]:
    """The objects in a stream of manifests."""
    return [item for item in yaml.safe_load_all(manifests) if item]


def pods(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The pod specs that an object makes, and those of a Ray cluster's groups."""
    spec = item.get("spec") or {}
    if item["kind"] == "Pod":
        yield spec
    elif item["kind"] == "CronJob":
        yield spec["jobTemplate"]["spec"]["template"]["spec"]
    elif item["kind"] == "RayCluster":
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            yield group["template"]["spec"]
    elif "template" in spec and "spec" in spec["template"] and item["kind"] != "NodePool":
        yield spec["template"]["spec"]
