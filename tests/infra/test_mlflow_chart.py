"""The chart's own command lines against real servers: what its Job and its pod run, run here as processes.

PostgreSQL and S3 are real. What a cluster would mount lies in folders, and paths in arguments and environment follow; what
Pod Identity would give, S3's keys, is added to the server's environment, and only there.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
from postgres_server import postgres
from s3_server import BUCKET, S3Server, free_ports

from scripts.charts import Release, objects, render

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("helm"),
]
ACCOUNTS = {
    "admin_username": "chief", "admin_password": "an-administrators-word",
    "pipeline_username": "pipeline", "pipeline_password": "the-pipelines-own-word",
    "flask_secret_key": "signs-sessions-of-every-replica",
}  # fmt: skip
DATABASES = {"mlflow": "what-opens-the-runs", "mlflow_auth": "what-opens-the-logins"}
WORDS = (ACCOUNTS["admin_password"], ACCOUNTS["pipeline_password"], ACCOUNTS["flask_secret_key"], *DATABASES.values())
CLIENT = """
import json, os, pathlib, sys
import mlflow
mlflow.set_experiment("wmtp/uniform/toy")
with mlflow.start_run() as run:
    mlflow.log_param("steps", 3)
    mlflow.log_metric("loss", 0.5, step=3)
    mlflow.log_text("one page", "report.html")
    model = mlflow.pyfunc.log_model(name="model", python_model=sys.argv[1], pip_requirements=[], input_example=["a"],
                                    registered_model_name="toy")
mlflow.MlflowClient().set_registered_model_alias("toy", "champion", 1)
loaded = mlflow.pyfunc.load_model("models:/toy@champion")
print("TOLD" + json.dumps({"run": run.info.run_id, "artifacts": run.info.artifact_uri, "says": list(loaded.predict(["a"])),
    "page": mlflow.artifacts.load_text(run.info.artifact_uri + "/report.html"),
    "metric": mlflow.get_run(run.info.run_id).data.metrics["loss"]}))
"""
MODEL = """
import mlflow
class Louder(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input: list[str]) -> list[str]:
        return [text.upper() for text in model_input]
mlflow.models.set_model(Louder())
"""


@dataclass
class Cluster:
    """As much of a cluster as the chart's containers see: mounted files, secrets by reference, a network."""

    folder: Path
    s3: S3Server
    manifests: list[dict[str, Any]]
    port: int
    metrics_port: int
    secrets: dict[str, dict[str, str]]
    processes: ExitStack = field(default_factory=ExitStack)

    def template(self, kind: str) -> dict[str, Any]:
        """The pod spec of the only object of a kind."""
        (item,) = [item for item in self.manifests if item["kind"] == kind]
        spec: dict[str, Any] = item["spec"]["template"]["spec"]
        return spec

    def run(
        self, spec: dict[str, Any], container: dict[str, Any], **variables: str
    ) -> tuple[list[str], dict[str, str]]:
        """Command line and whole environment of a container, its mounts made."""
        mounts = {mount["mountPath"]: self._volume(spec, mount["name"]) for mount in container["volumeMounts"]}
        paths = re.compile("|".join(sorted(map(re.escape, mounts), key=len, reverse=True)))

        def local(text: str) -> str:
            return paths.sub(lambda match: str(mounts[match[0]]), text)

        environment = {"PATH": f"{Path(sys.executable).parent}:{os.defpath}", **variables}
        for entry in container["env"]:
            reference = entry.get("valueFrom", {}).get("secretKeyRef")
            environment[entry["name"]] = (
                self.secrets[reference["name"]][reference["key"]] if reference else local(entry["value"])
            )
        return [local(word) for word in (*container["command"], *container["args"])], environment

    def _volume(self, spec: dict[str, Any], name: str) -> Path:
        (volume,) = [volume for volume in spec["volumes"] if volume["name"] == name]
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        if "secret" in volume:
            files = self.secrets[volume["secret"]["secretName"]]
        elif name == "config":
            (files,) = [item["data"] for item in self.manifests if item["kind"] == "ConfigMap"]
        else:
            files = {}
        for file, text in files.items():
            (folder / file).write_text(text)
        return folder

    def migrate(self) -> str:
        """Run the Job: its init containers in order, then its container."""
        spec, said = self.template("Job"), ""
        for container in (*spec["initContainers"], *spec["containers"]):
            command, environment = self.run(spec, container)
            ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
            assert ended.returncode == 0, f"{container['name']}: {ended.stderr[-3000:]}"
            said += ended.stdout + ended.stderr
        return said

    def start(self) -> None:
        """Run the pod of the Deployment, all its containers, until it is ready."""
        spec = self.template("Deployment")
        for container in spec["containers"]:
            variables = self.s3.variables if container["name"] == "server" else {}
            command, environment = self.run(spec, container, **variables)
            log = self.processes.enter_context((self.folder / f"{container['name']}.log").open("w"))
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            self.processes.callback(process.wait)
            self.processes.callback(os.killpg, process.pid, signal.SIGTERM)
            self._wait(container, process)

    def _wait(self, container: dict[str, Any], process: subprocess.Popen[bytes]) -> None:
        probe = container["readinessProbe"]["httpGet"]
        (port,) = [port["containerPort"] for port in container["ports"] if port["name"] == probe["port"]]
        log, deadline = self.folder / f"{container['name']}.log", time.monotonic() + 180
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{probe['path']}", timeout=5).close()
                return
            except (OSError, urllib.error.URLError):
                time.sleep(0.3)

    def ask(self, path: str, login: tuple[str, str] | None = None, *, body: object = None, host: str = "") -> int:
        """The status that the server answers with."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}")
        if login:
            request.add_header("Authorization", f"Basic {base64.b64encode(':'.join(login).encode()).decode()}")
        if host:
            request.add_header("Host", host)
        if body is not None:
            request.data, request.headers["Content-type"] = json.dumps(body).encode(), "application/json"
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def client(self, folder: Path, **login: str) -> subprocess.CompletedProcess[str]:
        """A process that knows the server's address and perhaps a login, and nothing of S3 or the database."""
        (folder / "client.py").write_text(CLIENT)
        (folder / "model.py").write_text(MODEL)
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.defpath}", "HOME": str(folder), "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{self.port}", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", **login,
        }  # fmt: skip
        return subprocess.run(
            [sys.executable, "client.py", "model.py"], cwd=folder, env=environment, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def cluster(helm: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("mlflow")
    port, metrics_port = free_ports(2)
    (folder / "s3").mkdir()
    services = ""
    with ExitStack() as stack:
        database, data = stack.enter_context(postgres())
        for name, password in DATABASES.items():
            database.psql(f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
            database.psql(f"CREATE DATABASE {name} OWNER {name}")
            services += f"[{name}]\nhost={data}\ndbname={name}\nuser={name}\npassword={password}\n\n"
        s3 = stack.enter_context(S3Server.started(folder / "s3"))
        settings = {
            "server.port": port, "metrics.port": metrics_port, "artifacts.destination": f"s3://{BUCKET}/mlflow",
            "artifacts.endpointUrl": s3.endpoint, "server.extraAllowedHosts[0]": "127.0.0.1:*", "server.workers": 2,
        }  # fmt: skip
        manifests = render(Release("mlflow", "prod"), *(f"--set={name}={value}" for name, value in settings.items()))
        secrets = {"mlflow-databases": {"pg_service.conf": services}, "mlflow-auth": dict(ACCOUNTS)}
        made = Cluster(folder, s3, objects(manifests), port, metrics_port, secrets)
        stack.enter_context(made.processes)
        made.migrate()
        made.start()
        yield made


def test_a_client_with_a_login_logs_a_run_a_model_and_an_artifact(cluster: Cluster, tmp_path: Path) -> None:
    ended = cluster.client(
        tmp_path, MLFLOW_TRACKING_USERNAME="pipeline", MLFLOW_TRACKING_PASSWORD=ACCOUNTS["pipeline_password"]
    )

    assert ended.returncode == 0, ended.stderr[-3000:]
    (line,) = [line for line in ended.stdout.splitlines() if line.startswith("TOLD")]
    told = json.loads(line.removeprefix("TOLD"))
    assert (told["says"], told["page"], told["metric"]) == (["A"], "one page", 0.5)
    assert told["artifacts"].startswith("mlflow-artifacts:/")
    client = boto3.client(
        "s3", endpoint_url=cluster.s3.endpoint, region_name="us-east-1",
        aws_access_key_id=cluster.s3.variables["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=cluster.s3.variables["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip
    keys = [item["Key"] for item in client.list_objects_v2(Bucket=BUCKET, Prefix="mlflow/")["Contents"]]
    assert any(key.endswith(f"{told['run']}/artifacts/report.html") for key in keys)
    assert any(key.endswith("/MLmodel") for key in keys)


@pytest.mark.parametrize(
    "login", [{}, {"MLFLOW_TRACKING_USERNAME": "pipeline", "MLFLOW_TRACKING_PASSWORD": "a-guess-at-it"}]
)
def test_a_client_without_a_login_or_with_a_wrong_one_is_refused(
    cluster: Cluster, tmp_path: Path, login: dict[str, str]
) -> None:
    ended = cluster.client(tmp_path, **login)

    assert ended.returncode != 0
    assert "401" in ended.stderr


@pytest.mark.parametrize(
    "path",
    [
        "/api/2.0/mlflow/experiments/search?max_results=1",
        "/api/2.0/mlflow-artifacts/artifacts/0/any/artifacts/report.html",
        "/ajax-api/2.0/mlflow/registered-models/search",
        "/metrics",
        "/signup",
        "/",
    ],
)
def test_nothing_is_told_without_a_login(cluster: Cluster, path: str) -> None:
    assert cluster.ask(path) == 401


def test_a_wellknown_default_password_opens_nothing(cluster: Cluster) -> None:
    for login in (("admin", "password"), ("admin", "password1234"), ("chief", "password1234")):
        assert cluster.ask("/api/2.0/mlflow/experiments/search?max_results=1", login) == 401


def test_the_pipeline_may_not_make_accounts_and_the_administrator_may(cluster: Cluster) -> None:
    path, account = "/api/2.0/mlflow/users/create", {"username": "somebody", "password": "a-word-that-is-long"}

    assert cluster.ask(path, ("pipeline", ACCOUNTS["pipeline_password"]), body=account) == 403
    assert cluster.ask(path, ("chief", ACCOUNTS["admin_password"]), body=account) == 200


def test_another_host_than_the_allowed_ones_is_refused_even_with_a_login(cluster: Cluster) -> None:
    path, login = "/api/2.0/mlflow/experiments/search?max_results=1", ("pipeline", ACCOUNTS["pipeline_password"])

    assert cluster.ask(path, login, host="mlflow.example.com") == 200
    assert cluster.ask(path, login, host="rebound.example.net") == 403
    assert cluster.ask("/health", host="10.0.0.7:5000") == 200, "the load balancer asks for an address"


def test_metrics_need_no_login_on_their_own_port(cluster: Cluster) -> None:
    cluster.ask("/api/2.0/mlflow/experiments/search?max_results=1", ("chief", ACCOUNTS["admin_password"]))

    with urllib.request.urlopen(f"http://127.0.0.1:{cluster.metrics_port}/metrics", timeout=30) as answer:
        text = answer.read().decode()

    assert re.search(r'^mlflow_http_request_total\{.*status="200".*\} [1-9]', text, re.MULTILINE), text[:2000]


def test_a_password_of_the_secret_holds_after_the_next_migration_and_the_old_one_does_not(cluster: Cluster) -> None:
    path, secret = "/api/2.0/mlflow/experiments/search?max_results=1", cluster.secrets["mlflow-auth"]
    secret["pipeline_password"] = "another-word-of-it"
    try:
        said = cluster.migrate()
        assert cluster.ask(path, ("pipeline", "another-word-of-it")) == 200
        assert cluster.ask(path, ("pipeline", ACCOUNTS["pipeline_password"])) == 401
    finally:
        secret["pipeline_password"] = ACCOUNTS["pipeline_password"]
        cluster.migrate()
    assert not [word for word in WORDS if word in said]


def test_no_command_line_holds_a_password(cluster: Cluster) -> None:
    for kind in ("Job", "Deployment"):
        spec = cluster.template(kind)
        for container in (*spec.get("initContainers", ()), *spec["containers"]):
            command, _ = cluster.run(spec, container)
            assert not any(word in part for word in WORDS for part in command)


def test_an_empty_password_stops_the_migration(cluster: Cluster) -> None:
    spec = cluster.template("Job")
    (container,) = spec["containers"]
    command, environment = cluster.run(spec, container)

    ended = subprocess.run(
        command, env={**environment, "ADMIN_PASSWORD": ""}, capture_output=True, text=True, timeout=120, check=False
    )

    assert ended.returncode != 0
    assert "password" in ended.stderr.lower()
