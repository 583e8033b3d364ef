"""The file share that backups go to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pulumi
import pulumi_random as random

from components.remote import Host, run_script

USER: Final = "pgbackup"
"""The share's own user: it can log in nowhere and owns nothing else."""
FOLDER: Final = "/srv/school-postgres/backup"


@dataclass(frozen=True, kw_only=True, slots=True)
class FileShareArgs:
    """Inputs of :class:`FileShare`."""

    host: Host
    """The machine Samba runs on."""
    share: str
    """Name of the share, e.g. ``backup``."""
    allowed_network: str
    """Network in CIDR form that may connect."""


class FileShare(pulumi.ComponentResource):
    """Samba with one share: SMB 3.1.1, encryption required, its own user with a random password.

    The files lie on the machine's own disk. They survive the loss of the cluster, not that of the Proxmox host under it:
    copy them off that host as well.
    """

    server: str
    """IPv4 address of the file server."""
    share: str
    """Name of the share."""
    user: str
    """User that may read and write it."""
    password: pulumi.Output[str]
    """The user's password. Secret."""
    url: str
    """Where it is, e.g. ``smb://10.0.145.113/backup``."""
    allowed_network: str
    """Network in CIDR form that may connect."""

    def __init__(self, name: str, args: FileShareArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("school:index:FileShare", name, {"address": args.host.address, "share": args.share}, opts)
        self.server, self.share, self.user = args.host.address, args.share, USER
        self.allowed_network = args.allowed_network
        self.url = f"smb://{self.server}/{self.share}"
        password = random.RandomPassword(
            f"{name}-password", length=40, special=False, opts=pulumi.ResourceOptions(parent=self)
        )
        self.password = pulumi.Output.secret(password.result)
        run_script(
            f"{name}-samba",
            args.host,
            "file-share.sh",
            parent=self,
            variables={
                "share": args.share,
                "user": USER,
                "password": self.password,
                "folder": FOLDER,
                "allowed_network": self.allowed_network,
                "address": args.host.address,
            },
            timeout_seconds=600,
        )
        self.register_outputs(
            {
                "server": self.server,
                "share": self.share,
                "user": self.user,
                "password": self.password,
                "url": self.url,
                "allowed_network": self.allowed_network,
            }
        )
