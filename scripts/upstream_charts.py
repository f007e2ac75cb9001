"""The charts that are not ours: fetch them at the locked version, and hold them and our values for them to the lock.

python -m scripts.upstream_charts fetch                # needs the network; fills in digests that are empty
python -m scripts.upstream_charts check --production   # refuses an empty digest
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from mlops_tasks import logs
from mlops_tasks.errors import UserError
from scripts.infra_step import CHECKOUT, Fault, Skipped, run, tool

_LOG = logging.getLogger(__name__)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Upstream:
    """One line of the lock."""

    name: str
    namespace: str
    repository: str
    version: str
    digest: str

    def pull(self, folder: Path) -> str:
        """Fetch the archive into a folder and say what its bytes hash to."""
        place = [f"{self.repository}/{self.name}"] if self.repository.startswith("oci://") else [self.name]
        place += [] if self.repository.startswith("oci://") else ["--repo", self.repository]
        command = [tool("helm"), "pull", *place, "--version", self.version, "--destination", str(folder)]
        run(command)
        archive = folder / f"{self.name}-{self.version}.tgz"
        return f"sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}"


def locked(root: Path = CHECKOUT) -> list[Upstream]:
    """The lock, in the order of installation."""
    tree = yaml.safe_load((root / "charts" / "upstream.lock.yaml").read_text())
    return [Upstream(**entry) for entry in tree["charts"]]


def faults(root: Path = CHECKOUT, *, production: bool = False) -> Iterator[str]:
    """What is wrong with the lock, a sentence each."""
    entries = locked(root)
    for entry in entries:
        if not re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+", entry.version):
            yield f"{entry.name}: the version {entry.version!r} is none that can be pinned; give all three numbers"
        if entry.digest and not _DIGEST.fullmatch(entry.digest):
            yield f"{entry.name}: the digest {entry.digest!r} is not sha256: and 64 hexadecimal digits"
        if production and not entry.digest:
            yield f"{entry.name}: the digest is empty; `python -m scripts.upstream_charts fetch` fills it in, then review the chart"
        if not (root / "charts" / "upstream" / f"{entry.name}.values.yaml").exists() and not entry.name.endswith(
            "-crd"
        ):
            yield f"{entry.name} is locked and has no charts/upstream/{entry.name}.values.yaml"
    known = {entry.name for entry in entries} | {"airflow-local-executor"}
    for file in sorted((root / "charts" / "upstream").glob("*.values.yaml")):
        if file.name.removesuffix(".values.yaml") not in known:
            yield f"charts/upstream/{file.name} is for a chart that is not locked"


def fetch(folder: Path, root: Path = CHECKOUT) -> None:
    """Bring the archives of all locked charts, held against their digests; an empty one is filled in.

    Raises:
        UserError: an archive is not the one that was reviewed; it is removed again.
        Fault: a chart cannot be fetched.
    """
    file = root / "charts" / "upstream.lock.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    for entry in locked(root):
        digest = entry.pull(folder)
        if entry.digest and entry.digest != digest:
            (folder / f"{entry.name}-{entry.version}.tgz").unlink()
            raise UserError(
                f"{entry.name} {entry.version} from {entry.repository} is {digest}, but the lock says {entry.digest}. "
                "The archive of a version must never change: do not install it."
            )
        line = re.compile(rf'(- \{{name: {re.escape(entry.name)}, .*digest: )"[^"]*"')
        file.write_text(line.sub(rf'\1"{digest}"', file.read_text()))
        _LOG.info("%s %s is %s", entry.name, entry.version, digest)


def main() -> int:
    """Exit with 64 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["fetch", "check"])
    parser.add_argument("--production", action="store_true", help="refuse empty digests")
    options = parser.parse_args()
    logs.configure()
    try:
        if options.action == "fetch":
            fetch(CHECKOUT / ".wmtp" / "charts")
        found = list(faults(production=options.production))
    except (Fault, Skipped, UserError) as error:
        found = [str(error)]
    print("\n".join(found), file=sys.stderr)
    return UserError.exit_code if found else 0


if __name__ == "__main__":
    sys.exit(main())
