"""Installing a Helm chart, the same way for every component."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import pulumi
import pulumi_kubernetes as kubernetes

from versions import Chart

INSTALL_TIMEOUT_SECONDS: Final = 600
"""Bound of an installation; measured 15 to 25 s, the rest is for images over a slow line."""


def install_chart(
    name: str,
    chart: Chart,
    *,
    parent: pulumi.Resource,
    namespace: str,
    helm_repository: str | None,
    values: Mapping[str, Any],
) -> kubernetes.helm.v3.Release:
    """Install ``chart`` in ``namespace`` (made when missing) and wait until its workloads run.

    A real Helm release and no expanded chart: a chart expander needs a live API at preview, and here the cluster is made
    in the same program. ``helm_repository`` replaces the chart's own repository.
    """
    return kubernetes.helm.v3.Release(
        f"{name}-chart",
        name=chart.name,
        chart=chart.name,
        version=chart.version,
        repository_opts=kubernetes.helm.v3.RepositoryOptsArgs(repo=helm_repository or chart.repository),
        namespace=namespace,
        create_namespace=True,
        timeout=INSTALL_TIMEOUT_SECONDS,
        # Keeps what a failed installation left: its pods say why, and the next run upgrades it.
        atomic=False,
        max_history=5,
        values=dict(values),
        opts=pulumi.ResourceOptions(
            parent=parent,
            custom_timeouts=pulumi.CustomTimeouts(create="15m", update="15m", delete="5m"),
        ),
    )
