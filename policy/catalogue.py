"""Every policy of the pack."""

from __future__ import annotations

from typing import Final

from policy import availability, data_safety, network, secrecy, workloads
from policy.checked_at_up import CHECKED_AT_UP
from policy.rule import PlanPolicy, ResourcePolicy
from policy.waivers import WAIVERS_IN_FORCE, waivers_valid

TOPICS: Final = {
    "Availability": availability.POLICIES,
    "Data safety": data_safety.POLICIES,
    "Network": network.POLICIES,
    "Secrets": secrecy.POLICIES,
    "Workloads": workloads.POLICIES,
}
"""Policies by topic, in the order of docs/policies.md."""

_WAIVABLE: Final[tuple[ResourcePolicy | PlanPolicy, ...]] = tuple(
    policy for policies in TOPICS.values() for policy in policies
)
WAIVERS_VALID: Final = waivers_valid(frozenset(policy.name for policy in _WAIVABLE))

POLICIES: Final[tuple[ResourcePolicy | PlanPolicy, ...]] = (
    *_WAIVABLE,
    WAIVERS_VALID,
    WAIVERS_IN_FORCE,
    # At the end: it says what the others could not check.
    CHECKED_AT_UP,
)
