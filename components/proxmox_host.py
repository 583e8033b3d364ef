"""A Proxmox host: what its kernel must offer, and the container template on its storage."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Final

import pulumi
import pulumi_proxmoxve as proxmoxve

from components.remote import Host, run_script

NEEDED_MODULES: Final = ("overlay", "br_netfilter", "nf_conntrack")
OPTIONAL_MODULES: Final = (
    *("vxlan", "ip_tables", "iptable_nat", "iptable_filter"),
    # Network policies.
    *("ip_set", "ip_set_hash_ip", "ip_set_hash_net", "xt_set", "xt_physdev", "xt_NFLOG"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProxmoxHostArgs:
    """Inputs of :class:`ProxmoxHost`."""

    node_name: str
    """Name of the host in Proxmox, e.g. ``pve1``."""
    address: str
    """IPv4 address that its SSH answers on."""
    ssh_private_key: pulumi.Input[str]
    """Private key of root. Secret."""
    ssh_host_key: str
    """Public host key in authorized-keys form; another key is refused."""
    owner: str
    """Whose settings these are (the stack's name): two stacks on one host do not touch each other's files."""
    template_url: str
    """Where Proxmox downloads the container template from."""
    template_sha512: str
    """SHA-512 of the template in hex; Proxmox refuses a file with another one."""
    template_storage: str
    """Proxmox storage with the content type ``vztmpl``, e.g. ``local``."""


def template_file_name(url: str, sha512: str, owner: str, node_name: str) -> str:
    """Name of the downloaded template: the stack's, the host's and the content's own.

    Storage may be shared by hosts and by stacks, and a file that two resources call theirs is deleted by one of them. With
    another template comes another name, so the new one is there before the old one goes, and no machine is touched.
    """
    stem, ending = url.rsplit("/", 1)[-1].split(".tar.", 1)
    content = hashlib.sha256(f"{url} {sha512}".encode()).hexdigest()[:8]
    return f"{stem}-{owner}-{node_name}-{content}.tar.{ending}"


class ProxmoxHost(pulumi.ComponentResource):
    """Makes one Proxmox host ready for containers that run Kubernetes.

    Creates: kernel modules and file-watch limits (two files, removed on destroy) and the downloaded template.
    Does not install or update Proxmox, and does not touch storage, network or firewall of the host.
    """

    node_name: str
    """Name of the host in Proxmox."""
    host: Host
    """The host itself, for scripts that need its ``pct``."""
    template_file_id: pulumi.Output[str]
    """Volume id of the template, e.g. ``local:vztmpl/debian-12-standard_12.12-1_amd64-school-pve1-1a2b3c4d.tar.zst``."""

    def __init__(self, name: str, args: ProxmoxHostArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("school:index:ProxmoxHost", name, {"nodeName": args.node_name, "address": args.address}, opts)
        self.node_name = args.node_name
        reached = Host(
            name=args.node_name,
            address=args.address,
            private_key=args.ssh_private_key,
            host_key=args.ssh_host_key,
        )
        prepared = run_script(
            f"{name}-kernel",
            reached,
            "prepare-proxmox-host.sh",
            parent=self,
            variables={
                "owner": args.owner,
                "needed_modules": " ".join(NEEDED_MODULES),
                "optional_modules": " ".join(OPTIONAL_MODULES),
            },
            on_delete=True,
        )
        self.host = dataclasses.replace(reached, prepared_by=(prepared,))
        template = proxmoxve.download.File(
            f"{name}-template",
            node_name=args.node_name,
            datastore_id=args.template_storage,
            content_type="vztmpl",
            url=args.template_url,
            file_name=template_file_name(args.template_url, args.template_sha512, args.owner, args.node_name),
            checksum=args.template_sha512,
            checksum_algorithm="sha512",
            # True would download again, and replace every container, when upstream changes the file's size.
            overwrite=False,
            # Only a leftover of a killed run can have this name; it is downloaded again.
            overwrite_unmanaged=True,
            upload_timeout=600,
            # Never delete_before_replace: it would delete every machine that was made from the template first.
            opts=pulumi.ResourceOptions(parent=self, custom_timeouts=pulumi.CustomTimeouts(create="15m")),
        )
        self.template_file_id = template.id
        self.register_outputs({"node_name": self.node_name, "template_file_id": self.template_file_id})
