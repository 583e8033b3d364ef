"""One LXC container on Proxmox, from nothing to a machine that answers SSH with a key we know."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pulumi
import pulumi_proxmoxve as proxmoxve

from components.proxmox_host import ProxmoxHost
from components.remote import Host, run_script

KUBERNETES_LXC_LINES: Final = """\
lxc.apparmor.profile: unconfined
lxc.cap.drop:
lxc.cgroup2.devices.allow: a
lxc.mount.auto: proc:rw sys:rw
lxc.mount.entry: /dev/kmsg dev/kmsg none defaults,bind,create=file 0 0"""
"""What the kubelet and containerd need. They make root in the container as good as root on the Proxmox host
(docs/how-it-works.md); machines that do not run Kubernetes do not get them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProxmoxLxcNodeArgs:
    """Inputs of :class:`ProxmoxLxcNode`."""

    proxmox: ProxmoxHost
    """The host the container runs on; moving it to another one replaces it."""
    vm_id: int
    """Proxmox id (100..999999999). Must be free, or be this stack's own container of the same name."""
    machine_name: str
    """Host name of the machine, e.g. ``gl2``."""
    address: str
    """IPv4 address of the machine."""
    prefix_length: int
    """Prefix length of the network (0..32), e.g. 24."""
    gateway: str
    """IPv4 address of the default gateway."""
    dns_servers: Sequence[str]
    """Name servers, in order."""
    search_domain: str
    """DNS search domain."""
    bridge: str
    """Bridge on the Proxmox host, e.g. ``vmbr0``."""
    cores: int
    """CPU cores (1..)."""
    memory_mib: int
    """Memory in MiB. A change reboots the container."""
    disk_gib: int
    """Root disk in GiB. Growing is done in place, shrinking replaces the container."""
    disk_storage: str
    """Proxmox storage of the root disk, e.g. ``local-lvm``."""
    tags: Sequence[str]
    """Roles of the machine, shown in Proxmox."""
    owner_tag: str
    """Tag that marks every container of this stack; a container of that id without it is somebody else's."""
    start_order: int
    """Place in Proxmox's start order after a power cut (1 first); what others need starts first."""
    runs_kubernetes: bool
    """Whether the container gets :data:`KUBERNETES_LXC_LINES`, and runs privileged for them."""
    hosts_entries: str
    """Lines of /etc/hosts that name all machines."""
    apt_proxy: str | None
    """URL of the proxy for Debian packages. None: packages are fetched directly."""
    ssh_public_key: pulumi.Input[str]
    """Public key that root accepts, authorized-keys form."""
    ssh_private_key: pulumi.Input[str]
    """Private key that belongs to it. Secret."""
    holds_data: bool
    """Whether data live on the machine; with ``protect_data`` such a container can neither be deleted nor replaced."""
    protect_data: bool
    """Whether containers that hold data are protected."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for tags that Proxmox would rewrite, which would show as a change at every preview."""
        for tag in (*self.tags, self.owner_tag):
            if tag != tag.lower():
                raise ValueError(f"tag '{tag}' of {self.machine_name} must be lower case: Proxmox stores it so.")


def hardware_address(
    network_interfaces: Sequence[proxmoxve.outputs.ContainerLegacyNetworkInterface] | None,
) -> str:
    """The address Proxmox gave the first network card; empty as long as it is not known."""
    return (network_interfaces[0].mac_address or "") if network_interfaces else ""


class ProxmoxLxcNode(pulumi.ComponentResource):
    """A Debian container on Proxmox.

    Creates the container from the template, adds the raw LXC lines where Kubernetes runs, waits until SSH answers, and
    reads the host key over the Proxmox host, so that every later connection knows whom it talks to.
    Installs nothing; that is the business of the component that owns the machine's role.
    """

    machine_name: str
    """Host name."""
    address: str
    """IPv4 address."""
    container: proxmoxve.ContainerLegacy
    """The container itself: whatever lives in it is gone when it goes."""
    host: Host
    """The machine, ready for scripts."""

    def __init__(self, name: str, args: ProxmoxLxcNodeArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        lxc_lines = KUBERNETES_LXC_LINES if args.runs_kubernetes else ""
        summary = {
            "machineName": args.machine_name,
            "address": args.address,
            "vmId": args.vm_id,
            "roles": list(args.tags),
            "lxcLines": lxc_lines.splitlines(),
        }
        super().__init__("school:index:ProxmoxLxcNode", name, summary, opts)
        self.machine_name = args.machine_name
        self.address = args.address
        claimed = run_script(
            f"{name}-vm-id",
            args.proxmox.host,
            "claim-vm-id.sh",
            parent=self,
            variables={
                "vm_id": str(args.vm_id),
                "owner_tag": args.owner_tag,
                "machine_name": args.machine_name,
            },
        )
        self.container = self._container(name, args, claimed)
        # The id alone is not enough: a container that was lost and is made again gets the same one. Proxmox draws the
        # hardware address.
        identity = [self.container.id, self.container.network_interfaces.apply(hardware_address)]
        # The machine as its Proxmox host sees it: what is done to it there is gone with the container.
        from_outside = dataclasses.replace(args.proxmox.host, machine=self.container, identity=identity, prepared_by=())
        raw_lines = [self._raw_lines(name, args, from_outside, lxc_lines)] if lxc_lines else []
        host_key = run_script(
            f"{name}-host-key",
            from_outside,
            "read-host-key.sh",
            parent=self,
            variables={"vm_id": str(args.vm_id), "address": args.address},
            timeout_seconds=240,
            # The restart that new raw lines cause must be over before anything connects.
            depends_on=[self.container, *raw_lines],
        )
        reached = Host(
            name=args.machine_name,
            address=args.address,
            private_key=args.ssh_private_key,
            host_key=host_key.stdout,
            machine=self.container,
            identity=identity,
        )
        prepared = run_script(
            f"{name}-prepared",
            reached,
            "prepare-machine.sh",
            parent=self,
            variables={"apt_proxy": args.apt_proxy or ""},
        )
        run_script(
            f"{name}-hosts-file",
            reached,
            "hosts-file.sh",
            parent=self,
            variables={"entries": args.hosts_entries},
        )
        self.host = dataclasses.replace(reached, prepared_by=(prepared,))
        self.register_outputs({"machine_name": self.machine_name, "address": self.address})

    def _raw_lines(self, name: str, args: ProxmoxLxcNodeArgs, from_outside: Host, lxc_lines: str) -> pulumi.Resource:
        return run_script(
            f"{name}-lxc-lines",
            from_outside,
            "raw-lxc-lines.sh",
            parent=self,
            variables={"vm_id": str(args.vm_id), "lines": lxc_lines},
            timeout_seconds=300,
            on_delete=True,
            depends_on=[self.container],
        )

    def _container(self, name: str, args: ProxmoxLxcNodeArgs, claimed: pulumi.Resource) -> proxmoxve.ContainerLegacy:
        return proxmoxve.ContainerLegacy(
            f"{name}-container",
            node_name=args.proxmox.node_name,
            vm_id=args.vm_id,
            description=f"{args.machine_name}: {', '.join(args.tags)}. Made by school-postgres; change it there.\n",
            # Proxmox stores tags sorted and in lower case; any other order is a change at every preview.
            tags=sorted([*args.tags, args.owner_tag]),
            operating_system=proxmoxve.ContainerLegacyOperatingSystemArgs(
                template_file_id=args.proxmox.template_file_id, type="debian"
            ),
            # Raw lines with all capabilities need a privileged container; everything else does without.
            unprivileged=not args.runs_kubernetes,
            # systemd's own sandboxing needs it in an unprivileged container. A privileged one gets no feature at all:
            # with any, Proxmox would want root's password instead of an API token.
            features=None if args.runs_kubernetes else proxmoxve.ContainerLegacyFeaturesArgs(nesting=True),
            cpu=proxmoxve.ContainerLegacyCpuArgs(cores=args.cores),
            memory=proxmoxve.ContainerLegacyMemoryArgs(dedicated=args.memory_mib, swap=0),
            disk=proxmoxve.ContainerLegacyDiskArgs(datastore_id=args.disk_storage, size=args.disk_gib),
            # Not "veth0", as often shown: MetalLB's layer 2 leaves out interfaces of that name.
            network_interfaces=[
                proxmoxve.ContainerLegacyNetworkInterfaceArgs(
                    name="eth0",
                    bridge=args.bridge,
                    # The host firewall's address filter drops the ARP answers for service and virtual addresses.
                    firewall=False,
                )
            ],
            initialization=proxmoxve.ContainerLegacyInitializationArgs(
                hostname=args.machine_name,
                dns=proxmoxve.ContainerLegacyInitializationDnsArgs(
                    domain=args.search_domain, servers=list(args.dns_servers)
                ),
                ip_configs=[
                    proxmoxve.ContainerLegacyInitializationIpConfigArgs(
                        ipv4=proxmoxve.ContainerLegacyInitializationIpConfigIpv4Args(
                            address=f"{args.address}/{args.prefix_length}", gateway=args.gateway
                        )
                    )
                ],
                user_account=proxmoxve.ContainerLegacyInitializationUserAccountArgs(keys=[args.ssh_public_key]),
            ),
            startup=proxmoxve.ContainerLegacyStartupArgs(order=args.start_order, up_delay=5, down_delay=60),
            start_on_boot=True,
            started=True,
            timeout_create=900,
            timeout_update=900,
            timeout_delete=300,
            opts=pulumi.ResourceOptions(
                parent=self,
                # No value carries it: the container may only be made once its id is known to be free.
                depends_on=[claimed],
                # The id is fixed: create-before-delete would take the old container over and then delete it.
                delete_before_replace=True,
                # The template and the key were used once, at creation. A newer template or another key must not
                # replace a machine that works.
                ignore_changes=["operatingSystem", "initialization.userAccount"],
                protect=args.holds_data and args.protect_data,
                custom_timeouts=pulumi.CustomTimeouts(create="20m", update="20m", delete="10m"),
            ),
        )
