"""The steps of `make check-infra` that judge terraform/, each a function of the tree that says in a line what it saw.

Modules are checked in copies: no lock file and no `.terraform` is written into the tree.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scripts import terraform_pages
from scripts.infra_step import CHECKOUT, Fault, Skipped, Unpinned, run, tool

# A program that takes module folders and does fmt, init, validate and test without network, where there is one. It comes first:
# Terraform itself needs a registry for the provider.
_OFFLINE = Path(os.environ.get("TERRAFORM_CHECK", CHECKOUT.parent / "shared/tools/terraform-offline/check"))


def modules(root: Path) -> list[Path]:
    """Every folder of terraform/ that holds a module, the slowest first."""
    found = {file.parent for file in (root / "terraform").rglob("*.tf") if ".terraform" not in file.parts}
    return sorted(found, key=lambda module: (-sum(file.stat().st_size for file in module.rglob("*.hcl")), str(module)))


def check_modules(root: Path) -> str:
    """Format, validity and tests of every module."""
    found = modules(root)
    tests = sum(
        len(re.findall(r'^run "', file.read_text(), re.M)) for file in (root / "terraform").rglob("*.tftest.hcl")
    )
    return f"{judge(found)}; {len(found)} modules, {tests} tests"


def judge(found: Sequence[Path]) -> str:
    """Format, validity and tests of some modules; what judged them.

    Raises:
        Fault: one of them fails.
        Skipped: there is nothing to judge them with.
    """
    if _OFFLINE.is_file():
        run([str(_OFFLINE), *map(str, found)])
        return "Terraform with providers that know the schema only"
    program = tool("tofu" if shutil.which("tofu") else "terraform")
    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(lambda module: _judge_online(program, module), found):
            pass
    return f"{Path(program).name} with the real provider"


def _judge_online(program: str, module: Path) -> None:
    top = next(folder for folder in module.parents if folder.name == "terraform")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "terraform"
        shutil.copytree(top, copy, ignore=shutil.ignore_patterns(".terraform", "*.tfstate*"))
        where = copy / module.relative_to(top)
        run([program, "fmt", "-check", "-diff"], cwd=where)
        init = [program, "init", "-backend=false", "-input=false", "-no-color"]
        if (ended := subprocess.run(init, cwd=where, capture_output=True, text=True, check=False)).returncode:
            if re.search(r"registry\.|could not connect|Failed to query", ended.stderr):
                raise Skipped(
                    f"{program} cannot reach a registry for the provider of {module.name}; only its format was checked"
                )
            raise Fault(f"{module}: {ended.stderr.strip()[-6000:]}")
        for step in (["validate", "-no-color"], ["test", "-no-color"]):
            run([program, *step], cwd=where)


def check_checkov(root: Path) -> str:
    """Checkov's rules; what is skipped has its reason beside the resource."""
    command = [tool("checkov"), "--directory", str(root / "terraform"), "--framework", "terraform"]
    said = run([*command, "--quiet", "--compact", "--skip-download"], cwd=root)
    return said.strip().splitlines()[-1] if said.strip() else "nothing found"


def check_reasons(root: Path) -> str:
    """Whoever skips a rule of checkov says why."""
    skips = [
        (file.relative_to(root), line.strip())
        for file in sorted((root / "terraform").rglob("*.tf"))
        for line in file.read_text().splitlines()
        if "checkov:skip=" in line
    ]
    if bare := [
        f"{file}: {line}" for file, line in skips if not re.search(r"checkov:skip=CKV2?_AWS_\d+: \S.{10,}", line)
    ]:
        raise Fault("Without a reason:\n" + "\n".join(bare))
    return f"{len(skips)} skips, each with its reason"


def check_locks(root: Path) -> str:
    """Whoever applies runs the providers that were reviewed: each root module has them in its lock, as their registry signed them."""
    terraform = root / "terraform"
    roots = [terraform / "bootstrap", *sorted(file.parent for file in terraform.glob("live/*/versions.tf"))]
    unlocked = [folder for folder in roots if not (folder / ".terraform.lock.hcl").exists()]
    locked = [folder for folder in roots if folder not in unlocked]
    if bad := [f"{folder.relative_to(root)}: {name}" for folder in locked for name in sorted(_unsigned(folder))]:
        raise Fault(f"Locked without a registry's checksum (zh:…): {', '.join(bad)}. `make pins` writes the lock anew.")
    if unlocked:
        names = ", ".join(str(folder.relative_to(root)) for folder in unlocked)
        raise Unpinned(f"NOT PINNED YET: no .terraform.lock.hcl in {names}; `make pins` writes it, commit it")
    return f"{len(roots)} root modules have their providers locked"


def _unsigned(folder: Path) -> set[str]:
    """The providers that a root module requires and its lock does not hold by a checksum of their registry."""
    required = set(re.findall(r'source\s+= "hashicorp/(\w+)"', (folder / "versions.tf").read_text()))
    lock = (folder / ".terraform.lock.hcl").read_text()
    blocks = re.findall(r'^provider "registry\.[a-z.]+/hashicorp/(\w+)" {\n(.*?)^}', lock, re.M | re.S)
    return required - {name for name, block in blocks if '"zh:' in block}


def check_pages(root: Path) -> str:
    """The tables of the READMEs are what modules and prices say."""
    old = [page for page, text in terraform_pages.pages(root).items() if not page.exists() or page.read_text() != text]
    if old:
        raise Fault(
            "Not up to date, run `python -m scripts.terraform_pages`: "
            + ", ".join(str(page.relative_to(root)) for page in old)
        )
    return f"{len(terraform_pages.pages(root))} pages"


STEPS: dict[str, Callable[[Path], str]] = {
    "terraform: fmt, validate, test": check_modules,
    "terraform: checkov": check_checkov,
    "terraform: skips have reasons": check_reasons,
    "terraform: provider locks": check_locks,
    "terraform: READMEs": check_pages,
}
