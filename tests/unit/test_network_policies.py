"""Who may connect to the database's pods: the exceptions are exactly these, and everything else is closed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Network
from typing import Any

import pytest

from components.k3s_control_plane import POD_NETWORK
from components.network_policies import nodes_own_addresses
from components.remote import read_host_file
from tests.unit.recording import RecordingMonitor

pytestmark = pytest.mark.unit

POLICY = "kubernetes:networking.k8s.io/v1:NetworkPolicy"
MEMBERS = {"matchLabels": {"application": "spilo", "cluster-name": "wichtige-daten-3"}}
POOLERS = {"matchLabels": {"application": "db-connection-pooler", "connection-pooler": "wichtige-daten-3-pooler"}}
JOBS = {"matchExpressions": [{"key": "batch.kubernetes.io/job-name", "operator": "Exists"}]}
OPERATOR = {"matchLabels": {"kubernetes.io/metadata.name": "postgres-operator"}}


def spec_of(program: RecordingMonitor, name: str) -> Any:
    """``spec`` of one policy."""
    return program.named(name).clear["spec"]


def pods_and_ports(spec: Any) -> list[tuple[list[Any], list[int]]]:
    """The rules of a policy that name pods: the sources and the TCP ports of each."""
    return [
        (rule["from"], [int(port["port"]) for port in rule["ports"]])
        for rule in spec["ingress"]
        if not any("ipBlock" in source for source in rule["from"])
    ]


def address_rules(spec: Any) -> list[tuple[list[str], list[int]]]:
    """The rules of a policy that name networks: the CIDRs and the TCP ports of each."""
    return [
        ([source["ipBlock"]["cidr"] for source in rule["from"]], [int(port["port"]) for port in rule["ports"]])
        for rule in spec["ingress"]
        if any("ipBlock" in source for source in rule["from"])
    ]


def test_every_pod_of_the_namespace_is_closed_once_the_exceptions_are_there(school: RecordingMonitor) -> None:
    deny = school.named("postgres-default-deny")
    assert deny.clear["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    for exception in ("postgres-members", "postgres-poolers"):
        assert school.waits_for(deny, school.named(exception))


def test_all_policies_are_in_the_databases_namespace_and_leave_outgoing_connections_alone(
    school: RecordingMonitor,
) -> None:
    policies = school.of_type(POLICY)
    assert len(policies) == 3
    for policy in policies:
        assert policy.clear["metadata"]["namespace"] == "postgres"
        assert policy.clear["spec"]["policyTypes"] == ["Ingress"]


def test_members_are_reached_by_each_other_the_operator_the_poolers_and_jobs(school: RecordingMonitor) -> None:
    spec = spec_of(school, "postgres-members")
    assert spec["podSelector"] == MEMBERS
    assert pods_and_ports(spec) == [
        ([{"podSelector": MEMBERS}], [5432, 8008]),
        ([{"namespaceSelector": OPERATOR}], [5432, 8008]),
        ([{"podSelector": POOLERS}, {"podSelector": JOBS}], [5432]),
    ]


def test_no_pod_may_connect_to_a_pooler(school: RecordingMonitor) -> None:
    spec = spec_of(school, "postgres-poolers")
    assert spec["podSelector"] == POOLERS
    assert pods_and_ports(spec) == []


@pytest.mark.parametrize("name", ["postgres-members", "postgres-poolers"])
def test_service_addresses_lead_to_postgresql_only_from_the_allowed_networks(
    school: RecordingMonitor, name: str
) -> None:
    ((networks, ports),) = address_rules(spec_of(school, name))
    assert networks == ["10.0.145.0/24", *nodes_own_addresses()]
    assert ports == [5432], "Patroni's interface is nobody's business outside"


def test_the_allowed_networks_are_those_of_the_configuration(run: Any) -> None:
    allowed = ["10.0.145.0/26", "192.168.7.0/24"]
    program = run(lambda topics: topics["postgres"].update(allowedSources=allowed))
    for name in ("postgres-members", "postgres-poolers"):
        ((networks, _),) = address_rules(spec_of(program, name))
        assert networks[:3] == [*allowed, "10.42.0.0/32"]


def test_a_connection_that_another_node_hands_on_is_let_in_and_no_pod_is() -> None:
    def pod_addresses() -> Iterator[str]:
        # The first address of a node's part is the node's own, the second its bridge's, the last the broadcast.
        for part in IPv4Network(POD_NETWORK).subnets(new_prefix=24):
            yield from (f"{address}/32" for address in list(part)[2:-1])

    found = nodes_own_addresses()
    assert found[:2] == ["10.42.0.0/32", "10.42.1.0/32"]
    assert found[-1] == "10.42.255.0/32"
    assert len(found) == 256
    assert not set(found) & set(pod_addresses())


def test_the_poolers_address_leads_to_the_pods_that_the_policy_is_for(school: RecordingMonitor) -> None:
    service = school.named("postgres-pooler-address").clear["spec"]
    assert service["selector"] == POOLERS["matchLabels"]
    assert [int(port["targetPort"]) for port in service["ports"]] == [5432]


def test_no_pod_beside_the_database_may_be_privileged(school: RecordingMonitor) -> None:
    labels = school.named("postgres-namespace").clear["metadata"]["labels"]
    assert labels == {"pod-security.kubernetes.io/enforce": "baseline"}


@pytest.mark.parametrize(
    ("refusing", "message"),
    [
        ("ipset", "FAILED: the kernel refuses what network policies need: no ipset. Load ip_set"),
        ("iptables", "FAILED: the kernel refuses what network policies need: no iptables. Load ip_set"),
        ("nothing", ""),
    ],
)
def test_a_machine_whose_kernel_cannot_enforce_policies_is_refused(refusing: str, message: str) -> None:
    script = read_host_file("k3s-node.sh")
    probe = script[script.index("probe=") : script.index("binary=")]
    programs = f'''
ipset() {{ [[ {refusing} != ipset ]] || {{ echo "no ipset" >&2; return 1; }}; echo "ipset $*"; }}
iptables() {{ [[ "{refusing} $*" != iptables*match-set* ]] || {{ echo "no iptables" >&2; return 1; }}; echo "iptables $*"; }}
'''
    done = subprocess.run(
        ["bash", "-c", f"{read_host_file('common.sh')}\n{programs}\n{probe}\necho done", "bash", "gl2", "k3s-node"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert message in done.stderr
    assert done.returncode == (1 if message else 0)
    if not message:
        *_, removed, destroyed, end = done.stdout.splitlines()
        assert removed == "iptables -w -X school-postgres-probe"
        assert (destroyed, end) == ("ipset destroy school-postgres-probe", "done")
