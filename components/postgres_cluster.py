"""The school's database: an operator, a cluster of several members, poolers, and three addresses that never change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from urllib.parse import quote

import pulumi
import pulumi_kubernetes as kubernetes
import pulumi_random as random

from components.network_policies import restrict_connections
from components.operators.interface import Database, DatabaseRequest, PostgresOperator
from components.operators.zalando import ZalandoOperator

NAMESPACE: Final = "postgres"
NAMESPACE_LABELS: Final[Mapping[str, str]] = {"pod-security.kubernetes.io/enforce": "baseline"}
"""No pod of the namespace may be privileged, use its node's network or see its node's files: on these machines that would
be root on the Proxmox host. The stricter level "restricted" asks for what the operator cannot set in its pods."""


class OperatorKind(StrEnum):
    """Which operator runs the cluster."""

    ZALANDO = "zalando"


OPERATORS: Final[Mapping[OperatorKind, PostgresOperator]] = {OperatorKind.ZALANDO: ZalandoOperator()}


@dataclass(frozen=True, kw_only=True, slots=True)
class PostgresClusterArgs:
    """Inputs of :class:`PostgresCluster`."""

    operator: OperatorKind
    """Which operator runs the cluster."""
    request: DatabaseRequest
    """What the cluster is to be, in words that every operator understands."""


class PostgresCluster(pulumi.ComponentResource):
    """A highly available PostgreSQL with poolers, reached at three fixed addresses and by nobody who need not reach it.

    Which operator does it is one argument; everything else, and everything the component gives back, stays the same.
    Volumes and passwords survive the deletion of the cluster. Does not back anything up: see ``SmbBackup``.
    """

    namespace: pulumi.Output[str]
    """Namespace the cluster lives in."""
    database: Database
    """How other components reach it."""
    database_url: pulumi.Output[str]
    """Connection string of the application's database, read and write. Secret."""
    database_read_only_url: pulumi.Output[str]
    """The same for reading from a standby. Secret."""
    database_pooler_url: pulumi.Output[str]
    """The same through the poolers: for hundreds of connections. Secret."""
    service_addresses: Mapping[str, str]
    """What each address is for."""

    def __init__(self, name: str, args: PostgresClusterArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        request = args.request
        summary = {"operator": args.operator.value, "clusterName": request.cluster_name, "instances": request.instances}
        super().__init__("school:index:PostgresCluster", name, summary, opts)
        namespace = kubernetes.core.v1.Namespace(
            f"{name}-namespace",
            metadata={"name": NAMESPACE, "labels": dict(NAMESPACE_LABELS)},
            opts=pulumi.ResourceOptions(parent=self, delete_before_replace=True, protect=request.protect_data),
        )
        # Comes when the namespace is there, and is known in a preview before that: policies can read what depends on it.
        self.namespace = namespace.urn.apply(lambda _: NAMESPACE)
        passwords = {user: self._password(name, user) for user in request.users}
        self.database = OPERATORS[args.operator].deploy(
            name,
            request,
            namespace=self.namespace,
            passwords=passwords,
            parent=self,
        )
        restrict_connections(
            name,
            self.database.pods,
            namespace=self.namespace,
            allowed_sources=request.allowed_sources,
            parent=self,
        )

        application, owner = next(iter(request.databases.items()))

        def url(address: str) -> pulumi.Output[str]:
            # A connection string is handed out only when the cluster behind it runs.
            running = pulumi.Output.all(*(resource.urn for resource in self.database.ready))
            return pulumi.Output.all(passwords[owner], running).apply(
                lambda values: (
                    f"postgresql://{owner}:{quote(values[0], safe='')}@{address}:5432/{application}?sslmode=require"
                )
            )

        self.database_url = url(request.primary_address)
        self.database_read_only_url = url(request.replica_address)
        self.database_pooler_url = url(request.pooler_address)
        self.service_addresses = {
            "primary": request.primary_address,
            "replica": request.replica_address,
            "pooler": request.pooler_address,
        }
        self.register_outputs(
            {
                "namespace": self.namespace,
                "database_url": self.database_url,
                "database_read_only_url": self.database_read_only_url,
                "database_pooler_url": self.database_pooler_url,
                "service_addresses": self.service_addresses,
            }
        )

    def _password(self, name: str, user: str) -> pulumi.Output[str]:
        made = random.RandomPassword(
            f"{name}-password-{user.replace('_', '-')}",
            length=32,
            special=False,
            opts=pulumi.ResourceOptions(parent=self),
        )
        return pulumi.Output.secret(made.result)
