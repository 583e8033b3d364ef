"""The end of a classroom lab."""

from __future__ import annotations

import json
import os
import subprocess
import time

import pytest

from lab import places
from lab.network import enter
from tests.lab.classroom import Lab

pytestmark = pytest.mark.lab


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
    assert list(places.TEMPLATE_CACHE.iterdir()) == []
    assert sorted(os.listdir(places.PROXMOX_HOST)) == before
    assert (
        subprocess.run(enter(["ping", "-c1", "-W1", "10.0.145.110"]), capture_output=True, check=False).returncode != 0
    )
