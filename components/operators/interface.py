"""What every PostgreSQL operator is asked for and what it gives back, so that nothing else depends on which one it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import pulumi


@dataclass(frozen=True, kw_only=True, slots=True)
class DatabaseRequest:
    """A highly available PostgreSQL, in words that every operator understands."""

    cluster_name: str
    """Name of the cluster in Kubernetes."""
    team: str
    """Who owns it, a label."""
    version: str
    """PostgreSQL major version, e.g. ``16``."""
    instances: int
    """Members, each on a node of its own."""
    storage_gib: int
    """Volume of each member in GiB."""
    storage_class: str
    """StorageClass of the volumes."""
    cpu_request_millicores: int
    """CPU that is reserved for each member; there is no CPU limit worth having for a database."""
    memory_request_mib: int
    """Memory that is reserved for each member, in MiB."""
    memory_limit_mib: int
    """Memory at which a member is killed, in MiB."""
    users: Mapping[str, Sequence[str]]
    """Role to its flags, e.g. ``createdb``."""
    databases: Mapping[str, str]
    """Database to the role that owns it; the first is the application's."""
    parameters: Mapping[str, str]
    """PostgreSQL parameters."""
    pooler_instances: int
    """Poolers, each on a node of its own."""
    pooler_mode: str
    """``transaction`` or ``session``."""
    pooler_max_database_connections: int
    """Connections one pooler keeps to the database."""
    allowed_sources: Sequence[str]
    """Networks (CIDR) that may connect to the service addresses."""
    primary_address: str
    """Service address that accepts writes."""
    replica_address: str
    """Service address of the standbys."""
    pooler_address: str
    """Service address of the poolers in front of the primary."""
    address_pool: pulumi.Input[str]
    """MetalLB pool that the three addresses belong to."""
    helm_repository: str | None
    """Chart repository used instead of the operator's own."""
    protect_data: bool
    """Whether the cluster may neither be deleted nor replaced."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` without a database: the stack's outputs would have nothing to point at."""
        if not self.databases:
            raise ValueError("a database cluster needs at least one database; the first is the application's.")


@dataclass(frozen=True, kw_only=True, slots=True)
class DatabasePods:
    """The pods of a cluster and those who work with them, as network policies see them."""

    member_labels: Mapping[str, str]
    """Labels that every member has, and no other pod of the namespace."""
    pooler_labels: Mapping[str, str]
    """Labels that every pooler has, and no other pod of the namespace."""
    operator_namespace: str
    """Namespace of the operator."""
    coordination_port: int
    """TCP port at which members and operator ask each other who leads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Database:
    """What the rest of the program may know of a running cluster."""

    host: pulumi.Output[str]
    """Name inside Kubernetes at which the primary answers."""
    superuser_secret: str
    """Secret with the keys ``username`` and ``password`` of the superuser, in the cluster's namespace."""
    client_image: str
    """Image that has the PostgreSQL client programs of the same version."""
    client_directory: str
    """Folder of those programs in the image."""
    ready: Sequence[pulumi.Resource]
    """What has to be finished before somebody connects."""
    pods: DatabasePods
    """Which pods belong to it."""


class PostgresOperator(Protocol):
    """One operator."""

    def deploy(
        self,
        name: str,
        request: DatabaseRequest,
        *,
        namespace: pulumi.Output[str],
        passwords: Mapping[str, pulumi.Output[str]],
        parent: pulumi.Resource,
    ) -> Database:
        """Declare the operator and the cluster as children of ``parent``, named after ``name``.

        ``namespace`` exists; ``passwords`` has the (secret) password of every role.
        """
        ...
