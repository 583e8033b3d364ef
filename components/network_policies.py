"""Who may connect to the pods of the database: nobody but those named here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network
from typing import Any, Final

import pulumi
import pulumi_kubernetes as kubernetes

from components.k3s_control_plane import POD_NETWORK
from components.operators.interface import DatabasePods

POSTGRES_PORT: Final = 5432
NODE_PREFIX_LENGTH: Final = 24
"""Size of each node's part of the pod network: the controller manager's default, which K3s keeps."""

JOB_PODS: Final[Mapping[str, Any]] = {
    "match_expressions": [{"key": "batch.kubernetes.io/job-name", "operator": "Exists"}]
}
"""Pods of any Job: the nightly backup, and one that somebody starts by hand."""


def nodes_own_addresses() -> list[str]:
    """The source address of connections that a node hands on to a pod of another node, for every node there can be.

    A connection to a service address enters at the node that answers for the address. When the pod runs elsewhere, that
    node puts its own address in the pod network in place of the client's: the first one of its part. No pod has it, so
    nothing but nodes is let in. All parts are named since a node made anew may get another one.
    """
    parts = IPv4Network(POD_NETWORK).subnets(new_prefix=NODE_PREFIX_LENGTH)
    return [f"{part.network_address}/32" for part in parts]


def default_deny_spec() -> dict[str, Any]:
    """``spec`` of the policy that closes every pod of the namespace to all connections that no other policy allows."""
    return {"pod_selector": {}, "policy_types": ["Ingress"]}


def members_spec(pods: DatabasePods, allowed_sources: Sequence[str]) -> dict[str, Any]:
    """``spec`` of the policy for the members of the cluster.

    The kubelet's probes need no rule: a pod always accepts connections of its own node.
    """
    both = [POSTGRES_PORT, pods.coordination_port]
    operator = {"match_labels": {"kubernetes.io/metadata.name": pods.operator_namespace}}
    return _ingress(
        pods.member_labels,
        _rule([_pods(pods.member_labels)], both),
        _rule([{"namespace_selector": operator}], both),
        _rule([_pods(pods.pooler_labels), {"pod_selector": dict(JOB_PODS)}], [POSTGRES_PORT]),
        _rule(_through_service_addresses(allowed_sources), [POSTGRES_PORT]),
    )


def poolers_spec(pods: DatabasePods, allowed_sources: Sequence[str]) -> dict[str, Any]:
    """``spec`` of the policy for the poolers."""
    return _ingress(pods.pooler_labels, _rule(_through_service_addresses(allowed_sources), [POSTGRES_PORT]))


def restrict_connections(
    name: str,
    pods: DatabasePods,
    *,
    namespace: pulumi.Output[str],
    allowed_sources: Sequence[str],
    parent: pulumi.Resource,
) -> None:
    """Declare the network policies of the database's namespace as children of ``parent``, named after ``name``.

    One policy holds everything that may reach one kind of pod: a pod is closed from the first policy that names it on, so
    exceptions that came one by one would each be late. ``allowed_sources`` are the networks (CIDR) of the clients.
    """

    def policy(
        suffix: str, spec: Mapping[str, Any], after: Sequence[pulumi.Resource] = ()
    ) -> kubernetes.networking.v1.NetworkPolicy:
        return kubernetes.networking.v1.NetworkPolicy(
            f"{name}-{suffix}",
            metadata={"name": suffix, "namespace": namespace},
            spec=spec,
            opts=pulumi.ResourceOptions(parent=parent, depends_on=after, delete_before_replace=True),
        )

    exceptions = [
        policy("members", members_spec(pods, allowed_sources)),
        policy("poolers", poolers_spec(pods, allowed_sources)),
    ]
    policy("default-deny", default_deny_spec(), after=exceptions)


def _ingress(labels: Mapping[str, str], *rules: Mapping[str, Any]) -> dict[str, Any]:
    return {**_pods(labels), "policy_types": ["Ingress"], "ingress": list(rules)}


def _rule(sources: Sequence[Mapping[str, Any]], ports: Sequence[int]) -> dict[str, Any]:
    return {"from_": list(sources), "ports": [{"protocol": "TCP", "port": port} for port in ports]}


def _pods(labels: Mapping[str, str]) -> dict[str, Any]:
    return {"pod_selector": {"match_labels": dict(labels)}}


def _through_service_addresses(allowed_sources: Sequence[str]) -> list[dict[str, Any]]:
    # The client's own address is seen where the pod runs on the node that answers for the service address.
    return [{"ip_block": {"cidr": cidr}} for cidr in [*allowed_sources, *nodes_own_addresses()]]
