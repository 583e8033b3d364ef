"""Workloads: what runs in the cluster and on the machines has no more rights than it needs, and is exactly what was meant."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from typing import Any, Final

from pulumi_policy import EnforcementLevel, Severity

from policy import exact_versions, k3s, machine_rights, vocabulary
from policy.pods import containers, pod_path
from policy.resources import Resource, dig, number, shown
from policy.rule import PlanPolicy, ResourcePolicy
from policy.zalando import is_operator_chart

POD_SECURITY_LABEL: Final = "pod-security.kubernetes.io/enforce"
POD_SECURITY_LEVELS: Final = ("baseline", "restricted")
SECCOMP_PROFILES: Final = ("RuntimeDefault", "Localhost")
HARMLESS_CAPABILITY: Final = "NET_BIND_SERVICE"
"""Opens ports below 1024; Kubernetes' restricted profile lets it through as well."""


def _no_host_namespaces(workload: Resource) -> Iterator[str]:
    # Absent is safe: Kubernetes gives a pod namespaces of its own.
    for namespace in ("hostNetwork", "hostPID", "hostIPC"):
        if workload.get(*pod_path(workload), namespace):
            yield f"{workload.name} has {namespace}: true; allowed is false."


WORKLOAD_NO_HOST_NAMESPACES: Final = ResourcePolicy(
    "workload-no-host-namespaces",
    of=vocabulary.WORKLOADS,
    description="No pod shares the network, the processes or the shared memory of its machine.",
    why="Such a pod sees every process and every open port of a K3s machine, and no NetworkPolicy holds for it.",
    remedy="Remove hostNetwork, hostPID and hostIPC from the pod.",
    severity=Severity.CRITICAL,
    check=_no_host_namespaces,
)


def _no_host_port(workload: Resource) -> Iterator[str]:
    for container in containers(workload):
        for port in container.list("ports"):
            host_port = dig(port, "hostPort")
            # Absent is safe: only the pod's own address.
            if host_port not in (None, 0):
                yield f"{container.name} opens port {shown(host_port)} of its machine; allowed is no hostPort."


WORKLOAD_NO_HOST_PORT: Final = ResourcePolicy(
    "workload-no-host-port",
    of=vocabulary.WORKLOADS,
    description="No pod opens a port of its machine.",
    why="Whoever reaches the machine reaches such a port: no source ranges hold for it, and to the network policies he looks "
    "like a machine. Only one such pod finds room on each machine.",
    remedy="Remove hostPort, and put a Service of the type LoadBalancer with loadBalancerSourceRanges before the pod.",
    severity=Severity.HIGH,
    check=_no_host_port,
)


def _not_privileged(workload: Resource) -> Iterator[str]:
    for container in containers(workload):
        # Absent is safe: not privileged.
        if container.get("securityContext", "privileged"):
            yield f"{container.name} is privileged; allowed is privileged: false."


WORKLOAD_NOT_PRIVILEGED: Final = ResourcePolicy(
    "workload-not-privileged",
    of=vocabulary.WORKLOADS,
    description="No container is privileged.",
    why="Root in a privileged container is root on the K3s machine, and a K3s machine is root on its Proxmox host.",
    remedy="Remove `privileged: true` from the container's securityContext.",
    severity=Severity.CRITICAL,
    check=_not_privileged,
)


def _non_root(workload: Resource) -> Iterator[str]:
    for container in containers(workload):
        if container.setting("runAsUser") in (0, "0"):
            yield f"{container.name} runs as user 0; allowed is any other."
        elif container.setting("runAsNonRoot") is not True:
            yield f"{container.name} may run as root; allowed is runAsNonRoot: true."


WORKLOAD_NON_ROOT: Final = ResourcePolicy(
    "workload-non-root",
    of=vocabulary.WORKLOADS,
    description="No container runs as root.",
    why="Whoever breaks out of a container has its user's rights on the machine. Most images start as root unless told not to.",
    remedy="Set runAsNonRoot: true and runAsUser in the pod's securityContext.",
    severity=Severity.HIGH,
    check=_non_root,
)


def _restricted(workload: Resource) -> Iterator[str]:
    for container in containers(workload):
        if container.get("securityContext", "allowPrivilegeEscalation") is not False:
            yield f"{container.name} may raise its rights; allowed is allowPrivilegeEscalation: false."
        if "ALL" not in container.list("securityContext", "capabilities", "drop"):
            yield f"{container.name} keeps capabilities; allowed is capabilities.drop: [ALL]."
        for capability in container.list("securityContext", "capabilities", "add"):
            if capability != HARMLESS_CAPABILITY:
                yield f"{container.name} has the capability {capability}; allowed is {HARMLESS_CAPABILITY} alone."
        profile = container.setting("seccompProfile", "type")
        if profile not in SECCOMP_PROFILES:
            allowed = " or ".join(SECCOMP_PROFILES)
            yield f"{container.name} has its seccompProfile {shown(profile)}; allowed is {allowed}."


WORKLOAD_RESTRICTED: Final = ResourcePolicy(
    "workload-restricted",
    of=vocabulary.WORKLOADS,
    description="Every container gives up what Kubernetes' restricted profile takes away: capabilities, the raising of rights, "
    "rare system calls.",
    why="Kubernetes leaves all three open when nothing is said. Most ways out of a container begin with one of them.",
    remedy="Set allowPrivilegeEscalation: false, capabilities.drop: [ALL] without add, and seccompProfile.type: "
    "RuntimeDefault.",
    severity=Severity.HIGH,
    check=_restricted,
)


def _no_host_path(workload: Resource) -> Iterator[str]:
    for volume in workload.list(*pod_path(workload), "volumes"):
        if dig(volume, "hostPath") is not None:
            yield f"{workload.name} mounts a folder of its machine (volume {dig(volume, 'name')}); allowed is no hostPath."


WORKLOAD_NO_HOST_PATH: Final = ResourcePolicy(
    "workload-no-host-path",
    of=vocabulary.WORKLOADS,
    description="No pod mounts a folder of its machine.",
    why="A pod that writes into its machine can replace what runs there, and what it stores is gone with the machine.",
    remedy="Use a PersistentVolumeClaim, an emptyDir, a ConfigMap or a Secret.",
    severity=Severity.HIGH,
    check=_no_host_path,
)


def _read_only_root(workload: Resource) -> Iterator[str]:
    for container in containers(workload):
        if container.get("securityContext", "readOnlyRootFilesystem") is not True:
            yield f"{container.name} can write into its image; better is readOnlyRootFilesystem: true."


WORKLOAD_READ_ONLY_ROOT: Final = ResourcePolicy(
    "workload-read-only-root",
    of=vocabulary.WORKLOADS,
    description="A container cannot write into its own image.",
    why="An intruder who cannot store a program has less to work with. Advice only: some programs need to write.",
    remedy="Set readOnlyRootFilesystem: true and mount an emptyDir where the program writes.",
    severity=Severity.LOW,
    check=_read_only_root,
    enforcement_level=EnforcementLevel.ADVISORY,
)


def _resources_set(workload: Resource) -> Iterator[str]:
    for container in containers(workload):
        missing = [".".join(path) for path in _NEEDED_RESOURCES if container.get("resources", *path) is None]
        if missing:
            yield f"{container.name} has no {', '.join(missing)}; all of {_ALL_RESOURCES} are needed."


_NEEDED_RESOURCES: Final = (("requests", "cpu"), ("requests", "memory"), ("limits", "memory"))
_ALL_RESOURCES: Final = ", ".join(".".join(path) for path in _NEEDED_RESOURCES)

WORKLOAD_RESOURCES_SET: Final = ResourcePolicy(
    "workload-resources-set",
    of=vocabulary.WORKLOADS,
    description="Every container says how much processor and memory it needs, and how much memory it may take at most.",
    why="Without a limit one container can take the memory of its machine, and the kernel then ends the database beside it. "
    "Without a request it is placed where there is no room.",
    remedy=f"Set {_ALL_RESOURCES} in the container's resources.",
    severity=Severity.MEDIUM,
    check=_resources_set,
)


def _database_resources_set(database: Resource) -> Iterator[str]:
    missing = [".".join(path) for path in _NEEDED_RESOURCES if database.get("spec", "resources", *path) is None]
    if missing:
        yield f"{database.name} has no {', '.join(missing)}; all of {_ALL_RESOURCES} are needed."


DATABASE_RESOURCES_SET: Final = ResourcePolicy(
    "database-resources-set",
    of=(vocabulary.DATABASE,),
    description="Every member of the database has processor and memory reserved, and a limit of memory.",
    why="The operator's own defaults are 100 MiB reserved and 500 MiB at most: a dump or a large query then ends the member.",
    remedy="Set `postgres.resources.cpuRequestMillicores`, `postgres.resources.memoryRequestMiB` and "
    "`postgres.resources.memoryLimitMiB`.",
    severity=Severity.HIGH,
    check=_database_resources_set,
)


def _own_user(database: Resource) -> Iterator[str]:
    # Absent is safe: the operator's.
    for key in ("spiloRunAsUser", "spiloRunAsGroup", "spiloFSGroup"):
        own = database.get("spec", key)
        if own is not None and not _is_not_root(own):
            yield f"{database.name} has {key} {shown(own)}; allowed is any number but 0."


def _is_not_root(user: Any) -> bool:
    return (number(user) or 0) > 0


def _members_without_root(resource: Resource) -> Iterator[str]:
    return _own_user(resource) if resource.type == vocabulary.DATABASE else _operators_user(resource)


def _operators_user(release: Resource) -> Iterator[str]:
    if not is_operator_chart(release):
        return
    values = release.get("values", "configKubernetes")
    # Absent is safe here only: the chart's default of spilo_privileged is false.
    if dig(values, "spilo_privileged") not in (None, False):
        yield f"{release.name} has spilo_privileged: {shown(dig(values, 'spilo_privileged'))}; allowed is false."
    if not _is_not_root(dig(values, "spilo_runasuser")):
        yield f"{release.name} has spilo_runasuser {shown(dig(values, 'spilo_runasuser'))}; allowed is any user but 0."
    if dig(values, "spilo_allow_privilege_escalation") is not False:
        yield f"{release.name} lets members raise their rights; allowed is spilo_allow_privilege_escalation: false."


DATABASE_WITHOUT_ROOT: Final = ResourcePolicy(
    "database-without-root",
    of=(vocabulary.RELEASE, vocabulary.DATABASE),
    description="The members of the database do not run as root, and cannot become root.",
    why="The operator starts them as root unless its chart is told a user, and applications can run code in the database.",
    remedy="Set configKubernetes.spilo_runasuser and spilo_allow_privilege_escalation: false in components/operators/zalando.py, "
    "and leave spiloRunAsUser out of `cluster_spec`.",
    severity=Severity.HIGH,
    check=_members_without_root,
)


def _no_service_account_token(workload: Resource) -> Iterator[str]:
    if workload.get(*pod_path(workload), "automountServiceAccountToken") is not False:
        yield f"{workload.name} is given a token of the Kubernetes API; allowed is automountServiceAccountToken: false."


WORKLOAD_NO_SERVICE_ACCOUNT_TOKEN: Final = ResourcePolicy(
    "workload-no-service-account-token",
    of=vocabulary.WORKLOADS,
    description="No pod is given a token of the Kubernetes API.",
    why="Kubernetes mounts one into every pod unless told not to; whoever reads files of the pod can then ask the API.",
    remedy="Set automountServiceAccountToken: false in the pod; waive it for a program that does talk to the API.",
    severity=Severity.MEDIUM,
    check=_no_service_account_token,
)


def _least_rights(role: Resource) -> Iterator[str]:
    for index in range(len(role.list("rules"))):
        for field in ("verbs", "resources", "apiGroups", "nonResourceURLs"):
            if "*" in role.list("rules", index, field):
                yield f"{role.name} allows every one of its {field} (rule {index + 1} has *); allowed are names."


def _no_cluster_admin(binding: Resource) -> Iterator[str]:
    if binding.get("roleRef", "name") == "cluster-admin":
        yield f"{binding.name} makes somebody cluster-admin; allowed is a role with exactly the rights that are needed."


def _rbac_least(resource: Resource) -> Iterator[str]:
    return _least_rights(resource) if resource.type in vocabulary.ROLES else _no_cluster_admin(resource)


RBAC_LEAST: Final = ResourcePolicy(
    "rbac-least",
    of=(*vocabulary.ROLES, *vocabulary.ROLE_BINDINGS),
    description="A role in Kubernetes names what it allows, and nobody is made cluster-admin.",
    why="With *, a program that reads one Secret reads all of them, and rights that a later version of Kubernetes adds come by "
    "themselves.",
    remedy="Name verbs, resources and API groups one by one.",
    severity=Severity.HIGH,
    check=_rbac_least,
)


def _pod_security(namespace: Resource) -> Iterator[str]:
    level = namespace.get("metadata", "labels", POD_SECURITY_LABEL)
    if level not in POD_SECURITY_LEVELS:
        allowed = " or ".join(POD_SECURITY_LEVELS)
        yield f"{namespace.name} has the label {POD_SECURITY_LABEL} {shown(level)}; allowed is {allowed}."


NAMESPACE_POD_SECURITY: Final = ResourcePolicy(
    "namespace-pod-security",
    of=(vocabulary.NAMESPACE,),
    description="Every namespace refuses pods that would take over their machine.",
    why="Policies see only what is planned. The label makes Kubernetes itself refuse a privileged pod that somebody, or an "
    "operator, starts later.",
    remedy=f"Give the namespace the label {POD_SECURITY_LABEL}: baseline or restricted.",
    severity=Severity.HIGH,
    check=_pod_security,
)


class _KindsUnknown(Container[str]):
    """The types whose objects the policies do not know."""

    def __contains__(self, type_: object) -> bool:
        return isinstance(type_, str) and _KIND_UNKNOWN.fullmatch(type_) is not None


_KIND_UNKNOWN: Final = re.compile(
    r"kubernetes:(?:[^:]+:\w+(?:Patch|List)|(?:yaml|kustomize)(?:/\w+)?:\w+|helm\.sh/v4:Chart)"
)


def _kind_known(resource: Resource) -> Iterator[str]:
    yield f"{resource.name} is of the type {resource.type}; allowed are single objects of their own kinds."


KUBERNETES_KINDS_KNOWN: Final = ResourcePolicy(
    "kubernetes-kinds-known",
    of=_KindsUnknown(),
    description="Every Kubernetes object is planned as itself, not as a patch, in a list or in a folder of files.",
    why="A patch shows only what it changes, and may change any object, also one that no policy has seen. A list, YAML files, "
    "Kustomize and this kind of chart hold any number of objects under one name, and policies look at objects by their kinds: "
    "a privileged pod in them passes.",
    remedy="Write each object as a resource of its own kind; a chart as a `Release` through components/charts.py.",
    severity=Severity.HIGH,
    check=_kind_known,
)


POLICIES: Final[tuple[ResourcePolicy | PlanPolicy, ...]] = (
    WORKLOAD_NO_HOST_NAMESPACES,
    WORKLOAD_NO_HOST_PORT,
    WORKLOAD_NOT_PRIVILEGED,
    WORKLOAD_NON_ROOT,
    WORKLOAD_RESTRICTED,
    WORKLOAD_NO_HOST_PATH,
    WORKLOAD_READ_ONLY_ROOT,
    WORKLOAD_RESOURCES_SET,
    DATABASE_RESOURCES_SET,
    DATABASE_WITHOUT_ROOT,
    WORKLOAD_NO_SERVICE_ACCOUNT_TOKEN,
    RBAC_LEAST,
    NAMESPACE_POD_SECURITY,
    KUBERNETES_KINDS_KNOWN,
    *exact_versions.POLICIES,
    *k3s.POLICIES,
    *machine_rights.POLICIES,
)
