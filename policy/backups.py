"""Backups: every database is dumped every night, whole, to another machine, and kept long enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from pulumi_policy import Severity

from policy import vocabulary
from policy.pods import PodContainer, containers
from policy.resources import Machine, Plan, Resource, dig, number, shown
from policy.rule import PlanPolicy, ResourcePolicy

_JOB: Final = ("spec", "jobTemplate", "spec")


def is_backup(cron_job: Resource) -> bool:
    """Whether a CronJob is a backup: it says so by its label."""
    return bool(cron_job.get("metadata", "labels", "purpose") == "backup")


def variable(container: PodContainer, name: str) -> Any:
    """The plain value of an environment variable; None where there is none, or where it comes from elsewhere."""
    entries = [entry for entry in container.get("env") or () if dig(entry, "name") == name]
    return dig(entries, 0, "value")


def _values(cron_job: Resource, name: str) -> list[str]:
    found = [variable(container, name) for container in containers(cron_job)]
    return [value for value in found if isinstance(value, str)]


def _backups_of(database: Resource, plan: Plan) -> list[Resource]:
    """Backup jobs that name the database; whether they are in its namespace is not looked at."""
    cluster = database.get("metadata", "name")
    jobs = plan.of((vocabulary.CRON_JOB,))
    return [job for job in jobs if is_backup(job) and cluster in _values(job, "CLUSTER")]


def _not_running(cron_job: Resource) -> Iterator[str]:
    """Why a backup job would not run."""
    schedule = cron_job.get("spec", "schedule")
    # Absent is safe: not suspended.
    if cron_job.get("spec", "suspend"):
        yield "is suspended; allowed is `suspend` false"
    if not isinstance(schedule, str) or len(schedule.split()) != 5:
        yield f"has the schedule {shown(schedule)}; allowed are five fields such as 0 2 * * *"
    # Absent is not safe: the clock of whichever server's controller is in charge, usually UTC, so that the night moves.
    if not cron_job.get("spec", "timeZone"):
        yield "has no time zone; allowed is a name such as Europe/Berlin"


def _scheduled(database: Resource, plan: Plan) -> Iterator[str]:
    jobs = _backups_of(database, plan)
    if not jobs:
        yield (
            f"{database.name} has no backup; allowed is a CronJob with the label purpose=backup whose variable CLUSTER "
            "names the database."
        )
        return
    looked_at = [(job, list(_not_running(job))) for job in jobs]
    running = [job for job, faults in looked_at if not faults]
    if not running:
        yield from (
            f"{job.name}, the backup of {database.name}, {fault}." for job, faults in looked_at for fault in faults
        )
        return
    home = database.get("metadata", "namespace")
    if not any(job.get("metadata", "namespace") == home for job in running):
        yield f"{running[0].name}, the backup of {database.name}, is in another namespace; allowed is the database's own."


DATABASE_HAS_SCHEDULED_BACKUP: Final = PlanPolicy(
    "database-has-scheduled-backup",
    description="Every database has a backup that runs by itself.",
    why="Three members do not help against a deleted table: the deletion is on all three within milliseconds. A backup that "
    "somebody has to start is a backup that was not made.",
    remedy="Keep the SmbBackup of __main__.py, and set `backup.schedule` and `backup.timeZone`.",
    severity=Severity.CRITICAL,
    of=(vocabulary.DATABASE,),
    check_each=_scheduled,
)


def _covers(database: Resource, plan: Plan) -> Iterator[str]:
    jobs = _backups_of(database, plan)
    # No backup at all is what database-has-scheduled-backup is for.
    if not jobs:
        return
    dumped = {name for job in jobs for value in _values(job, "DATABASES") for name in value.split()}
    wanted = {*(database.get("spec", "databases") or ()), *(database.get("spec", "preparedDatabases") or ())}
    for name in sorted(wanted - dumped):
        yield f"{database.name} has the database {name}, which is in no backup; allowed is all of them in DATABASES."


BACKUP_COVERS_EVERY_DATABASE: Final = PlanPolicy(
    "backup-covers-every-database",
    description="A backup contains every database of the cluster.",
    why="A database that was added later and never dumped is noticed on the day it has to be restored.",
    remedy="Give SmbBackup all of `postgres.databases` in __main__.py.",
    severity=Severity.CRITICAL,
    of=(vocabulary.DATABASE,),
    check_each=_covers,
)


_JOB_SETTINGS: Final[tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...]] = (
    (("spec", "concurrencyPolicy"), lambda value: value == "Forbid", "Forbid"),
    # Kubernetes looks every 10 s: with less it could miss every start.
    (("spec", "startingDeadlineSeconds"), lambda value: (number(value) or 0) >= 10, "10 or more"),
    # Absent is safe: one.
    (("spec", "failedJobsHistoryLimit"), lambda value: value != 0, "1 or more"),
    ((*_JOB, "activeDeadlineSeconds"), lambda value: (number(value) or 0) >= 1, "1 or more"),
    ((*_JOB, "backoffLimit"), lambda value: number(value) is not None, "a number"),
    ((*_JOB, "template", "spec", "restartPolicy"), lambda value: value == "Never", "Never"),
)
"""Where a setting of a backup job is, when it is safe, and what is allowed in words."""


def _safe_job(cron_job: Resource) -> Iterator[str]:
    if not is_backup(cron_job):
        return
    for path, is_safe, allowed in _JOB_SETTINGS:
        value = cron_job.get(*path)
        if not is_safe(value):
            yield f"{cron_job.name} has `{path[-1]}` {shown(value)}; allowed is {allowed}."


BACKUP_JOB_SAFE: Final = ResourcePolicy(
    "backup-job-safe",
    of=(vocabulary.CRON_JOB,),
    description="A backup job is not run twice at once, is made up for when it was missed, ends, and keeps what it said.",
    why="Two at once fight for the share. Without a deadline for its start, a cluster that was off at night makes no backup, "
    "and after 100 missed ones none ever again. Without an end it runs into the working day. A failure that is not kept, or is "
    "restarted in place, is one that nobody sees.",
    remedy="Keep these settings of the CronJob in components/smb_backup.py.",
    severity=Severity.HIGH,
    check=_safe_job,
)

LEAST_KEEP_DAYS: Final = 7
"""What goes wrong on a Friday is found after the weekend, or after a week of holidays."""


def _kept(cron_job: Resource) -> Iterator[str]:
    if not is_backup(cron_job):
        return
    values = _values(cron_job, "KEEP_DAYS") or ["unset"]
    for value in values:
        if not value.isdecimal() or int(value) < LEAST_KEEP_DAYS:
            yield f"{cron_job.name} has KEEP_DAYS {value}; allowed are {LEAST_KEEP_DAYS} or more days."


BACKUP_RETENTION: Final = ResourcePolicy(
    "backup-retention",
    of=(vocabulary.CRON_JOB,),
    description="Backups are kept for a week at least.",
    why="Damage is often found days later. By then every kept backup may hold it.",
    remedy="Set `backup.keepDays` to 7 or more.",
    severity=Severity.HIGH,
    check=_kept,
)

ENCRYPTED_MODES: Final = ("require", "verify-ca", "verify-full")
"""Values of libpq's ``sslmode`` that never send anything in clear text."""


def _encrypted(cron_job: Resource) -> Iterator[str]:
    if not is_backup(cron_job):
        return
    for container in containers(cron_job):
        names = [dig(entry, "name") for entry in container.get("env") or ()]
        if "PGHOST" not in names and "DATABASES" not in names:
            continue
        # Absent is not safe: libpq's default is prefer, which takes no for an answer.
        mode = variable(container, "PGSSLMODE")
        if mode not in ENCRYPTED_MODES:
            yield f"{container.name} has PGSSLMODE {shown(mode)}; allowed are {', '.join(ENCRYPTED_MODES)}."


BACKUP_CONNECTION_ENCRYPTED: Final = ResourcePolicy(
    "backup-connection-encrypted",
    of=(vocabulary.CRON_JOB,),
    description="A backup reads the database over an encrypted connection.",
    why="Everything in the database crosses the network once a night, with the hashes of all passwords. libpq's default goes "
    "on in clear text when encryption fails, and says nothing.",
    remedy="Keep PGSSLMODE=require in components/smb_backup.py.",
    severity=Severity.HIGH,
    check=_encrypted,
)


def _elsewhere(resource: Resource) -> Iterator[str]:
    machine = Machine(resource)
    if machine.has(vocabulary.TAG_SHARE) and machine.runs_kubernetes:
        yield f"{machine.name} keeps the backups and runs Kubernetes; allowed is one of the two."


BACKUP_LEAVES_THE_DATABASE_MACHINES: Final = ResourcePolicy(
    "backup-leaves-the-database-machines",
    of=(vocabulary.CONTAINER,),
    description="Backups lie on a machine that runs no Kubernetes.",
    why="The database's members live on the machines that run Kubernetes. A broken disk, or whoever breaks out of a pod, would "
    "take a member and all backups at once.",
    remedy="Give the role file-share in `machines` to a machine that is neither k3s-server nor k3s-worker.",
    severity=Severity.CRITICAL,
    check=_elsewhere,
)

POLICIES: Final = (
    DATABASE_HAS_SCHEDULED_BACKUP,
    BACKUP_COVERS_EVERY_DATABASE,
    BACKUP_JOB_SAFE,
    BACKUP_RETENTION,
    BACKUP_CONNECTION_ENCRYPTED,
    BACKUP_LEAVES_THE_DATABASE_MACHINES,
)
