"""The policy pack as the engine runs it: in a preview, in an update, and over a state file."""

from __future__ import annotations

import json
import shutil
import sys
from datetime import date, timedelta
from pathlib import Path

import pytest

from tests.engine.conftest import Stack

pytestmark = pytest.mark.engine

ROOT = Path(__file__).resolve().parents[2]

CONTROL_PLANE = """
import pulumi_random as random

made = random.RandomPassword("made", length=option("length", 40), special=False)
version = made.result.apply(lambda _: option("version")) if option("late") else option("version")
pulumi.ComponentResource(
    "school:index:K3sControlPlane",
    "k3s",
    {"version": version, "serverSettings": {
        "datastore-endpoint": "postgres://k3s@10.0.145.113:5432/k3s",
        "datastore-cafile": "/ca.crt", "datastore-certfile": "/client.crt", "datastore-keyfile": "/client.key",
        "secrets-encryption": True, "write-kubeconfig-mode": "0600", "disable": ["servicelb", "traefik"],
        "kube-controller-manager-arg": ["node-monitor-grace-period=16s"],
    }},
)
"""


@pytest.fixture
def pack(stack: Stack) -> Path:
    """A copy of the pack in a project of its own, so that a test can give it a configuration file."""
    project = stack.directory / "school"
    for folder in ("policy", "settings"):
        shutil.copytree(ROOT / folder, project / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "credentials.py", project)
    definition = project / "policy" / "PulumiPolicy.yaml"
    definition.write_text(definition.read_text().replace("../.venv", sys.prefix))
    return project / "policy"


@pytest.fixture
def control_plane(stack: Stack) -> Stack:
    """A program with a control plane and nothing else; the version is an option."""
    stack.write(CONTROL_PLANE)
    stack.options = {"version": "stable"}
    return stack


def waive(pack: Path, policy: str, resource: str, until: date) -> None:
    """Write the one waiver of the stack's configuration file."""
    waiver = {
        "policy": policy,
        "resource": resource,
        "reason": "There is no other machine in this test.",
        "until": str(until),
    }
    content = {"config": {"school-postgres:policyWaivers": [waiver]}}
    (pack.parent / "Pulumi.lab.yaml").write_text(json.dumps(content))


def test_a_preview_that_breaks_a_policy_is_refused_with_its_remedy(control_plane: Stack, pack: Path) -> None:
    refused = control_plane.run("preview", "--policy-pack", str(pack)).expect_failure().text
    assert "[mandatory] [severity: high]  k3s-version-exact  (school:index:K3sControlPlane: k3s)" in refused
    assert "(docs/policies.md#k3s-version-exact)" in refused
    assert "[mandatory] [severity: critical]  k3s-two-servers" in refused
    assert "Traceback" not in refused


def test_what_a_preview_does_not_know_is_checked_before_it_is_made(control_plane: Stack, pack: Path) -> None:
    control_plane.options["late"] = True
    preview = control_plane.run("preview", "--policy-pack", str(pack)).text
    assert "version of k3s: not known yet, checked at `pulumi up`" in preview
    assert "[mandatory] [severity: high]  k3s-version-exact" not in preview

    refused = control_plane.up("--policy-pack", str(pack)).expect_failure().text
    assert "[mandatory] [severity: high]  k3s-version-exact" in refused
    assert list(control_plane.resources()) == ["made"]


def test_a_state_file_is_analyzed_without_a_backend(control_plane: Stack, pack: Path) -> None:
    control_plane.up().expect()
    state = control_plane.directory / "state.json"
    control_plane.run("stack", "export", "--file", str(state)).expect()
    refused = control_plane.run("policy", "analyze", "--policy-pack", str(pack), "--file", str(state))
    assert "k3s-version-exact" in refused.expect_failure().text
    assert "k3s-two-servers" in refused.text

    control_plane.options["version"] = "v1.36.3+k3s1"
    control_plane.up().expect()
    analyzed = control_plane.run("policy", "analyze", "--policy-pack", str(pack))
    assert "k3s-version-exact" not in analyzed.expect_failure().text


def test_a_waiver_is_shown_until_it_has_ended(control_plane: Stack, pack: Path) -> None:
    waive(pack, "k3s-two-servers", "stack", date.today() + timedelta(days=30))
    waived = control_plane.run("preview", "--policy-pack", str(pack)).text
    assert "[advisory] [severity: low]  waivers-in-force" in waived
    assert "k3s-two-servers is waived for the whole plan until" in waived
    assert "k3s-two-servers  (" not in waived

    waive(pack, "k3s-two-servers", "stack", date.today() - timedelta(days=1))
    ended = control_plane.run("preview", "--policy-pack", str(pack)).expect_failure().text
    assert "[mandatory] [severity: critical]  k3s-two-servers" in ended
    assert "The waiver of k3s-two-servers for stack ended on" in ended
