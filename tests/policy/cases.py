"""Changes of a plan, to be listed in tables: what is changed, and what a policy says about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from policy.rule import PlanPolicy, ResourcePolicy
from tests.policy.judging import UNKNOWN, Judge, Planned, Verdict, removed, with_property

Change = Callable[[Sequence[Planned]], list[Planned]]
AnyPolicy = ResourcePolicy | PlanPolicy


def setting(name: str, *path: str | int, to: Any) -> Change:
    """One property of a resource gets another value; None takes it out."""
    return lambda plan: with_property(plan, name, path, to)


def unknown(name: str, *path: str | int) -> Change:
    """One property of a resource is not known before the update."""
    return setting(name, *path, to=UNKNOWN)


def output(name: str, key: str, to: Any) -> Change:
    """A component registers another output; None leaves it out."""

    def change(plan: Sequence[Planned]) -> list[Planned]:
        (component,) = [resource for resource in plan if resource.name == name]
        outputs = {**(component.outputs or {}), key: to}
        if to is None:
            del outputs[key]
        return [replace(component, outputs=outputs) if resource is component else resource for resource in plan]

    return change


def without(*names: str) -> Change:
    """Some resources are not there."""
    return lambda plan: removed(plan, *names)


def adding(*resources: Planned) -> Change:
    """There are more resources."""
    return lambda plan: [*plan, *resources]


def copy_of(name: str, new_name: str, *changes: Change) -> Change:
    """There is one more resource, like another one but for the changes, which name the new one."""

    def change(plan: Sequence[Planned]) -> list[Planned]:
        (original,) = [resource for resource in plan if resource.name == name]
        return [*plan, *changed([replace(original, name=new_name)], *changes)]

    return change


def changed(plan: Sequence[Planned], *changes: Change) -> list[Planned]:
    """The plan after all changes."""
    result = list(plan)
    for change in changes:
        result = change(result)
    return result


def judged(policy: AnyPolicy, plan: Sequence[Planned]) -> Verdict:
    """What one policy says about a plan."""
    judge = Judge(policy)
    return judge.of_stack(plan) if isinstance(policy, PlanPolicy) else judge.of_plan(plan)


def assert_refused(policy: AnyPolicy, plan: Sequence[Planned], sentence: str) -> None:
    """A policy ends the update with one message that has this sentence in it, and everything it reads is known."""
    verdict = judged(policy, plan)
    (message,) = verdict.violations[policy.name]
    assert sentence in message
    assert verdict.mandatory == {policy.name}
    assert not verdict.checked_at_up


def said(policy: AnyPolicy, plan: Sequence[Planned]) -> list[str]:
    """What a policy finds wrong with a plan of which everything it reads is known."""
    verdict = judged(policy, plan)
    assert not verdict.checked_at_up
    return list(verdict.violations.get(policy.name, ()))


def left_open(policy: AnyPolicy, plan: Sequence[Planned]) -> str:
    """What a policy cannot know yet; it finds nothing wrong meanwhile."""
    verdict = judged(policy, plan)
    assert not verdict.violations
    return verdict.checked_at_up[policy.name]


def names_of(table: Sequence[tuple[Any, ...]]) -> list[str]:
    """Names for the rows of a table that begin with a policy."""
    return [row[0].name for row in table]
