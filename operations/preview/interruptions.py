"""What stops working for a while, and for about how long: derived from which properties change.

Which properties of a container reboot it was tried with the provider and read in its source. A duration is ``measured`` only
where that very event was (docs/how-it-works.md has the figures); everything else is an estimate and says what it leans on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from operations.preview import names
from operations.preview.changes import task_of
from operations.preview.log import Action, Planned, Preview
from operations.preview.names import Kind, Machine, Names
from operations.preview.values import lookup, property_changes
from settings import Role


class Basis(StrEnum):
    """How a duration is known."""

    MEASURED = "measured"
    """In single runs on one machine; other hardware differs."""
    ESTIMATE = "estimate"
    CERTAIN = "certain"


@dataclass(frozen=True, kw_only=True, slots=True)
class Interruption:
    """One thing that is away for a while."""

    what: str
    """Who notices: a machine, ``Kubernetes API``, ``database``."""
    effect: str
    """What happens, and why."""
    duration: str
    basis: Basis


REBOOTING: Final = {
    "memory": "memory",
    "initialization.hostname": "host name",
    "initialization.dns": "name servers",
    "initialization.ipConfigs": "address",
    "initialization.entrypoint": "entry point",
    "networkInterfaces": "network card",
    "mountPoints": "mount points",
    "devicePassthroughs": "devices",
    "environmentVariables": "environment",
    "console": "console",
    "disk.mountOptions": "mount options of the disk",
    "idmaps": "id map",
}
"""Properties of a container whose change reboots it, and what people call them. Cores, tags, description, features, start
order and a growing disk do not."""

RESTARTING: Final = frozenset(
    {
        "archive_mode",
        "autovacuum_freeze_max_age",
        "autovacuum_max_workers",
        "huge_pages",
        "max_connections",
        "max_files_per_process",
        "max_locks_per_transaction",
        "max_logical_replication_workers",
        "max_pred_locks_per_transaction",
        "max_prepared_transactions",
        "max_replication_slots",
        "max_wal_senders",
        "max_worker_processes",
        "shared_buffers",
        "shared_preload_libraries",
        "superuser_reserved_connections",
        "track_activity_query_size",
        "track_commit_timestamp",
        "wal_buffers",
        "wal_level",
        "wal_log_hints",
    }
)
"""PostgreSQL parameters that only a restart of PostgreSQL brings into force."""

_API: Final = "Kubernetes API"
_DATABASE: Final = "database"
_ADDRESSES: Final = "service addresses"

_REBOOT: Final = "about half a minute (a machine that was switched on worked again after 20 to 32 s)"
_ANEW: Final = "some minutes, until it is set up again"
_FOR_GOOD: Final = "for good"
_POWER_CUT: Final = "up to about 24 s (after a power cut of the primary's machine: 22.2 and 23.3 s)"
_SWITCHOVER: Final = "2 to 5 s without writes (after the end of the primary's pod: 2.2 and 4.3 s)"


def _estimate(what: str, effect: str, duration: str) -> Interruption:
    return Interruption(what=what, effect=effect, duration=duration, basis=Basis.ESTIMATE)


def _measured(what: str, effect: str, duration: str) -> Interruption:
    return Interruption(what=what, effect=effect, duration=duration, basis=Basis.MEASURED)


def _certain(what: str, effect: str, duration: str) -> Interruption:
    return Interruption(what=what, effect=effect, duration=duration, basis=Basis.CERTAIN)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Away:
    """A machine that is not there for a while."""

    machine: Machine
    why: str
    action: Action
    """UPDATE: it reboots."""


def interruptions(preview: Preview, known: Names) -> list[Interruption]:
    """Everything that is interrupted: machines, then the Kubernetes API, the database, the addresses, the backup."""
    if not known.existing:
        return []
    away = _machines_away(preview, known)
    deleted = {one.machine.name for one in away if one.action is Action.DELETE}
    if deleted == known.existing:
        return [_certain("everything", "is deleted: no machine stays", _FOR_GOOD)]
    found = [_machine(one) for one in away]
    found += _api_without_machines(known, away)
    found += _api_by_scripts(preview, known, {one.machine.name for one in away})
    found += _database_without_machines(known, away)
    found += _database_by_itself(preview)
    found += _addresses(preview)
    found += _backup(away)
    return list(dict.fromkeys(found))


def reboot_reasons(container: Planned) -> list[str]:
    """What of a changed container makes Proxmox reboot it; empty: it runs on."""
    changed = [change.dotted for change in property_changes(container)]
    return [word for name, word in REBOOTING.items() if any(_under(path, name) for path in changed)]


def _under(path: str, name: str) -> bool:
    return path == name or path.startswith(f"{name}.")


def _machines_away(preview: Preview, known: Names) -> list[_Away]:
    found = []
    for resource in preview.with_action(Action.UPDATE, Action.REPLACE, Action.DELETE):
        if resource.type == names.CONTAINER:
            why = ", ".join(reboot_reasons(resource)) if resource.action is Action.UPDATE else ""
            if why or resource.action is not Action.UPDATE:
                found.append(_Away(machine=known.machine_of(resource), why=why, action=resource.action))
    return sorted(found, key=lambda one: names.natural(one.machine.name))


def _machine(one: _Away) -> Interruption:
    if one.action is Action.DELETE:
        return _certain(one.machine.title, "is deleted", _FOR_GOOD)
    if one.action is Action.REPLACE:
        return _estimate(one.machine.title, "is deleted and made anew", _ANEW)
    return _estimate(one.machine.title, f"reboots, because its {one.why} changes", _REBOOT)


def _listed(machine_names: Collection[str]) -> str:
    return ", ".join(sorted(machine_names, key=names.natural))


def _api_without_machines(known: Names, away: Sequence[_Away]) -> Iterator[Interruption]:
    for role, title in (
        (Role.DATASTORE, "datastore"),
        (Role.API_LOAD_BALANCER, "balancers"),
        (Role.K3S_SERVER, "servers"),
    ):
        gone = [one for one in away if role in one.machine.roles]
        if not gone:
            continue
        which = _listed([one.machine.name for one in gone])
        # The loss of one datastore machine of several is not told apart: no more than one is planned for today.
        if role is Role.DATASTORE or len(gone) == len(known.with_role(role)):
            actions = {one.action for one in gone}
            duration = _REBOOT if actions == {Action.UPDATE} else _FOR_GOOD if actions == {Action.DELETE} else _ANEW
            effect = f"does not answer without its {title} ({which}); what runs goes on, without failover and changes"
            yield _estimate(_API, effect, duration)
        elif role is Role.API_LOAD_BALANCER:
            effect = f"answers through the other balancer if {which} holds the address"
            yield _estimate(_API, effect, "about 1.2 s (three advertisements and a skew)")
        else:
            effect = f"single requests are late until the balancers leave {which} out; open watches end"
            yield _estimate(_API, effect, "at most 1 s for a request")


def _again(preview: Preview, known: Names, task: str, away: set[str]) -> set[str]:
    """Names of the machines (or other things) on which a script runs again, without those that are away anyway."""
    resources = preview.with_action(Action.UPDATE, Action.REPLACE)
    return {known.thing(resource).name for resource in resources if task_of(resource) == task} - away


def _api_by_scripts(preview: Preview, known: Names, away: set[str]) -> Iterator[Interruption]:
    servers = [machine.name for machine in known.with_role(Role.K3S_SERVER)]
    restarted = _again(preview, known, "k3s-node", away) & set(servers)
    if restarted and len(servers) == 1:
        effect = f"K3s on {_listed(restarted)}, the only server, restarts if its version or settings differ; pods go on"
        yield _estimate(_API, effect, "10 to 30 s (a first start took as long)")
    elif restarted:
        effect = (
            f"K3s on {_listed(restarted)} restarts if version or settings differ, the first server before the others"
        )
        yield _estimate(_API, f"{effect}; pods go on, open watches end", "at most 1 s for a request")
    datastore_away = any(Role.DATASTORE in known.machines[name].roles for name in away)
    if not datastore_away and _again(preview, known, "k3s-datastore", set()):
        effect = (
            "does not answer while PostgreSQL of the datastore restarts, if its settings differ (rules are only loaded)"
        )
        yield _estimate(_API, effect, "2 to 5 s")
    if balancers := _again(preview, known, "api-load-balancer", away):
        effect = (
            f"nginx and keepalived on {_listed(balancers)} load their settings and cut nothing; the address may move"
        )
        yield _estimate(_API, effect, "0 to 2 s")
    component = known.component(Kind.BALANCER)
    if component and any(change.dotted == "virtualAddress" for change in property_changes(component)):
        effect = "gets another address: a kubeconfig with the old one stops working"
        yield _certain(_API, effect, "until the kubeconfig is fetched again")


def _database_without_machines(known: Names, away: Sequence[_Away]) -> Iterator[Interruption]:
    carrying = [one.machine.name for one in away if one.machine.runs_kubernetes]
    if not known.component(Kind.DATABASE):
        return
    if len(carrying) == 1:
        effect = f"if the primary runs on {carrying[0]}, another member takes over and connections end; otherwise nothing happens"
        yield _estimate(_DATABASE, effect, _POWER_CUT)
    elif carrying:
        effect = (
            f"{_listed(carrying)} are away at the same time, since Pulumi works on all machines at once: more members are "
            "missing than a failover allows. Change one machine after the other to avoid it"
        )
        yield _estimate(_DATABASE, effect, "until most of them are back: a minute or more")
    if any(Role.DATASTORE in one.machine.roles for one in away):
        effect = "goes on without the datastore, but has no failover while it is away"
        yield _measured(_DATABASE, effect, "none (datastore stopped for 20 s)")


def _database_by_itself(preview: Preview) -> Iterator[Interruption]:
    for resource in preview.with_action(Action.UPDATE, Action.REPLACE, Action.DELETE):
        changed = [change.dotted for change in property_changes(resource)]
        if resource.type == names.RELEASE and resource.action is Action.UPDATE:
            yield from _chart(lookup(resource.after, ("chart",)), changed)
        elif resource.type == names.DATABASE and resource.action is Action.UPDATE:
            yield from _database_changes(changed)
        elif resource.type == names.DATABASE:
            ends = _FOR_GOOD if resource.action is Action.DELETE else "until the new cluster runs and is restored"
            yield _certain(_DATABASE, "is ended, everybody is disconnected", ends)


def _database_changes(changed: Sequence[str]) -> Iterator[Interruption]:
    def any_of(*parts: str) -> bool:
        return any(_under(path, part) for path in changed for part in parts)

    parameters = {path.removeprefix("spec.postgresql.parameters.") for path in changed}
    if restart := sorted(parameters & RESTARTING):
        effect = f"PostgreSQL restarts on every member, for {', '.join(restart)}; connections end"
        yield _estimate(_DATABASE, effect, "2 to 10 s without writes")
    if any_of("spec.resources"):
        yield _estimate(
            _DATABASE, "members restart one after the other, then another one leads; connections end", _SWITCHOVER
        )
    if any_of("spec.postgresql.version"):
        yield _estimate(_DATABASE, "goes to another major version; make a backup first", "minutes, more with much data")
    if any_of("spec.connectionPooler"):
        yield _estimate(
            "poolers", "restart one after the other; each connection through them ends once", "a second or two"
        )
    if any_of("spec.masterServiceAnnotations", "spec.replicaServiceAnnotations"):
        effect = "gets another address: applications that use the old one cannot connect"
        yield _certain(_DATABASE, effect, "until the applications use the new one")


def _chart(chart: object, changed: Sequence[str]) -> Iterator[Interruption]:
    if chart == "metallb":
        effect = "are not answered while MetalLB restarts on the machine that answers; open connections go on"
        yield _estimate(_ADDRESSES, effect, "about 6 s (after a power cut of that machine: 5.3 to 6.3 s)")
    elif chart == "postgres-operator":
        if any(_under(path, "values.configGeneral.docker_image") for path in changed):
            effect = "members restart one after the other with another image, then another one leads; connections end"
        else:
            effect = "goes on while its operator restarts, which then may restart members one after the other"
        yield _estimate(_DATABASE, effect, _SWITCHOVER)


def _addresses(preview: Preview) -> Iterator[Interruption]:
    for resource in preview.with_action(Action.UPDATE, Action.REPLACE, Action.DELETE):
        if resource.type == "kubernetes:metallb.io/v1beta1:IPAddressPool":
            effect = "an address that is no longer in the pool is taken from its service; the others stay"
            yield _estimate(_ADDRESSES, effect, "until the service has an address of the pool")
        if resource.type == "kubernetes:core/v1:Service" and resource.action is not Action.UPDATE:
            yield _estimate(_ADDRESSES, "the address of the poolers goes and comes back", "a few seconds")


def _backup(away: Sequence[_Away]) -> Iterator[Interruption]:
    if any(Role.FILE_SHARE in one.machine.roles for one in away):
        yield _estimate("backup", "one that runs just then fails and is tried once more", "until the share is back")
