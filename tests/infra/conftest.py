"""What the tests of charts have in common."""

from __future__ import annotations

import pytest

from scripts.infra_step import Skipped, tool


@pytest.fixture(scope="session")
def helm() -> str:
    """The program that renders charts; what needs it is skipped where there is none."""
    try:
        return tool("helm")
    except Skipped as reason:
        pytest.skip(str(reason))
