"""The whole pack on whole plans: what the project plans holds, and every policy has what a student needs to read."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import policy
from lab import places
from lab.builds import Artefacts
from lab.stack import configuration
from policy import stack_file
from policy.catalogue import POLICIES, TOPICS
from policy.reference import is_advice
from policy.rule import PlanPolicy, ResourcePolicy, link
from settings import NAMESPACE
from tests.policy.judging import Judge, Planned, planned
from tests.unit.recording import API_TOKEN, run_program, stack_configuration

pytestmark = pytest.mark.unit

Policy = ResourcePolicy | PlanPolicy

ADVICE = {"datastore-redundant", "workload-read-only-root", "waivers-in-force", "checked-at-up"}
"""Policies that let the command go on. Everything else is mandatory; whoever adds to this list has a reason."""

KINDS = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)+")
SENTENCE = re.compile(r"\S.{20,}\.", re.DOTALL)

every_policy = pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)


@pytest.fixture(scope="module")
def pack() -> Judge:
    return Judge(*POLICIES)


def test_the_school_breaks_no_policy(pack: Judge, school_plan: list[Planned]) -> None:
    verdict = pack.of_plan(school_plan)
    assert {name: verdict.violations[name] for name in verdict.mandatory} == {}
    assert set(verdict.violations) <= ADVICE
    assert verdict.checked_at_up == {}


def test_the_very_first_preview_breaks_no_policy(pack: Judge, first_plan: list[Planned]) -> None:
    verdict = pack.of_plan(first_plan)
    assert {name: verdict.violations[name] for name in verdict.mandatory} == {}
    assert set(verdict.violations) <= ADVICE


@pytest.fixture
def lab_plan(
    topics: dict[str, Any], ssh_private_key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[Planned]]:
    """The lab's plan, with its stack file where the policies look for it."""
    nowhere = Path("/nonexistent")
    artefacts = Artefacts(
        tools=nowhere,
        k3s=nowhere,
        k3s_sha256="a" * 64,
        template=nowhere,
        template_sha512="b" * 128,
        template_root=nowhere,
        registry_storage=nowhere,
        charts=nowhere,
    )
    lab = configuration(topics, artefacts, topics["proxmox"]["hosts"][0]["sshHostKey"], stack_file.today())
    file = tmp_path / f"Pulumi.{places.STACK}.yaml"
    file.write_text(yaml.safe_dump({"config": {f"{NAMESPACE}:{key}": value for key, value in lab.items()}}))
    monkeypatch.setattr(stack_file, "PROJECT", tmp_path)
    stack_file.of_stack.cache_clear()
    secrets = {"sshPrivateKey": ssh_private_key, "proxmoxApiToken": API_TOKEN}
    yield planned(run_program(stack_configuration(file, **secrets), stack=places.STACK), places.STACK)
    stack_file.of_stack.cache_clear()


def test_the_lab_breaks_no_policy_that_it_does_not_waive(pack: Judge, lab_plan: list[Planned]) -> None:
    verdict = pack.of_plan(lab_plan)
    assert {name: verdict.violations[name] for name in verdict.mandatory} == {}
    assert set(verdict.violations) <= ADVICE
    waivers = verdict.violations["waivers-in-force"]
    assert [waiver for waiver in waivers if "Nothing in this plan needs it." in waiver] == []


def test_every_name_is_there_once() -> None:
    names = [policy.name for policy in POLICIES]
    assert sorted(names) == sorted(set(names))


@every_policy
def test_a_policy_has_all_that_a_student_reads(policy: Policy) -> None:
    assert KINDS.fullmatch(policy.name)
    assert policy.url == link(policy.name)
    assert policy.severity is not None
    for text in (policy.description, policy.why, policy.remediation_steps):
        assert text is not None
        assert SENTENCE.fullmatch(text), text


def test_only_a_few_policies_are_advice() -> None:
    assert {policy.name for policy in POLICIES if is_advice(policy)} == ADVICE


def constants() -> dict[str, Policy]:
    """Every policy that a module of the pack makes, by the name of its constant."""
    found: dict[str, Policy] = {}
    for module in pkgutil.iter_modules(policy.__path__, "policy."):
        if module.name != "policy.__main__":
            members = vars(importlib.import_module(module.name))
            found |= {key: value for key, value in members.items() if isinstance(value, Policy)}
    return found


def test_every_policy_that_is_written_is_in_the_pack() -> None:
    left_out = {policy.name for policy in constants().values()} - {policy.name for policy in POLICIES}
    assert left_out == set()
    assert all(key == policy.name.upper().replace("-", "_") for key, policy in constants().items())


def test_every_topic_has_policies() -> None:
    assert all(TOPICS.values())
