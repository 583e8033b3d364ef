"""Availability: each policy passes, fails, does not take absence for consent, and waits for what is not known yet."""

from __future__ import annotations

import pytest

from policy import availability, placement, roles, vocabulary
from tests.policy.cases import (
    AnyPolicy,
    Change,
    adding,
    assert_refused,
    changed,
    copy_of,
    judged,
    left_open,
    names_of,
    output,
    said,
    setting,
    unknown,
    without,
)
from tests.policy.judging import UNKNOWN as NOT_KNOWN
from tests.policy.judging import Judge, Planned

pytestmark = pytest.mark.unit

DATABASE, OPERATOR, K3S = "postgres-cluster", "postgres-operator-chart", "k3s"
ANTIAFFINITY = ("values", "configKubernetes", "enable_pod_antiaffinity")
PREFERRED = ("values", "configKubernetes", "pod_antiaffinity_preferred_during_scheduling")
TOPOLOGY = ("values", "configKubernetes", "pod_antiaffinity_topology_key")
BUDGET = ("values", "configKubernetes", "enable_pod_disruption_budget")
FAILSAFE = ("values", "configPatroni", "enable_patroni_failsafe_mode")
POOLERS = ("values", "configConnectionPooler", "connection_pooler_number_of_instances")
GRACE_PERIOD = ("serverSettings", "kube-controller-manager-arg")
TOLERATIONS = ("serverSettings", "kube-apiserver-arg")


def members(count: int | None) -> Change:
    return setting(DATABASE, "spec", "numberOfInstances", to=count)


def patroni(name: str, value: object) -> Change:
    return setting(DATABASE, "spec", "patroni", name, to=value)


def on_host(machine: str, host: str) -> Change:
    return setting(f"{machine}-container", "nodeName", to=host)


def place(machine: str, order: int | None) -> Change:
    return setting(f"{machine}-container", "startup", "order", to=order)


def one_more(like: str, name: str, host: str) -> Change:
    """One more machine on a host."""
    new = f"{name}-container"
    return copy_of(
        f"{like}-container", new, setting(new, "initialization", "hostname", to=name), setting(new, "nodeName", to=host)
    )


THREE_DATASTORES = (on_host("gl8", "pve4"), one_more("gl8", "gl18", "pve5"), one_more("gl8", "gl28", "pve6"))
FIVE_ON_THREE_HOSTS = (one_more("gl6", "gl12", "pve1"), one_more("gl6", "gl13", "pve2"), members(5))
TWO_COPIES = setting(DATABASE, "spec", "patroni", "synchronous_node_count", to=2)
SERVER_ON_THE_THIRD_HOST = one_more("gl3", "gl4", "pve3")
FOUR_WORKERS = (one_more("gl6", "gl12", "pve4"), one_more("gl6", "gl13", "pve5"))

BROKEN: list[tuple[AnyPolicy, list[Change], str]] = [
    (
        availability.DATABASE_THREE_MEMBERS,
        [members(2)],
        "postgres-cluster has 2 members; allowed are 3 or more. Set `postgres.instances` to 3 or more.",
    ),
    (availability.DATABASE_THREE_MEMBERS, [members(None)], "postgres-cluster has no number of members; allowed are 3"),
    (
        availability.DATABASE_DISRUPTION_BUDGET,
        [setting(OPERATOR, *BUDGET, to=False)],
        "postgres-operator-chart switches `enable_pod_disruption_budget` off; allowed is true.",
    ),
    (
        availability.DATABASE_DISRUPTION_BUDGET,
        [setting(OPERATOR, "chart", to="oci://ghcr.io/x/postgres-operator"), setting(OPERATOR, *BUDGET, to=False)],
        "`enable_pod_disruption_budget` off",
    ),
    (
        availability.DATABASE_DISRUPTION_BUDGET,
        [setting(OPERATOR, "chart", to="charts/postgres-operator-1.15.0.tgz"), setting(OPERATOR, *BUDGET, to=False)],
        "`enable_pod_disruption_budget` off",
    ),
    (
        availability.DATABASE_FAILSAFE_MODE,
        [patroni("failsafe_mode", False)],
        "postgres-cluster has Patroni's `failsafe_mode` false; allowed is true.",
    ),
    (
        availability.DATABASE_FAILSAFE_MODE,
        [patroni("failsafe_mode", None), setting(OPERATOR, *FAILSAFE, to=None)],
        "postgres-cluster leaves Patroni's `failsafe_mode` to its default, which is off; allowed is true.",
    ),
    (
        availability.DATABASE_FAILSAFE_MODE,
        [patroni("failsafe_mode", None), without(OPERATOR)],
        "to its default, which is off",
    ),
    (
        availability.PATRONI_TIMINGS,
        [patroni("loop_wait", 15)],
        "has Patroni's loop_wait + 2 x retry_timeout at 15 + 2 x 3 = 21 s; allowed is at most its ttl, 20 s.",
    ),
    (availability.PATRONI_TIMINGS, [patroni("loop_wait", None), patroni("retry_timeout", 6)], "10 + 2 x 6 = 22 s"),
    (availability.PATRONI_TIMINGS, [patroni("loop_wait", 0), patroni("retry_timeout", 6)], "10 + 2 x 6 = 22 s"),
    (availability.PATRONI_TIMINGS, [patroni("retry_timeout", None)], "2 + 2 x 10 = 22 s; allowed is at most its ttl"),
    (
        availability.PATRONI_TIMINGS,
        [patroni("ttl", 19)],
        "postgres-cluster has Patroni's `ttl` at 19 s; allowed are 20 s or more.",
    ),
    (availability.PATRONI_TIMINGS, [patroni("retry_timeout", 2)], "`retry_timeout` at 2 s; allowed are 3 s or more."),
    (
        availability.POOLER_TWO_INSTANCES,
        [setting(DATABASE, "spec", "connectionPooler", "numberOfInstances", to=1)],
        "postgres-cluster has 1 pooler; allowed are 2 or more.",
    ),
    (
        availability.POOLER_TWO_INSTANCES,
        [setting(DATABASE, "spec", "connectionPooler", "numberOfInstances", to=0)],
        "postgres-cluster has no pooler; allowed are 2 or more.",
    ),
    (
        availability.POOLER_TWO_INSTANCES,
        [setting(DATABASE, "spec", "connectionPooler", to=None), setting(OPERATOR, *POOLERS, to=1)],
        "postgres-cluster has 1 pooler; allowed are 2 or more.",
    ),
    (
        availability.POOLER_TWO_INSTANCES,
        [
            setting(DATABASE, "spec", "enableConnectionPooler", to=None),
            setting(DATABASE, "spec", "connectionPooler", "numberOfInstances", to=1),
        ],
        "has 1 pooler",
    ),
    (
        availability.K3S_TWO_SERVERS,
        [without("gl3-container")],
        "K3s servers in the plan: gl2; allowed are 2 or more. Give another machine in `machines` the role k3s-server.",
    ),
    (availability.K3S_TWO_SERVERS, [setting("gl3-container", "tags", to=None)], "K3s servers in the plan: gl2;"),
    (availability.K3S_TWO_SERVERS, [without("gl2-container", "gl3-container")], "K3s servers in the plan: none;"),
    (
        availability.K3S_NODE_FAILURE_NOTICED,
        [setting(K3S, *GRACE_PERIOD, to=["node-monitor-grace-period=31s"])],
        "k3s has `node-monitor-grace-period` at 31 s; allowed are at most 30 s.",
    ),
    (availability.K3S_NODE_FAILURE_NOTICED, [setting(K3S, *GRACE_PERIOD, to=[])], "at 50 s; allowed are at most 30 s."),
    (availability.K3S_NODE_FAILURE_NOTICED, [setting(K3S, "serverSettings", to=None)], "at 50 s; allowed are at most"),
    (
        availability.K3S_NODE_FAILURE_NOTICED,
        [setting(K3S, *GRACE_PERIOD, to=["node-monitor-grace-period=16s", "--node-monitor-grace-period=1m5s"])],
        "at 65 s; allowed are at most 30 s.",
    ),
    (
        availability.K3S_NODE_FAILURE_NOTICED,
        [setting(K3S, *GRACE_PERIOD, to=["node-monitor-grace-period=soon"])],
        "at no whole number of seconds; allowed are at most 30 s.",
    ),
    (
        availability.K3S_NODE_FAILURE_NOTICED,
        [setting(K3S, *GRACE_PERIOD, to=["node-monitor-grace-period="])],
        "at no whole number of seconds; allowed are at most 30 s.",
    ),
    (
        availability.K3S_PODS_MOVE_AWAY,
        [setting(K3S, *TOLERATIONS, to=["default-not-ready-toleration-seconds=30"])],
        "k3s has `default-unreachable-toleration-seconds` at 300 s; allowed are at most 60 s.",
    ),
    (
        availability.K3S_PODS_MOVE_AWAY,
        [
            setting(
                K3S,
                *TOLERATIONS,
                to=["default-not-ready-toleration-seconds=61", "default-unreachable-toleration-seconds=60"],
            )
        ],
        "k3s has `default-not-ready-toleration-seconds` at 61 s; allowed are at most 60 s.",
    ),
    (
        availability.API_LOAD_BALANCERS_TWO,
        [without("gl10-container")],
        "Balancers of the Kubernetes API in the plan: gl9; allowed are 2 or more.",
    ),
    (
        availability.API_LOAD_BALANCERS_TWO,
        [without("gl9-container", "gl10-container")],
        "Balancers of the Kubernetes API in the plan: none; allowed are 2 or more.",
    ),
    (
        availability.MACHINE_STARTS_ON_BOOT,
        [setting("gl8-container", "startOnBoot", to=False)],
        "gl8 does not start with its Proxmox host: `startOnBoot` is not true, the only value allowed.",
    ),
    (
        availability.MACHINE_STARTS_ON_BOOT,
        [setting("gl2-container", "started", to=False)],
        "gl2 does not run: `started` is not true, the only value allowed.",
    ),
    (
        availability.MACHINE_START_ORDER,
        [place("gl6", 3)],
        "gl6 starts at place 3; allowed is a place after what it needs: gl2 (3), gl3 (3).",
    ),
    (
        availability.MACHINE_START_ORDER,
        [place("gl2", 1)],
        "gl2 starts at place 1; allowed is a place after what it needs: gl8 (1), gl9 (2), gl10 (2).",
    ),
    (
        availability.MACHINE_START_ORDER,
        [place("gl2", None)],
        "gl2 has no place in the start order; allowed is 0 or a greater number.",
    ),
    (availability.MACHINE_START_ORDER, [place("gl8", -1)], "gl8 has no place in the start order;"),
    (
        availability.MACHINE_START_ORDER,
        [setting("gl6-container", "startup", to=None)],
        "gl6 has no place in the start order;",
    ),
    (
        placement.DATABASE_MEMBERS_ON_DIFFERENT_MACHINES,
        [setting(OPERATOR, *ANTIAFFINITY, to=None)],
        "postgres-operator-chart does not set `enable_pod_antiaffinity`; allowed is true, and the chart's default is false.",
    ),
    (
        placement.DATABASE_MEMBERS_ON_DIFFERENT_MACHINES,
        [setting(OPERATOR, "values", to=None)],
        "does not set `enable_pod_antiaffinity`",
    ),
    (
        placement.DATABASE_MEMBERS_ON_DIFFERENT_MACHINES,
        [setting(OPERATOR, *PREFERRED, to=True)],
        "sets `pod_antiaffinity_preferred_during_scheduling`; allowed is false.",
    ),
    (
        placement.DATABASE_MEMBERS_ON_DIFFERENT_MACHINES,
        [setting(OPERATOR, *TOPOLOGY, to="topology.kubernetes.io/zone")],
        "changes `pod_antiaffinity_topology_key`; allowed is kubernetes.io/hostname.",
    ),
    (
        placement.DATABASE_MEMBERS_FIT_MACHINES,
        [members(4)],
        "postgres-cluster has 4 members, each on a machine of its own, and the plan has 3 K3s machines (gl2, gl3, gl6); "
        "allowed are at most as many.",
    ),
    (
        placement.DATABASE_MEMBERS_FIT_MACHINES,
        [setting(DATABASE, "spec", "connectionPooler", "numberOfInstances", to=4)],
        "postgres-cluster has 4 poolers, each on a machine of its own,",
    ),
    (
        placement.DATABASE_MEMBERS_FIT_MACHINES,
        [without("gl6-container")],
        "has 3 members, each on a machine of its own, and the plan has 2 K3s machines (gl2, gl3);",
    ),
    (
        placement.K3S_SERVERS_ON_DIFFERENT_HOSTS,
        [on_host("gl3", "pve1")],
        "All K3s servers (gl2, gl3) are on pve1; allowed are at least 2 Proxmox hosts.",
    ),
    (
        placement.K3S_SERVERS_ON_DIFFERENT_HOSTS,
        [setting("gl2-container", "nodeName", to=None), setting("gl3-container", "nodeName", to=None)],
        "are on a Proxmox host without a name;",
    ),
    (
        placement.K3S_MACHINES_ACROSS_HOSTS,
        [on_host("gl6", "pve1")],
        "pve1 carries 2 K3s machines (gl2, gl6), so its loss can take 2 of the 3 members of postgres-cluster; allowed are 1.",
    ),
    # Its three members may land on both machines of one host.
    (
        placement.K3S_MACHINES_ACROSS_HOSTS,
        [one_more("gl6", "gl12", "pve1")],
        "pve1 carries 2 K3s machines (gl2, gl12), so its loss can take 2 of the 3 members of postgres-cluster; allowed are "
        "1. Use another Proxmox host for the machine (`machines`, key `proxmoxHost`), or add two machines and raise "
        "`postgres.instances` to 5 in the same change.",
    ),
    (
        placement.K3S_MACHINES_ACROSS_HOSTS,
        [*FOUR_WORKERS, members(5), TWO_COPIES, on_host("gl6", "pve1"), on_host("gl12", "pve1")],
        "pve1 carries 3 K3s machines (gl2, gl6, gl12), so its loss can take 3 of the 5 members of postgres-cluster;",
    ),
    # The one synchronous standby may be on the primary's host.
    (
        placement.K3S_MACHINES_ACROSS_HOSTS,
        [*FOUR_WORKERS, members(5), on_host("gl6", "pve1")],
        "pve1 carries 2 K3s machines (gl2, gl6), so its loss can take 2 of the 5 members of postgres-cluster; allowed are 1.",
    ),
    (
        placement.DATASTORE_APART_FROM_K3S_SERVERS,
        [on_host("gl8", "pve2")],
        "pve2 carries the datastore gl8 and the K3s servers gl3, so its loss leaves gl2; allowed are 2 servers or more on "
        "other hosts.",
    ),
    (
        placement.DATASTORE_APART_FROM_K3S_SERVERS,
        [*(on_host(name, "pve1") for name in ("gl3", "gl8"))],
        "pve1 carries the datastore gl8 and the K3s servers gl2, gl3, so its loss leaves no server;",
    ),
    (
        placement.DATASTORE_APART_FROM_K3S_SERVERS,
        [one_more("gl2", "gl4", "pve2"), on_host("gl8", "pve2")],
        "and the K3s servers gl3, gl4, so its loss leaves gl2;",
    ),
    (
        placement.API_LOAD_BALANCERS_ON_DIFFERENT_HOSTS,
        [on_host("gl9", "pve2")],
        "All balancers of the Kubernetes API (gl9, gl10) are on pve2; allowed are at least 2 Proxmox hosts.",
    ),
    (
        placement.LONGHORN_NEEDS_KVM,
        [setting(DATABASE, "spec", "volume", "storageClass", to="longhorn")],
        "postgres-cluster uses Longhorn, and the K3s machines (gl2, gl3, gl6) are LXC containers; allowed are virtual",
    ),
    (
        placement.LONGHORN_NEEDS_KVM,
        [adding(Planned(type=vocabulary.RELEASE, name="storage", properties={"chart": "oci://x.example/longhorn"}))],
        "storage uses Longhorn",
    ),
    (
        placement.LONGHORN_NEEDS_KVM,
        [
            adding(
                Planned(
                    type=vocabulary.VOLUME_CLAIM,
                    name="claim",
                    properties={"spec": {"storageClassName": "longhorn-static"}},
                )
            )
        ],
        "claim uses Longhorn",
    ),
    (
        placement.LONGHORN_NEEDS_KVM,
        [
            adding(
                Planned(
                    type="kubernetes:apps/v1:StatefulSet",
                    name="set",
                    properties={"spec": {"volumeClaimTemplates": [{"spec": {"storageClassName": "longhorn"}}]}},
                )
            )
        ],
        "set uses Longhorn",
    ),
    (
        availability.DATABASE_HAS_OPERATOR,
        [without(OPERATOR)],
        "postgres-cluster has 0 Helm releases of the chart postgres-operator (none); allowed is one. Install it with one",
    ),
    (
        availability.DATABASE_HAS_OPERATOR,
        [setting(OPERATOR, "chart", to="oci://registry.example/school/database-operator")],
        "has 0 Helm releases of the chart postgres-operator (none);",
    ),
    (availability.DATABASE_HAS_OPERATOR, [setting(OPERATOR, "chart", to=None)], "has 0 Helm releases"),
    (
        availability.DATABASE_HAS_OPERATOR,
        [copy_of(OPERATOR, "another", setting("another", "chart", to="./charts/postgres-operator/"))],
        "has 2 Helm releases of the chart postgres-operator (another, postgres-operator-chart); allowed is one.",
    ),
    (
        roles.MACHINE_HAS_ROLE,
        [setting("gl6-container", "tags", to=["school-postgres-school"])],
        "gl6 has the tags school-postgres-school; allowed is at least one of k3s-server, k3s-worker, datastore, "
        "api-load-balancer, file-share. Give it at least one of the `roles` in `machines`",
    ),
    (roles.MACHINE_HAS_ROLE, [setting("gl6-container", "tags", to=None)], "gl6 has the tags none; allowed is at least"),
    (
        roles.MACHINE_RUNS_ITS_ROLES,
        [output("datastore", "address", "10.0.145.110")],
        "datastore runs the datastore on gl2, and the tag datastore is on gl8; allowed are the same machines.",
    ),
    (
        roles.MACHINE_RUNS_ITS_ROLES,
        [output("datastore", "address", None)],
        "datastore runs the datastore on no machine, and the tag datastore is on gl8;",
    ),
    (
        roles.MACHINE_RUNS_ITS_ROLES,
        [output("api", "addresses", ["10.0.145.114"])],
        "api runs balancers on gl9, and the tag api-load-balancer is on gl9, gl10;",
    ),
    (
        roles.MACHINE_RUNS_ITS_ROLES,
        [output("k3s", "server_addresses", ["10.0.145.110", "10.0.145.99"])],
        "k3s runs K3s servers on gl2, 10.0.145.99, and the tag k3s-server is on gl2, gl3;",
    ),
    (
        roles.MACHINE_RUNS_ITS_ROLES,
        [setting("gl6-container", "tags", to=None)],
        "k3s runs K3s workers on gl6, and the tag k3s-worker is on no machine;",
    ),
    (
        roles.MACHINE_RUNS_ITS_ROLES,
        [output("backup-share", "server", "10.0.145.112")],
        "backup-share runs the file share on gl6, and the tag file-share is on gl8;",
    ),
    (
        roles.MACHINE_RUNS_ITS_ROLES,
        [setting("gl6-container", "initialization", "ipConfigs", to=None)],
        "k3s runs K3s workers on 10.0.145.112, and the tag k3s-worker is on gl6;",
    ),
    (
        roles.API_LOAD_BALANCERS_REACH_EVERY_SERVER,
        [output("api", "server_addresses", ["10.0.145.110"])],
        "api forwards to gl2, and the K3s servers are gl2, gl3; allowed are all of them and no other.",
    ),
    (
        roles.API_LOAD_BALANCERS_REACH_EVERY_SERVER,
        [output("api", "server_addresses", ["10.0.145.110", "10.0.145.111", "10.0.145.112"])],
        "api forwards to gl2, gl3, gl6, and the K3s servers are gl2, gl3;",
    ),
    (
        roles.API_LOAD_BALANCERS_REACH_EVERY_SERVER,
        [output("api", "server_addresses", None)],
        "api forwards to no machine, and the K3s servers are gl2, gl3;",
    ),
    (
        roles.FILE_SHARE_CLOSED,
        [output("backup-share", "allowed_network", "0.0.0.0/0")],
        "backup-share admits 0.0.0.0/0; allowed is the machines' network (10.0.145.0/24) or a part of it.",
    ),
    (roles.FILE_SHARE_CLOSED, [output("backup-share", "allowed_network", "10.0.144.0/23")], "admits 10.0.144.0/23;"),
    (roles.FILE_SHARE_CLOSED, [output("backup-share", "allowed_network", "192.168.7.0/24")], "admits 192.168.7.0/24;"),
    (roles.FILE_SHARE_CLOSED, [output("backup-share", "allowed_network", "::/0")], "admits ::/0;"),
    (
        roles.FILE_SHARE_CLOSED,
        [output("backup-share", "allowed_network", None)],
        "backup-share admits no network that can be read; allowed is the machines' network",
    ),
    (
        roles.FILE_SHARE_CLOSED,
        [setting("gl8-container", "tags", to=["datastore", "file-share", "k3s-worker"])],
        "backup-share is on gl8, which runs pods; allowed is a machine that runs none.",
    ),
]
"""Policy, what is done to the school's plan, and the sentence."""

KEPT: list[tuple[AnyPolicy, list[Change]]] = [
    (availability.DATABASE_THREE_MEMBERS, [members(5)]),
    # The chart's own default.
    (availability.DATABASE_DISRUPTION_BUDGET, [setting(OPERATOR, *BUDGET, to=None)]),
    # Not the operator: its user interface.
    (
        availability.DATABASE_DISRUPTION_BUDGET,
        [setting(OPERATOR, "chart", to="postgres-operator-ui"), setting(OPERATOR, *BUDGET, to=False)],
    ),
    (availability.DATABASE_FAILSAFE_MODE, [setting(OPERATOR, *FAILSAFE, to=None)]),
    (availability.DATABASE_FAILSAFE_MODE, [patroni("failsafe_mode", None)]),
    # Patroni's defaults: 10 + 2 x 10 = 30.
    (availability.PATRONI_TIMINGS, [setting(DATABASE, "spec", "patroni", to=None)]),
    (availability.PATRONI_TIMINGS, [patroni("loop_wait", 14)]),
    (availability.POOLER_TWO_INSTANCES, [setting(DATABASE, "spec", "connectionPooler", to=None)]),
    (
        availability.POOLER_TWO_INSTANCES,
        [
            setting(DATABASE, "spec", "enableConnectionPooler", to=False),
            setting(DATABASE, "spec", "connectionPooler", "numberOfInstances", to=1),
        ],
    ),
    (availability.K3S_TWO_SERVERS, [one_more("gl3", "gl4", "pve3")]),
    (
        availability.K3S_NODE_FAILURE_NOTICED,
        [setting(K3S, *GRACE_PERIOD, to=["another=1m", "--node-monitor-grace-period=30s"])],
    ),
    (availability.API_LOAD_BALANCERS_TWO, [one_more("gl9", "gl11", "pve3")]),
    (availability.DATASTORE_REDUNDANT, [*THREE_DATASTORES]),
    # The provider's own defaults.
    (
        availability.MACHINE_STARTS_ON_BOOT,
        [setting("gl8-container", "startOnBoot", to=None), setting("gl8-container", "started", to=None)],
    ),
    # A machine with several tasks starts with the first of them.
    (
        availability.MACHINE_START_ORDER,
        [setting("gl2-container", "tags", to=["datastore", "k3s-server"]), place("gl2", 1)],
    ),
    (
        placement.DATABASE_MEMBERS_ON_DIFFERENT_MACHINES,
        [setting(OPERATOR, *PREFERRED, to=None), setting(OPERATOR, *TOPOLOGY, to=placement.ONE_A_MACHINE)],
    ),
    (placement.DATABASE_MEMBERS_FIT_MACHINES, [*FOUR_WORKERS, members(5)]),
    # The chart's two poolers fit as well.
    (
        placement.DATABASE_MEMBERS_FIT_MACHINES,
        [members(2), setting(DATABASE, "spec", "connectionPooler", to=None), without("gl6-container")],
    ),
    # Nothing keeps members apart then, which is another policy's business.
    (placement.DATABASE_MEMBERS_FIT_MACHINES, [members(4), setting(OPERATOR, *PREFERRED, to=True)]),
    (placement.DATABASE_MEMBERS_FIT_MACHINES, [members(4), setting(OPERATOR, *ANTIAFFINITY, to=None)]),
    (placement.K3S_SERVERS_ON_DIFFERENT_HOSTS, [without("gl2-container")]),
    (placement.K3S_MACHINES_ACROSS_HOSTS, [*FOUR_WORKERS, members(5), TWO_COPIES, on_host("gl6", "pve1")]),
    (placement.K3S_MACHINES_ACROSS_HOSTS, [*FIVE_ON_THREE_HOSTS, TWO_COPIES]),
    (placement.K3S_MACHINES_ACROSS_HOSTS, [members(2), on_host("gl6", "pve1")]),
    (placement.K3S_MACHINES_ACROSS_HOSTS, [members(None), on_host("gl6", "pve1")]),
    (placement.DATASTORE_APART_FROM_K3S_SERVERS, [SERVER_ON_THE_THIRD_HOST]),
    # A single server is another policy's business.
    (placement.DATASTORE_APART_FROM_K3S_SERVERS, [without("gl3-container")]),
    (placement.DATASTORE_APART_FROM_K3S_SERVERS, [*THREE_DATASTORES, on_host("gl8", "pve1")]),
    (placement.API_LOAD_BALANCERS_ON_DIFFERENT_HOSTS, [without("gl9-container")]),
    (
        placement.LONGHORN_NEEDS_KVM,
        [
            without("gl2-container", "gl3-container", "gl6-container"),
            setting(DATABASE, "spec", "volume", "storageClass", to="longhorn"),
        ],
    ),
    (placement.LONGHORN_NEEDS_KVM, [setting(DATABASE, "spec", "volume", "storageClass", to=None)]),
    *(
        (availability.DATABASE_HAS_OPERATOR, [setting(OPERATOR, "chart", to=chart)])
        for chart in (
            "zalando/postgres-operator",
            "./charts/postgres-operator/",
            "charts/postgres-operator-1.15.0",
            "postgres-operator.tgz",
            "https://charts.example/postgres-operator-1.15.0.tgz?from=mirror",
            "oci://registry.example/charts/postgres-operator:1.15.0",
            "oci://registry.example/charts/postgres-operator@sha256:0123456789abcdef",
        )
    ),
    # Its user interface is another chart.
    (
        availability.DATABASE_HAS_OPERATOR,
        [copy_of(OPERATOR, "another", setting("another", "chart", to="postgres-operator-ui"))],
    ),
    (availability.DATABASE_HAS_OPERATOR, [without(OPERATOR, DATABASE)]),
    (roles.MACHINE_HAS_ROLE, [setting("gl6-container", "tags", to=["file-share"])]),
    (
        roles.MACHINE_RUNS_ITS_ROLES,
        [without("gl6-container"), output("k3s", "worker_addresses", [])],
    ),
    (
        roles.API_LOAD_BALANCERS_REACH_EVERY_SERVER,
        [output("api", "server_addresses", ["10.0.145.111", "10.0.145.110"])],
    ),
    (roles.FILE_SHARE_CLOSED, [output("backup-share", "allowed_network", "10.0.145.96/27")]),
]
"""Policy, and what is done to the school's plan without breaking it."""

UNKNOWN: list[tuple[AnyPolicy, Change, str]] = [
    (
        availability.DATABASE_THREE_MEMBERS,
        unknown(DATABASE, "spec", "numberOfInstances"),
        "spec.numberOfInstances of postgres-cluster: not known yet, checked at `pulumi up`",
    ),
    (availability.DATABASE_DISRUPTION_BUDGET, unknown(OPERATOR, *BUDGET), f"{'.'.join(BUDGET)} of {OPERATOR}"),
    (availability.DATABASE_FAILSAFE_MODE, unknown(DATABASE, "spec", "patroni"), "spec.patroni of postgres-cluster"),
    (availability.PATRONI_TIMINGS, unknown(DATABASE, "spec", "patroni", "ttl"), "spec.patroni.ttl of postgres-cluster"),
    (
        availability.POOLER_TWO_INSTANCES,
        unknown(DATABASE, "spec", "connectionPooler", "numberOfInstances"),
        "spec.connectionPooler.numberOfInstances of postgres-cluster",
    ),
    (availability.K3S_TWO_SERVERS, unknown("gl3-container", "tags"), "tags of stack"),
    (availability.K3S_NODE_FAILURE_NOTICED, unknown(K3S, "serverSettings"), "serverSettings of k3s"),
    (availability.K3S_PODS_MOVE_AWAY, unknown(K3S, *TOLERATIONS), f"{'.'.join(TOLERATIONS)} of k3s"),
    (availability.DATASTORE_REDUNDANT, unknown("gl8-container", "tags"), "tags of stack"),
    (availability.API_LOAD_BALANCERS_TWO, unknown("gl9-container", "tags"), "tags of stack"),
    (availability.MACHINE_STARTS_ON_BOOT, unknown("gl8-container", "startOnBoot"), "startOnBoot of gl8-container"),
    (availability.MACHINE_START_ORDER, unknown("gl8-container", "startup", "order"), "startup.order of stack"),
    (
        placement.DATABASE_MEMBERS_ON_DIFFERENT_MACHINES,
        unknown(OPERATOR, *ANTIAFFINITY),
        f"{'.'.join(ANTIAFFINITY)} of {OPERATOR}",
    ),
    (
        placement.DATABASE_MEMBERS_FIT_MACHINES,
        unknown(DATABASE, "spec", "numberOfInstances"),
        "spec.numberOfInstances of postgres-cluster",
    ),
    (placement.K3S_SERVERS_ON_DIFFERENT_HOSTS, unknown("gl3-container", "nodeName"), "nodeName of stack"),
    (placement.K3S_MACHINES_ACROSS_HOSTS, unknown("gl6-container", "nodeName"), "nodeName of postgres-cluster"),
    (placement.DATASTORE_APART_FROM_K3S_SERVERS, unknown("gl8-container", "nodeName"), "nodeName of stack"),
    (placement.API_LOAD_BALANCERS_ON_DIFFERENT_HOSTS, unknown("gl9-container", "nodeName"), "nodeName of stack"),
    (
        placement.LONGHORN_NEEDS_KVM,
        unknown(DATABASE, "spec", "volume", "storageClass"),
        "spec.volume.storageClass of postgres-cluster",
    ),
    (availability.DATABASE_HAS_OPERATOR, unknown(OPERATOR, "chart"), "chart of postgres-cluster"),
    (roles.MACHINE_HAS_ROLE, unknown("gl6-container", "tags"), "tags of gl6-container"),
    (roles.MACHINE_RUNS_ITS_ROLES, output("datastore", "address", NOT_KNOWN), "address of datastore"),
    (
        roles.API_LOAD_BALANCERS_REACH_EVERY_SERVER,
        output("api", "server_addresses", NOT_KNOWN),
        "server_addresses of api",
    ),
    (roles.FILE_SHARE_CLOSED, output("backup-share", "allowed_network", NOT_KNOWN), "allowed_network of backup-share"),
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


@pytest.mark.parametrize(("policy", "change", "what"), UNKNOWN, ids=names_of(UNKNOWN))
def test_what_is_not_known_yet_is_checked_at_up(
    school_plan: list[Planned], policy: AnyPolicy, change: Change, what: str
) -> None:
    assert what in left_open(policy, changed(school_plan, change))


def test_the_school_keeps_every_policy_and_is_advised_once(
    school_plan: list[Planned], first_plan: list[Planned]
) -> None:
    for plan in (school_plan, first_plan):
        verdict = Judge(*availability.POLICIES).of_plan(plan)
        assert set(verdict.violations) == {"datastore-redundant"}
        assert not verdict.mandatory
        assert not verdict.checked_at_up


def test_every_policy_is_in_the_tables() -> None:
    mandatory = set(availability.POLICIES) - {availability.DATASTORE_REDUNDANT}
    assert {policy for policy, _, _ in BROKEN} == mandatory
    assert {policy for policy, _, _ in UNKNOWN} == set(availability.POLICIES)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ([], "Datastores in the plan: gl8; a redundant one has 3, 5 or 7 machines."),
        ([without("gl8-container")], "Datastores in the plan: none; a redundant one has"),
        ([one_more("gl8", "gl18", "pve4")], "Datastores in the plan: gl8, gl18; a redundant one has"),
        (
            [*THREE_DATASTORES, on_host("gl18", "pve4")],
            "pve4 carries 2 datastores (gl8, gl18); allowed is one a host.",
        ),
    ],
)
def test_a_single_datastore_is_advice(school_plan: list[Planned], changes: list[Change], sentence: str) -> None:
    plan = changed(school_plan, *changes)
    verdict = judged(availability.DATASTORE_REDUNDANT, plan)
    (message,) = verdict.violations["datastore-redundant"]
    assert sentence in message
    assert "docs/decisions/0016-single-datastore.md" in message
    assert not verdict.mandatory


def test_each_fault_of_a_machine_is_a_sentence(school_plan: list[Planned]) -> None:
    plan = changed(school_plan, place("gl2", None), place("gl6", 1))
    assert len(said(availability.MACHINE_START_ORDER, plan)) == 2
    both_default = changed(school_plan, setting(K3S, *TOLERATIONS, to=[]))
    assert len(said(availability.K3S_PODS_MOVE_AWAY, both_default)) == 2
