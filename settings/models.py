"""The topics of the configuration: network, Proxmox, machines, template, Kubernetes, balancer, backup and waivers."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, StrictBool, StrictInt, StrictStr

from settings.base import (
    LARGEST_GIB,
    LARGEST_MIB,
    Model,
    Rule,
    between,
    check,
    editor,
    matches,
    not_empty,
    rule_of,
    unique,
    whole,
)
from settings.postgres import PostgresSettings
from settings.values import (
    API_ENDPOINT,
    BINARY_URL,
    CRON_EXAMPLE,
    DO_ADDRESS,
    DOMAIN,
    EXAMPLE_KEY,
    HOST_KEY,
    HOST_NAME,
    LABEL,
    NETWORK_OF_A_SCHOOL,
    NEWEST_KUBERNETES_MINOR,
    OF_NOTHING,
    OLDEST_KUBERNETES_MINOR,
    PROXY,
    REASON,
    REGISTRY,
    SCHEDULE,
    TEMPLATE,
    WEB_URL,
    Address,
    Day,
    Network,
    Range,
    check_binary_url,
    check_checksum,
    check_k3s_version,
    check_schedule,
    is_domain,
    is_host_key,
    is_reason,
    is_time_zone,
)

_NOT_OF_NOTHING = editor(**{"not": {"enum": list(OF_NOTHING)}})
_OF_SAMBA = ("global", "homes", "printers")
_SHARE = r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}"
_IN_TZ_DATABASE = r"(Etc/GMT[+-][0-9]{1,2}|GMT[+-]0|(?!Local$)[A-Z][A-Za-z0-9_-]*(/[A-Z][A-Za-z0-9_-]*){0,2})"
_K3S_RELEASE = (
    rf"v1\.({'|'.join(map(str, range(OLDEST_KUBERNETES_MINOR, NEWEST_KUBERNETES_MINOR + 1)))})\.[0-9]+\+k3s[0-9]+"
)


class Role(StrEnum):
    """What a machine does. A machine may have several roles."""

    K3S_SERVER = "k3s-server"
    """Runs the Kubernetes API and also works (carries pods)."""
    K3S_WORKER = "k3s-worker"
    """Carries pods only."""
    DATASTORE = "datastore"
    """PostgreSQL that holds the state of the Kubernetes API."""
    FILE_SHARE = "file-share"
    """Samba share that receives the backups."""
    API_LOAD_BALANCER = "api-load-balancer"
    """nginx in front of the Kubernetes API, with the virtual address (keepalived)."""


class NetworkSettings(Model):
    """The school network that the machines and the database's addresses live in."""

    cidr: Annotated[
        Network,
        editor(pattern=whole(NETWORK_OF_A_SCHOOL)),
        Rule(
            "an IPv4 network without host bits, such as 10.0.145.0/24",
            "write the network's first address and prefix",
            example="10.0.145.0/24",
        ),
    ]
    """The network all machines are in."""
    gateway: Annotated[
        Address, Rule("an IPv4 address inside network.cidr", "write the address of the router", example="10.0.145.1")
    ]
    """Router of the network."""
    dns_servers: Annotated[
        tuple[Annotated[Address, Rule("an IPv4 address", "write for example 10.0.145.1")], ...],
        check(unique, uniqueItems=True),
        check(lambda value: 1 <= len(value) <= 3, minItems=1, maxItems=3),
        Rule(
            "a list of one to three different IPv4 addresses, because a machine asks no more",
            "write the school's name servers, such as [10.0.145.1]",
            example=["10.0.145.1"],
        ),
    ]
    """Name servers the machines ask."""
    search_domain: Annotated[
        StrictStr,
        check(is_domain, maxLength=253, pattern=whole(DOMAIN)),
        Rule(
            "a domain name of lower-case letters, digits, hyphens and dots",
            "write for example schule.lan",
            example="schule.lan",
        ),
    ]
    """Domain the machines' short names are completed with."""
    bridge: Annotated[
        StrictStr,
        matches(r"[a-z][a-z0-9_]{1,14}"),
        Rule(
            "the name of a network bridge, up to 15 lower-case letters and digits",
            "write for example vmbr0",
            example="vmbr0",
        ),
    ]
    """Bridge of the Proxmox hosts that the machines are plugged into."""
    service_pool: Annotated[
        Range,
        Rule(
            "a range first-last of IPv4 addresses, first before last",
            "write for example 10.0.145.130-10.0.145.149",
            example="10.0.145.130-10.0.145.149",
        ),
    ]
    """Addresses MetalLB may answer for; nothing else may use them."""
    dhcp_range: Annotated[
        Range | None,
        Rule(
            "a range first-last of IPv4 addresses, first before last",
            "write what the school's DHCP server hands out, such as 10.0.145.200-10.0.145.254, or leave the key out",
            example="10.0.145.200-10.0.145.254",
        ),
    ] = None
    """Addresses the school's DHCP server hands out; none of ours may lie in it. Unset: not checked."""
    apt_proxy: Annotated[
        Annotated[StrictStr, matches(PROXY)] | None,
        Rule(
            "an address http://host:port without user and password",
            "write for example http://10.0.145.1:3142, or leave the key out",
            example="http://10.0.145.1:3142",
        ),
    ] = None
    """Proxy for Debian packages. Unset: the machines fetch packages directly."""

    @property
    def prefix_length(self) -> int:
        """Prefix length of the network, such as 24."""
        return self.cidr.prefixlen


class ProxmoxHostSettings(Model):
    """One Proxmox VE host."""

    name: Annotated[
        StrictStr,
        matches(LABEL),
        Rule(
            "a host name of at most 63 lower-case letters, digits and hyphens",
            "write the node's name as Proxmox shows it, such as pve1",
            example="pve1",
        ),
    ]
    """Node name in Proxmox."""
    address: Annotated[
        Address, Rule("an IPv4 address", "write the address of the host, such as 10.0.145.10", example="10.0.145.10")
    ]
    """Address at which the host is reached over SSH."""
    ssh_host_key: Annotated[
        StrictStr,
        check(is_host_key, pattern=whole(HOST_KEY)),
        Rule(
            "the host's public key in OpenSSH form, such as ssh-ed25519 AAAA... (or an ecdsa or rsa key)",
            "run `cat /etc/ssh/ssh_host_ed25519_key.pub` on the host and copy the first two words",
        ),
    ]
    """Public SSH key of the host; a connection to anything that shows another key is refused."""


class ProxmoxSettings(Model):
    """The Proxmox VE installation that carries the machines."""

    endpoint: Annotated[
        StrictStr,
        matches(API_ENDPOINT),
        Rule(
            "an address https://host:port/ without user, password and path",
            "write for example https://10.0.145.10:8006/ (the program adds /api2/json itself)",
            example="https://10.0.145.10:8006/",
        ),
    ]
    """Address of the Proxmox API."""
    insecure_tls: Annotated[
        StrictBool, Rule("true or false", "write true only while the API has a certificate nobody can check")
    ] = False
    """Whether the API's certificate is left unchecked."""
    hosts: Annotated[
        tuple[ProxmoxHostSettings, ...],
        check(not_empty, minItems=1),
        Rule("a list of at least one host with name, address and sshHostKey", "list every Proxmox host that is used"),
    ]
    """The Proxmox hosts that machines are placed on."""
    template_storage: Annotated[
        StrictStr,
        matches(r"[A-Za-z][A-Za-z0-9._-]*[A-Za-z0-9]"),
        Rule("the name of a Proxmox storage for container templates", "see `pvesm status --content vztmpl`"),
    ] = "local"
    """Storage on each host that keeps the container template."""
    disk_storage: Annotated[
        StrictStr,
        matches(r"[A-Za-z][A-Za-z0-9._-]*[A-Za-z0-9]"),
        Rule("the name of a Proxmox storage for container disks", "see `pvesm status --content rootdir`"),
    ] = "local-lvm"
    """Storage on each host that keeps the machines' disks."""


class MachineSettings(Model):
    """One machine (LXC container) that the program makes."""

    name: Annotated[
        StrictStr,
        matches(HOST_NAME),
        Rule(
            "a host name of at most 63 lower-case letters, digits and hyphens, with a letter and with neither end a hyphen",
            "write for example gl2",
            example="gl2",
        ),
    ]
    """Host name."""
    address: Annotated[Address, Rule("an IPv4 address inside network.cidr", DO_ADDRESS, example="10.0.145.110")]
    """Fixed address in the school network."""
    roles: Annotated[
        tuple[Annotated[Role, Rule("one of " + ", ".join(Role), "write one of these")], ...],
        check(not_empty, minItems=1),
        check(unique, uniqueItems=True),
        Rule(
            "a list of at least one of " + ", ".join(Role) + ", each at most once",
            "write for example [k3s-server]",
            example=["k3s-server"],
        ),
    ]
    """What the machine does."""
    proxmox_host: Annotated[
        StrictStr, Rule("the name of a host in proxmox.hosts", "write for example pve1", example="pve1")
    ]
    """Proxmox host that carries the machine."""
    vm_id: Annotated[
        StrictInt,
        between(100, 999_999_999),
        Rule("a whole number from 100 to 999999999", "write an id that Proxmox does not use yet", example=110),
    ]
    """Id of the container in Proxmox."""
    cores: Annotated[
        StrictInt,
        between(1, 512),
        Rule("a whole number from 1 to 512", "write how many cores the machine gets", example=2),
    ]
    """Processor cores."""
    memory_mib: Annotated[
        StrictInt,
        between(256, LARGEST_MIB),
        Rule(
            f"a whole number of MiB from 256 to {LARGEST_MIB}",
            "write the number alone, such as 4096 for 4 GiB",
            example=4096,
        ),
    ]
    """Main memory in MiB."""
    disk_gib: Annotated[
        StrictInt,
        between(2, LARGEST_GIB),
        Rule(f"a whole number of GiB from 2 to {LARGEST_GIB}", "write the number alone, such as 40", example=40),
    ]
    """Size of the root disk in GiB."""

    def has(self, role: Role) -> bool:
        """Whether the machine has the role."""
        return role in self.roles

    @property
    def runs_k3s(self) -> bool:
        """Whether pods can run here (K3s server or worker)."""
        return self.has(Role.K3S_SERVER) or self.has(Role.K3S_WORKER)


class TemplateSettings(Model):
    """The container template all machines are made from."""

    url: Annotated[
        StrictStr,
        matches(TEMPLATE),
        Rule(
            "an http(s) address of a Debian 12 or 13 template named "
            "debian-<release>-<variant>_<version>_amd64.tar.zst (.tar.gz, .tar.xz)",
            "take one from http://download.proxmox.com/images/system/",
            example="http://download.proxmox.com/images/system/debian-12-standard_12.12-1_amd64.tar.zst",
        ),
    ]
    """Where the Proxmox hosts download the template."""
    sha512: Annotated[
        StrictStr,
        matches(r"[0-9a-f]{128}"),
        AfterValidator(check_checksum),
        _NOT_OF_NOTHING,
        Rule(
            "the file's SHA-512 checksum, 128 lower-case hexadecimal digits",
            "read it on a Proxmox host: `pveam update`, then look up `sha512sum:` of the template in "
            "/var/lib/pve-manager/apl-info/download.proxmox.com",
        ),
    ]
    """SHA-512 of the file; a download that differs is refused."""


class KubernetesSettings(Model):
    """The Kubernetes distribution (K3s)."""

    version: Annotated[
        StrictStr,
        AfterValidator(check_k3s_version),
        editor(pattern=whole(_K3S_RELEASE)),
        Rule(
            "one exact K3s release of the form vX.Y.Z+k3sN; a channel such as stable changes by itself",
            "write for example v1.36.3+k3s1",
            example="v1.36.3+k3s1",
        ),
    ]
    """Exact K3s release of all servers and workers."""
    binary_url: Annotated[
        StrictStr,
        AfterValidator(check_binary_url),
        editor(pattern=whole(BINARY_URL)),
        Rule(
            "an http(s) address without user and password",
            "write where the machines download the k3s binary",
            example="https://github.com/k3s-io/k3s/releases/download/v1.36.3%2Bk3s1/k3s",
        ),
    ]
    """Where the machines download the K3s binary (amd64)."""
    binary_sha256: Annotated[
        StrictStr,
        matches(r"[0-9a-f]{64}"),
        AfterValidator(check_checksum),
        _NOT_OF_NOTHING,
        Rule(
            "the binary's SHA-256 checksum, 64 lower-case hexadecimal digits",
            "read the line `k3s` in sha256sum-amd64.txt of the K3s release",
        ),
    ]
    """SHA-256 of the binary; a download that differs is refused."""
    tls_names: Annotated[
        tuple[
            Annotated[
                StrictStr,
                check(is_domain, maxLength=253, pattern=whole(DOMAIN)),
                Rule("a lower-case DNS name", "write for example k3s-api.schule.lan"),
            ],
            ...,
        ],
        check(unique, uniqueItems=True),
        Rule(
            "a list of lower-case DNS names, each once",
            "write for example [k3s-api.schule.lan]; the virtual address is always included",
            example=["k3s-api.schule.lan"],
        ),
    ] = ()
    """Names in the API's certificate beside its virtual address."""
    registry_mirrors: Annotated[
        Mapping[
            Annotated[
                StrictStr,
                matches(REGISTRY),
                Rule('the host name of a registry, or "*" for all', "write for example docker.io"),
            ],
            Annotated[
                tuple[
                    Annotated[
                        StrictStr,
                        matches(WEB_URL),
                        Rule(
                            "an http(s) address without user and password", "write for example http://10.0.145.1:5000"
                        ),
                    ],
                    ...,
                ],
                check(not_empty, minItems=1),
                Rule(
                    "a list of at least one http(s) address",
                    'write for example ["http://10.0.145.1:5000"]',
                ),
            ],
        ],
        Rule(
            'a map from a registry\'s host name (or "*" for all) to a list of http(s) addresses',
            'write for example {"*": ["http://10.0.145.1:5000"]}, or leave the key out',
            example={"*": ["http://10.0.145.1:5000"]},
        ),
    ] = {}
    """Image registries to ask instead of the named ones. Unset: images come from their own registries."""
    helm_repository: Annotated[
        Annotated[StrictStr, matches(WEB_URL)] | None,
        Rule(
            "an http(s) address of a Helm repository",
            "write for example http://10.0.145.1:8080/charts/, or leave the key out",
            example="http://10.0.145.1:8080/charts/",
        ),
    ] = None
    """One Helm repository that holds all charts. Unset: each chart comes from its upstream repository."""


class ApiLoadBalancerSettings(Model):
    """The redundant balancer in front of the Kubernetes API."""

    virtual_address: Annotated[
        Address,
        Rule(
            "an IPv4 address inside network.cidr that nobody else has", "write a free address", example="10.0.145.116"
        ),
    ]
    """Address of the API; whichever balancer is alive answers for it (VRRP)."""
    virtual_router_id: Annotated[
        StrictInt,
        between(1, 255),
        Rule("a whole number from 1 to 255", "write a number no other VRRP router in this network uses"),
    ] = 51
    """VRRP router id, unique in the network."""


class BackupSettings(Model):
    """The nightly backup to the file share."""

    schedule: Annotated[
        StrictStr,
        AfterValidator(check_schedule),
        editor(pattern=whole(SCHEDULE)),
        Rule("a time of five fields: minute, hour, day of month, month, day of week", CRON_EXAMPLE),
    ] = "0 2 * * *"
    """When a backup is made (cron, in timeZone)."""
    time_zone: Annotated[
        StrictStr,
        check(is_time_zone, pattern=whole(_IN_TZ_DATABASE)),
        Rule("the name of a time zone of the tz database", "write for example Europe/Berlin"),
    ] = "Europe/Berlin"
    """Time zone of the schedule."""
    keep_days: Annotated[
        StrictInt, between(1, 3650), Rule("a whole number of days from 1 to 3650", "write the number alone, such as 14")
    ] = 14
    """Days after which a backup is deleted; the newest one is always kept."""
    share: Annotated[
        StrictStr,
        check(
            lambda value: re.fullmatch(_SHARE, value) is not None and value.lower() not in _OF_SAMBA,
            pattern=whole(_SHARE),
            **{"not": {"enum": list(_OF_SAMBA)}},
        ),
        Rule(
            "the name of a share: at most 80 letters, digits, hyphens and underscores, not global, homes or printers",
            "write for example backup",
        ),
    ] = "backup"
    """Name of the SMB share that receives the backups."""


class PolicyWaiverSettings(Model):
    """One exception from a policy, with its reason and its last day; the policy pack reads it."""

    policy: Annotated[
        StrictStr,
        matches(r"[a-z][a-z0-9]*(-[a-z0-9]+)*"),
        Rule(
            "the name of a policy in lower-case words joined by hyphens, such as machine-unprivileged",
            "copy the name from the message of the policy",
            example="machine-unprivileged",
        ),
    ]
    """Policy that is waived."""
    resource: Annotated[
        StrictStr,
        matches(r"\*|[A-Za-z0-9][A-Za-z0-9._-]*"),
        Rule(
            "the logical name of one resource, stack for the plan as a whole, or * alone for every resource",
            "copy the name from the message of the policy; of a URN it is what follows the last ::",
            example="gl2-container",
        ),
    ]
    """Resource the policy is waived for: its logical name, `stack` for the plan as a whole, `*` for every resource."""
    reason: Annotated[
        StrictStr,
        check(is_reason, minLength=20, pattern=whole(REASON)),
        Rule(
            "a reason of at least 20 characters in at least three words",
            "write why the policy cannot be followed here, for whoever reads it in a year",
            example="The second Proxmox host arrives in spring.",
        ),
    ]
    """Why the policy is not followed; shown wherever the waiver is used."""
    until: Annotated[
        Day,
        Rule(
            "a day of the calendar in the form YYYY-MM-DD",
            'write the last day the waiver holds, such as "2027-07-31"',
            example="2027-07-31",
        ),
    ]
    """Last day the waiver holds; the policy pack reports one that is over."""


class Settings(Model):
    """The whole configuration of one stack, checked; made by :func:`load` or :func:`from_pulumi`."""

    network: Annotated[NetworkSettings, Rule("a map", "see docs/configuration.md")]
    """The school network."""
    proxmox: Annotated[ProxmoxSettings, Rule("a map", "see docs/configuration.md")]
    """The Proxmox hosts."""
    machines: Annotated[
        tuple[MachineSettings, ...], editor(minItems=1), Rule("a list of machines", "see docs/configuration.md")
    ]
    """The machines that are made, in the order in which they are listed."""
    template: Annotated[TemplateSettings, Rule("a map with url and sha512", "see docs/configuration.md")]
    """The container template."""
    kubernetes: Annotated[KubernetesSettings, Rule("a map", "see docs/configuration.md")]
    """The Kubernetes distribution."""
    api_load_balancer: Annotated[
        ApiLoadBalancerSettings, Rule("a map with virtualAddress and virtualRouterId", "see docs/configuration.md")
    ]
    """The balancer of the Kubernetes API."""
    postgres: Annotated[PostgresSettings, Rule("a map", "see docs/configuration.md")]
    """The database cluster."""
    backup: Annotated[BackupSettings, Rule("a map", "leave the key out for the defaults")] = BackupSettings()
    """The nightly backup."""
    protect_data: Annotated[
        StrictBool,
        editor(type=["boolean", "string"], enum=[True, False, "true", "false"]),
        Rule("true or false", "write false only where the database may be deleted, as in the lab"),
    ] = True
    """Whether Pulumi refuses to delete or replace what holds data."""
    policy_waivers: Annotated[
        tuple[PolicyWaiverSettings, ...],
        Rule(
            "a list of waivers with policy, resource, reason and until",
            "begin every waiver with a hyphen, or leave the key out when there is none",
        ),
    ] = ()
    """Exceptions from policies, each with a reason and a last day."""

    def machines_with(self, role: Role) -> tuple[MachineSettings, ...]:
        """The machines that have the role, in configuration order."""
        return tuple(machine for machine in self.machines if machine.has(role))

    @property
    def k3s_machines(self) -> tuple[MachineSettings, ...]:
        """The machines that carry pods (servers and workers), in configuration order."""
        return tuple(machine for machine in self.machines if machine.runs_k3s)

    def placeholders(self) -> tuple[str, ...]:
        """Sentences about values that are still the examples of this repository; with them only a preview works."""
        return tuple(
            f"proxmox.hosts[{index}].sshHostKey ({host.name}) is still the example of this repository; "
            f"allowed is {rule_of(type(host).model_fields['ssh_host_key']).allowed}: "
            f"{rule_of(type(host).model_fields['ssh_host_key']).do}."
            for index, host in enumerate(self.proxmox.hosts)
            if EXAMPLE_KEY in base64.b64decode(host.ssh_host_key.split()[1])
        )

    def warnings(self) -> tuple[str, ...]:
        """Sentences about what is allowed but not advisable: a lost Proxmox host must not take all of one kind."""
        found: list[str] = []
        for machines, what, consequence in (
            (self.machines_with(Role.K3S_SERVER), "K3s servers", "the Kubernetes API"),
            (self.machines_with(Role.API_LOAD_BALANCER), "API balancers", "access to the Kubernetes API"),
            (self.k3s_machines, "K3s machines", "the database"),
        ):
            if len({machine.proxmox_host for machine in machines}) == 1:
                found.append(
                    f"All {what} are on the Proxmox host {machines[0].proxmox_host}, whose loss stops {consequence}; "
                    "spread them with machines[].proxmoxHost."
                )
        if self.proxmox.insecure_tls:
            found.append(
                "proxmox.insecureTls is true, so that anybody in the network can pretend to be Proxmox and read the "
                "API token; trust the certificate of the Proxmox cluster instead (/etc/pve/pve-root-ca.pem)."
            )
        return tuple(found)
