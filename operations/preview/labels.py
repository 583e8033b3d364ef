"""What properties are called, and which of their values are shown: an allow-list.

A value is shown when its property has a label here, its name is not that of a secret, and the value is written as such values
are. Of everything else (variables, arguments, scripts, the contents of a ConfigMap, most values of a chart) a comment only
says that it changes: anybody who reads a merge request reads it, and nobody knows what will be written there next year.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from operations.preview import names
from operations.preview.log import Planned
from operations.preview.values import Form, PropertyChange, fits, is_unknown, lookup, parse_path, shown


class Label(NamedTuple):
    """What a property is called."""

    words: str
    unit: str
    """Of a number; a text has its own."""
    form: Form | None
    """How a value is written that may be shown; None: none is."""


class _Row(NamedTuple):
    path: Form
    """Of the dotted path; its groups may be used in the label."""
    words: str
    form: Form | None
    unit: str = ""


def _row(path: str, words: str, form: Form | None, unit: str = "") -> _Row:
    return _Row(re.compile(path), words, form, unit)


_NUMBER: Final = re.compile(r"-?\d{1,15}")
_QUANTITY: Final = re.compile(
    r"-?\d{1,15}(\.\d{1,6})?( ?(B|kB|MB|GB|TB|us|ms|s|min|h|d|%|m|[KMGT]i?))?|on|off|true|false|yes|no"
)
"""A number with its unit, or a switch, as PostgreSQL and Kubernetes write them."""
_SIMPLE: Final = re.compile(rf"{_QUANTITY.pattern}|[a-z]{{1,20}}\d?([_-][a-z0-9]{{1,12}}){{0,3}}")
"""The same, or a word such as those that PostgreSQL has for its settings: ``replica``, ``scram-sha-256``."""
_NAME: Final = re.compile(r"\w[\w.-]{0,99}")
_ADDRESS: Final = re.compile(r"[0-9A-Fa-f.:]{2,40}(/\d{1,3})?(\s?[,-]\s?[0-9A-Fa-f.:]{2,40}(/\d{1,3})?){0,20}")
_HOST: Final = re.compile(rf"{_NAME.pattern}|{_ADDRESS.pattern}")
_URL: Final = re.compile(r"https?://(\w[\w.-]{0,99}|\[[0-9A-Fa-f:]{2,40}\])(:\d{1,5})?/?")
_VERSION: Final = re.compile(r"v?\d[\w.+-]{0,40}")
_IMAGE: Final = re.compile(
    r"[a-z0-9][a-z0-9.-]{0,99}(:\d{1,5})?(/[a-z0-9._-]{1,99}){0,6}(:\w[\w.-]{0,99})?(@sha256:[0-9a-f]{64})?"
)
_SCHEDULE: Final = re.compile(r"@[a-z]{1,10}|[\dA-Z*/,-]{1,30}( [\dA-Z*/,-]{1,30}){4}")
_TIME_ZONE: Final = re.compile(r"[\w+-]{1,20}(/[\w+-]{1,20}){0,2}")
_SWITCH: Final = re.compile(r"true|false")

_ROWS: Final[Mapping[str, Sequence[_Row]]] = {
    names.CONTAINER: (
        _row(r"cpu\.cores", "cores", _NUMBER),
        _row(r"memory\.dedicated", "memory", _NUMBER, "MiB"),
        _row(r"memory\.swap", "swap", _NUMBER, "MiB"),
        _row(r"disk\.size", "disk", _NUMBER, "GiB"),
        _row(r"disk\.datastoreId", "disk storage", _NAME),
        _row(r"nodeName", "Proxmox host", _NAME),
        _row(r"vmId", "id", _NUMBER),
        _row(r"tags", "roles", _NAME),
        _row(r"initialization\.hostname", "host name", _NAME),
        _row(r"initialization\.dns\.domain", "search domain", _NAME),
        _row(r"initialization\.dns\.servers", "name servers", _ADDRESS),
        _row(r"initialization\.ipConfigs\.ipv4\.address", "address", _HOST),
        _row(r"initialization\.ipConfigs\.ipv4\.gateway", "gateway", _ADDRESS),
        _row(r"networkInterfaces\.bridge", "bridge", _NAME),
        _row(r"startup\.order", "start order", _NUMBER),
        _row(r"startOnBoot", "starts with its Proxmox host", _SWITCH),
        _row(r"started", "runs", _SWITCH),
        _row(r"unprivileged", "unprivileged", _SWITCH),
        _row(r"description", "description", None),
    ),
    names.DATABASE: (
        _row(r"metadata\.name", "name", _NAME),
        _row(r"spec\.postgresql\.parameters\.(\w*(?:command|conninfo))", "PostgreSQL parameter {}", None),
        _row(r"spec\.postgresql\.parameters\.(\w+)", "PostgreSQL parameter {}", _SIMPLE),
        # With a dot in its name it is an extension's, or an application's own.
        _row(r"spec\.postgresql\.parameters\.(.+)", "PostgreSQL parameter {}", _QUANTITY),
        _row(r"spec\.postgresql\.version", "PostgreSQL", _VERSION),
        _row(r"spec\.numberOfInstances", "members", _NUMBER),
        _row(r"spec\.volume\.size", "volume of each member", _QUANTITY),
        _row(r"spec\.volume\.storageClass", "storage class of the volumes", _NAME),
        _row(r"spec\.resources\.requests\.cpu", "CPU kept for each member", _QUANTITY),
        _row(r"spec\.resources\.requests\.memory", "memory kept for each member", _QUANTITY),
        _row(r"spec\.resources\.limits\.cpu", "CPU limit of each member", _QUANTITY),
        _row(r"spec\.resources\.limits\.memory", "memory limit of each member", _QUANTITY),
        _row(r"spec\.users\.([^.]+)", "role {}", _SIMPLE),
        _row(r"spec\.databases\.([^.]+)", "owner of database {}", _NAME),
        _row(r"spec\.allowedSourceRanges", "networks that may connect", _ADDRESS),
        _row(r"spec\.masterServiceAnnotations\.metallb\.io/loadBalancerIPs", "address for writing", _ADDRESS),
        _row(r"spec\.replicaServiceAnnotations\.metallb\.io/loadBalancerIPs", "address for reading", _ADDRESS),
        _row(r"spec\.connectionPooler\.numberOfInstances", "poolers", _NUMBER),
        _row(r"spec\.connectionPooler\.mode", "mode of the poolers", _SIMPLE),
        _row(r"spec\.connectionPooler\.maxDBConnections", "connections of each pooler to the database", _NUMBER),
        _row(r"spec\.patroni\.(.+)", "Patroni {}", _SIMPLE),
        _row(r"spec\.teamId|metadata\.labels\.team", "team", _NAME),
    ),
    "kubernetes:core/v1:Service": (
        _row(r"metadata\.annotations\.metallb\.io/loadBalancerIPs", "address of the poolers", _ADDRESS),
        _row(r"spec\.loadBalancerSourceRanges", "networks that may connect", _ADDRESS),
    ),
    "kubernetes:metallb.io/v1beta1:IPAddressPool": (_row(r"spec\.addresses", "addresses", _ADDRESS),),
    "kubernetes:batch/v1:CronJob": (
        _row(r"spec\.schedule", "schedule", _SCHEDULE),
        _row(r"spec\.timeZone", "time zone", _TIME_ZONE),
        _row(r"spec\.suspend", "suspended", _SWITCH),
    ),
    names.RELEASE: (
        _row(r"version", "version", _VERSION),
        _row(r"values\.(configGeneral\.docker_image)", "{}", _IMAGE),
        _row(r"values\.(.+)", "{}", _SWITCH),
    ),
    "school:index:SmbBackup": (
        _row(r"schedule", "schedule", _SCHEDULE),
        _row(r"timeZone", "time zone", _TIME_ZONE),
        _row(r"keepDays", "days that backups are kept", _NUMBER),
    ),
    "school:index:K3sControlPlane": (
        _row(r"version", "K3s", _VERSION),
        _row(r"serverSettings\.(cluster-cidr|service-cidr)", "setting {} of the K3s servers", _ADDRESS),
        _row(r"serverSettings\.(tls-san)", "setting {} of the K3s servers", _HOST),
        _row(r"serverSettings\.(.+)", "setting {} of the K3s servers", _SIMPLE),
    ),
    "school:index:K3sDatastore": (
        _row(r"address", "address", _HOST),
        _row(r"accessRules", "who may connect", None),
    ),
    "school:index:MetalLbPool": (_row(r"addresses", "addresses", _ADDRESS),),
    "school:index:ApiLoadBalancer": (_row(r"virtualAddress", "address", _ADDRESS),),
    "school:index:FileShare": (_row(r"share", "name", _NAME), _row(r"address", "address", _HOST)),
    "school:index:PostgresCluster": (
        _row(r"clusterName", "name", _NAME),
        _row(r"operator", "operator", _NAME),
        _row(r"instances", "members", _NUMBER),
    ),
    "school:index:ProxmoxLxcNode": (
        _row(r"machineName", "host name", _NAME),
        _row(r"vmId", "id", _NUMBER),
        _row(r"address", "address", _HOST),
        _row(r"roles", "roles", _NAME),
        _row(r"lxcLines", "raw lxc lines", None),
    ),
    "school:index:ProxmoxHost": (_row(r"nodeName", "name", _NAME), _row(r"address", "address", _HOST)),
}

_ROWS_OF_MANY: Final[Sequence[tuple[str, Sequence[_Row]]]] = (
    (
        "kubernetes:",
        (
            _row(r"metadata\.name", "name", _NAME),
            _row(r"metadata\.namespace", "namespace", _NAME),
            _row(r"spec\.replicas", "replicas", _NUMBER),
            _row(r"(?:.+\.)?(?:containers|initContainers)\.image", "image", _IMAGE),
        ),
    ),
    ("pulumi:providers:", (_row(r"version", "version", _VERSION), _row(r"endpoint", "endpoint", _URL))),
    ("proxmoxve:download/file:", (_row(r"fileName", "file", _NAME), _row(r"nodeName", "Proxmox host", _NAME))),
)
"""By what the type begins with."""

_DESCRIBED: Final[Mapping[str, Sequence[tuple[str, str]]]] = {
    names.CONTAINER: (
        ("cpu.cores", "cores {}"),
        ("memory.dedicated", "memory {} MiB"),
        ("disk.size", "disk {} GiB"),
        ("initialization.ipConfigs[0].ipv4.address", "address {}"),
        ("vmId", "id {}"),
        ("nodeName", "on {}"),
    ),
    names.DATABASE: (
        ("spec.postgresql.version", "PostgreSQL {}"),
        ("spec.volume.size", "volume of each member {}"),
    ),
    "school:index:PostgresCluster": (("instances", "members {}"), ("operator", "operator {}")),
    "school:index:ProxmoxHost": (("address", "address {}"),),
    "school:index:K3sControlPlane": (("version", "{}"),),
    "school:index:MetalLbPool": (("addresses", "{}"),),
    "school:index:SmbBackup": (
        ("schedule", "at {}"),
        ("timeZone", "time zone {}"),
        ("keepDays", "backups are kept for {} days"),
    ),
}
"""What is told of a new thing: property path and words."""


def has_own(resource_type: str) -> bool:
    """Whether the properties that matter of this type have labels, so that the others need only be counted."""
    return resource_type in _ROWS


def label(resource_type: str, change: PropertyChange) -> Label | None:
    """What the property is called; None when it has no label."""
    for row in _rows(resource_type):
        if found := row.path.fullmatch(change.dotted):
            return Label(words=row.words.format(*found.groups()), unit=row.unit, form=row.form)
    return None


def sentence(resource_type: str, change: PropertyChange) -> str:
    """What changes; a property without a label is called by its path, and its values are not shown."""
    found = label(resource_type, change)
    return change.sentence(*found) if found else change.sentence(shown(change.dotted))


def described(resource: Planned) -> Iterator[str]:
    """What something new will be."""
    for text, words in _DESCRIBED.get(resource.type, ()):
        path = parse_path(text)
        value = lookup(resource.after, path)
        found = label(resource.type, PropertyChange(path=path, before=None, after=value))
        is_told = isinstance(value, str | int | float) and not is_unknown(value)
        if is_told and found and found.form and fits(value, found.form):
            yield words.format(shown(value))


def _rows(resource_type: str) -> Iterator[_Row]:
    yield from _ROWS.get(resource_type, ())
    for beginning, rows in _ROWS_OF_MANY:
        if resource_type.startswith(beginning):
            yield from rows
