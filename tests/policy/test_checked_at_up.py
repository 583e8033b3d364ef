"""What a preview does not know is said once, and never passed over in silence."""

from __future__ import annotations

import pytest

from policy import availability, data_safety
from policy.checked_at_up import CHECKED_AT_UP
from tests.policy.judging import UNKNOWN, Judge, Planned, with_property

pytestmark = pytest.mark.unit

DATABASE = "kubernetes:acid.zalan.do/v1:postgresql"


def database(name: str, members: object) -> Planned:
    return Planned(type=DATABASE, name=name, properties={"spec": {"numberOfInstances": members}})


def test_each_policy_is_named_with_what_it_could_not_read() -> None:
    plan = [database("first", UNKNOWN), database("second", 2)]
    verdict = Judge(availability.DATABASE_THREE_MEMBERS, CHECKED_AT_UP).of_plan(plan)
    assert verdict.mandatory == {"database-three-members"}, "what is known is checked at once"
    (message,) = verdict.violations["checked-at-up"]
    expected = "database-three-members: spec.numberOfInstances of first: not known yet, checked at `pulumi up`."
    assert expected in message


def test_a_long_list_is_cut_with_its_number() -> None:
    plan = [database(f"number-{number}", UNKNOWN) for number in range(5)]
    (message,) = Judge(availability.DATABASE_THREE_MEMBERS, CHECKED_AT_UP).of_plan(plan).violations["checked-at-up"]
    assert "of number-2 and 2 more: not known yet" in message
    assert "number-3" not in message


def test_policies_on_the_whole_plan_are_named_too(school_plan: list[Planned]) -> None:
    plan = with_property(school_plan, "gl3-container", ["tags"], UNKNOWN)
    (message,) = Judge(availability.K3S_TWO_SERVERS, CHECKED_AT_UP).of_plan(plan).violations["checked-at-up"]
    assert "k3s-two-servers: tags of stack: not known yet" in message


def test_with_everything_known_nothing_is_said(school_plan: list[Planned]) -> None:
    assert (
        not Judge(*availability.POLICIES, *data_safety.POLICIES, CHECKED_AT_UP)
        .of_plan(school_plan)
        .violations.get("checked-at-up")
    )
