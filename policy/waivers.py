"""Waivers themselves: one that has ended, or that is for nothing, is a violation; one that holds is shown in every report."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

from pulumi_policy import EnforcementLevel, Severity

from policy import stack_file
from policy.resources import Plan
from policy.rule import WHOLE_PLAN, PlanPolicy


def _in_force(plan: Plan) -> Iterator[str]:
    for waiver in stack_file.of_stack(plan.resources[0].stack).waivers:
        if waiver.until >= stack_file.today():
            where = {WHOLE_PLAN: "the whole plan", "*": "every resource"}.get(waiver.resource, waiver.resource)
            yield f"{waiver.policy} is waived for {where} until {waiver.until}: {waiver.reason}"


WAIVERS_IN_FORCE = PlanPolicy(
    "waivers-in-force",
    description="Waivers that hold are shown in every report.",
    why="A waiver that nobody sees is a policy that nobody has.",
    remedy="Remove it from `policyWaivers` as soon as its reason is gone.",
    severity=Severity.LOW,
    check=_in_force,
    enforcement_level=EnforcementLevel.ADVISORY,
)


def waivers_valid(policies: frozenset[str]) -> PlanPolicy:
    """The policy about waivers; ``policies`` gives the names of all that can be waived."""

    def check(plan: Plan) -> Iterator[str]:
        file = stack_file.of_stack(plan.resources[0].stack)
        if not file.is_readable:
            yield "`policyWaivers` cannot be read, so no waiver holds; `pulumi preview` says what is wrong with it."
        last_day = stack_file.today() + datetime.timedelta(days=stack_file.LONGEST_WAIVER_DAYS)
        resources = {WHOLE_PLAN, "*", *(resource.name for resource in plan.resources)}
        for waiver in file.waivers:
            what = f"The waiver of {waiver.policy} for {waiver.resource}"
            if waiver.until < stack_file.today():
                yield f"{what} ended on {waiver.until} (its reason was: {waiver.reason})."
            elif waiver.until > last_day:
                yield f"{what} lasts until {waiver.until}; allowed are {stack_file.LONGEST_WAIVER_DAYS} days from today."
            if waiver.policy not in policies:
                yield f"{what} names a policy that does not exist."
            if waiver.resource not in resources:
                yield f"{what} names a resource that is not in the plan."

    return PlanPolicy(
        "waivers-valid",
        description="Every waiver names a policy and a resource that exist, and has not ended.",
        why="A waiver is a promise to repair something by a certain day. On that day somebody has to decide again.",
        remedy="Repair what was waived and remove the waiver, or agree on a new end date with a reason.",
        severity=Severity.HIGH,
        check=check,
    )
