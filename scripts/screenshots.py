"""The pictures of the docs: `python -m scripts.screenshots` takes the report of the newest run; `make demo` makes one."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_tasks.config import load_environment
from mlops_tasks.report import page
from mlops_tasks.stage import runs
from scripts import airflow_home, browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ViewportSize

IMAGES = airflow_home.CHECKOUT / "docs" / "images"
SIZES: dict[str, ViewportSize] = {"wide": {"width": 1280, "height": 1000}, "phone": {"width": 360, "height": 740}}
PARTS = {"weights": "#weights", "lineage": "#lineage"}


def main() -> int:
    """Write all of them anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, default=IMAGES, help="folder that they go to")
    options = parser.parse_args()
    options.images.mkdir(parents=True, exist_ok=True)
    environment = load_environment(airflow_home.variables()["WMTP_ENVIRONMENT"])
    run = next(runs(environment), None)
    if run is None:
        print(f"There is no run in {environment.store}. Make one: make demo", file=sys.stderr)
        return 1
    with browser.chromium() as chromium, tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "report.html")
        path.write_text(page(run), encoding="utf-8")
        for picture in report(chromium, path, options.images):
            print(picture)
    return 0


def report(chromium: Browser, path: Path, images: Path) -> list[Path]:
    """The top of a report at two widths in both schemes, and some parts of it."""
    written = []
    for size in SIZES:
        for scheme in ("light", "dark"):
            written.append(images / f"report-{size}-{scheme}.png")
            _picture(chromium, path, written[-1], size=size, scheme=scheme)
    for part, place in PARTS.items():
        written.append(images / f"report-{part}.png")
        _picture(chromium, path, written[-1], size="wide", scheme="light", place=place)
    return written


def _picture(chromium: Browser, path: Path, picture: Path, *, size: str, scheme: Any, place: str = "") -> None:
    scale = 2 if size == "phone" else 1
    tab = chromium.new_page(viewport=SIZES[size], color_scheme=scheme, device_scale_factor=scale)
    tab.goto(f"{path.as_uri()}{place}")
    tab.screenshot(path=picture)
    tab.close()


if __name__ == "__main__":
    sys.exit(main())
