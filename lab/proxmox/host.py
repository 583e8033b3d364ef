"""The Proxmox host ``pve1`` of the lab, as far as root on it can see: sshd, a private /etc and ``pct``.

``unshare --mount --uts --propagation private -- python -m lab.proxmox.host`` in the lab's network sets up file systems
that only this process and its children see, and becomes sshd. Nothing it writes reaches the machine's own /etc or /root.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import sys
from pathlib import Path

from lab import places
from lab.errors import LabError
from lab.processes import run

SSHD = "/usr/sbin/sshd"
PRIVATE = ("/etc", "/root", "/usr/local/sbin")
"""Directories whose changes stay in the lab's state."""

SSHD_CONFIGURATION = f"""\
Port {places.SSH_PORT}
ListenAddress {places.PROXMOX_ADDRESS}
HostKey {places.PROXMOX_HOST_KEY}
AuthorizedKeysFile {places.AUTHORIZED_KEYS}
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
UsePAM no
UseDNS no
PidFile none
PrintMotd no
PrintLastLog no
# Every machine that is being made asks for a connection of its own, all at once.
MaxStartups 200
Subsystem sftp internal-sftp
"""


def set_up() -> None:
    """Mount the private file systems. Raises :class:`LabError` when the kernel refuses."""
    for directory in PRIVATE:
        name = directory.strip("/").replace("/", "-")
        upper, work = places.PROXMOX_HOST / f"{name}-upper", places.PROXMOX_HOST / f"{name}-work"
        for made in (upper, work, Path(directory)):
            made.mkdir(parents=True, exist_ok=True)
        options = f"lowerdir={directory},upperdir={upper},workdir={work}"
        run(["mount", "-t", "overlay", "overlay", "-o", options, directory])
    shadow = Path("/etc/shadow")
    shadow.write_text(unlocked(shadow.read_text(encoding="utf-8")), encoding="utf-8")
    pve = Path("/etc/pve")
    pve.mkdir(exist_ok=True)
    node = places.PVE_ETC / "nodes" / places.PROXMOX_NODE
    for folder in (node / "lxc", node / "qemu-server"):
        folder.mkdir(parents=True, exist_ok=True)
        link = places.PVE_ETC / folder.name
        if not link.is_symlink():
            link.symlink_to(folder.relative_to(places.PVE_ETC))
    run(["mount", "--bind", str(places.PVE_ETC), str(pve)])
    pct = Path("/usr/local/sbin/pct")
    python = places.REPOSITORY / ".venv" / "bin" / "python"
    # sshd gives its sessions no variables, and this lab may be one that lies elsewhere
    where = f"SCHOOL_LAB_STATE={shlex.quote(str(places.STATE))} SCHOOL_LAB_RUNTIME={shlex.quote(str(places.RUNTIME))}"
    program = shlex.join([str(python), "-P", str(Path(__file__).with_name("pct.py"))])
    pct.write_text(f'#!/bin/sh\nexport {where}\nexec {program} "$@"\n', encoding="utf-8")
    pct.chmod(0o755)
    socket.sethostname(places.PROXMOX_NODE)
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)


def unlocked(shadow: str) -> str:
    """The text of ``/etc/shadow`` with a root who has no password but is not locked: sshd lets no locked one in by key."""
    return re.sub(r"^root:!+[^:]*:", "root:*:", shadow, flags=re.MULTILINE)


def main() -> int:
    """Become sshd; 1 when that fails."""
    try:
        set_up()
        configuration = places.PROXMOX_HOST / "sshd_config"
        configuration.write_text(SSHD_CONFIGURATION, encoding="utf-8")
        os.execv(SSHD, [SSHD, "-D", "-e", "-f", str(configuration)])
    except (LabError, OSError) as error:
        print(f"the Proxmox host cannot be started: {error}", file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
