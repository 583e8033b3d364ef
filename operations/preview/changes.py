"""What changes, thing by thing and in plain words. The many small resources of a thing are folded into it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from operations.preview import labels, names
from operations.preview.log import Action, Planned, Preview
from operations.preview.names import Kind, Names, Thing
from operations.preview.redaction import HIDDEN
from operations.preview.values import PropertyChange, lookup, property_changes, shown

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
        words = _unique(word for resource in resources for word in labels.described(resource))
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
    found: list[str] = []
    other = 0
    anew = resource.action is Action.REPLACE
    for change in _lists_as_one(resource, property_changes(resource)):
        if not change.path or _is_new_note(resource, change) or (anew and _is_in_its_name(resource, change)):
            continue
        if resource.type in _SECRET_TYPES and change.path[0] != "metadata":
            found.append(f"what is in {_part(resource)} changes {HIDDEN}")
        elif resource.type == names.RELEASE:
            found.append(_chart_sentence(resource, change))
        elif labels.label(resource.type, change) or not (labels.has_own(resource.type) or anew):
            found.append(labels.sentence(resource.type, change))
        else:
            other += not anew
    if other:
        found.append(f"{other} more {'property' if other == 1 else 'properties'} of {_part(resource)}")
    return list(dict.fromkeys(found))


def _is_in_its_name(resource: Planned, change: PropertyChange) -> bool:
    """Whether what the resource is called tells the change already."""
    return change.dotted == "metadata.name" and resource.type != names.DATABASE


def _is_new_note(resource: Planned, change: PropertyChange) -> bool:
    """Whether a component only begins, or ceases, to tell something about itself."""
    return resource.type.startswith("school:index:") and len(change.path) == 1 and None in (change.before, change.after)


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
    label = labels.label(resource.type, change)
    if label and change.dotted == "version":
        return change.sentence(_part(resource).removeprefix("the "), label.unit, label.form)
    words = label.words if label else shown(change.dotted.removeprefix("values."))
    return change.sentence(f"{words} of {_part(resource)}", form=label.form if label else None)


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
