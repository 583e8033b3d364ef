"""Zalando's postgres-operator: Patroni in every member, its leader kept in Kubernetes.

The chart's defaults suit a team that rebuilds clusters every day. Those that hurt a school are turned round below, each
with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import pulumi
import pulumi_kubernetes as kubernetes

from components.charts import install_chart
from components.metallb_pool import move_away_tolerations
from components.operators.interface import Database, DatabasePods, DatabaseRequest
from versions import POOLER_IMAGE, SPILO_IMAGE, ZALANDO_OPERATOR

OPERATOR_NAMESPACE: Final = "postgres-operator"
SPILO_USER_ID: Final = 101
SPILO_GROUP_ID: Final = 103
"""Who PostgreSQL runs as in the Spilo image."""

PATRONI_PORT: Final = 8008
"""Patroni's interface for the other members and the operator."""
PATRONI_TTL_SECONDS: Final = 20
"""Patroni's own minimum. A dead primary is replaced after this long; measured 22 s from power cut to the next write."""
PATRONI_LOOP_WAIT_SECONDS: Final = 2
PATRONI_RETRY_TIMEOUT_SECONDS: Final = 3
"""loop_wait + 2 x retry_timeout must not exceed ttl; Patroni would change the values with no more than a warning."""
PATRONI_MAXIMUM_LAG_BYTES: Final = 33554432
"""A standby further behind than 32 MiB is not promoted."""

OPERATOR_MOVE_AWAY_SECONDS: Final = 10
READY_TIMEOUT_SECONDS: Final = 900
"""How long the first start may take; measured 14 to 45 s, the rest is for a 300 MB image over a slow line."""


def operator_values() -> dict[str, Any]:
    """Values of the operator's chart."""
    return {
        "configGeneral": {"docker_image": SPILO_IMAGE, "repair_period": "1m", "resync_period": "5m"},
        "configKubernetes": {
            # Off by default: all members may share one node. Required, not preferred: settings/ has counted the nodes.
            "enable_pod_antiaffinity": True,
            "pod_antiaffinity_preferred_during_scheduling": False,
            "enable_pod_disruption_budget": True,
            # On by default: deleting the cluster's object would delete its volumes and passwords.
            "enable_persistent_volume_claim_deletion": False,
            "enable_secrets_deletion": False,
            "persistent_volume_claim_retention_policy": {"when_deleted": "retain", "when_scaled": "retain"},
            "enable_readiness_probe": True,
            # Members start together; Patroni decides who leads. One after the other takes three times as long.
            "pod_management_policy": "parallel",
            # The default of 5 min is how long a drained node would wait.
            "pod_terminate_grace_period": "1m",
            # K3s's local volumes cannot grow.
            "storage_resize_mode": "off",
            # Spilo starts as root by default.
            "spilo_runasuser": SPILO_USER_ID,
            "spilo_runasgroup": SPILO_GROUP_ID,
            "spilo_fsgroup": SPILO_GROUP_ID,
            "spilo_allow_privilege_escalation": False,
        },
        "configConnectionPooler": {
            "connection_pooler_image": POOLER_IMAGE,
            "connection_pooler_default_cpu_request": "50m",
            "connection_pooler_default_memory_request": "64Mi",
            "connection_pooler_default_memory_limit": "256Mi",
        },
        # Off by default: when the Kubernetes API (or its datastore) is away, every primary would stop accepting writes.
        "configPatroni": {"enable_patroni_failsafe_mode": True},
        "configTimeouts": {"pod_deletion_wait_timeout": "2m"},
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}},
        "tolerations": move_away_tolerations(OPERATOR_MOVE_AWAY_SECONDS),
    }


def cluster_spec(request: DatabaseRequest, address_pool: str) -> dict[str, Any]:
    """``spec`` of the ``postgresql`` object."""
    return {
        "teamId": request.team,
        "numberOfInstances": request.instances,
        "postgresql": {
            "version": request.version,
            # The operator's default for stored passwords is MD5.
            "parameters": {"password_encryption": "scram-sha-256", **request.parameters},
        },
        "patroni": {
            "ttl": PATRONI_TTL_SECONDS,
            "loop_wait": PATRONI_LOOP_WAIT_SECONDS,
            "retry_timeout": PATRONI_RETRY_TIMEOUT_SECONDS,
            "maximum_lag_on_failover": PATRONI_MAXIMUM_LAG_BYTES,
            # A commit is acknowledged when a second member has it: nothing acknowledged is lost with one machine.
            "synchronous_mode": True,
            # With five members a host may carry two of them: the primary and one that has every commit.
            "synchronous_node_count": max(1, (request.instances - 1) // 2),
            "failsafe_mode": True,
        },
        "volume": {"size": f"{request.storage_gib}Gi", "storageClass": request.storage_class},
        "resources": {
            "requests": {"cpu": f"{request.cpu_request_millicores}m", "memory": f"{request.memory_request_mib}Mi"},
            # The operator insists on a CPU limit; 2 cores are more than its minimum and leave room for a restore.
            "limits": {"cpu": "2", "memory": f"{request.memory_limit_mib}Mi"},
        },
        "users": {user: list(flags) for user, flags in request.users.items()},
        "databases": dict(request.databases),
        # Left out, it means 127.0.0.1/32: nobody gets in.
        "allowedSourceRanges": list(request.allowed_sources),
        "enableMasterLoadBalancer": True,
        "enableReplicaLoadBalancer": True,
        "masterServiceAnnotations": address_annotations(request.primary_address, address_pool),
        "replicaServiceAnnotations": address_annotations(request.replica_address, address_pool),
        "enableConnectionPooler": True,
        # The operator copies the primary's annotations to its pooler's service, and one address cannot be had twice:
        # the pooler's address is a service of our own.
        "enableMasterPoolerLoadBalancer": False,
        "connectionPooler": {
            "numberOfInstances": request.pooler_instances,
            "mode": request.pooler_mode,
            "maxDBConnections": request.pooler_max_database_connections,
        },
    }


def address_annotations(address: str, address_pool: str) -> dict[str, str]:
    """Annotations that make MetalLB give a service exactly this address."""
    return {"metallb.io/loadBalancerIPs": address, "metallb.io/address-pool": address_pool}


def database_pods(cluster_name: str) -> DatabasePods:
    """The operator's pods by the labels it gives them."""
    return DatabasePods(
        member_labels={"application": "spilo", "cluster-name": cluster_name},
        pooler_labels={"application": "db-connection-pooler", "connection-pooler": f"{cluster_name}-pooler"},
        operator_namespace=OPERATOR_NAMESPACE,
        coordination_port=PATRONI_PORT,
    )


def credentials_secret_name(user: str, cluster_name: str) -> str:
    """Name of the Secret in which the operator looks for a role's password before it makes one up."""
    return f"{user.replace('_', '-')}.{cluster_name}.credentials.postgresql.acid.zalan.do"


class ZalandoOperator:
    """:class:`PostgresOperator` of Zalando."""

    def deploy(
        self,
        name: str,
        request: DatabaseRequest,
        *,
        namespace: pulumi.Output[str],
        passwords: Mapping[str, pulumi.Output[str]],
        parent: pulumi.Resource,
    ) -> Database:
        """Declare the operator, the roles' passwords, the cluster and the pooler's address."""
        chart = install_chart(
            f"{name}-operator",
            ZALANDO_OPERATOR,
            parent=parent,
            namespace=OPERATOR_NAMESPACE,
            helm_repository=request.helm_repository,
            values=operator_values(),
        )
        secrets = self._credentials(name, request, namespace, passwords, parent)
        cluster = kubernetes.apiextensions.CustomResource(
            f"{name}-cluster",
            api_version="acid.zalan.do/v1",
            kind="postgresql",
            metadata={
                "name": request.cluster_name,
                "namespace": namespace,
                "labels": {"team": request.team},
                "annotations": {
                    "pulumi.com/waitFor": "jsonpath={.status.PostgresClusterStatus}=Running",
                    "pulumi.com/timeoutSeconds": str(READY_TIMEOUT_SECONDS),
                },
            },
            spec=pulumi.Output.from_input(request.address_pool).apply(lambda pool: cluster_spec(request, pool)),
            opts=pulumi.ResourceOptions(
                parent=parent,
                # The chart brings the kind, and the passwords must be there before the operator makes up its own.
                depends_on=[chart, *secrets],
                delete_before_replace=True,
                protect=request.protect_data,
                custom_timeouts=pulumi.CustomTimeouts(create="20m", update="20m", delete="10m"),
            ),
        )
        pooler = self._pooler_service(name, request, namespace, parent, cluster)
        return Database(
            host=pulumi.Output.concat(request.cluster_name, ".", namespace, ".svc"),
            superuser_secret=credentials_secret_name("postgres", request.cluster_name),
            client_image=SPILO_IMAGE,
            client_directory=f"/usr/lib/postgresql/{request.version}/bin",
            ready=(cluster, pooler),
            pods=database_pods(request.cluster_name),
        )

    @staticmethod
    def _credentials(
        name: str,
        request: DatabaseRequest,
        namespace: pulumi.Output[str],
        passwords: Mapping[str, pulumi.Output[str]],
        parent: pulumi.Resource,
    ) -> Sequence[pulumi.Resource]:
        return [
            kubernetes.core.v1.Secret(
                f"{name}-credentials-{user.replace('_', '-')}",
                metadata={
                    "name": credentials_secret_name(user, request.cluster_name),
                    "namespace": namespace,
                    # The operator finds its secrets by these.
                    "labels": {
                        "application": "spilo",
                        "cluster-name": request.cluster_name,
                        "team": request.team,
                    },
                },
                string_data={"username": user, "password": password},
                opts=pulumi.ResourceOptions(parent=parent, delete_before_replace=True),
            )
            for user, password in passwords.items()
        ]

    @staticmethod
    def _pooler_service(
        name: str,
        request: DatabaseRequest,
        namespace: pulumi.Output[str],
        parent: pulumi.Resource,
        cluster: pulumi.Resource,
    ) -> kubernetes.core.v1.Service:
        annotations: pulumi.Output[Mapping[str, str]] = pulumi.Output.from_input(request.address_pool).apply(
            lambda pool: address_annotations(request.pooler_address, pool)
        )
        return kubernetes.core.v1.Service(
            f"{name}-pooler-address",
            metadata={
                "name": f"{request.cluster_name}-pooler-address",
                "namespace": namespace,
                "annotations": annotations,
            },
            spec={
                "type": "LoadBalancer",
                "load_balancer_source_ranges": list(request.allowed_sources),
                "selector": dict(database_pods(request.cluster_name).pooler_labels),
                "ports": [{"name": "postgresql", "port": 5432, "target_port": 5432}],
            },
            # The poolers are the operator's work: their pods come with the cluster.
            opts=pulumi.ResourceOptions(parent=parent, depends_on=[cluster], delete_before_replace=True),
        )
