"""What happens on the second run, after a change, after a killed run and when something is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import places
from lab.network import enter
from tests.lab.classroom import SCHOOL, Lab

pytestmark = pytest.mark.lab


@contextmanager
def changed_configuration(**topics: Any) -> Iterator[None]:
    """The stack's configuration with some topics changed; back to what it was at the end."""
    before = places.STACK_FILE.read_text(encoding="utf-8")
    content = yaml.safe_load(before)
    for topic, change in topics.items():
        key = f"school-postgres:{topic}"
        content["config"][key] = change(content["config"][key])
    places.STACK_FILE.write_text(yaml.safe_dump(content, sort_keys=True), encoding="utf-8")
    try:
        yield
    finally:
        places.STACK_FILE.write_text(before, encoding="utf-8")


def planned_changes(lab: Lab) -> dict[str, str]:
    """Name of every resource that a preview would touch, and how."""
    steps = json.loads(lab.pulumi("preview", "--json").stdout)["steps"]
    return {step["urn"].rsplit("::", 1)[1]: step["op"] for step in steps if step["op"] not in ("same", "read")}


def with_memory(machine: str, memory_mib: int) -> Any:
    """A change of ``machines`` that gives one of them another amount of memory."""
    return lambda machines: [{**m, "memoryMiB": memory_mib} if m["name"] == machine else m for m in machines]


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


def test_a_vm_id_that_somebody_else_uses_stops_the_run_before_anything_is_made(lab: Lab) -> None:
    lab.on("pve1", "printf 'arch: amd64\\nhostname: web\\n' > /etc/pve/nodes/pve1/lxc/118.conf")
    stranger = {
        "name": "gl7",
        "address": "10.0.145.117",
        "roles": ["k3s-worker"],
        "proxmoxHost": "pve1",
        "vmId": 118,
        "cores": 1,
        "memoryMiB": 1280,
        "diskGiB": 8,
    }
    try:
        with changed_configuration(machines=lambda machines: [*machines, stranger]):
            done = lab.pulumi("up", "--yes", check=False)
        assert done.returncode != 0
        assert "vm id 118 is taken by 'web'" in done.stdout
        assert "Traceback" not in done.stdout
        assert "hostname: web" in lab.on("pve1", "cat /etc/pve/lxc/118.conf").stdout
    finally:
        lab.on("pve1", "rm -f /etc/pve/nodes/pve1/lxc/118.conf")
        lab.pulumi("up", "--yes")


@pytest.mark.parametrize("seconds", [6, 25])
def test_an_up_that_was_killed_is_continued_by_the_next_one(lab: Lab, seconds: int) -> None:
    with changed_configuration(
        postgres=lambda p: {**p, "parameters": {**p["parameters"], "work_mem": f"{seconds}MB"}},
        machines=with_memory("gl9", 256 + seconds),
    ):
        running = subprocess.Popen(
            [str(SCHOOL), "lab", "run", "--", "pulumi", "--non-interactive", "up", "--yes", "--stack", places.STACK],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(seconds)
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        lab.pulumi("cancel", "--yes", check=False)
        lab.pulumi("up", "--yes", "--refresh")
    lab.pulumi("up", "--yes")
    lab.pulumi("up", "--yes", "--expect-no-changes")


def test_a_machine_that_refuses_ssh_ends_the_run_in_time_and_is_named(lab: Lab) -> None:
    lab.on("gl10", "systemctl stop ssh.socket ssh 2>/dev/null; true", check=False)
    try:
        begin = time.monotonic()
        with changed_configuration(apiLoadBalancer=lambda b: {**b, "virtualRouterId": 52}):
            done = lab.pulumi("up", "--yes", check=False)
        assert done.returncode != 0
        assert time.monotonic() - begin < 120
        assert "10.0.145.115" in done.stdout
        assert "Traceback" not in done.stdout
    finally:
        lab.school("kill", "gl10")
        lab.school("start", "gl10")
        lab.pulumi("up", "--yes", "--refresh")


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


def test_destroy_finishes_with_a_dead_cluster_and_leaves_nothing_on_the_proxmox_host(lab: Lab) -> None:
    before = sorted(os.listdir(places.PROXMOX_HOST))
    for machine in ("gl2", "gl3", "gl6"):
        lab.school("kill", machine)
    begin = time.monotonic()
    lab.pulumi("destroy", "--yes")
    assert time.monotonic() - begin < 300
    assert json.loads(lab.pulumi("stack", "export").stdout)["deployment"].get("resources", []) == []
    left = lab.on(
        "pve1", "ls /etc/pve/lxc /etc/modules-load.d/ /etc/sysctl.d/ /usr/local/lib | grep -c -e conf -e school || true"
    )
    assert "school" not in left.stdout
    assert list(places.GUEST_CONFIGS.glob("*.conf")) == []
    assert sorted(os.listdir(places.PROXMOX_HOST)) == before
    assert (
        subprocess.run(enter(["ping", "-c1", "-W1", "10.0.145.110"]), capture_output=True, check=False).returncode != 0
    )
