"""What happens on the second run, and after a change of the configuration."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from lab import places
from tests.lab.classroom import SCHOOL, Lab, changed_configuration, planned_changes, with_memory

pytestmark = pytest.mark.lab


def test_a_second_up_changes_nothing(lab: Lab) -> None:
    done = lab.pulumi("up", "--yes", "--expect-no-changes")
    assert "unchanged" in done.stdout
    assert "created" not in done.stdout


def test_more_memory_for_a_worker_changes_its_container_and_nothing_else(lab: Lab) -> None:
    with changed_configuration(machines=with_memory("gl6", 1408)):
        assert planned_changes(lab) == {"gl6-container": "update"}


def test_a_postgresql_parameter_changes_the_cluster_object_and_nothing_else(lab: Lab) -> None:
    with changed_configuration(postgres=lambda p: {**p, "parameters": {**p["parameters"], "work_mem": "8MB"}}):
        assert planned_changes(lab) == {"postgres-cluster": "update"}
        lab.pulumi("up", "--yes")
        shown = ""
        for _ in range(60):
            shown = lab.sql("show work_mem").stdout.strip()
            if shown == "8MB":
                break
            time.sleep(1)
        assert shown == "8MB"
    lab.pulumi("up", "--yes")


def test_one_more_worker_changes_only_what_knows_of_it(lab: Lab) -> None:
    worker = {
        "name": "gl7",
        "address": "10.0.145.117",
        "roles": ["k3s-worker"],
        "proxmoxHost": "pve1",
        "vmId": 117,
        "cores": 1,
        "memoryMiB": 1280,
        "diskGiB": 8,
    }
    with changed_configuration(machines=lambda machines: [*machines, worker]):
        changes = planned_changes(lab)
        created = {name for name, op in changes.items() if op == "create"}
        updated = {name for name, op in changes.items() if op == "update"}
        assert set(changes.values()) <= {"create", "update"}
        assert all(name.startswith(("gl7", "k3s-gl7")) for name in created)
        # Everybody's hosts file, and the wait for all nodes.
        assert updated == {f"{name}-hosts-file" for name in ("gl2", "gl3", "gl6", "gl8", "gl9", "gl10")} | {"k3s-ready"}


def test_the_school_stack_previews_with_the_same_program(lab: Lab, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    for name in (
        "Pulumi.yaml",
        "Pulumi.school.yaml",
        "__main__.py",
        "components",
        "credentials.py",
        "versions.py",
        "settings",
    ):
        source = places.REPOSITORY / name
        (project / name).symlink_to(source) if name != "Pulumi.school.yaml" else (project / name).write_bytes(
            source.read_bytes()
        )
    (project / ".venv").symlink_to(places.REPOSITORY / ".venv")
    pulumi = ["pulumi", "--cwd", str(project), "--non-interactive"]
    lab.run(*pulumi, "stack", "init", "school")
    secrets = {"proxmoxApiToken": places.API_TOKEN.read_text().strip(), "sshPrivateKey": places.SSH_KEY.read_text()}
    for key, value in secrets.items():
        done = subprocess.run(
            [str(SCHOOL), "lab", "run", "--", *pulumi, "config", "set", "--stack", "school", "--secret", key],
            input=value,
            text=True,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    preview = lab.run(*pulumi, "preview", "--stack", "school").stdout
    assert "to create" in preview
    assert "gl10-container" in preview
    lab.run(*pulumi, "stack", "rm", "school", "--yes", "--force")


def test_no_secret_is_in_state_logs_arguments_or_journals(lab: Lab) -> None:
    state = json.loads(lab.pulumi("stack", "export", "--show-secrets").stdout)["deployment"]["resources"]
    secrets = {
        resource["outputs"]["result"]
        for resource in state
        if resource["type"] == "random:index/randomPassword:RandomPassword"
        for resource in [
            {
                "outputs": {
                    "result": json.loads(resource["outputs"]["result"]["plaintext"])
                    if isinstance(resource["outputs"]["result"], dict)
                    else resource["outputs"]["result"]
                }
            }
        ]
    }
    assert len(secrets) >= 4
    secrets |= {places.API_TOKEN.read_text().strip().partition("=")[2], places.SSH_KEY.read_text().splitlines()[2]}
    patterns = places.STATE / "secrets" / "patterns"
    patterns.write_text("\n".join(sorted(secrets)) + "\n")
    patterns.chmod(0o600)
    try:
        places_to_look = [places.PULUMI_BACKEND, places.LOGS]
        found = subprocess.run(
            ["grep", "-rlFf", patterns, *places_to_look], capture_output=True, text=True, check=False
        ).stdout
        assert found == "", "a secret stands in a file of state or in a log"
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = process.read_bytes().decode(errors="replace")
            except OSError:
                continue
            assert not any(secret in words for secret in secrets), (
                f"a secret is an argument of {words.split(chr(0))[0]}"
            )
        for machine in ("gl2", "gl3", "gl6", "gl8", "gl9", "gl10"):
            journal = lab.on(machine, "journalctl --no-pager -o cat; cat /var/log/*.log 2>/dev/null || true").stdout
            assert not any(secret in journal for secret in secrets), f"a secret is in the journal of {machine}"
    finally:
        patterns.unlink()
