"""Backups: every database is dumped every night, whole, to another machine, and kept long enough."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from pulumi_policy import Severity

from policy import vocabulary
from policy.pods import PodContainer, containers
from policy.resources import Machine, Plan, Resource, dig, number, shown
from policy.rule import PlanPolicy, ResourcePolicy
from settings.values import SCHEDULE

_JOB: Final = ("spec", "jobTemplate", "spec")

_EVERY_DAY: Final = ["*", "*", "*"]
"""Day of the month, month and day of the week of a schedule that leaves no day out."""
_DOES_NOTHING: Final = re.compile(r"(?:\S*/)?(?:true|false|:|exit|echo|sleep)?(?:\s.*)?", re.DOTALL)
_SHELLS: Final = frozenset({"sh", "bash", "ash", "dash"})
_OTHER_WAYS: Final = ("PGHOSTADDR", "PGSERVICE")
"""Variables with which libpq goes somewhere else than to PGHOST."""


def is_backup(cron_job: Resource) -> bool:
    """Whether a CronJob is a backup: it says so by its label."""
    return bool(cron_job.get("metadata", "labels", "purpose") == "backup")


def variable(container: PodContainer, name: str) -> Any:
    """The plain value of an environment variable; None where there is none, or where it comes from elsewhere."""
    entries = [entry for entry in container.list("env") if dig(entry, "name") == name]
    # Of two with one name, Kubernetes takes the last.
    return dig(entries[-1], "value") if entries else None


def _variables(container: PodContainer) -> set[str]:
    return {str(dig(entry, "name")) for entry in container.list("env")}


def _values(cron_job: Resource, name: str) -> list[str]:
    found = [variable(container, name) for container in containers(cron_job)]
    return [value for value in found if isinstance(value, str)]


def _backups_of(database: Resource, plan: Plan) -> list[Resource]:
    """Backup jobs that name the database; whether they are in its namespace is not looked at."""
    cluster = database.get("metadata", "name")
    jobs = plan.of((vocabulary.CRON_JOB,))
    return [job for job in jobs if is_backup(job) and cluster in _values(job, "CLUSTER")]


def _is_daily(schedule: Any) -> bool:
    """Whether a schedule names a time of every day."""
    return (
        isinstance(schedule, str)
        and re.fullmatch(SCHEDULE, schedule) is not None
        and schedule.split()[2:] == _EVERY_DAY
    )


def _is_idle(container: PodContainer) -> bool:
    """Whether a container is told to do nothing, by itself or through a shell."""
    words = list(container.words)
    # Absent is safe: what the image does by itself.
    if not words:
        return False
    while words and (words[0].rpartition("/")[2] in _SHELLS or words[0].startswith("-")):
        words.pop(0)
    return _DOES_NOTHING.fullmatch(" ".join(words).strip()) is not None


def _not_running(cron_job: Resource) -> Iterator[str]:
    """Why a backup job would not run, or would do nothing."""
    # Absent is safe: not suspended.
    if cron_job.get("spec", "suspend") not in (None, False):
        yield "is suspended; allowed is `suspend` false"
    if cron_job.get(*_JOB, "suspend") not in (None, False):
        yield "starts its jobs suspended; allowed is `jobTemplate.spec.suspend` false"
    for key in ("parallelism", "completions"):
        count = cron_job.get(*_JOB, key)
        # Absent is safe: one.
        if count is not None and (number(count) or 0) < 1:
            yield f"has `{key}` {shown(count)}, so that no pod is started; allowed is 1"
    for container in containers(cron_job):
        if _is_idle(container):
            yield f"does nothing in {container.short_name}; allowed is the command that makes the backup"
    schedule = cron_job.get("spec", "schedule")
    if not _is_daily(schedule):
        yield (
            f"has the schedule {shown(schedule)}; allowed are five fields such as 0 2 * * *, with * for the day of the "
            "month, the month and the day of the week"
        )
    # Absent is not safe: the clock of whichever server's controller is in charge, usually UTC, so that the night moves.
    if not cron_job.get("spec", "timeZone"):
        yield "has no time zone; allowed is a name such as Europe/Berlin"


def _aimed_elsewhere(cron_job: Resource, database: Resource) -> Iterator[str]:
    """Why what a backup job makes would be no backup of this database."""
    cluster, namespace = (database.get("metadata", key) for key in ("name", "namespace"))
    host, readers = f"{cluster}.{namespace}.svc", 0
    for container in containers(cron_job):
        names = _variables(container)
        if "CLUSTER" in names and variable(container, "CLUSTER") != cluster:
            yield f"has another CLUSTER in {container.short_name}; allowed is {cluster} in all containers"
        if not names & {"PGHOST", "DATABASES"}:
            continue
        readers += 1
        for other in sorted(names.intersection(_OTHER_WAYS)):
            yield f"sets {other} in {container.short_name}; allowed is PGHOST alone"
        if variable(container, "PGHOST") != host:
            yield f"connects to another host than the database in {container.short_name}; allowed is PGHOST {host}"
    if not readers:
        yield f"connects to no database; allowed is PGHOST {host}"


def _running_backups(database: Resource, plan: Plan) -> Sequence[Resource]:
    return [job for job in _backups_of(database, plan) if not list(_not_running(job))]


def _scheduled(database: Resource, plan: Plan) -> Iterator[str]:
    jobs = _backups_of(database, plan)
    if not jobs:
        yield (
            f"{database.name} has no backup; allowed is a CronJob with the label purpose=backup whose variable CLUSTER "
            "names the database."
        )
        return
    running = _running_backups(database, plan)
    if not running:
        for job in jobs:
            yield from (f"{job.name}, the backup of {database.name}, {fault}." for fault in _not_running(job))
        return
    if all(list(_aimed_elsewhere(job, database)) for job in running):
        for job in running:
            yield from (
                f"{job.name}, the backup of {database.name}, {fault}." for fault in _aimed_elsewhere(job, database)
            )
        return
    home = database.get("metadata", "namespace")
    if not any(job.get("metadata", "namespace") == home for job in running):
        yield f"{running[0].name}, the backup of {database.name}, is in another namespace; allowed is the database's own."


DATABASE_HAS_SCHEDULED_BACKUP: Final = PlanPolicy(
    "database-has-scheduled-backup",
    description="Every database has a backup that runs by itself, every day, and is of this database.",
    why="Three members do not help against a deleted table: the deletion is on all three within milliseconds. A backup that "
    "somebody has to start is a backup that was not made, a weekly one loses a week, and one that connects to another "
    "database looks well until it is restored.",
    remedy="Keep the SmbBackup of __main__.py with `host` of the database, and set `backup.schedule` to a time of every day "
    "and `backup.timeZone`.",
    severity=Severity.CRITICAL,
    of=(vocabulary.DATABASE,),
    check_each=_scheduled,
)


def _covers(database: Resource, plan: Plan) -> Iterator[str]:
    jobs = [job for job in _running_backups(database, plan) if not list(_aimed_elsewhere(job, database))]
    # No backup at all is what database-has-scheduled-backup is for.
    if not jobs:
        return
    dumped = {name for job in jobs for value in _values(job, "DATABASES") for name in value.split()}
    wanted = {*database.keys("spec", "databases"), *database.keys("spec", "preparedDatabases")}
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


SHORTEST_RUN_SECONDS: Final = 600
"""A backup that is ended earlier may work in the first weeks, and fails when the database has grown."""
_LONG_ENOUGH: Final = f"{SHORTEST_RUN_SECONDS} or more"

_JOB_SETTINGS: Final[tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...]] = (
    (("spec", "concurrencyPolicy"), lambda value: value == "Forbid", "Forbid"),
    # Kubernetes looks every 10 s: with less it could miss every start.
    (("spec", "startingDeadlineSeconds"), lambda value: (number(value) or 0) >= 10, "10 or more"),
    # Absent is safe: one.
    (("spec", "failedJobsHistoryLimit"), lambda value: value != 0, "1 or more"),
    ((*_JOB, "activeDeadlineSeconds"), lambda value: (number(value) or 0) >= SHORTEST_RUN_SECONDS, _LONG_ENOUGH),
    # Absent is safe: the job's own limit holds.
    (
        (*_JOB, "template", "spec", "activeDeadlineSeconds"),
        lambda value: value is None or (number(value) or 0) >= SHORTEST_RUN_SECONDS,
        _LONG_ENOUGH,
    ),
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
        if not _variables(container) & {"PGHOST", "DATABASES"}:
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
