"""A picture of what is touched, and of what stands on it, as a Mermaid flowchart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from operations.preview.changes import Change
from operations.preview.log import Action, Preview
from operations.preview.names import Kind, Machine, Names, Thing
from settings import Role

LARGEST: Final = 40
"""Things in a picture; more cannot be read."""

_STANDS_ON: Final[Mapping[Kind, Sequence[Kind]]] = {
    Kind.KUBERNETES: (Kind.DATASTORE, Kind.BALANCER),
    Kind.ADDRESSES: (Kind.KUBERNETES,),
    Kind.DATABASE: (Kind.KUBERNETES, Kind.ADDRESSES),
    Kind.BACKUP: (Kind.DATABASE, Kind.SHARE),
}
_ON_MACHINES: Final[Mapping[Kind, Sequence[Role]]] = {
    Kind.DATASTORE: (Role.DATASTORE,),
    Kind.SHARE: (Role.FILE_SHARE,),
    Kind.BALANCER: (Role.API_LOAD_BALANCER,),
    Kind.KUBERNETES: (Role.K3S_SERVER, Role.K3S_WORKER),
}
_STYLES: Final = {
    Action.DELETE: "fill:#f8d7da,stroke:#b02a37,stroke-dasharray:4",
    Action.REPLACE: "fill:#f8d7da,stroke:#b02a37",
    Action.UPDATE: "fill:#fff3cd,stroke:#997404",
    Action.CREATE: "fill:#d1e7dd,stroke:#146c43",
    Action.NONE: "fill:#f1f3f5,stroke:#868e96",
}
_PLAIN: Final = " .,/_+-()'"


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A flowchart."""

    mermaid: str
    """Its source; empty when nothing is touched."""
    left_out: int
    """How many things it has no room for."""


def picture(preview: Preview, known: Names, changed: Sequence[Change]) -> Picture:
    """What is touched, coloured by what happens to it, with what stands directly on it in grey."""
    actions = {thing: change.action for change in changed for thing in change.things if thing.kind is not Kind.PROVIDER}
    if not actions:
        return Picture(mermaid="", left_out=0)
    everything = {known.thing(resource) for resource in preview.resources.values()}
    edges = sorted(
        ((below, above) for above in everything for below in everything if _stands_on(above, below, known)),
        key=lambda edge: (edge[0].order, edge[1].order),
    )
    neighbours = {above for below, above in edges if below in actions} - set(actions)
    wanted = sorted(actions, key=lambda thing: thing.order) + sorted(neighbours, key=lambda thing: thing.order)
    drawn = wanted[:LARGEST]
    ids = {thing: f"n{number}" for number, thing in enumerate(sorted(drawn, key=lambda thing: thing.order))}
    used = sorted({actions.get(thing, Action.NONE) for thing in drawn}, key=list(Action).index)
    lines = ["flowchart LR"]
    lines += [f'  {name}["{_label(thing.title)}"]:::{actions.get(thing, Action.NONE)}s' for thing, name in ids.items()]
    lines += [f"  {ids[below]} --> {ids[above]}" for below, above in edges if below in ids and above in ids]
    lines += [f"  classDef {action}s {_STYLES[action]},color:#212529" for action in used]
    return Picture(mermaid="\n".join(lines), left_out=len(wanted) - len(drawn))


def _stands_on(above: Thing, below: Thing, known: Names) -> bool:
    if above == below:
        return False
    if below.kind is Kind.MACHINE:
        machine: Machine | None = known.machines.get(below.name)
        return machine is not None and bool(machine.roles & set(_ON_MACHINES.get(above.kind, ())))
    if below.kind is Kind.HOST:
        on = known.machines.get(above.name) if above.kind is Kind.MACHINE else None
        return on is not None and on.host == below.name
    return below.kind in _STANDS_ON.get(above.kind, ())


def _label(text: str) -> str:
    """A label that can neither end its quotes nor be taken for Mermaid or HTML."""
    return "".join(character if character.isalnum() or character in _PLAIN else "?" for character in text)[:60]
