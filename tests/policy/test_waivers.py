"""Waivers: they hold for what they name, until the day they name, and nobody overlooks them."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from policy import availability, stack_file
from policy.catalogue import WAIVERS_VALID
from policy.waivers import WAIVERS_IN_FORCE
from tests.policy.judging import UNKNOWN, Judge, Planned, Verdict, with_property

pytestmark = pytest.mark.unit

TODAY = datetime.date(2027, 3, 1)
REASON = "Two machines are at the repair shop."
Waive = Callable[..., None]


@pytest.fixture
def waive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Waive]:
    """Writes the stack's file with waivers; the day is fixed."""
    monkeypatch.setattr(stack_file, "PROJECT", tmp_path)
    monkeypatch.setattr(stack_file, "today", lambda: TODAY)

    def write(*waivers: Any) -> None:
        stack_file.of_stack.cache_clear()
        content = {"config": {"school-postgres:policyWaivers": list(waivers)}}
        (tmp_path / "Pulumi.school.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")

    yield write
    stack_file.of_stack.cache_clear()


def waiver(**changes: str) -> dict[str, str]:
    given = {
        "policy": "database-three-members",
        "resource": "postgres-cluster",
        "reason": REASON,
        "until": "2027-03-01",
    }
    return given | changes


@pytest.fixture
def two_members(school_plan: list[Planned]) -> list[Planned]:
    return with_property(school_plan, "postgres-cluster", ["spec", "numberOfInstances"], 2)


def judged(plan: list[Planned]) -> Verdict:
    return Judge(
        availability.DATABASE_THREE_MEMBERS, availability.K3S_TWO_SERVERS, WAIVERS_VALID, WAIVERS_IN_FORCE
    ).of_plan(plan)


@pytest.mark.parametrize("resource", ["postgres-cluster", "*"])
def test_a_waiver_holds_on_its_last_day_and_is_shown(waive: Waive, two_members: list[Planned], resource: str) -> None:
    waive(waiver(resource=resource))
    verdict = judged(two_members)
    assert verdict.mandatory == frozenset()
    (shown,) = verdict.violations["waivers-in-force"]
    assert "database-three-members is waived for" in shown
    assert f"until 2027-03-01: {REASON} Remove it" in shown


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"until": "2027-02-28"}, f"ended on 2027-02-28 (its reason was: {REASON})"),
        ({"until": "2028-03-03"}, "lasts until 2028-03-03; allowed are 366 days from today"),
        ({"policy": "database-three-member"}, "names a policy that cannot be waived, or does not exist"),
        ({"policy": "waivers-valid", "resource": "*"}, "names a policy that cannot be waived, or does not exist"),
        ({"resource": "postgres-clusters"}, "names a resource that is not in the plan"),
    ],
)
def test_a_waiver_that_is_wrong_is_refused(
    waive: Waive, school_plan: list[Planned], changes: dict[str, str], sentence: str
) -> None:
    waive(waiver(**changes))
    verdict = judged(school_plan)
    assert verdict.mandatory == {"waivers-valid"}
    assert sentence in verdict.violations["waivers-valid"][0]


def test_what_an_ended_waiver_covered_is_refused_again(waive: Waive, two_members: list[Planned]) -> None:
    waive(waiver(until="2027-02-28"))
    verdict = judged(two_members)
    assert verdict.mandatory == {"database-three-members", "waivers-valid"}
    assert "waivers-in-force" not in verdict.violations


def test_a_waiver_for_another_resource_does_not_hold(waive: Waive, two_members: list[Planned]) -> None:
    waive(waiver(resource="gl2-container"))
    assert judged(two_members).mandatory == {"database-three-members"}


def test_a_policy_on_the_whole_plan_is_waived_for_the_stack(waive: Waive, school_plan: list[Planned]) -> None:
    one_server = with_property(school_plan, "gl3-container", ["tags"], ["k3s-worker"])
    waive()
    assert judged(one_server).mandatory == {"k3s-two-servers"}
    waive(waiver(policy="k3s-two-servers", resource="stack"))
    assert judged(one_server).mandatory == frozenset()


@pytest.mark.parametrize(
    "broken",
    [{"policy": "database-three-members"}, waiver(reason="because"), waiver(until="soon"), waiver(extra="x"), "all"],
)
def test_waivers_that_cannot_be_read_do_not_hold(waive: Waive, two_members: list[Planned], broken: Any) -> None:
    waive(broken)
    verdict = judged(two_members)
    assert verdict.mandatory == {"database-three-members", "waivers-valid"}
    assert "no waiver holds" in verdict.violations["waivers-valid"][0]


def test_the_pack_s_own_reports_cannot_be_waived(waive: Waive, two_members: list[Planned]) -> None:
    reports = ("waivers-valid", "waivers-in-force")
    waive(waiver(), *(waiver(policy=report, resource=where) for report in reports for where in ("*", "stack")))
    verdict = judged(two_members)
    assert verdict.mandatory == {"waivers-valid"}
    assert "database-three-members is waived for postgres-cluster" in verdict.violations["waivers-in-force"][0]


def test_a_waiver_for_longer_than_allowed_does_not_hold(waive: Waive, two_members: list[Planned]) -> None:
    waive(waiver(until="2999-01-01"))
    verdict = judged(two_members)
    assert verdict.mandatory == {"database-three-members", "waivers-valid"}
    assert "waivers-in-force" not in verdict.violations


@pytest.mark.parametrize(
    "changes", [{}, {"resource": "*"}, {"resource": "stack"}, {"policy": "k3s-two-servers", "resource": "stack"}]
)
def test_a_waiver_that_nothing_needs_is_told(waive: Waive, school_plan: list[Planned], changes: dict[str, str]) -> None:
    waive(waiver(**changes))
    (shown,) = judged(school_plan).violations["waivers-in-force"]
    assert "Nothing in this plan needs it." in shown


def test_a_waiver_that_covers_what_is_not_known_may_be_needed(waive: Waive, school_plan: list[Planned]) -> None:
    waive(waiver())
    plan = with_property(school_plan, "postgres-cluster", ["spec", "numberOfInstances"], UNKNOWN)
    assert "Nothing in this plan needs it." not in judged(plan).violations["waivers-in-force"][0]


@pytest.mark.parametrize("content", [b"config: all", b"- config", b"", b"config:\n  a: \xe4"])
def test_a_file_of_another_form_has_no_waivers(
    waive: Waive, two_members: list[Planned], tmp_path: Path, content: bytes
) -> None:
    waive()
    stack_file.of_stack.cache_clear()
    (tmp_path / "Pulumi.school.yaml").write_bytes(content)
    assert "database-three-members" in judged(two_members).mandatory


def test_without_a_file_nothing_is_waived(waive: Waive, two_members: list[Planned]) -> None:
    assert judged(two_members).mandatory == {"database-three-members"}


def test_a_waived_policy_does_not_speak_of_what_is_not_known(waive: Waive, school_plan: list[Planned]) -> None:
    unknown = with_property(school_plan, "postgres-cluster", ["spec", "numberOfInstances"], UNKNOWN)
    waive()
    assert list(judged(unknown).checked_at_up) == ["database-three-members"]
    waive(waiver())
    assert judged(unknown).checked_at_up == {}
