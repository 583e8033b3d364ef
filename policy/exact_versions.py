"""Exact versions: what is installed tomorrow is what was installed today."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from pulumi_policy import Severity

from policy import vocabulary
from policy.pods import containers
from policy.resources import Resource, shown
from policy.rule import ResourcePolicy
from policy.zalando import is_operator_chart

CHART_VERSION: Final = re.compile(r"v?\d+\.\d+\.\d+([-+][0-9A-Za-z.+-]+)?")
MOVING_TAG: Final = re.compile(r"\D*|v?\d+(-[a-z]+)?")
"""``latest``, ``stable``, ``main``: no number at all; ``16``, ``v2``, ``16-alpine``: moves with every minor release."""

_OPERATOR_IMAGES: Final = (
    ("configGeneral", "docker_image"),
    ("configConnectionPooler", "connection_pooler_image"),
    ("configLogicalBackup", "logical_backup_docker_image"),
)
_DATABASE_IMAGES: Final[tuple[tuple[str, ...], ...]] = (("dockerImage",), ("connectionPooler", "dockerImage"))


def _images(resource: Resource) -> Iterator[tuple[str, Any]]:
    """Every image that a resource names: where, and the reference. What a container does not name is None."""
    if resource.type == vocabulary.RELEASE:
        # Absent is safe: the chart's own default is pinned with the chart.
        for path in _OPERATOR_IMAGES:
            if is_operator_chart(resource) and resource.get("values", *path):
                yield f"{resource.name}: {path[-1]}", resource.get("values", *path)
    elif resource.type == vocabulary.DATABASE:
        # Absent is safe: the operator's images.
        for own in _DATABASE_IMAGES:
            if resource.get("spec", *own):
                yield f"{resource.name}: {'.'.join(own)}", resource.get("spec", *own)
    else:
        for container in containers(resource):
            yield container.name, container.get("image")


_DIGEST: Final = re.compile(r"@sha(?:256|512):[0-9a-f]{64,128}$")


def image_shown(reference: str) -> str:
    """An image reference without what may be a password: what stands before an @ that begins no digest."""
    name, digest = _without_digest(reference)
    return f"{name.rpartition('@')[2]}{digest}"


def _without_digest(reference: str) -> tuple[str, str]:
    digest = _DIGEST.search(reference)
    return (reference[: digest.start()], digest[0]) if digest else (reference, "")


def fault_of_image(reference: str) -> str | None:
    """What is not exact about an image reference, in words; None for ``registry.example/name:1.2`` or one with a digest."""
    name, digest = _without_digest(reference)
    if "@" in name:
        return "has something before an @ that begins no digest"
    registry, slash, path = name.partition("/")
    if not slash or not (set(".:") & set(registry) or registry == "localhost"):
        return "names no registry"
    tag = path.partition(":")[2]
    if not digest and not tag:
        return "has no tag"
    return f"has the tag {tag}, which moves" if not digest and MOVING_TAG.fullmatch(tag) else None


def _image_pinned(resource: Resource) -> Iterator[str]:
    for where, reference in _images(resource):
        if not isinstance(reference, str):
            yield f"{where} has no image; allowed is registry/name:version."
        elif fault := fault_of_image(reference):
            yield f"{where} has the image {image_shown(reference)}, which {fault}; allowed is registry/name:version."


WORKLOAD_IMAGE_PINNED: Final = ResourcePolicy(
    "workload-image-pinned",
    of=(*vocabulary.WORKLOADS, vocabulary.RELEASE, vocabulary.DATABASE),
    description="Every image names its registry and an exact version.",
    why="A tag that moves gives two members of one database different programs, on the day somebody restarts a pod. A name "
    "without registry is looked for wherever the machine is set up to look.",
    remedy="Write registry, name and exact version in versions.py.",
    severity=Severity.HIGH,
    check=_image_pinned,
)


def _chart_version_exact(release: Resource) -> Iterator[str]:
    version = release.get("version")
    if not isinstance(version, str) or not CHART_VERSION.fullmatch(version):
        yield f"{release.name} has the version {shown(version)}; allowed is one exact version such as 1.15.0."


CHART_VERSION_EXACT: Final = ResourcePolicy(
    "chart-version-exact",
    of=(vocabulary.RELEASE,),
    description="Every Helm chart has one exact version.",
    why="Without one, or with a range, a repeated `pulumi up` installs whatever the repository has that day. A new operator may "
    "restart every database.",
    remedy="Write the exact version in versions.py.",
    severity=Severity.HIGH,
    check=_chart_version_exact,
)


POLICIES: Final = (WORKLOAD_IMAGE_PINNED, CHART_VERSION_EXACT)
