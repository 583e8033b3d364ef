"""Network: each policy passes, fails, does not take absence for consent, and waits for what is not known yet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from policy import exposure, network, service_addresses, stack_file, vocabulary
from settings import NAMESPACE
from tests.policy.cases import (
    AnyPolicy,
    Change,
    adding,
    assert_refused,
    changed,
    copy_of,
    left_open,
    names_of,
    output,
    said,
    setting,
    unknown,
    without,
)
from tests.policy.judging import UNKNOWN, Judge, Planned

pytestmark = pytest.mark.unit

POOL, ADVERTISEMENT, DATABASE, SERVICE = (
    "metallb-pool",
    "metallb-advertisement",
    "postgres-cluster",
    "postgres-pooler-address",
)
OPERATOR = "postgres-operator-chart"
IPS = "metallb.io/loadBalancerIPs"
IN_POOL = "metallb.io/address-pool"
DHCP_RANGE = "10.0.145.200-10.0.145.254"


@pytest.fixture(autouse=True)
def stack_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the school's stack file, of which only the range of the DHCP server matters here."""
    monkeypatch.setattr(stack_file, "PROJECT", tmp_path)
    write_stack_file(tmp_path, {"dhcpRange": DHCP_RANGE})
    yield tmp_path
    stack_file.of_stack.cache_clear()


def write_stack_file(folder: Path, topic: dict[str, str]) -> None:
    """The school's stack file says something else from now on."""
    (folder / "Pulumi.school.yaml").write_text(yaml.safe_dump({"config": {f"{NAMESPACE}:network": topic}}))
    stack_file.of_stack.cache_clear()


def pool(*ranges: Any) -> Change:
    return setting(POOL, "spec", "addresses", to=list(ranges))


def address(machine: str, to: str | None) -> Change:
    return setting(f"{machine}-container", "initialization", "ipConfigs", 0, "ipv4", "address", to=to)


def interface(machine: str, name: str) -> Change:
    return setting(f"{machine}-container", "networkInterfaces", 0, "name", to=name)


def endpoint(to: str | None) -> Change:
    return output("api", "endpoint", to)


def annotated(name: str, *path: str, to: str | None) -> Change:
    return setting(name, *path, IPS, to=to)


def primary(to: str | None) -> Change:
    return annotated(DATABASE, "spec", "masterServiceAnnotations", to=to)


def sources(*ranges: str) -> Change:
    return setting(SERVICE, "spec", "loadBalancerSourceRanges", to=list(ranges))


def rules(*rules: dict[str, Any]) -> Change:
    return adding(Planned(type=exposure.FIREWALL_RULES, name="firewall", properties={"rules": list(rules)}))


ACCEPT = {"type": "in", "action": "ACCEPT", "proto": "tcp"}
SSH = {**ACCEPT, "dport": "22"}

BROKEN: list[tuple[AnyPolicy, list[Change], str]] = [
    (
        network.SERVICE_POOL_INSIDE_NETWORK,
        [pool("10.0.146.10-10.0.146.20")],
        "metallb-pool has the addresses 10.0.146.10-10.0.146.20; allowed is a range inside the machines' network "
        "(10.0.145.0/24), without its first and last address.",
    ),
    (network.SERVICE_POOL_INSIDE_NETWORK, [pool("10.0.145.250-10.0.146.5")], "allowed is a range inside the machines'"),
    (network.SERVICE_POOL_INSIDE_NETWORK, [pool("10.0.145.250-10.0.145.255")], "without its first and last address."),
    (network.SERVICE_POOL_INSIDE_NETWORK, [pool("10.0.145.0/28")], "without its first and last address."),
    (network.SERVICE_POOL_INSIDE_NETWORK, [pool("10.0.145.240/28")], "without its first and last address."),
    (
        network.SERVICE_POOL_INSIDE_NETWORK,
        [pool("10.0.145.149-10.0.145.130")],
        "has the addresses 10.0.145.149-10.0.145.130; allowed are first-last or a network, of IPv4 addresses.",
    ),
    (network.SERVICE_POOL_INSIDE_NETWORK, [pool("fd00::/120")], "allowed are first-last or a network, of IPv4"),
    (network.SERVICE_POOL_INSIDE_NETWORK, [pool(7)], "allowed are first-last or a network, of IPv4 addresses."),
    (network.SERVICE_POOL_INSIDE_NETWORK, [pool()], "metallb-pool has no addresses; allowed is a range"),
    (network.SERVICE_POOL_INSIDE_NETWORK, [setting(POOL, "spec", to=None)], "metallb-pool has no addresses;"),
    (
        network.SERVICE_POOL_INSIDE_NETWORK,
        [pool("10.0.145.1-10.0.145.200", "10.0.145.1-10.0.145.57")],
        "metallb-pool has 257 addresses; allowed are at most 256.",
    ),
    (
        network.SERVICE_POOL_APART_FROM_MACHINES,
        [pool("10.0.145.112-10.0.145.113")],
        "metallb-pool (10.0.145.112-10.0.145.113) holds the machine gl6 (10.0.145.112), the machine gl8 (10.0.145.113); "
        "allowed are addresses that nobody has.",
    ),
    (
        network.SERVICE_POOL_APART_FROM_MACHINES,
        [pool("10.0.145.1-10.0.145.9")],
        "holds a name server (10.0.145.1), the gateway (10.0.145.1); allowed",
    ),
    (
        network.SERVICE_POOL_APART_FROM_MACHINES,
        [pool("10.0.145.116/31")],
        "holds the Kubernetes API (10.0.145.116); allowed",
    ),
    (
        network.SERVICE_POOL_APART_FROM_DHCP,
        [pool("10.0.145.190-10.0.145.200")],
        "metallb-pool (10.0.145.190-10.0.145.200) meets the range of the DHCP server (10.0.145.200-10.0.145.254); "
        "allowed is a range apart from it.",
    ),
    (
        network.SERVICE_POOL_ADVERTISED,
        [setting(ADVERTISEMENT, "spec", "ipAddressPools", to=["another"])],
        "metallb-pool is in no L2Advertisement of its namespace; allowed is a pool that one of them names.",
    ),
    (network.SERVICE_POOL_ADVERTISED, [without(ADVERTISEMENT)], "metallb-pool is in no L2Advertisement"),
    (
        network.SERVICE_POOL_ADVERTISED,
        [setting(ADVERTISEMENT, "metadata", "namespace", to="default")],
        "metallb-pool is in no L2Advertisement",
    ),
    (
        network.SERVICE_POOL_ADVERTISED,
        [setting(ADVERTISEMENT, "spec", to={"ipAddressPoolSelectors": [{"matchLabels": {"for": "others"}}]})],
        "metallb-pool is in no L2Advertisement",
    ),
    (
        network.SERVICE_POOL_ADVERTISED,
        [setting(ADVERTISEMENT, "spec", "nodeSelectors", to=[{"matchLabels": {"kubernetes.io/hostname": "gl2"}}])],
        "metallb-pool is advertised only with `nodeSelectors` or `interfaces` (metallb-advertisement); allowed is an "
        "L2Advertisement without them, for all machines.",
    ),
    (
        network.SERVICE_POOL_ADVERTISED,
        [setting(ADVERTISEMENT, "spec", "interfaces", to=["eth1"])],
        "metallb-pool is advertised only with `nodeSelectors` or `interfaces` (metallb-advertisement);",
    ),
    (
        network.SERVICE_POOL_RESERVED,
        [setting(POOL, "spec", "autoAssign", to=None)],
        "metallb-pool does not set `autoAssign` to false; allowed is false, and the default is true.",
    ),
    (network.SERVICE_POOL_RESERVED, [setting(POOL, "spec", "autoAssign", to=True)], "does not set `autoAssign`"),
    (
        network.MACHINE_ADDRESS_ONCE,
        [address("gl6", "10.0.145.111/24")],
        "gl6 has the address 10.0.145.111, and so has gl3; allowed is an address of its own.",
    ),
    (
        network.MACHINE_ADDRESS_ONCE,
        [address("gl6", "dhcp")],
        "gl6 has no fixed IPv4 address with a prefix; allowed is one such as 10.0.145.110/24.",
    ),
    (network.MACHINE_ADDRESS_ONCE, [address("gl6", None)], "gl6 has no fixed IPv4 address with a prefix;"),
    (network.MACHINE_ADDRESS_ONCE, [address("gl6", "10.0.145.300/24")], "gl6 has no fixed IPv4 address with a prefix;"),
    (
        network.MACHINE_ID_ONCE,
        [setting("gl6-container", "vmId", to=110.0)],
        "gl6 has the id 110, and so has gl2; allowed is an id of its own.",
    ),
    (
        network.MACHINE_NETWORK_COMMON,
        [address("gl6", "10.0.146.112/24")],
        "The machines are in the networks 10.0.145.0/24 and 10.0.146.0/24; allowed is one network for all.",
    ),
    (network.MACHINE_NETWORK_COMMON, [address("gl6", "10.0.145.112/25")], "networks 10.0.145.0/24 and 10.0.145.0/25;"),
    (
        network.MACHINE_INTERFACE_ANNOUNCED,
        [interface("gl2", "veth0")],
        "gl2 has the network interface veth0, which MetalLB leaves out; allowed is a name such as eth0.",
    ),
    (network.MACHINE_INTERFACE_ANNOUNCED, [interface("gl6", "cni0")], "gl6 has the network interface cni0,"),
    (
        network.MACHINE_INTERFACE_ANNOUNCED,
        [setting("gl6-container", "networkInterfaces", to=None)],
        "gl6 has no network interface; allowed is one such as eth0.",
    ),
    (
        network.MACHINE_APART_FROM_DHCP,
        [address("gl6", "10.0.145.254/24")],
        "gl6 has the address 10.0.145.254, which the DHCP server hands out (10.0.145.200-10.0.145.254); "
        "allowed is an address apart from them.",
    ),
    (
        network.API_ADDRESS_APART,
        [endpoint("https://10.0.146.116:6443")],
        "api has the virtual address 10.0.146.116; allowed is one of the machines' network (10.0.145.0/24).",
    ),
    (
        network.API_ADDRESS_APART,
        [endpoint("https://10.0.145.255:6443")],
        "api has the virtual address 10.0.145.255; allowed is one of the machines' network",
    ),
    (
        network.API_ADDRESS_APART,
        [endpoint("https://10.0.145.114:6443")],
        "api has the virtual address 10.0.145.114, and so has the machine gl9; allowed is an address of its own.",
    ),
    (
        network.API_ADDRESS_APART,
        [endpoint("https://10.0.145.1:6443")],
        "and so has a name server, the gateway; allowed is an address of its own.",
    ),
    (
        network.API_ADDRESS_APART,
        [endpoint("https://10.0.145.205:6443")],
        "api has the virtual address 10.0.145.205, which the DHCP server hands out (10.0.145.200-10.0.145.254); allowed",
    ),
    (
        network.API_ADDRESS_APART,
        [endpoint("https://10.0.145.149:6443")],
        "api has the virtual address 10.0.145.149, which metallb-pool may give to a Service; allowed is an address outside",
    ),
    (
        network.API_ADDRESS_APART,
        [endpoint("https://k3s-api:6443")],
        "api has no endpoint https://address:port; allowed is an IPv4 address.",
    ),
    (network.API_ADDRESS_APART, [endpoint(None)], "api has no endpoint https://address:port;"),
    (
        service_addresses.SERVICE_ADDRESS_FIXED,
        [annotated(SERVICE, "metadata", "annotations", to=None)],
        "postgres-pooler-address asks for no address; allowed is one of the pool, in `metallb.io/loadBalancerIPs`.",
    ),
    (
        service_addresses.SERVICE_ADDRESS_FIXED,
        [setting(SERVICE, "metadata", "annotations", to=None)],
        "postgres-pooler-address asks for no address;",
    ),
    (
        service_addresses.SERVICE_ADDRESS_FIXED,
        [primary(" , ")],
        "postgres-cluster (its primary) asks for no address;",
    ),
    (
        service_addresses.SERVICE_ADDRESS_FIXED,
        [setting(DATABASE, "spec", "replicaServiceAnnotations", to=None)],
        "postgres-cluster (its replicas) asks for no address;",
    ),
    (
        service_addresses.SERVICE_ADDRESS_FIXED,
        [
            setting(DATABASE, "spec", "replicaServiceAnnotations", to=None),
            setting(DATABASE, "spec", "enableReplicaLoadBalancer", to=None),
            setting(OPERATOR, "values", "configLoadBalancer", "enable_replica_load_balancer", to=True),
        ],
        "postgres-cluster (its replicas) asks for no address;",
    ),
    (
        service_addresses.SERVICE_ADDRESS_IN_POOL,
        [annotated(SERVICE, "metadata", "annotations", to="10.0.145.150")],
        "postgres-pooler-address asks for the address 10.0.145.150; allowed are those of the pool metallb "
        "(10.0.145.130-10.0.145.149).",
    ),
    (
        service_addresses.SERVICE_ADDRESS_IN_POOL,
        [primary("10.0.145.129")],
        "postgres-cluster (its primary) asks for the address 10.0.145.129; allowed are those of the pool metallb",
    ),
    (service_addresses.SERVICE_ADDRESS_IN_POOL, [primary("database.schule.lan")], "the address database.schule.lan;"),
    (service_addresses.SERVICE_ADDRESS_IN_POOL, [primary("10.0.145.130,fd00::1")], "asks for the address fd00::1;"),
    (
        service_addresses.SERVICE_ADDRESS_IN_POOL,
        [setting(SERVICE, "metadata", "annotations", IN_POOL, to="another")],
        "asks for the address 10.0.145.132; allowed are those of the pool another (none).",
    ),
    (
        service_addresses.SERVICE_ADDRESS_IN_POOL,
        [
            setting(SERVICE, "metadata", "annotations", to=None),
            setting(SERVICE, "spec", "loadBalancerIP", to="10.0.145.150"),
        ],
        "asks for the address 10.0.145.150; allowed are those of the plan's pools (10.0.145.130-10.0.145.149).",
    ),
    (
        service_addresses.SERVICE_ADDRESS_ONCE,
        [annotated(SERVICE, "metadata", "annotations", to="10.0.145.131")],
        "postgres-pooler-address asks for the address 10.0.145.131, and so does postgres-cluster (its replicas); "
        "allowed is an address of its own.",
    ),
    (
        service_addresses.SERVICE_ADDRESS_ONCE,
        [setting(DATABASE, "spec", "enableMasterPoolerLoadBalancer", to=True)],
        "postgres-cluster (its primary's pooler) asks for the address 10.0.145.130, and so does postgres-cluster (its primary);",
    ),
    (
        service_addresses.SERVICE_ADDRESS_ONCE,
        [
            setting(DATABASE, "spec", "enableReplicaConnectionPooler", to=True),
            setting(DATABASE, "spec", "enableReplicaPoolerLoadBalancer", to=True),
        ],
        "postgres-cluster (its replicas' pooler) asks for the address 10.0.145.131, and so does",
    ),
    (
        service_addresses.SERVICE_ADDRESS_ONCE,
        [primary("10.0.145.113")],
        "postgres-cluster (its primary) asks for the address of the machine gl8 (10.0.145.113); allowed",
    ),
    (
        service_addresses.SERVICE_ADDRESS_ONCE,
        [primary("10.0.145.116")],
        "asks for the address of the Kubernetes API (10.0.145.116); allowed",
    ),
    (
        exposure.SERVICE_SOURCES_LIMITED,
        [setting(SERVICE, "spec", "loadBalancerSourceRanges", to=None)],
        "postgres-pooler-address has no `loadBalancerSourceRanges`: everybody may connect; allowed are networks of",
    ),
    (exposure.SERVICE_SOURCES_LIMITED, [sources()], "has no `loadBalancerSourceRanges`: everybody may connect;"),
    (
        exposure.SERVICE_SOURCES_LIMITED,
        [sources("10.0.145.0/24", "0.0.0.0/0")],
        "postgres-pooler-address admits 0.0.0.0/0; allowed are networks no wider than the machines' own (/24).",
    ),
    (exposure.SERVICE_SOURCES_LIMITED, [sources("::/0")], "postgres-pooler-address admits ::/0; allowed"),
    (exposure.SERVICE_SOURCES_LIMITED, [sources("10.0.144.0/23")], "admits 10.0.144.0/23; allowed"),
    (exposure.SERVICE_SOURCES_LIMITED, [sources("school")], "admits school, which is no network; allowed is one"),
    (
        exposure.SERVICE_SOURCES_LIMITED,
        [setting(DATABASE, "spec", "allowedSourceRanges", to=["0.0.0.0/0"])],
        "postgres-cluster admits 0.0.0.0/0; allowed are networks no wider than the machines' own (/24).",
    ),
    (
        exposure.SERVICE_SOURCES_LIMITED,
        [sources("10.0.145.0/24", "8.8.8.0/24")],
        "postgres-pooler-address admits 8.8.8.0/24, a network of the internet; allowed are private networks, and the "
        "machines' own.",
    ),
    (
        exposure.SERVICE_SOURCES_LIMITED,
        [setting(DATABASE, "spec", "allowedSourceRanges", to=["8.8.8.8/32"])],
        "postgres-cluster admits 8.8.8.8/32, a network of the internet;",
    ),
    (
        exposure.SERVICE_SOURCES_LIMITED,
        [setting(SERVICE, "spec", "externalIPs", to=["10.0.145.10"])],
        "postgres-pooler-address has `externalIPs` (10.0.145.10); allowed are addresses of the pool only.",
    ),
    (
        exposure.SERVICE_SOURCES_LIMITED,
        [setting(SERVICE, "spec", "type", to=None), setting(SERVICE, "spec", "externalIPs", to=["10.0.145.10"])],
        "postgres-pooler-address has `externalIPs` (10.0.145.10);",
    ),
    (
        exposure.SERVICE_SOURCES_LIMITED,
        [setting(SERVICE, "spec", "type", to="NodePort")],
        "postgres-pooler-address is of type NodePort: every machine opens it to everybody; allowed are ClusterIP and",
    ),
    (
        exposure.FIREWALL_NO_WORLD_OPEN_PORT,
        [rules({"type": "in", "action": "DROP"}, SSH)],
        "firewall lets everybody reach SSH (rule 1); allowed is a rule with a source.",
    ),
    (
        exposure.FIREWALL_NO_WORLD_OPEN_PORT,
        [rules({**SSH, "source": "0.0.0.0/0"})],
        "lets everybody reach SSH (rule 0)",
    ),
    (exposure.FIREWALL_NO_WORLD_OPEN_PORT, [rules({**SSH, "source": "::/0"})], "lets everybody reach SSH"),
    (exposure.FIREWALL_NO_WORLD_OPEN_PORT, [rules({**SSH, "source": "2000::/6"})], "lets everybody reach SSH"),
    (exposure.FIREWALL_NO_WORLD_OPEN_PORT, [rules({**SSH, "source": "10.0.0.0-11.0.0.0"})], "lets everybody reach SSH"),
    (exposure.FIREWALL_NO_WORLD_OPEN_PORT, [rules({**SSH, "source": "10.0.145.0/24,0.0.0.0/1"})], "reach SSH"),
    (exposure.FIREWALL_NO_WORLD_OPEN_PORT, [rules({**SSH, "source": "1.0.0.0-223.255.255.255"})], "reach SSH"),
    (
        exposure.FIREWALL_NO_WORLD_OPEN_PORT,
        [rules({**ACCEPT, "dport": "80,2379:2380,5432,6432"})],
        "lets everybody reach etcd, PostgreSQL, PgBouncer (rule 0)",
    ),
    (exposure.FIREWALL_NO_WORLD_OPEN_PORT, [rules({**ACCEPT, "dport": "6443"})], "reach the Kubernetes API (rule 0)"),
    (exposure.FIREWALL_NO_WORLD_OPEN_PORT, [rules({**ACCEPT, "dport": "8006"})], "reach the Proxmox API (rule 0)"),
    (exposure.FIREWALL_NO_WORLD_OPEN_PORT, [rules({**ACCEPT, "dport": "postgresql"})], "reach PostgreSQL (rule 0)"),
    (exposure.FIREWALL_NO_WORLD_OPEN_PORT, [rules({"action": "ACCEPT", "macro": "SSH"})], "reach SSH (rule 0)"),
    (
        exposure.FIREWALL_NO_WORLD_OPEN_PORT,
        [rules({"action": "ACCEPT"})],
        "reach SSH, the backup share, etcd, PostgreSQL, PgBouncer, the Kubernetes API, the Proxmox API (rule 0)",
    ),
    (
        exposure.NAMESPACE_DEFAULT_DENY,
        [without("postgres-default-deny")],
        "postgres-namespace has no NetworkPolicy that denies all ingress by default; allowed is a namespace with one.",
    ),
]
"""Policy, what is done to the school's plan, and the sentence."""

KEPT: list[tuple[AnyPolicy, list[Change]]] = [
    (network.SERVICE_POOL_INSIDE_NETWORK, [pool("10.0.145.128/28", "10.0.145.160-10.0.145.160")]),
    (network.SERVICE_POOL_INSIDE_NETWORK, [pool("10.0.145.1-10.0.145.200", "10.0.145.1-10.0.145.56")]),
    (network.SERVICE_POOL_APART_FROM_MACHINES, [pool("10.0.145.117-10.0.145.254")]),
    # What is no range is another policy's business.
    (network.SERVICE_POOL_APART_FROM_MACHINES, [pool("10.0.145.149-10.0.145.1")]),
    (network.SERVICE_POOL_APART_FROM_DHCP, [pool("10.0.145.190-10.0.145.199")]),
    # MetalLB takes an advertisement that selects nothing for one of all pools.
    (network.SERVICE_POOL_ADVERTISED, [setting(ADVERTISEMENT, "spec", to=None)]),
    (
        network.SERVICE_POOL_ADVERTISED,
        [setting(ADVERTISEMENT, "spec", "nodeSelectors", to=[]), setting(ADVERTISEMENT, "spec", "interfaces", to=[])],
    ),
    # The other one answers from everywhere.
    (
        network.SERVICE_POOL_ADVERTISED,
        [copy_of(ADVERTISEMENT, "another", setting("another", "spec", "interfaces", to=["eth1"]))],
    ),
    (network.MACHINE_ADDRESS_ONCE, [address("gl6", "10.0.145.120/24")]),
    # Proxmox chooses a free one.
    (network.MACHINE_ID_ONCE, [setting("gl6-container", "vmId", to=None), setting("gl8-container", "vmId", to=None)]),
    (network.MACHINE_NETWORK_COMMON, [address("gl6", "dhcp")]),
    # No pods run there.
    (network.MACHINE_INTERFACE_ANNOUNCED, [interface("gl8", "veth0")]),
    (network.MACHINE_INTERFACE_ANNOUNCED, [interface("gl2", "lan0")]),
    (network.MACHINE_APART_FROM_DHCP, [address("gl6", "10.0.145.199/24")]),
    (network.MACHINE_APART_FROM_DHCP, [address("gl6", "dhcp")]),
    (network.API_ADDRESS_APART, [endpoint("https://10.0.145.117:6443")]),
    (service_addresses.SERVICE_ADDRESS_FIXED, [setting(SERVICE, "spec", "type", to="ClusterIP")]),
    (
        service_addresses.SERVICE_ADDRESS_FIXED,
        [
            annotated(SERVICE, "metadata", "annotations", to=None),
            setting(SERVICE, "metadata", "annotations", "metallb.universe.tf/loadBalancerIPs", to="10.0.145.140"),
        ],
    ),
    (
        service_addresses.SERVICE_ADDRESS_FIXED,
        [
            setting(SERVICE, "metadata", "annotations", to=None),
            setting(SERVICE, "spec", "loadBalancerIP", to="10.0.145.140"),
        ],
    ),
    # The chart's default is no load balancer.
    (
        service_addresses.SERVICE_ADDRESS_FIXED,
        [primary(None), setting(DATABASE, "spec", "enableMasterLoadBalancer", to=None)],
    ),
    (
        service_addresses.SERVICE_ADDRESS_FIXED,
        [primary(None), setting(DATABASE, "spec", "serviceAnnotations", to={IPS: "10.0.145.140"})],
    ),
    (
        service_addresses.SERVICE_ADDRESS_IN_POOL,
        [primary("10.0.145.149"), setting(SERVICE, "spec", "type", to="ClusterIP")],
    ),
    (
        service_addresses.SERVICE_ADDRESS_IN_POOL,
        [setting(SERVICE, "metadata", "annotations", IN_POOL, to=None), pool("10.0.145.100-10.0.145.140")],
    ),
    (
        service_addresses.SERVICE_ADDRESS_ONCE,
        [
            setting(DATABASE, "spec", "enableConnectionPooler", to=False),
            setting(DATABASE, "spec", "enableMasterPoolerLoadBalancer", to=True),
        ],
    ),
    # Left out, the operator lets nobody in.
    (exposure.SERVICE_SOURCES_LIMITED, [setting(DATABASE, "spec", "allowedSourceRanges", to=None)]),
    (exposure.SERVICE_SOURCES_LIMITED, [sources("10.0.145.0/24", "192.168.7.0/24", "10.0.9.9/32")]),
    # Some schools have public addresses of their own.
    (
        exposure.SERVICE_SOURCES_LIMITED,
        [
            *(
                address(name, f"8.8.8.{number}/24")
                for number, name in enumerate(("gl2", "gl3", "gl6", "gl8", "gl9", "gl10"), 10)
            ),
            sources("8.8.8.0/24"),
        ],
    ),
    (exposure.SERVICE_SOURCES_LIMITED, [setting(SERVICE, "spec", "externalIPs", to=[])]),
    (
        exposure.SERVICE_SOURCES_LIMITED,
        [setting(SERVICE, "spec", "type", to=None), setting(SERVICE, "spec", "loadBalancerSourceRanges", to=None)],
    ),
    (exposure.FIREWALL_NO_WORLD_OPEN_PORT, [rules({**SSH, "source": "10.0.145.0/24"})]),
    (exposure.FIREWALL_NO_WORLD_OPEN_PORT, [rules({**SSH, "source": "10.0.145.10-10.0.145.12,10.0.0.0/8"})]),
    (exposure.FIREWALL_NO_WORLD_OPEN_PORT, [rules({**SSH, "source": "fc00::/7"})]),
    (exposure.FIREWALL_NO_WORLD_OPEN_PORT, [rules({**SSH, "source": "+administrators"})]),
    (exposure.FIREWALL_NO_WORLD_OPEN_PORT, [rules({**SSH, "enabled": False}, {**SSH, "type": "out"})]),
    (exposure.FIREWALL_NO_WORLD_OPEN_PORT, [rules({**SSH, "action": "DROP"}, {**ACCEPT, "dport": "80,443,23:25"})]),
    (exposure.FIREWALL_NO_WORLD_OPEN_PORT, [rules({**SSH, "proto": "udp"}, {"action": "ACCEPT", "proto": "icmp"})]),
    (exposure.FIREWALL_NO_WORLD_OPEN_PORT, [rules({"action": "ACCEPT", "macro": "Ping"}, {"securityGroup": "web"})]),
    (exposure.FIREWALL_NO_WORLD_OPEN_PORT, [rules()]),
    (exposure.NAMESPACE_DEFAULT_DENY, [without("postgres-members", "postgres-poolers")]),
]
"""Policy, and what is done to the school's plan without breaking it."""

UNKNOWN_YET: list[tuple[AnyPolicy, Change, str]] = [
    (network.SERVICE_POOL_INSIDE_NETWORK, unknown(POOL, "spec", "addresses", 0), "spec.addresses.0 of metallb-pool"),
    (network.SERVICE_POOL_APART_FROM_MACHINES, unknown(POOL, "spec", "addresses"), "spec.addresses of metallb-pool"),
    (network.SERVICE_POOL_APART_FROM_DHCP, unknown(POOL, "spec", "addresses"), "spec.addresses of metallb-pool"),
    (
        network.SERVICE_POOL_ADVERTISED,
        unknown(ADVERTISEMENT, "spec", "ipAddressPools", 0),
        "spec.ipAddressPools.0 of metallb-pool",
    ),
    (network.SERVICE_POOL_RESERVED, unknown(POOL, "spec", "autoAssign"), "spec.autoAssign of metallb-pool"),
    (
        network.MACHINE_ADDRESS_ONCE,
        unknown("gl6-container", "initialization", "ipConfigs"),
        "initialization.ipConfigs of stack",
    ),
    (network.MACHINE_ID_ONCE, unknown("gl6-container", "vmId"), "vmId of stack"),
    (network.MACHINE_NETWORK_COMMON, address("gl6", UNKNOWN), "ipv4.address of stack"),
    (
        network.MACHINE_INTERFACE_ANNOUNCED,
        unknown("gl6-container", "networkInterfaces"),
        "networkInterfaces of gl6-container",
    ),
    (network.MACHINE_APART_FROM_DHCP, address("gl6", UNKNOWN), "ipv4.address of gl6-container"),
    (network.API_ADDRESS_APART, endpoint(UNKNOWN), "endpoint of api"),
    (
        service_addresses.SERVICE_ADDRESS_FIXED,
        annotated(SERVICE, "metadata", "annotations", to=UNKNOWN),
        f"metadata.annotations.{IPS} of {SERVICE}",
    ),
    (service_addresses.SERVICE_ADDRESS_IN_POOL, primary(UNKNOWN), f"masterServiceAnnotations.{IPS} of {DATABASE}"),
    (service_addresses.SERVICE_ADDRESS_ONCE, primary(UNKNOWN), f"masterServiceAnnotations.{IPS} of stack"),
    (exposure.SERVICE_SOURCES_LIMITED, unknown(SERVICE, "spec", "type"), f"spec.type of {SERVICE}"),
    (exposure.FIREWALL_NO_WORLD_OPEN_PORT, rules({**SSH, "source": UNKNOWN}), "rules.0.source of firewall"),
    (
        exposure.NAMESPACE_DEFAULT_DENY,
        unknown("postgres-default-deny", "spec", "podSelector"),
        "spec.podSelector of postgres-namespace",
    ),
]
"""Policy, what is not known yet, and how it is called."""


@pytest.mark.parametrize(("policy", "changes", "sentence"), BROKEN, ids=names_of(BROKEN))
def test_what_breaks_a_policy_ends_the_update_with_a_sentence(
    school_plan: list[Planned], policy: AnyPolicy, changes: list[Change], sentence: str
) -> None:
    assert_refused(policy, changed(school_plan, *changes), sentence)


@pytest.mark.parametrize(("policy", "changes"), KEPT, ids=names_of(KEPT))
def test_what_keeps_a_policy_passes(school_plan: list[Planned], policy: AnyPolicy, changes: list[Change]) -> None:
    assert said(policy, changed(school_plan, *changes)) == []


@pytest.mark.parametrize(("policy", "change", "what"), UNKNOWN_YET, ids=names_of(UNKNOWN_YET))
def test_what_is_not_known_yet_is_checked_at_up(
    school_plan: list[Planned], policy: AnyPolicy, change: Change, what: str
) -> None:
    assert what in left_open(policy, changed(school_plan, change))


def test_the_school_keeps_every_policy(school_plan: list[Planned], first_plan: list[Planned]) -> None:
    for plan in (school_plan, first_plan):
        verdict = Judge(*network.POLICIES).of_plan(plan)
        assert not verdict.violations
        assert not verdict.checked_at_up


def test_every_policy_is_in_the_tables() -> None:
    assert {policy for policy, _, _ in BROKEN} == set(network.POLICIES)
    assert {policy for policy, _ in KEPT} >= set(network.POLICIES) - {network.SERVICE_POOL_RESERVED}
    assert {policy for policy, _, _ in UNKNOWN_YET} == set(network.POLICIES)


@pytest.mark.parametrize("topic", [{}, {"dhcpRange": "10.0.145.50-10.0.145.60"}])
def test_only_the_range_of_the_stack_file_is_the_dhcp_server_s(
    school_plan: list[Planned], stack_files: Path, topic: dict[str, str]
) -> None:
    moved = changed(school_plan, pool("10.0.145.200-10.0.145.210"), address("gl6", "10.0.145.220/24"))
    moved = changed(moved, endpoint("https://10.0.145.221:6443"))
    policies = (network.SERVICE_POOL_APART_FROM_DHCP, network.MACHINE_APART_FROM_DHCP, network.API_ADDRESS_APART)
    assert all(said(policy, moved) for policy in policies)
    write_stack_file(stack_files, topic)
    assert not any(said(policy, moved) for policy in policies)


def test_every_fault_of_the_api_s_address_is_a_sentence(school_plan: list[Planned]) -> None:
    plan = changed(
        school_plan,
        address("gl9", "10.0.145.210/24"),
        pool("10.0.145.210-10.0.145.211"),
        endpoint("https://10.0.145.210"),
    )
    assert len(said(network.API_ADDRESS_APART, plan)) == 3


def test_a_second_machine_shares_nothing_with_the_first(school_plan: list[Planned]) -> None:
    plan = changed(
        school_plan,
        copy_of("gl6-container", "gl7-container", setting("gl7-container", "initialization", "hostname", to="gl7")),
    )
    assert said(network.MACHINE_ADDRESS_ONCE, plan)
    assert said(network.MACHINE_ID_ONCE, plan)


@pytest.mark.parametrize(
    ("what", "ports"),
    [
        ("SSH", ["22", "ssh"]),
        ("the backup share", ["445", "microsoft-ds"]),
        ("etcd", ["2379", "2380", "etcd-client", "etcd-server"]),
        ("PostgreSQL", ["5432", "postgresql"]),
        ("PgBouncer", ["6432"]),
        ("the Kubernetes API", ["6443"]),
        ("the Proxmox API", ["8006"]),
    ],
)
def test_a_guarded_port_is_known_by_number_and_name(school_plan: list[Planned], what: str, ports: list[str]) -> None:
    for port in ports:
        (message,) = said(exposure.FIREWALL_NO_WORLD_OPEN_PORT, changed(school_plan, rules({**ACCEPT, "dport": port})))
        assert f"firewall lets everybody reach {what} (rule 0)" in message


@pytest.mark.parametrize(("macro", "what"), [("SSH", "SSH"), ("SMB", "the backup share"), ("PostgreSQL", "PostgreSQL")])
def test_a_guarded_port_is_known_by_proxmox_s_name(school_plan: list[Planned], macro: str, what: str) -> None:
    plan = changed(school_plan, rules({"type": "in", "action": "ACCEPT", "macro": macro}))
    (message,) = said(exposure.FIREWALL_NO_WORLD_OPEN_PORT, plan)
    assert f"firewall lets everybody reach {what} (rule 0)" in message


DENY = {"podSelector": {}, "policyTypes": ["Ingress"]}
PEERS = [{"ipBlock": {"cidr": "10.0.145.0/24"}}, {"namespaceSelector": {"matchLabels": {"of": "the operator"}}}]


def isolated(**spec: Any) -> Change:
    """The database's namespace has a NetworkPolicy."""
    return adding(
        Planned(
            type=vocabulary.NETWORK_POLICY,
            name="default-deny",
            properties={"metadata": {"name": "default-deny", "namespace": "postgres"}, "spec": spec},
        )
    )


@pytest.fixture
def open_plan(school_plan: list[Planned]) -> list[Planned]:
    """The school's plan without any NetworkPolicy."""
    return [resource for resource in school_plan if resource.type != vocabulary.NETWORK_POLICY]


@pytest.mark.parametrize(
    "spec",
    [
        DENY,
        {**DENY, "policyTypes": ["Egress", "Ingress"]},
        {**DENY, "ingress": []},
        {**DENY, "podSelector": {"matchLabels": {}}},
        # Kubernetes' own defaults: every pod, and ingress.
        {"podSelector": {}},
        {"policyTypes": ["Ingress"]},
    ],
)
def test_a_namespace_denies_by_default(open_plan: list[Planned], spec: dict[str, Any]) -> None:
    assert said(exposure.NAMESPACE_DEFAULT_DENY, changed(open_plan, isolated(**spec))) == []


@pytest.mark.parametrize(
    "change",
    [
        adding(),
        isolated(**{**DENY, "podSelector": {"matchLabels": {"application": "spilo"}}}),
        isolated(**{**DENY, "podSelector": {"matchExpressions": [{"key": "application", "operator": "Exists"}]}}),
        isolated(**{**DENY, "policyTypes": ["Egress"]}),
        isolated(**{**DENY, "ingress": [{"from": [{"podSelector": {}}]}]}),
        lambda plan: changed(plan, isolated(**DENY), setting("default-deny", "metadata", "namespace", to="default")),
        lambda plan: changed(plan, isolated(**DENY), setting("default-deny", "metadata", "namespace", to=None)),
    ],
)
def test_a_namespace_that_is_open_is_named(open_plan: list[Planned], change: Change) -> None:
    (message,) = said(exposure.NAMESPACE_DEFAULT_DENY, changed(open_plan, change))
    assert (
        "postgres-namespace has no NetworkPolicy that denies all ingress by default; allowed is a namespace" in message
    )


def test_the_name_of_a_namespace_may_not_be_known_yet(open_plan: list[Planned]) -> None:
    plan = changed(open_plan, isolated(**DENY), unknown("default-deny", "metadata", "namespace"))
    assert "metadata.namespace of postgres-namespace" in left_open(exposure.NAMESPACE_DEFAULT_DENY, plan)


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"ports": [{"port": 5432}]},
        {"from": []},
        {"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]},
        {"from": [{"ipBlock": {"cidr": "10.0.145.0/24"}}, {"ipBlock": {"cidr": "::/0"}}]},
        {"from": [{"namespaceSelector": {}}]},
        {"from": [{"namespaceSelector": {}, "podSelector": {}}]},
    ],
)
def test_no_rule_for_every_pod_lets_everybody_in(school_plan: list[Planned], rule: dict[str, Any]) -> None:
    (message,) = said(
        exposure.NAMESPACE_DEFAULT_DENY, changed(school_plan, isolated(**{**DENY, "ingress": [{"from": PEERS}, rule]}))
    )
    assert (
        "postgres-namespace lets everybody reach every pod (default-deny); allowed are rules that name somebody."
        in message
    )


@pytest.mark.parametrize(
    "spec",
    [
        {**DENY, "ingress": [{"from": PEERS}]},
        {**DENY, "ingress": [{"from": [{"podSelector": {}}]}]},
        {**DENY, "ingress": [{"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"of": "us"}}}]}]},
        {**DENY, "policyTypes": ["Egress"], "ingress": [{}]},
        # The pooler's own policy may let in whom it likes.
        {**DENY, "podSelector": {"matchLabels": {"application": "pooler"}}, "ingress": [{}]},
    ],
)
def test_a_rule_that_names_somebody_is_no_hole(school_plan: list[Planned], spec: dict[str, Any]) -> None:
    assert said(exposure.NAMESPACE_DEFAULT_DENY, changed(school_plan, isolated(**spec))) == []


def test_a_namespace_without_a_denial_that_lets_everybody_in_hears_of_both(open_plan: list[Planned]) -> None:
    plan = changed(open_plan, isolated(**{**DENY, "ingress": [{}]}))
    assert len(said(exposure.NAMESPACE_DEFAULT_DENY, plan)) == 2
