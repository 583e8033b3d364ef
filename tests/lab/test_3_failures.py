"""A killed run, a lost machine, a wrong value: the cause is named, and the next run continues."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from lab import places
from tests.lab.classroom import API_ADDRESS, SCHOOL, Lab, changed_configuration, wait_for, with_memory

pytestmark = pytest.mark.lab


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


def api_answers(lab: Lab) -> bool:
    """Whether the API is ready, seen at the virtual address."""
    return lab.kubectl(f"--server https://{API_ADDRESS}:6443 get --raw /readyz", check=False).strip() == "ok"


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
        # gl9 may just be rebooting with its new memory, and the API's address be on its way to the other balancer.
        wait_for(lambda: api_answers(lab), 20, "the API answering at its address")
        lab.pulumi("up", "--yes", "--refresh")
        wait_for(lambda: api_answers(lab), 20, "the API answering at its address")
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


def test_a_template_with_another_checksum_is_refused_and_the_next_run_continues(lab: Lab) -> None:
    with changed_configuration(template=lambda template: {**template, "sha512": "0" * 128}):
        done = lab.pulumi("up", "--yes", check=False)
    assert done.returncode != 0
    assert "checksum mismatch" in done.stdout
    assert "pve1-template" in done.stdout
    assert "Traceback" not in done.stdout
    lab.pulumi("up", "--yes")
    lab.pulumi("up", "--yes", "--expect-no-changes")


def test_a_k3s_binary_with_another_checksum_is_not_installed(lab: Lab) -> None:
    before = lab.on("gl6", "sha256sum /usr/local/bin/k3s").stdout
    with changed_configuration(kubernetes=lambda kubernetes: {**kubernetes, "binarySha256": "0" * 64}):
        done = lab.pulumi("up", "--yes", check=False)
    assert done.returncode != 0
    assert "gl2: k3s-node: FAILED: the K3s binary from" in done.stdout
    assert "it was not installed" in done.stdout
    assert lab.on("gl6", "sha256sum /usr/local/bin/k3s").stdout == before
    lab.pulumi("up", "--yes")
    lab.pulumi("up", "--yes", "--expect-no-changes")


def test_with_a_dead_datastore_the_database_goes_on_and_a_run_ends_with_the_cause(lab: Lab) -> None:
    lab.on("gl8", "systemctl stop postgresql@15-main")
    try:
        assert lab.sql("select 1").stdout.strip() == "1"
        begin = time.monotonic()
        with changed_configuration(postgres=lambda p: {**p, "parameters": {**p["parameters"], "work_mem": "9MB"}}):
            done = lab.pulumi("up", "--yes", check=False)
        assert done.returncode != 0
        assert time.monotonic() - begin < 300
        assert "postgres-cluster" in done.stdout
        assert "Traceback" not in done.stdout
    finally:
        lab.on("gl8", "systemctl start postgresql@15-main")
    wait_for(lambda: "ok" in lab.kubectl("get --raw /readyz", check=False), 60, "the API being ready again")
    lab.pulumi("up", "--yes")


def test_a_container_that_was_lost_is_made_again_with_everything_in_it(lab: Lab) -> None:
    lab.on("pve1", "pct stop 115 && pct destroy 115")
    lab.pulumi("up", "--yes", "--refresh")
    assert lab.on("gl10", "systemctl is-active nginx keepalived").stdout.split() == ["active", "active"]
    lab.pulumi("up", "--yes", "--expect-no-changes")
