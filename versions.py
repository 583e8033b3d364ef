"""Every version, chart and image this program installs, pinned once.

A version is changed here and nowhere else. K3s and the container template are configuration, since a school may mirror
them: their addresses and checksums stand in ``Pulumi.<stack>.yaml``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A Helm chart: its name, its exact version and the repository it comes from."""

    name: str
    version: str
    repository: str


METALLB: Final = Chart(name="metallb", version="0.15.2", repository="https://metallb.github.io/metallb")
"""The 0.16 line turns on FRR by default and needs more rights; layer 2 needs neither."""

ZALANDO_OPERATOR: Final = Chart(
    name="postgres-operator",
    version="1.15.0",
    repository="https://opensource.zalando.com/postgres-operator/charts/postgres-operator",
)
"""Version 2 changes how Patroni keeps its leader (ConfigMaps); moving there needs the cluster scaled to one first."""

SPILO_IMAGE: Final = "ghcr.io/zalando/spilo-17:4.0-p3"
"""The database image that chart 1.15.0 was released with; holds PostgreSQL 13 to 17."""

POOLER_IMAGE: Final = "registry.opensource.zalan.do/acid/pgbouncer:master-32"
"""The pooler image that chart 1.15.0 was released with."""

RCLONE_IMAGE: Final = "docker.io/rclone/rclone:1.71.0"
"""Carries backups to the file share in user space: no kernel module, no mount, SMB3 with encryption."""
