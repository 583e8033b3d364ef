"""From a Proxmox container configuration to the configuration that this machine's LXC runs it with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError
from lab.proxmox.guest_config import GuestConfig, properties

DROPPED_CAPABILITIES = "mac_admin mac_override sys_time sys_module sys_rawio"
"""What Proxmox VE takes from every container unless a raw line says otherwise."""

BRIDGE_SCRIPT = "bridge-up"
"""File beside the configuration that LXC calls to put a container's network card on its bridge."""
BRIDGE_SCRIPT_TEXT = """#!/bin/sh
# called by LXC: BRIDGE NAME net up veth CARD
exec ip link set "$6" master "$1" up
"""

_DEVICES = (
    "c *:* m", "b *:* m", "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm",
    "c 5:0 rwm", "c 5:1 rwm", "c 5:2 rwm", "c 136:* rwm", "c 10:229 rwm",
)  # fmt: skip

# cgroup v2 control files, the names of the same controls in v1, for kernels that still run the old hierarchies
_V1_NAMES = {
    "devices.allow": "devices.allow",
    "devices.deny": "devices.deny",
    "memory.max": "memory.limit_in_bytes",
    "memory.high": "memory.soft_limit_in_bytes",
    "pids.max": "pids.max",
    "cpuset.cpus": "cpuset.cpus",
    "cpu.max": "cpu.cfs_quota_us",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What the generated configuration depends on besides the container."""

    unified_cgroups: bool
    """True with cgroup v2 alone; false with the v1 hierarchies."""
    apparmor: bool
    """True when the kernel confines by AppArmor."""
    processors: int
    """Processors of the machine."""

    @classmethod
    def detect(cls) -> Machine:
        """Look at the running machine."""
        cpus = Path("/proc/cpuinfo").read_text().count("\nprocessor") + 1
        enabled = Path("/sys/module/apparmor/parameters/enabled")
        return cls(
            unified_cgroups=Path("/sys/fs/cgroup/cgroup.controllers").exists(),
            apparmor=enabled.exists() and enabled.read_text().strip() == "Y",
            processors=cpus,
        )


def generate(vmid: int, config: GuestConfig, directory: Path, machine: Machine) -> tuple[str, list[str]]:
    """The LXC configuration of a container whose files lie in ``directory``, and warnings for the task log.

    Raises :class:`LabError` in Proxmox VE's words when root wrote something else where a number belongs.
    """
    warnings: list[str] = []
    options = config.options
    lines = [
        "lxc.arch = amd64",
        f"lxc.uts.name = {config.hostname or f'CT{vmid}'}",
        f"lxc.rootfs.path = dir:{directory / 'rootfs'}",
        f"lxc.console.logfile = {directory / 'console.log'}",
        "lxc.console.rotate = 1",
        f"lxc.tty.max = {_number(vmid, options, 'tty', 2)}",
        "lxc.pty.max = 1024",
        "lxc.environment = TERM=linux",
        "lxc.signal.halt = SIGRTMIN+3",
        "lxc.mount.auto = proc:mixed sys:mixed cgroup:rw:force",
        f"lxc.cap.drop = {DROPPED_CAPABILITIES}",
    ]
    if machine.apparmor:
        nesting = properties(options.get("features", "")).get("nesting") == "1"
        lines.append(f"lxc.apparmor.profile = lxc-container-default-{'with-nesting' if nesting else 'cgns'}")
    lines += _limits(vmid, options, machine)
    lines += _networks(vmid, options, directory)
    for key, value in config.raw:
        lines += _raw(key, value, machine, warnings)
    warnings += [f"warning: line not understood, not used: {line}" for line in config.ignored]
    return "\n".join(lines) + "\n", warnings


def _number(vmid: int, options: dict[str, str], key: str, default: int) -> int:
    value = options.get(key, str(default))
    if not re.fullmatch(r"\d+", value):
        raise LabError(f"vm {vmid} - unable to parse value of '{key}' - type check ('integer') failed - got '{value}'")
    return int(value)


def _limits(vmid: int, options: dict[str, str], machine: Machine) -> list[str]:
    group = "lxc.cgroup2" if machine.unified_cgroups else "lxc.cgroup"
    lines = [f"{group}.devices.deny = a", *(f"{group}.devices.allow = {device}" for device in _DEVICES)]
    memory = _number(vmid, options, "memory", 512) << 20
    lines.append(f"{group}.memory.{'max' if machine.unified_cgroups else 'limit_in_bytes'} = {memory}")
    cores = _number(vmid, options, "cores", 0)
    if 0 < cores < machine.processors:
        chosen = sorted({(vmid + step) % machine.processors for step in range(cores)})
        lines.append(f"{group}.cpuset.cpus = {','.join(map(str, chosen))}")
    return lines


def _networks(vmid: int, options: dict[str, str], directory: Path) -> list[str]:
    lines = []
    for key in sorted(key for key in options if re.fullmatch(r"net\d+", key)):
        number = int(key[3:])
        card = properties(options[key])
        lines += [
            f"lxc.net.{number}.type = veth",
            f"lxc.net.{number}.veth.pair = veth{vmid}i{number}",
            f"lxc.net.{number}.name = {card.get('name', f'eth{number}')}",
            # not lxc.net.N.link: LXC looks for the bridge in /sys, which shows the network it was mounted in, not the lab's
            f"lxc.net.{number}.script.up = {directory / BRIDGE_SCRIPT} {card.get('bridge', 'vmbr0')}",
        ]
        if "hwaddr" in card:
            lines.append(f"lxc.net.{number}.hwaddr = {card['hwaddr']}")
        if card.get("mtu"):
            lines.append(f"lxc.net.{number}.mtu = {card['mtu']}")
        if card.get("link_down") != "1":
            lines.append(f"lxc.net.{number}.flags = up")
    return lines


def _raw(key: str, value: str, machine: Machine, warnings: list[str]) -> list[str]:
    value = value.strip().strip('"')
    if key.startswith("lxc.apparmor.") and not machine.apparmor:
        return []
    if key.startswith("lxc.cgroup."):
        # Proxmox VE 9 runs on cgroup v2 alone: a v1 line has no effect there, so it must have none here
        warnings.append(f"warning: {key} is a cgroup v1 setting and has no effect; use lxc.cgroup2{key[10:]}")
        return []
    if key.startswith("lxc.cgroup2.") and not machine.unified_cgroups:
        name = key.removeprefix("lxc.cgroup2.")
        if name not in _V1_NAMES:
            warnings.append(f"warning: this machine's cgroup v1 has no counterpart of {key}; the line is not used")
            return []
        if name == "cpu.max":
            value = value.split()[0].replace("max", "-1")
        return [f"lxc.cgroup.{_V1_NAMES[name]} = {value}"]
    return [f"{key} = {value}".rstrip()]
