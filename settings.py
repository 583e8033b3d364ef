"""The one configuration boundary: what ``Pulumi.<stack>.yaml`` says, typed and checked as a whole.

Every field carries its meaning (the text under it), what is allowed and what to do about a value that is not; the
sentences a teacher reads and ``docs/configuration.md`` both come from there. Nothing in here registers a resource,
opens a connection or reads a file. The secrets (``proxmoxApiToken``, ``sshPrivateKey``) are no part of the settings:
the program reads them with ``require_secret``, and here only their form is checked.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import json
import re
import struct
import types
import typing
import zoneinfo
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from typing import Annotated, Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pulumi
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    StrictBool,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
)
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo

import credentials

NAMESPACE = "school-postgres"
"""Project name and namespace of every configuration key."""

SECRET_KEYS = (credentials.PROXMOX_API_TOKEN, credentials.PRIVATE_KEY)
"""Keys that are read with ``require_secret`` by the program and never enter :class:`Settings`."""

POD_NETWORK = IPv4Network("10.42.0.0/16")
"""Addresses K3s gives to pods (its default, which the program keeps)."""

SERVICE_NETWORK = IPv4Network("10.43.0.0/16")
"""Addresses K3s gives to Services inside the cluster (its default, which the program keeps)."""

RESERVED_CONNECTIONS = 15
"""Connections kept free for superusers, Patroni, replication and the backup when the pooler is sized."""

DEFAULT_MAX_CONNECTIONS = 100
"""PostgreSQL's ``max_connections`` when ``postgres.parameters`` does not set it."""

LARGEST_MIB = 4 * 1024 * 1024
LARGEST_GIB = 65536


class SettingsError(pulumi.RunError):
    """The configuration cannot be used; ``str()`` is the text for the person who wrote it, one sentence a fault.

    Being a :class:`pulumi.RunError`, it ends a program run with its text and without a traceback.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        count = "one fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        lines = "\n".join(f"  - {fault}" for fault in self.faults)
        super().__init__(f"The configuration of {NAMESPACE} has {count}; nothing has been changed:\n{lines}")


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


class Operator(StrEnum):
    """Software that runs the PostgreSQL cluster."""

    ZALANDO = "zalando"
    """Zalando postgres-operator (Patroni, Spilo)."""


class PoolMode(StrEnum):
    """When PgBouncer gives a server connection back to the pool."""

    TRANSACTION = "transaction"
    SESSION = "session"


@dataclass(frozen=True, slots=True)
class AddressRange:
    """IPv4 addresses from ``first`` to ``last``, both included; written ``10.0.145.130-10.0.145.149``."""

    first: IPv4Address
    last: IPv4Address

    @classmethod
    def parse(cls, text: str) -> AddressRange:
        """Read ``first-last``; raises ValueError when it is not two IPv4 addresses in ascending order."""
        first, separator, last = text.partition("-")
        if not separator:
            raise ValueError(f"{text} is not of the form first-last")
        found = cls(IPv4Address(first.strip()), IPv4Address(last.strip()))
        if found.first > found.last:
            raise ValueError(f"{text} ends before it begins")
        return found

    def __contains__(self, address: object) -> bool:
        return isinstance(address, IPv4Address) and self.first <= address <= self.last

    def __iter__(self) -> Iterator[IPv4Address]:
        return (IPv4Address(number) for number in range(int(self.first), int(self.last) + 1))

    def __len__(self) -> int:
        return int(self.last) - int(self.first) + 1

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    def overlaps(self, other: AddressRange) -> bool:
        """Whether at least one address is in both ranges."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True, slots=True)
class Rule:
    """What a field may hold, in words: completes "allowed is ..." and says what to do about anything else."""

    allowed: str
    do: str


def _alias(field: str) -> str:
    """Spelling of a field in the YAML file: camelCase, with the binary units in their usual form."""
    return re.sub(r"(Mib|Gib)$", lambda unit: {"Mib": "MiB", "Gib": "GiB"}[unit[0]], to_camel(field))


class _Model(BaseModel):
    """Base of all settings: frozen, no unknown keys, values never printed by pydantic."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=_alias,
        populate_by_name=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Values of one field
# ---------------------------------------------------------------------------------------------------------------------

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_USER = re.compile(r"[a-z]([a-z0-9_]{0,61}[a-z0-9])?")
_PARAMETER = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?")


class _Refused(ValueError):
    """A value is refused for a reason of its own, which replaces the field's general rule."""

    def __init__(self, allowed: str, do: str) -> None:
        super().__init__(allowed)
        self.allowed = allowed
        self.do = do


def _check(accept: Callable[[Any], bool]) -> AfterValidator:
    """Validator that keeps a value which ``accept`` likes; the field's :class:`Rule` words the refusal."""

    def validate(value: Any) -> Any:
        if not accept(value):
            raise ValueError("not allowed")
        return value

    return AfterValidator(validate)


def _between(lowest: int, highest: int) -> AfterValidator:
    return _check(lambda value: lowest <= value <= highest)


def _matches(pattern: str | re.Pattern[str]) -> AfterValidator:
    return _check(lambda value: re.fullmatch(pattern, value) is not None)


def _not_empty(value: Any) -> bool:
    return len(value) > 0


def _unique(values: Sequence[object]) -> bool:
    return len(set(values)) == len(values)


def _is_domain(value: str) -> bool:
    return len(value) <= 253 and all(_LABEL.fullmatch(label) for label in value.split("."))


def _is_url(value: str, *schemes: str) -> bool:
    """Whether the value is an absolute URL of one of the schemes, with a host and without user or password."""
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        return False
    return parts.scheme in schemes and bool(parts.hostname) and parts.username is None and port != 0


def _is_web_url(value: str) -> bool:
    return _is_url(value, "http", "https")


def _is_api_endpoint(value: str) -> bool:
    if not _is_url(value, "https"):
        return False
    parts = urlsplit(value)
    return parts.port is not None and parts.path in ("", "/") and not parts.query and not parts.fragment


def _is_proxy(value: str) -> bool:
    return _is_url(value, "http") and urlsplit(value).port is not None and urlsplit(value).path in ("", "/")


_TEMPLATE_FILE = re.compile(r"debian-(12|13)-[a-z0-9]+_[0-9][0-9.]*-[0-9]+_amd64\.tar\.(zst|gz|xz)")


def _is_template(value: str) -> bool:
    return _is_web_url(value) and _TEMPLATE_FILE.fullmatch(unquote(urlsplit(value).path).rsplit("/", 1)[-1]) is not None


_HOST_KEY_TYPES = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")

_EXAMPLE_KEY = b"EXAMPLE-replace-with-key-of-"
"""What the example keys in Pulumi.school.yaml say when they are decoded; nobody has the private half."""


def _is_host_key(value: str) -> bool:
    """Whether the value is ``<type> <base64>`` and the encoded key says that it is of that type."""
    words = value.split()
    if len(words) not in (2, 3) or words[0] not in _HOST_KEY_TYPES:
        return False
    try:
        blob = base64.b64decode(words[1], validate=True)
    except (binascii.Error, ValueError):
        return False
    name = words[0].encode()
    return len(blob) > 4 + len(name) + 32 and blob[: 4 + len(name)] == struct.pack(">I", len(name)) + name


def _address(value: object) -> object:
    """Dotted quad to address; a bare number is no address in this file."""
    if isinstance(value, IPv4Address):
        return value
    if not isinstance(value, str):
        raise ValueError("not an address")
    return IPv4Address(value)


def _network(value: object) -> object:
    if isinstance(value, IPv4Network):
        return value
    if not isinstance(value, str) or "/" not in value:
        raise ValueError("not a network")
    return IPv4Network(value)


def _range(value: object) -> object:
    if isinstance(value, AddressRange):
        return value
    if not isinstance(value, str):
        raise ValueError("not a range")
    return AddressRange.parse(value)


Address = Annotated[IPv4Address, BeforeValidator(_address)]
Network = Annotated[IPv4Network, BeforeValidator(_network)]
Range = Annotated[AddressRange, BeforeValidator(_range)]


_CRON_FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of month", 1, 31, ()),
    ("month", 1, 12, ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")),
    ("day of week", 0, 6, ("sun", "mon", "tue", "wed", "thu", "fri", "sat")),
)
_CRON_EXAMPLE = 'write for example "0 2 * * *" for 02:00 every night'


def _cron_number(text: str, lowest: int, names: tuple[str, ...]) -> int:
    if text.lower() in names:
        return names.index(text.lower()) + lowest
    if not re.fullmatch(r"[0-9]{1,4}", text):
        raise ValueError(f"{text} is not a number")
    return int(text)


def _cron_part_is_valid(part: str, lowest: int, highest: int, names: tuple[str, ...]) -> bool:
    span, has_step, step = part.partition("/")
    if has_step and not re.fullmatch(r"[1-9][0-9]{0,3}", step):
        return False
    if span == "*":
        return True
    first, has_end, last = span.partition("-")
    try:
        begin = _cron_number(first, lowest, names)
        end = _cron_number(last, lowest, names) if has_end else begin
    except ValueError:
        return False
    return lowest <= begin <= end <= highest


def _schedule(value: str) -> str:
    """Accept what a Kubernetes CronJob accepts: five fields of numbers, names, ranges, lists and steps."""
    fields = value.split()
    if len(fields) != len(_CRON_FIELDS):
        raise _Refused(
            f"a time of five fields: minute, hour, day of month, month, day of week (it has {len(fields)})",
            _CRON_EXAMPLE,
        )
    for text, (name, lowest, highest, names) in zip(fields, _CRON_FIELDS, strict=True):
        if not all(_cron_part_is_valid(part, lowest, highest, names) for part in text.split(",")):
            sunday = " (Sunday is 0)" if name == "day of week" else ""
            raise _Refused(
                f"for the {name} a number from {lowest} to {highest}{sunday}, *, a range, a list or a step, "
                f"not {_shown(text)}",
                _CRON_EXAMPLE,
            )
    return value


def _is_time_zone(value: str) -> bool:
    return value in zoneinfo.available_timezones() and value not in ("localtime", "Factory")


def _parameter_values(value: object) -> object:
    """PostgreSQL's parameters are strings; a YAML number or truth value is taken as PostgreSQL would write it."""
    if not isinstance(value, Mapping):
        return value

    def text(item: object) -> object:
        if isinstance(item, bool):
            return "on" if item else "off"
        return str(item) if isinstance(item, int | float) else item

    return {name: text(item) for name, item in value.items()}


# ---------------------------------------------------------------------------------------------------------------------
# The topics
# ---------------------------------------------------------------------------------------------------------------------

_DO_ADDRESS = "write an address such as 10.0.145.110"


class NetworkSettings(_Model):
    """The school network that the machines and the database's addresses live in."""

    cidr: Annotated[
        Network,
        Rule(
            "an IPv4 network without host bits, such as 10.0.145.0/24", "write the network's first address and prefix"
        ),
    ]
    """The network all machines are in."""
    gateway: Annotated[Address, Rule("an IPv4 address inside network.cidr", "write the address of the router")]
    """Router of the network."""
    dns_servers: Annotated[
        tuple[Annotated[Address, Rule("an IPv4 address", "write for example 10.0.145.1")], ...],
        _check(_not_empty),
        Rule("a list of at least one IPv4 address", "write the school's name servers, such as [10.0.145.1]"),
    ]
    """Name servers the machines ask."""
    search_domain: Annotated[
        StrictStr,
        _check(_is_domain),
        Rule("a domain name of lower-case letters, digits, hyphens and dots", "write for example schule.lan"),
    ]
    """Domain the machines' short names are completed with."""
    bridge: Annotated[
        StrictStr,
        _matches(r"[a-z][a-z0-9_]{1,14}"),
        Rule("the name of a network bridge, up to 15 lower-case letters and digits", "write for example vmbr0"),
    ]
    """Bridge of the Proxmox hosts that the machines are plugged into."""
    service_pool: Annotated[
        Range,
        Rule("a range first-last of IPv4 addresses, first before last", "write for example 10.0.145.130-10.0.145.149"),
    ]
    """Addresses MetalLB may answer for; nothing else may use them."""
    dhcp_range: Annotated[
        Range | None,
        Rule(
            "a range first-last of IPv4 addresses, first before last",
            "write what the school's DHCP server hands out, such as 10.0.145.200-10.0.145.254, or leave the key out",
        ),
    ] = None
    """Addresses the school's DHCP server hands out; none of ours may lie in it. Unset: not checked."""
    apt_proxy: Annotated[
        Annotated[StrictStr, _check(_is_proxy)] | None,
        Rule(
            "an address http://host:port without user and password",
            "write for example http://10.0.145.1:3142, or leave the key out",
        ),
    ] = None
    """Proxy for Debian packages. Unset: the machines fetch packages directly."""

    @property
    def prefix_length(self) -> int:
        """Prefix length of the network, such as 24."""
        return self.cidr.prefixlen


class ProxmoxHostSettings(_Model):
    """One Proxmox VE host."""

    name: Annotated[
        StrictStr,
        _matches(_LABEL),
        Rule(
            "a host name of at most 63 lower-case letters, digits and hyphens",
            "write the node's name as Proxmox shows it, such as pve1",
        ),
    ]
    """Node name in Proxmox."""
    address: Annotated[Address, Rule("an IPv4 address", "write the address of the host, such as 10.0.145.10")]
    """Address at which the host is reached over SSH."""
    ssh_host_key: Annotated[
        StrictStr,
        _check(_is_host_key),
        Rule(
            "the host's public key in OpenSSH form, such as ssh-ed25519 AAAA... (or an ecdsa or rsa key)",
            "run `cat /etc/ssh/ssh_host_ed25519_key.pub` on the host and copy the first two words",
        ),
    ]
    """Public SSH key of the host; a connection to anything that shows another key is refused."""


class ProxmoxSettings(_Model):
    """The Proxmox VE installation that carries the machines."""

    endpoint: Annotated[
        StrictStr,
        _check(_is_api_endpoint),
        Rule(
            "an address https://host:port/ without user, password and path",
            "write for example https://10.0.145.10:8006/ (the program adds /api2/json itself)",
        ),
    ]
    """Address of the Proxmox API."""
    insecure_tls: Annotated[
        StrictBool, Rule("true or false", "write true only while the API has a certificate nobody can check")
    ] = False
    """Whether the API's certificate is left unchecked."""
    hosts: Annotated[
        tuple[ProxmoxHostSettings, ...],
        _check(_not_empty),
        Rule("a list of at least one host with name, address and sshHostKey", "list every Proxmox host that is used"),
    ]
    """The Proxmox hosts that machines are placed on."""
    template_storage: Annotated[
        StrictStr,
        _matches(r"[A-Za-z][A-Za-z0-9._-]*[A-Za-z0-9]"),
        Rule("the name of a Proxmox storage for container templates", "see `pvesm status --content vztmpl`"),
    ] = "local"
    """Storage on each host that keeps the container template."""
    disk_storage: Annotated[
        StrictStr,
        _matches(r"[A-Za-z][A-Za-z0-9._-]*[A-Za-z0-9]"),
        Rule("the name of a Proxmox storage for container disks", "see `pvesm status --content rootdir`"),
    ] = "local-lvm"
    """Storage on each host that keeps the machines' disks."""

    def host(self, name: str) -> ProxmoxHostSettings:
        """The host of that name; raises KeyError when there is none (never after :func:`load`)."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise KeyError(name)


class MachineSettings(_Model):
    """One machine (LXC container) that the program makes."""

    name: Annotated[
        StrictStr,
        _matches(_LABEL),
        Rule(
            "a host name of at most 63 lower-case letters, digits and hyphens, with neither end a hyphen",
            "write for example gl2",
        ),
    ]
    """Host name."""
    address: Annotated[Address, Rule("an IPv4 address inside network.cidr", _DO_ADDRESS)]
    """Fixed address in the school network."""
    roles: Annotated[
        tuple[Annotated[Role, Rule("one of " + ", ".join(Role), "write one of these")], ...],
        _check(_not_empty),
        _check(_unique),
        Rule(
            "a list of at least one of " + ", ".join(Role) + ", each at most once",
            "write for example [k3s-server]",
        ),
    ]
    """What the machine does."""
    proxmox_host: Annotated[StrictStr, Rule("the name of a host in proxmox.hosts", "write for example pve1")]
    """Proxmox host that carries the machine."""
    vm_id: Annotated[
        StrictInt,
        _between(100, 999_999_999),
        Rule("a whole number from 100 to 999999999", "write an id that Proxmox does not use yet"),
    ]
    """Id of the container in Proxmox."""
    cores: Annotated[
        StrictInt, _between(1, 512), Rule("a whole number from 1 to 512", "write how many cores the machine gets")
    ]
    """Processor cores."""
    memory_mib: Annotated[
        StrictInt,
        _between(256, LARGEST_MIB),
        Rule(f"a whole number of MiB from 256 to {LARGEST_MIB}", "give the machine at least 256"),
    ]
    """Main memory in MiB."""
    disk_gib: Annotated[
        StrictInt,
        _between(2, LARGEST_GIB),
        Rule(f"a whole number of GiB from 2 to {LARGEST_GIB}", "give the machine at least 2"),
    ]
    """Size of the root disk in GiB."""

    def has(self, role: Role) -> bool:
        """Whether the machine has the role."""
        return role in self.roles

    @property
    def runs_k3s(self) -> bool:
        """Whether pods can run here (K3s server or worker)."""
        return self.has(Role.K3S_SERVER) or self.has(Role.K3S_WORKER)


class TemplateSettings(_Model):
    """The container template all machines are made from."""

    url: Annotated[
        StrictStr,
        _check(_is_template),
        Rule(
            "an http(s) address of a Debian 12 or 13 template named "
            "debian-<release>-<variant>_<version>_amd64.tar.zst (.tar.gz, .tar.xz)",
            "take one from http://download.proxmox.com/images/system/",
        ),
    ]
    """Where the Proxmox hosts download the template."""
    sha512: Annotated[
        StrictStr,
        _matches(r"[0-9a-f]{128}"),
        Rule(
            "the file's SHA-512 checksum, 128 lower-case hexadecimal digits",
            "read it on a Proxmox host: `pveam update`, then look up `sha512sum:` of the template in "
            "/var/lib/pve-manager/apl-info/download.proxmox.com",
        ),
    ]
    """SHA-512 of the file; a download that differs is refused."""

    @property
    def file_name(self) -> str:
        """Name of the template's file, such as debian-12-standard_12.12-1_amd64.tar.zst."""
        return unquote(urlsplit(self.url).path).rsplit("/", 1)[-1]


NEWEST_KUBERNETES_MINOR = 36
OLDEST_KUBERNETES_MINOR = 34
_K3S_VERSION = re.compile(r"v1\.(?P<minor>[0-9]+)\.[0-9]+\+k3s[0-9]+")


def _k3s_version(value: str) -> str:
    found = _K3S_VERSION.fullmatch(value)
    if found is None:
        raise ValueError("not an exact release")
    if not OLDEST_KUBERNETES_MINOR <= int(found["minor"]) <= NEWEST_KUBERNETES_MINOR:
        raise _Refused(
            f"a release from 1.{OLDEST_KUBERNETES_MINOR} to 1.{NEWEST_KUBERNETES_MINOR}, which the providers and the "
            "operator of this project are made for",
            f"use a v1.{NEWEST_KUBERNETES_MINOR} release",
        )
    return value


class KubernetesSettings(_Model):
    """The Kubernetes distribution (K3s)."""

    version: Annotated[
        StrictStr,
        AfterValidator(_k3s_version),
        Rule(
            "one exact K3s release of the form vX.Y.Z+k3sN; a channel such as stable changes by itself",
            "write for example v1.36.3+k3s1",
        ),
    ]
    """Exact K3s release of all servers and workers."""
    binary_url: Annotated[
        StrictStr,
        _check(_is_web_url),
        Rule("an http(s) address without user and password", "write where the machines download the k3s binary"),
    ]
    """Where the machines download the K3s binary (amd64)."""
    binary_sha256: Annotated[
        StrictStr,
        _matches(r"[0-9a-f]{64}"),
        Rule(
            "the binary's SHA-256 checksum, 64 lower-case hexadecimal digits",
            "read the line `k3s` in sha256sum-amd64.txt of the K3s release",
        ),
    ]
    """SHA-256 of the binary; a download that differs is refused."""
    tls_names: Annotated[
        tuple[
            Annotated[
                StrictStr, _check(_is_domain), Rule("a lower-case DNS name", "write for example k3s-api.schule.lan")
            ],
            ...,
        ],
        Rule(
            "a list of lower-case DNS names",
            "write for example [k3s-api.schule.lan]; the virtual address is always included",
        ),
    ] = ()
    """Names in the API's certificate beside its virtual address."""
    registry_mirrors: Annotated[
        Mapping[
            Annotated[
                StrictStr,
                _matches(r"\*|[a-z0-9][a-z0-9.-]*(:[0-9]{1,5})?"),
                Rule('the host name of a registry, or "*" for all', "write for example docker.io"),
            ],
            Annotated[
                tuple[
                    Annotated[
                        StrictStr,
                        _check(_is_web_url),
                        Rule(
                            "an http(s) address without user and password", "write for example http://10.0.145.1:5000"
                        ),
                    ],
                    ...,
                ],
                _check(_not_empty),
                Rule(
                    "a list of at least one http(s) address",
                    'write for example ["http://10.0.145.1:5000"]',
                ),
            ],
        ],
        Rule(
            'a map from a registry\'s host name (or "*" for all) to a list of http(s) addresses',
            'write for example {"*": ["http://10.0.145.1:5000"]}, or leave the key out',
        ),
    ] = {}
    """Image registries to ask instead of the named ones. Unset: images come from their own registries."""
    helm_repository: Annotated[
        Annotated[StrictStr, _check(_is_web_url)] | None,
        Rule(
            "an http(s) address of a Helm repository",
            "write for example http://10.0.145.1:8080/charts/, or leave the key out",
        ),
    ] = None
    """One Helm repository that holds all charts. Unset: each chart comes from its upstream repository."""


class ApiLoadBalancerSettings(_Model):
    """The redundant balancer in front of the Kubernetes API."""

    virtual_address: Annotated[
        Address, Rule("an IPv4 address inside network.cidr that nobody else has", "write a free address")
    ]
    """Address of the API; whichever balancer is alive answers for it (VRRP)."""
    virtual_router_id: Annotated[
        StrictInt,
        _between(1, 255),
        Rule("a whole number from 1 to 255", "write a number no other VRRP router in this network uses"),
    ] = 51
    """VRRP router id, unique in the network."""


class StorageSettings(_Model):
    """Volume of one PostgreSQL instance."""

    size_gib: Annotated[
        StrictInt,
        _between(1, LARGEST_GIB),
        Rule(f"a whole number of GiB from 1 to {LARGEST_GIB}", "write at least 1"),
    ]
    """Size of each instance's volume in GiB."""
    storage_class: Annotated[
        StrictStr,
        _check(_is_domain),
        Rule("the name of a Kubernetes StorageClass", "write local-path, which K3s brings along"),
    ] = "local-path"
    """StorageClass of the volumes."""


class ResourceSettings(_Model):
    """Processor and memory of one PostgreSQL instance."""

    cpu_request_millicores: Annotated[
        StrictInt,
        _between(10, 2000),
        Rule("a whole number of thousandths of a core from 10 to 2000, each instance's limit", "write for example 250"),
    ] = 250
    """Processor time kept for each instance, in thousandths of a core."""
    memory_request_mib: Annotated[
        StrictInt,
        _between(128, LARGEST_MIB),
        Rule(f"a whole number of MiB from 128 to {LARGEST_MIB}", "write for example 512"),
    ] = 512
    """Memory kept for each instance, in MiB."""
    memory_limit_mib: Annotated[
        StrictInt,
        _between(250, LARGEST_MIB),
        Rule(f"a whole number of MiB from 250 (the operator's minimum) to {LARGEST_MIB}", "write for example 1024"),
    ] = 1024
    """Memory at which an instance is ended by the kernel, in MiB."""


class PoolerSettings(_Model):
    """The connection pooler (PgBouncer) in front of the primary."""

    instances: Annotated[
        StrictInt,
        _between(2, 50),
        Rule("a whole number from 2, so that one may fail, to 50", "write 2"),
    ] = 2
    """How many PgBouncer pods there are."""
    mode: Annotated[
        PoolMode,
        Rule(
            "transaction (many clients share few connections) or session",
            "write transaction unless applications use session state such as LISTEN or prepared statements by name",
        ),
    ] = PoolMode.TRANSACTION
    """When a client's server connection goes back to the pool."""
    max_database_connections: Annotated[
        StrictInt,
        _between(8, 10_000),
        Rule("a whole number from 8 to 10000", "write for example 60"),
    ] = 60
    """Most connections to each database that all pooler pods together open; the pods share them equally."""


class ServiceAddressSettings(_Model):
    """Fixed addresses at which applications reach the database."""

    primary: Annotated[Address, Rule("an IPv4 address inside network.servicePool", _DO_ADDRESS)]
    """Address of the primary (reads and writes)."""
    replica: Annotated[Address, Rule("an IPv4 address inside network.servicePool", _DO_ADDRESS)]
    """Address of the replicas (reads only)."""
    pooler: Annotated[Address, Rule("an IPv4 address inside network.servicePool", _DO_ADDRESS)]
    """Address of the pooler (reads and writes, for many clients)."""

    def __iter__(self) -> Iterator[tuple[str, IPv4Address]]:  # type: ignore[override]
        """Pairs of name and address in the order primary, replica, pooler."""
        yield "primary", self.primary
        yield "replica", self.replica
        yield "pooler", self.pooler


SUPPORTED_POSTGRES = ("13", "14", "15", "16", "17")
"""Major versions that the operator's image holds."""

RESERVED_USERS = ("admin", "pooler", "postgres", "standby", "zalandos")
"""Roles the operator makes and manages itself."""

RESERVED_DATABASES = ("postgres", "template0", "template1")

OWNED_PARAMETERS: Mapping[str, str] = {
    "archive_command": "the program",
    "archive_mode": "the operator",
    "archive_timeout": "the operator",
    "cluster_name": "Patroni",
    "config_file": "Patroni",
    "data_directory": "Patroni",
    "external_pid_file": "Patroni",
    "hba_file": "Patroni",
    "hot_standby": "Patroni",
    "ident_file": "Patroni",
    "listen_addresses": "Patroni",
    "max_prepared_transactions": "Patroni",
    "max_replication_slots": "Patroni",
    "max_wal_senders": "Patroni",
    "password_encryption": "the program",
    "port": "Patroni",
    "primary_conninfo": "Patroni",
    "primary_slot_name": "Patroni",
    "recovery_target": "Patroni",
    "restore_command": "the operator",
    "ssl": "the operator",
    "synchronous_standby_names": "Patroni",
    "track_commit_timestamp": "Patroni",
    "unix_socket_directories": "the operator",
    "wal_level": "Patroni",
    "wal_log_hints": "Patroni",
}
"""PostgreSQL parameters that are set by the software named; a value in the configuration would not last."""


def _postgres_version(value: object) -> object:
    if isinstance(value, int | float) and not isinstance(value, bool) and str(value) in SUPPORTED_POSTGRES:
        raise _Refused("text in quotes", f'write "{value}"')
    return value


def _user_name(value: str) -> str:
    if value in RESERVED_USERS:
        raise _Refused(
            "a name that the operator does not keep for itself (" + ", ".join(RESERVED_USERS) + ")",
            "choose another name",
        )
    if value.startswith("pg_"):
        raise _Refused("a name that does not start with pg_, which PostgreSQL reserves", "choose another name")
    if not _USER.fullmatch(value):
        raise ValueError("not a role name")
    return value


def _database_name(value: str) -> str:
    if value in RESERVED_DATABASES:
        raise _Refused("a name other than " + ", ".join(RESERVED_DATABASES), "choose another name")
    if value.startswith("pg_"):
        raise _Refused("a name that does not start with pg_, which PostgreSQL reserves", "choose another name")
    if not _IDENTIFIER.fullmatch(value):
        raise ValueError("not an identifier")
    return value


USER_FLAGS = ("createdb", "createrole", "inherit", "login", "nologin")
_REFUSED_FLAGS: Mapping[str, str] = {
    "superuser": "a superuser may do everything, also outside its own database",
    "replication": "a replication role can read every database",
    "bypassrls": "bypassrls switches row security off",
}


def _user_flag(value: str) -> str:
    if value in _REFUSED_FLAGS:
        raise _Refused(
            "one of " + ", ".join(USER_FLAGS) + f", because {_REFUSED_FLAGS[value]}",
            "leave it out; the owner of a database may do everything inside it",
        )
    if value not in USER_FLAGS:
        raise ValueError("unknown flag")
    return value


def _parameter_name(value: str) -> str:
    if value in OWNED_PARAMETERS or value.startswith(("ssl_", "recovery_target_")):
        owner = OWNED_PARAMETERS.get(value, "the operator")
        raise _Refused(f"a parameter that is yours to set; this one is set by {owner}", "leave it out")
    if not _PARAMETER.fullmatch(value):
        raise ValueError("not a parameter name")
    return value


def _allowed_source(value: IPv4Network) -> IPv4Network:
    if value.prefixlen == 0:
        raise _Refused(
            "a network of the school; 0.0.0.0/0 lets every computer that reaches the address try passwords",
            "write the networks the applications are in, such as 10.0.145.0/24",
        )
    return value


class PostgresSettings(_Model):
    """The database cluster."""

    operator: Annotated[Operator, Rule("zalando, the operator this release implements", "write zalando")] = (
        Operator.ZALANDO
    )
    """Software that runs the database cluster."""
    name: Annotated[
        StrictStr,
        _matches(r"[a-z]([a-z0-9-]{0,43}[a-z0-9])?"),
        Rule(
            "at most 45 lower-case letters, digits and hyphens, a letter first, so that names derived from it "
            "(such as <name>-pooler-repl) fit Kubernetes",
            "write for example wichtige-daten-3",
        ),
    ]
    """Name of the database cluster and of the Services in front of it."""
    team: Annotated[
        StrictStr,
        _matches(_LABEL),
        Rule("at most 63 lower-case letters, digits and hyphens", "write for example schule"),
    ] = "schule"
    """Team the operator files the cluster under."""
    version: Annotated[
        StrictStr,
        BeforeValidator(_postgres_version),
        _check(lambda value: value in SUPPORTED_POSTGRES),
        Rule("one of " + ", ".join(f'"{version}"' for version in SUPPORTED_POSTGRES) + ", in quotes", 'write "16"'),
    ]
    """Major version of PostgreSQL."""
    instances: Annotated[
        StrictInt,
        _between(3, 15),
        Rule(
            "a whole number from 3 to 15; with fewer than 3 the loss of one machine leaves no synchronous standby, "
            "and writes stop or become unsafe",
            "write 3",
        ),
    ] = 3
    """How many copies of the database there are, each on a machine of its own."""
    storage: Annotated[StorageSettings, Rule("a map with sizeGiB and storageClass", "write for example {sizeGiB: 10}")]
    """Volume of each instance."""
    resources: Annotated[
        ResourceSettings,
        Rule("a map with cpuRequestMillicores, memoryRequestMiB, memoryLimitMiB", "leave the key out for the defaults"),
    ] = ResourceSettings()
    """Processor and memory of each instance."""
    users: Annotated[
        Mapping[
            Annotated[
                StrictStr,
                AfterValidator(_user_name),
                Rule(
                    "a name of at most 63 lower-case letters, digits and underscores, starting with a letter",
                    "choose another name",
                ),
            ],
            Annotated[
                tuple[
                    Annotated[
                        StrictStr,
                        AfterValidator(_user_flag),
                        Rule("one of " + ", ".join(USER_FLAGS), "write one of these or leave it out"),
                    ],
                    ...,
                ],
                Rule("a list of " + ", ".join(USER_FLAGS) + ", mostly empty", "write for example []"),
            ],
        ],
        _check(_not_empty),
        Rule(
            "a map with at least one entry from names (at most 63 lower-case letters, digits and underscores, a letter "
            "first, no underscore last) to lists of " + ", ".join(USER_FLAGS),
            "write for example {bauer: []}",
        ),
    ]
    """Database roles and their flags; the operator makes a password for each."""
    databases: Annotated[
        Mapping[
            Annotated[
                StrictStr,
                AfterValidator(_database_name),
                Rule(
                    "a name of at most 63 lower-case letters, digits and underscores, no digit first",
                    "choose another name",
                ),
            ],
            Annotated[StrictStr, Rule("the name of a role in postgres.users", "write for example bauer")],
        ],
        _check(_not_empty),
        Rule(
            "a map with at least one entry from database names (lower-case letters, digits and underscores, no digit "
            "first, at most 63) to their owners in postgres.users",
            "write for example {firmendaten: bauer}",
        ),
    ]
    """Databases and their owners; the first is the application's."""
    parameters: Annotated[
        Mapping[
            Annotated[
                StrictStr,
                AfterValidator(_parameter_name),
                Rule("the lower-case name of a PostgreSQL parameter", "write for example work_mem"),
            ],
            Annotated[StrictStr, Rule("a text, a number, true or false", 'write for example "64MB"')],
        ],
        BeforeValidator(_parameter_values),
        Rule(
            "a map from PostgreSQL parameter names (lower case) to values",
            'write for example {max_connections: "200"}',
        ),
    ] = {}
    """PostgreSQL parameters; numbers are taken as text, true and false as on and off."""
    pooler: Annotated[
        PoolerSettings, Rule("a map with instances, mode, maxDatabaseConnections", "leave the key out for the defaults")
    ] = PoolerSettings()
    """The connection pooler."""
    allowed_sources: Annotated[
        tuple[
            Annotated[
                Network,
                AfterValidator(_allowed_source),
                Rule("an IPv4 network without host bits", "write for example 10.0.145.0/24"),
            ],
            ...,
        ],
        _check(_not_empty),
        Rule(
            "a list of at least one IPv4 network without host bits",
            "write the networks the applications are in, such as [10.0.145.0/24]",
        ),
    ]
    """Networks whose computers may connect to the database's addresses."""
    addresses: Annotated[
        ServiceAddressSettings,
        Rule("a map with primary, replica and pooler", "write three addresses of network.servicePool"),
    ]
    """Fixed addresses of the database."""

    @property
    def application_database(self) -> tuple[str, str]:
        """Name and owner of the application's database, the first one in the configuration."""
        return next(iter(self.databases.items()))

    @property
    def max_connections(self) -> int:
        """Connections PostgreSQL accepts (``parameters.max_connections``, default 100)."""
        return int(self.parameters.get("max_connections", DEFAULT_MAX_CONNECTIONS))


class BackupSettings(_Model):
    """The nightly backup to the file share."""

    schedule: Annotated[
        StrictStr,
        AfterValidator(_schedule),
        Rule("a time of five fields: minute, hour, day of month, month, day of week", _CRON_EXAMPLE),
    ] = "0 2 * * *"
    """When a backup is made (cron, in timeZone)."""
    time_zone: Annotated[
        StrictStr,
        _check(_is_time_zone),
        Rule("the name of a time zone of the tz database", "write for example Europe/Berlin"),
    ] = "Europe/Berlin"
    """Time zone of the schedule."""
    keep_days: Annotated[
        StrictInt, _between(1, 3650), Rule("a whole number of days from 1 to 3650", "write for example 14")
    ] = 14
    """Days after which a backup is deleted; the newest one is always kept."""
    share: Annotated[
        StrictStr,
        _check(
            lambda value: (
                re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}", value) is not None
                and value.lower() not in ("global", "homes", "printers")
            )
        ),
        Rule(
            "the name of a share: at most 80 letters, digits, hyphens and underscores, not global, homes or printers",
            "write for example backup",
        ),
    ] = "backup"
    """Name of the SMB share that receives the backups."""


class Settings(_Model):
    """The whole configuration of one stack, checked; made by :func:`load` or :func:`from_pulumi`."""

    network: Annotated[NetworkSettings, Rule("a map", "see docs/configuration.md")]
    """The school network."""
    proxmox: Annotated[ProxmoxSettings, Rule("a map", "see docs/configuration.md")]
    """The Proxmox hosts."""
    machines: Annotated[tuple[MachineSettings, ...], Rule("a list of machines", "see docs/configuration.md")]
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
        StrictBool, Rule("true or false", "write false only where the database may be deleted, as in the lab")
    ] = True
    """Whether Pulumi refuses to delete or replace what holds data."""

    def machines_with(self, role: Role) -> tuple[MachineSettings, ...]:
        """The machines that have the role, in configuration order."""
        return tuple(machine for machine in self.machines if machine.has(role))

    @property
    def k3s_machines(self) -> tuple[MachineSettings, ...]:
        """The machines that carry pods (servers and workers), in configuration order."""
        return tuple(machine for machine in self.machines if machine.runs_k3s)

    @property
    def datastore(self) -> MachineSettings:
        """The machine that holds the datastore of the Kubernetes API."""
        return self.machines_with(Role.DATASTORE)[0]

    @property
    def file_share(self) -> MachineSettings:
        """The machine that holds the backup share."""
        return self.machines_with(Role.FILE_SHARE)[0]

    def proxmox_host_of(self, machine: MachineSettings) -> ProxmoxHostSettings:
        """The Proxmox host that carries the machine."""
        return self.proxmox.host(machine.proxmox_host)

    def placeholders(self) -> tuple[str, ...]:
        """Sentences about values that are still the examples of this repository; with them only a preview works."""
        return tuple(
            f"proxmox.hosts[{index}].sshHostKey ({host.name}) is still the example of this repository; "
            f"allowed is {_rule(type(host).model_fields['ssh_host_key']).allowed}: "
            f"{_rule(type(host).model_fields['ssh_host_key']).do}."
            for index, host in enumerate(self.proxmox.hosts)
            if _EXAMPLE_KEY in base64.b64decode(host.ssh_host_key.split()[1])
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


# ---------------------------------------------------------------------------------------------------------------------
# Faults in words
# ---------------------------------------------------------------------------------------------------------------------

_LONGEST_SHOWN = 60
_LOOKS_SECRET = re.compile(
    r"PRIVATE KEY|(PASSWORD|PASSWD|SECRET|TOKEN)\s*[=:]|\S+@\S+![^=\s]+=|://[^/\s]*@|BEARER|[0-9a-f]{8}-([0-9a-f]{4}-){3}",
    re.IGNORECASE,
)


class _Fault(NamedTuple):
    """One fault: where it is, what was found there, what may be there and what to do."""

    path: str
    was: str
    allowed: str
    do: str

    def __str__(self) -> str:
        return f"{self.path} {self.was}; allowed is {self.allowed}: {self.do}."


def _shown(value: object) -> str:
    """A value as the reader wrote it, short; never one that looks like a secret."""
    if value is None:
        return "empty"
    if isinstance(value, str):
        if _LOOKS_SECRET.search(value):
            return "a text that looks like a secret (not shown)"
        text = value if len(value) <= _LONGEST_SHOWN else value[:_LONGEST_SHOWN] + "…"
        return json.dumps(text, ensure_ascii=False)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, Mapping):
        return "a map" if value else "an empty map"
    if not isinstance(value, Sequence) or not value:
        return "an empty list"
    text = ", ".join(str(item) for item in value)
    plain = all(isinstance(item, str | int | float) for item in value) and not _LOOKS_SECRET.search(text)
    return f"[{text}]" if plain and len(text) <= _LONGEST_SHOWN else "a list"


def _path(topic: str, location: Sequence[int | str]) -> str:
    """Where a value stands, in the file's own spelling, such as machines[2].memoryMiB."""
    text = topic
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", part):
            text += f".{part}"
        else:
            text += f"[{json.dumps(part, ensure_ascii=False)}]"
    return text


def _raw(value: object, location: Sequence[int | str]) -> object:
    """What the file has at the location; None when it has nothing there."""
    for part in location:
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, Sequence) and not isinstance(value, str) and isinstance(part, int):
            value = value[part] if part < len(value) else None
        else:
            return None
    return value


def _inner(annotation: object) -> object:
    """The type behind Annotated and "or nothing"."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _inner(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return _inner(next(item for item in typing.get_args(annotation) if item is not type(None)))
    return annotation


def _field_named(model: type[BaseModel], key: int | str) -> FieldInfo | None:
    return next((field for name, field in model.model_fields.items() if _alias(name) == key), None)


def _rule_in(metadata: Iterable[object]) -> Rule | None:
    return next((item for item in metadata if isinstance(item, Rule)), None)


def _rule(field: FieldInfo) -> Rule:
    """The rule of a field; every field has one."""
    found = _rule_in(field.metadata)
    if found is None:
        raise TypeError(f"the field {field.alias} has no Rule")
    return found


def _expected(field: FieldInfo, location: Sequence[int | str], is_key: bool) -> tuple[Rule, object]:
    """The rule for what stands at the location (that of the nearest thing around it which has one), and its type."""
    rule, annotation = _rule(field), _inner(field.annotation)
    for depth, part in enumerate(location):
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            inner = _field_named(annotation, part)
            if inner is None:
                break
            rule, annotation = _rule(inner), _inner(inner.annotation)
            continue
        arguments = [item for item in typing.get_args(annotation) if item is not Ellipsis]
        if not arguments:
            break
        item = arguments[0 if is_key and depth == len(location) - 1 else -1]
        if typing.get_origin(item) is Annotated:
            rule = _rule_in(typing.get_args(item)[1:]) or rule
        annotation = _inner(item)
    return rule, annotation


def _name_of(topic: str, location: Sequence[int | str], raw: object) -> str:
    """The machine's or host's name in brackets when the location is inside one, so that nobody has to count."""
    depth = 1 if topic == "machines" else 2 if location[:1] == ("hosts",) else 0
    name = _raw(raw, [*location[:depth], "name"]) if 0 < depth < len(location) else None
    return f" ({name})" if isinstance(name, str) and location[depth:] != ("name",) and _LABEL.fullmatch(name) else ""


def _unknown_key(path: str, key: str, known: Sequence[str]) -> str:
    """Sentence about a key that does not exist; its value is never shown."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(key.lower().replace("_", ""), by_lower, n=1, cutoff=0.6)
    if near:
        return f"{path} is not a known key; did you mean {by_lower[near[0]]}?"
    return f"{path} is not a known key; allowed is one of {', '.join(known)}: take the key out or correct it."


def _explain(topic: str, field: FieldInfo, raw: object, error: ValidationError) -> Iterator[str]:
    """One sentence for every place that pydantic refused, each place once."""
    seen: set[str] = set()
    for item in error.errors(include_url=False, include_input=False):
        location = item["loc"]
        is_key = location[-1:] == ("[key]",)
        if is_key:
            location = location[:-1]
        rule, expected = _expected(field, location, is_key)
        path = _path(topic, location) + _name_of(topic, location, raw)
        if path in seen:
            continue
        seen.add(path)
        if item["type"] == "extra_forbidden":
            _, owner = _expected(field, location[:-1], False)
            fields = owner.model_fields if isinstance(owner, type) and issubclass(owner, BaseModel) else {}
            yield _unknown_key(path, str(location[-1]), [_alias(name) for name in fields])
            continue
        refusal = item.get("ctx", {}).get("error")
        if isinstance(refusal, _Refused):
            rule = Rule(refusal.allowed, refusal.do)
        if is_key:
            path, was = _path(topic, location[:-1]), f"has the key {_shown(location[-1])}"
        elif item["type"] == "missing":
            was = "is missing"
        elif isinstance(expected, type) and issubclass(expected, BaseModel):
            keys = ", ".join(_alias(name) for name in expected.model_fields)
            rule = Rule(f"a map with the keys {keys}", "see docs/configuration.md")
            was = f"is {_shown(_raw(raw, location))}"
        else:
            was = f"is {_shown(_raw(raw, location))}"
        yield str(_Fault(path, was, rule.allowed, rule.do))


# ---------------------------------------------------------------------------------------------------------------------
# Rules across fields. Each takes topics that are valid by themselves; None stands for one that is not.
# ---------------------------------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """An address of the configuration, where it stands and whose it is."""

    path: str
    owner: str
    address: IPv4Address


class _Topics(NamedTuple):
    """The topics that are valid by themselves."""

    network: NetworkSettings | None = None
    proxmox: ProxmoxSettings | None = None
    machines: tuple[MachineSettings, ...] | None = None
    template: TemplateSettings | None = None
    kubernetes: KubernetesSettings | None = None
    api_load_balancer: ApiLoadBalancerSettings | None = None
    postgres: PostgresSettings | None = None
    backup: BackupSettings | None = None
    protect_data: bool | None = None


def _fixed_places(topics: _Topics) -> list[_Place]:
    """Every address that is fixed outside the service pool: gateway, Proxmox hosts, machines, virtual address."""
    places: list[_Place] = []
    if topics.network is not None:
        places.append(_Place("network.gateway", "the gateway", topics.network.gateway))
    if topics.proxmox is not None:
        places += [
            _Place(f"proxmox.hosts[{index}].address ({host.name})", f"the Proxmox host {host.name}", host.address)
            for index, host in enumerate(topics.proxmox.hosts)
        ]
    if topics.machines is not None:
        places += [
            _Place(f"machines[{index}].address ({machine.name})", f"the machine {machine.name}", machine.address)
            for index, machine in enumerate(topics.machines)
        ]
    if topics.api_load_balancer is not None:
        places.append(
            _Place("apiLoadBalancer.virtualAddress", "the virtual address", topics.api_load_balancer.virtual_address)
        )
    return places


def _service_places(topics: _Topics) -> list[_Place]:
    if topics.postgres is None:
        return []
    return [
        _Place(f"postgres.addresses.{name}", f"the address {name} of the database", address)
        for name, address in topics.postgres.addresses
    ]


def _usable(network: IPv4Network, address: IPv4Address) -> bool:
    return address in network and address not in (network.network_address, network.broadcast_address)


def _network_faults(topics: _Topics) -> Iterator[_Fault]:
    """The network itself, and every address inside it."""
    network = topics.network
    if network is None:
        return
    cidr = network.cidr
    if not 8 <= cidr.prefixlen <= 29:
        yield _Fault("network.cidr", f"is {cidr}", "a prefix from /8 to /29", "write the network of the school")
    for name, inner in (("pods", POD_NETWORK), ("Services", SERVICE_NETWORK)):
        if cidr.overlaps(inner):
            yield _Fault(
                "network.cidr",
                f"is {cidr}",
                f"a network that does not overlap {inner}, which Kubernetes uses for its {name}",
                "put the machines into another network",
            )
    inside = f"an address of {cidr} that is neither its first nor its last"
    for place in _fixed_places(topics):
        if not place.path.startswith("proxmox.") and not _usable(cidr, place.address):
            yield _Fault(place.path, f"is {place.address}", inside, "write an address of the school network")
    for name, span in (("servicePool", network.service_pool), ("dhcpRange", network.dhcp_range)):
        if span is not None and not (_usable(cidr, span.first) and _usable(cidr, span.last)):
            yield _Fault(
                f"network.{name}",
                f"is {span}",
                f"a range inside {cidr} without its first and last address",
                "write a range of the school network",
            )


def _listed(places: Iterable[_Place]) -> str:
    return " and ".join(f"{place.owner} ({place.address})" for place in places)


def _range_faults(topics: _Topics) -> Iterator[_Fault]:
    """The service pool and the DHCP range: nothing else may lie in them."""
    network = topics.network
    if network is None:
        return
    fixed = _fixed_places(topics)
    servers = [_Place("", "a name server", address) for address in network.dns_servers]
    in_pool = [place for place in fixed + servers if place.address in network.service_pool]
    if in_pool:
        yield _Fault(
            "network.servicePool",
            f"is {network.service_pool}",
            f"a range that MetalLB has for itself, but {_listed(in_pool)} would be in it",
            "move the range or these addresses",
        )
    for place in _service_places(topics):
        if place.address not in network.service_pool:
            yield _Fault(
                place.path,
                f"is {place.address}",
                f"an address inside network.servicePool ({network.service_pool})",
                "write one of these",
            )
    if network.dhcp_range is None:
        return
    if network.dhcp_range.overlaps(network.service_pool):
        yield _Fault(
            "network.dhcpRange",
            f"is {network.dhcp_range}",
            f"a range clear of network.servicePool ({network.service_pool}), or two computers get one address",
            "make the range of the DHCP server smaller or move the pool",
        )
    in_dhcp = [place for place in fixed if place.address in network.dhcp_range]
    if in_dhcp:
        yield _Fault(
            "network.dhcpRange",
            f"is {network.dhcp_range}",
            f"a range without fixed addresses, but {_listed(in_dhcp)} would be in it",
            "make the range of the DHCP server smaller or move these addresses",
        )


def _uniqueness_faults(topics: _Topics) -> Iterator[_Fault]:
    """Addresses, names and ids that may exist once only."""
    holders: dict[IPv4Address, _Place] = {}
    for place in _fixed_places(topics) + _service_places(topics):
        other = holders.setdefault(place.address, place)
        if other is not place:
            yield _Fault(
                place.path,
                f"is {place.address}",
                f"an address of its own, but {other.owner} has this one ({other.path.split(' ')[0]})",
                "write a free address",
            )
    if topics.network is not None:
        ours = [place for place in _fixed_places(topics) if place.path.startswith(("machines", "apiLoadBalancer"))]
        for place in ours + _service_places(topics):
            if place.address in topics.network.dns_servers:
                yield _Fault(
                    place.path,
                    f"is {place.address}",
                    "an address that is not one of network.dnsServers",
                    "write a free address",
                )
    names = {"k3s-api": "the virtual address", "localhost": "every machine"}
    for index, host in enumerate(topics.proxmox.hosts if topics.proxmox is not None else ()):
        yield from _repeated(names, f"proxmox.hosts[{index}].name", host.name, "a name")
    ids: dict[str, str] = {}
    for index, machine in enumerate(topics.machines or ()):
        yield from _repeated(names, f"machines[{index}].name", machine.name, "a name")
        yield from _repeated(ids, f"machines[{index}].vmId", str(machine.vm_id), "an id", f" ({machine.name})")


def _repeated(seen: dict[str, str], path: str, value: str, what: str, owner: str = "") -> Iterator[_Fault]:
    other = seen.setdefault(value, path)
    if other != path:
        yield _Fault(
            path + owner, f"is {value}", f"{what} of its own, but {other} has this one", f"write {what} that is free"
        )


_SMALLEST_K3S_MIB = 1024


def _machine_faults(topics: _Topics) -> Iterator[_Fault]:
    """What fits together on one machine."""
    hosts = None if topics.proxmox is None else [host.name for host in topics.proxmox.hosts]
    for index, machine in enumerate(topics.machines or ()):
        path, name = f"machines[{index}]", f" ({machine.name})"
        roles = f"is [{', '.join(machine.roles)}]"
        if hosts is not None and machine.proxmox_host not in hosts:
            yield _Fault(
                f"{path}.proxmoxHost{name}",
                f"is {_shown(machine.proxmox_host)}",
                f"the name of a host in proxmox.hosts ({', '.join(hosts)})",
                "correct the name or add the host there",
            )
        if machine.has(Role.K3S_SERVER) and machine.has(Role.K3S_WORKER):
            yield _Fault(
                f"{path}.roles{name}",
                roles,
                "k3s-server or k3s-worker, since a server also works",
                "take k3s-worker out",
            )
        if machine.runs_k3s and machine.has(Role.API_LOAD_BALANCER):
            yield _Fault(
                f"{path}.roles{name}",
                roles,
                "a machine without K3s for api-load-balancer, since both need port 6443",
                "give the balancer a machine of its own",
            )
        if machine.runs_k3s and machine.memory_mib < _SMALLEST_K3S_MIB:
            yield _Fault(
                f"{path}.memoryMiB{name}",
                f"is {machine.memory_mib}",
                f"at least {_SMALLEST_K3S_MIB} for a machine that runs K3s",
                f"write {_SMALLEST_K3S_MIB} or more",
            )


def _role_faults(topics: _Topics) -> Iterator[_Fault]:
    """How many machines have each role."""
    machines = topics.machines
    if machines is None:
        return

    def has(count: int, role: Role) -> str:
        return f"has {count if count else 'no'} machine{'' if count == 1 else 's'} with the role {role}"

    counts = {role: sum(machine.has(role) for machine in machines) for role in Role}
    for role, reason in (
        (Role.K3S_SERVER, "because with one the Kubernetes API is lost with its machine"),
        (Role.API_LOAD_BALANCER, "because with one the Kubernetes API cannot be reached without its machine"),
    ):
        if counts[role] < 2:
            yield _Fault(
                "machines", has(counts[role], role), f"at least 2, {reason}", "add the role to another machine"
            )
    for role in (Role.DATASTORE, Role.FILE_SHARE):
        if counts[role] != 1:
            do = "add the role to one machine" if counts[role] == 0 else "leave the role on one machine only"
            yield _Fault("machines", has(counts[role], role), "exactly 1", do)


def _capacity_faults(topics: _Topics) -> Iterator[_Fault]:
    """Whether the database fits on the machines that carry it, one instance a machine."""
    if topics.machines is None or topics.postgres is None:
        return
    postgres = topics.postgres
    workers = [machine for machine in topics.machines if machine.runs_k3s]
    if not workers:
        return
    apart = f"at most {len(workers)}, the number of K3s machines, because each runs on a machine of its own"
    if postgres.instances > len(workers):
        yield _Fault("postgres.instances", f"is {postgres.instances}", apart, "write fewer or add a machine")
        return
    if postgres.pooler.instances > len(workers):
        yield _Fault(
            "postgres.pooler.instances", f"is {postgres.pooler.instances}", apart, "write fewer or add a machine"
        )
    needs: tuple[tuple[str, int, str, Callable[[MachineSettings], int]], ...] = (
        (
            "resources.memoryLimitMiB",
            postgres.resources.memory_limit_mib,
            "less than memoryMiB",
            lambda machine: machine.memory_mib - 1,
        ),
        (
            "resources.cpuRequestMillicores",
            postgres.resources.cpu_request_millicores,
            "at most 1000 x cores",
            lambda machine: machine.cores * 1000,
        ),
        (
            "storage.sizeGiB",
            postgres.storage.size_gib,
            "less than diskGiB",
            lambda machine: machine.disk_gib - 1,
        ),
    )
    for path, needed, bound, offer in needs:
        fitting = [machine.name for machine in workers if offer(machine) >= needed]
        if len(fitting) < postgres.instances:
            which = f"only {' and '.join(fitting)} can carry it" if fitting else "none can carry it"
            yield _Fault(
                f"postgres.{path}",
                f"is {needed}",
                f"{bound} on at least {postgres.instances} K3s machines, one for each instance, but {which}",
                "write less or enlarge the machines",
            )


_CONNECTIONS_PER_POOLER_POD = 4


def _postgres_faults(topics: _Topics) -> Iterator[_Fault]:
    """Owners, memory and connections of the database."""
    postgres = topics.postgres
    if postgres is None:
        return
    known = ", ".join(postgres.users)
    for database, owner in postgres.databases.items():
        path = _path("postgres", ("databases", database))
        if owner not in postgres.users:
            yield _Fault(path, f"is {_shown(owner)}", f"a role in postgres.users ({known})", "add the role there")
    database, owner = postgres.application_database
    if "nologin" in postgres.users.get(owner, ()):
        yield _Fault(
            _path("postgres", ("databases", database)),
            f"is {_shown(owner)}",
            "a role that may log in, because the application connects as it",
            "take nologin out of its flags",
        )
    for user, flags in postgres.users.items():
        if "login" in flags and "nologin" in flags:
            yield _Fault(
                _path("postgres", ("users", user)), f"is [{', '.join(flags)}]", "login or nologin", "take one out"
            )
    resources = postgres.resources
    if resources.memory_request_mib > resources.memory_limit_mib:
        yield _Fault(
            "postgres.resources.memoryRequestMiB",
            f"is {resources.memory_request_mib}",
            f"at most memoryLimitMiB ({resources.memory_limit_mib})",
            "write less or raise the limit",
        )
    yield from _connection_faults(postgres)


def _connection_faults(postgres: PostgresSettings) -> Iterator[_Fault]:
    """What the pooler may open must leave room for everyone else.

    The operator divides ``maxDatabaseConnections`` among the pooler pods; PgBouncer counts it for each database.
    """
    pooler = postgres.pooler
    if pooler.max_database_connections < pooler.instances * _CONNECTIONS_PER_POOLER_POD:
        yield _Fault(
            "postgres.pooler.maxDatabaseConnections",
            f"is {pooler.max_database_connections}",
            f"at least {_CONNECTIONS_PER_POOLER_POD} for each of the {pooler.instances} pods that share it",
            f"write {pooler.instances * _CONNECTIONS_PER_POOLER_POD} or more",
        )
    wanted = postgres.parameters.get("max_connections", str(DEFAULT_MAX_CONNECTIONS))
    if not re.fullmatch(r"[0-9]{1,5}", wanted) or not 25 <= int(wanted) <= 10_000:
        yield _Fault(
            "postgres.parameters.max_connections",
            f"is {_shown(wanted)}",
            "a whole number from 25 to 10000",
            'write for example "200"',
        )
        return
    needed = pooler.max_database_connections * len(postgres.databases) + RESERVED_CONNECTIONS
    if needed > int(wanted):
        databases = "1 database" if len(postgres.databases) == 1 else f"{len(postgres.databases)} databases"
        yield _Fault(
            "postgres.pooler.maxDatabaseConnections",
            f"is {pooler.max_database_connections}",
            f"a number that, times {databases} and with {RESERVED_CONNECTIONS} connections kept for administration, "
            f"replication and backup, is at most max_connections ({wanted}), but it makes {needed}",
            f'write less or set postgres.parameters.max_connections to "{needed}" or more',
        )


def _kubernetes_faults(topics: _Topics) -> Iterator[_Fault]:
    """The binary belongs to the version, as far as its address tells."""
    kubernetes = topics.kubernetes
    if kubernetes is None:
        return
    found = _K3S_VERSION.search(unquote(kubernetes.binary_url))
    if found is not None and found[0] != kubernetes.version:
        yield _Fault(
            "kubernetes.binaryUrl",
            f"is the address of {found[0]}",
            f"the address of kubernetes.version ({kubernetes.version})",
            "change both together, and binarySha256 with them",
        )


_CROSS_RULES = (
    _network_faults,
    _range_faults,
    _uniqueness_faults,
    _machine_faults,
    _role_faults,
    _capacity_faults,
    _postgres_faults,
    _kubernetes_faults,
)


# ---------------------------------------------------------------------------------------------------------------------
# Loading
# ---------------------------------------------------------------------------------------------------------------------


def load(config: Mapping[str, object]) -> Settings:
    """Check the plain objects of all topics (key without namespace -> value) and return the settings.

    Keys of secrets may be present; their values are not looked at. Raises :class:`SettingsError` with one
    sentence for every fault found.
    """
    faults: list[str] = []
    keys = {_alias(name): name for name in Settings.model_fields}
    for key in config:
        if key not in keys and key not in SECRET_KEYS:
            faults.append(_unknown_key(key, key, [*keys, *SECRET_KEYS]))
    valid: dict[str, Any] = {}
    for key, name in keys.items():
        field = Settings.model_fields[name]
        if config.get(key) is None:
            if field.is_required():
                faults.append(f"{key} is missing; allowed is {_rule(field).allowed}: {_rule(field).do}.")
            else:
                valid[name] = field.get_default()
            continue
        try:
            topic: TypeAdapter[Any] = TypeAdapter(field.rebuild_annotation())
            valid[name] = topic.validate_python(config[key], by_alias=True, by_name=False)
        except ValidationError as error:
            faults += _explain(key, field, config[key], error)
    topics = _Topics(**valid)
    for rule in _CROSS_RULES:
        faults += [str(fault) for fault in rule(topics)]
    if faults:
        raise SettingsError(faults)
    return Settings(**valid)


def check_secrets(values: Mapping[str, str | None]) -> tuple[str, ...]:
    """One sentence for every secret that is missing or cannot be one; no part of a value is in them."""
    faults: list[str] = []
    for key, (is_valid, rule) in _SECRETS.items():
        value = values.get(key)
        if not value or not is_valid(value):
            was = "cannot be used (it is not shown)" if value else "is missing"
            faults.append(str(_Fault(key, was, rule.allowed, rule.do)))
    return tuple(faults)


def from_pulumi(config: pulumi.Config) -> Settings:
    """Read every topic of the stack's configuration and check it; raises :class:`SettingsError`.

    Keys that no topic has are refused as well. Of the secrets only the form is checked. Outside a preview the example
    values of this repository are refused too, because nothing can be made with them.
    """
    prefix = f"{config.name}:"
    topics: dict[str, object] = {
        key.removeprefix(prefix): None for key in pulumi.runtime.config.CONFIG.get() if key.startswith(prefix)
    }
    for name in Settings.model_fields:
        key = _alias(name)
        try:
            topics[key] = config.get_object(key)
        except pulumi.ConfigTypeError:
            topics[key] = config.get(key)
    faults = check_secrets({key: config.get(key) for key in SECRET_KEYS})
    try:
        settings = load(topics)
    except SettingsError as error:
        raise SettingsError([*error.faults, *faults]) from None
    if not pulumi.runtime.is_dry_run():
        faults += settings.placeholders()
    if faults:
        raise SettingsError(faults)
    return settings


def _is_private_key(value: str) -> bool:
    try:
        credentials.ssh_public_key(value)
    except pulumi.RunError:
        return False
    return True


def _is_api_token(value: str) -> bool:
    return (
        re.fullmatch(r"[^\s@!:=/]+@[A-Za-z0-9._-]+![A-Za-z][A-Za-z0-9._-]+=[0-9a-fA-F-]{36}", value.strip()) is not None
    )


_SECRETS: Mapping[str, tuple[Callable[[str], bool], Rule]] = {
    credentials.PROXMOX_API_TOKEN: (
        _is_api_token,
        Rule(
            "an API token of the form user@realm!id=uuid",
            "make one in Proxmox (Datacenter, Permissions, API Tokens) and set it with "
            "`pulumi config set --secret proxmoxApiToken`",
        ),
    ),
    credentials.PRIVATE_KEY: (
        _is_private_key,
        Rule(
            "a private key in OpenSSH form without passphrase",
            "make one with `ssh-keygen -t ed25519 -N '' -f school` and set it with "
            "`pulumi config set --secret sshPrivateKey < school`",
        ),
    ),
}


# ---------------------------------------------------------------------------------------------------------------------
# The reference in docs/configuration.md
# ---------------------------------------------------------------------------------------------------------------------


def _models(model: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """The model and those inside it, each with the path of its fields."""
    yield path, model
    for name, field in model.model_fields.items():
        annotation = _inner(field.annotation)
        is_list = typing.get_origin(annotation) is tuple
        inner = _inner(typing.get_args(annotation)[0]) if is_list else annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            prefix = f"{path}.{_alias(name)}" if path else _alias(name)
            yield from _models(inner, f"{prefix}[]" if is_list else prefix)


_TYPE_NAMES: Mapping[object, str] = {
    bool: "boolean",
    int: "integer",
    str: "text",
    IPv4Address: "address",
    IPv4Network: "network",
    AddressRange: "address range",
}


def _type_name(annotation: object) -> str:
    annotation = _inner(annotation)
    if typing.get_origin(annotation) is tuple:
        inner = _inner(typing.get_args(annotation)[0])
        return "list" if isinstance(inner, type) and issubclass(inner, BaseModel) else f"list of {_type_name(inner)}"
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return "text"
    return _TYPE_NAMES.get(annotation, "map")


def _default_name(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if isinstance(field.default, BaseModel):
        return "the defaults of its keys"
    if field.default is None or field.default == ():
        return "none"
    if field.default == {}:
        return "none"
    return f"`{_shown(field.default)}`"


def reference() -> dict[str, list[str]]:
    """Rows of the tables in docs/configuration.md, by heading; each row is one key of the configuration."""
    tables: dict[str, list[str]] = {}
    for path, model in _models(Settings, ""):
        rows = tables.setdefault(path or "Topics", [])
        for name, field in model.model_fields.items():
            cells = (f"`{_alias(name)}`", _type_name(field.annotation), _default_name(field), _rule(field).allowed)
            meaning = (field.description or "").replace("\n", " ")
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in (*cells, meaning)) + " |")
    return tables
