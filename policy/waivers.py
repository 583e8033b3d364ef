"""Waivers themselves: one that has ended, or names what is not there, is a violation; one that holds is always shown."""

from __future__ import annotations

from collections.abc import Iterator

from pulumi_policy import EnforcementLevel, Severity

from policy import stack_file
from policy.resources import Plan
from policy.rule import WHOLE_PLAN, PlanPolicy, needs_waiver


def _in_force(plan: Plan) -> Iterator[str]:
    for waiver in stack_file.of_stack(plan.resources[0].stack).waivers:
        if stack_file.holds(waiver):
            where = {WHOLE_PLAN: "the whole plan", stack_file.EVERY_RESOURCE: "every resource"}
            unneeded = "" if needs_waiver(waiver.policy, waiver.resource) else " Nothing in this plan needs it."
            yield (
                f"{waiver.policy} is waived for {where.get(waiver.resource, waiver.resource)} until {waiver.until}: "
                f"{waiver.reason}{unneeded}"
            )


WAIVERS_IN_FORCE = PlanPolicy(
    "waivers-in-force",
    description="Waivers that hold are shown in every report.",
    why="A waiver that nobody sees is a policy that nobody has.",
    remedy="Remove it from `policyWaivers` as soon as its reason is gone.",
    severity=Severity.LOW,
    check=_in_force,
    enforcement_level=EnforcementLevel.ADVISORY,
    is_waivable=False,
)


def waivers_valid(policies: frozenset[str]) -> PlanPolicy:
    """The policy about waivers; ``policies`` gives the names of all that can be waived."""

    def check(plan: Plan) -> Iterator[str]:
        file = stack_file.of_stack(plan.resources[0].stack)
        if not file.is_readable:
            yield "`policyWaivers` cannot be read, so no waiver holds; `pulumi preview` says what is wrong with it."
        resources = {WHOLE_PLAN, stack_file.EVERY_RESOURCE, *(resource.name for resource in plan.resources)}
        for waiver in file.waivers:
            what = f"The waiver of {waiver.policy} for {waiver.resource}"
            if waiver.until < stack_file.today():
                yield f"{what} ended on {waiver.until} (its reason was: {waiver.reason})."
            elif waiver.until > stack_file.last_day():
                yield f"{what} lasts until {waiver.until}; allowed are {stack_file.LONGEST_WAIVER_DAYS} days from today."
            if waiver.policy not in policies:
                yield f"{what} names a policy that cannot be waived, or does not exist."
            if waiver.resource not in resources:
                yield f"{what} names a resource that is not in the plan."

    return PlanPolicy(
        "waivers-valid",
        description="Every waiver names a policy and a resource that exist, and has not ended.",
        why="A waiver is a promise to repair something by a certain day. On that day somebody has to decide again.",
        remedy="Repair what was waived and remove the waiver, or agree on a new end date with a reason.",
        severity=Severity.HIGH,
        check=check,
        is_waivable=False,
    )
