"""Addresses of the school's network for services of the cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import pulumi
import pulumi_kubernetes as kubernetes

from components.charts import install_chart
from versions import METALLB

NAMESPACE: Final = "metallb-system"
MOVE_AWAY_SECONDS: Final = 10
"""How long the controller stays on a node that is gone; while it is away no new address is handed out."""


def move_away_tolerations(seconds: int) -> list[dict[str, Any]]:
    """Tolerations with which a pod leaves a dead node after ``seconds`` instead of Kubernetes' 300."""
    return [
        {
            "key": f"node.kubernetes.io/{condition}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": seconds,
        }
        for condition in ("unreachable", "not-ready")
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class MetalLbPoolArgs:
    """Inputs of :class:`MetalLbPool`."""

    addresses: str
    """Range of the pool, ``first-last``. Must be in the machines' network, outside the DHCP range, used by nobody."""
    helm_repository: str | None
    """Chart repository used instead of the upstream one. None: upstream."""


class MetalLbPool(pulumi.ComponentResource):
    """MetalLB in layer-2 mode with one pool: one node answers ARP for a service's address, another takes over in seconds.

    Only services that ask for an address by name get one (``autoAssign`` is off), so the addresses applications connect to
    never depend on the order in which services were made.
    """

    pool_name: pulumi.Output[str]
    """Name of the pool, for the annotation ``metallb.io/address-pool``."""

    def __init__(self, name: str, args: MetalLbPoolArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("school:index:MetalLbPool", name, {"addresses": args.addresses}, opts)
        chart = install_chart(
            name,
            METALLB,
            parent=self,
            namespace=NAMESPACE,
            helm_repository=args.helm_repository,
            values={
                # FRR speaks BGP; layer 2 needs none of it.
                "frrk8s": {"enabled": False},
                "speaker": {"frr": {"enabled": False}},
                "controller": {"tolerations": move_away_tolerations(MOVE_AWAY_SECONDS)},
                # The webhook answers a little later than its pod is ready. What it would check, settings/ has checked.
                "crds": {"validationFailurePolicy": "Ignore"},
            },
        )
        pool = kubernetes.apiextensions.CustomResource(
            f"{name}-pool",
            api_version="metallb.io/v1beta1",
            kind="IPAddressPool",
            metadata={"name": name, "namespace": NAMESPACE},
            spec={"addresses": [args.addresses], "autoAssign": False, "avoidBuggyIPs": True},
            # The chart brings the kind; no value of it names that.
            opts=pulumi.ResourceOptions(parent=self, depends_on=[chart], delete_before_replace=True),
        )
        # Comes when the pool is there, and is known in a preview before that: policies can read what depends on it.
        self.pool_name = pool.urn.apply(lambda _: name)
        kubernetes.apiextensions.CustomResource(
            f"{name}-advertisement",
            api_version="metallb.io/v1beta1",
            kind="L2Advertisement",
            metadata={"name": name, "namespace": NAMESPACE},
            # Without it the pool hands out addresses that nobody answers for.
            spec={"ipAddressPools": [self.pool_name]},
            opts=pulumi.ResourceOptions(parent=self, delete_before_replace=True),
        )
        self.register_outputs({"pool_name": self.pool_name})
