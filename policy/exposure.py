"""Network, third part: who may connect."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from ipaddress import IPv6Network
from typing import Any, Final

from pulumi_policy import Severity

from policy import vocabulary
from policy.addresses import machine_networks, network_of, range_of, size_of
from policy.resources import Plan, Resource, dig
from policy.rule import PlanPolicy, ResourcePolicy

# --- Services


def _sources(resource: Resource, plan: Plan) -> Iterator[str]:
    if resource.type == vocabulary.DATABASE:
        # Left out, the operator lets nobody in.
        yield from _too_wide(resource.name, resource.list("spec", "allowedSourceRanges"), plan)
        return
    # Of any type: Kubernetes takes what is sent to such an address, and asks nobody whose it is.
    external = resource.list("spec", "externalIPs")
    if external:
        yield f"{resource.name} has `externalIPs` ({', '.join(map(str, external))}); allowed are addresses of the pool only."
    kind = resource.get("spec", "type")
    if kind == "NodePort":
        yield f"{resource.name} is of type NodePort: every machine opens it to everybody; allowed are ClusterIP and LoadBalancer."
    elif kind == "LoadBalancer":
        ranges = resource.list("spec", "loadBalancerSourceRanges")
        if not ranges:
            yield f"{resource.name} has no `loadBalancerSourceRanges`: everybody may connect; allowed are networks of the school."
        yield from _too_wide(resource.name, ranges, plan)


def _too_wide(name: str, ranges: Sequence[Any], plan: Plan) -> Iterator[str]:
    own = machine_networks(plan)
    narrowest = max((network.prefixlen for network in own), default=32)
    for text in map(str, ranges):
        network = network_of(text)
        if network is None:
            yield f"{name} admits {text}, which is no network; allowed is one such as 10.0.145.0/24."
        elif isinstance(network, IPv6Network) or network.prefixlen < narrowest:
            yield f"{name} admits {network}; allowed are networks no wider than the machines' own (/{narrowest})."
        elif not network.is_private and not any(network.subnet_of(mine) for mine in own):
            yield f"{name} admits {network}, a network of the internet; allowed are private networks, and the machines' own."


SERVICE_SOURCES_LIMITED: Final = PlanPolicy(
    "service-sources-limited",
    description="A Service that is reached from outside of the cluster admits networks of the school only.",
    why="What everybody may connect to is guarded by its passwords alone, from every pupil's computer, and from the "
    "internet if the router lets it through. A port of every machine (NodePort) cannot be limited at all.",
    remedy="List the school's networks the applications are in, one by one, in `postgres.allowedSources`.",
    severity=Severity.HIGH,
    of=(vocabulary.SERVICE, vocabulary.DATABASE),
    check_each=_sources,
)

# --- namespaces


def _selects_all(selector: Any) -> bool:
    """Whether a selector of Kubernetes asks for nothing, which stands for everything."""
    return not dig(selector, "matchLabels") and not dig(selector, "matchExpressions")


def _is_about_every_pod(rules: Resource) -> bool:
    """Whether a NetworkPolicy says who may connect to any pod of its namespace."""
    kinds = rules.list("spec", "policyTypes")
    # Left out, a NetworkPolicy is about ingress.
    return ("Ingress" in kinds or not kinds) and _selects_all(rules.get("spec", "podSelector"))


def _is_everybody(peer: Any) -> bool:
    """Whether a peer of a NetworkPolicy stands for all addresses, or for every pod of the cluster."""
    network = network_of(dig(peer, "ipBlock", "cidr"))
    if network is not None:
        return network.prefixlen == 0
    namespaces = dig(peer, "namespaceSelector")
    return namespaces is not None and _selects_all(namespaces) and _selects_all(dig(peer, "podSelector"))


def _lets_everybody_in(rules: Resource) -> bool:
    """Whether one of its rules names nobody, which means everybody, or somebody who is everybody."""
    for rule in rules.list("spec", "ingress"):
        peers = dig(rule, "from")
        if not peers or any(_is_everybody(peer) for peer in peers):
            return True
    return False


def _default_deny(namespace: Resource, plan: Plan) -> Iterator[str]:
    name = namespace.get("metadata", "name")
    every_pod = [
        rules
        for rules in plan.of((vocabulary.NETWORK_POLICY,))
        if rules.get("metadata", "namespace") == name and _is_about_every_pod(rules)
    ]
    if all(rules.list("spec", "ingress") for rules in every_pod):
        yield f"{namespace.name} has no NetworkPolicy that denies all ingress by default; allowed is a namespace with one."
    # What one of them allows no other one can take back.
    opened = [rules.name for rules in every_pod if _lets_everybody_in(rules)]
    if opened:
        yield f"{namespace.name} lets everybody reach every pod ({', '.join(opened)}); allowed are rules that name somebody."


NAMESPACE_DEFAULT_DENY: Final = PlanPolicy(
    "namespace-default-deny",
    description="In every namespace a pod is reached only by whom a rule names.",
    why="Without such a rule every pod of the cluster reaches every other: one application that is broken into "
    "reaches the database's pods, past the addresses and the sources they are limited to.",
    remedy="Add a NetworkPolicy with an empty podSelector, the policy type Ingress and no rules beside the namespace, and "
    "none that lets everybody in.",
    severity=Severity.HIGH,
    of=(vocabulary.NAMESPACE,),
    check_each=_default_deny,
)

# --- Proxmox's firewall

FIREWALL_RULES: Final = "proxmoxve:firewall/rulesLegacy:RulesLegacy"

GUARDED_PORTS: Final = {
    22: "SSH",
    445: "the backup share",
    2379: "etcd",
    2380: "etcd",
    5432: "PostgreSQL",
    6432: "PgBouncer",
    6443: "the Kubernetes API",
    8006: "the Proxmox API",
}
"""What nobody outside of the school may reach, and few inside of it."""

_NAMED_PORTS: Final = {"ssh": 22, "microsoft-ds": 445, "etcd-client": 2379, "etcd-server": 2380, "postgresql": 5432}
"""Names of /etc/services for some of them."""
_MACRO_PORTS: Final = {"SSH": 22, "SMB": 445, "PostgreSQL": 5432}
"""Proxmox's own names for rules about some of them."""
_GREATEST_PRIVATE_NETWORK: Final = 2**24
"""Addresses of 10.0.0.0/8. A source that has more is no school."""
_GREATEST_PRIVATE_IPV6_PREFIX: Final = 7
"""That of fc00::/7, the same for IPv6."""


def _is_world(source: Any) -> bool:
    """Whether a rule's source is everybody. A set or an alias of Proxmox (a name) stands for chosen addresses."""
    if not isinstance(source, str) or not source.strip():
        return True
    for part in source.split(","):
        network, span = network_of(part), range_of(part)
        if isinstance(network, IPv6Network) and network.prefixlen < _GREATEST_PRIVATE_IPV6_PREFIX:
            return True
        if span is not None and size_of(span) > _GREATEST_PRIVATE_NETWORK:
            return True
    return False


def _covers(rule: Any, port: int) -> bool:
    """Whether a rule is about a TCP port. Ports are numbers, names or ``first:last``, separated by commas; none is all."""
    if str(dig(rule, "proto") or "tcp").lower() not in ("tcp", "6"):
        return False
    macro = dig(rule, "macro")
    if macro is not None:
        return _MACRO_PORTS.get(macro) == port
    ports = dig(rule, "dport")
    if not isinstance(ports, str) or not ports.strip():
        return True
    for part in ports.replace(" ", "").split(","):
        if _NAMED_PORTS.get(part) == port:
            return True
        found = re.fullmatch(r"(\d+)(?::(\d+))?", part)
        if found and int(found[1]) <= port <= int(found[2] or found[1]):
            return True
    return False


def _open_to_the_world(rules: Resource) -> Iterator[str]:
    for position, rule in enumerate(rules.list("rules")):
        # Rules are in force unless they are switched off.
        if dig(rule, "action") != "ACCEPT" or dig(rule, "enabled") is False or dig(rule, "type") == "out":
            continue
        reached = [what for port, what in GUARDED_PORTS.items() if _covers(rule, port)]
        if reached and _is_world(dig(rule, "source")):
            names = ", ".join(dict.fromkeys(reached))
            yield f"{rules.name} lets everybody reach {names} (rule {position}); allowed is a rule with a source."


FIREWALL_NO_WORLD_OPEN_PORT: Final = ResourcePolicy(
    "firewall-no-world-open-port",
    of=(FIREWALL_RULES,),
    description="No rule of Proxmox's firewall opens SSH, a database or an API to everybody.",
    why="Such a rule is written in a hurry to see whether the firewall is to blame, and stays. From then on the "
    "password or the certificate behind the port is all there is.",
    remedy="Give the rule a `source`, such as the network of the administrators.",
    severity=Severity.CRITICAL,
    check=_open_to_the_world,
)

POLICIES: Final = (SERVICE_SOURCES_LIMITED, NAMESPACE_DEFAULT_DENY, FIREWALL_NO_WORLD_OPEN_PORT)
