"""What is written says what is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_configuration_page_is_what_the_models_say() -> None:
    page = subprocess.run(
        [sys.executable, "-m", "scripts.configuration_page"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert (ROOT / "docs/configuration.md").read_text() == page, "run `make docs`"


def test_the_readmes_tree_names_every_module_and_nothing_else() -> None:
    tree = (ROOT / "README.md").read_text().split("## The tree")[1].split("```")[1]
    named = {line.split()[0] for line in tree.splitlines() if line.startswith("  ")}
    there = {
        path.name + "/" * path.is_dir()
        for path in (ROOT / "mlops_tasks").iterdir()
        if path.suffix == ".py" or (path.is_dir() and not path.name.startswith("_"))
    }
    assert named == there - {"__init__.py"}


def test_links_in_the_docs_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "terraform").glob("*.md")]:
        for path, heading in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text()):
            target = page.parent / path if path else page
            assert target.exists(), f"{page.name} links to {path}"
            assert not heading or heading in anchors(target), f"{page.name} links to {path}#{heading}"


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links to them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
