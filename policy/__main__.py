"""Starts the pack: ``pulumi preview --policy-pack policy``."""

from __future__ import annotations

import sys
from pathlib import Path

# The engine starts the pack in its own folder, and its modules belong to the project.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pulumi_policy import EnforcementLevel, PolicyPack

from policy.catalogue import POLICIES

PolicyPack("school-postgres", list(POLICIES), enforcement_level=EnforcementLevel.MANDATORY)
