"""The checks of the images pass on the images, each finds the fault that it is for, and an image holds what its command imports."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest

from mlops_tasks.errors import UserError
from mlops_tasks.pipeline import JUDGE
from scripts import images
from scripts.check_images import STEPS
from scripts.infra_step import CHECKOUT, Fault, Skipped


@dataclass(frozen=True)
class Seed:
    """A fault: in a file under images/, `old` becomes `new`, and a step says `match`."""

    step: str
    file: str
    old: str
    new: str
    match: str


_TRAINER, _SANDBOX = "trainer/Dockerfile", "sandbox/Dockerfile"
SEEDS = (
    Seed("images: hadolint", _TRAINER, "WORKDIR /tmp", "WORKDIR tmp", "DL3000"),
    Seed("images: hadolint", _SANDBOX, "USER 10001:10001", "USER 10001:10001\nRUN cd $HOME && rm -r *", "SC2035|DL3003"),
    Seed("images: rules", _TRAINER, "FROM ${PYTHON_IMAGE}\n", "FROM python:3.11\n", "FROM python:3.11 is not an argument"),
    Seed("images: rules", _TRAINER, "FROM ${PYTHON_IMAGE}\n", "FROM ${PYTHON}\n", "has no PYTHON"),
    Seed("images: rules", _TRAINER, "ARG PYTHON_IMAGE\n", "ARG PYTHON_IMAGE=python:3.11\n", "has a default"),
    Seed("images: rules", _TRAINER, "COPY mlops_tasks", "ADD mlops_tasks", "COPY does neither"),
    Seed("images: rules", _TRAINER, "--no-deps --require-hashes --requirement /tmp/requirements.txt", "torch", "installs something whose hash"),
    Seed("images: rules", _SANDBOX, "USER 10001:10001\n", "", "sandbox: it runs as root"),
    Seed("images: rules", _SANDBOX, "USER 10001:10001\n", "USER judge\n", "it runs as judge"),
    Seed("images: rules", _SANDBOX, "image.revision=", "image.rev=", "lacks the labels revision"),
    Seed("images: rules", "bases.yaml", 'slim-trixie, digest: ""', 'slim-trixie, digest: "sha256:abc"', "PYTHON_IMAGE: the digest 'sha256:abc' is not"),
    Seed("images: rules", "bases.yaml", "3.3.2-python3.11", "3.3.2-python3.13", "would compute different keys"),
    Seed("images: rules", "sandbox/requirements.txt", "pyyaml==", "pyyaml==5.", "pyyaml 5.6.0.3, the lock 6.0.3"),
    Seed("images: rules", "trainer/requirements-cpu.txt", "torch==2.13.0+cpu --hash=sha256:", "torch==2.13.0+cpu --hash=md5:", "torch==2.13.0.cpu has no hash"),
)  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_the_images_pass(name: str) -> None:
    try:
        STEPS[name](CHECKOUT)
    except Skipped as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"{seed.step}: {seed.match[:30]}")
def test_a_seeded_fault_is_found_by_its_step(tmp_path: Path, seed: Seed) -> None:
    file = _copy_of_images(tmp_path) / "images" / seed.file
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


def _copy_of_images(folder: Path) -> Path:
    shutil.copytree(CHECKOUT / "images", folder / "images")
    (folder / "mlops_tasks").mkdir()
    shutil.copy(CHECKOUT / images.LOCK, folder / images.LOCK)
    return folder


# What a process imports, where nothing can be imported but the standard library, this checkout and what a file of requirements pins.
_IMPORTS = """
import importlib, importlib.abc, sys
allowed = {*sys.stdlib_module_names, *sys.argv[1].split(",")}
class Refusal(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed and not name.startswith("_"):
            raise ModuleNotFoundError(f"{name} is not in the image", name=name)
sys.meta_path.insert(0, Refusal())
for module in sys.argv[2:]:
    importlib.import_module(module)
"""


def test_the_sandbox_holds_what_judging_imports() -> None:
    ended = _import(_modules_of("sandbox/requirements.txt"), ["mlops_tasks.__main__", "mlops_tasks.evaluation.judging"])
    assert ended.returncode == 0, ended.stderr[-2000:]


def test_mlflow_holds_what_its_chart_asks_for() -> None:
    pinned = images.names_in((CHECKOUT / "images/mlflow/requirements.txt").read_text())
    asked = {"boto3", "flask-wtf", "mlflow", "prometheus-client", "prometheus-flask-exporter", "psycopg2-binary"}
    assert asked <= set(pinned)  # flask-wtf is what the extra `auth` adds


@pytest.mark.parametrize("accelerator", ["cuda", "cpu"])
def test_the_trainer_holds_whatever_the_package_imports_anywhere(accelerator: str) -> None:
    held = _modules_of(f"trainer/requirements-{accelerator}.txt") | sys.stdlib_module_names | {"mlops_tasks"}
    imported = {
        name.partition(".")[0]
        for file in (CHECKOUT / "mlops_tasks").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        for name in _imported(node)
    }
    assert {"torch", "huggingface_hub"} <= imported  # the walk sees imports inside functions too
    assert imported - held == {"kubernetes"}  # what `wmtp doctor` asks a cluster with, where Airflow's tasks run


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def test_a_worker_of_airflow_looks_up_a_run_with_no_package_of_the_stages() -> None:
    # What Airflow's own image holds cannot be known here; that it holds Airflow and its Amazon provider is told by its name.
    airflows = _modules_of("airflow/requirements.txt") | _closure("apache-airflow") | _closure("boto3")
    heavy = {"torch", "transformers", "optuna", "pyarrow", "numpy", "sklearn", "pandas"}
    light = ["mlops_tasks.__main__", "mlops_tasks.pipeline", "mlops_tasks.registry.commands", "mlops_tasks.store.s3"]

    ended = _import(airflows - heavy, [*light, "mlflow.tracking", "huggingface_hub"])

    assert ended.returncode == 0, ended.stderr[-2000:]


def test_a_worker_of_airflow_weighs_the_evidence_for_an_approval_and_makes_the_parcel_of_judge() -> None:
    airflows = _modules_of("airflow/requirements.txt") | _closure("apache-airflow") | _closure("boto3")
    own = ["mlops_tasks.registry.promotion", "mlops_tasks.parcel", "mlops_tasks.summary"]

    ended = _import(airflows - {"torch", "transformers", "optuna", "sklearn", "pandas"}, own)

    assert ended.returncode == 0, ended.stderr[-2000:]
    pinned = images.versions_in((CHECKOUT / "images/airflow/requirements.txt").read_text())
    assert set(JUDGE.packages) <= set(pinned), "`judge` is held against the lock on the worker too"


def test_the_sandbox_has_no_client_of_anything() -> None:
    pinned = set(images.names_in((CHECKOUT / "images/sandbox/requirements.txt").read_text()))
    assert not pinned & {"boto3", "mlflow", "mlflow-skinny", "requests", "urllib3", "torch", "kubernetes"}


def _import(allowed: set[str], modules: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _IMPORTS, ",".join(sorted({*allowed, "mlops_tasks"})), *modules]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    return subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=120, check=False)


def _modules_of(file: str) -> set[str]:
    """The names to import of the distributions that a file pins."""
    return _modules(set(images.names_in((CHECKOUT / "images" / file).read_text())))


def _modules(distributions: set[str]) -> set[str]:
    owners = metadata.packages_distributions()
    return {name for name, found in owners.items() if not distributions.isdisjoint(map(_normal, found))}


def _closure(distribution: str) -> set[str]:
    """The names to import of a distribution and all that it needs here."""
    found, waiting = set[str](), [distribution]
    while waiting:
        name = _normal(waiting.pop())
        if name in found:
            continue
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # of another system
        found.add(name)
        waiting += [re.split(r"[^\w.-]", need, maxsplit=1)[0] for need in needs if "extra ==" not in need]
    return _modules(found)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_a_build_is_given_pinned_bases_and_says_what_it_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = _checkout(tmp_path, digest="sha256:" + "a" * 64)
    monkeypatch.setenv("PATH", f"{_program(tmp_path / 'bin', 'docker', 'echo')}:{os.environ['PATH']}")

    built = images.build(["trainer"], accelerator="cpu", repository="example.com/wmtp/", engine="docker", root=root)

    (name,) = built
    assert re.fullmatch(r"example\.com/wmtp/trainer:[0-9a-f]{12}", name)
    (said,) = (tmp_path / "bin" / "docker.calls").read_text().splitlines()
    assert f"build --file=images/trainer/Dockerfile --tag={name} " in said
    assert f"--build-arg=PYTHON_IMAGE=docker.io/library/python@sha256:{'a' * 64} --build-arg=ACCELERATOR=cpu" in said
    assert "AIRFLOW_IMAGE" not in said


def test_a_build_on_a_base_that_nobody_pinned_is_refused(tmp_path: Path) -> None:
    root = _checkout(tmp_path, digest="")
    with pytest.raises(UserError, match=r"python:3\.11-slim-trixie has no digest.*make images-pin"):
        images.build(["sandbox"], accelerator="cuda", repository="", engine="docker", root=root)


def test_pinning_writes_the_digest_behind_each_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, digest = _checkout(tmp_path, digest=""), "sha256:" + "b" * 64
    monkeypatch.setenv("PATH", f"{_program(tmp_path / 'bin', 'skopeo', f'echo {digest}')}:{os.environ['PATH']}")

    images.pin(root)

    assert [base.digest for base in images.bases(root)] == [digest, digest]
    asked = (tmp_path / "bin" / "skopeo.calls").read_text()
    assert "docker://docker.io/apache/airflow:3.3.2-python3.11" in asked
    assert (root / "images" / "bases.yaml").read_text().startswith("# What our images stand on")


def test_a_registry_that_names_no_digest_pins_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = _checkout(tmp_path, digest="")
    monkeypatch.setenv("PATH", f"{_program(tmp_path / 'bin', 'skopeo', 'echo hello')}:{os.environ['PATH']}")
    with pytest.raises(Fault, match="'hello', which is no digest"):
        images.pin(root)
    assert {base.digest for base in images.bases(root)} == {""}


def _checkout(folder: Path, digest: str) -> Path:
    root = folder / "checkout"
    root.mkdir()
    _copy_of_images(root)
    file = root / "images" / "bases.yaml"
    file.write_text(re.sub(r'digest: "[^"]*"', f'digest: "{digest}"', file.read_text()))
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", "-C", str(root)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], check=True)
    return root


def _program(folder: Path, name: str, does: str) -> Path:
    """A folder with a program that keeps what it was told."""
    folder.mkdir()
    (folder / name).write_text(f'#!/bin/sh\necho "$@" >> {folder}/{name}.calls\n{does}\n')
    (folder / name).chmod(0o755)
    return folder


def test_the_context_of_a_build_holds_only_what_dockerfiles_copy() -> None:
    kept = [line[1:] for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = {
        line.split()[1]
        for name in images.NAMES
        for line in (CHECKOUT / "images" / name / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
    }
    assert {path for path in copied if not path.startswith("images/")} == {path for path in kept if "/" not in path}


def test_the_bill_of_materials_names_every_pin_with_its_hash(tmp_path: Path) -> None:
    shutil.copytree(CHECKOUT / "images" / "sandbox", tmp_path / "images" / "sandbox")
    try:
        (written,) = images.write_sboms(tmp_path / "sbom", tmp_path)
    except Skipped as reason:
        pytest.skip(str(reason))
    assert written.name == "sandbox.cdx.json"
    parts = json.loads(written.read_text())["components"]
    pinned = images.versions_in((CHECKOUT / "images/sandbox/requirements.txt").read_text())
    assert {part["name"]: part["version"] for part in parts} == pinned
    assert all(part["externalReferences"][0]["hashes"] for part in parts)
