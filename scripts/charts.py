"""The charts as a cluster would get them: which values are tried, how they are rendered, and where the tools are.

A chart's `ci/<name>-values.yaml` holds what a deployment adds; `values-<name>.yaml`, if there is one, lies beneath it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mlops_tasks.errors import UserError

CHECKOUT = Path(__file__).resolve().parents[1]
KUBERNETES = "1.35"
# Where tools may lie that are not on PATH: the environment of the checks, and a folder of tools beside the checkout.
_TOOLS = (CHECKOUT / ".venv-infra" / "bin", CHECKOUT.parent / "shared" / "tools" / "bin")
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


def tool(name: str) -> str | None:
    """The path of a program, or None where this machine has none."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *map(str, _TOOLS)]))


def need(name: str) -> str:
    """The path of a program that the checks cannot do without.

    Raises:
        UserError: this machine has none.
    """
    found = tool(name)
    if not found:
        raise UserError(f"There is no {name} on PATH or in .venv-infra/bin. `make infra-tools` says how to get it.")
    return found


def render(release: Release, *options: str) -> str:
    """The manifests, as `helm template` writes them.

    Raises:
        subprocess.CalledProcessError: the chart refuses the values; helm's words are its `stderr`.
    """
    command = [need("helm"), "template", release.chart, str(release.folder), "--namespace", _NAMESPACES[release.chart]]
    command += ["--kube-version", KUBERNETES, *release.options(), *options]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


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
