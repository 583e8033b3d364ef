"""Availability, third part: a machine does what its tags say. Policies that count and place machines believe the tags."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network
from typing import Final, NamedTuple

from pulumi_policy import Severity

from policy import vocabulary
from policy.addresses import interface_of, machine_networks, network_of
from policy.machines import machines
from policy.resources import Machine, Plan, Resource
from policy.rule import PlanPolicy, ResourcePolicy

SHARE_COMPONENT: Final = "school:index:FileShare"

ROLE_TAGS: Final = (
    vocabulary.TAG_SERVER,
    vocabulary.TAG_WORKER,
    vocabulary.TAG_DATASTORE,
    vocabulary.TAG_BALANCER,
    vocabulary.TAG_SHARE,
)
"""The tags that say what a machine does. Any other one says who owns it."""


class _Task(NamedTuple):
    """What a component runs, and the tag of the machines it runs it on."""

    what: str
    output: str
    """Output of the component with the addresses of those machines: a list, or one."""
    tag: str


_TASKS: Final = {
    vocabulary.CONTROL_PLANE_COMPONENT: (
        _Task("K3s servers", "server_addresses", vocabulary.TAG_SERVER),
        _Task("K3s workers", "worker_addresses", vocabulary.TAG_WORKER),
    ),
    vocabulary.DATASTORE_COMPONENT: (_Task("the datastore", "address", vocabulary.TAG_DATASTORE),),
    vocabulary.BALANCER_COMPONENT: (_Task("balancers", "addresses", vocabulary.TAG_BALANCER),),
    SHARE_COMPONENT: (_Task("the file share", "server", vocabulary.TAG_SHARE),),
}


def _listed(component: Resource, output: str) -> set[str]:
    """The addresses of an output; a single one is a list of one."""
    found = component.get(output)
    return {found} if isinstance(found, str) else {str(address) for address in component.list(output)}


def _address(machine: Machine) -> str:
    """Its IPv4 address; its name where it has no fixed one, which no component can be told."""
    interface = interface_of(machine)
    return str(interface.ip) if interface else machine.name


def _named(plan: Plan, addresses: set[str]) -> str:
    """Machines by name for a sentence; an address that no machine has stands for itself."""
    known = {_address(machine): machine.name for machine in machines(plan)}
    inside = [name for address, name in known.items() if address in addresses]
    return ", ".join([*inside, *sorted(addresses - set(known))]) or "no machine"


# --- tags


def _has_role(container: Resource) -> Iterator[str]:
    machine = Machine(container)
    if not any(machine.has(tag) for tag in ROLE_TAGS):
        carried = ", ".join(map(str, machine.tags)) or "none"
        yield f"{machine.name} has the tags {carried}; allowed is at least one of {', '.join(ROLE_TAGS)}."


MACHINE_HAS_ROLE: Final = ResourcePolicy(
    "machine-has-role",
    of=(vocabulary.CONTAINER,),
    description="Every machine carries a tag that says what it does.",
    why="Policies about the number and the place of machines find them by these tags. One without any is overlooked by "
    "all of them, whatever runs on it.",
    remedy="Give it at least one of the `roles` in `machines`, and hand them on as `tags` in __main__.py.",
    severity=Severity.HIGH,
    check=_has_role,
)


def _as_tagged(component: Resource, plan: Plan) -> Iterator[str]:
    for what, output, tag in _TASKS[component.type]:
        tagged = {_address(machine) for machine in machines(plan, tag)}
        used = _listed(component, output)
        if used != tagged:
            yield (
                f"{component.name} runs {what} on {_named(plan, used)}, and the tag {tag} is on {_named(plan, tagged)}; "
                "allowed are the same machines."
            )


MACHINE_RUNS_ITS_ROLES: Final = PlanPolicy(
    "machine-runs-its-roles",
    description="K3s, datastore, balancers and file share run on exactly the machines that carry their tag.",
    why="A tag alone starts nothing. Two machines called balancers are no redundancy when nginx runs on one of them, and "
    "a datastore that runs on a machine of another role is lost together with what nobody expected.",
    remedy="Choose a component's hosts in __main__.py with `with_role`, by the role whose tag the machines carry.",
    severity=Severity.CRITICAL,
    of=tuple(_TASKS),
    check_each=_as_tagged,
)

# --- what they do for each other


def _forwards(balancer: Resource, plan: Plan) -> Iterator[str]:
    servers = {_address(machine) for machine in machines(plan, vocabulary.TAG_SERVER)}
    reached = _listed(balancer, "server_addresses")
    if reached != servers:
        yield (
            f"{balancer.name} forwards to {_named(plan, reached)}, and the K3s servers are {_named(plan, servers)}; "
            "allowed are all of them and no other."
        )


API_LOAD_BALANCERS_REACH_EVERY_SERVER: Final = PlanPolicy(
    "api-load-balancers-reach-every-server",
    description="The balancers of the Kubernetes API forward to every K3s server, and to nothing else.",
    why="A server that no balancer knows takes over from nobody: with the other one lost, the API is away although a "
    "server is well. To a machine that is none, every second connection is sent in vain.",
    remedy="Give `ApiLoadBalancerArgs` the addresses of all machines with the role k3s-server in __main__.py.",
    severity=Severity.CRITICAL,
    of=(vocabulary.BALANCER_COMPONENT,),
    check_each=_forwards,
)


def _share_closed(share: Resource, plan: Plan) -> Iterator[str]:
    server = share.get("server")
    carriers = [machine.name for machine in machines(plan) if machine.runs_kubernetes and _address(machine) == server]
    if carriers:
        yield f"{share.name} is on {', '.join(carriers)}, which runs pods; allowed is a machine that runs none."
    allowed = network_of(share.get("allowed_network"))
    own = machine_networks(plan)
    inside = isinstance(allowed, IPv4Network) and any(allowed.subnet_of(network) for network in own)
    if not inside:
        yield (
            f"{share.name} admits {allowed or 'no network that can be read'}; allowed is the machines' network "
            f"({', '.join(map(str, own)) or 'none'}) or a part of it."
        )


FILE_SHARE_CLOSED: Final = PlanPolicy(
    "file-share-closed",
    description="The share of the backups is on a machine without pods, and admits the machines' network only.",
    why="Who reaches the share has only one password between himself and all data of the school, and may delete every "
    "backup. A pod that breaks out of its container is already there if the files lie on its machine, which is lost "
    "together with a member of the database as well.",
    remedy="Give a machine without k3s-server and k3s-worker the role file-share, and pass `network.cidr` as "
    "`allowed_network` in __main__.py.",
    severity=Severity.HIGH,
    of=(SHARE_COMPONENT,),
    check_each=_share_closed,
)

POLICIES: Final = (
    MACHINE_HAS_ROLE,
    MACHINE_RUNS_ITS_ROLES,
    API_LOAD_BALANCERS_REACH_EVERY_SERVER,
    FILE_SHARE_CLOSED,
)
