"""Known ways to build such a cluster wrongly, each found in instructions that people follow: the pack refuses all of them."""

from __future__ import annotations

from typing import Final

import pytest

from policy import vocabulary
from policy.catalogue import POLICIES
from policy.exposure import FIREWALL_RULES
from tests.policy.cases import Change, adding, changed, without
from tests.policy.judging import Judge, Planned
from tests.policy.mutations import ABSENT, DUMP, POD, UPLOAD, WORLD, set_option, set_property, thing

pytestmark = pytest.mark.unit

OPERATOR: Final = "postgres-operator-chart"
DATABASE: Final = "postgres-cluster"
BACKUP: Final = "backup-schedule"
ADDRESS: Final = "metallb.io/loadBalancerIPs"
ADDRESS_OF_MACHINE: Final = "initialization ipConfigs 0 ipv4 address"


def all_of(*changes: Change) -> Change:
    """Several changes as one."""
    return lambda plan: changed(plan, *changes)


DISASTERS: Final[tuple[tuple[str, Change, str, str], ...]] = (
    # --- what survives no failure
    (
        "one nginx before the Kubernetes API",
        without("gl10-container"),
        "api-load-balancers-two",
        "Balancers of the Kubernetes API in the plan: gl9; allowed are 2 or more.",
    ),
    (
        "a single K3s server",
        without("gl3-container"),
        "k3s-two-servers",
        "K3s servers in the plan: gl2; allowed are 2 or more.",
    ),
    (
        "every machine on one Proxmox host",
        all_of(*(set_property(f"{name}-container", "nodeName", "pve1") for name in ("gl3", "gl6", "gl8", "gl10"))),
        "k3s-machines-across-hosts",
        "pve1 carries 3 K3s machines (gl2, gl3, gl6), so its loss can take 3 of the 3 members of "
        "postgres-cluster; allowed are 1.",
    ),
    (
        "two instances of the database",
        set_property(DATABASE, "spec numberOfInstances", 2),
        "database-three-members",
        "postgres-cluster has 2 members; allowed are 3 or more.",
    ),
    (
        "copies of the database on one machine, which the operator's default allows",
        set_property(OPERATOR, "values configKubernetes enable_pod_antiaffinity", ABSENT),
        "database-members-on-different-machines",
        "postgres-operator-chart does not set `enable_pod_antiaffinity`; allowed is true, and the "
        "chart's default is false.",
    ),
    (
        "copies apart only where it is convenient",
        set_property(OPERATOR, "values configKubernetes pod_antiaffinity_preferred_during_scheduling", True),
        "database-members-on-different-machines",
        "postgres-operator-chart sets `pod_antiaffinity_preferred_during_scheduling`; allowed is false.",
    ),
    (
        "twenty copies on three machines, so that one slow computer does not matter",
        set_property(DATABASE, "spec numberOfInstances", 20),
        "database-members-fit-machines",
        "postgres-cluster has 20 members, each on a machine of its own, and the plan has 3 K3s "
        "machines (gl2, gl3, gl6); allowed are at most as many.",
    ),
    (
        "one pooler",
        set_property(DATABASE, "spec connectionPooler numberOfInstances", 1),
        "pooler-two-instances",
        "postgres-cluster has 1 pooler; allowed are 2 or more.",
    ),
    (
        "a database that stops writing when the datastore of Kubernetes is away",
        set_property(DATABASE, "spec patroni failsafe_mode", False),
        "database-failsafe-mode",
        "postgres-cluster has Patroni's `failsafe_mode` false; allowed is true.",
    ),
    (
        "Patroni's times that do not fit each other",
        set_property(DATABASE, "spec patroni loop_wait", 20),
        "patroni-timings",
        "postgres-cluster has Patroni's loop_wait + 2 x retry_timeout at 20 + 2 x 3 = 26 s; allowed "
        "is at most its ttl, 20 s.",
    ),
    (
        "Longhorn in LXC containers",
        set_property(DATABASE, "spec volume storageClass", "longhorn"),
        "longhorn-needs-kvm",
        "postgres-cluster uses Longhorn, and the K3s machines (gl2, gl3, gl6) are LXC containers; "
        "allowed are virtual machines.",
    ),
    (
        "dead machines that Kubernetes believes in for five minutes",
        set_property("k3s", "serverSettings kube-apiserver-arg", []),
        "k3s-pods-move-away",
        "k3s has `default-not-ready-toleration-seconds` at 300 s; allowed are at most 60 s.",
    ),
    (
        "machines that stay off after a power cut",
        set_property("gl8-container", "startOnBoot", False),
        "machine-starts-on-boot",
        "gl8 does not start with its Proxmox host: `startOnBoot` is not true, the only value allowed.",
    ),
    # --- what loses data
    (
        "asynchronous replication, said to lose nothing",
        set_property(DATABASE, "spec patroni synchronous_mode", ABSENT),
        "database-synchronous-replication",
        "postgres-cluster has `synchronous_mode` unset; allowed is true.",
    ),
    (
        "volumes that are deleted with the database's object, which is the operator's default",
        set_property(OPERATOR, "values configKubernetes enable_persistent_volume_claim_deletion", ABSENT),
        "database-volumes-retained",
        "postgres-operator-chart has `enable_persistent_volume_claim_deletion` unset; allowed is false.",
    ),
    (
        "a database without any backup",
        without(BACKUP),
        "database-has-scheduled-backup",
        "postgres-cluster has no backup; allowed is a CronJob with the label purpose=backup whose "
        "variable CLUSTER names the database.",
    ),
    (
        "a backup of one of two databases",
        set_property(DATABASE, "spec databases wiki", "bauer"),
        "backup-covers-every-database",
        "postgres-cluster has the database wiki, which is in no backup; allowed is all of them in DATABASES.",
    ),
    (
        "backups that run over each other",
        set_property(BACKUP, "spec concurrencyPolicy", ABSENT),
        "backup-job-safe",
        "backup-schedule has `concurrencyPolicy` unset; allowed is Forbid.",
    ),
    (
        "a backup that is not made up for when its hour was missed",
        set_property(BACKUP, "spec startingDeadlineSeconds", ABSENT),
        "backup-job-safe",
        "backup-schedule has `startingDeadlineSeconds` unset; allowed is 10 or more.",
    ),
    (
        "a backup job that never ends",
        set_property(BACKUP, "spec jobTemplate spec activeDeadlineSeconds", ABSENT),
        "backup-job-safe",
        "backup-schedule has `activeDeadlineSeconds` unset; allowed is 600 or more.",
    ),
    (
        "backups that nobody ever deletes",
        set_property(BACKUP, f"{UPLOAD} env 5", {"name": "KEEP_DAYS", "value": "0"}),
        "backup-retention",
        "backup-schedule has KEEP_DAYS 0; allowed are 7 or more days.",
    ),
    (
        "a dump over a connection that may be in the clear",
        set_property(BACKUP, f"{DUMP} env 2", {"name": "PGSSLMODE", "value": "prefer"}),
        "backup-connection-encrypted",
        "backup-schedule: container dump has PGSSLMODE prefer; allowed are require, verify-ca, verify-full.",
    ),
    (
        "backups on a machine of the cluster they are of",
        set_property("gl8-container", "tags", ["datastore", "file-share", "k3s-worker"]),
        "backup-leaves-the-database-machines",
        "gl8 keeps the backups and runs Kubernetes; allowed is one of the two.",
    ),
    (
        "a new template that replaces every machine",
        set_option("gl8-container", ignore_changes=()),
        "machine-survives-template-change",
        "gl8-container is replaced when `operatingSystem` changes; allowed is that the change is ignored.",
    ),
    (
        "a machine whose successor is made before it is deleted, under the same id",
        set_option("gl8-container", delete_before_replace=False),
        "machine-deleted-before-replaced",
        "gl8-container is deleted after its replacement is made; allowed is before.",
    ),
    (
        "a datastore that one word deletes",
        set_option("gl8-container", protect=False),
        "data-protected",
        "gl8-container holds data and is not protected; allowed is protected, so that Pulumi refuses "
        "to delete or replace it.",
    ),
    # --- addresses
    (
        "service addresses inside the range of the DHCP server",
        set_property("metallb-pool", "spec addresses", ["10.0.145.200-10.0.145.219"]),
        "service-pool-apart-from-dhcp",
        "metallb-pool (10.0.145.200-10.0.145.219) meets the range of the DHCP server "
        "(10.0.145.200-10.0.145.254); allowed is a range apart from it.",
    ),
    (
        "a machine inside the range of the DHCP server",
        set_property("gl6-container", ADDRESS_OF_MACHINE, "10.0.145.201/24"),
        "machine-apart-from-dhcp",
        "gl6 has the address 10.0.145.201, which the DHCP server hands out "
        "(10.0.145.200-10.0.145.254); allowed is an address apart from them.",
    ),
    (
        "a machine whose address is another one tomorrow",
        set_property("gl6-container", ADDRESS_OF_MACHINE, "dhcp"),
        "machine-address-once",
        "gl6 has no fixed IPv4 address with a prefix; allowed is one such as 10.0.145.110/24.",
    ),
    (
        "one address for two Services: the operator copies the database's annotations to its pooler",
        set_property(DATABASE, "spec enableMasterPoolerLoadBalancer", True),
        "service-address-once",
        "postgres-cluster (its primary's pooler) asks for the address 10.0.145.130, and so does "
        "postgres-cluster (its primary); allowed is an address of its own.",
    ),
    (
        "addresses that come as they happen to",
        set_property(DATABASE, f"spec masterServiceAnnotations {ADDRESS}", ABSENT),
        "service-address-fixed",
        "postgres-cluster (its primary) asks for no address; allowed is one of the pool, in "
        "`metallb.io/loadBalancerIPs`.",
    ),
    (
        "a pool that nobody advertises",
        without("metallb-advertisement"),
        "service-pool-advertised",
        "metallb-pool is in no L2Advertisement of its namespace; allowed is a pool that one of them names.",
    ),
    (
        "a network card that MetalLB passes over",
        set_property("gl2-container", "networkInterfaces 0 name", "veth0"),
        "machine-interface-announced",
        "gl2 has the network interface veth0, which MetalLB leaves out; allowed is a name such as eth0.",
    ),
    (
        "K3s's own load balancer beside MetalLB",
        set_property("k3s", "serverSettings disable", []),
        "k3s-bundled-parts-off",
        "k3s does not disable servicelb; allowed is disable: [servicelb, traefik].",
    ),
    # --- what is open to everybody
    (
        "a database that the whole world may connect to",
        set_property(DATABASE, "spec allowedSourceRanges", [WORLD]),
        "service-sources-limited",
        "postgres-cluster admits 0.0.0.0/0; allowed are networks no wider than the machines' own (/24).",
    ),
    (
        "the operator's web interface on a port of every machine",
        adding(thing(vocabulary.SERVICE, "operator-ui", spec={"type": "NodePort", "ports": [{"port": 8081}]})),
        "service-sources-limited",
        "operator-ui is of type NodePort: every machine opens it to everybody; allowed are ClusterIP and LoadBalancer.",
    ),
    (
        "a datastore that lets everybody try passwords",
        set_property("datastore", "accessRules", [f"hostssl all all {WORLD} md5"]),
        "datastore-mutual-tls",
        "datastore: rule 1 (hostssl 0.0.0.0/0) lets more than one address in; allowed "
        "are `local ... peer` and `hostssl ... <address>/32 cert clientcert=verify-full`.",
    ),
    # --- secrets and connections
    (
        "a datastore that is talked to in the clear",
        set_property("k3s", "serverSettings datastore-cafile", ABSENT),
        "k3s-datastore-verified",
        "k3s has no `datastore-cafile`; allowed is the file that the datastore's authority has signed.",
    ),
    (
        "servers that prove nothing to their datastore",
        set_property("k3s", "serverSettings datastore-certfile", ABSENT),
        "k3s-datastore-verified",
        "k3s has no `datastore-certfile`; allowed is the file that the datastore's authority has signed.",
    ),
    (
        "the datastore's password in its address",
        set_property("k3s", "serverSettings datastore-endpoint", "postgres://k3s:K3s@10.0.145.113:5432/k3s"),
        "k3s-datastore-verified",
        "k3s has a password in `datastore-endpoint`; allowed is the certificate alone.",
    ),
    (
        "Secrets of Kubernetes in the clear in the datastore",
        set_property("k3s", "serverSettings secrets-encryption", False),
        "k3s-secrets-encrypted",
        "k3s has `secrets-encryption` false; allowed is true.",
    ),
    (
        "the cluster's key readable for every user of a server",
        set_property("k3s", "serverSettings write-kubeconfig-mode", "0644"),
        "k3s-kubeconfig-private",
        "k3s has `write-kubeconfig-mode` 0644; allowed is 0600, in quotes.",
    ),
    (
        "a certificate that does not name the balancers' address",
        set_property("k3s", "serverSettings tls-san", ["gl2"]),
        "k3s-certificate-names-address",
        "k3s has a certificate for gl2; allowed is `tls-san` with the address of the balancers.",
    ),
    (
        "the superuser's password in a ConfigMap",
        adding(
            thing("kubernetes:core/v1:ConfigMap", "backup-script", data={"backup.sh": "export PGPASSWORD=geheim12"})
        ),
        "config-map-without-secret",
        "backup-script has a password that is assigned in backup.sh; allowed is no secret at all.",
    ),
    (
        "a password among the environment variables of a pod",
        set_property(BACKUP, f"{UPLOAD} env 3", {"name": "SMB_PASSWORD", "value": "geheim12"}),
        "workload-secret-by-reference",
        "backup-schedule: container upload has a value in SMB_PASSWORD; allowed is a reference to a Secret.",
    ),
    (
        "the cluster's token on a command line",
        set_property("k3s-gl3", "create", "curl -sfL https://get.k3s.io | K3S_TOKEN=geheim12 sh -s - server"),
        "command-without-secret",
        "k3s-gl3 has a password that is assigned in `create`; allowed is none.",
    ),
    (
        "a password of three letters",
        set_property("k3s-token", "length", 3),
        "password-strength",
        "k3s-token has 3 characters; allowed are 24 or more.",
    ),
    (
        "passwords that are stored as md5",
        set_property(DATABASE, "spec postgresql parameters password_encryption", "md5"),
        "database-password-scram",
        "postgres-cluster has `password_encryption` md5; allowed is scram-sha-256.",
    ),
    (
        "an application that is superuser",
        set_property(DATABASE, "spec users bauer", ["superuser"]),
        "database-roles-least",
        "postgres-cluster gives the role bauer the flag superuser; allowed are all others.",
    ),
    (
        "a Proxmox whose certificate nobody checks",
        set_property("proxmox", "insecure", "true"),
        "proxmox-tls-verified",
        "The provider proxmox has `insecure` true; allowed is false.",
    ),
    (
        "root's password instead of an API token",
        all_of(set_property("proxmox", "apiToken", ABSENT), set_property("proxmox", "password", "geheim12")),
        "proxmox-token-not-root",
        "The provider proxmox logs in with `password`; allowed is only an API token.",
    ),
    (
        "a machine that lets root in with a password",
        set_property("gl8-container", "initialization userAccount password", "geheim12"),
        "machine-login-by-key-only",
        "gl8-container gives root a password; allowed is a key only.",
    ),
    (
        "an SSH connection to whoever answers",
        set_property("pve1-kernel", "connection hostKey", ABSENT),
        "command-host-key-pinned",
        "pve1-kernel connects without a host key; allowed is one in `connection.hostKey`.",
    ),
    # --- rights
    (
        "a privileged machine without need",
        set_property("gl9-container", "unprivileged", ABSENT),
        "machine-unprivileged",
        "gl9 is a privileged container; allowed is unprivileged: true on machines without Kubernetes.",
    ),
    (
        "an SSH port that the firewall opens to everybody",
        adding(
            thing(FIREWALL_RULES, "test", rules=[{"type": "in", "action": "ACCEPT", "proto": "tcp", "dport": "22"}])
        ),
        "firewall-no-world-open-port",
        "test lets everybody reach SSH (rule 0); allowed is a rule with a source.",
    ),
    (
        "a machine without AppArmor, with all capabilities and devices, and without Kubernetes",
        set_property("gl8", "lxcLines", ["lxc.apparmor.profile: unconfined", "lxc.cap.drop:"]),
        "machine-lxc-lines-only-for-kubernetes",
        "gl8 has 2 raw LXC lines without running Kubernetes; allowed are none.",
    ),
    (
        "a K3s machine that swaps",
        set_property("gl2-container", "memory swap", 2048),
        "machine-swap-off",
        "gl2 has 2048 MiB of swap; allowed are 0 on machines that run Kubernetes.",
    ),
    (
        "a backup pod that nothing is said about, so that it runs as root",
        set_property(BACKUP, f"{POD} securityContext", ABSENT),
        "workload-non-root",
        "backup-schedule: container dump may run as root; allowed is runAsNonRoot: true.",
    ),
    (
        "a backup pod without limits, beside the database",
        set_property(BACKUP, f"{DUMP} resources", ABSENT),
        "workload-resources-set",
        "backup-schedule: container dump has no requests.cpu, requests.memory, limits.memory",
    ),
    (
        "a backup pod that may ask the Kubernetes API",
        set_property(BACKUP, f"{POD} automountServiceAccountToken", ABSENT),
        "workload-no-service-account-token",
        "backup-schedule is given a token of the Kubernetes API",
    ),
    (
        "a database with whatever memory the operator thinks of",
        set_property(DATABASE, "spec resources", ABSENT),
        "database-resources-set",
        "postgres-cluster has no requests.cpu, requests.memory, limits.memory",
    ),
    # --- versions
    (
        "servers that are set up on different days with whatever K3s is stable that day",
        set_property("k3s", "version", "stable"),
        "k3s-version-exact",
        "k3s has the version stable; allowed is one exact release such as v1.36.3+k3s1.",
    ),
    (
        "a chart without version",
        set_property("metallb-chart", "version", ABSENT),
        "chart-version-exact",
        "metallb-chart has the version unset; allowed is one exact version such as 1.15.0.",
    ),
    (
        "a backup with an image that is another one next month",
        set_property(BACKUP, f"{DUMP} image", "postgres:16"),
        "workload-image-pinned",
        "container dump has the image postgres:16, which names no registry; allowed is registry/name:version.",
    ),
)


BY_NAME: Final = {policy.name: policy for policy in POLICIES}


@pytest.mark.parametrize(
    ("change", "policy", "sentence"),
    [disaster[1:] for disaster in DISASTERS],
    ids=[disaster[0].replace(" ", "-") for disaster in DISASTERS],
)
def test_the_pack_refuses(change: Change, policy: str, sentence: str, school_plan: list[Planned]) -> None:
    verdict = Judge(BY_NAME[policy]).of_plan(change(school_plan))
    assert verdict.mandatory == {policy}
    assert sentence in "\n".join(verdict.violations[policy])


@pytest.mark.parametrize(
    ("change", "policy"),
    [(change, policy) for _, change, policy, _ in DISASTERS],
    ids=[disaster[0].replace(" ", "-") for disaster in DISASTERS],
)
def test_the_very_first_preview_is_refused(change: Change, policy: str, first_plan: list[Planned]) -> None:
    assert Judge(BY_NAME[policy]).of_plan(change(first_plan)).mandatory == {policy}
