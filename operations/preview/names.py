"""What people call the parts of the system, and which resource belongs to which part."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from operations.preview.log import Planned, Preview, State
from settings import Role

CONTAINER: Final = "proxmoxve:index/containerLegacy:ContainerLegacy"
DATABASE: Final = "kubernetes:acid.zalan.do/v1:postgresql"
NAMESPACE: Final = "kubernetes:core/v1:Namespace"
RELEASE: Final = "kubernetes:helm.sh/v3:Release"
COMMANDS: Final = frozenset({"command:remote:Command", "command:local:Command"})
PASSWORD: Final = "random:index/randomPassword:RandomPassword"
VOLUMES: Final = frozenset({"kubernetes:core/v1:PersistentVolumeClaim", "kubernetes:core/v1:PersistentVolume"})

_COMPONENT: Final = "school:index:"


_ROLE_TITLES: Final[Mapping[Role, str]] = {
    Role.K3S_SERVER: "K3s server",
    Role.K3S_WORKER: "K3s worker",
    Role.DATASTORE: "datastore",
    Role.FILE_SHARE: "file server",
    Role.API_LOAD_BALANCER: "API balancer",
}


class Kind(StrEnum):
    """The parts of the system, in the order in which one stands on the other."""

    HOST = "Proxmox host"
    MACHINE = "machine"
    DATASTORE = "datastore"
    BALANCER = "API address"
    SHARE = "share"
    KUBERNETES = "Kubernetes"
    ADDRESSES = "service addresses"
    DATABASE = "database"
    BACKUP = "backup"
    OTHER = "other"
    PROVIDER = "connection"


_KINDS: Final[Mapping[str, Kind]] = {
    "ProxmoxHost": Kind.HOST,
    "ProxmoxLxcNode": Kind.MACHINE,
    "CertificateAuthority": Kind.DATASTORE,
    "K3sDatastore": Kind.DATASTORE,
    "ApiLoadBalancer": Kind.BALANCER,
    "FileShare": Kind.SHARE,
    "K3sControlPlane": Kind.KUBERNETES,
    "MetalLbPool": Kind.ADDRESSES,
    "PostgresCluster": Kind.DATABASE,
    "SmbBackup": Kind.BACKUP,
}
_ORDER: Final = {kind: position for position, kind in enumerate(Kind)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """A container as people know it."""

    name: str
    roles: frozenset[Role]
    host: str
    """Proxmox host it is on now; the new one for a machine that is to be made."""
    address: str

    @property
    def title(self) -> str:
        """``K3s server gl3``."""
        roles = " and ".join(_ROLE_TITLES[role] for role in Role if role in self.roles)
        return f"{roles or 'machine'} {self.name}"

    @property
    def runs_kubernetes(self) -> bool:
        """Whether pods run on it, and so the volumes of the database lie on its disk."""
        return bool(self.roles & {Role.K3S_SERVER, Role.K3S_WORKER})


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """One part of the system, as people name it."""

    kind: Kind
    name: str
    """Tells things of one kind apart."""
    title: str = field(compare=False)
    """``K3s server gl3``, ``the database wichtige-daten-3``."""

    @property
    def order(self) -> tuple[int, list[tuple[int, str]]]:
        """For sorting: by kind, then by name with numbers in their order (gl2 before gl10)."""
        return _ORDER[self.kind], natural(self.name)


def natural(text: str) -> list[tuple[int, str]]:
    """For sorting: numbers in a text count as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


class Names:
    """Knows every part of the plan by the name people use."""

    def __init__(self, preview: Preview) -> None:
        self._resources = preview.resources
        self.machines: dict[str, Machine] = {}
        """Name to machine, those that go and those that come included."""
        self.existing: set[str] = set()
        """Names of the machines that are there now."""
        for resource in preview.resources.values():
            if resource.type == CONTAINER:
                machine = self._machine(resource)
                self.machines[machine.name] = machine
                if resource.step.old is not None:
                    self.existing.add(machine.name)
        self._things: dict[str, Thing] = {}

    def with_role(self, *roles: Role, existing: bool = True) -> list[Machine]:
        """Machines that have one of the roles, in order; by default only those that are there now."""
        found = [machine for machine in self.machines.values() if machine.roles & set(roles)]
        return sorted(
            (machine for machine in found if not existing or machine.name in self.existing),
            key=lambda machine: natural(machine.name),
        )

    def machine_of(self, container: Planned) -> Machine:
        """The machine that a container is."""
        return self.machines[self._machine_name(container)]

    def thing(self, resource: Planned) -> Thing:
        """The part of the system that a resource belongs to."""
        if resource.urn not in self._things:
            self._things[resource.urn] = self._find(resource)
        return self._things[resource.urn]

    def title_of(self, urn: str) -> str:
        """What people call the resource of a URN; the resource's own name when it is not in the plan."""
        resource = self._resources.get(urn)
        return self.thing(resource).title if resource else urn.rsplit("::", 1)[-1]

    def component(self, kind: Kind) -> Planned | None:
        """The component of a kind; the first by URN where there are several."""
        for resource in self._resources.values():
            if resource.type.startswith(_COMPONENT) and _KINDS.get(resource.type.removeprefix(_COMPONENT)) is kind:
                return resource
        return None

    def _machine_name(self, container: Planned) -> str:
        state = container.step.old or container.step.new
        initialization = (state.inputs if state else {}).get("initialization")
        name = initialization.get("hostname") if isinstance(initialization, Mapping) else None
        return name if isinstance(name, str) else container.name.removesuffix("-container")

    def _machine(self, container: Planned) -> Machine:
        inputs = container.before or container.after
        tags = inputs.get("tags")
        parent = self._resources.get(self._parent(container))
        summary = (parent.before or parent.after) if parent else {}
        return Machine(
            name=self._machine_name(container),
            roles=frozenset(role for role in Role if isinstance(tags, list) and role.value in tags),
            host=str(inputs.get("nodeName", "")),
            address=str(summary.get("address", "")),
        )

    @staticmethod
    def _parent(resource: Planned) -> str:
        state: State | None = resource.step.state
        return state.parent if state else ""

    def _components(self, resource: Planned) -> list[Planned]:
        """The resource's components, the outermost first; the resource itself when it is one."""
        found: list[Planned] = []
        current: Planned | None = resource
        while current is not None and current not in found:
            found.insert(0, current)
            current = self._resources.get(self._parent(current))
        return [one for one in found if one.type.startswith(_COMPONENT)]

    def _find(self, resource: Planned) -> Thing:
        components = self._components(resource)
        if not components:
            return self._outside(resource)
        top = components[0]
        kind = _KINDS.get(top.type.removeprefix(_COMPONENT), Kind.OTHER)
        if kind in (Kind.BALANCER, Kind.KUBERNETES) and (name := self._machine_in(resource, components)):
            return self._machine_thing(name)
        if kind is Kind.MACHINE:
            return self._machine_thing(self._name_of_machine(top))
        # By its present name: that is the one people know.
        inputs = {**top.after, **top.before}
        return Thing(kind=kind, name=self._key(kind, top), title=_title(kind, top, inputs, self.machines.values()))

    def _name_of_machine(self, component: Planned) -> str:
        name = (component.before or component.after).get("machineName")
        return name if isinstance(name, str) else component.name

    @staticmethod
    def _key(kind: Kind, top: Planned) -> str:
        # The certificate authority and the datastore are two components and one thing.
        return "" if kind is Kind.DATASTORE else top.name

    def _machine_thing(self, name: str) -> Thing:
        machine = self.machines.get(name)
        return Thing(kind=Kind.MACHINE, name=name, title=machine.title if machine else f"machine {name}")

    def _machine_in(self, resource: Planned, components: Sequence[Planned]) -> str | None:
        """The machine that a part of a component is for: ``gl3`` of ``k3s-gl3-datastore-client-signed``."""
        inner = components[1] if len(components) > 1 else resource
        rest = inner.name.removeprefix(f"{components[0].name}-")
        fitting = [name for name in self.machines if rest == name or rest.startswith(f"{name}-")]
        return max(fitting, key=len, default=None)

    @staticmethod
    def _outside(resource: Planned) -> Thing:
        if resource.type.startswith("pulumi:providers:"):
            what = resource.type.removeprefix("pulumi:providers:")
            known = {"kubernetes": "Kubernetes", "proxmoxve": "Proxmox", "command": "machines over SSH"}.get(what, what)
            return Thing(kind=Kind.PROVIDER, name=resource.name, title=f"Pulumi's connection to {known}")
        kind = resource.type.rsplit(":", 1)[-1]
        return Thing(kind=Kind.OTHER, name=f"{kind} {resource.name}", title=f"{words(kind)} {resource.name}")


def words(type_name: str) -> str:
    """``ObjectStoreBackup`` as ``object store backup``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", type_name).lower()


def _title(kind: Kind, top: Planned, inputs: Mapping[str, Any], machines: Iterable[Machine]) -> str:
    def text(key: str) -> str:
        value = inputs.get(key)
        return f" {value}" if isinstance(value, str | int) else ""

    on = next(
        (f" on {machine.name}" for machine in machines if machine.address and machine.address == inputs.get("address")),
        "",
    )
    titles = {
        Kind.HOST: f"Proxmox host {top.name}",
        Kind.DATASTORE: "the datastore of K3s",
        Kind.BALANCER: f"the address of the Kubernetes API{text('virtualAddress')}",
        Kind.SHARE: f"the share{text('share')}{on}",
        Kind.KUBERNETES: "Kubernetes (K3s)",
        Kind.ADDRESSES: "the service addresses (MetalLB)",
        Kind.DATABASE: f"the database{text('clusterName')}",
        Kind.BACKUP: "the nightly backup",
    }
    return titles.get(kind, f"{words(top.type.removeprefix(_COMPONENT))} {top.name}")
