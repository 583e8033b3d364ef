"""docs/policies.md is what the policies say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter

from policy import reference
from policy.catalogue import POLICIES, TOPICS
from settings import NAMESPACE, PolicyWaiverSettings

pytestmark = pytest.mark.unit

PAGE = Path(__file__).resolve().parents[2] / "docs" / "policies.md"


def test_the_committed_page_is_the_generated_one() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference.page(), "run: python -m policy.reference > docs/policies.md"


def test_every_policy_has_a_heading_and_a_line_in_the_table_of_its_topic() -> None:
    sections = re.split(r"^## (.+)$", reference.page(), flags=re.MULTILINE)
    by_title = dict(zip(sections[1::2], sections[2::2], strict=True))
    for topic, policies in TOPICS.items():
        for policy in policies:
            assert by_title[topic].count(f"### {policy.name}\n") == 1
            assert f"| [{policy.name}](#{policy.name}) | {policy.description} |" in by_title[topic]
    assert reference.page().count("\n### ") == len(POLICIES)


def test_the_waiver_that_is_shown_is_one() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", reference.page(), re.DOTALL)
    waivers = yaml.safe_load(example)[f"{NAMESPACE}:policyWaivers"]
    (waiver,) = TypeAdapter(list[PolicyWaiverSettings]).validate_python(waivers)
    assert waiver.policy in {policy.name for policy in POLICIES}


def test_what_is_advice_is_named_as_advice() -> None:
    page = reference.page()
    for policy in POLICIES:
        says_so = f"- Severity: {policy.severity.value if policy.severity else None}, advice;"
        section = page.split(f"### {policy.name}\n", 1)[1].split("\n#", 1)[0]
        assert (says_so in section) is reference.is_advice(policy)
