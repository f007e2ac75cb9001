"""The steps of `make check-infra` that judge images/, each a function of the tree that says in a line what it saw.

A step raises `Fault` with what is wrong, or `Skipped` with what this machine lacks. Nothing is built here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from scripts.images import LOCK, NAMES, bases, versions_in
from scripts.infra_step import Fault, run, tool

_LABELS = ("title", "description", "licenses", "revision", "version")


def check_hadolint(root: Path) -> str:
    """Hadolint, and the shell code in RUN by its ShellCheck."""
    files = [str(root / "images" / name / "Dockerfile") for name in NAMES]
    run([tool("hadolint"), *files])
    return f"{len(files)} Dockerfiles"


def check_rules(root: Path) -> str:
    """Our own rules: what stands beneath, who runs it, what is installed."""
    found = [*_faults_of_bases(root), *_faults_of_requirements(root)]
    for name in NAMES:
        text = (root / "images" / name / "Dockerfile").read_text().replace("\\\n", "")
        found += [f"{name}: {sentence}" for sentence in _faults_of(text, {base.argument for base in bases(root)})]
    if found:
        raise Fault("\n".join(found))
    return f"{len(NAMES)} Dockerfiles, their requirements against the lock, {len(bases(root))} bases"


def _faults_of(dockerfile: str, arguments: set[str]) -> Iterator[str]:
    lines = [line.partition(" ") for line in dockerfile.splitlines() if line and not line.startswith("#")]
    for word, _, rest in lines:
        if word == "FROM" and not (match := re.fullmatch(r"\$\{(\w+)\}( AS \w+)?", rest)):
            yield f"FROM {rest} is not an argument that images/bases.yaml pins"
        elif word == "FROM" and match and match[1] not in arguments:
            yield f"FROM {rest}: images/bases.yaml has no {match[1]}"
        elif word == "ARG" and rest.partition("=")[0] in arguments and "=" in rest:
            yield f"ARG {rest} has a default: a build without `make images` would take it unseen"
        elif word == "ADD":
            yield f"ADD {rest}: it unpacks and fetches; COPY does neither"
        elif word == "RUN" and "pip install" in rest and not {"--require-hashes", "--no-deps"} <= set(rest.split()):
            yield f"RUN {rest[:60]}… installs something whose hash nobody wrote down"
    users = [rest for word, _, rest in lines if word == "USER"]
    if not users or not re.fullmatch(r"[1-9][0-9]*:[0-9]+", users[-1]):
        yield f"it runs as {users[-1] if users else 'root'}; a cluster that refuses root must see a number"
    if missing := [label for label in _LABELS if f"org.opencontainers.image.{label}=" not in dockerfile]:
        yield f"it lacks the labels {', '.join(missing)}"


def _faults_of_bases(root: Path) -> Iterator[str]:
    for base in bases(root):
        if base.digest and not re.fullmatch(r"sha256:[0-9a-f]{64}", base.digest):
            yield f"{base.argument}: the digest {base.digest!r} is not sha256: and 64 hexadecimal digits"
    # Keys hold Python's minor version: the worker and the pod must come to the same one.
    pythons = {base.argument: re.search(r"(?:^|python)(3\.\d+)(?:-|$)", base.tag) for base in bases(root)}
    versions = {argument: match[1] if match else "none" for argument, match in pythons.items()}
    if len(set(versions.values())) > 1:
        yield f"the bases have different Pythons, so worker and pod would compute different keys: {versions}"


def _faults_of_requirements(root: Path) -> Iterator[str]:
    locked = versions_in((root / LOCK).read_text())
    for file in sorted((root / "images").glob("*/requirements*.txt")):
        text = file.read_text()
        for name, version in versions_in(text).items():
            if version.partition("+")[0] != locked.get(name):
                yield f"{file.relative_to(root)} has {name} {version}, the lock {locked.get(name, 'none')}: `make images-lock`"
        for line in text.replace("\\\n", "").splitlines():
            if "==" in line and not re.search(r"--hash=sha256:[0-9a-f]{64}\b", line):
                yield f"{file.relative_to(root)}: {line.split()[0]} has no hash"


STEPS: dict[str, Callable[[Path], str]] = {"images: hadolint": check_hadolint, "images: rules": check_rules}
