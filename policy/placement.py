"""Availability, second part: what stands in for each other is never lost together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from pulumi_policy import Severity

from policy import vocabulary
from policy.machines import machines, names
from policy.resources import Machine, Plan, Resource, dig, number
from policy.rule import PlanPolicy, ResourcePolicy
from policy.zalando import is_operator_chart, operator_value, pooler_instances

ONE_A_MACHINE: Final = "kubernetes.io/hostname"
"""The label by which Kubernetes tells machines apart."""


def by_host(found: Sequence[Machine]) -> dict[str, list[str]]:
    """Names of machines by the Proxmox host that carries them."""
    hosts: dict[str, list[str]] = {}
    for machine in found:
        hosts.setdefault(machine.proxmox_host or "a Proxmox host without a name", []).append(machine.name)
    return hosts


# --- members of the database on machines


def _members_apart(release: Resource) -> Iterator[str]:
    if not is_operator_chart(release):
        return
    settings = ("values", "configKubernetes")
    if release.get(*settings, "enable_pod_antiaffinity") is not True:
        yield f"{release.name} does not set `enable_pod_antiaffinity`; allowed is true, and the chart's default is false."
    # Required, not preferred, is the default.
    if release.get(*settings, "pod_antiaffinity_preferred_during_scheduling") not in (None, False):
        yield f"{release.name} sets `pod_antiaffinity_preferred_during_scheduling`; allowed is false."
    # So is one a machine. Machines do not carry labels of racks or rooms, and what has none is never apart.
    if release.get(*settings, "pod_antiaffinity_topology_key") not in (None, ONE_A_MACHINE):
        yield f"{release.name} changes `pod_antiaffinity_topology_key`; allowed is {ONE_A_MACHINE}."


DATABASE_MEMBERS_ON_DIFFERENT_MACHINES: Final = ResourcePolicy(
    "database-members-on-different-machines",
    of=(vocabulary.RELEASE,),
    description="No two members of a database, and no two of its poolers, run on one machine.",
    why="The operator's default lets all members start on one machine, whose loss then takes the primary and every "
    "copy. A mere preference is given up as soon as another machine is full or being repaired, and nothing moves them "
    "apart again.",
    remedy="Set `enable_pod_antiaffinity` to true in `operator_values` of components/operators/zalando.py, and leave the "
    "two other keys as they are there.",
    severity=Severity.CRITICAL,
    check=_members_apart,
)


def _members_fit(database: Resource, plan: Plan) -> Iterator[str]:
    settings = operator_value(plan, "configKubernetes")
    if dig(settings, "enable_pod_antiaffinity") is not True:
        return
    if dig(settings, "pod_antiaffinity_preferred_during_scheduling") is True:
        return
    carriers = machines(plan, vocabulary.TAG_SERVER, vocabulary.TAG_WORKER)
    wanted = {
        "members": number(database.get("spec", "numberOfInstances")),
        "poolers": pooler_instances(database, plan),
    }
    for what, count in wanted.items():
        if count is not None and count > len(carriers):
            yield (
                f"{database.name} has {count} {what}, each on a machine of its own, and the plan has "
                f"{len(carriers)} K3s machines ({names(carriers)}); allowed are at most as many."
            )


DATABASE_MEMBERS_FIT_MACHINES: Final = PlanPolicy(
    "database-members-fit-machines",
    description="A database has no more members or poolers than there are K3s machines.",
    why="One that finds no machine of its own stays Pending for ever: the operator waits for it, does nothing else "
    "for the cluster meanwhile, and the update fails after its whole timeout.",
    remedy="Lower `postgres.instances` or `postgres.pooler.instances`, or add a machine with the role k3s-worker to "
    "`machines`.",
    severity=Severity.HIGH,
    of=(vocabulary.DATABASE,),
    check_each=_members_fit,
)

# --- machines on Proxmox hosts


def _on_two_hosts(found: Sequence[Machine], what: str) -> Iterator[str]:
    hosts = by_host(found)
    # A single machine is the business of the policy that counts them.
    if len(found) > 1 and len(hosts) < 2:
        yield f"All {what} ({names(found)}) are on {', '.join(hosts)}; allowed are at least 2 Proxmox hosts."


def _servers_apart(plan: Plan) -> Iterator[str]:
    yield from _on_two_hosts(machines(plan, vocabulary.TAG_SERVER), "K3s servers")


K3S_SERVERS_ON_DIFFERENT_HOSTS: Final = PlanPolicy(
    "k3s-servers-on-different-hosts",
    description="The K3s servers are on at least two Proxmox hosts.",
    why="Two servers on one Proxmox host survive a fault of the machine, not of the host: its power supply takes "
    "both, and with them the Kubernetes API, which every failover of the database needs.",
    remedy="Give the machines with the role k3s-server different `proxmoxHost` values in `machines`.",
    severity=Severity.CRITICAL,
    check=_servers_apart,
)


def _members_survive(database: Resource, plan: Plan) -> Iterator[str]:
    members = number(database.get("spec", "numberOfInstances"))
    # Fewer than three are the business of another policy: no placement would help them.
    if members is None or members < 3:
        return
    # One copy more than can be lost: Patroni's own default is one synchronous standby.
    copies = number(database.get("spec", "patroni", "synchronous_node_count")) or 1
    bearable = min((members - 1) // 2, copies)
    for host, carried in by_host(machines(plan, vocabulary.TAG_SERVER, vocabulary.TAG_WORKER)).items():
        lost = min(len(carried), members)
        if lost > bearable:
            yield (
                f"{host} carries {len(carried)} K3s machines ({', '.join(carried)}), so its loss can take "
                f"{lost} of the {members} members of {database.name}; allowed are {bearable}."
            )


K3S_MACHINES_ACROSS_HOSTS: Final = PlanPolicy(
    "k3s-machines-across-hosts",
    description="The loss of any one Proxmox host leaves the majority of a database's members.",
    why="Members keep apart by machine, and know nothing of Proxmox hosts. A host with several K3s machines may carry "
    "the primary and the only standby that is certain to have every commit: both are lost together, and acknowledged "
    "data with them.",
    remedy="Use another Proxmox host for the machine (`machines`, key `proxmoxHost`), or add two machines and raise "
    "`postgres.instances` to 5 in the same change.",
    severity=Severity.CRITICAL,
    of=(vocabulary.DATABASE,),
    check_each=_members_survive,
)


SERVERS_LEFT: Final = 2
"""K3s servers that are not lost together with a single datastore."""


def _datastore_apart(plan: Plan) -> Iterator[str]:
    datastores = machines(plan, vocabulary.TAG_DATASTORE)
    # From three on, one may be lost together with a server.
    if len(datastores) >= 3:
        return
    servers = machines(plan, vocabulary.TAG_SERVER)
    for host, carried in by_host(datastores).items():
        beside = by_host(servers).get(host, [])
        left = [server.name for server in servers if server.name not in beside]
        # Without a server on that host none is lost with the datastore: how many there are is another policy's business.
        if beside and len(left) < SERVERS_LEFT:
            yield (
                f"{host} carries the datastore {', '.join(carried)} and the K3s servers {', '.join(beside)}, so its loss "
                f"leaves {', '.join(left) or 'no server'}; allowed are {SERVERS_LEFT} servers or more on other hosts."
            )


DATASTORE_APART_FROM_K3S_SERVERS: Final = PlanPolicy(
    "datastore-apart-from-k3s-servers",
    description="The Proxmox host of the datastore does not take it away together with all K3s servers but one.",
    why="The second server can take over only with the datastore. If both are lost with one host, the Kubernetes API "
    "is away, and what is left to repair it from is a single server.",
    remedy="Give the machine with the role datastore another `proxmoxHost` in `machines`, or have a third K3s server on "
    "another host.",
    severity=Severity.HIGH,
    check=_datastore_apart,
)


def _balancers_apart(plan: Plan) -> Iterator[str]:
    yield from _on_two_hosts(machines(plan, vocabulary.TAG_BALANCER), "balancers of the Kubernetes API")


API_LOAD_BALANCERS_ON_DIFFERENT_HOSTS: Final = PlanPolicy(
    "api-load-balancers-on-different-hosts",
    description="The balancers of the Kubernetes API are on at least two Proxmox hosts.",
    why="The address of the API moves to the other balancer within seconds, unless that one has lost its Proxmox host "
    "too. Then nobody reaches the API, although K3s servers on other hosts are well.",
    remedy="Give the machines with the role api-load-balancer different `proxmoxHost` values in `machines`.",
    severity=Severity.HIGH,
    check=_balancers_apart,
)

# --- volumes that move between machines

_STATEFUL_SET: Final = "kubernetes:apps/v1:StatefulSet"


def _uses_longhorn(resource: Resource) -> bool:
    names = [
        resource.get("chart"),
        resource.get("spec", "volume", "storageClass"),
        resource.get("spec", "storageClassName"),
    ]
    names += [dig(claim, "spec", "storageClassName") for claim in resource.list("spec", "volumeClaimTemplates")]
    return any(isinstance(name, str) and name.rsplit("/", 1)[-1].startswith("longhorn") for name in names)


def _longhorn(resource: Resource, plan: Plan) -> Iterator[str]:
    containers = machines(plan, vocabulary.TAG_SERVER, vocabulary.TAG_WORKER)
    if containers and _uses_longhorn(resource):
        yield (
            f"{resource.name} uses Longhorn, and the K3s machines ({names(containers)}) are LXC containers; "
            "allowed are virtual machines."
        )


LONGHORN_NEEDS_KVM: Final = PlanPolicy(
    "longhorn-needs-kvm",
    description="Longhorn is used only where K3s runs in virtual machines.",
    why="Longhorn attaches its volumes through iSCSI, and Linux offers iSCSI only outside of containers: in LXC every "
    "volume stays unattached, even with the kernel module loaded on the host, and no member of the database starts.",
    remedy="Set `postgres.storage.storageClass` to local-path: PostgreSQL itself keeps the copies.",
    severity=Severity.HIGH,
    of=(vocabulary.RELEASE, vocabulary.DATABASE, vocabulary.VOLUME_CLAIM, _STATEFUL_SET),
    check_each=_longhorn,
)

POLICIES: Final = (
    DATABASE_MEMBERS_ON_DIFFERENT_MACHINES,
    DATABASE_MEMBERS_FIT_MACHINES,
    K3S_SERVERS_ON_DIFFERENT_HOSTS,
    K3S_MACHINES_ACROSS_HOSTS,
    DATASTORE_APART_FROM_K3S_SERVERS,
    API_LOAD_BALANCERS_ON_DIFFERENT_HOSTS,
    LONGHORN_NEEDS_KVM,
)
