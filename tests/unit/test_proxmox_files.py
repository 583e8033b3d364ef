"""What the lab's Proxmox host reads and writes, without a container."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.errors import LabError
from lab.proxmox import lxc_config
from lab.proxmox.guest_config import GuestConfig, GuestConfigs, parse, render
from lab.proxmox.host import unlocked

pytestmark = pytest.mark.unit

OLD = lxc_config.Machine(unified_cgroups=False, apparmor=False, processors=2)
NEW = lxc_config.Machine(unified_cgroups=True, apparmor=True, processors=8)
FILE = """\
#gl2%3A server, 100%25 ours
#second line
arch: amd64
cores: 2
hostname: gl2
memory: 512
net0: name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:00:01,ip=10.0.145.110/24
lxc.cap.drop:\x20
lxc.mount.entry: /dev/kmsg dev/kmsg none defaults,bind,create=file 0 0

[pve:pending]
features: nesting=1
delete: cores

[before]
#a snapshot%3A yes
hostname: old
lxc.cap.drop: sys_admin
"""


def generated(config: GuestConfig, machine: lxc_config.Machine = OLD) -> list[str]:
    """The lines of the LXC configuration."""
    return lxc_config.generate(110, config, Path("/c/110"), machine)[0].splitlines()


def test_a_file_is_read_and_written_without_a_change() -> None:
    config = parse(FILE)
    assert config.description == "gl2: server, 100% ours\nsecond line\n"
    assert config.raw[0] == ("lxc.cap.drop", "")
    assert config.pending == {"features": "nesting=1", "cores": None}
    assert render(config) == FILE


def test_the_api_shows_numbers_raw_lines_and_what_is_pending() -> None:
    config = parse(FILE)
    assert config.api_view(current=True)["memory"] == 512
    assert "features" not in config.api_view(current=True)
    pending = config.api_view(current=False)
    assert pending["features"] == "nesting=1"
    assert "cores" not in pending
    assert pending["lxc"] == [["lxc.cap.drop", ""], ["lxc.mount.entry", config.raw[1][1]]]


def test_a_line_that_proxmox_does_not_know_is_named_and_not_used() -> None:
    config = parse("hostname: a\nlxc.kmsg: 0\nnonsense\nlxc.nonsense: 1\n")
    assert config.ignored == ["nonsense", "lxc.nonsense: 1"]
    assert config.raw == [("lxc.kmsg", "0")], "known to Proxmox VE; LXC then refuses it"
    _, warnings = lxc_config.generate(110, config, Path("/c/110"), OLD)
    assert [line for line in warnings if "nonsense" in line]


def test_a_missing_file_is_reported_in_the_words_of_proxmox(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"^Configuration file 'nodes/pve1/lxc/9\.conf' does not exist$"):
        GuestConfigs(tmp_path).load(9)


def test_raw_lines_come_last_so_that_they_win() -> None:
    lines = generated(parse(FILE))
    assert lines.index(f"lxc.cap.drop = {lxc_config.DROPPED_CAPABILITIES}") < lines.index("lxc.cap.drop =")
    assert lines[-1] == "lxc.mount.entry = /dev/kmsg dev/kmsg none defaults,bind,create=file 0 0"


def test_without_raw_lines_devices_are_limited_and_kernel_settings_read_only() -> None:
    lines = generated(parse("hostname: a\n"))
    assert "lxc.cgroup.devices.deny = a" in lines
    assert not any("1:11" in line for line in lines)
    assert "lxc.mount.auto = proc:mixed sys:mixed cgroup:rw:force" in lines


@pytest.mark.parametrize(
    ("raw", "machine", "expected"),
    [
        ("lxc.cgroup2.devices.allow: a", OLD, "lxc.cgroup.devices.allow = a"),
        ("lxc.cgroup2.devices.allow: a", NEW, "lxc.cgroup2.devices.allow = a"),
        ("lxc.cgroup2.memory.max: 1G", OLD, "lxc.cgroup.memory.limit_in_bytes = 1G"),
        ("lxc.cgroup2.cpu.max: max 100000", OLD, "lxc.cgroup.cpu.cfs_quota_us = -1"),
        ("lxc.apparmor.profile: unconfined", NEW, "lxc.apparmor.profile = unconfined"),
        ("lxc.mount.auto = proc:rw sys:rw", OLD, "lxc.mount.auto = proc:rw sys:rw"),
    ],
)
def test_a_raw_line_reaches_lxc_in_the_form_this_machine_understands(
    raw: str, machine: lxc_config.Machine, expected: str
) -> None:
    assert generated(parse(f"hostname: a\n{raw}\n"), machine)[-1] == expected


@pytest.mark.parametrize("raw", ["lxc.cgroup.devices.allow: a", "lxc.cgroup2.io.max: x"])
def test_a_raw_line_without_effect_is_said_to_have_none(raw: str) -> None:
    text, warnings = lxc_config.generate(110, parse(f"hostname: a\n{raw}\n"), Path("/c/110"), OLD)
    assert "devices.allow = a\n" not in text
    assert len(warnings) == 1


def test_memory_and_cores_limit_the_container() -> None:
    config = parse("hostname: a\nmemory: 256\ncores: 1\n")
    assert "lxc.cgroup.memory.limit_in_bytes = 268435456" in generated(config)
    assert any(line.startswith("lxc.cgroup.cpuset.cpus = ") for line in generated(config))
    assert "lxc.cgroup2.memory.max = 268435456" in generated(config, NEW)


def test_a_word_where_a_number_belongs_is_refused() -> None:
    with pytest.raises(LabError, match=r"unable to parse value of 'memory'.*got 'much'"):
        generated(parse("hostname: a\nmemory: much\n"))


@pytest.mark.parametrize(
    ("before", "after"), [("!", "*"), ("!*", "*"), ("!$6$x$y", "*"), ("*", "*"), ("$6$x$y", "$6$x$y")]
)
def test_root_of_the_proxmox_host_can_log_in_by_key_where_the_machine_locks_root(before: str, after: str) -> None:
    rest = ":20000:0:99999:7:::\ndaemon:!:20000:0:99999:7:::\n"
    assert unlocked(f"root:{before}{rest}") == f"root:{after}{rest}"
