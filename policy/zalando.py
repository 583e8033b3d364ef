"""Reading the database object and the chart of its operator. The keys are Zalando's, and so are the defaults named here."""

from __future__ import annotations

import re
from typing import Any, Final

from policy import vocabulary
from policy.resources import Plan, Resource, number

_CHART: Final = re.compile(rf"{vocabulary.DATABASE_OPERATOR_CHART}(-v?[0-9][^/]*)?(\.tgz)?([:@][^/]*)?")
"""Last part of a chart's place: its name, the version of a folder or an archive, the tag or digest of an OCI address."""

POOLERS_BY_DEFAULT: Final = 2
"""Poolers that the chart asks for when neither it nor the database is given a number."""


def is_operator_chart(release: Resource) -> bool:
    """Whether a Helm release installs the operator, from a repository, an OCI address or a file."""
    chart = release.get("chart")
    return (
        isinstance(chart, str) and _CHART.fullmatch(chart.partition("?")[0].rstrip("/").rpartition("/")[2]) is not None
    )


def operator_releases(plan: Plan) -> list[Resource]:
    """The Helm releases that install the operator."""
    return [release for release in plan.of((vocabulary.RELEASE,)) if is_operator_chart(release)]


def operator_value(plan: Plan, *path: str) -> Any:
    """A value of the operator's chart; None where it is left to the chart, or where the plan has no operator."""
    releases = operator_releases(plan)
    return releases[0].get("values", *path) if releases else None


def has_primary_pooler(database: Resource) -> bool:
    """Whether poolers stand before the primary; left open, describing them is enough."""
    wanted = database.get("spec", "enableConnectionPooler")
    return wanted is True or (wanted is None and database.get("spec", "connectionPooler") is not None)


def has_replica_pooler(database: Resource) -> bool:
    """Whether poolers stand before the standbys."""
    return database.get("spec", "enableReplicaConnectionPooler") is True


def pooler_instances(database: Resource, plan: Plan) -> int | None:
    """Poolers before each role of a database; None when it has none."""
    if not has_primary_pooler(database) and not has_replica_pooler(database):
        return None
    own = number(database.get("spec", "connectionPooler", "numberOfInstances"))
    if own is not None:
        return own
    common = number(operator_value(plan, "configConnectionPooler", "connection_pooler_number_of_instances"))
    return POOLERS_BY_DEFAULT if common is None else common
