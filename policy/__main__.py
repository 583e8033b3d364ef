"""Starts the pack: ``pulumi preview --policy-pack policy``."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

# The engine starts the pack in its own folder, and its modules belong to the project.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# Modules stay, and the engine hands over tens of thousands of small values, none of them part of a cycle: with Python's own
# threshold of 700, looking for cycles took a fifth of the pack's time.
gc.set_threshold(100_000)

from pulumi_policy import EnforcementLevel, PolicyPack  # noqa: E402 (see above)

from policy.catalogue import POLICIES  # noqa: E402 (see above)

PolicyPack("school-postgres", list(POLICIES), enforcement_level=EnforcementLevel.MANDATORY)
