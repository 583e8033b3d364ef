"""Network, second part: which address each Service of type LoadBalancer has.

The operator makes Services of its own from the database object, and gives a pooler's the annotations of the database's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from pulumi_policy import Severity

from policy import vocabulary
from policy.addresses import address_of, listed, pool_ranges, taken_by_api, taken_by_machines
from policy.resources import Plan, Resource, dig
from policy.rule import PlanPolicy
from policy.zalando import has_primary_pooler, has_replica_pooler, operator_value

_ADDRESS_ANNOTATIONS: Final = ("metallb.io/loadBalancerIPs", "metallb.universe.tf/loadBalancerIPs")
_POOL_ANNOTATIONS: Final = ("metallb.io/address-pool", "metallb.universe.tf/address-pool")
"""Today's name, and the one that MetalLB still reads."""


@dataclass(frozen=True, slots=True)
class LoadBalancer:
    """A Service that MetalLB gives an address to."""

    owner: str
    """Which one, in words."""
    addresses: Sequence[str]
    """Addresses it asks for; empty: it takes what it is given."""
    pool: str | None
    """Name of the pool it asks for; None: any."""


class _DatabaseService(NamedTuple):
    """What decides about one of the operator's Services."""

    what: str
    is_pooler: bool
    switch: str
    common_switch: str
    annotations: str


_DATABASE_SERVICES: Final = (
    _DatabaseService(
        "primary", False, "enableMasterLoadBalancer", "enable_master_load_balancer", "masterServiceAnnotations"
    ),
    _DatabaseService(
        "replicas", False, "enableReplicaLoadBalancer", "enable_replica_load_balancer", "replicaServiceAnnotations"
    ),
    _DatabaseService(
        "primary's pooler",
        True,
        "enableMasterPoolerLoadBalancer",
        "enable_master_pooler_load_balancer",
        "masterServiceAnnotations",
    ),
    _DatabaseService(
        "replicas' pooler",
        True,
        "enableReplicaPoolerLoadBalancer",
        "enable_replica_pooler_load_balancer",
        "replicaServiceAnnotations",
    ),
)


def _annotation(annotations: Sequence[Any], names: Sequence[str]) -> str | None:
    """The first annotation of these names that one of the maps has; the maps are asked in order."""
    for having in annotations:
        for name in names:
            found = dig(having, name)
            if isinstance(found, str):
                return found
    return None


def _load_balancer(owner: str, *annotations: Any, also: Any = None) -> LoadBalancer:
    wanted = _annotation(annotations, _ADDRESS_ANNOTATIONS) or (also if isinstance(also, str) else "")
    addresses = [text.strip() for text in wanted.split(",") if text.strip()]
    return LoadBalancer(owner, addresses, _annotation(annotations, _POOL_ANNOTATIONS))


def load_balancers(resource: Resource, plan: Plan) -> Iterator[LoadBalancer]:
    """The Services of type LoadBalancer that a Service object or a database stands for."""
    if resource.type == vocabulary.SERVICE:
        if resource.get("spec", "type") == "LoadBalancer":
            annotations = resource.get("metadata", "annotations")
            yield _load_balancer(resource.name, annotations, also=resource.get("spec", "loadBalancerIP"))
        return
    poolers = {"masterServiceAnnotations": has_primary_pooler, "replicaServiceAnnotations": has_replica_pooler}
    for service in _DATABASE_SERVICES:
        if service.is_pooler and not poolers[service.annotations](resource):
            continue
        switch = resource.get("spec", service.switch)
        # The chart's default is no.
        if switch is True or (
            switch is None and operator_value(plan, "configLoadBalancer", service.common_switch) is True
        ):
            yield _load_balancer(
                f"{resource.name} (its {service.what})",
                resource.get("spec", service.annotations),
                resource.get("spec", "serviceAnnotations"),
            )


_WITH_SERVICES: Final = (vocabulary.SERVICE, vocabulary.DATABASE)


def _fixed(resource: Resource, plan: Plan) -> Iterator[str]:
    for service in load_balancers(resource, plan):
        if not service.addresses:
            yield f"{service.owner} asks for no address; allowed is one of the pool, in `{_ADDRESS_ANNOTATIONS[0]}`."


SERVICE_ADDRESS_FIXED: Final = PlanPolicy(
    "service-address-fixed",
    description="Every Service of type LoadBalancer asks for its address by name.",
    why="An address that is drawn is another one after the Service was made anew, and every application still has the "
    "old one. From a reserved pool it gets none at all, and stays pending.",
    remedy="Give it the annotation metallb.io/loadBalancerIPs, as components/operators/zalando.py does from "
    "`postgres.addresses`.",
    severity=Severity.HIGH,
    of=_WITH_SERVICES,
    check_each=_fixed,
)


def _in_pool(resource: Resource, plan: Plan) -> Iterator[str]:
    for service in load_balancers(resource, plan):
        pools = [
            pool
            for pool in plan.of((vocabulary.ADDRESS_POOL,))
            if service.pool is None or pool.get("metadata", "name") == service.pool
        ]
        spans = [span for pool in pools for span in pool_ranges(pool)]
        offered = ", ".join(map(str, spans)) or "none"
        which = "the plan's pools" if service.pool is None else f"the pool {service.pool}"
        for text in service.addresses:
            address = address_of(text)
            if address is None or not any(address in span for span in spans):
                yield f"{service.owner} asks for the address {text}; allowed are those of {which} ({offered})."


SERVICE_ADDRESS_IN_POOL: Final = PlanPolicy(
    "service-address-in-pool",
    description="The address of a Service is one of the pool it takes it from.",
    why="MetalLB refuses any other: the Service stays pending without an address, and the update ends as if all were "
    "well.",
    remedy="Choose `postgres.addresses` from `network.servicePool`.",
    severity=Severity.HIGH,
    of=_WITH_SERVICES,
    check_each=_in_pool,
)


def _once(plan: Plan) -> Iterator[str]:
    holders: dict[str, str] = {}
    taken = [*taken_by_machines(plan), *taken_by_api(plan)]
    for resource in sorted(plan.of(_WITH_SERVICES), key=lambda resource: resource.name):
        for service in load_balancers(resource, plan):
            for text in service.addresses:
                other = holders.setdefault(text, service.owner)
                if other != service.owner:
                    yield f"{service.owner} asks for the address {text}, and so does {other}; allowed is an address of its own."
                same = [one for one in taken if one.address == address_of(text)]
                if same:
                    yield f"{service.owner} asks for the address of {listed(same)}; allowed is an address of its own."


SERVICE_ADDRESS_ONCE: Final = PlanPolicy(
    "service-address-once",
    description="No two Services have the same address, and none has that of a machine.",
    why="MetalLB gives an address to the first Service that asks; the other stays pending. The operator copies the "
    "annotations of the database's Service to its pooler's, so one address may be asked for twice without being "
    "written twice.",
    remedy="Write three different addresses into `postgres.addresses`, and leave the load balancers of the operator's "
    "poolers off.",
    severity=Severity.HIGH,
    check=_once,
)

POLICIES: Final = (SERVICE_ADDRESS_FIXED, SERVICE_ADDRESS_IN_POOL, SERVICE_ADDRESS_ONCE)
