"""Data safety: what the database promises, and what keeps data from being deleted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from pulumi_policy import PolicyCustomTimeouts, PolicyResource, PolicyResourceOptions, StackValidationArgs

from policy import data_safety, vocabulary
from policy.resources import shown
from policy.rule import PlanPolicy, ResourcePolicy
from tests.policy.judging import UNKNOWN, Judge, Planned, removed, with_property

pytestmark = pytest.mark.unit

DATABASE, OPERATOR, PROVIDER = "postgres-cluster", "postgres-operator-chart", "kubernetes"
PATRONI, PARAMETERS = ("spec", "patroni"), ("spec", "postgresql", "parameters")
OPERATOR_VALUES = ("values", "configKubernetes")


def changed(plan: Sequence[Planned], *names: str, **options: Any) -> list[Planned]:
    """The plan with other resource options of the named resources, or of all."""
    return [replace(resource, **options) if resource.name in names or not names else resource for resource in plan]


def named(plan: Sequence[Planned], name: str) -> Planned:
    (found,) = [resource for resource in plan if resource.name == name]
    return found


def test_the_schools_plan_is_safe(school_plan: list[Planned]) -> None:
    verdict = Judge(*data_safety.POLICIES).of_plan(school_plan)
    assert not verdict.violations
    assert not verdict.checked_at_up


def test_the_schools_first_preview_is_safe(first_plan: list[Planned]) -> None:
    assert not Judge(*data_safety.POLICIES).of_plan(first_plan).violations


@pytest.mark.parametrize(
    ("policy", "resource", "path", "value", "sentence"),
    [
        (
            data_safety.DATABASE_SYNCHRONOUS_REPLICATION,
            DATABASE,
            (*PATRONI, "synchronous_mode"),
            False,
            "postgres-cluster has `synchronous_mode` false; allowed is true.",
        ),
        (
            data_safety.DATABASE_SYNCHRONOUS_REPLICATION,
            DATABASE,
            (*PATRONI, "synchronous_mode"),
            None,
            "postgres-cluster has `synchronous_mode` unset; allowed is true.",
        ),
        (
            data_safety.DATABASE_SYNCHRONOUS_REPLICATION,
            DATABASE,
            PATRONI,
            None,
            "postgres-cluster has `synchronous_mode` unset; allowed is true.",
        ),
        (
            data_safety.DATABASE_SYNCHRONOUS_REPLICATION,
            DATABASE,
            (*PATRONI, "synchronous_node_count"),
            3.0,
            "wants 3 synchronous standbys with 3 members; allowed are 1 to one less than there are members.",
        ),
        (
            data_safety.DATABASE_SYNCHRONOUS_REPLICATION,
            DATABASE,
            (*PATRONI, "synchronous_node_count"),
            0.0,
            "wants 0 synchronous standbys with 3 members",
        ),
        (
            data_safety.DATABASE_DURABLE_COMMITS,
            DATABASE,
            (*PARAMETERS, "fsync"),
            "off",
            "postgres-cluster has `fsync` off; allowed are on, true, yes, 1.",
        ),
        (
            data_safety.DATABASE_DURABLE_COMMITS,
            DATABASE,
            (*PARAMETERS, "full_page_writes"),
            False,
            "postgres-cluster has `full_page_writes` false; allowed are on, true, yes, 1.",
        ),
        (
            data_safety.DATABASE_DURABLE_COMMITS,
            DATABASE,
            (*PARAMETERS, "synchronous_commit"),
            "LOCAL",
            "postgres-cluster has `synchronous_commit` LOCAL; allowed are on, true, yes, 1, remote_write, remote_apply.",
        ),
        (
            data_safety.DATABASE_DURABLE_COMMITS,
            DATABASE,
            (*PARAMETERS, "FSync"),
            "off",
            "postgres-cluster has `FSync` off; allowed are on, true, yes, 1.",
        ),
        *(
            (
                data_safety.DATABASE_PARAMETERS_SAFE,
                DATABASE,
                (*PARAMETERS, name),
                value,
                f"postgres-cluster has `{name}` {shown(value)}; allowed are ",
            )
            for name, value in (
                ("zero_damaged_pages", "on"),
                ("Zero_Damaged_Pages", True),
                ("ignore_checksum_failure", "on"),
                ("ignore_invalid_pages", "true"),
                ("session_replication_role", "replica"),
                ("default_transaction_read_only", "on"),
                ("transaction_read_only", 1.0),
                ("autovacuum", "off"),
                ("ssl", False),
                ("wal_level", "minimal"),
            )
        ),
        *(
            (
                data_safety.DATABASE_PARAMETERS_SAFE,
                DATABASE,
                (*PARAMETERS, name),
                "hunter2",
                f"postgres-cluster sets `{name}`; allowed is what the image sets.",
            )
            for name in ("shared_preload_libraries", "archive_command", "restore_command", "ARCHIVE_COMMAND")
        ),
        *(
            (
                data_safety.DATABASE_OBJECT_PLAIN,
                DATABASE,
                ("spec", *path),
                value,
                f"postgres-cluster has in `{'.'.join(path)}` ",
            )
            for path, value in (
                (("patroni", "pg_hba"), ["host all all 0.0.0.0/0 trust"]),
                (("standby",), {"standby_host": "10.0.145.9"}),
                (("clone",), {"cluster": "other"}),
                (("additionalVolumes",), [{"name": "host", "mountPath": "/host"}]),
                (("initContainers",), [{"name": "first"}]),
                (("init_containers",), [{"name": "first"}]),
                (("sidecars",), [{"name": "beside"}]),
            )
        ),
        (
            data_safety.KUBERNETES_PROVIDER_KEEPS_OBJECTS,
            PROVIDER,
            ("clusterIdentifier",),
            None,
            "The provider kubernetes has no `clusterIdentifier`; allowed is a name that never changes.",
        ),
        *(
            (
                data_safety.KUBERNETES_PROVIDER_KEEPS_OBJECTS,
                PROVIDER,
                ("deleteUnreachable",),
                value,
                "The provider kubernetes has `deleteUnreachable` true; allowed is false.",
            )
            for value in (True, "true")
        ),
        (
            data_safety.DATABASE_FAILOVER_LAG_LIMITED,
            DATABASE,
            (*PATRONI, "maximum_lag_on_failover"),
            1073741825.0,
            "postgres-cluster has `maximum_lag_on_failover` 1073741825; allowed are 1 to 1073741824 bytes (1 GiB).",
        ),
        (
            data_safety.DATABASE_FAILOVER_LAG_LIMITED,
            DATABASE,
            (*PATRONI, "maximum_lag_on_failover"),
            0.0,
            "postgres-cluster has `maximum_lag_on_failover` 0; allowed are 1 to",
        ),
        (
            data_safety.DATABASE_FAILOVER_LAG_LIMITED,
            DATABASE,
            (*PATRONI, "maximum_lag_on_failover"),
            -1.0,
            "postgres-cluster has `maximum_lag_on_failover` -1; allowed are 1 to",
        ),
        (
            data_safety.DATABASE_VOLUMES_RETAINED,
            OPERATOR,
            (*OPERATOR_VALUES, "enable_persistent_volume_claim_deletion"),
            True,
            "postgres-operator-chart has `enable_persistent_volume_claim_deletion` true; allowed is false.",
        ),
        (
            data_safety.DATABASE_VOLUMES_RETAINED,
            OPERATOR,
            (*OPERATOR_VALUES, "enable_persistent_volume_claim_deletion"),
            None,
            "postgres-operator-chart has `enable_persistent_volume_claim_deletion` unset; allowed is false.",
        ),
        (
            data_safety.DATABASE_VOLUMES_RETAINED,
            OPERATOR,
            (*OPERATOR_VALUES, "enable_secrets_deletion"),
            None,
            "postgres-operator-chart has `enable_secrets_deletion` unset; allowed is false.",
        ),
        (
            data_safety.DATABASE_VOLUMES_RETAINED,
            OPERATOR,
            (*OPERATOR_VALUES, "persistent_volume_claim_retention_policy", "when_deleted"),
            "delete",
            "has `persistent_volume_claim_retention_policy.when_deleted` delete; allowed is retain.",
        ),
        (
            data_safety.DATABASE_VOLUMES_RETAINED,
            OPERATOR,
            (*OPERATOR_VALUES, "persistent_volume_claim_retention_policy", "when_scaled"),
            "delete",
            "has `persistent_volume_claim_retention_policy.when_scaled` delete; allowed is retain.",
        ),
    ],
)
def test_what_endangers_data_is_a_violation(
    school_plan: list[Planned],
    policy: ResourcePolicy,
    resource: str,
    path: Sequence[str],
    value: object,
    sentence: str,
) -> None:
    verdict = Judge(*data_safety.POLICIES).of_plan(with_property(school_plan, resource, path, value))
    assert list(verdict.violations) == [policy.name]
    (message,) = verdict.violations[policy.name]
    assert sentence in message
    assert "hunter2" not in message
    assert policy.name in verdict.mandatory


@pytest.mark.parametrize(
    ("resource", "path", "value"),
    [
        (DATABASE, (*PATRONI, "synchronous_node_count"), 2.0),
        (DATABASE, (*PATRONI, "maximum_lag_on_failover"), None),
        (DATABASE, (*PATRONI, "maximum_lag_on_failover"), 1.0),
        (DATABASE, (*PATRONI, "maximum_lag_on_failover"), 1073741824.0),
        (DATABASE, (*PARAMETERS, "fsync"), "ON"),
        (DATABASE, (*PARAMETERS, "autovacuum"), "on"),
        (DATABASE, (*PARAMETERS, "wal_level"), "logical"),
        (DATABASE, (*PARAMETERS, "session_replication_role"), "origin"),
        (DATABASE, (*PARAMETERS, "zero_damaged_pages"), False),
        (DATABASE, PARAMETERS, True),
        (DATABASE, PARAMETERS, [None]),
        (DATABASE, (*PATRONI, "pg_hba"), []),
        (DATABASE, ("spec", "standby"), {}),
        (PROVIDER, ("deleteUnreachable",), "false"),
        (PROVIDER, ("deleteUnreachable",), False),
        (DATABASE, (*PARAMETERS, "full_page_writes"), True),
        (DATABASE, (*PARAMETERS, "synchronous_commit"), "remote_apply"),
        (DATABASE, ("spec", "postgresql"), None),
        (OPERATOR, (*OPERATOR_VALUES, "persistent_volume_claim_retention_policy"), None),
        (OPERATOR, ("chart",), "oci://ghcr.io/zalando/charts/postgres-operator"),
        ("metallb-chart", ("values",), None),
    ],
)
def test_what_is_safe_is_none(school_plan: list[Planned], resource: str, path: Sequence[str], value: object) -> None:
    assert not Judge(*data_safety.POLICIES).of_plan(with_property(school_plan, resource, path, value)).violations


@pytest.mark.parametrize(
    ("policy", "resource", "path"),
    [
        (data_safety.DATABASE_SYNCHRONOUS_REPLICATION, DATABASE, (*PATRONI, "synchronous_mode")),
        (data_safety.DATABASE_DURABLE_COMMITS, DATABASE, (*PARAMETERS, "fsync")),
        (data_safety.DATABASE_PARAMETERS_SAFE, DATABASE, (*PARAMETERS, "autovacuum")),
        (data_safety.DATABASE_OBJECT_PLAIN, DATABASE, (*PATRONI, "pg_hba")),
        (data_safety.KUBERNETES_PROVIDER_KEEPS_OBJECTS, PROVIDER, ("clusterIdentifier",)),
        (data_safety.DATABASE_FAILOVER_LAG_LIMITED, DATABASE, (*PATRONI, "maximum_lag_on_failover")),
        (data_safety.DATABASE_VOLUMES_RETAINED, OPERATOR, (*OPERATOR_VALUES, "enable_secrets_deletion")),
    ],
)
def test_what_is_not_known_yet_is_checked_at_up(
    school_plan: list[Planned], policy: ResourcePolicy, resource: str, path: Sequence[str]
) -> None:
    verdict = Judge(policy).of_plan(with_property([named(school_plan, resource)], resource, path, UNKNOWN))
    assert not verdict.violations
    assert verdict.checked_at_up == {
        policy.name: f"{'.'.join(path)} of {resource}: not known yet, checked at `pulumi up`"
    }


@pytest.mark.parametrize("chart", ["oci://ghcr.io/zalando/charts/postgres-operator", "postgres-operator"])
def test_the_operators_chart_is_found_wherever_it_comes_from(school_plan: list[Planned], chart: str) -> None:
    release = replace(named(school_plan, OPERATOR), properties={"chart": chart})
    messages = Judge(data_safety.DATABASE_VOLUMES_RETAINED).of_resource(release).violations
    assert len(messages["database-volumes-retained"]) == 2


def test_a_cluster_without_a_database_is_a_deletion(school_plan: list[Planned]) -> None:
    judge = Judge(data_safety.PLAN_KEEPS_A_DATABASE)
    (message,) = judge.of_stack(removed(school_plan, DATABASE)).violations["plan-keeps-a-database"]
    assert "The plan has a Kubernetes cluster and no database; allowed is at least one." in message
    machines_only = [resource for resource in school_plan if resource.type == vocabulary.CONTAINER]
    assert not judge.of_stack(machines_only).violations


@pytest.mark.parametrize("name", [DATABASE, "gl2-container", "gl6-container", "gl8-container"])
def test_what_holds_data_is_protected(school_plan: list[Planned], name: str) -> None:
    verdict = Judge(*data_safety.POLICIES).of_plan(changed(school_plan, name, protect=False))
    (message,) = verdict.violations["data-protected"]
    assert f"{name} holds data and is not protected; allowed is protected" in message
    assert "Set `protectData` to true." in message
    assert "data-protected" in verdict.mandatory


def test_a_volume_is_protected() -> None:
    claim = Planned(type=vocabulary.VOLUME_CLAIM, name="pgdata", properties={})
    judge = Judge(data_safety.DATA_PROTECTED)
    assert judge.of_resource(claim).violations
    assert not judge.of_resource(replace(claim, protect=True)).violations


@pytest.mark.parametrize(
    ("tags", "is_allowed"),
    [
        (["api-load-balancer", "school-postgres-school"], True),
        (["api-load-balancer", "file-share"], False),
        (["school-postgres-school"], False),
        ([], False),
        (None, False),
    ],
)
def test_only_a_machine_that_does_nothing_but_balance_goes_unprotected(
    school_plan: list[Planned], tags: list[str] | None, is_allowed: bool
) -> None:
    balancer = named(school_plan, "gl9-container")
    machine = replace(balancer, protect=False, properties=dict(balancer.properties) | {"tags": tags})
    assert bool(Judge(data_safety.DATA_PROTECTED).of_resource(machine).violations) is not is_allowed


def test_tags_that_are_not_known_yet_are_checked_at_up(school_plan: list[Planned]) -> None:
    plan = with_property(school_plan, "gl9-container", ("tags",), UNKNOWN)
    verdict = Judge(data_safety.DATA_PROTECTED).of_plan(plan)
    assert not verdict.violations
    assert list(verdict.checked_at_up) == ["data-protected"]


@pytest.mark.parametrize("name", ["k3s-token", "k3s-agent-token"])
def test_the_tokens_of_k3s_are_protected(school_plan: list[Planned], name: str) -> None:
    judge = Judge(data_safety.DATA_PROTECTED)
    (message,) = judge.of_plan(changed(school_plan, name, protect=False)).violations["data-protected"]
    assert f"{name} opens the cluster and its datastore and is not protected; allowed is protected" in message
    others = changed(school_plan, "backup-share-password", "k3s-gl2-node-password", protect=False)
    assert not judge.of_plan(others).violations


def test_the_namespace_of_a_database_is_protected(school_plan: list[Planned]) -> None:
    judge = Judge(data_safety.DATABASE_NAMESPACE_PROTECTED)
    plan = changed(school_plan, "postgres-namespace", protect=False)
    (message,) = judge.of_plan(plan).violations["database-namespace-protected"]
    assert "postgres-namespace is the namespace of a database and is not protected" in message
    assert not judge.of_plan(with_property(plan, "postgres-namespace", ("metadata", "name"), "other")).violations
    assert not judge.of_plan(with_property(plan, "postgres-namespace", ("metadata", "name"), None)).violations
    unknown = judge.of_plan(with_property(plan, DATABASE, ("metadata", "namespace"), UNKNOWN))
    assert not unknown.violations
    assert list(unknown.checked_at_up) == ["database-namespace-protected"]


@pytest.mark.parametrize(
    ("ignored", "replacing"),
    [
        (["operatingSystem", "initialization.userAccount"], []),
        (["operatingSystem", "initialization"], []),
        (["*"], []),
        (["operatingSystem.templateFileId", "initialization.userAccount"], ["operatingSystem"]),
        (["initialization.userAccount.keys", "operatingSystem"], ["initialization.userAccount"]),
        ([], ["operatingSystem", "initialization.userAccount"]),
    ],
)
def test_a_newer_template_replaces_no_machine(
    school_plan: list[Planned], ignored: list[str], replacing: list[str]
) -> None:
    machine = replace(named(school_plan, "gl6-container"), ignore_changes=ignored)
    violations = Judge(data_safety.MACHINE_SURVIVES_TEMPLATE_CHANGE).of_resource(machine).violations
    messages = violations.get("machine-survives-template-change", [])
    assert len(messages) == len(replacing)
    for used, message in zip(replacing, messages, strict=True):
        assert f"gl6-container is replaced when `{used}` changes; allowed is that the change is ignored." in message


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        (data_safety.MACHINE_DELETED_BEFORE_REPLACED, "gl6-container"),
        (data_safety.KUBERNETES_OBJECT_DELETED_BEFORE_REPLACED, DATABASE),
        (data_safety.KUBERNETES_OBJECT_DELETED_BEFORE_REPLACED, "postgres-namespace"),
        (data_safety.KUBERNETES_OBJECT_DELETED_BEFORE_REPLACED, "backup-schedule"),
        (data_safety.COMMAND_DELETED_BEFORE_REPLACED, "gl2-lxc-lines"),
    ],
)
def test_what_has_a_fixed_name_is_deleted_before_it_is_replaced(
    school_plan: list[Planned], policy: PlanPolicy, name: str
) -> None:
    verdict = Judge(*data_safety.POLICIES).of_plan(changed(school_plan, name, delete_before_replace=False))
    assert list(verdict.violations) == [policy.name]
    (message,) = verdict.violations[policy.name]
    assert f"{name} is deleted after its replacement is made; allowed is before." in message


def test_an_analysis_of_what_exists_is_told_of_no_order_and_reports_none(school_plan: list[Planned]) -> None:
    """Pulumi's state does not keep the option."""
    found: list[str] = []

    def report(message: str, urn: str | None = None) -> None:
        found.append(message)

    policy, services = data_safety.KUBERNETES_OBJECT_DELETED_BEFORE_REPLACED, school_plan[:2]
    policy.validate(StackValidationArgs([_as_analysed(service, None) for service in services], {}, {}), report)
    assert not found
    told = [_as_analysed(services[0], None), _as_analysed(services[1], True)]
    policy.validate(StackValidationArgs(told, {}, {}), report)
    assert len(found) == 1
    assert f"{services[0].name} is deleted after its replacement is made" in found[0]


def _as_analysed(resource: Planned, delete_before_replace: bool | None) -> PolicyResource:
    options = PolicyResourceOptions(True, [], delete_before_replace, [], PolicyCustomTimeouts(0, 0, 0), [])
    return PolicyResource(vocabulary.SERVICE, {}, resource.urn, resource.name, options, None, None, [], {})
