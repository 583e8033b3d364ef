"""The nightly backup of the databases to the file share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pulumi
import pulumi_kubernetes as kubernetes

from components.file_share import FileShare
from components.operators.interface import Database
from versions import RCLONE_IMAGE

JOBS_FOLDER: Final = Path(__file__).parent / "jobs"
DEADLINE_SECONDS: Final = 3 * 3600
"""A backup that takes longer is ended and reported as failed, so that it never runs into the working day."""
START_DEADLINE_SECONDS: Final = 4 * 3600
"""A backup missed because the cluster was down is still made within this time."""
UPLOAD_USER_ID: Final = 65534
SCRATCH_GIB: Final = 20
"""Room for one dump on the node while it is being uploaded, in GiB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SmbBackupArgs:
    """Inputs of :class:`SmbBackup`."""

    cluster_name: str
    """Name of the database cluster; its folder on the share."""
    namespace: pulumi.Input[str]
    """Namespace of the cluster; its superuser's Secret lives there."""
    database: Database
    """The cluster to back up."""
    database_names: Sequence[str]
    """Databases that are dumped, together with the roles."""
    share: FileShare
    """Where the backups go."""
    schedule: str
    """Cron expression of five fields, e.g. ``0 2 * * *``."""
    time_zone: str
    """Time zone of the schedule, e.g. ``Europe/Berlin``."""
    keep_days: int
    """Backups older than this are removed (1..), but only once a newer one is verified on the share."""


class SmbBackup(pulumi.ComponentResource):
    """A CronJob that dumps every database and the roles, checks the dump, and carries it to the SMB share.

    Custom format, read through after the dump and back after the upload; the manifest comes last, so a folder without one
    is no backup. Runs in user space (rclone), where SMB3 encryption needs no kernel module. Dumps are not point-in-time
    recovery: what was written after the last one is not in it.
    """

    location: str
    """Where the backups are, e.g. ``smb://10.0.145.113/backup/wichtige-daten-3``."""
    cron_job_name: str
    """Name of the CronJob; ``kubectl create job --from=cronjob/<name>`` makes a backup now."""

    def __init__(self, name: str, args: SmbBackupArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        summary = {"schedule": args.schedule, "timeZone": args.time_zone, "keepDays": args.keep_days}
        super().__init__("school:index:SmbBackup", name, summary, opts)
        self.cron_job_name = f"{args.cluster_name}-backup"
        self.location = f"{args.share.url}/{args.cluster_name}"
        scripts = kubernetes.core.v1.ConfigMap(
            f"{name}-scripts",
            metadata={"name": f"{self.cron_job_name}-scripts", "namespace": args.namespace},
            data={script.name: script.read_text(encoding="utf-8") for script in sorted(JOBS_FOLDER.glob("*.sh"))},
            opts=pulumi.ResourceOptions(parent=self, delete_before_replace=True),
        )
        credentials = kubernetes.core.v1.Secret(
            f"{name}-share-credentials",
            metadata={"name": f"{self.cron_job_name}-share", "namespace": args.namespace},
            string_data={"username": args.share.user, "password": args.share.password},
            opts=pulumi.ResourceOptions(parent=self, delete_before_replace=True),
        )
        kubernetes.batch.v1.CronJob(
            f"{name}-schedule",
            metadata={"name": self.cron_job_name, "namespace": args.namespace, "labels": {"purpose": "backup"}},
            spec={
                "schedule": args.schedule,
                "time_zone": args.time_zone,
                # Two at once would fight for the share and the database.
                "concurrency_policy": "Forbid",
                "starting_deadline_seconds": START_DEADLINE_SECONDS,
                "successful_jobs_history_limit": 3,
                "failed_jobs_history_limit": 3,
                "job_template": {
                    "spec": {
                        "backoff_limit": 1,
                        "active_deadline_seconds": DEADLINE_SECONDS,
                        "template": {"spec": self._pod(args, scripts, credentials)},
                    }
                },
            },
            # The first scheduled run must find a database.
            opts=pulumi.ResourceOptions(parent=self, delete_before_replace=True, depends_on=list(args.database.ready)),
        )
        self.register_outputs({"location": self.location, "cron_job_name": self.cron_job_name})

    @staticmethod
    def _pod(
        args: SmbBackupArgs, scripts: kubernetes.core.v1.ConfigMap, credentials: kubernetes.core.v1.Secret
    ) -> dict[str, Any]:
        mounts = [
            {"name": "backup", "mount_path": "/backup"},
            {"name": "scripts", "mount_path": "/scripts", "read_only": True},
            {"name": "tmp", "mount_path": "/tmp"},
        ]
        restricted = {
            "allow_privilege_escalation": False,
            "read_only_root_filesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        dump = {
            "name": "dump",
            "image": args.database.client_image,
            "command": ["/bin/sh", "/scripts/dump.sh"],
            "env": [
                {"name": "PATH", "value": f"{args.database.client_directory}:/usr/local/bin:/usr/bin:/bin"},
                {"name": "PGHOST", "value": args.database.host},
                {"name": "PGSSLMODE", "value": "require"},
                {"name": "PGCONNECT_TIMEOUT", "value": "15"},
                _from_secret("PGUSER", args.database.superuser_secret, "username"),
                # The roles' passwords are part of a backup, and only the superuser may read them.
                _from_secret("PGPASSWORD", args.database.superuser_secret, "password"),
                {"name": "DATABASES", "value": " ".join(args.database_names)},
                {"name": "CLUSTER", "value": args.cluster_name},
            ],
            "volume_mounts": mounts,
            "security_context": restricted,
            "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
        }
        upload = {
            "name": "upload",
            "image": RCLONE_IMAGE,
            "command": ["/bin/sh", "/scripts/upload.sh"],
            "env": [
                {"name": "SMB_HOST", "value": args.share.server},
                {"name": "SMB_SHARE", "value": args.share.share},
                _from_secret("SMB_USER", credentials.metadata["name"], "username"),
                _from_secret("SMB_PASSWORD", credentials.metadata["name"], "password"),
                {"name": "CLUSTER", "value": args.cluster_name},
                {"name": "KEEP_DAYS", "value": str(args.keep_days)},
            ],
            "volume_mounts": mounts,
            "security_context": restricted,
            "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
        }
        return {
            "restart_policy": "Never",
            "automount_service_account_token": False,
            "security_context": {
                "run_as_non_root": True,
                "run_as_user": UPLOAD_USER_ID,
                "run_as_group": UPLOAD_USER_ID,
                "fs_group": UPLOAD_USER_ID,
                "seccomp_profile": {"type": "RuntimeDefault"},
            },
            # The dump is finished before the upload starts: init containers run one after the other.
            "init_containers": [dump],
            "containers": [upload],
            "volumes": [
                {"name": "backup", "empty_dir": {"size_limit": f"{SCRATCH_GIB}Gi"}},
                {"name": "tmp", "empty_dir": {"medium": "Memory", "size_limit": "16Mi"}},
                {"name": "scripts", "config_map": {"name": scripts.metadata["name"], "default_mode": 0o444}},
            ],
        }


def _from_secret(variable: str, secret: pulumi.Input[str], key: str) -> dict[str, Any]:
    return {"name": variable, "value_from": {"secret_key_ref": {"name": secret, "key": key}}}
