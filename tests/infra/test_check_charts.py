"""The checks of the charts pass on the charts, and each finds the fault that it is for."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from scripts.check_charts import STEPS, check_upstream
from scripts.infra_step import CHECKOUT, Fault, Skipped, Unpinned
from scripts.upstream_charts import faults

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("helm")]


@dataclass(frozen=True)
class Seed:
    """A fault: in a file under charts/, `old` becomes `new`, and a step says `match`."""

    step: str
    file: str
    old: str
    new: str
    match: str


_DEPLOYMENT, _NODES, _POLICIES = (
    "mlflow/templates/deployment.yaml",
    "ml-platform/templates/nodes.yaml",
    "ml-platform/templates/networkpolicies.yaml",
)
_HELPERS, _RAY, _RULES = (
    "mlflow/templates/_helpers.tpl",
    "ray-cluster/templates/raycluster.yaml",
    "ml-platform/files/rules.yaml",
)
SEEDS = (
    Seed("charts: yamllint", "mlflow/values.yaml", "  workers: 2", "  workers: 2\n  workers: 3", "duplication of key"),
    Seed("charts: yamllint", _DEPLOYMENT, "  revisionHistoryLimit: 5", "  revisionHistoryLimit: 5\n  revisionHistoryLimit: 6", "(?i)dup"),
    Seed("charts: helm lint --strict", "mlflow/ci/prod-values.yaml", "image:", "imagee:", "imagee"),
    Seed("charts: helm lint --strict", "mlflow/ci/dev-values.yaml", "s3://", "file://", "artifacts/destination"),
    Seed("charts: policy", "mlflow/ci/public-values.yaml", "inboundCidrs: [198.51.100.0/24]", "inboundCidrs: []", "inboundCidrs is empty"),
    Seed("charts: helm lint --strict", "mlflow/ci/prod-values.yaml", "[10.0.0.0/20, 10.0.16.0/20, 10.0.32.0/20]", "[0.0.0.0/0]", "loadBalancerCidrs"),
    Seed("charts: helm lint --strict", "ml-platform/ci/prod-values.yaml", "amiVersion: v20261001", "amiVersion: latest", "amiVersion"),
    Seed("charts: helm lint --strict", "ray-cluster/ci/fixed-values.yaml", "maximum: 2", "maximum: 6", "maximum"),
    Seed("charts: refuse missing values", "ray-cluster/values.schema.json", '"pattern"', '"$comment"', "ray-cluster renders without any values"),
    Seed("charts: schemas", _DEPLOYMENT, "enableServiceLinks: false", "enableServiceLink: false", "enableServiceLink"),
    Seed("charts: schemas", "mlflow/templates/autoscaling.yaml", "maxUnavailable: 1", "maxUnavailable: [1]", "PodDisruptionBudget"),
    Seed("charts: schemas", _NODES, "expireAfter:", "expiresAfter:", "NodePool cpu.*expiresAfter"),
    Seed("charts: schemas", "ml-platform/templates/queues.yaml", "nominalQuota: {{ $amounts.cpu | quote }}", "quota: {{ $amounts.cpu | quote }}", "ClusterQueue"),
    Seed("charts: schemas", _RAY, "rayStartParams: {}", "rayStartParmas: {}", "RayCluster.*rayStartParmas"),
    Seed("charts: schemas", "ml-platform/templates/queues.yaml", "v1beta2", "v1beta9", "there is no schema of"),
    Seed("charts: policy", _HELPERS, "runAsNonRoot: true\nrunAsUser", "runAsUser", "may run as root"),
    Seed("charts: policy", _HELPERS, "seccompProfile: {type: RuntimeDefault}", "", "has no seccomp profile"),
    Seed("charts: policy", _HELPERS, "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", "readOnlyRootFilesystem is False"),
    Seed("charts: policy", _HELPERS, "allowPrivilegeEscalation: false", "privileged: true", "is privileged"),
    Seed("charts: policy", _DEPLOYMENT, "emptyDir: {sizeLimit: 64Mi}", "hostPath: {path: /var/lib}", "mounts a folder of its node"),
    Seed("charts: policy", _DEPLOYMENT, "      automountServiceAccountToken: false\n", "", "Deployment mlflow mounts a token"),
    Seed("charts: policy", _DEPLOYMENT, "image: {{ .Values.image }}", "image: example.com/mlflow:latest", "pinned to nothing"),
    Seed("charts: policy", "mlflow/templates/migration.yaml", "resources: {{- toYaml .Values.migration.resources | nindent 12 }}", "resources: {}", "has no requests.cpu"),
    Seed("charts: policy", "upstream/kube-prometheus-stack.values.yaml", "grafana:\n", "grafana:\n  adminPassword: hunter2\n", "grafana.adminPassword holds a secret"),
    Seed("charts: policy", "upstream/airflow.values.yaml", "data: {metadataSecretName: airflow-metadata}", "data: {metadataConnection: {pass: x, uri: 'postgresql://me:word@host/airflow'}}", "looks like a secret"),
    Seed("charts: policy", _DEPLOYMENT, '- {name: MLFLOW_LOGGING_LEVEL, value: {{ .Values.server.logLevel }}}', '- {name: MLFLOW_AUTH_ADMIN_PASSWORD, value: hunter2hunter2}', "is written out"),
    Seed("charts: policy", _POLICIES, "  name: default-deny\n  namespace: {{ $namespace }}\n  labels: {{- include \"platform.labels\" $ | nindent 4 }}\nspec:\n  podSelector: {}\n  policyTypes: [Ingress, Egress]", "  name: default-deny\n  namespace: {{ $namespace }}\nspec:\n  podSelector: {}\n  policyTypes: [Egress]", "Namespace mlflow has no policy for what may come in"),
    Seed("charts: policy", "ml-platform/templates/_helpers.tpl", "{cidr: {{ .Values.network.vpcCidr }}}", "{cidr: 0.0.0.0/0}", "NetworkPolicy stages of wmtp opens the internet"),
    Seed("charts: policy", "ml-platform/templates/_helpers.tpl", "{cidr: {{ .Values.network.vpcCidr }}}", "{cidr: 0.0.0.0/1}", "NetworkPolicy aws of ray opens the internet"),
    Seed("charts: policy", "mlflow/templates/networkpolicy.yaml", "- ipBlock: {cidr: {{ . }}}\n        {{- end }}\n      ports: [{port: 443}]", "- ipBlock: {cidr: 0.0.0.0/0}\n        {{- end }}\n      ports: [{port: 443}]", "NetworkPolicy mlflow of mlflow opens the internet"),
    Seed("charts: policy", _POLICIES, "{matchLabels: {wmtp.io/stage: pull}}", "{}", "NetworkPolicy pull of wmtp opens the internet"),
    Seed("charts: policy", "ml-platform/templates/_helpers.tpl", "except: [10.0.0.0/8, ", "except: [", "opens private networks"),
    Seed("charts: policy", _POLICIES, 'egress: {{- include "platform.s3Egress" . | nindent 4 }}', 'egress: {{- include "platform.awsEgress" . | nindent 4 }}', "lets generated code reach what is inside"),
    Seed("charts: policy", _POLICIES, "    - to: [{podSelector: {matchLabels: {wmtp.io/profile: gpu-multinode}}}]", "    - {}", "ranks of wmtp lets out into the whole world"),
    Seed("charts: helm lint --strict", "ml-platform/ci/prod-values.yaml", "vpcCidr: 10.0.0.0/16", "vpcCidr: 0.0.0.0/0", "network/vpcCidr"),
    Seed("charts: policy", "ml-platform/templates/_helpers.tpl", "level: restricted, ports: [10250]", "level: '', ports: [10250]", "has no level of Pod Security"),
    Seed("charts: policy", "mlflow/templates/service.yaml", "type: ClusterIP", "type: LoadBalancer", "is a LoadBalancer"),
    Seed("charts: policy", "mlflow/templates/ingress.yaml", 'ssl-redirect: "443"', 'ssl-redirect: ""', "answers without TLS"),
    Seed("charts: policy", "mlflow/templates/ingress.yaml", "ELBSecurityPolicy-TLS13-1-2-2021-06", "ELBSecurityPolicy-2016-08", "old versions of TLS"),
    Seed("charts: policy", _RAY, "dashboard-host: 127.0.0.1", "dashboard-host: 0.0.0.0", "shows its dashboard"),
    Seed("charts: policy", _RAY, "enableIngress: false", "enableIngress: true", "exposes its head"),
    Seed("charts: policy", _RAY, "mode: token", "mode: disabled", "asks for no token"),
    Seed("charts: policy", "ray-cluster/templates/networkpolicy.yaml", "    - from: [{podSelector: {matchLabels: {ray.io/cluster: {{ .Release.Name }}}}}]", "    - from: [{namespaceSelector: {}}]", "reached by other pods"),
    Seed("charts: policy", _NODES, "httpPutResponseHopLimit: 1", "httpPutResponseHopLimit: 2", "gives its credentials to pods"),
    Seed("charts: policy", _NODES, "encrypted: true", "encrypted: false", "not encrypted"),
    Seed("charts: policy", "ml-platform/templates/storage.yaml", 'encrypted: "true"', 'encrypted: "false"', "makes disks that are not encrypted"),
    Seed("charts: policy", _NODES, "limits: {nvidia.com/gpu: {{ $pool.limit }}}", "limits: {}", "may grow without end"),
    Seed("charts: policy", "ml-platform/templates/accounts.yaml", "resources: [pods/log]", "resources: [pods/log, secrets]", "reads secrets"),
    Seed("charts: policy", "ml-platform/templates/accounts.yaml", "verbs: [create, get, list, delete]", "verbs: ['*']", "allows everything"),
    Seed("charts: policy", "ml-platform/templates/accounts.yaml", "subjects:\n", "subjects:\n  - {kind: ServiceAccount, name: wmtp-judge, namespace: wmtp}\n", "runs generated code"),
    Seed("charts: checkov", _HELPERS, "capabilities: {drop: [ALL]}", "capabilities: {add: [SYS_ADMIN]}", "CKV_K8S_39"),
    Seed("charts: checkov", _DEPLOYMENT, "    checkov.io/skip1: CKV_K8S_35=MLflow reads the administrator's name and Flask's key from the environment only\n", "    note: none\n", "CKV_K8S_35"),
    Seed("charts: alerts", _RULES, "  - name: queue", "  - name: pipeline", "(?i)repeated|duplicate"),
    Seed("charts: alerts", _RULES, "< 5\n", "< 95\n", "GpuIdle"),
    Seed("charts: alerts", _RULES, '{namespace="mlflow", deployment="mlflow"} == 0', '{namespace="mlflow"} < 0', "MlflowDown"),
    Seed("charts: alerts", "ml-platform/tests/rules_test.yaml", "alertname: GpuFault", "alertname: GpuIdle", "GpuFault|FAILED"),
    Seed("charts: alerts", "ml-platform/dashboards/wmtp-gpus.json", "max by (Hostname, gpu)", "max bye (Hostname, gpu)", "parse error"),
    Seed("charts: upstream", "upstream/airflow.values.yaml", "executor: KubernetesExecutor", "executr: KubernetesExecutor", "knows no executr"),
    Seed("charts: upstream", "upstream/airflow.values.yaml", "useHelmHooks: false", "useHelmHooks: no hooks", "useHelmHooks"),
    Seed("charts: upstream", "upstream.lock.yaml", "version: 1.22.0", "version: 1.x", "none that can be pinned"),
    Seed("charts: upstream", "upstream.lock.yaml", 'version: 1.22.0, digest: ""', 'version: 1.22.0, digest: "sha256:abc"', "is not sha256"),
    Seed("charts: upstream", "upstream.lock.yaml", "{name: kueue,", "{name: kueu,", "kueu is locked and has no"),
)  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_the_charts_pass(name: str) -> None:
    try:
        with suppress(Unpinned):
            STEPS[name](CHECKOUT)
    except Skipped as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize(
    "seed", SEEDS, ids=lambda seed: f"{seed.step.removeprefix('charts: ')}: {seed.new[:40].strip()}"
)
def test_a_seeded_fault_is_found_by_its_step(tmp_path: Path, seed: Seed) -> None:
    # The other charts have no part in it, and rendering them is what takes long.
    chart = Path(seed.file).parts[0].removesuffix(".lock.yaml")
    shutil.copytree(CHECKOUT / "charts" / chart, tmp_path / "charts" / chart)
    shutil.copy(CHECKOUT / "charts" / "upstream.lock.yaml", tmp_path / "charts")
    file = tmp_path / "charts" / seed.file
    text = file.read_text()
    assert seed.old in text, "the seed no longer fits the file"
    file.write_text(text.replace(seed.old, seed.new))

    try:
        with pytest.raises(Fault) as found:
            STEPS[seed.step](tmp_path)
    except Skipped as reason:
        pytest.skip(str(reason))
    assert re.search(seed.match, str(found.value)), str(found.value)[-1500:]


def test_every_step_has_a_seeded_fault() -> None:
    assert {seed.step for seed in SEEDS} == set(STEPS)


def test_a_chart_whose_archive_nobody_has_hashed_is_told(tmp_path: Path) -> None:
    shutil.copytree(CHECKOUT / "charts", tmp_path / "charts")
    lock = tmp_path / "charts" / "upstream.lock.yaml"
    lock.write_text(re.sub(r'digest: "[^"]*"', f'digest: "sha256:{"a" * 64}"', lock.read_text()))
    assert check_upstream(tmp_path) == "10 charts locked; Airflow's values fit"

    lock.write_text(re.sub(r'(name: kueue, .*digest: )"[^"]*"', r'\1""', lock.read_text()))

    with pytest.raises(
        Unpinned, match=r"NOT PINNED YET: no digest of 1 of 10 charts \(kueue\); `make pins` fills it in"
    ):
        check_upstream(tmp_path)


def test_production_refuses_a_chart_whose_archive_nobody_has_hashed(tmp_path: Path) -> None:
    shutil.copytree(CHECKOUT / "charts", tmp_path / "charts")
    lock = tmp_path / "charts" / "upstream.lock.yaml"
    filled = re.sub(r'digest: "[^"]*"', f'digest: "sha256:{"a" * 64}"', lock.read_text())
    lock.write_text(filled)
    assert not list(faults(tmp_path, production=True))

    lock.write_text(filled.replace(f'version: 1.22.0, digest: "sha256:{"a" * 64}"', 'version: 1.22.0, digest: ""'))

    assert [sentence[:29] for sentence in faults(tmp_path, production=True)] == ["airflow: the digest is empty;"]
    assert not list(faults(tmp_path))


@pytest.mark.parametrize("chart", ["mlflow", "ml-platform", "ray-cluster"])
def test_the_readme_of_a_chart_names_every_value_and_no_other(chart: str) -> None:
    folder = CHECKOUT / "charts" / chart
    values = set(_paths(yaml.safe_load((folder / "values.yaml").read_text())))
    rows = [line for line in (folder / "README.md").read_text().splitlines() if line.startswith("| `")]
    named = {path for row in rows for path in re.findall(r"`([^`]+)`", row.split("|")[1])}

    assert {path for path in named if not any(_covers(path, value) for value in values)} == set()
    assert {value for value in values if not any(_covers(path, value) for path in named)} == set()


def _covers(path: str, value: str) -> bool:
    return value == path or value.startswith(f"{path}.")


def _paths(tree: object, place: str = "") -> Iterator[str]:
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _paths(value, f"{place}.{key}".lstrip("."))
    else:
        yield place
