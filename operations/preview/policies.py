"""What the policies said: violations, what can only be checked at `up`, and the waivers that hold."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from operations.preview.log import PolicyResult, Preview
from operations.preview.names import Names
from operations.preview.redaction import redacted

WAIVERS_IN_FORCE: Final = "waivers-in-force"
"""The advisory that names every waiver that holds."""
WAIVERS_VALID: Final = "waivers-valid"
"""The policy about waivers that have ended, or that are for nothing."""
CHECKED_AT_UP: Final = "checked-at-up"
"""The advisory that names every policy which needs a value that the preview does not know."""

_SEVERITIES: Final = ("critical", "high", "medium", "low", "")
_COLOUR = re.compile(r"<\{%[^%]*%\}>|\x1b\[[0-9;]*[mK]")


class Group(StrEnum):
    """What a finding is for the reader, in the order in which they are told."""

    REFUSED = "refused"
    """A mandatory policy is violated: `pulumi up` would be refused."""
    EXPIRED_WAIVER = "expired waiver"
    ADVICE = "advice"
    CHECKED_LATER = "checked at up"
    """The preview does not know a value that the policy needs."""
    WAIVER = "waiver in force"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What one policy said of one thing."""

    group: Group
    policy: str
    severity: str
    """``critical``, ``high``, ``medium``, ``low``, or empty."""
    enforcement: str
    """``mandatory``, ``remediate`` or ``advisory``."""
    title: str
    """What people call the thing; empty for the plan as a whole."""
    message: str
    """What is wrong and what to do."""
    see: str
    """Where the policy is explained."""


def findings(preview: Preview, known: Names) -> list[Finding]:
    """Everything the policies said, each thing once: what is refused first, then by severity and name."""
    return sorted(
        {_finding(result, preview, known) for result in preview.policies},
        key=lambda one: (list(Group).index(one.group), _severity(one.severity), one.policy, one.title, one.message),
    )


def _severity(text: str) -> int:
    return _SEVERITIES.index(text) if text in _SEVERITIES else len(_SEVERITIES)


def plain(text: str) -> str:
    """A message of the engine without colours and without secrets."""
    return redacted(_COLOUR.sub("", text)).strip()


def _finding(result: PolicyResult, preview: Preview, known: Names) -> Finding:
    see = f"docs/policies.md#{result.policy}"
    # The engine puts the policy's description in front, on a line of its own.
    _, _, own = plain(result.message).partition("\n")
    message = (own or plain(result.message)).replace(f"({see})", "").strip()
    enforcement = {"warning": "advisory", "": "advisory"}.get(result.enforcement, result.enforcement)
    resource = preview.resources.get(result.urn)
    return Finding(
        group=_group(result.policy, enforcement),
        policy=result.policy,
        severity=result.severity.lower(),
        enforcement=enforcement,
        title=known.thing(resource).title if resource else "",
        message=" ".join(message.split()),
        see=see,
    )


def _group(policy: str, enforcement: str) -> Group:
    if policy == WAIVERS_IN_FORCE:
        return Group.WAIVER
    if policy == WAIVERS_VALID:
        return Group.EXPIRED_WAIVER
    if enforcement == "mandatory":
        return Group.REFUSED
    return Group.CHECKED_LATER if policy == CHECKED_AT_UP else Group.ADVICE


def by_group(found: Sequence[Finding]) -> Mapping[Group, Sequence[Finding]]:
    """The findings of every group that has any."""
    return {
        group: [one for one in found if one.group is group]
        for group in Group
        if any(one.group is group for one in found)
    }
