"""What a preview could not check because it is not known yet: said once, for every policy, and never passed over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pulumi_policy import EnforcementLevel, Severity

from policy.resources import Plan
from policy.rule import PlanPolicy, open_points

LONGEST_LIST: Final = 3
"""So many properties are named; of more, their number is."""


def _not_known(_: Plan) -> Iterator[str]:
    # Sorted: the engine asks in another order every time, and a report must not change without a reason.
    for policy, points in sorted(open_points().items()):
        more = f" and {len(points) - LONGEST_LIST} more" if len(points) > LONGEST_LIST else ""
        yield f"{policy}: {', '.join(points[:LONGEST_LIST])}{more}: not known yet, checked at `pulumi up`."


CHECKED_AT_UP: Final = PlanPolicy(
    "checked-at-up",
    description="What a preview does not know yet is checked at `pulumi up`.",
    why="The preview of something new does not know what machines will say: their keys, their certificates. A policy that "
    "needs such a value can neither agree nor refuse.",
    remedy="Nothing has to be done: `pulumi up` asks the policy again.",
    severity=Severity.LOW,
    check=_not_known,
    enforcement_level=EnforcementLevel.ADVISORY,
    is_waivable=False,
)
