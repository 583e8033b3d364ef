"""Backups: every database is dumped, whole, to another machine, and kept long enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from policy import backups, vocabulary
from policy.rule import PlanPolicy, ResourcePolicy
from tests.policy.judging import UNKNOWN, Judge, Planned, removed, with_property

pytestmark = pytest.mark.unit

DATABASE, CRON_JOB = "postgres-cluster", "backup-schedule"
JOB = ("spec", "jobTemplate", "spec")
POD = (*JOB, "template", "spec")
DUMP, UPLOAD = (*POD, "initContainers", 0, "env"), (*POD, "containers", 0, "env")


def variable(plan: Sequence[Planned], environment: Sequence[str | int], name: str) -> list[str | int]:
    """Where the value of an environment variable of the backup stands."""
    (cron_job,) = [resource for resource in plan if resource.name == CRON_JOB]
    entries = cron_job.properties
    for step in environment:
        entries = entries[step]  # type: ignore[index]
    (index,) = [index for index, entry in enumerate(entries) if entry["name"] == name]  # type: ignore[index]
    return [*environment, index, "value"]


@pytest.fixture(scope="module")
def backed_up(school_plan: list[Planned]) -> list[Planned]:
    """What of the school's plan has to do with backups."""
    return [resource for resource in school_plan if resource.name in (DATABASE, CRON_JOB, "gl8-container")]


def test_the_schools_backups_are_relied_upon(school_plan: list[Planned], first_plan: list[Planned]) -> None:
    judge = Judge(*backups.POLICIES)
    assert not judge.of_plan(school_plan).violations
    assert not judge.of_plan(school_plan).checked_at_up
    assert not judge.of_plan(first_plan).violations


@pytest.mark.parametrize(
    ("policy", "path", "value", "sentence"),
    [
        (
            backups.DATABASE_HAS_SCHEDULED_BACKUP,
            ("spec", "suspend"),
            True,
            "backup-schedule, the backup of postgres-cluster, is suspended; allowed is `suspend` false.",
        ),
        (
            backups.DATABASE_HAS_SCHEDULED_BACKUP,
            ("spec", "schedule"),
            "0 0 2 * * *",
            "has the schedule 0 0 2 * * *; allowed are five fields such as 0 2 * * *, with * for the day of the month",
        ),
        *(
            (backups.DATABASE_HAS_SCHEDULED_BACKUP, ("spec", "schedule"), schedule, f"has the schedule {schedule}; all")
            for schedule in ("0 2 * * 0", "0 2 1 * *", "0 2 * 1 *", "0 2 31 2 *", "0 24 * * *", "@yearly", "x 2 * * *")
        ),
        (
            backups.DATABASE_HAS_SCHEDULED_BACKUP,
            ("spec", "suspend"),
            "false",
            "is suspended; allowed is `suspend` false.",
        ),
        (
            backups.DATABASE_HAS_SCHEDULED_BACKUP,
            (*JOB, "suspend"),
            True,
            "starts its jobs suspended; allowed is `jobTemplate.spec.suspend` false.",
        ),
        (
            backups.DATABASE_HAS_SCHEDULED_BACKUP,
            (*JOB, "parallelism"),
            0.0,
            "has `parallelism` 0, so that no pod is started; allowed is 1.",
        ),
        (
            backups.DATABASE_HAS_SCHEDULED_BACKUP,
            (*JOB, "completions"),
            0.0,
            "has `completions` 0, so that no pod is started; allowed is 1.",
        ),
        *(
            (
                backups.DATABASE_HAS_SCHEDULED_BACKUP,
                (*POD, "initContainers", 0, "command"),
                command,
                "does nothing in container dump; allowed is the command that makes the backup.",
            )
            for command in (["true"], ["/bin/true"], ["sh", "-c", "exit 0"], ["/bin/sh", "-ec", ":"], ["sleep", "1"])
        ),
        (
            backups.DATABASE_HAS_SCHEDULED_BACKUP,
            (*POD, "containers", 0, "command"),
            ["/bin/sh", "-c"],
            "does nothing in container upload; allowed is",
        ),
        (
            backups.BACKUP_JOB_SAFE,
            (*JOB, "activeDeadlineSeconds"),
            599.0,
            "`activeDeadlineSeconds` 599; allowed is 600 or more.",
        ),
        (
            backups.BACKUP_JOB_SAFE,
            (*POD, "activeDeadlineSeconds"),
            1.0,
            "`activeDeadlineSeconds` 1; allowed is 600 or more.",
        ),
        (
            backups.DATABASE_HAS_SCHEDULED_BACKUP,
            ("spec", "schedule"),
            None,
            "has the schedule unset; allowed are five fields",
        ),
        (
            backups.DATABASE_HAS_SCHEDULED_BACKUP,
            ("spec", "timeZone"),
            None,
            "has no time zone; allowed is a name such as Europe/Berlin.",
        ),
        (
            backups.DATABASE_HAS_SCHEDULED_BACKUP,
            ("metadata", "namespace"),
            "default",
            "backup-schedule, the backup of postgres-cluster, is in another namespace; allowed is the database's own.",
        ),
        (
            backups.BACKUP_JOB_SAFE,
            ("spec", "concurrencyPolicy"),
            "Allow",
            "backup-schedule has `concurrencyPolicy` Allow; allowed is Forbid.",
        ),
        (backups.BACKUP_JOB_SAFE, ("spec", "concurrencyPolicy"), None, "`concurrencyPolicy` unset; allowed is Forbid."),
        (
            backups.BACKUP_JOB_SAFE,
            ("spec", "startingDeadlineSeconds"),
            9.0,
            "`startingDeadlineSeconds` 9; allowed is 10 or more.",
        ),
        (backups.BACKUP_JOB_SAFE, ("spec", "startingDeadlineSeconds"), None, "`startingDeadlineSeconds` unset"),
        (
            backups.BACKUP_JOB_SAFE,
            (*JOB, "activeDeadlineSeconds"),
            None,
            "`activeDeadlineSeconds` unset; allowed is 600 or more.",
        ),
        (
            backups.BACKUP_JOB_SAFE,
            ("spec", "failedJobsHistoryLimit"),
            0.0,
            "`failedJobsHistoryLimit` 0; allowed is 1 or more.",
        ),
        (backups.BACKUP_JOB_SAFE, (*JOB, "backoffLimit"), None, "`backoffLimit` unset; allowed is a number."),
        (
            backups.BACKUP_JOB_SAFE,
            (*POD, "restartPolicy"),
            "OnFailure",
            "backup-schedule has `restartPolicy` OnFailure; allowed is Never.",
        ),
        (backups.BACKUP_JOB_SAFE, (*POD, "restartPolicy"), None, "`restartPolicy` unset; allowed is Never."),
    ],
)
def test_a_backup_job_that_cannot_be_relied_upon_is_a_violation(
    backed_up: list[Planned], policy: PlanPolicy | ResourcePolicy, path: Sequence[str], value: object, sentence: str
) -> None:
    verdict = Judge(*backups.POLICIES).of_plan(with_property(backed_up, CRON_JOB, path, value))
    assert list(verdict.violations) == [policy.name]
    (message,) = verdict.violations[policy.name]
    assert sentence in message
    assert policy.name in verdict.mandatory


@pytest.mark.parametrize(
    ("policy", "environment", "name", "value", "sentence"),
    [
        (
            backups.BACKUP_COVERS_EVERY_DATABASE,
            DUMP,
            "DATABASES",
            "other",
            "postgres-cluster has the database firmendaten, which is in no backup; allowed is all of them in DATABASES.",
        ),
        (backups.BACKUP_COVERS_EVERY_DATABASE, DUMP, "DATABASES", None, "has the database firmendaten, which is in no"),
        (backups.BACKUP_RETENTION, UPLOAD, "KEEP_DAYS", "6", "backup-schedule has KEEP_DAYS 6; allowed are 7 or more"),
        (
            backups.BACKUP_RETENTION,
            UPLOAD,
            "KEEP_DAYS",
            "-7",
            "backup-schedule has KEEP_DAYS -7; allowed are 7 or more",
        ),
        (
            backups.BACKUP_RETENTION,
            UPLOAD,
            "KEEP_DAYS",
            None,
            "backup-schedule has KEEP_DAYS unset; allowed are 7 or more",
        ),
        (
            backups.BACKUP_CONNECTION_ENCRYPTED,
            DUMP,
            "PGSSLMODE",
            "prefer",
            "backup-schedule: container dump has PGSSLMODE prefer; allowed are require, verify-ca, verify-full.",
        ),
        (
            backups.BACKUP_CONNECTION_ENCRYPTED,
            DUMP,
            "PGSSLMODE",
            None,
            "backup-schedule: container dump has PGSSLMODE unset; allowed are require, verify-ca, verify-full.",
        ),
    ],
)
def test_what_a_backup_is_told_is_looked_at(
    backed_up: list[Planned],
    policy: PlanPolicy | ResourcePolicy,
    environment: Sequence[str | int],
    name: str,
    value: object,
    sentence: str,
) -> None:
    plan = with_property(backed_up, CRON_JOB, variable(backed_up, environment, name), value)
    verdict = Judge(*backups.POLICIES).of_plan(plan)
    assert list(verdict.violations) == [policy.name]
    (message,) = verdict.violations[policy.name]
    assert sentence in message


@pytest.mark.parametrize("schedule", ["0 2 * * *", "30 1,13 * * *", "*/15 6-20/2 * * *", "00 02 * * *"])
@pytest.mark.parametrize("command", [None, ["/bin/sh", "-c", "exec /scripts/dump.sh"], ["/usr/bin/truedump"]])
def test_a_backup_of_every_day_is_one(backed_up: list[Planned], schedule: str, command: list[str] | None) -> None:
    (cron_job,) = [resource for resource in backed_up if resource.name == CRON_JOB]
    spec = dict(cron_job.properties["spec"]) | {"schedule": schedule}
    plan = [*removed(backed_up, CRON_JOB), replace(cron_job, properties=dict(cron_job.properties) | {"spec": spec})]
    plan = with_property(plan, CRON_JOB, (*POD, "initContainers", 0, "command"), command)
    assert not Judge(*backups.POLICIES).of_plan(plan).violations


def last(name: str, value: str) -> Callable[[Sequence[object]], list[object]]:
    """One more environment variable behind the others, which is the one that counts."""
    return lambda old: [*old, {"name": name, "value": value}]


@pytest.mark.parametrize(
    ("environment", "name", "value", "sentence"),
    [
        (DUMP, "CLUSTER", "other", "has another CLUSTER in container dump; allowed is wichtige-daten-3 in all"),
        (UPLOAD, "CLUSTER", "other", "has another CLUSTER in container upload; allowed is wichtige-daten-3 in all"),
        (
            DUMP,
            "PGHOST",
            "other.postgres.svc",
            "connects to another host than the database in container dump; allowed is PGHOST "
            "wichtige-daten-3.postgres.svc.",
        ),
        (DUMP, "PGHOST", "wichtige-daten-3.other.svc", "connects to another host than the database in container dump"),
        (DUMP, "PGHOSTADDR", "10.0.145.9", "sets PGHOSTADDR in container dump; allowed is PGHOST alone."),
        (DUMP, "PGSERVICE", "other", "sets PGSERVICE in container dump; allowed is PGHOST alone."),
    ],
)
def test_a_dump_of_another_database_is_no_backup(
    backed_up: list[Planned], environment: Sequence[str | int], name: str, value: str, sentence: str
) -> None:
    plan = with_property(backed_up, CRON_JOB, environment, last(name, value))
    (message,) = Judge(*backups.POLICIES).of_plan(plan).violations["database-has-scheduled-backup"]
    assert f"backup-schedule, the backup of postgres-cluster, {sentence}" in message


def test_a_backup_that_reads_no_database_is_none(backed_up: list[Planned]) -> None:
    plan = with_property(backed_up, CRON_JOB, DUMP, [])
    verdict = Judge(*backups.POLICIES).of_plan(plan)
    assert list(verdict.violations) == ["database-has-scheduled-backup"]
    assert "connects to no database; allowed is PGHOST wichtige-daten-3.postgres.svc." in verdict.sentences[0]


def test_a_backup_that_does_not_run_covers_nothing(backed_up: list[Planned]) -> None:
    (cron_job,) = [resource for resource in backed_up if resource.name == CRON_JOB]
    plan = with_property(backed_up, DATABASE, ("spec", "databases", "noten"), "bauer")
    second = with_property([replace(cron_job, name="second")], "second", DUMP, last("DATABASES", "noten"))
    judge = Judge(*backups.POLICIES)
    assert not judge.of_plan([*plan, *second]).violations
    suspended = with_property(second, "second", ("spec", "suspend"), True)
    elsewhere = with_property(second, "second", DUMP, last("PGHOST", "other.postgres.svc"))
    for useless in (suspended, elsewhere):
        verdict = judge.of_plan([*plan, *useless])
        assert list(verdict.violations) == ["backup-covers-every-database"]
        assert "postgres-cluster has the database noten, which is in no backup" in verdict.sentences[0]


@pytest.mark.parametrize("value", [0.5, True, "text", {"name": 1}, [None, 1.0, "text", {}]])
def test_what_has_another_shape_is_a_violation_and_no_crash(backed_up: list[Planned], value: object) -> None:
    judge = Judge(*backups.POLICIES)
    for path in (DUMP, UPLOAD, (*POD, "initContainers", 0, "command"), (*POD, "initContainers"), ("spec",)):
        plan = with_property(backed_up, CRON_JOB, path, value)
        assert judge.of_plan(plan).violations or path[-1] == "command"
    judge.of_plan(with_property(backed_up, DATABASE, ("spec", "databases"), value))


def test_a_database_without_a_backup_is_a_violation(backed_up: list[Planned]) -> None:
    sentence = "postgres-cluster has no backup; allowed is a CronJob with the label purpose=backup"
    elsewhere = with_property(backed_up, CRON_JOB, variable(backed_up, UPLOAD, "CLUSTER"), "other")
    elsewhere = with_property(elsewhere, CRON_JOB, variable(backed_up, DUMP, "CLUSTER"), "other")
    unlabelled = with_property(backed_up, CRON_JOB, ("metadata", "labels"), None)
    for plan in (removed(backed_up, CRON_JOB), elsewhere, unlabelled):
        verdict = Judge(*backups.POLICIES).of_plan(plan)
        assert list(verdict.violations) == ["database-has-scheduled-backup"]
        assert sentence in verdict.sentences[0]


def test_one_backup_that_runs_is_enough(backed_up: list[Planned]) -> None:
    (cron_job,) = [resource for resource in backed_up if resource.name == CRON_JOB]
    second = with_property([cron_job], CRON_JOB, ("spec", "suspend"), True)
    verdict = Judge(backups.DATABASE_HAS_SCHEDULED_BACKUP).of_stack([*backed_up, *second])
    assert not verdict.violations


@pytest.mark.parametrize("section", ["databases", "preparedDatabases"])
def test_a_database_that_was_added_is_dumped_as_well(backed_up: list[Planned], section: str) -> None:
    plan = with_property(backed_up, DATABASE, ("spec", section), lambda old: {**(old or {}), "noten": "bauer"})
    (message,) = Judge(*backups.POLICIES).of_plan(plan).violations["backup-covers-every-database"]
    assert "postgres-cluster has the database noten, which is in no backup" in message


@pytest.mark.parametrize("mode", ["verify-ca", "verify-full"])
def test_a_connection_may_be_checked_more_strictly(backed_up: list[Planned], mode: str) -> None:
    plan = with_property(backed_up, CRON_JOB, variable(backed_up, DUMP, "PGSSLMODE"), mode)
    assert not Judge(*backups.POLICIES).of_plan(plan).violations


def test_a_job_that_is_no_backup_is_left_alone(backed_up: list[Planned]) -> None:
    other = Planned(type=vocabulary.CRON_JOB, name="cleaning", properties={"spec": {}})
    assert not Judge(*backups.POLICIES).of_plan([*backed_up, other]).violations


@pytest.mark.parametrize("role", ["k3s-server", "k3s-worker"])
def test_backups_leave_the_machines_of_the_database(backed_up: list[Planned], role: str) -> None:
    judge = Judge(backups.BACKUP_LEAVES_THE_DATABASE_MACHINES)
    assert not judge.of_plan(backed_up).violations
    plan = with_property(backed_up, "gl8-container", ("tags",), ["file-share", role])
    (message,) = judge.of_plan(plan).violations["backup-leaves-the-database-machines"]
    assert "gl8 keeps the backups and runs Kubernetes; allowed is one of the two." in message
    assert not judge.of_plan(with_property(backed_up, "gl8-container", ("tags",), None)).violations


@pytest.mark.parametrize(
    ("policy", "resource", "path"),
    [
        (backups.DATABASE_HAS_SCHEDULED_BACKUP, DATABASE, ("metadata", "namespace")),
        (backups.DATABASE_HAS_SCHEDULED_BACKUP, CRON_JOB, ("spec", "schedule")),
        (backups.BACKUP_COVERS_EVERY_DATABASE, DATABASE, ("spec",)),
        (backups.BACKUP_JOB_SAFE, CRON_JOB, ("spec", "startingDeadlineSeconds")),
        (backups.BACKUP_RETENTION, CRON_JOB, UPLOAD),
        (backups.BACKUP_CONNECTION_ENCRYPTED, CRON_JOB, DUMP),
        (backups.BACKUP_LEAVES_THE_DATABASE_MACHINES, "gl8-container", ("tags",)),
    ],
)
def test_what_is_not_known_yet_is_checked_at_up(
    backed_up: list[Planned], policy: PlanPolicy | ResourcePolicy, resource: str, path: Sequence[str | int]
) -> None:
    verdict = Judge(policy).of_plan(with_property(backed_up, resource, path, UNKNOWN))
    assert not verdict.violations
    assert list(verdict.checked_at_up) == [policy.name]
    assert f"{path[-1]} of " in verdict.checked_at_up[policy.name]
