"""Sow faults into a copy of terraform/, one at a time, and demand that each is found by the check that the table names.

    python -m scripts.seed_faults [WORD …]     the faults whose line holds one of the words, or all (13 minutes on two busy cores)

A test that cannot fail holds nothing: `tests/infra/terraform_faults.yaml` is the table, and this is how it was made true.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml

from mlops_tasks.errors import DataError
from scripts import check_terraform
from scripts.infra_step import CHECKOUT, Fault

TABLE = CHECKOUT / "tests" / "infra" / "terraform_faults.yaml"
_MODULE_DEPTH = {"modules": 2, "live": 2, "bootstrap": 1}


@dataclass(frozen=True)
class Seed:
    """A fault, and what must find it."""

    file: str
    find: str
    put: str
    caught_by: str

    def sow(self, terraform: Path) -> Path:
        """Write the fault into a tree; the module that it is in.

        Raises:
            DataError: the file does not hold what is to be replaced.
        """
        file = terraform / self.file
        text = file.read_text()
        if self.find not in text:
            raise DataError(f"{file} does not hold {self.find!r}. Mend this line of {TABLE.name}.")
        file.write_text(text.replace(self.find, self.put))
        parts = Path(self.file).parts
        return terraform.joinpath(*parts[: _MODULE_DEPTH[parts[0]]])


def seeds() -> list[Seed]:
    """The table."""
    return [Seed(**line) for line in yaml.safe_load(TABLE.read_text())]


def what_finds(seed: Seed) -> str:
    """What the checks say of a copy with the fault; empty where they find nothing."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shutil.copytree(CHECKOUT / "terraform", root / "terraform", ignore=shutil.ignore_patterns(".terraform*"))
        module = seed.sow(root / "terraform")
        try:
            if seed.caught_by.startswith("CKV"):
                check_terraform.check_checkov(root)
            else:
                check_terraform.judge([module])
        except Fault as fault:
            return str(fault)
    return ""


def is_caught(seed: Seed, said: str) -> bool:
    """Whether what was said comes from the check that is named."""
    if seed.caught_by in ("fmt", "validate"):
        return f"{seed.caught_by}:FAIL" in said
    failed = re.findall(r'run "(\w+)"\.\.\. fail', said)
    return seed.caught_by in failed or (seed.caught_by.startswith("CKV") and f"{seed.caught_by}:" in said)


def main(words: list[str]) -> int:
    """Sow all, two at a time, and print what was not found."""
    chosen = [seed for seed in seeds() if not words or any(word in str(seed) for word in words)]
    missed = 0
    with ThreadPoolExecutor(2) as pool:
        for seed, said in zip(chosen, pool.map(what_finds, chosen), strict=True):
            if not is_caught(seed, said):
                missed += 1
                print(
                    f"MISSED by {seed.caught_by}: {seed.file}: {seed.find!r}\n{said[-1500:] or 'nothing was found'}\n",
                    flush=True,
                )
    print(f"{len(chosen) - missed} of {len(chosen)} faults were found by the check that is named.")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
