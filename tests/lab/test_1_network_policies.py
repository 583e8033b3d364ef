"""Who reaches the database's pods, tried from pods on every machine; and that K3s enforces what the policies say."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from tests.lab.classroom import MACHINES, Lab, wait_for
from versions import SPILO_IMAGE

pytestmark = pytest.mark.lab

CLUSTER = "wichtige-daten-3"
MEMBER = f"application=spilo,cluster-name={CLUSTER}"
POOLER = "application=db-connection-pooler"
PROBE = "policy-test=probe"
NODES = ("gl2", "gl3", "gl6")
POSTGRES, PATRONI, HTTP = 5432, 8008, 8000
ELSEWHERE = "policy-test"
"""A namespace without any policy."""

SORTS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "stranger": (ELSEWHERE, {}),
    "neighbour": ("postgres", {}),
    "job": ("postgres", {"batch.kubernetes.io/job-name": "policy-test"}),
    "operator": ("postgres-operator", {}),
}
"""Namespace and labels of those who try."""

TRY = """
while read -r address port; do
    (timeout 2 bash -c ": </dev/tcp/$address/$port" 2>/dev/null && echo "$address:$port") &
done
wait
echo tried
"""
ASK = """
import sys, urllib.request
path, body = sys.argv[1:]
request = urllib.request.Request("http://127.0.0.1:8008/" + path, data=body.encode() or None)
print(urllib.request.urlopen(request, timeout=60).read().decode())
"""


@dataclass(frozen=True, slots=True)
class Probe:
    """A pod that tries to connect, and itself answers on port 8000."""

    lab: Lab
    namespace: str
    name: str

    def reached(self, addresses: Iterable[str], port: int) -> set[str]:
        """Which of the addresses accept a TCP connection within 2 s."""
        targets = "\n".join(f"{address} {port}" for address in addresses)
        inside = f"k3s kubectl -n {self.namespace} exec -i {self.name} -- bash -c {shlex.quote(TRY)}"
        *found, end = self.lab.on("gl2", f"{inside} <<'TARGETS'\n{targets}\nTARGETS\n").stdout.split()
        assert end == "tried"
        return {target.removesuffix(f":{port}") for target in found}

    def manifest(self, node: str, labels: Mapping[str, str]) -> dict[str, Any]:
        """The pod on a machine of one's choice."""
        key, value = PROBE.split("=")
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name, "namespace": self.namespace, "labels": {key: value, **labels}},
            "spec": {
                "nodeName": node,
                "terminationGracePeriodSeconds": 0,
                "containers": [
                    {
                        "name": "probe",
                        "image": SPILO_IMAGE,
                        "command": ["python3", "-m", "http.server", str(HTTP), "--directory", "/tmp"],
                    }
                ],
            },
        }


def apply(lab: Lab, *objects: Mapping[str, Any]) -> None:
    """Apply objects with kubectl."""
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    lab.on("gl2", f"k3s kubectl apply -f - <<'OBJECTS'\n{text}\nOBJECTS\n")


def pod_addresses(lab: Lab, selector: str, namespace: str = "postgres") -> dict[str, str]:
    """Name to address of pods."""
    found = json.loads(lab.kubectl(f"-n {namespace} get pods -l {selector} -o json"))["items"]
    return {pod["metadata"]["name"]: pod["status"]["podIP"] for pod in found}


@pytest.fixture(scope="module")
def probes(lab: Lab) -> Iterator[dict[str, list[Probe]]]:
    """Pods of every sort on every machine, known to all machines."""
    made = {
        sort: [Probe(lab, namespace, f"policy-test-{sort}-{node}") for node in NODES]
        for sort, (namespace, _) in SORTS.items()
    }
    namespaces = sorted({namespace for namespace, _ in SORTS.values()})
    pods = [
        probe.manifest(node, SORTS[sort][1])
        for sort, of_a_sort in made.items()
        for probe, node in zip(of_a_sort, NODES, strict=True)
    ]
    try:
        apply(lab, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ELSEWHERE}}, *pods)
        for namespace in namespaces:
            lab.kubectl(f"-n {namespace} wait pod -l {PROBE} --for=condition=Ready --timeout=90s")
        members = set(pod_addresses(lab, MEMBER).values())
        allowed = [*made["job"], *made["operator"]]
        # K3s lets a pod in, and closes it, a moment after it has started.
        wait_for(lambda: all(probe.reached(members, POSTGRES) == members for probe in allowed), 30, "being let in")
        wait_for(lambda: not made["stranger"][0].reached(_neighbours(lab), HTTP), 30, "new pods being closed")
        yield made
    finally:
        for namespace in namespaces:
            lab.kubectl(f"-n {namespace} delete pod -l {PROBE} --wait=true", check=False)
        lab.kubectl(f"delete namespace {ELSEWHERE} --wait=true", check=False)


def _neighbours(lab: Lab) -> set[str]:
    return set(pod_addresses(lab, PROBE).values())


@pytest.mark.parametrize(
    ("sort", "postgres", "patroni"),
    [("stranger", False, False), ("neighbour", False, False), ("job", True, False), ("operator", True, True)],
)
def test_members_are_reached_by_those_who_need_them(
    lab: Lab, probes: dict[str, list[Probe]], sort: str, postgres: bool, patroni: bool
) -> None:
    members = set(pod_addresses(lab, MEMBER).values())
    assert len(members) == 3
    for probe in probes[sort]:
        assert probe.reached(members, POSTGRES) == (members if postgres else set()), probe.name
        assert probe.reached(members, PATRONI) == (members if patroni else set()), probe.name


@pytest.mark.parametrize("sort", SORTS)
def test_poolers_are_reached_by_no_pod(lab: Lab, probes: dict[str, list[Probe]], sort: str) -> None:
    poolers = set(pod_addresses(lab, POOLER).values())
    assert len(poolers) == 2
    for probe in probes[sort]:
        assert probe.reached(poolers, POSTGRES) == set(), probe.name


def test_a_stranger_gets_in_through_no_service_inside_the_cluster(lab: Lab, probes: dict[str, list[Probe]]) -> None:
    services = json.loads(lab.kubectl("-n postgres get services -o json"))["items"]
    found = {service["metadata"]["name"]: service["spec"]["clusterIP"] for service in services}
    assert {CLUSTER, f"{CLUSTER}-repl", f"{CLUSTER}-pooler", f"{CLUSTER}-pooler-address"} <= set(found)
    addresses = [address for address in found.values() if address != "None"]
    for probe in probes["stranger"]:
        assert probe.reached(addresses, POSTGRES) == set(), probe.name


def test_a_pod_beside_the_database_is_closed_although_no_exception_names_it(
    lab: Lab, probes: dict[str, list[Probe]]
) -> None:
    strangers = set(pod_addresses(lab, PROBE, ELSEWHERE).values())
    for probe in probes["stranger"]:
        assert probe.reached(strangers, HTTP) == strangers, "nothing closes these, so the others show a policy at work"
        assert probe.reached(_neighbours(lab), HTTP) == set()


def test_a_policy_is_enforced_while_it_is_there(lab: Lab, probes: dict[str, list[Probe]]) -> None:
    strangers = pod_addresses(lab, PROBE, ELSEWHERE)

    def reached() -> set[bool]:
        # Every pod reaches itself, with and without a policy.
        return {
            address in probe.reached([address], HTTP)
            for probe in probes["stranger"]
            for name, address in strangers.items()
            if name != probe.name
        }

    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "nobody", "namespace": ELSEWHERE},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
    }
    assert reached() == {True}
    apply(lab, policy)
    try:
        wait_for(lambda: reached() == {False}, 30, "the policy being enforced")
    finally:
        lab.kubectl(f"-n {ELSEWHERE} delete networkpolicy nobody")
    wait_for(lambda: reached() == {True}, 30, "the policy being forgotten")


def _ask_patroni(lab: Lab, member: str, path: str, body: Mapping[str, str] | None = None) -> str:
    """Ask Patroni in a member's own pod; with a body it is an order."""
    words = shlex.join([path, json.dumps(body) if body else ""])
    inside = f"k3s kubectl -n postgres exec -i {member} -c postgres -- python3 - {words}"
    return lab.on("gl2", f"{inside} <<'PYTHON'\n{ASK}\nPYTHON\n").stdout


def _members(lab: Lab) -> dict[str, tuple[str, str]]:
    """Member to its role and state, as Patroni sees the cluster."""
    seen = json.loads(_ask_patroni(lab, f"{CLUSTER}-0", "cluster"))["members"]
    return {member["name"]: (member["role"], member["state"]) for member in seen}


def _healthy(lab: Lab) -> tuple[str, str] | None:
    """Leader and synchronous standby, when both standbys stream."""
    members = _members(lab)
    leaders = [name for name, state in members.items() if state == ("leader", "running")]
    standbys = [name for name, (role, state) in members.items() if state == "streaming"]
    synchronous = [name for name in standbys if members[name][0] == "sync_standby"]
    return (leaders[0], synchronous[0]) if len(leaders) == len(synchronous) == 1 and len(standbys) == 2 else None


def _leads_to_a(lab: Lab, address: str, standby: str) -> bool:
    """Whether a service address leads to a standby (``t``) or to the primary (``f``)."""
    return lab.sql("select pg_is_in_recovery()", address, check=False).stdout.strip() == standby


@pytest.mark.parametrize("_", ["there", "back"])
def test_a_switchover_works_and_every_address_leads_to_the_right_member(lab: Lab, _: str) -> None:
    leader, candidate = wait_for(lambda: _healthy(lab), 60, "two members streaming from a third")
    _ask_patroni(lab, leader, "switchover", {"leader": leader, "candidate": candidate})
    wait_for(lambda: (_healthy(lab) or ("", ""))[0] == candidate, 90, f"two members streaming from {candidate}")
    for address, standby in (("10.0.145.130", "f"), ("10.0.145.131", "t"), ("10.0.145.132", "f")):
        wait_for(partial(_leads_to_a, lab, address, standby), 30, f"{address} leading on")
        assert all(_leads_to_a(lab, address, standby) for _ in range(5)), address


def test_a_privileged_pod_is_refused_beside_the_database(lab: Lab) -> None:
    done = lab.on(
        "gl2",
        f"k3s kubectl -n postgres run policy-test-privileged --image={SPILO_IMAGE} --privileged -- sleep 60",
        check=False,
    )
    assert done.returncode != 0
    assert 'violates PodSecurity "baseline' in done.stderr


def test_no_machine_answers_for_a_service_at_a_port_of_its_own(lab: Lab) -> None:
    services = json.loads(lab.kubectl("-n postgres get services -o json"))["items"]
    ports = [
        port["nodePort"] for service in services for port in service["spec"].get("ports", ()) if "nodePort" in port
    ]
    assert len(ports) == 3
    for machine in NODES:
        for port in ports:
            done = lab.run(
                "bash", "-c", f"timeout 2 bash -c ': </dev/tcp/10.0.145.{MACHINES[machine]}/{port}'", check=False
            )
            assert done.returncode != 0, f"{machine}:{port}"
