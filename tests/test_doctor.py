"""What `wmtp doctor` says of environments that are well and of such that are not."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow_server import free_port, serving
from s3_server import BUCKET, OldServer, S3Server

from mlops_tasks import doctor
from mlops_tasks.__main__ import main
from mlops_tasks.cluster import Cluster
from mlops_tasks.config.environment import Environment, S3Access
from mlops_tasks.config.kubernetes import Kubernetes
from mlops_tasks.config.loading import load_environment
from mlops_tasks.doctor import Finding
from mlops_tasks.errors import UserError
from mlops_tasks.store.backend import FolderBackend

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")


def found(environment: Environment, check: str) -> list[Finding]:
    """What is found by one check; those after it are not made."""
    findings: list[Finding] = []
    for one in doctor.examine(environment):
        if findings and one.check != check:
            break
        findings += [one] * (one.check == check)
    return findings


def test_a_laptop_that_is_well_is_told_so_line_by_line(
    environment: Environment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "laptop.yaml"
    file.write_text(f"store: {environment.store}\nmlflow_uri: {environment.mlflow_uri}\n")

    code = main(["doctor", "--env", str(file)])

    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert [line.split()[1] for line in lines] == ["versions", "disk", "disk", "store", "mlflow", "machine", "sandbox"]
    assert any(line.startswith("ok    store     ") and "honours conditions" in line for line in lines)
    assert list((tmp_path / "store" / ".probe").iterdir()) == []
    assert not (tmp_path / "mlflow.db").exists()


def test_json_says_the_same_with_the_exit_code_of_each_finding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "laptop.yaml"
    file.write_text(f"store: {tmp_path / 'store'}\nmlflow_uri: http://127.0.0.1:{free_port()}\n")

    code = main(["doctor", "--json", "--env", str(file)])

    findings = {one["check"]: one for one in json.loads(capsys.readouterr().out)}
    assert code == 75
    assert (findings["store"]["status"], findings["store"]["exit_code"]) == ("ok", 0)
    assert (findings["mlflow"]["status"], findings["mlflow"]["exit_code"]) == ("fail", 75)
    assert "does not answer" in findings["mlflow"]["text"]


def test_what_somebody_has_to_mend_comes_before_what_may_pass() -> None:
    ok, down, wrong = (Finding("a", "ok", "x"), Finding("b", "fail", "x", 75), Finding("c", "fail", "x", 64))
    assert [doctor.exit_code(some) for some in ([], [ok], [ok, down], [down, wrong])] == [0, 0, 75, 64]


def test_a_bucket_that_is_well(s3: S3Server, tmp_path: Path) -> None:
    access = S3Access.model_validate(s3.access(tmp_path / "cache"))
    environment = Environment(store=f"s3://{BUCKET}/doctor", s3=access, mlflow_uri="sqlite:///unused.db")

    (store,) = found(environment, "store")

    assert (store.status, store.exit_code) == ("ok", 0)
    assert [one.text.split(" for ")[1].split(" in ")[0] for one in found(environment, "disk")] == [
        "temporary files", "the cache of s3://",
    ]  # fmt: skip


@pytest.fixture
def old_server(s3: S3Server) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), OldServer) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_server_that_ignores_conditions_is_no_store(old_server: str, tmp_path: Path) -> None:
    access = S3Access(endpoint=old_server, addressing_style="path", cache=str(tmp_path / "cache"))
    environment = Environment(store=f"s3://{BUCKET}/doctor", s3=access, mlflow_uri="sqlite:///unused.db")

    (store,) = found(environment, "store")

    assert (store.status, store.exit_code) == ("fail", 64)
    assert "ignores If-None-Match on PUT" in store.text
    assert "Use a store that honours conditional writes" in store.text


def test_a_missing_bucket_is_told(s3: S3Server, tmp_path: Path) -> None:
    access = S3Access.model_validate(s3.access(tmp_path / "cache"))
    environment = Environment(store="s3://not-there/doctor", s3=access, mlflow_uri="sqlite:///unused.db")
    (store,) = found(environment, "store")
    assert (store.status, store.exit_code) == ("fail", 64)
    assert "NoSuchBucket" in store.text


class Forgetful(FolderBackend):
    """A folder whose creations overwrite."""

    def create(self, name: str, data: bytes) -> bool:
        self.write(name, data)
        return True


def test_a_store_that_breaks_a_promise_is_refused_with_the_promise(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not do what commits rest on: create-if-absent, .*Use a store that does"):
        doctor.require_promises(Forgetful(tmp_path))
    assert list((tmp_path / ".probe").iterdir()) == []


def test_little_room_is_a_warning_and_none_a_failure(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=4 * 2**30))
    assert {one.status for one in found(environment, "disk")} == {"warn"}
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=0))
    (disk,) = found(environment, "disk")
    assert (disk.status, disk.exit_code) == ("fail", 75)
    assert disk.text.endswith("nothing can be written. Make room.")


def test_another_version_than_the_locks_is_told(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = doctor.metadata.version
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.0" if name == "numpy" else whole(name))
    (versions,) = found(environment, "versions")
    assert (versions.status, versions.exit_code) == ("fail", 64)
    assert versions.text.startswith("numpy 1.0 runs here, but the lock")


def test_a_system_that_cannot_confine_programs_is_told(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlops_tasks.evaluation.sandbox.is_supported", lambda: False)
    (sandbox,) = found(environment, "sandbox")
    assert (sandbox.status, sandbox.exit_code) == ("fail", 64)
    unsafe = environment.model_copy(update={"judge": environment.judge.model_copy(update={"unsafe": True})})
    (sandbox,) = found(unsafe, "sandbox")
    assert sandbox.status == "warn"
    assert "judge.unsafe is set" in sandbox.text


def test_mlflow_asks_for_a_login_and_knows_a_wrong_one(
    tmp_path: Path, environment: Environment, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(mlflow_database, tmp_path / "served.db")
    (tmp_path / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\ngrant_default_workspace_access = false\n"
        f"database_uri = sqlite:///{tmp_path / 'auth.db'}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    for name, value in {
        "MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_USERNAME": "chief",
        "MLFLOW_AUTH_ADMIN_PASSWORD": "an-administrators-word",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "signs-sessions",
    }.items():
        monkeypatch.setenv(name, value)
    with serving(tmp_path, f"sqlite:///{tmp_path / 'served.db'}", "--app-name", "basic-auth") as uri:
        served = environment.model_copy(update={"mlflow_uri": uri})
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "chief")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "an-administrators-word")
        (let_in,) = doctor._answered("mlflow", doctor._mlflow(served))
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another-word-altogether")
        (kept_out,) = doctor._answered("mlflow", doctor._mlflow(served))

    assert (let_in.status, let_in.text) == ("ok", f"{uri} answers and lets us in: runs and registry")
    assert (kept_out.status, kept_out.exit_code) == ("fail", 64)
    assert f"MLflow at {uri} refuses us" in kept_out.text
    assert "MLFLOW_TRACKING_USERNAME" in kept_out.text


def test_a_cluster_that_does_not_answer_is_told_and_torch_is_not_asked_for_where_stages_are_pods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = kubeconfig(tmp_path, f"https://127.0.0.1:{free_port()}")
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", place)
    monkeypatch.setattr(doctor, "_is_installed", lambda name: name != "torch")
    environment = load_environment(Path(__file__).resolve().parents[1] / "configs" / "environments" / "eks.yaml")

    (versions,) = list(doctor._answered("versions", doctor._versions(environment)))
    (server,) = list(doctor._answered("cluster", Cluster(_kubernetes(environment)).server()))

    assert versions.status == "ok" and "torch are the images' of pods" in versions.text
    assert (server.status, server.exit_code) == ("fail", 75)
    assert "does not answer" in server.text and "Look at KUBECONFIG" in server.text


def test_where_stages_are_pods_the_cluster_is_asked_and_this_machine_is_not() -> None:
    environment = load_environment(Path(__file__).resolve().parents[1] / "configs" / "environments" / "eks.yaml")
    asked = ["versions", "disk", "store", "mlflow", "cluster", "rights", "secrets", "files", "nodes", "pools"]
    assert list(doctor._checks_of(_kubernetes(environment))) == asked


class Overloaded(BaseHTTPRequestHandler):
    """An API server that has no time."""

    def do_GET(self) -> None:
        self.send_error(503)

    def log_message(self, *_: object) -> None:
        pass


class NoApiServer(Overloaded):
    """Some other server."""

    def do_GET(self) -> None:
        self.send_error(404)


@pytest.mark.parametrize(
    ("server", "code", "text"),
    [
        (Overloaded, 75, "cannot answer now (503 Service Unavailable). Ask again later."),
        (NoApiServer, 64, "refuses what is asked (404 Not Found). Look whether it is the API server"),
    ],
)
def test_an_answer_that_nobody_thought_of_is_told_and_says_who_has_to_act(
    server: type[BaseHTTPRequestHandler], code: int, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), server) as started:
        thread = threading.Thread(target=started.serve_forever, daemon=True)
        thread.start()
        place = kubeconfig(tmp_path, f"http://127.0.0.1:{started.server_port}")
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", place)
        environment = load_environment(Path(__file__).resolve().parents[1] / "configs" / "environments" / "eks.yaml")
        (found,) = doctor._answered("cluster", Cluster(_kubernetes(environment)).server())
        started.shutdown()
        thread.join()
    assert (found.status, found.exit_code) == ("fail", code)
    assert text in found.text


def kubeconfig(folder: Path, server: str) -> str:
    tree = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c", "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "c", "user": {"token": "t"}}], "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
    }  # fmt: skip
    (folder / "kubeconfig").write_text(json.dumps(tree))
    return str(folder / "kubeconfig")


def _kubernetes(environment: Environment) -> Kubernetes:
    assert environment.kubernetes is not None
    return environment.kubernetes
