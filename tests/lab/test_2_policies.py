"""The policy pack and the comment on a preview, with the whole system behind them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab import places
from tests.lab.classroom import Lab, changed_configuration, with_memory

pytestmark = pytest.mark.lab

PACK = ("--policy-pack", str(places.REPOSITORY / "policy"))


def test_the_plan_keeps_every_policy_and_shows_what_is_waived(lab: Lab) -> None:
    shown = lab.pulumi("preview", *PACK).stdout
    assert "waivers-in-force" in shown
    assert "[mandatory]" not in shown
    assert "unchanged" in shown


def test_what_exists_keeps_every_policy(lab: Lab) -> None:
    assert "[mandatory]" not in lab.pulumi("policy", "analyze", *PACK).stdout


def test_without_its_waivers_the_lab_would_be_refused(lab: Lab) -> None:
    with changed_configuration(policyWaivers=lambda waivers: []):
        refused = lab.pulumi("preview", *PACK, check=False)
    assert refused.returncode != 0
    assert "k3s-servers-on-different-hosts" in refused.stdout
    assert "Traceback" not in refused.stdout + refused.stderr


def test_a_state_file_of_a_database_with_one_member_is_refused(lab: Lab, tmp_path: Path) -> None:
    state = json.loads(lab.pulumi("stack", "export").stdout)
    (database,) = [
        resource for resource in state["deployment"]["resources"] if resource["urn"].endswith("::postgres-cluster")
    ]
    for properties in ("inputs", "outputs"):
        database[properties]["spec"]["numberOfInstances"] = 1
    file = tmp_path / "state.json"
    file.write_text(json.dumps(state), encoding="utf-8")
    refused = lab.run("pulumi", "policy", "analyze", "--non-interactive", *PACK, "--file", str(file), check=False)
    assert refused.returncode != 0
    assert "database-three-members" in refused.stdout
    assert "postgres-cluster has 1 members" in refused.stdout


def test_a_changed_worker_becomes_a_comment_that_says_what_is_interrupted(lab: Lab, tmp_path: Path) -> None:
    events = tmp_path / "preview.json"
    with changed_configuration(machines=with_memory("gl6", 1408)):
        lab.run(
            *("env", "PULUMI_DEBUG_COMMANDS=true", "pulumi", "preview", "--non-interactive", "--stack", places.STACK),
            *(*PACK, "--event-log", str(events)),
        )
    comment = lab.run("school", "preview-comment", str(events)).stdout
    assert "gl6" in comment
    assert "1408 MiB" in comment
    assert "restart" in comment.lower() or "reboot" in comment.lower()
    assert "waivers-in-force" in comment or "waived" in comment.lower()
