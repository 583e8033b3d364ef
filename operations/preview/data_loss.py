"""What would be gone for good: every deletion and replacement of something that holds data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from operations.preview import labels, names
from operations.preview.log import Action, Planned, Preview
from operations.preview.names import Kind, Machine, Names
from operations.preview.values import lookup, property_changes, shown
from settings import Role

RESTORING: Final = "docs/restoring.md"
MADE_ANEW: Final = "docs/how-it-works.md#machines-that-come-go-and-are-made-anew"

_GONE: Final = (Action.DELETE, Action.REPLACE)
_TOKENS: Final = {
    "k3s-token": (
        "the token of the K3s servers",
        "The servers' own keys in the datastore are encrypted with it: with another token no server starts.",
    ),
    "k3s-agent-token": (
        "the token of the K3s workers",
        "The cluster knows its workers by it: with another token no worker that starts again comes back, until it is set up "
        "again.",
    ),
}
"""Resource to what people call it, and what is gone with it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataLoss:
    """One thing that loses data."""

    title: str
    """What people call it."""
    action: Action
    why: str
    """What makes it be replaced, e.g. ``id 111 -> 211``; empty when it is deleted."""
    lost: str
    """What is gone, and what is not; full sentences."""
    see: str
    """Page of the documentation that helps."""


def data_loss(preview: Preview, known: Names) -> list[DataLoss]:
    """Everything that loses data, the worst first: machines, then the database, then what belongs to it."""
    gone = preview.with_action(*_GONE)
    machines = sorted(
        (known.machine_of(resource) for resource in gone if resource.type == names.CONTAINER),
        key=lambda machine: names.natural(machine.name),
    )
    by_machine = {known.machine_of(resource).name: resource for resource in gone if resource.type == names.CONTAINER}
    found = [_machine(by_machine[machine.name], machine) for machine in machines if _holds_data(machine)]
    found += _members(machines, known)
    for kind in (names.DATABASE, names.NAMESPACE, *sorted(names.VOLUMES)):
        found += [_object(resource) for resource in gone if resource.type == kind and _is_ours(resource, known)]
    found += _rest(gone, {role for machine in machines for role in machine.roles})
    return found


def lifted_protection(preview: Preview, known: Names) -> list[str]:
    """Titles of what is protected now and would not be afterwards: the next run may delete it."""
    things = {
        known.thing(resource)
        for resource in preview.resources.values()
        if resource.step.old and resource.step.old.protect and resource.step.new and not resource.step.new.protect
    }
    return [thing.title for thing in sorted(things, key=lambda thing: thing.order)]


def _holds_data(machine: Machine) -> bool:
    """Unknown roles count as data: whoever made the container had a reason."""
    return machine.roles != {Role.API_LOAD_BALANCER}


def _why(resource: Planned) -> str:
    if resource.action is Action.DELETE:
        return ""
    because = set(resource.step.replaced_because_of or ())
    reasons = [
        labels.sentence(resource.type, change)
        for change in property_changes(resource)
        if {str(change.path[0]), change.dotted} & because
    ]
    return "; ".join(dict.fromkeys(reasons))


def _machine(resource: Planned, machine: Machine) -> DataLoss:
    lost = []
    if Role.DATASTORE in machine.roles:
        lost.append(
            "the state of Kubernetes and the certificate authority of the datastore: the cluster must be built anew and the "
            "databases restored from a backup that lies somewhere else"
        )
    if Role.FILE_SHARE in machine.roles:
        lost.append("all backups on the share, unless they were copied off this machine")
    if machine.runs_kubernetes:
        lost.append(
            "the volume of the member of the database that runs there, if one does; the other members keep the data"
        )
    described = ". Gone with it: ".join(lost) if lost else "whatever is on it"
    return DataLoss(
        title=machine.title,
        action=resource.action,
        why=_why(resource),
        lost=f"Its disk is deleted, and with it {described}.",
        see=RESTORING if Role.DATASTORE in machine.roles or Role.FILE_SHARE in machine.roles else MADE_ANEW,
    )


def _members(machines: list[Machine], known: Names) -> Iterator[DataLoss]:
    """Several members of the database at once are worse than one after the other."""
    lost = [machine for machine in machines if machine.runs_kubernetes and machine.name in known.existing]
    carrying = known.with_role(Role.K3S_SERVER, Role.K3S_WORKER)
    if len(lost) < 2:
        return
    title = _database_title(known)
    if len(lost) == len(carrying):
        sentence = (
            f"All {len(lost)} machines that carry the database lose their disks: every copy of it is gone, and only a backup "
            "brings it back."
        )
    else:
        sentence = (
            f"{len(lost)} of the {len(carrying)} machines that carry the database lose their disks in one run. Two members "
            "have confirmed every commit; if these are the two, confirmed rows are gone. Change one machine at a time."
        )
    yield DataLoss(title=title, action=Action.DELETE, why="", lost=sentence, see=RESTORING)


def _database_title(known: Names) -> str:
    component = known.component(Kind.DATABASE)
    return known.thing(component).title if component else "the database"


def _is_ours(resource: Planned, known: Names) -> bool:
    """A namespace holds data when the database lives in it."""
    return resource.type != names.NAMESPACE or known.thing(resource).kind is Kind.DATABASE


def _object(resource: Planned) -> DataLoss:
    name = shown(lookup(resource.before, ("metadata", "name")) or resource.name)
    titles = {names.DATABASE: f"the database {name}", names.NAMESPACE: f"the namespace {name}"}
    lost = {
        names.DATABASE: (
            "The database cluster is ended and everybody is disconnected; the operator keeps its volumes, but a cluster of "
            "another name does not use them and begins empty."
        ),
        names.NAMESPACE: "Everything in it is deleted: the database, its volumes, its passwords and the backup job.",
    }
    kind = resource.type.rsplit(":", 1)[-1]
    return DataLoss(
        title=titles.get(resource.type, f"the {names.words(kind)} {name}"),
        action=resource.action,
        why=_why(resource),
        lost=lost.get(resource.type, "What is stored in it is deleted."),
        see=RESTORING,
    )


def _rest(gone: list[Planned], roles: set[Role]) -> Iterator[DataLoss]:
    for resource in gone:
        alone = resource.action is Action.DELETE and Role.FILE_SHARE not in roles
        if resource.type == "school:index:FileShare" and alone:
            yield DataLoss(
                title=f"the share {shown(resource.before.get('share') or resource.name)}",
                action=resource.action,
                why="",
                lost="Nobody takes care of it any more and no backup is written; its files stay as long as their machine.",
                see=RESTORING,
            )
        if resource.type == names.PASSWORD and resource.name in _TOKENS:
            title, lost = _TOKENS[resource.name]
            yield DataLoss(title=title, action=resource.action, why=_why(resource), lost=lost, see=RESTORING)
