"""The machines of a plan in an order of their own: a plan lists them as they were made, differently in every run."""

from __future__ import annotations

from collections.abc import Iterable

from policy.resources import Machine, Plan


def machines(plan: Plan, *tags: str) -> list[Machine]:
    """Machines that carry at least one of the tags (without any tag, all), short names first and then by the alphabet."""
    return sorted(plan.machines(*tags), key=lambda machine: (len(machine.resource.name), machine.resource.name))


def names(found: Iterable[Machine]) -> str:
    """Their names for a sentence."""
    return ", ".join(machine.name for machine in found) or "none"
