"""The pack notices: every change of the table is refused by somebody, and every policy refuses something."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from policy.catalogue import POLICIES
from policy.reference import is_advice
from tests.policy import mutations
from tests.policy.judging import Judge, Planned

pytestmark = pytest.mark.unit

MUTATIONS = list(mutations.mutations())
NOT_IN_A_PLAN = {"waivers-valid"}
"""Policies that look at something else than the plan; tests of their own show that they refuse."""

Noticed = Callable[[mutations.Mutation], frozenset[str]]


@pytest.fixture(scope="module")
def noticed(school_plan: list[Planned]) -> Noticed:
    """Who refuses a mutation; each is judged once."""
    judge, known = Judge(*POLICIES), dict[mutations.Mutation, frozenset[str]]()

    def ask(mutation: mutations.Mutation) -> frozenset[str]:
        if mutation not in known:
            known[mutation] = mutations.noticed_by(judge, school_plan, mutation.made_in(school_plan))
        return known[mutation]

    return ask


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_somebody_notices(
    mutation: mutations.Mutation, noticed: Noticed, record_property: Callable[[str, object], None]
) -> None:
    names = noticed(mutation)
    for cell in (mutation.resource, mutation.what, mutation.to, ", ".join(sorted(names)) or "NOBODY"):
        record_property("row", cell)
    assert names, "no mandatory policy notices"


def test_every_policy_notices_something(noticed: Noticed) -> None:
    used = frozenset[str]().union(*(noticed(mutation) for mutation in MUTATIONS))
    mandatory = {policy.name for policy in POLICIES if not is_advice(policy)}
    assert mandatory - used - NOT_IN_A_PLAN == set()


def leaves(value: Any, path: str) -> Iterator[str]:
    """The path of every value inside of a property; a list is one value."""
    if isinstance(value, Mapping) and value:
        for key, inside in value.items():
            yield from leaves(inside, f"{path} {key}")
    else:
        yield path


@pytest.mark.parametrize(("resource", "property_"), mutations.FREE)
def test_every_setting_is_enforced_or_free_on_purpose(
    resource: str, property_: str, school_plan: list[Planned]
) -> None:
    (planned,) = (planned for planned in school_plan if planned.name == resource)
    enforced = list(mutations.PROPERTIES[resource])
    free = [f"{property_} {path}" for path in mutations.FREE[resource, property_]]
    settings = list(leaves(planned.properties[property_], property_))
    undecided = [path for path in settings if not any(f"{path} ".startswith(f"{known} ") for known in enforced + free)]
    assert undecided == []
    assert [path for path in free if path in enforced] == []
    assert [path for path in free if not any(f"{setting} ".startswith(f"{path} ") for setting in settings)] == []
