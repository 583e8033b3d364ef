"""The containers of the lab, seen from outside: which there are, switching them off and on, a shell on one."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path

from lab import keys, places
from lab.errors import LabError
from lab.network import enter
from lab.processes import Process, recall, run, start_time
from lab.proxmox.guest_config import GuestConfigs, properties

PCT = Path(__file__).parent / "proxmox" / "pct.py"


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """One container."""

    name: str
    vmid: int
    address: str
    """Its IPv4 address, without the prefix length; empty when it has none."""
    running: bool

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def all_machines() -> list[Machine]:
    """Every container the Proxmox host knows, by id; none when there is no lab."""
    configs = GuestConfigs(places.GUEST_CONFIGS)
    machines = []
    for vmid in configs.ids():
        config = configs.load(vmid)
        card = properties(config.options.get("net0", ""))
        machines.append(
            Machine(
                name=config.hostname or f"CT{vmid}",
                vmid=vmid,
                address=card.get("ip", "").partition("/")[0],
                running=monitor(vmid) is not None,
            )
        )
    return machines


def find(name: str) -> Machine:
    """The machine called ``name`` (or with that id). Raises :class:`LabError` with the names there are."""
    machines = all_machines()
    for machine in machines:
        if name in (machine.name, str(machine.vmid)):
            return machine
    there = ", ".join(machine.name for machine in machines) or "none; `school lab up` makes them"
    raise LabError(f"No machine of the lab is called {name}. There are: {there}.")


def monitor(vmid: int) -> Process | None:
    """The LXC process that lives as long as the container."""
    return recall(places.container(vmid) / "monitor")


def cut_power(machine: Machine) -> None:
    """Kill everything in the container at once. Raises :class:`LabError` when it is off already or does not end."""
    running = monitor(machine.vmid)
    if running is None:
        raise LabError(f"{machine.name} is off already.")
    run(enter(["lxc-stop", "-P", places.CONTAINERS, "-n", str(machine.vmid), "-k"]), check=False, timeout_seconds=30)
    if not running.wait(10):
        raise LabError(f"{machine.name} did not stop: its LXC monitor (pid {running.pid}) is still there after 10 s.")


def switch_on(machine: Machine) -> None:
    """Start the container through the Proxmox host's own ``pct``. Raises :class:`LabError` with its reason."""
    if machine.running:
        raise LabError(f"{machine.name} is on already.")
    done = run([sys.executable, "-P", PCT, "start", str(machine.vmid)], check=False, timeout_seconds=120)
    if done.returncode:
        raise LabError(f"{machine.name} does not start: {done.stderr.strip()}. See {places.container(machine.vmid)}.")


def switch_all_on() -> list[str]:
    """Start what the Proxmox host starts at boot and is off, in its order; returns the names."""
    configs = GuestConfigs(places.GUEST_CONFIGS)
    waiting = []
    for machine in all_machines():
        options = configs.load(machine.vmid).options
        if options.get("onboot") == "1" and not machine.running:
            order = re.search(r"order=(\d+)", options.get("startup", ""))
            waiting.append((int(order[1]) if order else sys.maxsize, machine.vmid, machine))
    for _, vmid, machine in sorted(waiting, key=lambda item: item[:2]):
        try:
            switch_on(machine)
        except LabError:
            if monitor(vmid) is None:  # else the Proxmox host, just started, has started it meanwhile
                raise
    return [machine.name for _, _, machine in sorted(waiting, key=lambda item: item[:2])]


def ssh_to(address: str, known_hosts: Path, command: Sequence[str] = (), *, terminal: bool = False) -> list[str]:
    """The ssh command that logs in as root at ``address`` with the lab's key, from inside the lab's network."""
    options = ["IdentitiesOnly=yes", "StrictHostKeyChecking=yes", f"UserKnownHostsFile={known_hosts}"]
    options += ["GlobalKnownHostsFile=/dev/null", "ConnectTimeout=5", "ServerAliveInterval=15", "BatchMode=yes"]
    words = ["ssh", "-F", "none", "-i", str(places.SSH_KEY), *(word for option in options for word in ("-o", option))]
    return enter([*words, *(["-t"] if terminal else []), f"root@{address}", *command])


def shell_on(name: str) -> list[str]:
    """The command that opens a shell on a machine, or on the Proxmox host when ``name`` is ``pve1``.

    Raises :class:`LabError` when there is no such machine or it is off.
    """
    if name == places.PROXMOX_NODE:
        return ssh_to(places.PROXMOX_ADDRESS, keys.KNOWN_HOSTS, terminal=True)
    machine = find(name)
    if not machine.running:
        raise LabError(f"{machine.name} is off: `school lab start {machine.name}` switches it on.")
    attach = ["lxc-attach", "-P", str(places.CONTAINERS), "-n", str(machine.vmid), "--clear-env"]
    variables = [f"TERM={os.environ.get('TERM', 'linux')}", "HOME=/root", "LANG=C.UTF-8"]
    return enter([*attach, *(word for value in variables for word in ("-v", value)), "--", "/bin/bash", "-l"])


# ------------------------------------------------------------------ what down needs


def stop_all() -> list[str]:
    """End every container of this lab, whatever state it is in, and unmount their file systems; returns their names.

    A container is known by its pid file, or by having a layer below :data:`lab.places.CONTAINERS` as its root.
    """
    names = {str(machine.vmid): machine.name for machine in all_machines()}
    homes = sorted(places.CONTAINERS.glob("[0-9]*")) if places.CONTAINERS.is_dir() else []
    watchers = {home: recall(home / "monitor") for home in homes}
    inside = _processes_over("/", {home / "upper" for home in homes})
    for process, _ in inside:
        process.signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    for process in [*(process for process, _ in inside), *filter(None, watchers.values())]:
        if not process.wait(max(0.0, deadline - time.monotonic())):
            process.stop()
    ran = {layer.parent for _, layer in inside} | {home for home, watcher in watchers.items() if watcher}
    return [names.get(home.name, home.name) for home in sorted(ran)]


def mounted_below(directory: Path) -> list[str]:
    """Mount points at or below ``directory``, outer ones first."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    points = [point.encode().decode("unicode_escape") for point in points]
    return [point for point in points if Path(point).is_relative_to(directory)]


def unmount_below(directory: Path) -> None:
    """Unmount everything mounted below ``directory``, the innermost first."""
    for point in reversed(mounted_below(directory)):
        run(["umount", "--lazy", point], check=False)


def leave_proxmox_host() -> list[str]:
    """End what was started on the Proxmox host and outlived its sshd; returns what that was."""
    found = [process for process, _ in _processes_over("/etc", {places.PROXMOX_HOST / "etc-upper"})]
    for process in found:
        process.stop(grace_seconds=1.0)
    return [f"process {process.pid}" for process in found]


def _processes_over(point: str, layers: Set[Path]) -> list[tuple[Process, Path]]:
    """Processes that see an overlay with one of ``layers`` as its upper directory at the mount point ``point``."""
    found: list[tuple[Process, Path]] = []
    for entry in Path("/proc").iterdir() if layers else ():
        if not entry.name.isdigit():
            continue
        try:
            mounts = (entry / "mountinfo").read_text().splitlines()
        except OSError:
            continue  # ended meanwhile: a zombie has no mounts
        options = next((line.rpartition(" ")[2] for line in reversed(mounts) if line.split(" ", 5)[4] == point), "")
        upper = next((Path(word[9:]) for word in options.split(",") if word.startswith("upperdir=")), None)
        started = start_time(int(entry.name)) if upper in layers else None
        if upper is not None and started is not None:
            found.append((Process(pid=int(entry.name), started=started), upper))
    return found
