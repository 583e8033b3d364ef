"""Changes that the pack must notice, and ``python -m tests.policy.mutations``, which makes each and prints who noticed.

Each is the school's plan with one thing changed. Whatever the pack demands can be found here as something it refuses.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pytest
from rich.console import Console
from rich.table import Table

from policy import vocabulary
from policy.exposure import FIREWALL_RULES
from policy.resources import shown
from tests.policy.cases import Change, adding, output, setting, without
from tests.policy.judging import Judge, Planned

ABSENT: Final = None
"""The property is not there."""

POD: Final = "spec jobTemplate spec template spec"
DUMP: Final = f"{POD} initContainers 0"
UPLOAD: Final = f"{POD} containers 0"
WORLD: Final = "0.0.0.0/0"

PROPERTIES: Final[Mapping[str, Mapping[str, Any]]] = {
    # The database.
    "postgres-cluster": {
        "spec numberOfInstances": 2,
        "spec patroni synchronous_mode": False,
        "spec patroni synchronous_node_count": 3,
        "spec patroni failsafe_mode": False,
        "spec patroni ttl": 7,
        "spec patroni loop_wait": 15,
        "spec patroni retry_timeout": 10,
        "spec patroni maximum_lag_on_failover": 10**12,
        "spec connectionPooler numberOfInstances": 1,
        "spec allowedSourceRanges": [WORLD],
        "spec users bauer": ["superuser"],
        "spec postgresql parameters password_encryption": "md5",
        "spec postgresql parameters synchronous_commit": "off",
        "spec postgresql parameters zero_damaged_pages": "on",
        "spec postgresql parameters archive_command": "/bin/true",
        "spec patroni pg_hba": ["host all all 0.0.0.0/0 trust"],
        "spec standby": {"s3_wal_path": "s3://another"},
        "spec sidecars": [{"name": "another"}],
        "spec spiloRunAsUser": 0,
        "spec env": [{"name": "ANOTHER_PASSWORD", "value": "not-a-secret-any-more"}],
        "spec databases wiki": "bauer",
        "metadata namespace": "another",
        "spec masterServiceAnnotations metallb.io/loadBalancerIPs": "10.0.145.131",
        "spec replicaServiceAnnotations metallb.io/loadBalancerIPs": "10.0.145.10",
        "spec enableMasterPoolerLoadBalancer": True,
        "spec resources requests cpu": ABSENT,
        "spec resources requests memory": ABSENT,
        "spec resources limits memory": ABSENT,
        "spec volume storageClass": "longhorn",
        "spec dockerImage": "ghcr.io/zalando/spilo-17:latest",
    },
    "postgres-operator-chart": {
        "version": ABSENT,
        "values configGeneral docker_image": "ghcr.io/zalando/spilo-17:latest",
        "values configConnectionPooler connection_pooler_image": "acid/pgbouncer:master-32",
        "values configKubernetes enable_pod_antiaffinity": ABSENT,
        "values configKubernetes pod_antiaffinity_preferred_during_scheduling": True,
        "values configKubernetes enable_pod_disruption_budget": False,
        "values configKubernetes enable_persistent_volume_claim_deletion": ABSENT,
        "values configKubernetes enable_secrets_deletion": ABSENT,
        "values configKubernetes persistent_volume_claim_retention_policy when_deleted": "delete",
        "values configKubernetes persistent_volume_claim_retention_policy when_scaled": "delete",
        "values configKubernetes spilo_runasuser": ABSENT,
        "values configKubernetes spilo_privileged": True,
        "values configKubernetes spilo_allow_privilege_escalation": True,
    },
    "postgres-pooler-address": {
        "spec type": "NodePort",
        "spec loadBalancerSourceRanges": [WORLD],
        "spec externalIPs": ["10.0.145.10"],
        "metadata annotations metallb.io/loadBalancerIPs": "10.0.145.130",
    },
    # The backup.
    "backup-schedule": {
        "spec concurrencyPolicy": ABSENT,
        "spec startingDeadlineSeconds": ABSENT,
        "spec suspend": True,
        "spec jobTemplate spec suspend": True,
        "spec jobTemplate spec parallelism": 0,
        "spec failedJobsHistoryLimit": 0,
        "spec timeZone": ABSENT,
        "spec jobTemplate spec activeDeadlineSeconds": ABSENT,
        f"{POD} automountServiceAccountToken": ABSENT,
        f"{POD} hostNetwork": True,
        f"{POD} securityContext runAsNonRoot": ABSENT,
        f"{POD} securityContext runAsUser": 0,
        f"{POD} securityContext seccompProfile": ABSENT,
        f"{POD} volumes 0": {"name": "backup", "hostPath": {"path": "/srv"}},
        f"{DUMP} command": ["true"],
        f"{DUMP} ports": [{"hostPort": 5432}],
        f"{DUMP} securityContext capabilities add": ["SYS_ADMIN"],
        f"{DUMP} env 1 value": "another.postgres.svc",
        f"{DUMP} image": "ghcr.io/zalando/spilo-17",
        f"{DUMP} securityContext privileged": True,
        f"{DUMP} securityContext allowPrivilegeEscalation": ABSENT,
        f"{DUMP} securityContext capabilities drop": ["NET_RAW"],
        f"{DUMP} resources limits memory": ABSENT,
        f"{UPLOAD} image": "docker.io/rclone/rclone:latest",
        f"{UPLOAD} resources requests": ABSENT,
        f"{UPLOAD} env 3": {"name": "SMB_PASSWORD", "value": "not-a-secret-any-more"},
        f"{UPLOAD} env 5 value": "1",
        f"{DUMP} env 2 value": "prefer",
        f"{DUMP} env 6 value": "another",
        "metadata labels purpose": ABSENT,
        "spec schedule": "0 2 * * 0",
    },
    # Addresses.
    "metallb-chart": {"version": "^0.15.0"},
    "postgres-namespace": {"metadata labels pod-security.kubernetes.io/enforce": "privileged"},
    "postgres-default-deny": {"spec policyTypes": ["Egress"]},
    "metallb-pool": {"spec addresses": ["10.0.145.200-10.0.145.210"], "spec autoAssign": ABSENT},
    "metallb-advertisement": {
        "spec ipAddressPools": ["another"],
        "spec nodeSelectors": [{"matchLabels": {"kubernetes.io/hostname": "gl2"}}],
        "spec interfaces": ["eth1"],
        "metadata namespace": "another",
    },
    # Kubernetes.
    "k3s": {
        "version": "stable",
        "serverSettings disable": ["traefik"],
        "serverSettings secrets-encryption": False,
        "serverSettings write-kubeconfig-mode": "0644",
        "serverSettings datastore-cafile": ABSENT,
        "serverSettings datastore-certfile": ABSENT,
        "serverSettings datastore-keyfile": ABSENT,
        "serverSettings datastore-endpoint": ABSENT,
        "serverSettings tls-san": ["k3s-api"],
        "serverSettings token": "not-a-secret-any-more",
        "serverSettings kube-controller-manager-arg": [],
        "serverSettings kube-apiserver-arg": [],
        "serverSettings kubelet-arg": ["authorization-mode=AlwaysAllow"],
        "serverSettings disable-network-policy": True,
        "serverSettings kube-proxy-arg": ["nodeport-addresses=10.0.145.0/24"],
    },
    "datastore": {"accessRules": ["local all postgres peer", f"host all all {WORLD} md5"]},
    # Machines: a K3s server, the datastore's, a balancer.
    "gl2-container": {
        "nodeName": "pve2",
        "vmId": 111,
        "memory swap": 512,
        "networkInterfaces 0 name": "veth0",
        "started": False,
        "initialization ipConfigs 0 ipv4 address": "10.0.145.111/24",
    },
    "gl8-container": {
        "nodeName": "pve1",
        "tags": ["datastore", "file-share", "k3s-worker"],
        "unprivileged": ABSENT,
        "startOnBoot": False,
        "startup order": 9,
        "features mknod": True,
        "initialization ipConfigs 0 ipv4 address": "10.0.145.131/24",
        "initialization userAccount password": "not-a-secret-any-more",
        "initialization userAccount keys": [],
    },
    "gl9-container": {
        "nodeName": "pve2",
        "unprivileged": False,
        "tags": ["school-postgres-school"],
        "initialization ipConfigs 0 ipv4 address": "10.0.146.114/24",
    },
    "gl6-container": {"initialization ipConfigs 0 ipv4 address": "10.0.145.201/24"},
    "gl9": {"lxcLines": ["lxc.apparmor.profile: unconfined"]},
    # Proxmox and the commands.
    "proxmox": {"insecure": "true", "endpoint": "http://10.0.145.10:8006/", "apiToken": "root@pam!pulumi=11111111"},
    "kubernetes": {"kubeconfig": ABSENT, "clusterIdentifier": ABSENT, "deleteUnreachable": "true"},
    "pve1-template": {"checksum": ABSENT, "checksumAlgorithm": "md5"},
    "k3s-token": {"length": 3},
    "backup-scripts": {"data backup.sh": "export PGPASSWORD=not-a-secret-any-more"},
    "pve1-kernel": {"connection hostKey": ABSENT},
    "k3s-gl2": {
        "create": "K3S_TOKEN=not-a-secret-any-more bash -s",
        "triggers": ["postgres://k3s:not-a-secret-any-more@10.0.145.113:5432/k3s"],
        "logging": "stdoutAndStderr",
    },
}
"""Resource to property to what it is set to. Steps of a property are words; a number is a place in a list."""

FREE: Final[Mapping[tuple[str, str], Sequence[str]]] = {
    ("postgres-cluster", "spec"): (
        "volume size",
        "teamId",
        "databases firmendaten",
        "postgresql version",
        "postgresql parameters max_connections",
        "resources limits cpu",
        "enableMasterLoadBalancer",
        "enableReplicaLoadBalancer",
        "masterServiceAnnotations metallb.io/address-pool",
        "replicaServiceAnnotations metallb.io/address-pool",
        "enableConnectionPooler",
        "connectionPooler mode",
        "connectionPooler maxDBConnections",
    ),
    ("postgres-operator-chart", "values"): (
        "configGeneral repair_period",
        "configGeneral resync_period",
        "configTimeouts",
        # The database says so itself.
        "configPatroni enable_patroni_failsafe_mode",
        "configConnectionPooler connection_pooler_default_cpu_request",
        "configConnectionPooler connection_pooler_default_memory_request",
        "configConnectionPooler connection_pooler_default_memory_limit",
        "configKubernetes enable_readiness_probe",
        "configKubernetes pod_management_policy",
        "configKubernetes pod_terminate_grace_period",
        "configKubernetes storage_resize_mode",
        "configKubernetes spilo_runasgroup",
        "configKubernetes spilo_fsgroup",
        "resources",
        "tolerations",
    ),
    ("k3s", "serverSettings"): ("cluster-cidr", "service-cidr"),
    ("postgres-pooler-address", "spec"): ("ports", "selector"),
    ("metallb-pool", "spec"): ("avoidBuggyIPs",),
    ("metallb-advertisement", "spec"): (),
}
"""Resource and property to what may be anything in it: no policy looks there, on purpose."""

OUTPUTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "api": {
        "endpoint": "https://10.0.145.110:6443",
        "addresses": ["10.0.145.114"],
        "server_addresses": ["10.0.145.110"],
    },
    "k3s": {"server_addresses": ["10.0.145.110"], "worker_addresses": ["10.0.145.113"]},
    "datastore": {"address": "10.0.145.110"},
    "backup-share": {"server": "10.0.145.112", "allowed_network": WORLD},
}
"""Component to output to what becomes of it: policies of the whole plan see outputs."""

OPTIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "postgres-cluster": {"protect": False},
    "postgres-namespace": {"protect": False},
    "gl2-container": {"protect": False, "delete_before_replace": False},
    "gl8-container": {"protect": False, "ignore_changes": ()},
    "k3s-token": {"protect": False},
    "k3s-agent-token": {"protect": False},
    "k3s-gl2": {"delete_before_replace": False},
    "backup-schedule": {"delete_before_replace": False},
}
"""Resource to resource option to what it is set to."""

REMOVED: Final = (
    "postgres-cluster",
    "postgres-operator-chart",
    "postgres-default-deny",
    "gl3-container",
    "gl10-container",
    "metallb-advertisement",
    "backup-schedule",
)
"""Resources whose absence is noticed."""


def thing(type_: str, name: str, **properties: Any) -> Planned:
    """A resource that somebody adds, with options that nobody minds."""
    return Planned(type=type_, name=name, properties=properties, protect=True, delete_before_replace=True)


ADDED: Final[Mapping[str, Planned]] = {
    "which may do everything in the cluster": thing(
        vocabulary.ROLES[0], "another-role", rules=[{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]
    ),
    "to cluster-admin": thing(
        vocabulary.ROLE_BINDINGS[0], "another-binding", roleRef={"kind": "ClusterRole", "name": "cluster-admin"}
    ),
    "with a pod that shares its machine's network": thing(
        vocabulary.WORKLOADS[1], "another-deployment", spec={"template": {"spec": {"hostNetwork": True}}}
    ),
    "open to everybody": thing(
        vocabulary.SERVICE, "another-service", spec={"type": "LoadBalancer", "loadBalancerSourceRanges": [WORLD]}
    ),
    "outside of the machines' network": thing(
        vocabulary.ADDRESS_POOL, "another-pool", spec={"addresses": ["10.0.146.10-10.0.146.20"], "autoAssign": False}
    ),
    "that opens SSH to everybody": thing(
        FIREWALL_RULES, "another-rule", rules=[{"type": "in", "action": "ACCEPT", "proto": "tcp", "dport": "22"}]
    ),
    "that changes a part of an object": thing("kubernetes:core/v1:ServicePatch", "another-patch", spec={}),
    "which nobody backs up": thing(
        vocabulary.DATABASE, "another-database", metadata={"name": "another"}, spec={"numberOfInstances": 3}
    ),
}
"""Resources that are added, by what is wrong with them."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """One change of the school's plan."""

    resource: str
    """Logical name of what is changed, added or removed."""
    what: str
    """The property that is changed, or what is done to the resource as a whole."""
    to: str
    """What it is set to."""
    made_in: Change
    """Makes the changed plan of the school's."""

    def __str__(self) -> str:
        return f"{self.resource} {self.what} {self.to}".rstrip()


def mutations() -> Iterator[Mutation]:
    """Every change of the tables above."""
    for resource, properties in PROPERTIES.items():
        for path, value in properties.items():
            yield Mutation(resource, _written(path), shown(value), set_property(resource, path, value))
    for resource, outputs in OUTPUTS.items():
        for name, value in outputs.items():
            yield Mutation(resource, f"output {name}", shown(value), output(resource, name, value))
    for resource, options in OPTIONS.items():
        for option, value in options.items():
            yield Mutation(resource, f"option {option}", shown(value), set_option(resource, **{option: value}))
    for resource in REMOVED:
        yield Mutation(resource, "is left out", "", without(resource))
    for fault, added in ADDED.items():
        yield Mutation(added.name, f"is added, {fault}", "", adding(added))


def set_property(resource: str, path: str, value: Any) -> Change:
    """One property of a resource gets another value; the steps of its path are words, and a number is a place in a list."""
    return setting(resource, *(int(step) if step.isdigit() else step for step in path.split()), to=value)


def set_option(resource: str, **option: Any) -> Change:
    """One option of a resource gets another value."""

    def change(plan: Sequence[Planned]) -> list[Planned]:
        changed = [replace(planned, **option) if planned.name == resource else planned for planned in plan]
        assert changed != list(plan), f"{resource} is not in the plan, or had {option} before"
        return changed

    return change


def noticed_by(judge: Judge, plan: Sequence[Planned], changed: Sequence[Planned]) -> frozenset[str]:
    """The mandatory policies that refuse a changed plan, of which they refuse nothing before the change."""
    verdicts = [judge.of_resource(resource) for resource in changed if resource not in plan]
    return frozenset().union(judge.of_stack(changed).mandatory, *(verdict.mandatory for verdict in verdicts))


def _written(path: str) -> str:
    return ".".join(path.replace(POD, "(pod)").split())


class _Rows:
    """Collects what the tests recorded."""

    def __init__(self) -> None:
        self.table = Table()
        for heading in ("resource", "property", "set to", "noticed by"):
            self.table.add_column(heading, overflow="fold")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest after each part of each test."""
        row = [str(value) for name, value in report.user_properties if name == "row"]
        if report.when == "call" and row:
            self.table.add_row(*row)


def main() -> int:
    """Run the tests of the mutations, print their table, and return pytest's exit code."""
    rows = _Rows()
    code = pytest.main(
        ["-q", "--no-header", "--tb=line", str(Path(__file__).with_name("test_mutations.py"))], plugins=[rows]
    )
    Console().print(rows.table)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
