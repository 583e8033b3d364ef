"""Makes a check a policy: reads, waives, reports, and says what could not be checked yet.

A check is a function that yields one sentence for everything it finds wrong. It returns at an absent property only where
the provider's default is safe. It never catches anything: a property that is not known yet ends it, and is noted here
(``checked_at_up`` says so once, at the end of the preview; the update, which knows it, runs the check again).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from typing import Final

from pulumi_policy import (
    EnforcementLevel,
    ReportViolation,
    ResourceValidationArgs,
    ResourceValidationPolicy,
    Severity,
    StackValidationArgs,
    StackValidationPolicy,
)
from pulumi_policy.proxy import UnknownValueError

from policy import stack_file
from policy.resources import Plan, Resource, remember

WHOLE_PLAN: Final = "stack"
"""What a waiver calls the resource of a policy that looks at the plan as a whole."""

ResourceCheck = Callable[[Resource], Iterable[str]]
PlanCheck = Callable[[Plan], Iterable[str]]
PlanResourceCheck = Callable[[Resource, Plan], Iterable[str]]

_open_points: Final[dict[str, dict[str, None]]] = {}


def open_points() -> Mapping[str, Sequence[str]]:
    """Policy name to the properties that it found unknown, since this process began: one preview."""
    return {policy: sorted(points) for policy, points in _open_points.items()}


def _note(policy: str, resource: str, error: UnknownValueError) -> None:
    _open_points.setdefault(policy, {})[f"{'.'.join(error.props)} of {resource}"] = None


_needed_waivers: Final[dict[str, set[str]]] = {}


def needs_waiver(policy: str, resource: str) -> bool:
    """Whether a waiver has covered something of a policy since this process began; ``*``: for any resource."""
    found = _needed_waivers.get(policy, set())
    return bool(found) if resource == stack_file.EVERY_RESOURCE else resource in found


def forget() -> None:
    """Begin anew, as another preview would."""
    _open_points.clear()
    _needed_waivers.clear()


def _judge(
    policy: ResourcePolicy | PlanPolicy,
    subject: str,
    urn: str | None,
    stack: str,
    sentences: Iterable[str],
    report_violation: ReportViolation,
) -> None:
    """Report what a check finds of one subject, or note that a waiver covers it, or what is not known."""
    is_waived = policy.is_waivable and stack_file.of_stack(stack).is_waived(policy.name, subject)
    try:
        for sentence in sentences:
            if is_waived:
                _needed_waivers.setdefault(policy.name, set()).add(subject)
                return
            report_violation(message(policy.name, sentence, policy.remedy), urn)
    except UnknownValueError as error:
        if is_waived:
            # What is not known may need it.
            _needed_waivers.setdefault(policy.name, set()).add(subject)
        else:
            _note(policy.name, subject, error)


class ResourcePolicy(ResourceValidationPolicy):
    """A policy that looks at one resource at a time, before anything is done to it."""

    why: str
    """Why it exists, for docs/policies.md."""
    remedy: str
    """What to do, one sentence."""
    is_waivable: Final = True

    def __init__(
        self,
        name: str,
        *,
        of: Container[str],
        description: str,
        why: str,
        remedy: str,
        severity: Severity,
        check: ResourceCheck,
        enforcement_level: EnforcementLevel | None = None,
    ) -> None:
        """``of`` are the type tokens it looks at; ``remedy`` is what to do, one sentence."""
        super().__init__(
            name,
            description,
            enforcement_level=enforcement_level,
            severity=severity,
            remediation_steps=remedy,
            url=link(name),
        )
        self.why = why
        self.remedy = remedy
        self._of, self._check = of, check

    def validate(self, args: ResourceValidationArgs, report_violation: ReportViolation) -> None:
        """Report what the check finds; called by the SDK."""
        remember(args)
        if args.resource_type not in self._of:
            return
        resource = Resource.of(args)
        _judge(self, resource.name, resource.urn, resource.stack, self._check(resource), report_violation)


class PlanPolicy(StackValidationPolicy):
    """A policy that needs more than one resource. It runs when the whole plan is known, and sees what resources become."""

    why: str
    """Why it exists, for docs/policies.md."""
    remedy: str
    """What to do, one sentence."""
    is_waivable: bool
    """Whether a waiver can cover it. None covers the reports of the pack itself: they are what shows waivers."""

    def __init__(
        self,
        name: str,
        *,
        description: str,
        why: str,
        remedy: str,
        severity: Severity,
        check: PlanCheck | None = None,
        of: Collection[str] = (),
        check_each: PlanResourceCheck | None = None,
        enforcement_level: EnforcementLevel | None = None,
        is_waivable: bool = True,
    ) -> None:
        """Give either ``check``, for the plan as a whole, or ``check_each``, for every resource of the types ``of``."""
        super().__init__(
            name,
            description,
            enforcement_level=enforcement_level,
            severity=severity,
            remediation_steps=remedy,
            url=link(name),
        )
        self.why = why
        self.remedy, self.is_waivable = remedy, is_waivable
        self._check, self._of, self._check_each = check, of, check_each

    def validate(self, args: StackValidationArgs, report_violation: ReportViolation) -> None:
        """Report what the checks find; called by the SDK. Every subject is looked at before it says what is not known."""
        # The engine has another order every time, and what is said must not change without a reason. gl9 before gl10.
        resources = [Resource.of(resource) for resource in args.resources]
        plan = Plan(sorted(resources, key=lambda resource: (resource.type, len(resource.name), resource.name)))
        if not plan.resources:
            return
        for name, urn, sentences in self._subjects(plan):
            _judge(self, name, urn, plan.resources[0].stack, sentences, report_violation)

    def _subjects(self, plan: Plan) -> Iterable[tuple[str, str | None, Iterable[str]]]:
        if self._check is not None:
            yield WHOLE_PLAN, None, self._check(plan)
        if self._check_each is not None:
            for resource in plan.of(self._of):
                yield resource.name, resource.urn, self._check_each(resource, plan)


def link(name: str) -> str:
    """Where a policy is explained."""
    return f"docs/policies.md#{name}"


def message(name: str, sentence: str, remedy: str) -> str:
    """What a student reads: what is wrong, what to do, where to read more."""
    return f"{sentence} {remedy} ({link(name)})"
