"""Builds everything that the lab needs and cannot download, and keeps it: see :func:`build_all`."""

from __future__ import annotations

from lab.builds.cache import BuildError
from lab.builds.progress import ConsoleReport
from lab.builds.run import Artefacts, Report, build_all

__all__ = ["Artefacts", "BuildError", "ConsoleReport", "Report", "build_all"]
