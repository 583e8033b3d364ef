"""Runs policies as the engine runs them: through the SDK's own analyzer, on properties as they travel."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from google.protobuf import json_format
from pulumi.runtime.proto import analyzer_pb2
from pulumi_policy import EnforcementLevel, ResourceValidationPolicy
from pulumi_policy.policy import Policy, _PolicyAnalyzerServicer

from policy import rule
from policy.resources import remember
from tests.unit.recording import UNKNOWN, RecordingMonitor, Registered, unwrapped

__all__ = ["UNKNOWN", "Judge", "Planned", "Verdict", "planned", "removed", "with_property"]

PACK = "school-postgres"
NOT_KNOWN = "not known yet, checked at `pulumi up`"


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """A resource of a plan."""

    type: str
    name: str
    properties: Mapping[str, Any]
    """Inputs, secrets in the clear; ``UNKNOWN`` stands for what a preview does not know."""
    outputs: Mapping[str, Any] | None = None
    """What becomes of it, as a policy on the whole plan sees it; None: the same as the inputs."""
    protect: bool = False
    delete_before_replace: bool = False
    ignore_changes: Sequence[str] = ()
    stack: str = "school"

    @property
    def urn(self) -> str:
        """The URN that the engine would give it."""
        return f"urn:pulumi:{self.stack}::school-postgres::{self.type}::{self.name}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the pack said."""

    violations: Mapping[str, Sequence[str]]
    """Policy name to the messages of its violations, advisory ones included."""
    mandatory: frozenset[str]
    """Policies whose violations end the update."""
    checked_at_up: Mapping[str, str] = field(default_factory=dict)
    """Policy name to what a preview did not know."""

    @property
    def sentences(self) -> list[str]:
        """Every message."""
        return [message for messages in self.violations.values() for message in messages]


class Judge:
    """A policy pack of some policies."""

    def __init__(self, *policies: Policy) -> None:
        # The pack always has resource policies, and each remembers what it is shown; a judge may have none.
        remembers = ResourceValidationPolicy("remembers", "Sees every resource.", lambda args, _: remember(args))
        policies = (*policies, remembers)
        self._analyzer = _PolicyAnalyzerServicer(PACK, "1.0.0", list(policies), EnforcementLevel.MANDATORY)

    def of_resource(self, resource: Planned) -> Verdict:
        """What resource policies say about one resource."""
        rule.forget()
        return _verdict(self._analyze(resource))

    def of_stack(self, plan: Iterable[Planned]) -> Verdict:
        """What stack policies say about the plan as a whole."""
        rule.forget()
        return _verdict(self._analyze_stack(plan))

    def of_plan(self, plan: Sequence[Planned]) -> Verdict:
        """Everything, as a preview does it: each resource, then the plan as a whole."""
        rule.forget()
        found = [diagnostic for resource in plan for diagnostic in self._analyze(resource)]
        return _verdict([*found, *self._analyze_stack(plan)])

    def _analyze(self, resource: Planned) -> Iterable[Any]:
        request = _fill(analyzer_pb2.AnalyzeRequest(), resource, resource.properties)
        return list(self._analyzer.Analyze(request, None).diagnostics)  # type: ignore[no-untyped-call]

    def _analyze_stack(self, plan: Iterable[Planned]) -> Iterable[Any]:
        request = analyzer_pb2.AnalyzeStackRequest()
        for resource in plan:
            seen = resource.properties if resource.outputs is None else resource.outputs
            _fill(request.resources.add(), resource, seen)
        return list(self._analyzer.AnalyzeStack(request, None).diagnostics)  # type: ignore[no-untyped-call]


def planned(monitor: RecordingMonitor, stack: str = "school", *, first_preview: bool = False) -> list[Planned]:
    """A recorded run of the program as the policies see it."""
    return [_planned(monitor, resource, stack, first_preview) for resource in monitor.registered()]


def with_property(plan: Sequence[Planned], name: str, path: Sequence[str | int], value: Any) -> list[Planned]:
    """The plan with one property of one resource changed; ``value`` may be a function of the old value."""
    changed = [_changed(resource, path, value) if resource.name == name else resource for resource in plan]
    assert changed != list(plan), f"{name} has no such property, or it had this value before"
    return changed


def removed(plan: Sequence[Planned], *names: str) -> list[Planned]:
    """The plan without some resources."""
    missing = set(names) - {resource.name for resource in plan}
    assert not missing, f"not in the plan: {missing}"
    return [resource for resource in plan if resource.name not in names]


def _planned(monitor: RecordingMonitor, resource: Registered, stack: str, first_preview: bool) -> Planned:
    outputs = None if resource.custom else unwrapped(monitor.registered_outputs.get(resource.urn, {}))
    if first_preview and resource.type.startswith("kubernetes:"):
        # Without a kubeconfig the engine knows nothing of what becomes of an object.
        outputs = {}
    return Planned(
        type=resource.type,
        name=resource.name,
        properties=resource.clear,
        outputs=outputs,
        protect=resource.request.protect,
        delete_before_replace=resource.request.deleteBeforeReplace,
        ignore_changes=list(resource.request.ignoreChanges),
        stack=stack,
    )


def _changed(resource: Planned, path: Sequence[str | int], value: Any) -> Planned:
    properties: Any = copy.deepcopy(dict(resource.properties))
    at = properties
    for step in path[:-1]:
        at = at.setdefault(step, {}) if isinstance(at, dict) else at[step]
    last: Any = path[-1]
    if callable(value):
        change: Callable[[Any], Any] = value
        value = change(at.get(last) if isinstance(at, dict) else at[last])
    if value is None and isinstance(at, dict):
        at.pop(last, None)
    else:
        at[last] = value
    return replace(resource, properties=properties)


def _fill(request: Any, resource: Planned, properties: Mapping[str, Any]) -> Any:
    request.type, request.name, request.urn = resource.type, resource.name, resource.urn
    json_format.ParseDict(dict(properties), request.properties)
    request.options.protect = resource.protect
    request.options.deleteBeforeReplaceDefined = True
    request.options.deleteBeforeReplace = resource.delete_before_replace
    request.options.ignoreChanges.extend(resource.ignore_changes)
    return request


def _verdict(diagnostics: Iterable[Any]) -> Verdict:
    violations: dict[str, list[str]] = {}
    mandatory = set()
    for found in diagnostics:
        violations.setdefault(found.policyName, []).append(found.message)
        if found.enforcementLevel == analyzer_pb2.MANDATORY:
            mandatory.add(found.policyName)
    unknown = {policy: f"{', '.join(points)}: {NOT_KNOWN}" for policy, points in rule.open_points().items()}
    return Verdict(violations, frozenset(mandatory), unknown)
