"""What changes, thing by thing and in plain words. The many small resources of a thing are folded into it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from operations.preview import names
from operations.preview.log import Action, Planned, Preview
from operations.preview.names import Kind, Names, Thing
from operations.preview.values import HIDDEN, LATER, PropertyChange, lookup, parse_path, property_changes, shown

ACTION_ORDER: Final = (Action.DELETE, Action.REPLACE, Action.UPDATE, Action.CREATE)
"""The order in which changes are told: what cannot be undone first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One thing, or several to which exactly the same happens."""

    things: Sequence[Thing]
    action: Action
    words: Sequence[str]
    """What changes, one short sentence each; may be empty for something that comes or goes as a whole."""
    parts: int
    """How many resources of the program that is."""


Label = tuple[re.Pattern[str], str, str]
"""Dotted property path (its groups may be used in the label), label, unit."""


def _labels(*rows: tuple[str, str] | tuple[str, str, str]) -> list[Label]:
    return [(re.compile(row[0]), row[1], row[2] if len(row) == 3 else "") for row in rows]


_LABELS: Final[Mapping[str, Sequence[Label]]] = {
    names.CONTAINER: _labels(
        (r"cpu\.cores", "cores"),
        (r"memory\.dedicated", "memory", "MiB"),
        (r"memory\.swap", "swap", "MiB"),
        (r"disk\.size", "disk", "GiB"),
        (r"disk\.datastoreId", "disk storage"),
        (r"nodeName", "Proxmox host"),
        (r"vmId", "id"),
        (r"tags", "roles"),
        (r"initialization\.hostname", "host name"),
        (r"initialization\.dns\.domain", "search domain"),
        (r"initialization\.dns\.servers", "name servers"),
        (r"initialization\.ipConfigs\.ipv4\.address", "address"),
        (r"initialization\.ipConfigs\.ipv4\.gateway", "gateway"),
        (r"networkInterfaces\.bridge", "bridge"),
        (r"startup\.order", "start order"),
        (r"startOnBoot", "starts with its Proxmox host"),
        (r"started", "runs"),
        (r"unprivileged", "unprivileged"),
        (r"description", "description"),
    ),
    names.DATABASE: _labels(
        (r"metadata\.name", "name"),
        (r"spec\.postgresql\.parameters\.(.+)", "PostgreSQL parameter {}"),
        (r"spec\.postgresql\.version", "PostgreSQL"),
        (r"spec\.numberOfInstances", "members"),
        (r"spec\.volume\.size", "volume of each member"),
        (r"spec\.volume\.storageClass", "storage class of the volumes"),
        (r"spec\.resources\.requests\.cpu", "CPU kept for each member"),
        (r"spec\.resources\.requests\.memory", "memory kept for each member"),
        (r"spec\.resources\.limits\.cpu", "CPU limit of each member"),
        (r"spec\.resources\.limits\.memory", "memory limit of each member"),
        (r"spec\.users\.([^.]+)", "role {}"),
        (r"spec\.databases\.([^.]+)", "owner of database {}"),
        (r"spec\.allowedSourceRanges", "networks that may connect"),
        (r"spec\.masterServiceAnnotations\.metallb\.io/loadBalancerIPs", "address for writing"),
        (r"spec\.replicaServiceAnnotations\.metallb\.io/loadBalancerIPs", "address for reading"),
        (r"spec\.connectionPooler\.numberOfInstances", "poolers"),
        (r"spec\.connectionPooler\.mode", "mode of the poolers"),
        (r"spec\.connectionPooler\.maxDBConnections", "connections of each pooler to the database"),
        (r"spec\.patroni\.(.+)", "Patroni {}"),
        (r"spec\.teamId|metadata\.labels\.team", "team"),
    ),
    "kubernetes:core/v1:Service": _labels(
        (r"metadata\.annotations\.metallb\.io/loadBalancerIPs", "address of the poolers"),
        (r"spec\.loadBalancerSourceRanges", "networks that may connect"),
    ),
    "kubernetes:metallb.io/v1beta1:IPAddressPool": _labels((r"spec\.addresses", "addresses")),
    "kubernetes:batch/v1:CronJob": _labels(
        (r"spec\.schedule", "schedule"),
        (r"spec\.timeZone", "time zone"),
        (r"spec\.suspend", "suspended"),
    ),
    "school:index:SmbBackup": _labels(
        (r"schedule", "schedule"), (r"timeZone", "time zone"), (r"keepDays", "days that backups are kept")
    ),
    "school:index:K3sControlPlane": _labels(
        (r"version", "K3s"), (r"serverSettings\.(.+)", "setting {} of the K3s servers")
    ),
    "school:index:K3sDatastore": _labels((r"address", "address"), (r"accessRules", "who may connect")),
    "school:index:MetalLbPool": _labels((r"addresses", "addresses")),
    "school:index:ApiLoadBalancer": _labels((r"virtualAddress", "address")),
    "school:index:FileShare": _labels((r"share", "name"), (r"address", "address")),
    "school:index:PostgresCluster": _labels(
        (r"clusterName", "name"), (r"operator", "operator"), (r"instances", "members")
    ),
    "school:index:ProxmoxLxcNode": _labels(
        (r"machineName", "host name"),
        (r"vmId", "id"),
        (r"address", "address"),
        (r"roles", "roles"),
        (r"lxcLines", "raw lxc lines"),
    ),
    "school:index:ProxmoxHost": _labels((r"nodeName", "name"), (r"address", "address")),
}

_TASKS: Final[Mapping[str, str]] = {
    "prepare-proxmox-host": "kernel modules and limits are set again",
    "claim-vm-id": "the id is checked again",
    "raw-lxc-lines": "its raw lxc lines are written again",
    "read-host-key": "its SSH host key is read again",
    "prepare-machine": "the source of its packages is set again",
    "hosts-file": "the names of all machines are written into /etc/hosts again",
    "certificate-authority": "the certificate authority is set up again",
    "certificate-request": "a certificate is requested again",
    "certificate-sign": "a certificate is signed again",
    "certificate-install": "a certificate is installed again",
    "k3s-datastore": "PostgreSQL for K3s is set up again",
    "api-load-balancer": "nginx and keepalived are set up again",
    "file-share": "Samba is set up again",
    "k3s-node": "K3s is set up again",
    "k3s-ca-hash": "the hash of the cluster's authority is read again",
    "k3s-cluster-ready": "it is waited again until all nodes are ready",
    "k3s-kubeconfig": "the kubeconfig is read again",
}
_COMMAND = re.compile(r"^timeout --kill-after=\d+ \d+ bash -s -- (\S+) ([a-z0-9-]+) apply$")

_SECRET_TYPES: Final = frozenset({"kubernetes:core/v1:Secret", names.PASSWORD})
"""Of these no value is shown, whatever it is called."""
_ONLY_NOTES: Final = "only what Pulumi notes about it changes, nothing on it"

_MAIN: Final[Mapping[Kind, str]] = {Kind.MACHINE: names.CONTAINER, Kind.DATABASE: names.DATABASE}
"""The resource whose coming and going is that of the thing. Other things are their component."""


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


def task_of(resource: Planned) -> str | None:
    """Which script of components/hosts a command runs; None for anything else."""
    if resource.type not in names.COMMANDS:
        return None
    create = (resource.after or resource.before).get("create")
    found = _COMMAND.match(create) if isinstance(create, str) else None
    return found[2] if found else None


def changes(preview: Preview, known: Names) -> list[Change]:
    """Everything that changes, in the order in which it is told; equal changes of several things are one."""
    by_thing: dict[Thing, list[Planned]] = {}
    for resource in preview.with_action(*ACTION_ORDER):
        by_thing.setdefault(known.thing(resource), []).append(resource)
    existing = {known.thing(resource) for resource in preview.resources.values() if resource.step.old}
    ordered = sorted(by_thing, key=lambda thing: thing.order)
    found = [_change(thing, by_thing[thing], exists=thing in existing) for thing in ordered]
    merged: dict[object, Change] = {}
    for change in found:
        thing = change.things[0]
        alike = change.action is Action.UPDATE or thing.kind is Kind.PROVIDER
        key: object = (thing.kind, change.action, tuple(change.words)) if alike else thing
        before = merged.get(key)
        merged[key] = (
            Change(
                things=[*before.things, *change.things],
                action=change.action,
                words=change.words,
                parts=before.parts + change.parts,
            )
            if before
            else change
        )
    return sorted(merged.values(), key=lambda change: ACTION_ORDER.index(change.action))


def _change(thing: Thing, resources: Sequence[Planned], *, exists: bool) -> Change:
    main = [resource for resource in resources if _is_main(thing, resource)]
    actions = {resource.action for resource in main}
    # A run that failed half-way may not have come to the resource that decides.
    otherwise = Action.UPDATE if exists else Action.CREATE
    action = next((kind for kind in ACTION_ORDER if kind in actions), otherwise)
    if action is Action.UPDATE:
        words = _unique(word for resource in resources for word in _words(resource)) or [_ONLY_NOTES]
    elif action is Action.REPLACE:
        words = _unique(word for resource in main for word in _words(resource))
    elif action is Action.CREATE:
        words = _unique(word for resource in resources for word in _description(resource))
    else:
        words = []
    return Change(things=[thing], action=action, words=words, parts=len(resources))


def _is_main(thing: Thing, resource: Planned) -> bool:
    if thing.kind in (Kind.OTHER, Kind.PROVIDER):
        return True
    wanted = _MAIN.get(thing.kind)
    if wanted and resource.type == wanted:
        return True
    # A component without the resource that it is for is changed, not made: the resource decides.
    is_top = resource.type.startswith("school:index:") and not resource.type.endswith(":Certificate")
    return wanted is None and is_top


def _unique(words: Iterator[str]) -> list[str]:
    return list(dict.fromkeys(words))


def _words(resource: Planned) -> Iterator[str]:
    """What happens to one resource inside a thing that stays."""
    if resource.type in names.COMMANDS:
        yield _command_words(resource)
        return
    what = _part(resource)
    if resource.action is Action.CREATE:
        yield f"{what} is made"
    elif resource.action is Action.DELETE:
        yield f"{what} is deleted"
    else:
        sentences = _sentences(resource)
        if resource.action is Action.REPLACE and resource.type not in (names.CONTAINER, names.DATABASE):
            yield f"{what} is made anew"
        elif not sentences and resource.step.state and resource.step.state.custom:
            yield f"{what} changes"
        yield from sentences


def _command_words(resource: Planned) -> str:
    task = task_of(resource)
    if resource.action is Action.DELETE:
        return f"the step `{task or resource.name}` is no longer needed"
    return _TASKS.get(task or "", f"the step {task or resource.name} runs again")


def _sentences(resource: Planned) -> list[str]:
    """The properties that change; changes that differ only in a list position are one."""
    rows = _LABELS.get(resource.type, ())
    found: list[str] = []
    other = 0
    anew = resource.action is Action.REPLACE
    for change in _lists_as_one(resource, property_changes(resource)):
        if not change.path or _is_new_note(resource, change):
            continue
        if resource.type in _SECRET_TYPES and change.path[0] != "metadata":
            found.append(f"what is in {_part(resource)} changes {HIDDEN}")
            continue
        label = next((_label(row, change) for row in rows if row[0].fullmatch(change.dotted)), None)
        if label:
            found.append(change.sentence(*label))
        elif resource.type == names.RELEASE:
            found.append(_chart_sentence(resource, change))
        elif rows or anew:
            other += not anew
        else:
            found.append(change.sentence(change.dotted))
    if other:
        found.append(f"{other} more {'property' if other == 1 else 'properties'} of {_part(resource)}")
    return list(dict.fromkeys(found))


def _is_new_note(resource: Planned, change: PropertyChange) -> bool:
    """Whether a component only begins, or ceases, to tell something about itself."""
    return resource.type.startswith("school:index:") and len(change.path) == 1 and None in (change.before, change.after)


def _label(row: Label, change: PropertyChange) -> tuple[str, str] | None:
    pattern, label, unit = row
    found = pattern.fullmatch(change.dotted)
    return (label.format(*found.groups()), unit) if found else None


def _lists_as_one(resource: Planned, found: Sequence[PropertyChange]) -> list[PropertyChange]:
    """Changes inside a list of plain values, as one change of the whole list."""
    seen: dict[tuple[str | int, ...], PropertyChange] = {}
    for change in found:
        path = change.path
        if path and isinstance(path[-1], int):
            path = path[:-1]
            before, after = lookup(resource.before, path), lookup(resource.after, path)
            change = PropertyChange(path=path, before=before, after=after)
        seen.setdefault(path, change)
    return list(seen.values())


def _chart_sentence(resource: Planned, change: PropertyChange) -> str:
    chart = shown(resource.after.get("chart"))
    if change.dotted == "version":
        return change.sentence(f"chart {chart}")
    if change.path[0] == "values":
        return change.sentence(f"{change.dotted.removeprefix('values.')} of the chart {chart}")
    return change.sentence(f"{change.dotted} of the chart {chart}")


def _part(resource: Planned) -> str:
    """What a resource inside a thing is called."""
    inputs = resource.after or resource.before
    if resource.type == names.RELEASE:
        return f"the chart {shown(inputs.get('chart'))}"
    if resource.type == names.PASSWORD:
        return f"the generated secret {resource.name}"
    if resource.type == names.CONTAINER:
        return "the container"
    if resource.type == names.DATABASE:
        return "the database cluster"
    if resource.type.startswith("school:index:"):
        return f"the {names.words(resource.type.rsplit(':', 1)[-1])} {resource.name}"
    if resource.type == "proxmoxve:download/file:File":
        return "the container template"
    if resource.type.startswith("kubernetes:"):
        name = lookup(inputs, ("metadata", "name"))
        return f"the {resource.type.rsplit(':', 1)[-1]} {shown(name) if isinstance(name, str) else resource.name}"
    return f"the {names.words(resource.type.rsplit(':', 1)[-1])} {resource.name}"


def _description(resource: Planned) -> Iterator[str]:
    """What something new will be."""
    inputs = resource.after

    for path, text in _DESCRIBED.get(resource.type, ()):
        value = lookup(inputs, parse_path(path))
        if isinstance(value, str | int | float) and shown(value) != LATER:
            yield text.format(shown(value))
