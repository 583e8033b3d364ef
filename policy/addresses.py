"""Addresses as resources write them, and which of them are taken.

What is no address is None here: saying so is the business of a policy, and the only errors caught are those of reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Network, ip_network
from typing import Any, NamedTuple, TypeVar

from policy import vocabulary
from policy.machines import machines
from policy.resources import Machine, Plan, Resource
from settings import AddressRange

_Read = TypeVar("_Read")


class Taken(NamedTuple):
    """An address that somebody has."""

    owner: str
    """Who, in words."""
    address: IPv4Address


def _read(kind: Callable[[str], _Read], value: Any) -> _Read | None:
    if not isinstance(value, str):
        return None
    try:
        return kind(value.strip())
    except ValueError:
        return None


def address_of(value: Any) -> IPv4Address | None:
    """One IPv4 address; None for anything else."""
    return _read(IPv4Address, value)


def network_of(value: Any) -> IPv4Network | IPv6Network | None:
    """A network, also one with host bits; None for anything else."""
    return _read(lambda text: ip_network(text, strict=False), value)


def range_of(value: Any) -> AddressRange | None:
    """IPv4 addresses written ``first-last`` or as a network; None for anything else."""
    if isinstance(value, str) and "-" in value:
        return _read(AddressRange.parse, value)
    network = network_of(value)
    return AddressRange(network[0], network[-1]) if isinstance(network, IPv4Network) else None


def size_of(span: AddressRange) -> int:
    """How many addresses a range has."""
    return int(span.last) - int(span.first) + 1


def interface_of(machine: Machine) -> IPv4Interface | None:
    """Address and network of a machine; None when it has no fixed one."""
    return _read(IPv4Interface, machine.interface)


def is_usable(address: IPv4Address, network: IPv4Network) -> bool:
    """Whether a computer of the network may have the address."""
    return address in network and address not in (network.network_address, network.broadcast_address)


def machine_networks(plan: Plan) -> list[IPv4Network]:
    """Networks of the plan's machines, each once."""
    found = {interface.network for machine in machines(plan) if (interface := interface_of(machine))}
    return sorted(found)


def pool_ranges(pool: Resource) -> list[AddressRange]:
    """The ranges of an address pool, as far as they can be read."""
    return [span for text in pool.list("spec", "addresses") if (span := range_of(text))]


def api_address(balancer: Resource) -> IPv4Address | None:
    """The virtual address of the Kubernetes API, from the balancer's endpoint ``https://address:port``."""
    endpoint = balancer.get("endpoint")
    return address_of(endpoint.removeprefix("https://").partition(":")[0]) if isinstance(endpoint, str) else None


def taken_by_machines(plan: Plan) -> Iterator[Taken]:
    """Addresses of machines, and of the gateways and name servers they use."""
    around: set[Taken] = set()
    for machine in machines(plan):
        interface = interface_of(machine)
        if interface is not None:
            yield Taken(f"the machine {machine.name}", interface.ip)
        gateway = address_of(machine.resource.get("initialization", "ipConfigs", 0, "ipv4", "gateway"))
        servers = [address_of(text) for text in machine.resource.list("initialization", "dns", "servers")]
        around |= {Taken("the gateway", gateway)} if gateway else set()
        around |= {Taken("a name server", server) for server in servers if server}
    yield from sorted(around)


def taken_by_api(plan: Plan) -> Iterator[Taken]:
    """Virtual addresses of the Kubernetes API."""
    for balancer in plan.of((vocabulary.BALANCER_COMPONENT,)):
        address = api_address(balancer)
        if address is not None:
            yield Taken("the Kubernetes API", address)


def listed(taken: Iterable[Taken]) -> str:
    """Owners and addresses for a sentence."""
    return ", ".join(f"{owner} ({address})" for owner, address in taken)
