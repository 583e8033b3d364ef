"""Type tokens of the resources that policies look at, and the tags that say what a machine is for."""

from __future__ import annotations

from typing import Final

STACK: Final = "pulumi:pulumi:Stack"
PROXMOX_PROVIDER: Final = "pulumi:providers:proxmoxve"
KUBERNETES_PROVIDER: Final = "pulumi:providers:kubernetes"

CONTAINER: Final = "proxmoxve:index/containerLegacy:ContainerLegacy"
DOWNLOAD: Final = "proxmoxve:download/file:File"
COMMANDS: Final = ("command:remote:Command", "command:local:Command")
PASSWORD: Final = "random:index/randomPassword:RandomPassword"

DATABASE: Final = "kubernetes:acid.zalan.do/v1:postgresql"
"""The cluster object of Zalando's operator, the only one the program offers."""
DATABASE_OPERATOR_CHART: Final = "postgres-operator"

RELEASE: Final = "kubernetes:helm.sh/v3:Release"
NAMESPACE: Final = "kubernetes:core/v1:Namespace"
NETWORK_POLICY: Final = "kubernetes:networking.k8s.io/v1:NetworkPolicy"
SERVICE: Final = "kubernetes:core/v1:Service"
VOLUME_CLAIM: Final = "kubernetes:core/v1:PersistentVolumeClaim"
ADDRESS_POOL: Final = "kubernetes:metallb.io/v1beta1:IPAddressPool"
ADVERTISEMENT: Final = "kubernetes:metallb.io/v1beta1:L2Advertisement"
CRON_JOB: Final = "kubernetes:batch/v1:CronJob"

WORKLOADS: Final = (
    "kubernetes:apps/v1:DaemonSet",
    "kubernetes:apps/v1:Deployment",
    "kubernetes:apps/v1:ReplicaSet",
    "kubernetes:apps/v1:StatefulSet",
    "kubernetes:batch/v1:CronJob",
    "kubernetes:batch/v1:Job",
    "kubernetes:core/v1:Pod",
    "kubernetes:core/v1:ReplicationController",
)
ROLES: Final = (
    "kubernetes:rbac.authorization.k8s.io/v1:ClusterRole",
    "kubernetes:rbac.authorization.k8s.io/v1:Role",
)
ROLE_BINDINGS: Final = (
    "kubernetes:rbac.authorization.k8s.io/v1:ClusterRoleBinding",
    "kubernetes:rbac.authorization.k8s.io/v1:RoleBinding",
)

NODE_COMPONENT: Final = "school:index:ProxmoxLxcNode"
DATASTORE_COMPONENT: Final = "school:index:K3sDatastore"
CONTROL_PLANE_COMPONENT: Final = "school:index:K3sControlPlane"
BALANCER_COMPONENT: Final = "school:index:ApiLoadBalancer"
BACKUP_COMPONENT: Final = "school:index:SmbBackup"

TAG_SERVER: Final = "k3s-server"
TAG_WORKER: Final = "k3s-worker"
TAG_DATASTORE: Final = "datastore"
TAG_BALANCER: Final = "api-load-balancer"
TAG_SHARE: Final = "file-share"
