"""The images: what each stands on, what is installed in it, and building it.

python -m scripts.images lock                   # writes images/*/requirements*.txt anew, from mlops_tasks/requirements.lock
python -m scripts.images pin                    # writes the digests of images/bases.yaml; needs the registry
python -m scripts.images build [NAME …] [--cpu] [--repository PREFIX] [--engine PROGRAM]
python -m scripts.images sbom                   # what is installed, as CycloneDX, into .wmtp/sbom
"""

from __future__ import annotations

import argparse
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mlops_tasks import __version__, logs
from mlops_tasks.errors import UserError, WmtpError
from scripts.infra_step import CHECKOUT, Fault, Skipped, run, tool

_LOG = logging.getLogger(__name__)
NAMES = ("airflow", "mlflow", "sandbox", "trainer")
LOCK = Path("mlops_tasks", "requirements.lock")
# Every image runs this Python on this platform: its minor version is in every key, and CI runs the tests with it.
_PYTHON, _PLATFORM = "3.11", "x86_64-manylinux_2_28"
# What torch for CUDA brings, and torch for the CPU does not want.
_OF_CUDA = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)")
_ENGINES = {"docker": [], "podman": ["--format=docker"], "buildah": ["--format=docker"]}


@dataclass(frozen=True)
class Base:
    """An image of somebody else's that ours stand on."""

    argument: str
    image: str
    tag: str
    digest: str

    @property
    def reference(self) -> str:
        """What a Dockerfile is given.

        Raises:
            UserError: nobody has pinned it.
        """
        if not self.digest:
            raise UserError(
                f"{self.image}:{self.tag} has no digest in images/bases.yaml, so a build would take whatever the tag stands for today. "
                "Run `make images-pin` where the registry is in reach, look at the base, and commit the file."
            )
        return f"{self.image}@{self.digest}"


def bases(root: Path = CHECKOUT) -> list[Base]:
    """Those of `images/bases.yaml`."""
    return [Base(**entry) for entry in yaml.safe_load((root / "images" / "bases.yaml").read_text())["bases"]]


def pin(root: Path = CHECKOUT) -> None:
    """Write the digest that each base's tag stands for now.

    Raises:
        Fault: the registry does not say.
        Skipped: there is no program to ask it with.
    """
    file = root / "images" / "bases.yaml"
    for base in bases(root):
        digest = _digest_of(f"{base.image}:{base.tag}")
        line = re.compile(rf'(- \{{argument: {base.argument}, .*digest: )"[^"]*"')
        file.write_text(line.sub(rf'\1"{digest}"', file.read_text()))
        _LOG.info("%s:%s is %s, was %s", base.image, base.tag, digest, base.digest or "not pinned")


def _digest_of(reference: str) -> str:
    if shutil.which("skopeo"):
        said = run(["skopeo", "inspect", "--no-tags", "--format={{.Digest}}", f"docker://{reference}"])
    else:
        said = run([tool("docker"), "buildx", "imagetools", "inspect", "--format={{.Manifest.Digest}}", reference])
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", said.strip()):
        raise Fault(f"the registry says of {reference}: {said.strip()!r}, which is no digest")
    return said.strip()


def build(names: Sequence[str], *, accelerator: str, repository: str, engine: str, root: Path = CHECKOUT) -> list[str]:
    """Build images, and name them.

    Args:
        names: of `NAMES`.
        accelerator: `cuda` or `cpu`; what torch of the trainer is for.
        repository: what stands before an image's name: a registry and a path, with a slash at the end.
        engine: a program that builds as docker does.

    Raises:
        UserError: a base is not pinned.
    """
    revision = run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=root).strip()
    arguments = {base.argument: base.reference for base in bases(root)}
    arguments |= {"ACCELERATOR": accelerator, "REVISION": revision, "VERSION": __version__}
    built = [f"{repository}{name}:{revision}" for name in names]
    for name, reference in zip(names, built, strict=True):
        dockerfile = (root / "images" / name / "Dockerfile").read_text()
        given = [f"--build-arg={key}={value}" for key, value in arguments.items() if f"ARG {key}" in dockerfile]
        options = [*_ENGINES.get(engine, []), f"--file=images/{name}/Dockerfile", f"--tag={reference}", *given]
        subprocess.run([engine, "build", *options, "."], cwd=root, check=True)
    return built


def write_requirements(root: Path = CHECKOUT) -> None:
    """Write what each image installs, every file of every version with its hash, at the versions of the lock.

    Raises:
        UserError: the CPU's torch is not the lock's.
    """
    images = root / "images"
    own = "pyproject.toml"
    _write(images / "trainer" / "requirements-cuda.txt", _compiled(root, own, "--extra=gpu"))
    of_cuda = [name for name in names_in(_compiled(root, own)) if _OF_CUDA.fullmatch(name)]
    cpu = (images / "trainer" / "torch-cpu.txt").read_text().partition("\n")[2]
    if (wanted := f"torch=={versions_in((root / LOCK).read_text())['torch']}+cpu") not in cpu:
        raise UserError(
            f"images/trainer/torch-cpu.txt has another torch than {LOCK}, which wants {wanted}. Put its hash there."
        )
    _write(images / "trainer" / "requirements-cpu.txt", _compiled(root, own, *_without(of_cuda)) + cpu)
    for name in ("mlflow", "sandbox"):
        _write(images / name / "requirements.txt", _compiled(root, f"images/{name}/requirements.in"))
    in_airflow = names_in(_compiled(root, "-", given="apache-airflow"))
    _write(
        images / "airflow" / "requirements.txt",
        _compiled(root, "images/airflow/requirements.in", *_without(in_airflow)),
    )


def _write(file: Path, lines: str) -> None:
    file.write_text(f"# Written by `make images-lock`.\n{lines}")


def _compiled(root: Path, source: str, *options: str, given: str = "") -> str:
    command = [tool("uv"), "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
    command += ["--generate-hashes", f"--python-version={_PYTHON}", f"--python-platform={_PLATFORM}"]
    return run([*command, f"--constraint={LOCK}", *options, source], cwd=root, input=given)


def _without(names: Sequence[str]) -> list[str]:
    return [f"--no-emit-package={name}" for name in names]


def names_in(requirements: str) -> list[str]:
    """Distributions that a file of requirements pins."""
    return list(versions_in(requirements))


def versions_in(requirements: str) -> dict[str, str]:
    """Version of each distribution that a file pins for the images' Python."""
    pins = [Requirement(line) for line in _lines(requirements)]
    here = {"python_version": _PYTHON, "python_full_version": f"{_PYTHON}.0", "sys_platform": "linux"}
    here |= {"platform_machine": "x86_64"}
    kept = [one for one in pins if one.marker is None or one.marker.evaluate(here)]
    return {canonicalize_name(one.name): next(iter(one.specifier)).version for one in kept}


def _lines(requirements: str) -> Iterator[str]:
    for line in requirements.replace("\\\n", "").splitlines():
        if line.strip() and not line.startswith(("#", "--")):
            yield line.partition(" --hash")[0].strip()


def write_sboms(folder: Path, root: Path = CHECKOUT) -> list[Path]:
    """Write what is installed in each image, by its hashed requirements; the base's own packages are not among them.

    Raises:
        Skipped: there is no cyclonedx-py.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for file in sorted((root / "images").glob("*/requirements*.txt")):
        name = f"{file.parent.name}{file.stem.removeprefix('requirements')}"
        written.append(folder / f"{name}.cdx.json")
        options = ["--output-reproducible", "--no-validate", "-o", str(written[-1])]
        run([tool("cyclonedx-py"), "requirements", str(file), *options])
    return written


def _engine() -> str:
    found = [name for name in _ENGINES if shutil.which(name)]
    if not found:
        raise UserError(f"There is none of {', '.join(_ENGINES)} on PATH. Install one, or name another with --engine.")
    return found[0]


def main() -> int:
    """Exit with 64 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["lock", "pin", "build", "sbom"])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--cpu", action="store_true", help="the trainer with torch for the CPU")
    parser.add_argument("--repository", default="wmtp/", help="what stands before a name (default: %(default)s)")
    parser.add_argument("--engine", help=f"program that builds (default: the first of {', '.join(_ENGINES)} on PATH)")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"there is no image {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    logs.configure()
    try:
        _act(options)
    except (Fault, Skipped, WmtpError) as error:
        print(error, file=sys.stderr)
        return UserError.exit_code
    except subprocess.CalledProcessError as error:
        return error.returncode  # the engine has said why
    return 0


def _act(options: argparse.Namespace) -> None:
    if options.action == "lock":
        write_requirements()
    elif options.action == "pin":
        pin()
    elif options.action == "sbom":
        print("\n".join(map(str, write_sboms(CHECKOUT / ".wmtp" / "sbom"))))
    else:
        built = build(
            options.names or NAMES,
            accelerator="cpu" if options.cpu else "cuda",
            repository=options.repository,
            engine=options.engine or _engine(),
        )
        print("\n".join(built))


if __name__ == "__main__":
    sys.exit(main())
