"""The lab for the tests that need a whole system: built once, used by all, torn down at the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab import network
from tests.lab.classroom import Lab


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The lab with the whole stack deployed. It is taken down at the end unless it was there before."""
    running, was_there = Lab(), network.exists()
    running.school("up", timeout=3600)
    yield running
    if not was_there:
        running.school("down", timeout=300)
