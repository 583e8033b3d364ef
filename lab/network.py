"""The lab's own network: a namespace with the bridge ``vmbr0`` in it, and no link to anything outside."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab import places
from lab.processes import in_namespace, run


def enter(command: Sequence[str | Path]) -> list[str]:
    """``command`` as it has to be called to run in the lab's network."""
    return in_namespace(places.NAMESPACE_PATH, command)


def exists() -> bool:
    """True when the namespace is there (after a reboot an empty file may be left in its place)."""
    return os.path.ismount(places.NAMESPACE_PATH)


def create() -> None:
    """Make the namespace, the bridge and its addresses; what is there already is left alone."""
    if not exists():
        places.NAMESPACE_PATH.unlink(missing_ok=True)
        run(["ip", "netns", "add", places.NAMESPACE])
    run(enter(["ip", "link", "set", "lo", "up"]))
    if not _links(places.BRIDGE):
        run(enter(["ip", "link", "add", places.BRIDGE, "type", "bridge", "forward_delay", "0", "stp_state", "0"]))
    run(enter(["ip", "link", "set", places.BRIDGE, "up"]))
    prefix = places.NETWORK.prefixlen
    have = _addresses()
    for address in (places.GATEWAY, places.PROXMOX_ADDRESS):
        if address not in have:
            run(enter(["ip", "address", "add", f"{address}/{prefix}", "dev", places.BRIDGE]))
    run(enter(["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"]))


def remove() -> None:
    """Remove the namespace and with it the bridge. Nothing happens when there is none."""
    if exists():
        run(["ip", "netns", "delete", places.NAMESPACE])
    else:
        places.NAMESPACE_PATH.unlink(missing_ok=True)


def _links(name: str) -> list[dict[str, Any]]:
    found = run(enter(["ip", "-json", "link", "show", name]), check=False)
    links: list[dict[str, Any]] = json.loads(found.stdout) if found.returncode == 0 and found.stdout else []
    return links


def _addresses() -> set[str]:
    shown = json.loads(run(enter(["ip", "-json", "address", "show", places.BRIDGE])).stdout)
    return {entry["local"] for link in shown for entry in link.get("addr_info", []) if entry.get("family") == "inet"}
