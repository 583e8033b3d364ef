"""Network: addresses that do not collide, and nothing open that need not be.

Here: the pool of service addresses, the machines and the address of the Kubernetes API. The services themselves are looked
at in ``service_addresses``, and who may connect in ``exposure``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from pulumi_policy import Severity

from policy import exposure, service_addresses, stack_file, vocabulary
from policy.addresses import (
    api_address,
    interface_of,
    is_usable,
    listed,
    machine_networks,
    pool_ranges,
    range_of,
    size_of,
    taken_by_api,
    taken_by_machines,
)
from policy.machines import machines
from policy.resources import Machine, Plan, Resource, number
from policy.rule import PlanPolicy, ResourcePolicy

MOST_POOL_ADDRESSES: Final = 256
"""More than a school will ever have services; a greater pool is a slip in the prefix."""


def _named(networks: list[IPv4Network]) -> str:
    return " and ".join(str(network) for network in networks) or "none"


# --- the pool of service addresses


def _pool_inside(pool: Resource, plan: Plan) -> Iterator[str]:
    texts = [str(text) for text in pool.list("spec", "addresses")]
    if not texts:
        yield f"{pool.name} has no addresses; allowed is a range of the machines' network."
    total = 0
    networks = machine_networks(plan)
    for text in texts:
        span = range_of(text)
        if span is None:
            yield f"{pool.name} has the addresses {text}; allowed are first-last or a network, of IPv4 addresses."
            continue
        total += size_of(span)
        if not any(is_usable(span.first, network) and is_usable(span.last, network) for network in networks):
            yield (
                f"{pool.name} has the addresses {text}; allowed is a range inside the machines' network "
                f"({_named(networks)}), without its first and last address."
            )
    if total > MOST_POOL_ADDRESSES:
        yield f"{pool.name} has {total} addresses; allowed are at most {MOST_POOL_ADDRESSES}."


SERVICE_POOL_INSIDE_NETWORK: Final = PlanPolicy(
    "service-pool-inside-network",
    description="Service addresses lie in the machines' own network, and are no more than 256.",
    why="MetalLB answers ARP for them, which reaches no further than the machines' network: an address outside is "
    "never found. A pool that is too wide takes addresses that other computers have.",
    remedy="Write a range of `network.cidr` into `network.servicePool`.",
    severity=Severity.HIGH,
    of=(vocabulary.ADDRESS_POOL,),
    check_each=_pool_inside,
)


def _pool_apart(pool: Resource, plan: Plan) -> Iterator[str]:
    for span in pool_ranges(pool):
        inside = [taken for taken in (*taken_by_machines(plan), *taken_by_api(plan)) if taken.address in span]
        if inside:
            yield f"{pool.name} ({span}) holds {listed(inside)}; allowed are addresses that nobody has."


SERVICE_POOL_APART_FROM_MACHINES: Final = PlanPolicy(
    "service-pool-apart-from-machines",
    description="No service address is that of a machine, the gateway, a name server or the Kubernetes API.",
    why="Two computers would answer for one address. Which of them is reached changes by the minute: connections "
    "break at random, and with the gateway's address the whole school loses its network.",
    remedy="Move `network.servicePool`, or the address in question.",
    severity=Severity.CRITICAL,
    of=(vocabulary.ADDRESS_POOL,),
    check_each=_pool_apart,
)


def _pool_apart_from_dhcp(pool: Resource) -> Iterator[str]:
    handed_out = stack_file.of_stack(pool.stack).dhcp_range
    # Nothing is known of a DHCP server: nothing can be said.
    if handed_out is None:
        return
    for span in pool_ranges(pool):
        if span.overlaps(handed_out):
            yield f"{pool.name} ({span}) meets the range of the DHCP server ({handed_out}); allowed is a range apart from it."


SERVICE_POOL_APART_FROM_DHCP: Final = ResourcePolicy(
    "service-pool-apart-from-dhcp",
    of=(vocabulary.ADDRESS_POOL,),
    description="No service address is one that the school's DHCP server hands out.",
    why="Some day a pupil's computer is given the address of the database: it works for months, and fails on a "
    "morning when nobody changed anything.",
    remedy="Make the range of the DHCP server (`network.dhcpRange`) smaller, or move `network.servicePool`.",
    severity=Severity.HIGH,
    check=_pool_apart_from_dhcp,
)


def _advertised(pool: Resource, plan: Plan) -> Iterator[str]:
    name, namespace = pool.get("metadata", "name"), pool.get("metadata", "namespace")
    limited: list[str] = []
    for advertisement in plan.of((vocabulary.ADVERTISEMENT,)):
        if advertisement.get("metadata", "namespace") != namespace:
            continue
        pools = advertisement.list("spec", "ipAddressPools")
        # One that selects nothing stands for all pools.
        if name not in pools and (pools or advertisement.list("spec", "ipAddressPoolSelectors")):
            continue
        if not advertisement.list("spec", "nodeSelectors") and not advertisement.list("spec", "interfaces"):
            return
        limited.append(advertisement.name)
    if limited:
        yield (
            f"{pool.name} is advertised only with `nodeSelectors` or `interfaces` ({', '.join(limited)}); "
            "allowed is an L2Advertisement without them, for all machines."
        )
    else:
        yield f"{pool.name} is in no L2Advertisement of its namespace; allowed is a pool that one of them names."


SERVICE_POOL_ADVERTISED: Final = PlanPolicy(
    "service-pool-advertised",
    description="Every pool of service addresses is advertised, by any machine.",
    why="A pool alone only hands addresses out: Services look complete, and nobody in the network answers for their "
    "addresses. If only some machines may answer, the addresses are lost with them, although the database is well.",
    remedy="Name the pool in the L2Advertisement of components/metallb_pool.py, without `nodeSelectors` and `interfaces`.",
    severity=Severity.HIGH,
    of=(vocabulary.ADDRESS_POOL,),
    check_each=_advertised,
)


def _reserved(pool: Resource) -> Iterator[str]:
    # On by default.
    if pool.get("spec", "autoAssign") is not False:
        yield f"{pool.name} does not set `autoAssign` to false; allowed is false, and the default is true."


SERVICE_POOL_RESERVED: Final = ResourcePolicy(
    "service-pool-reserved",
    of=(vocabulary.ADDRESS_POOL,),
    description="Only a Service that asks for an address gets one.",
    why="Otherwise any Service of type LoadBalancer takes the next free address, maybe the database's while that is "
    "being made anew. Who has which address then depends on the order in which things were made.",
    remedy="Set `autoAssign` of the pool to false in components/metallb_pool.py.",
    severity=Severity.MEDIUM,
    check=_reserved,
)

# --- machines


def _address_once(plan: Plan) -> Iterator[str]:
    holders: dict[IPv4Address, str] = {}
    for machine in machines(plan):
        interface = interface_of(machine)
        if interface is None:
            yield f"{machine.name} has no fixed IPv4 address with a prefix; allowed is one such as 10.0.145.110/24."
            continue
        other = holders.setdefault(interface.ip, machine.name)
        if other != machine.name:
            yield f"{machine.name} has the address {interface.ip}, and so has {other}; allowed is an address of its own."


MACHINE_ADDRESS_ONCE: Final = PlanPolicy(
    "machine-address-once",
    description="Every machine has a fixed address of its own.",
    why="Certificates, balancers and firewall rules name addresses. With an address of two machines each is reached "
    "now and then; one from DHCP is another one day, and the cluster does not find its datastore.",
    remedy="Give every entry of `machines` an `address` of its own.",
    severity=Severity.CRITICAL,
    check=_address_once,
)


def _id_once(plan: Plan) -> Iterator[str]:
    holders: dict[int, str] = {}
    for machine in machines(plan):
        vm_id = number(machine.resource.get("vmId"))
        # Left open, Proxmox takes the next free one.
        if vm_id is None:
            continue
        other = holders.setdefault(vm_id, machine.name)
        if other != machine.name:
            yield f"{machine.name} has the id {vm_id}, and so has {other}; allowed is an id of its own."


MACHINE_ID_ONCE: Final = PlanPolicy(
    "machine-id-once",
    description="Every machine has a Proxmox id of its own, also across Proxmox hosts.",
    why="Proxmox has each id once in the whole cluster. The second machine would silently become the first one, and "
    "deleting either would delete both.",
    remedy="Give every entry of `machines` a `vmId` of its own.",
    severity=Severity.CRITICAL,
    check=_id_once,
)


def _one_network(plan: Plan) -> Iterator[str]:
    networks = machine_networks(plan)
    if len(networks) > 1:
        yield f"The machines are in the networks {_named(networks)}; allowed is one network for all."


MACHINE_NETWORK_COMMON: Final = PlanPolicy(
    "machine-network-common",
    description="All machines are in one network.",
    why="The address of the Kubernetes API and those of the database move between machines by ARP, which ends at a "
    "router: in another network nobody can take them over.",
    remedy="Give all `machines` an `address` of `network.cidr`.",
    severity=Severity.HIGH,
    check=_one_network,
)

_NOT_ANNOUNCED: Final = re.compile(
    r"(docker|cbr|dummy|virbr|lxcbr|veth|cali|tunl|flannel|kube-ipvs|cni|nodelocaldns).*|lo"
)
"""What MetalLB leaves out by default: interfaces of containers and of Kubernetes' own networks."""


def _announced(container: Resource) -> Iterator[str]:
    machine = Machine(container)
    if not machine.runs_kubernetes:
        return
    # It belongs to the first address; without an interface at all Proxmox makes a machine without a network.
    name = container.get("networkInterfaces", 0, "name")
    if not isinstance(name, str):
        yield f"{machine.name} has no network interface; allowed is one such as eth0."
    elif _NOT_ANNOUNCED.fullmatch(name):
        yield f"{machine.name} has the network interface {name}, which MetalLB leaves out; allowed is a name such as eth0."


MACHINE_INTERFACE_ANNOUNCED: Final = ResourcePolicy(
    "machine-interface-announced",
    of=(vocabulary.CONTAINER,),
    description="The network interface of a K3s machine has a name that MetalLB answers on.",
    why="MetalLB leaves out interfaces with the names that containers and overlay networks use. On a machine with "
    "veth0, as many examples have it, service addresses are handed out and never answered for.",
    remedy='Name the interface "eth0" in components/proxmox_lxc_node.py.',
    severity=Severity.HIGH,
    check=_announced,
)


def _machine_apart_from_dhcp(container: Resource) -> Iterator[str]:
    handed_out = stack_file.of_stack(container.stack).dhcp_range
    machine = Machine(container)
    interface = interface_of(machine)
    if handed_out is not None and interface is not None and interface.ip in handed_out:
        yield (
            f"{machine.name} has the address {interface.ip}, which the DHCP server hands out ({handed_out}); "
            "allowed is an address apart from them."
        )


MACHINE_APART_FROM_DHCP: Final = ResourcePolicy(
    "machine-apart-from-dhcp",
    of=(vocabulary.CONTAINER,),
    description="No machine has an address that the school's DHCP server hands out.",
    why="The DHCP server knows nothing of fixed addresses and gives this one to another computer, which then answers "
    "in the place of a machine of the cluster.",
    remedy="Make the range of the DHCP server (`network.dhcpRange`) smaller, or give the machine another `address`.",
    severity=Severity.HIGH,
    check=_machine_apart_from_dhcp,
)

# --- the address of the Kubernetes API


def _api_apart(balancer: Resource, plan: Plan) -> Iterator[str]:
    address = api_address(balancer)
    if address is None:
        yield f"{balancer.name} has no endpoint https://address:port; allowed is an IPv4 address."
        return
    what = f"{balancer.name} has the virtual address {address}"
    networks = machine_networks(plan)
    if not any(is_usable(address, network) for network in networks):
        yield f"{what}; allowed is one of the machines' network ({_named(networks)})."
    same = [taken for taken in taken_by_machines(plan) if taken.address == address]
    if same:
        yield f"{what}, and so has {', '.join(taken.owner for taken in same)}; allowed is an address of its own."
    handed_out = stack_file.of_stack(balancer.stack).dhcp_range
    if handed_out is not None and address in handed_out:
        yield f"{what}, which the DHCP server hands out ({handed_out}); allowed is an address apart from them."
    for pool in plan.of((vocabulary.ADDRESS_POOL,)):
        if any(address in span for span in pool_ranges(pool)):
            yield f"{what}, which {pool.name} may give to a Service; allowed is an address outside of it."


API_ADDRESS_APART: Final = PlanPolicy(
    "api-address-apart",
    description="The virtual address of the Kubernetes API is in the machines' network, and nobody else's.",
    why="The balancer that is alive takes this address by itself. If a machine, a Service or a computer with DHCP has "
    "it too, workers and `pulumi up` reach the API by chance.",
    remedy="Write a free address of `network.cidr` into `apiLoadBalancer.virtualAddress`.",
    severity=Severity.CRITICAL,
    of=(vocabulary.BALANCER_COMPONENT,),
    check_each=_api_apart,
)

POLICIES: Final = (
    SERVICE_POOL_INSIDE_NETWORK,
    SERVICE_POOL_APART_FROM_MACHINES,
    SERVICE_POOL_APART_FROM_DHCP,
    SERVICE_POOL_ADVERTISED,
    SERVICE_POOL_RESERVED,
    MACHINE_ADDRESS_ONCE,
    MACHINE_ID_ONCE,
    MACHINE_NETWORK_COMMON,
    MACHINE_INTERFACE_ANNOUNCED,
    MACHINE_APART_FROM_DHCP,
    API_ADDRESS_APART,
    *service_addresses.POLICIES,
    *exposure.POLICIES,
)
