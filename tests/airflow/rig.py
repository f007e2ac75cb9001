"""A real API server whose pods are processes of this machine, for tests marked `kubernetes`; skipped where there is none."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from kubernetes import client, config
from s3_server import BUCKET, S3Server
from urllib3.exceptions import HTTPError

CHECKOUT = Path(__file__).resolve().parents[2]
NAMESPACE = "wmtp"
IMAGE, TOY_IMAGE = "wmtp-trainer:rig", "wmtp-toys:rig"

_GUARD = CHECKOUT / "plugins" / "wmtp" / "guard.py"
_SECONDS_TO_END = 20
_RIG = Path(os.environ.get("K8S_RIG", CHECKOUT.parent / "shared" / "tools" / "k8s-rig"))


@dataclass(frozen=True)
class Rig:
    """Where it is, and how to ask it."""

    folder: Path

    @property
    def kubeconfig(self) -> str:
        return str(self.folder / "run" / "kubeconfig")

    def kubeconfig_by(self, relay: Relay, folder: Path) -> str:
        """One that leads through a relay."""
        direct = Path(self.kubeconfig).read_text()
        file = folder / "kubeconfig"
        file.write_text(direct.replace(f"https://127.0.0.1:{self.port}", f"https://127.0.0.1:{relay.port}"))
        return str(file)

    @property
    def port(self) -> int:
        """Where the API server listens."""
        (port,) = set(re.findall(r"https://127\.0\.0\.1:(\d+)", Path(self.kubeconfig).read_text()))
        return int(port)

    @property
    def api(self) -> Any:
        return config.new_client_from_config(self.kubeconfig)

    @property
    def core(self) -> client.CoreV1Api:
        return client.CoreV1Api(self.api)

    @property
    def batch(self) -> client.BatchV1Api:
        return client.BatchV1Api(self.api)

    def pods(self) -> list[Any]:
        found: list[Any] = self.core.list_namespaced_pod(NAMESPACE).items
        return found

    def objects(self) -> list[Any]:
        """All that operators make, of every kind."""
        lists = (
            self.core.list_namespaced_pod, self.batch.list_namespaced_job, self.core.list_namespaced_service,
        )  # fmt: skip
        return [
            one for ask in lists for one in ask(NAMESPACE, label_selector="app.kubernetes.io/managed-by=wmtp").items
        ]

    def secret(self, name: str, values: dict[str, str]) -> None:
        """Make a Secret, or replace it."""
        body = {
            "metadata": {"name": name},
            "data": {key: base64.b64encode(one.encode()).decode() for key, one in values.items()},
        }
        if any(one.metadata.name == name for one in self.core.list_namespaced_secret(NAMESPACE).items):
            self.core.replace_namespaced_secret(name, NAMESPACE, body)
        else:
            self.core.create_namespaced_secret(NAMESPACE, body)

    def define(self, kind: str, group: str, version: str, *, scope: str) -> None:
        """Have the server know a kind of objects that an operator would bring, with whatever fields."""
        plural = f"{kind.lower()}s"
        any_fields = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        one = {"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": any_fields}}
        names = {"kind": kind, "plural": plural, "singular": kind.lower()}
        body = {
            "metadata": {"name": f"{plural}.{group}"},
            "spec": {"group": group, "names": names, "scope": scope, "versions": [one]},
        }
        definitions = client.ApiextensionsV1Api(self.api)
        definitions.create_custom_resource_definition(body)
        deadline = time.monotonic() + 60
        while not self._serves(group, version, plural):
            assert time.monotonic() < deadline, f"{plural}.{group} are not served"
            time.sleep(0.1)

    def _serves(self, group: str, version: str, plural: str) -> bool:
        with suppress(client.ApiException):
            client.CustomObjectsApi(self.api).list_cluster_custom_object(group, version, plural)
            return True
        return False

    def token_of(self, account: str) -> str:
        """The token of an account, which a server before 1.24 makes by itself."""
        deadline = time.monotonic() + 60
        while not (found := self.core.read_namespaced_service_account(account, NAMESPACE).secrets):
            assert time.monotonic() < deadline, f"no token for {account}"
            time.sleep(0.1)
        return base64.b64decode(self.core.read_namespaced_secret(found[0].name, NAMESPACE).data["token"]).decode()

    def answers(self) -> bool:
        """Whether the API server is there."""
        with suppress(HTTPError, client.ApiException):
            return bool(self.core.list_namespaced_pod(NAMESPACE))
        return False

    def restart_server(self) -> None:
        """End the API server itself, as an update of its machine does; `_restartable` starts it again on what etcd holds."""
        (one,) = [
            each
            for each in psutil.process_iter(["cmdline"])
            if (each.info["cmdline"] or [])[:1] == [str(self.folder / "bin" / "real-kube-apiserver")]
        ]
        one.kill()
        one.wait()


def change(file: Path, place: str, value: Any) -> None:
    """Set one setting of an environment file, by dotted name."""
    tree = part = json.loads(file.read_text())
    *parents, leaf = place.split(".")
    for one in parents:
        part = part[one]
    part[leaf] = value
    file.write_text(json.dumps(tree))


def environment(rig: Rig, s3: S3Server, image: str, folder: Path, *, two_pods: bool = False) -> dict[str, Any]:
    """An environment whose stages are pods of the rig, with a store of its own; credentials are in a Secret."""
    rig.secret("store", s3.variables)
    profile = {
        "image": image, "requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "4Gi"},
        "variables": {"TOYS": str(folder), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}, "start_seconds": 60,
    }  # fmt: skip
    return {
        "deployment": "toys", "store": f"s3://{BUCKET}/{folder.name}", "s3": s3.access(folder / "cache"), "mlflow_uri": "http://127.0.0.1:1",
        "lease": {"ttl_seconds": 15}, "executor": "kubernetes",
        "train": {"num_ranks": 1, "num_pods": 1 + two_pods, "micro_batch_rows": 4, "checkpoint_every_steps": 5},
        "kubernetes": {
            "namespace": NAMESPACE, "profiles": dict.fromkeys(("cpu", "gpu", "sandbox"), profile),
            "secrets": {name: {"secret": "store", "key": name} for name in s3.variables},
        },
    }  # fmt: skip


IS_AT_HAND = (_RIG / "rig.py").is_file() and os.geteuid() == 0
WHY_NOT = f"needs root and an API server for tests in {_RIG} (or K8S_RIG)"


@contextmanager
def started() -> Iterator[Rig]:
    """Start it, with the images of the tests; it ends with the context, and with this process however that ends."""
    if not IS_AT_HAND:
        pytest.skip(WHY_NOT)
    # Pods see it under another user's rights than a folder of pytest's has.
    folder = Path(tempfile.mkdtemp(prefix="wmtp-rig-"))
    command = [sys.executable, str(_RIG / "rig.py"), "up", "--dir", str(folder / "run"), "--strict-images"]
    variables = {"RIG_IMAGE_MAP": json.dumps(_images(folder)), "RIG_BIN": str(_restartable(folder / "bin"))}
    with (folder / "log").open("w") as log:
        guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_GUARD), str(_SECONDS_TO_END), *command, "--memory", "16Gi"],
            env={**os.environ, **variables}, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        while not (folder / "run" / "ready").exists():
            if guard.poll() is not None:
                pytest.skip(f"the API server for tests does not start: {(folder / 'log').read_text()[-500:]}")
            time.sleep(0.1)
        rig = Rig(folder)
        rig.core.create_namespace({"metadata": {"name": NAMESPACE}})
        yield rig
    finally:
        assert guard.stdin is not None
        guard.stdin.close()
        guard.wait(2 * _SECONDS_TO_END)
        shutil.rmtree(folder, ignore_errors=True)


_BINARIES = Path(os.environ.get("TOOLS_CACHE") or Path.home() / ".cache" / "mlops-tools") / "k8s-1.20.2"


def _restartable(folder: Path) -> Path:
    """A folder of its programs, in which the API server is started again whenever it ends."""
    folder.mkdir()
    for name in ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"):
        found = shutil.which(name, path=os.environ.get("RIG_BIN") or str(_BINARIES)) or shutil.which(name)
        if found:
            (folder / name).symlink_to(found)
    server, real = folder / "kube-apiserver", folder / "real-kube-apiserver"
    if server.exists():
        server.rename(real)
        server.write_text(_AGAIN.format(real=real))
        server.chmod(0o755)
    return folder


_AGAIN = """#!/bin/bash
[ "$1" = --version ] && exec {real} --version
trap 'kill $server; exit' TERM
while :; do
  setpriv --pdeathsig KILL {real} "$@" & server=$!
  wait $server
  sleep 3
done
"""


def _images(folder: Path) -> dict[str, Any]:
    python_path = os.pathsep.join(map(str, (CHECKOUT, CHECKOUT / "tests" / "airflow", CHECKOUT / "plugins")))
    images = {}
    for image, module in ((IMAGE, "mlops_tasks"), (TOY_IMAGE, "toys.stages")):
        program = folder / module / "wmtp"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
        program.chmod(0o755)
        images[image] = {
            "path": f"{program.parent}:{Path(sys.executable).parent}",
            "env": {"PYTHONPATH": python_path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            "workdir": str(CHECKOUT),
        }
    return images


class Relay:
    """Stands before a server, so that it can be away for a while: it refuses what comes and cuts what is there, or lets nothing through.

    Args:
        server: a port of this machine, or a socket in its file system, which pods cannot reach otherwise.
    """

    def __init__(self, server: int | Path) -> None:
        self._server = server
        self._open: list[socket.socket] = []
        self._is_through = threading.Event()
        self._is_through.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def leave(self) -> None:
        """As a server that has ended."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def be_silent(self) -> None:
        """As behind a firewall that drops everything: who asks gets no answer, and no refusal either."""
        self._is_through.clear()

    def come_back(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = self._connect()
                self._open += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _connect(self) -> socket.socket:
        if isinstance(self._server, int):
            return socket.create_connection(("127.0.0.1", self._server))
        found = socket.socket(socket.AF_UNIX)
        found.connect(str(self._server))
        return found

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                self._is_through.wait()
                target.sendall(piece)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
