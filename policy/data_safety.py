"""Data safety: nothing acknowledged is lost, and everything can be restored.

Here: what the database promises, and what keeps data from being deleted. The backups are looked at in ``backups``.

A policy sees what the plan makes, never what it deletes or replaces. Deletions are closed in three steps: what holds data
must be protected, so that the engine itself refuses to delete or replace it, even in the very change that takes it out of
the program; a change that takes the protection away is refused here; and so is a plan in which the database is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from pulumi_policy import Severity

from policy import backups, vocabulary
from policy.resources import Machine, Plan, Resource, dig, number, shown
from policy.rule import PlanPolicy, ResourcePolicy
from policy.zalando import is_operator_chart

# --- what the database promises


def _synchronous(database: Resource) -> Iterator[str]:
    patroni = database.get("spec", "patroni")
    if dig(patroni, "synchronous_mode") is not True:
        yield f"{database.name} has `synchronous_mode` {shown(dig(patroni, 'synchronous_mode'))}; allowed is true."
    # Absent is safe: one.
    wanted = number(dig(patroni, "synchronous_node_count"))
    members = number(database.get("spec", "numberOfInstances")) or 0
    if wanted is not None and not 1 <= wanted < members:
        yield (
            f"{database.name} wants {wanted} synchronous standbys with {members} members; allowed are 1 to "
            "one less than there are members."
        )


DATABASE_SYNCHRONOUS_REPLICATION: Final = ResourcePolicy(
    "database-synchronous-replication",
    of=(vocabulary.DATABASE,),
    description="A commit is acknowledged only when a second member has it.",
    why="The operator's default is asynchronous: when the primary's machine is lost, the last commits that applications took "
    "for done are lost with it. A count that the members cannot fill is never met.",
    remedy="Set `synchronous_mode` to true in `cluster_spec` of components/operators/zalando.py.",
    severity=Severity.CRITICAL,
    check=_synchronous,
)

_ON: Final = ("on", "true", "yes", "1")
_OFF: Final = ("off", "false", "no", "0")
DURABLE_VALUES: Final = {
    "fsync": _ON,
    "full_page_writes": _ON,
    "synchronous_commit": (*_ON, "remote_write", "remote_apply"),
}
"""PostgreSQL parameter to the values with which an acknowledged commit is kept."""


_PARAMETERS: Final = ("spec", "postgresql", "parameters")


def _values_outside(database: Resource, allowed: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """A sentence for each PostgreSQL parameter that is set to something that is not allowed; absent is safe for all."""
    for name in database.keys(*_PARAMETERS):
        # PostgreSQL does not tell capital letters from small ones.
        values = allowed.get(name.lower())
        if values is None:
            continue
        value = database.get(*_PARAMETERS, name)
        if shown(value).lower() not in values:
            yield f"{database.name} has `{name}` {shown(value)}; allowed are {', '.join(values)}."


def _durable_commits(database: Resource) -> Iterator[str]:
    return _values_outside(database, DURABLE_VALUES)


DATABASE_DURABLE_COMMITS: Final = ResourcePolicy(
    "database-durable-commits",
    of=(vocabulary.DATABASE,),
    description="PostgreSQL is not told to acknowledge what it has not written.",
    why="With `synchronous_commit` off or local, a commit is acknowledged before a second member has it, whatever Patroni is "
    "told. Without `fsync` or `full_page_writes` a power cut leaves a database that cannot be read.",
    remedy="Remove the parameter from `postgres.parameters`.",
    severity=Severity.CRITICAL,
    check=_durable_commits,
)

SAFE_VALUES: Final = {
    "autovacuum": _ON,
    "default_transaction_read_only": _OFF,
    "ignore_checksum_failure": _OFF,
    "ignore_invalid_pages": _OFF,
    "session_replication_role": ("origin",),
    "ssl": _ON,
    "transaction_read_only": _OFF,
    "wal_level": ("replica", "logical"),
    "zero_damaged_pages": _OFF,
}
"""PostgreSQL parameter to the values with which it neither damages data nor stops the database."""
SET_BY_SPILO: Final = ("archive_command", "restore_command", "shared_preload_libraries")
"""PostgreSQL parameters that the image sets; another value replaces what it needs. Each may be a program that is run."""


def _parameters_safe(database: Resource) -> Iterator[str]:
    yield from (
        f"{database.name} sets `{name}`; allowed is what the image sets."
        for name in database.keys(*_PARAMETERS)
        if name.lower() in SET_BY_SPILO
    )
    yield from _values_outside(database, SAFE_VALUES)


DATABASE_PARAMETERS_SAFE: Final = ResourcePolicy(
    "database-parameters-safe",
    of=(vocabulary.DATABASE,),
    description="No PostgreSQL parameter damages data, opens the connections or stops the database.",
    why="With `zero_damaged_pages` or `ignore_checksum_failure` damage is thrown away or read as if it were data, and copied "
    "into every backup. With `session_replication_role` foreign keys are not checked, without `autovacuum` the database "
    "stops accepting writes some day, with `wal_level` minimal no standby can follow, and without the libraries of the image "
    "no member starts.",
    remedy="Remove the parameter from `postgres.parameters`.",
    severity=Severity.CRITICAL,
    check=_parameters_safe,
)

LARGEST_LAG_BYTES: Final = 1024**3
"""1 GiB, minutes of a busy database: a standby that is further behind is repaired, not promoted."""


def _failover_lag(database: Resource) -> Iterator[str]:
    given = database.get("spec", "patroni", "maximum_lag_on_failover")
    # Absent is safe: 32 MiB.
    if given is None:
        return
    lag = number(given)
    # The operator leaves 0 and less out without a word, so what is written would not be what holds.
    if lag is None or not 1 <= lag <= LARGEST_LAG_BYTES:
        yield (
            f"{database.name} has `maximum_lag_on_failover` {shown(given)}; "
            f"allowed are 1 to {LARGEST_LAG_BYTES} bytes (1 GiB)."
        )


DATABASE_FAILOVER_LAG_LIMITED: Final = ResourcePolicy(
    "database-failover-lag-limited",
    of=(vocabulary.DATABASE,),
    description="A standby that is far behind is never made the primary.",
    why="When synchronous replication was suspended because no standby was left, a standby that comes back is behind. "
    "Promoted, it would take everything that was written since away.",
    remedy="Set `maximum_lag_on_failover` to 33554432 (32 MiB) in components/operators/zalando.py.",
    severity=Severity.HIGH,
    check=_failover_lag,
)


_DATABASE_KEYS: Final = {
    ("spec", "patroni", "pg_hba"): "rules of its own about who may connect; allowed are the operator's",
    ("spec", "standby"): "another database that it follows; allowed is a database that can be written to",
    ("spec", "clone"): "another database that it is made from; allowed is an empty one, which a restore fills",
    ("spec", "additionalVolumes"): "volumes of its own; allowed is `volume` alone",
    ("spec", "initContainers"): "containers of its own; allowed are the operator's",
    ("spec", "init_containers"): "containers of its own; allowed are the operator's",
    ("spec", "sidecars"): "containers of its own; allowed are the operator's",
}
"""What of a database object changes who comes in, what runs beside PostgreSQL, or where its data come from."""


def _object_plain(database: Resource) -> Iterator[str]:
    for path, what in _DATABASE_KEYS.items():
        if database.get(*path):
            yield f"{database.name} has in `{'.'.join(path[1:])}` {what}."


DATABASE_OBJECT_PLAIN: Final = ResourcePolicy(
    "database-object-plain",
    of=(vocabulary.DATABASE,),
    description="A database object has no access rules, containers or volumes of its own, and is not made from another.",
    why="Access rules of one's own replace the operator's, TLS and passwords with them. A container beside PostgreSQL reads "
    "its files and its memory. A database that follows another takes no writes, and one that is made from another holds what "
    "nobody has reviewed.",
    remedy="Remove the key in `cluster_spec` of components/operators/zalando.py; waive it for as long as it takes, e.g. to "
    "move from another cluster.",
    severity=Severity.HIGH,
    check=_object_plain,
)


# --- what outlives the database object


def _volumes_retained(release: Resource) -> Iterator[str]:
    if not is_operator_chart(release):
        return
    values = release.get("values", "configKubernetes")
    for key in ("enable_persistent_volume_claim_deletion", "enable_secrets_deletion"):
        # Absent is not safe: the chart's default is true.
        if dig(values, key) is not False:
            yield f"{release.name} has `{key}` {shown(dig(values, key))}; allowed is false."
    for key in ("when_deleted", "when_scaled"):
        policy = dig(values, "persistent_volume_claim_retention_policy", key)
        # Absent is safe: retain.
        if policy not in (None, "retain"):
            yield f"{release.name} has `persistent_volume_claim_retention_policy.{key}` {shown(policy)}; allowed is retain."


DATABASE_VOLUMES_RETAINED: Final = ResourcePolicy(
    "database-volumes-retained",
    of=(vocabulary.RELEASE,),
    description="Volumes and passwords outlive the database object.",
    why="The chart's default deletes the volumes of all members and the passwords together with the object: one "
    "`kubectl delete postgresql` in the wrong namespace, and only the backup is left.",
    remedy="Keep these values of `operator_values` in components/operators/zalando.py.",
    severity=Severity.CRITICAL,
    check=_volumes_retained,
)


def _keeps_a_database(plan: Plan) -> Iterator[str]:
    has_cluster = next(plan.of((vocabulary.CONTROL_PLANE_COMPONENT,)), None) is not None
    has_database = next(plan.of((vocabulary.DATABASE,)), None) is not None
    if has_cluster and not has_database:
        yield "The plan has a Kubernetes cluster and no database; allowed is at least one."


PLAN_KEEPS_A_DATABASE: Final = PlanPolicy(
    "plan-keeps-a-database",
    description="A plan with a Kubernetes cluster has a database.",
    why="A database that has dropped out of the plan is a database that is being deleted. To end a stack there is "
    "`pulumi destroy`, which asks.",
    remedy="Put the database back into the program; README.md, `Taking it down`, says how a stack is ended.",
    severity=Severity.CRITICAL,
    check=_keeps_a_database,
)


# --- what must not be deleted by accident

DATA_TAGS: Final = (vocabulary.TAG_SERVER, vocabulary.TAG_WORKER, vocabulary.TAG_DATASTORE, vocabulary.TAG_SHARE)
"""Roles of machines on whose disks data live: members of the database, the state of Kubernetes, the backups."""
TOKEN_SUFFIX: Final = "-token"
"""How the names of the tokens end with which machines join K3s, and with which the servers' own keys are encrypted."""
_UNPROTECTED: Final = "is not protected; allowed is protected, so that Pulumi refuses to delete or replace it."


def _protected(resource: Resource) -> Iterator[str]:
    if resource.options.protect:
        return
    if resource.type == vocabulary.PASSWORD:
        if resource.name.endswith(TOKEN_SUFFIX):
            yield f"{resource.name} opens the cluster and its datastore and {_UNPROTECTED}"
        return
    machine = Machine(resource)
    # A machine without a role may hold anything; only one that does nothing but balance holds nothing.
    only_balances = machine.has(vocabulary.TAG_BALANCER) and not any(machine.has(tag) for tag in DATA_TAGS)
    if resource.type != vocabulary.CONTAINER or not only_balances:
        yield f"{resource.name} holds data and {_UNPROTECTED}"


DATA_PROTECTED: Final = ResourcePolicy(
    "data-protected",
    of=(vocabulary.DATABASE, vocabulary.VOLUME_CLAIM, vocabulary.CONTAINER, vocabulary.PASSWORD),
    description="The database, its volumes, the machines that hold data and the tokens of K3s are protected.",
    why="A changed name, a machine taken out of the list or a slip in the code would otherwise delete a disk with everything "
    "on it, and the preview would show it as one line among many. With another token no K3s server can read the keys that "
    "it keeps in the datastore, and none starts any more.",
    remedy="Set `protectData` to true.",
    severity=Severity.CRITICAL,
    check=_protected,
)


def _provider_keeps_objects(provider: Resource) -> Iterator[str]:
    # Absent is not safe: the kubeconfig says which cluster it is, and a renewed one is another.
    if not provider.get("clusterIdentifier"):
        yield f"The provider {provider.name} has no `clusterIdentifier`; allowed is a name that never changes."
    unreachable = provider.get("deleteUnreachable")
    # Absent is safe: the provider's default is false.
    if unreachable not in (None, False, "false"):
        yield f"The provider {provider.name} has `deleteUnreachable` {shown(unreachable)}; allowed is false."


KUBERNETES_PROVIDER_KEEPS_OBJECTS: Final = ResourcePolicy(
    "kubernetes-provider-keeps-objects",
    of=(vocabulary.KUBERNETES_PROVIDER,),
    description="Neither a renewed kubeconfig nor a cluster that does not answer makes Pulumi forget what is in the cluster.",
    why="Without `clusterIdentifier` a renewed kubeconfig looks like another cluster, and everything in it is replaced, the "
    "database too. With `deleteUnreachable` one run while the cluster is off forgets every object, and the next makes them "
    "anew.",
    remedy="Keep `cluster_identifier` of the Kubernetes provider in __main__.py, and leave `delete_unreachable` out.",
    severity=Severity.CRITICAL,
    check=_provider_keeps_objects,
)


def _namespace_protected(namespace: Resource, plan: Plan) -> Iterator[str]:
    if namespace.options.protect:
        return
    name = namespace.get("metadata", "name")
    holders = plan.of((vocabulary.DATABASE, vocabulary.VOLUME_CLAIM))
    if name is not None and any(holder.get("metadata", "namespace") == name for holder in holders):
        yield f"{namespace.name} is the namespace of a database and {_UNPROTECTED}"


DATABASE_NAMESPACE_PROTECTED: Final = PlanPolicy(
    "database-namespace-protected",
    description="The namespace of a database is protected.",
    why="Kubernetes deletes everything in a namespace with it, the volumes included, and asks nobody.",
    remedy="Set `protectData` to true.",
    severity=Severity.CRITICAL,
    of=(vocabulary.NAMESPACE,),
    check_each=_namespace_protected,
)


# --- what must survive a change

USED_AT_CREATION: Final = ("operatingSystem", "initialization.userAccount")
"""Inputs of a container that are used once, when it is made; a change of one replaces the container."""


def _survives_template_change(machine: Resource) -> Iterator[str]:
    ignored = list(machine.options.ignore_changes)
    for used in USED_AT_CREATION:
        steps = used.split(".")
        wider = {".".join(steps[: length + 1]) for length in range(len(steps))} | {"*"}
        if wider.isdisjoint(ignored):
            yield f"{machine.name} is replaced when `{used}` changes; allowed is that the change is ignored."


MACHINE_SURVIVES_TEMPLATE_CHANGE: Final = ResourcePolicy(
    "machine-survives-template-change",
    of=(vocabulary.CONTAINER,),
    description="A newer template or another SSH key does not replace a machine.",
    why="Both are used once, when the machine is made. Proxmox can change neither afterwards, so the provider would delete "
    "every machine with its disk, all at once, to make it anew.",
    remedy="Keep operatingSystem and initialization.userAccount in `ignore_changes` in components/proxmox_lxc_node.py.",
    severity=Severity.CRITICAL,
    check=_survives_template_change,
)


def _deleted_before_replaced(resource: Resource, plan: Plan) -> Iterator[str]:
    # An analysis of what exists is told of no resource: Pulumi's state does not keep the option.
    is_told = any(other.options.delete_before_replace is not None for other in plan.resources)
    if is_told and resource.options.delete_before_replace is not True:
        yield f"{resource.name} is deleted after its replacement is made; allowed is before."


MACHINE_DELETED_BEFORE_REPLACED: Final = PlanPolicy(
    "machine-deleted-before-replaced",
    description="A machine that has to be replaced is deleted first.",
    why="The id of a container is fixed. Made first, the new container finds its id taken, takes the old one for itself, and "
    "the deletion that follows removes it: `up` reports success, and the machine is gone.",
    remedy="Keep `delete_before_replace` in components/proxmox_lxc_node.py.",
    severity=Severity.CRITICAL,
    of=(vocabulary.CONTAINER,),
    check_each=_deleted_before_replaced,
)

KUBERNETES_OBJECT_DELETED_BEFORE_REPLACED: Final = PlanPolicy(
    "kubernetes-object-deleted-before-replaced",
    description="A Kubernetes object of a fixed name that has to be replaced is deleted first.",
    why="The program takes over what exists under the same name, so that a killed run can be continued. Made first, the "
    "replacement would take over the old object, and the deletion that follows would remove it.",
    remedy="Set `delete_before_replace` to true in the options of the object.",
    severity=Severity.HIGH,
    of=(
        vocabulary.DATABASE,
        vocabulary.NAMESPACE,
        vocabulary.VOLUME_CLAIM,
        vocabulary.SERVICE,
        vocabulary.NETWORK_POLICY,
        vocabulary.ADDRESS_POOL,
        vocabulary.ADVERTISEMENT,
        *vocabulary.WORKLOADS,
    ),
    check_each=_deleted_before_replaced,
)

COMMAND_DELETED_BEFORE_REPLACED: Final = PlanPolicy(
    "command-deleted-before-replaced",
    description="A command that has to be replaced is undone before it is run again.",
    why="Otherwise the old command's `delete` runs after the new one's `create`, on the same machine, and undoes what has "
    "just been done: a container that runs Kubernetes would lose the lines it needs, and not start again.",
    remedy="Run scripts through `run_script` of components/remote.py, which sets `delete_before_replace`.",
    severity=Severity.HIGH,
    of=vocabulary.COMMANDS,
    check_each=_deleted_before_replaced,
)

POLICIES: Final = (
    DATABASE_SYNCHRONOUS_REPLICATION,
    DATABASE_DURABLE_COMMITS,
    DATABASE_PARAMETERS_SAFE,
    DATABASE_OBJECT_PLAIN,
    DATABASE_FAILOVER_LAG_LIMITED,
    DATABASE_VOLUMES_RETAINED,
    *backups.POLICIES,
    PLAN_KEEPS_A_DATABASE,
    DATA_PROTECTED,
    KUBERNETES_PROVIDER_KEEPS_OBJECTS,
    DATABASE_NAMESPACE_PROTECTED,
    MACHINE_SURVIVES_TEMPLATE_CHANGE,
    MACHINE_DELETED_BEFORE_REPLACED,
    KUBERNETES_OBJECT_DELETED_BEFORE_REPLACED,
    COMMAND_DELETED_BEFORE_REPLACED,
)
