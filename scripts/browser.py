"""A headless Chromium of this machine, driven by Playwright, for the tests and pictures of our pages.

Playwright's own browsers are not used: whoever has Chromium or Chrome needs no other download. `CHROMIUM` names another program.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find() -> str | None:
    """The program, or None where there is none."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window, which ends with the block.

    Until then this thread has a running event loop of Playwright's, so that `asyncio.run` cannot be used in it.

    Raises:
        FileNotFoundError: there is no Chromium.
    """
    from playwright.sync_api import sync_playwright

    program = find()
    if program is None:
        raise FileNotFoundError(
            f"None of {', '.join(NAMES)} is on PATH. Install Chromium (Debian: apt-get install chromium), or name a program in CHROMIUM."
        )
    # In a container there is often neither a user namespace nor a large /dev/shm; what is opened here is ours.
    flags = [
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--disable-background-networking",
        "--force-color-profile=srgb",
    ]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=flags, timeout=120_000)
        try:
            yield browser
        finally:
            browser.close()
