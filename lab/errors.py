"""The one kind of failure that the lab reports to a person."""

from __future__ import annotations


class LabError(Exception):
    """Something the user can act on. The text says what failed, where, the likely cause and what to do."""
