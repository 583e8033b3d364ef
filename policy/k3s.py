"""K3s: one exact release, without the parts that others do better, and with a certificate for the address it is reached at."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from pulumi_policy import Severity

from policy import vocabulary
from policy.addresses import address_of
from policy.resources import Resource, shown
from policy.rule import ResourcePolicy

K3S_VERSION: Final = re.compile(r"v\d+\.\d+\.\d+\+k3s\d+")
BUNDLED_PARTS: Final = ("servicelb", "traefik")
OWN_NETWORK: Final = "127.0.0.0/8"
"""Addresses at which a machine reaches only itself."""


def _k3s_version_exact(control_plane: Resource) -> Iterator[str]:
    version = control_plane.get("version")
    if not isinstance(version, str) or not K3S_VERSION.fullmatch(version):
        yield f"{control_plane.name} has the version {shown(version)}; allowed is one exact release such as v1.36.3+k3s1."


K3S_VERSION_EXACT: Final = ResourcePolicy(
    "k3s-version-exact",
    of=(vocabulary.CONTROL_PLANE_COMPONENT,),
    description="All K3s machines run one exact release.",
    why="A channel such as stable gives machines that are set up on different days different releases; servers of different "
    "age then write to one datastore.",
    remedy="Set `kubernetes.version`, `kubernetes.binaryUrl` and `kubernetes.binarySha256` to those of one release.",
    severity=Severity.HIGH,
    check=_k3s_version_exact,
)


def _bundled_parts_off(control_plane: Resource) -> Iterator[str]:
    off = control_plane.list("serverSettings", "disable")
    for part in BUNDLED_PARTS:
        if part not in off:
            yield f"{control_plane.name} does not disable {part}; allowed is disable: [{', '.join(BUNDLED_PARTS)}]."


K3S_BUNDLED_PARTS_OFF: Final = ResourcePolicy(
    "k3s-bundled-parts-off",
    of=(vocabulary.CONTROL_PLANE_COMPONENT,),
    description="K3s's own load balancer and web proxy are off.",
    why="K3s's ServiceLB and MetalLB would both write the address of a service, and take turns for ever. Traefik would take an "
    "address of the pool that is kept for the database.",
    remedy="Keep servicelb and traefik in the setting disable in components/k3s_control_plane.py.",
    severity=Severity.HIGH,
    check=_bundled_parts_off,
)


def _certificate_names_address(control_plane: Resource) -> Iterator[str]:
    names = control_plane.list("serverSettings", "tls-san")
    if not any(address_of(name) for name in names):
        yield (
            f"{control_plane.name} has a certificate for {', '.join(map(str, names)) or 'no further name'}; "
            "allowed is `tls-san` with the address of the balancers."
        )


K3S_CERTIFICATE_NAMES_ADDRESS: Final = ResourcePolicy(
    "k3s-certificate-names-address",
    of=(vocabulary.CONTROL_PLANE_COMPONENT,),
    description="The certificate of the Kubernetes API names the address at which the balancers answer.",
    why="By itself K3s writes only the addresses of its servers into the certificate. Workers, `kubectl` and this program come "
    "through the balancers, compare the address they called with the certificate, and refuse the connection.",
    remedy="Keep the virtual address in tls_names where __main__.py makes the K3sControlPlane.",
    severity=Severity.HIGH,
    check=_certificate_names_address,
)


def _node_ports_closed(control_plane: Resource) -> Iterator[str]:
    arguments = control_plane.list("serverSettings", "kube-proxy-arg")
    given = [str(argument).partition("=") for argument in arguments]
    networks = [value for name, _, value in given if name == "nodeport-addresses"]
    # Absent, every address of the machine answers.
    if networks != [OWN_NETWORK]:
        yield f"{control_plane.name} answers node ports at {', '.join(networks) or 'every address'}; allowed is {OWN_NETWORK}."


K3S_NODE_PORTS_CLOSED: Final = ResourcePolicy(
    "k3s-node-ports-closed",
    of=(vocabulary.CONTROL_PLANE_COMPONENT,),
    description="No machine answers for a service at a port of its own.",
    why="Kubernetes opens such a port on every machine for each service address. It knows no source ranges, and whoever comes "
    "through it looks like a machine to the network policies: everybody who reaches a machine reaches the database.",
    remedy=f"Keep nodeport-addresses={OWN_NETWORK} in kube-proxy-arg in components/k3s_control_plane.py.",
    severity=Severity.HIGH,
    check=_node_ports_closed,
)


def _network_policies_kept(control_plane: Resource) -> Iterator[str]:
    value = control_plane.get("serverSettings", "disable-network-policy")
    # Absent is safe: K3s's own controller is on.
    if value not in (None, False):
        yield f"{control_plane.name} has `disable-network-policy` {shown(value)}; allowed is false."


K3S_NETWORK_POLICIES_KEPT: Final = ResourcePolicy(
    "k3s-network-policies-kept",
    of=(vocabulary.CONTROL_PLANE_COMPONENT,),
    description="K3s enforces network policies.",
    why="Without its controller Kubernetes takes every NetworkPolicy, shows it, and lets everything through: each pod reaches "
    "the database.",
    remedy="Remove disable-network-policy in `server_settings` of components/k3s_control_plane.py.",
    severity=Severity.CRITICAL,
    check=_network_policies_kept,
)

_ASKED_FOR_RIGHTS: Final = ("kube-apiserver-arg", "kubelet-arg")
_LETS_EVERYBODY: Final = "AlwaysAllow"


def _rights_asked_for(control_plane: Resource) -> Iterator[str]:
    for setting in _ASKED_FOR_RIGHTS:
        # Absent is safe: K3s asks for rights at both.
        given = control_plane.get("serverSettings", setting)
        arguments = [given] if isinstance(given, str) else control_plane.list("serverSettings", setting)
        for name, _, value in (str(argument).lstrip("-").partition("=") for argument in arguments):
            if name == "authorization-mode" and _LETS_EVERYBODY in value:
                yield f"{control_plane.name} has authorization-mode={_LETS_EVERYBODY} in `{setting}`; allowed is Node,RBAC."


K3S_RIGHTS_ASKED_FOR: Final = ResourcePolicy(
    "k3s-rights-asked-for",
    of=(vocabulary.CONTROL_PLANE_COMPONENT,),
    description="The Kubernetes API and the kubelets ask everybody for rights.",
    why="Otherwise every pod that has a token, and everybody who has any certificate of the cluster, is its administrator: "
    "roles are still there, and mean nothing.",
    remedy="Remove authorization-mode in `server_settings` of components/k3s_control_plane.py.",
    severity=Severity.CRITICAL,
    check=_rights_asked_for,
)

POLICIES: Final = (
    K3S_VERSION_EXACT,
    K3S_BUNDLED_PARTS_OFF,
    K3S_CERTIFICATE_NAMES_ADDRESS,
    K3S_NODE_PORTS_CLOSED,
    K3S_NETWORK_POLICIES_KEPT,
    K3S_RIGHTS_ASKED_FOR,
)
