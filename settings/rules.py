"""Rules across fields. Each takes topics that are valid by themselves; None stands for one that is not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple
from urllib.parse import unquote

from settings.faults import Fault, path_of, shown
from settings.models import (
    ApiLoadBalancerSettings,
    BackupSettings,
    KubernetesSettings,
    MachineSettings,
    NetworkSettings,
    PolicyWaiverSettings,
    ProxmoxSettings,
    Role,
    TemplateSettings,
)
from settings.postgres import DEFAULT_MAX_CONNECTIONS, FEWEST_INSTANCES, PostgresSettings
from settings.values import K3S_VERSION

POD_NETWORK = IPv4Network("10.42.0.0/16")
"""Addresses K3s gives to pods (its default, which the program keeps)."""

SERVICE_NETWORK = IPv4Network("10.43.0.0/16")
"""Addresses K3s gives to Services inside the cluster (its default, which the program keeps)."""

RESERVED_CONNECTIONS = 15
"""Connections kept free for superusers, Patroni, replication and the backup when the pooler is sized."""

_SMALLEST_K3S_MIB = 1024
_BYTES: Mapping[str | None, int] = {None: 8192, "B": 1, "kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
"""Units of PostgreSQL; without one, ``shared_buffers`` counts blocks."""
_CONNECTIONS_PER_POOLER_POD = 4


class _Place(NamedTuple):
    """An address of the configuration, where it stands and whose it is."""

    path: str
    owner: str
    address: IPv4Address


class Topics(NamedTuple):
    """The topics that are valid by themselves."""

    network: NetworkSettings | None = None
    proxmox: ProxmoxSettings | None = None
    machines: tuple[MachineSettings, ...] | None = None
    template: TemplateSettings | None = None
    kubernetes: KubernetesSettings | None = None
    api_load_balancer: ApiLoadBalancerSettings | None = None
    postgres: PostgresSettings | None = None
    backup: BackupSettings | None = None
    protect_data: bool | None = None
    policy_waivers: tuple[PolicyWaiverSettings, ...] | None = None


def _fixed_places(topics: Topics) -> list[_Place]:
    """Every address that is fixed outside the service pool: gateway, Proxmox hosts, machines, virtual address."""
    places: list[_Place] = []
    if topics.network is not None:
        places.append(_Place("network.gateway", "the gateway", topics.network.gateway))
    if topics.proxmox is not None:
        places += [
            _Place(f"proxmox.hosts[{index}].address ({host.name})", f"the Proxmox host {host.name}", host.address)
            for index, host in enumerate(topics.proxmox.hosts)
        ]
    if topics.machines is not None:
        places += [
            _Place(f"machines[{index}].address ({machine.name})", f"the machine {machine.name}", machine.address)
            for index, machine in enumerate(topics.machines)
        ]
    if topics.api_load_balancer is not None:
        places.append(
            _Place("apiLoadBalancer.virtualAddress", "the virtual address", topics.api_load_balancer.virtual_address)
        )
    return places


def _service_places(topics: Topics) -> list[_Place]:
    if topics.postgres is None:
        return []
    return [
        _Place(f"postgres.addresses.{name}", f"the address {name} of the database", address)
        for name, address in topics.postgres.addresses
    ]


def _usable(network: IPv4Network, address: IPv4Address) -> bool:
    return address in network and address not in (network.network_address, network.broadcast_address)


def _network_faults(topics: Topics) -> Iterator[Fault]:
    """The network itself, and every address inside it."""
    network = topics.network
    if network is None:
        return
    cidr = network.cidr
    if not 8 <= cidr.prefixlen <= 29:
        yield Fault("network.cidr", f"is {cidr}", "a prefix from /8 to /29", "write the network of the school")
    for name, inner in (("pods", POD_NETWORK), ("Services", SERVICE_NETWORK)):
        if cidr.overlaps(inner):
            yield Fault(
                "network.cidr",
                f"is {cidr}",
                f"a network that does not overlap {inner}, which Kubernetes uses for its {name}",
                "put the machines into another network",
            )
    inside = f"an address of {cidr} that is neither its first nor its last"
    for place in _fixed_places(topics):
        if not place.path.startswith("proxmox.") and not _usable(cidr, place.address):
            yield Fault(place.path, f"is {place.address}", inside, "write an address of the school network")
    for name, span in (("servicePool", network.service_pool), ("dhcpRange", network.dhcp_range)):
        if span is not None and not (_usable(cidr, span.first) and _usable(cidr, span.last)):
            yield Fault(
                f"network.{name}",
                f"is {span}",
                f"a range inside {cidr} without its first and last address",
                "write a range of the school network",
            )


def _listed(places: Iterable[_Place]) -> str:
    return " and ".join(f"{place.owner} ({place.address})" for place in places)


def _range_faults(topics: Topics) -> Iterator[Fault]:
    """The service pool and the DHCP range: nothing else may lie in them."""
    network = topics.network
    if network is None:
        return
    fixed = _fixed_places(topics)
    taken = {place.address for place in fixed}
    fixed += [_Place("", "a name server", address) for address in network.dns_servers if address not in taken]
    in_pool = [place for place in fixed if place.address in network.service_pool]
    if in_pool:
        yield Fault(
            "network.servicePool",
            f"is {network.service_pool}",
            f"a range that MetalLB has for itself, but {_listed(in_pool)} would be in it",
            "move the range or these addresses",
        )
    for place in _service_places(topics):
        if place.address not in network.service_pool:
            yield Fault(
                place.path,
                f"is {place.address}",
                f"an address inside network.servicePool ({network.service_pool})",
                "write one of these",
            )
    if network.dhcp_range is None:
        return
    if network.dhcp_range.overlaps(network.service_pool):
        yield Fault(
            "network.dhcpRange",
            f"is {network.dhcp_range}",
            f"a range clear of network.servicePool ({network.service_pool}), or two computers get one address",
            "make the range of the DHCP server smaller or move the pool",
        )
    in_dhcp = [place for place in fixed if place.address in network.dhcp_range]
    if in_dhcp:
        yield Fault(
            "network.dhcpRange",
            f"is {network.dhcp_range}",
            f"a range without fixed addresses, but {_listed(in_dhcp)} would be in it",
            "make the range of the DHCP server smaller or move these addresses",
        )


def _uniqueness_faults(topics: Topics) -> Iterator[Fault]:
    """Addresses, names and ids that may exist once only."""
    holders: dict[IPv4Address, _Place] = {}
    for place in _fixed_places(topics) + _service_places(topics):
        other = holders.setdefault(place.address, place)
        if other is not place:
            yield Fault(
                place.path,
                f"is {place.address}",
                f"an address of its own, but {other.owner} has this one ({other.path.split(' ')[0]})",
                "write a free address",
            )
    if topics.network is not None:
        ours = [place for place in _fixed_places(topics) if place.path.startswith(("machines", "apiLoadBalancer"))]
        for place in ours + _service_places(topics):
            if place.address in topics.network.dns_servers and place.address != topics.network.gateway:
                yield Fault(
                    place.path,
                    f"is {place.address}",
                    "an address that is not one of network.dnsServers",
                    "write a free address",
                )
    names = {"k3s-api": "the virtual address", "localhost": "every machine"}
    for index, host in enumerate(topics.proxmox.hosts if topics.proxmox is not None else ()):
        yield from _repeated(names, f"proxmox.hosts[{index}].name", host.name, "a name")
    ids: dict[str, str] = {}
    for index, machine in enumerate(topics.machines or ()):
        yield from _repeated(names, f"machines[{index}].name", machine.name, "a name")
        yield from _repeated(ids, f"machines[{index}].vmId", str(machine.vm_id), "an id", f" ({machine.name})")


def _host_key_faults(topics: Topics) -> Iterator[Fault]:
    """A key that was copied once too often: no two hosts have the same."""
    seen: dict[tuple[str, ...], str] = {}
    for index, host in enumerate(topics.proxmox.hosts if topics.proxmox is not None else ()):
        path = f"proxmox.hosts[{index}].sshHostKey"
        other = seen.setdefault(tuple(host.ssh_host_key.split()[:2]), path)
        if other != path:
            yield Fault(
                f"{path} ({host.name})",
                f"is {shown(host.ssh_host_key)}",
                f"a key of its own, but {other} is the same",
                "run `cat /etc/ssh/ssh_host_ed25519_key.pub` on this host and copy the first two words",
            )


def _repeated(seen: dict[str, str], path: str, value: str, what: str, owner: str = "") -> Iterator[Fault]:
    other = seen.setdefault(value, path)
    if other != path:
        yield Fault(
            path + owner, f"is {value}", f"{what} of its own, but {other} has this one", f"write {what} that is free"
        )


def _machine_faults(topics: Topics) -> Iterator[Fault]:
    """What fits together on one machine."""
    hosts = None if topics.proxmox is None else [host.name for host in topics.proxmox.hosts]
    for index, machine in enumerate(topics.machines or ()):
        path, name = f"machines[{index}]", f" ({machine.name})"
        roles = f"is [{', '.join(machine.roles)}]"
        if hosts is not None and machine.proxmox_host not in hosts:
            yield Fault(
                f"{path}.proxmoxHost{name}",
                f"is {shown(machine.proxmox_host)}",
                f"the name of a host in proxmox.hosts ({', '.join(hosts)})",
                "correct the name or add the host there",
            )
        if machine.has(Role.K3S_SERVER) and machine.has(Role.K3S_WORKER):
            yield Fault(
                f"{path}.roles{name}",
                roles,
                "k3s-server or k3s-worker, since a server also works",
                "take k3s-worker out",
            )
        if machine.runs_k3s and machine.has(Role.API_LOAD_BALANCER):
            yield Fault(
                f"{path}.roles{name}",
                roles,
                "a machine without K3s for api-load-balancer, since both need port 6443",
                "give the balancer a machine of its own",
            )
        if machine.runs_k3s and machine.memory_mib < _SMALLEST_K3S_MIB:
            yield Fault(
                f"{path}.memoryMiB{name}",
                f"is {machine.memory_mib}",
                f"at least {_SMALLEST_K3S_MIB} for a machine that runs K3s",
                f"write {_SMALLEST_K3S_MIB} or more",
            )


def _role_faults(topics: Topics) -> Iterator[Fault]:
    """How many machines have each role."""
    machines = topics.machines
    if machines is None:
        return

    def has(count: int, role: Role) -> str:
        return f"has {count if count else 'no'} machine{'' if count == 1 else 's'} with the role {role}"

    counts = {role: sum(machine.has(role) for machine in machines) for role in Role}
    for role, reason in (
        (Role.K3S_SERVER, "because with one the Kubernetes API is lost with its machine"),
        (Role.API_LOAD_BALANCER, "because with one the Kubernetes API cannot be reached without its machine"),
    ):
        if counts[role] < 2:
            yield Fault("machines", has(counts[role], role), f"at least 2, {reason}", "add the role to another machine")
    for role in (Role.DATASTORE, Role.FILE_SHARE):
        if counts[role] != 1:
            do = "add the role to one machine" if counts[role] == 0 else "leave the role on one machine only"
            yield Fault("machines", has(counts[role], role), "exactly 1", do)


def _capacity_faults(topics: Topics) -> Iterator[Fault]:
    """Whether the database fits on the machines that carry it, one instance a machine."""
    if topics.machines is None or topics.postgres is None:
        return
    postgres = topics.postgres
    workers = [machine for machine in topics.machines if machine.runs_k3s]
    if not workers:
        return
    apart = f"at most {len(workers)}, the number of K3s machines, because each runs on a machine of its own"
    if postgres.instances > len(workers):
        do = "write fewer or add a machine" if len(workers) >= FEWEST_INSTANCES else "add a machine that runs K3s"
        yield Fault("postgres.instances", f"is {postgres.instances}", apart, do)
        return
    if postgres.pooler.instances > len(workers):
        yield Fault(
            "postgres.pooler.instances", f"is {postgres.pooler.instances}", apart, "write fewer or add a machine"
        )
    needs: tuple[tuple[str, int, str, Callable[[MachineSettings], int]], ...] = (
        (
            "resources.memoryLimitMiB",
            postgres.resources.memory_limit_mib,
            "less than memoryMiB",
            lambda machine: machine.memory_mib - 1,
        ),
        (
            "resources.cpuRequestMillicores",
            postgres.resources.cpu_request_millicores,
            "at most 1000 x cores",
            lambda machine: machine.cores * 1000,
        ),
        (
            "storage.sizeGiB",
            postgres.storage.size_gib,
            "less than diskGiB",
            lambda machine: machine.disk_gib - 1,
        ),
    )
    for path, needed, bound, offer in needs:
        fitting = [machine.name for machine in workers if offer(machine) >= needed]
        if len(fitting) < postgres.instances:
            which = f"only {' and '.join(fitting)} can carry it" if fitting else "none can carry it"
            yield Fault(
                f"postgres.{path}",
                f"is {needed}",
                f"{bound} on at least {postgres.instances} K3s machines, one for each instance, but {which}",
                "write less or enlarge the machines",
            )


def _postgres_faults(topics: Topics) -> Iterator[Fault]:
    """Owners, memory and connections of the database."""
    postgres = topics.postgres
    if postgres is None:
        return
    known = ", ".join(postgres.users)
    for database, owner in postgres.databases.items():
        path = path_of("postgres", ("databases", database))
        if owner not in postgres.users:
            yield Fault(
                path,
                f"is {shown(owner)}",
                f"a role in postgres.users ({known})",
                "write one of these or add the role there",
            )
    database, owner = postgres.application_database
    if "nologin" in postgres.users.get(owner, ()):
        yield Fault(
            path_of("postgres", ("databases", database)),
            f"is {shown(owner)}",
            "a role that may log in, because the application connects as it",
            "take nologin out of its flags",
        )
    for user, flags in postgres.users.items():
        if "login" in flags and "nologin" in flags:
            yield Fault(
                path_of("postgres", ("users", user)), f"is [{', '.join(flags)}]", "login or nologin", "take one out"
            )
    resources = postgres.resources
    if resources.memory_request_mib > resources.memory_limit_mib:
        yield Fault(
            "postgres.resources.memoryRequestMiB",
            f"is {resources.memory_request_mib}",
            f"at most memoryLimitMiB ({resources.memory_limit_mib})",
            "write less or raise the limit",
        )
    yield from _buffer_faults(postgres)
    yield from _connection_faults(postgres)


def _buffer_faults(postgres: PostgresSettings) -> Iterator[Fault]:
    """What PostgreSQL keeps for its buffers from its start must leave room below the limit."""
    wanted = postgres.parameters.get("shared_buffers", "0")
    found = re.fullmatch(r" *(?P<number>[0-9]{1,12}) *(?P<unit>B|kB|MB|GB|TB)? *", wanted)
    limit = postgres.resources.memory_limit_mib
    if found is not None and int(found["number"]) * _BYTES[found["unit"]] >= limit * _BYTES["MB"]:
        yield Fault(
            "postgres.parameters.shared_buffers",
            f"is {shown(wanted)}",
            f"less than postgres.resources.memoryLimitMiB ({limit})",
            f'write a quarter of it, "{limit // 4}MB", or leave the key out',
        )


def _connection_faults(postgres: PostgresSettings) -> Iterator[Fault]:
    """What the pooler may open must leave room for everyone else.

    The operator divides ``maxDatabaseConnections`` among the pooler pods; PgBouncer counts it for each database.
    """
    pooler = postgres.pooler
    if pooler.max_database_connections < pooler.instances * _CONNECTIONS_PER_POOLER_POD:
        yield Fault(
            "postgres.pooler.maxDatabaseConnections",
            f"is {pooler.max_database_connections}",
            f"at least {_CONNECTIONS_PER_POOLER_POD} for each of the {pooler.instances} pods that share it",
            f"write {pooler.instances * _CONNECTIONS_PER_POOLER_POD} or more",
        )
    wanted = postgres.parameters.get("max_connections", str(DEFAULT_MAX_CONNECTIONS))
    if not re.fullmatch(r"[0-9]{1,5}", wanted) or not 25 <= int(wanted) <= 10_000:
        yield Fault(
            "postgres.parameters.max_connections",
            f"is {shown(wanted)}",
            "a whole number from 25 to 10000",
            'write for example "200"',
        )
        return
    needed = pooler.max_database_connections * len(postgres.databases) + RESERVED_CONNECTIONS
    if needed > int(wanted):
        databases = "1 database" if len(postgres.databases) == 1 else f"{len(postgres.databases)} databases"
        yield Fault(
            "postgres.pooler.maxDatabaseConnections",
            f"is {pooler.max_database_connections}",
            f"a number that, times {databases} and with {RESERVED_CONNECTIONS} connections kept for administration, "
            f"replication and backup, is at most max_connections ({wanted}), but it makes {needed}",
            f'write less or set postgres.parameters.max_connections to "{needed}" or more',
        )


def _kubernetes_faults(topics: Topics) -> Iterator[Fault]:
    """The binary belongs to the version, as far as its address tells."""
    kubernetes = topics.kubernetes
    if kubernetes is None:
        return
    found = K3S_VERSION.search(unquote(kubernetes.binary_url))
    if found is not None and found[0] != kubernetes.version:
        yield Fault(
            "kubernetes.binaryUrl",
            f"is the address of {found[0]}",
            f"the address of kubernetes.version ({kubernetes.version})",
            "change both together, and binarySha256 with them",
        )


def _waiver_faults(topics: Topics) -> Iterator[Fault]:
    """A policy is waived once for a resource, so that one reason and one last day hold."""
    seen: dict[tuple[str, str], int] = {}
    for index, waiver in enumerate(topics.policy_waivers or ()):
        other = seen.setdefault((waiver.policy, waiver.resource), index)
        if other != index:
            yield Fault(
                f"policyWaivers[{index}] ({waiver.policy})",
                f"waives the policy for {shown(waiver.resource)}",
                f"one waiver of a policy for a resource, but policyWaivers[{other}] is one",
                "leave only one of them",
            )


CROSS_RULES = (
    _network_faults,
    _range_faults,
    _uniqueness_faults,
    _host_key_faults,
    _machine_faults,
    _role_faults,
    _capacity_faults,
    _postgres_faults,
    _kubernetes_faults,
    _waiver_faults,
)
