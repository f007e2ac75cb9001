"""The sandbox's image, built by buildah where that is at hand: on a base made of this machine's own Python, for registries may be out of reach."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts import images

CHECKOUT = Path(images.__file__).resolve().parents[1]
PROGRAMS = ("sh", "cp", "ls", "mkdir", "rm", "uname")
# What compiled packages load, and every base has.
RUNTIMES = (
    "libgcc_s.so.1",
    "libstdc++.so.6",
    "librt.so.1",
    "libpthread.so.0",
    "libdl.so.2",
    "libm.so.6",
    "libutil.so.1",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which("buildah") or os.geteuid() != 0 or sys.version_info[:2] != (3, 11),
        reason="needs buildah, root, and the Python 3.11 of the images",
    ),
]

# What `make images` calls: buildah, with all that it keeps in one folder, and another base under the name of the pinned one.
ENGINE = """#!/bin/sh
for each in "$@"; do
  shift
  case $each in
    --build-arg=PYTHON_IMAGE=*) set -- "$@" --build-arg=PYTHON_IMAGE=localhost/base ;;
    build) set -- "$@" bud --isolation=chroot --layers=false ;;
    run) set -- "$@" run --isolation=chroot ;;
    *) set -- "$@" "$each" ;;
  esac
done
exec buildah --root={folder}/root --runroot={folder}/run --storage-driver=vfs "$@"
"""


@dataclass(frozen=True)
class Engine:
    folder: Path

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run([self.program, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout.strip()

    @property
    def program(self) -> str:
        return str(self.folder / "buildah")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = Engine(tmp_path_factory.mktemp("buildah"))
    Path(engine.program).write_text(ENGINE.format(folder=engine.folder))
    Path(engine.program).chmod(0o755)
    base = make_base(engine.folder / "base")
    container = engine("from", "scratch")
    engine("copy", container, str(base), "/")
    engine("config", "--env=PATH=/usr/local/bin:/bin", container)
    engine("commit", container, "localhost/base")
    shutil.rmtree(base)
    yield engine
    engine("rm", "--all")
    engine("rmi", "--all", "--force")


def make_base(base: Path) -> Path:
    """A file system with a shell, this Python, and the packages that the image's requirements name."""
    python = Path(sys.base_prefix)
    library = f"lib/python3.{sys.version_info.minor}"
    ignored = shutil.ignore_patterns("site-packages", "test", "__pycache__", "config-3*", "idlelib", "tkinter")
    shutil.copytree(python / library, base / "usr/local" / library, ignore=ignored)
    for folder in ("bin", "tmp", "lib64", "lib/x86_64-linux-gnu", "usr/local/bin", "etc", "root", "var/tmp"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    for folder in ("tmp", "var/tmp"):
        (base / folder).chmod(0o1777)
    shutil.copy(python / f"bin/python3.{sys.version_info.minor}", base / "usr/local/bin/python")
    programs = {name: Path(found) for name in PROGRAMS if (found := shutil.which(name))}
    for name, program in programs.items():
        shutil.copy(program, base / "bin" / name)
    extensions = (base / "usr/local" / library / "lib-dynload").glob("*.so")
    for wanted in [base / "usr/local/bin/python", *programs.values(), *extensions]:
        for name, path in needs(wanted):
            shutil.copy(path, base / ("lib64" if name.startswith("ld-") else "lib/x86_64-linux-gnu") / name)
    (libc,) = {path for name, path in needs(programs["sh"]) if name == "libc.so.6"}
    for name in RUNTIMES:
        shutil.copy(Path(libc).with_name(name), base / "lib/x86_64-linux-gnu" / name)
    requirements = CHECKOUT / "images/sandbox/requirements.txt"
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    subprocess.run([*fetch, "--requirement", requirements, "--dest", base / "wheels"], check=True)
    (base / "etc/pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n")
    (base / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    return base


def needs(program: Path) -> list[tuple[str, str]]:
    """Name and place of each library that a program loads, and of what loads them."""
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    return [(Path(path).name, path) for path in re.findall(r"(/\S+) \(0x", said)]


@pytest.fixture(scope="module")
def sandbox(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A container of the image."""
    root = tmp_path_factory.mktemp("pinned") / "checkout"
    for folder in ("images", "mlops_tasks"):
        shutil.copytree(CHECKOUT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CHECKOUT / ".dockerignore", root)
    file = root / "images" / "bases.yaml"
    file.write_text(re.sub(r'digest: "[^"]*"', f'digest: "sha256:{"a" * 64}"', file.read_text()))
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", "-C", str(root)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], check=True)
    (name,) = images.build(["sandbox"], accelerator="cpu", repository="wmtp/", engine=engine.program, root=root)
    container = engine("from", name)
    yield container
    engine("rm", container)


def test_what_judges_is_there_and_runs_as_a_number_that_is_not_root(engine: Engine, sandbox: str) -> None:
    says = "import os, sys, mlops_tasks.parcel, mlops_tasks.evaluation.judging as j; print(os.getuid(), sys.prefix, j.__file__)"
    assert engine("run", sandbox, "--", "python", "-c", says) == (
        "10001 /opt/venv /opt/wmtp/mlops_tasks/evaluation/judging.py"
    )
    assert "usage: wmtp" in engine("run", sandbox, "--", "wmtp", "--help")


def test_nothing_is_written_outside_of_tmp(engine: Engine, sandbox: str, tmp_path: Path) -> None:
    (tmp_path / "before").touch()
    engine("run", sandbox, "--", "wmtp", "judge", "--help")
    root = Path(engine("mount", sandbox))
    since = (tmp_path / "before").stat().st_mtime_ns
    written = [file for file in root.rglob("*") if file.is_file() and file.stat().st_mtime_ns > since]
    assert [file for file in written if file.relative_to(root).parts[0] not in ("tmp", "etc")] == []


def test_no_installer_and_no_client_of_anything_is_in_it(engine: Engine, sandbox: str) -> None:
    root = Path(engine("mount", sandbox))
    (packages,) = root.glob("opt/venv/lib/python3.*/site-packages")
    found = {folder.name for folder in packages.iterdir()}
    assert {"numpy", "pyarrow", "pydantic"} <= found
    assert not found & {"pip", "setuptools", "boto3", "mlflow", "torch", "urllib3"}
