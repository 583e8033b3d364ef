"""Reading what a policy is given: one resource, or a whole plan.

A property that a preview does not know yet raises :class:`pulumi_policy.proxy.UnknownValueError` when it is read, and
only then: a check reads no more than it needs, and ``rule`` turns the rest into "checked at up".
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pulumi_policy import PolicyResource, PolicyResourceOptions, ResourceValidationArgs

from policy import vocabulary

_INPUTS: Final[dict[str, Mapping[str, Any]]] = {}
"""URN to what a resource is asked to be. The engine hands over every resource by itself before it hands over the plan."""


def remember(source: ResourceValidationArgs) -> None:
    """Keep what a resource is asked to be, for a plan that does not know what becomes of it.

    As long as there is no kubeconfig the engine knows nothing at all of what becomes of an object in the cluster.
    """
    _INPUTS[source.urn] = source.props


@dataclass(frozen=True, kw_only=True, slots=True)
class Resource:
    """One resource: its inputs while it is planned, what became of it when the whole plan is looked at."""

    type: str
    """Type token."""
    name: str
    """Logical name; a waiver names a resource by it."""
    urn: str
    properties: Mapping[str, Any]
    """Properties by their wire names (camelCase). A secret is in the clear here: never put a value of unknown kind into a
    sentence."""
    options: PolicyResourceOptions
    """Resource options, as far as a policy is told of them."""

    @classmethod
    def of(cls, source: ResourceValidationArgs | PolicyResource) -> Resource:
        """Read what the policy SDK hands to a policy."""
        return cls(
            type=source.resource_type,
            name=source.name,
            urn=source.urn,
            properties=source.props or _INPUTS.get(source.urn, source.props),
            options=source.opts,
        )

    @property
    def stack(self) -> str:
        """Name of the stack it belongs to."""
        return self.urn.removeprefix("urn:pulumi:").split("::", 1)[0]

    def get(self, *path: str | int) -> Any:
        """The property at a path, e.g. ``get("spec", "containers", 0, "image")``; None where something is absent."""
        return dig(self.properties, *path)

    def list(self, *path: str | int) -> Sequence[Any]:
        """The list at a path; empty where it is absent."""
        found = self.get(*path)
        return found if isinstance(found, Sequence) and not isinstance(found, str) else ()

    def keys(self, *path: str | int) -> Sequence[str]:
        """The keys of the map at a path; none where it is absent or no map. No value is read."""
        found = self.get(*path)
        return [str(key) for key in found] if isinstance(found, Mapping) else ()


def dig(value: Any, *path: str | int) -> Any:
    """Follow a path through maps and lists; None where something is absent or of another shape."""
    for step in path:
        if isinstance(step, int):
            is_there = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > step
        else:
            is_there = isinstance(value, Mapping) and step in value
        if not is_there:
            return None
        value = value[step]
    return value


def number(value: Any) -> int | None:
    """A whole number as it travels (a float); None for anything else."""
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def shown(value: Any) -> str:
    """A setting as sentences show it, spelled as YAML spells it. Never for a value that might be secret."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value)


@dataclass(frozen=True, slots=True)
class Machine:
    """A container as a policy sees it. Every property is read when it is asked for."""

    resource: Resource

    @property
    def name(self) -> str:
        """Host name; the resource's name where there is none."""
        return str(self.resource.get("initialization", "hostname") or self.resource.name)

    @property
    def tags(self) -> Sequence[str]:
        """Proxmox tags: the machine's roles, and who owns it."""
        return self.resource.list("tags")

    @property
    def proxmox_host(self) -> str | None:
        """Name of the Proxmox host it runs on."""
        name = self.resource.get("nodeName")
        return name if isinstance(name, str) else None

    @property
    def interface(self) -> str | None:
        """IPv4 address with the length of its network, e.g. ``10.0.145.110/24``; None when it has no fixed one."""
        address = self.resource.get("initialization", "ipConfigs", 0, "ipv4", "address")
        return address if isinstance(address, str) and "/" in address else None

    @property
    def runs_kubernetes(self) -> bool:
        """Whether pods run on it."""
        return self.has(vocabulary.TAG_SERVER) or self.has(vocabulary.TAG_WORKER)

    def has(self, tag: str) -> bool:
        """Whether it carries a tag."""
        return tag in self.tags


@dataclass(frozen=True, slots=True)
class Plan:
    """Every resource of a stack, as it will be when the plan has been carried out."""

    resources: Sequence[Resource]

    def of(self, types: Collection[str]) -> Iterator[Resource]:
        """All resources of these type tokens."""
        return (resource for resource in self.resources if resource.type in types)

    def machines(self, *tags: str) -> list[Machine]:
        """Machines that carry at least one of the tags; without any tag, all of them."""
        found = [Machine(resource) for resource in self.of((vocabulary.CONTAINER,))]
        return [machine for machine in found if not tags or any(machine.has(tag) for tag in tags)]
