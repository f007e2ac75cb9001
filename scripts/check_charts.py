"""The steps of `make check-infra` that judge charts/, each a function of the tree that says in a line what it saw.

A step raises `Fault` with what is wrong, or `Skipped` with what this machine lacks.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from scripts import chart_policy, upstream_charts
from scripts.charts import KUBERNETES, objects, releases, render
from scripts.infra_step import CHECKOUT, Fault, Skipped, Unpinned, run, tool

# Their definitions are not in tests/infra/schemas: what can be known of them is held to the policy and to promtool.
_WITHOUT_SCHEMA = ("ServiceMonitor", "PrometheusRule", "ExternalSecret", "ClusterSecretStore", "Password")
# Which sets of values make one cluster.
_DEPLOYMENTS = ({"prod", "spot"}, {"dev", "spot"}, {"public", "private-git", "fixed"})
_SCHEMAS = CHECKOUT / "tests" / "infra" / "schemas"


def check_yaml(root: Path) -> str:
    """yamllint over all YAML of charts and of the checks but templates."""
    yamllint = tool("yamllint")
    folders = [folder for folder in ("charts", "tests/infra", ".github") if (root / folder).exists()]
    run([yamllint, "--strict", "--config-file", str(CHECKOUT / ".yamllint.yaml"), *folders], cwd=root)
    for release in releases(root):
        try:
            run([yamllint, "--config-data", "{rules: {key-duplicates: enable}}", "-"], input=render(release))
        except Fault as error:
            raise Fault(f"{release}: {error}") from error
    return "files, and no key twice in what they render to"


def check_lint(root: Path) -> str:
    """Helm lint, strict, with each set of values."""
    for release in releases(root):
        run([tool("helm"), "lint", "--strict", "--quiet", str(release.folder), *release.options()])
    return f"{len(releases(root))} sets of values"


def check_defaults_refused(root: Path) -> str:
    """A chart without a deployment's values must say what is missing, not render something."""
    charts = sorted({release.folder for release in releases(root)})
    for chart in charts:
        ended = subprocess.run([tool("helm"), "template", str(chart)], capture_output=True, text=True, check=False)
        if not ended.returncode:
            raise Fault(f"{chart.name} renders without any values; its schema requires too little")
    return f"{len(charts)} charts"


def check_schemas(root: Path) -> str:
    """Built-in kinds against Kubernetes' schemas, custom ones against their definitions."""
    python = CHECKOUT / ".venv-infra" / "bin" / "python"
    if not python.exists():
        raise Skipped("there is no .venv-infra; `make check-infra` makes it")
    command = [str(python), str(CHECKOUT / "scripts" / "manifests.py"), "--kubernetes", KUBERNETES]
    command += ["--definitions", str(_SCHEMAS), "--without-schema", *_WITHOUT_SCHEMA]
    said = run(command, input="\n---\n".join(map(render, releases(root)))).strip()
    return f"{said} ({', '.join(_WITHOUT_SCHEMA)})"


def check_policy(root: Path) -> str:
    """Our own rules over rendered objects and over every file of values."""
    found = [
        f"{release}: {sentence}"
        for release in releases(root)
        for sentence in chart_policy.violations(objects(render(release)))
    ]
    files = sorted((root / "charts").rglob("*values*.yaml"))
    for file in files:
        tree = yaml.safe_load(file.read_text())
        found += [f"{file.relative_to(root)}: {sentence}" for sentence in chart_policy.values_with_secrets(tree)]
    if found:
        raise Fault("\n".join(found))
    return f"{len(chart_policy.RULES)} rules over {len(releases(root))} renderings, secrets in {len(files)} files"


def check_checkov(root: Path) -> str:
    """Checkov over the charts of one deployment at once, since the policies of one hold for pods of another."""
    checkov = tool("checkov")
    with tempfile.TemporaryDirectory() as folder:
        for number, values in enumerate(_DEPLOYMENTS):
            of_deployment = [release for release in releases(root) if release.values in values]
            text = "\n---\n".join(render(release) for release in of_deployment)
            (Path(folder) / f"{number}.yaml").write_text(text)
        options = ["--framework", "kubernetes", "--compact", "--quiet", "--skip-download"]
        said = run([checkov, "--directory", folder, *options])
    (counts,) = re.findall(r"Passed checks: (\d+), Failed checks: 0, Skipped checks: (\d+)", said)
    return f"{counts[0]} passed, {counts[1]} skipped with a reason beside the object"


def check_alerts(root: Path) -> str:
    """The rules fire on the series that they are for, and the dashboards' expressions can be read."""
    promtool, chart = tool("promtool"), root / "charts" / "ml-platform"
    run([promtool, "check", "rules", "--lint-fatal", str(chart / "files" / "rules.yaml")])
    run([promtool, "test", "rules", str(chart / "tests" / "rules_test.yaml")])
    groups = yaml.safe_load((chart / "files" / "rules.yaml").read_text())["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"]}
    tested = set(re.findall(r"alertname: (\w+)", (chart / "tests" / "rules_test.yaml").read_text()))
    if alerts != tested:
        raise Fault(f"alerts without a test, or tests without an alert: {', '.join(sorted(alerts ^ tested))}")
    expressions = list(_dashboard_expressions(chart / "dashboards"))
    rules = [{"record": f"panel:{index}", "expr": text} for index, text in enumerate(expressions)]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}, file)
        file.flush()
        run([promtool, "check", "rules", "--lint=none", file.name])
    return f"{len(alerts)} alerts, all tested; {len(expressions)} expressions of dashboards"


def _dashboard_expressions(folder: Path) -> Iterator[str]:
    for file in sorted(folder.glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            yield from (target["expr"] for target in panel["targets"])


def check_upstream(root: Path) -> str:
    """The lock, and Airflow's values against the schema of its chart, whose top level lets any key pass."""
    found = list(upstream_charts.faults(root))
    schema = json.loads(gzip.decompress((_SCHEMAS / "airflow-chart-1.22.0.values.schema.json.gz").read_bytes()))
    folder = root / "charts" / "upstream"
    for layers in (["airflow"], ["airflow", "airflow-local-executor"]):
        values: dict[str, Any] = {}
        for file in (*(folder / f"{layer}.values.yaml" for layer in layers), folder / "ci" / "airflow-values.yaml"):
            _lay_over(values, yaml.safe_load(file.read_text()))
        errors = jsonschema.Draft7Validator(schema).iter_errors(values)
        found += [f"{layers[-1]}: {error.json_path}: {error.message[:200]}" for error in errors]
        found += [f"{layers[-1]}: the chart knows no {key}" for key in set(values) - set(schema["properties"])]
    if found:
        raise Fault("\n".join(found))
    entries = upstream_charts.locked(root)
    if empty := [entry.name for entry in entries if not entry.digest]:
        raise Unpinned(
            f"NOT PINNED YET: no digest of {len(empty)} of {len(entries)} charts ({', '.join(empty)}); `make pins` fills it in, "
            "review the archives and commit it. Airflow's values fit"
        )
    return f"{len(entries)} charts locked; Airflow's values fit"


def _lay_over(below: dict[str, Any], above: dict[str, Any]) -> None:
    """As helm lays values over others: mappings are joined, all else is replaced."""
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _lay_over(below[key], value)
        else:
            below[key] = value


STEPS: dict[str, Callable[[Path], str]] = {
    "charts: yamllint": check_yaml,
    "charts: helm lint --strict": check_lint,
    "charts: refuse missing values": check_defaults_refused,
    "charts: schemas": check_schemas,
    "charts: policy": check_policy,
    "charts: checkov": check_checkov,
    "charts: alerts": check_alerts,
    "charts: upstream": check_upstream,
}
