"""Two TCP balancers for the Kubernetes API and the one address they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import jinja2
import pulumi

from components.remote import HOSTS_FOLDER, Host, run_script

MAX_FAILS: Final = 2
"""Failed connections before a K3s server is left out."""
FAIL_TIMEOUT_SECONDS: Final = 10
"""How long it is left out before it is tried again."""
CONNECT_TIMEOUT_SECONDS: Final = 1
"""A server in the same network answers in milliseconds or not at all."""
SESSION_TIMEOUT_HOURS: Final = 24
"""How long a quiet connection (a watch, a shell) is kept."""
ADVERTISEMENT_SECONDS: Final = 0.3
"""VRRP interval. A balancer that dies is replaced after 3 intervals plus a skew below one: about 1.2 s."""

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(HOSTS_FOLDER),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    autoescape=False,
)


def nginx_configuration(server_addresses: Sequence[str]) -> str:
    """The whole ``nginx.conf`` that balances TCP port 6443 over the K3s servers."""
    return _TEMPLATES.get_template("nginx.conf.j2").render(
        servers=server_addresses,
        max_fails=MAX_FAILS,
        fail_timeout_seconds=FAIL_TIMEOUT_SECONDS,
        connect_timeout_seconds=CONNECT_TIMEOUT_SECONDS,
        session_timeout_hours=SESSION_TIMEOUT_HOURS,
    )


def keepalived_configuration(
    *,
    own_address: str,
    peer_addresses: Sequence[str],
    virtual_address: str,
    prefix_length: int,
    virtual_router_id: int,
    priority: int,
) -> str:
    """The whole ``keepalived.conf`` of one balancer; at the start the highest priority holds the virtual address."""
    return _TEMPLATES.get_template("keepalived.conf.j2").render(
        own_address=own_address,
        peer_addresses=peer_addresses,
        virtual_address=virtual_address,
        prefix_length=prefix_length,
        virtual_router_id=virtual_router_id,
        priority=priority,
        advertisement_seconds=ADVERTISEMENT_SECONDS,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiLoadBalancerArgs:
    """Inputs of :class:`ApiLoadBalancer`."""

    hosts: Sequence[Host]
    """The balancers; the first holds the virtual address to begin with. At least two."""
    server_addresses: Sequence[str]
    """IPv4 addresses of the K3s servers."""
    virtual_address: str
    """IPv4 address that the balancers share; everybody reaches the API there."""
    prefix_length: int
    """Prefix length of the network."""
    virtual_router_id: int
    """VRRP group (1..255); another group in the same network needs another number."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for fewer than two balancers: one would be the single point whose failure ends the API."""
        if len(self.hosts) < 2:
            raise ValueError(
                "ApiLoadBalancer needs at least two hosts: a single balancer is a single point of failure."
            )


class ApiLoadBalancer(pulumi.ComponentResource):
    """nginx (TCP, no TLS of its own) on every balancer, and keepalived holding one virtual address.

    Balances only the Kubernetes API. The databases are reached through MetalLB's addresses.
    """

    endpoint: str
    """URL of the Kubernetes API at the virtual address."""
    addresses: Sequence[str]
    """IPv4 addresses of the balancers' own machines."""
    server_addresses: Sequence[str]
    """IPv4 addresses of the K3s servers that they forward to."""

    def __init__(self, name: str, args: ApiLoadBalancerArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("school:index:ApiLoadBalancer", name, {"virtualAddress": args.virtual_address}, opts)
        self.endpoint = f"https://{args.virtual_address}:6443"
        self.addresses = [host.address for host in args.hosts]
        self.server_addresses = list(args.server_addresses)
        for position, host in enumerate(args.hosts):
            run_script(
                f"{name}-{host.name}",
                host,
                "api-load-balancer.sh",
                parent=self,
                variables={
                    "nginx_configuration": nginx_configuration(args.server_addresses),
                    "keepalived_configuration": keepalived_configuration(
                        own_address=host.address,
                        peer_addresses=[other.address for other in args.hosts if other is not host],
                        virtual_address=args.virtual_address,
                        prefix_length=args.prefix_length,
                        virtual_router_id=args.virtual_router_id,
                        priority=200 - 10 * position,
                    ),
                },
                timeout_seconds=600,
            )
        self.register_outputs(
            {"endpoint": self.endpoint, "addresses": self.addresses, "server_addresses": self.server_addresses}
        )
