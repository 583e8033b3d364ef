"""The school's plan, as policies see it."""

from __future__ import annotations

import pytest

from tests.conftest import Program
from tests.policy.judging import Planned, planned
from tests.unit.recording import RecordingMonitor


@pytest.fixture(scope="session")
def school_plan(school: RecordingMonitor) -> list[Planned]:
    """The school's plan when everything is known, as in an update of what exists."""
    return planned(school)


@pytest.fixture(scope="session")
def first_plan(run: Program) -> list[Planned]:
    """The school's very first preview: what machines say is not known."""
    return planned(run(preview=True), first_preview=True)
