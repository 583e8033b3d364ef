"""What the pack knows besides the plan: the waivers and the DHCP range of the stack's configuration file.

The file is read, not the engine's configuration, because `pulumi policy analyze` hands none over: a waiver holds in the
same way in a preview, in an update and in an analysis of what exists.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import TypeAdapter, ValidationError

from policy.resources import dig
from settings import NAMESPACE, AddressRange, PolicyWaiverSettings

PROJECT: Final = Path(__file__).resolve().parents[1]
LONGEST_WAIVER_DAYS: Final = 366
"""A waiver is looked at again at least once a school year; a longer one does not hold at all."""
EVERY_RESOURCE: Final = "*"
"""What a waiver says in place of a resource when it is for all of them."""


def today() -> datetime.date:
    """The day that waivers are measured against."""
    return datetime.date.today()


@dataclass(frozen=True, kw_only=True, slots=True)
class StackFile:
    """What a stack's configuration says to the policies."""

    waivers: tuple[PolicyWaiverSettings, ...] = ()
    dhcp_range: AddressRange | None = None
    """Addresses that the school's DHCP server hands out; None: nothing is known of one."""
    is_readable: bool = True
    """False when the waivers are not of the form that the program allows; then none of them holds."""

    def is_waived(self, policy: str, resource: str) -> bool:
        """Whether a waiver that holds covers a policy for a resource."""
        return any(
            waiver.policy == policy and waiver.resource in (resource, EVERY_RESOURCE) and holds(waiver)
            for waiver in self.waivers
        )


def holds(waiver: PolicyWaiverSettings) -> bool:
    """Whether a waiver has not ended, and is not for longer than is allowed."""
    return today() <= waiver.until <= last_day()


def last_day() -> datetime.date:
    """The last day that a waiver may name today."""
    return today() + datetime.timedelta(days=LONGEST_WAIVER_DAYS)


@cache
def of_stack(stack: str) -> StackFile:
    """Read ``Pulumi.<stack>.yaml`` of this project; a stack without such a file has no waivers."""
    file = PROJECT / f"Pulumi.{stack}.yaml"
    if not file.is_file():
        return StackFile()
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return StackFile(is_readable=False)
    config = dig(content, "config")
    if not isinstance(config, Mapping):
        return StackFile()
    dhcp_range = _dhcp_range(config.get(f"{NAMESPACE}:network"))
    try:
        waivers = TypeAdapter(tuple[PolicyWaiverSettings, ...]).validate_python(
            config.get(f"{NAMESPACE}:policyWaivers") or ()
        )
    except ValidationError:
        return StackFile(dhcp_range=dhcp_range, is_readable=False)
    return StackFile(waivers=waivers, dhcp_range=dhcp_range)


def _dhcp_range(network: Any) -> AddressRange | None:
    text = network.get("dhcpRange") if isinstance(network, Mapping) else None
    try:
        return AddressRange.parse(text) if isinstance(text, str) else None
    except ValueError:
        # The program itself refuses such a configuration, with the sentence that belongs to it.
        return None
