"""Container images written as blobs, and an image registry's storage made of them without running a registry."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.builds.cache import Workshop
from lab.builds.debian import compress, file_digest, pack

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+zstd"

EPOCH = "1970-01-01T00:00:00Z"
"""When every image was made: the same content has to give the same image."""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageConfig:
    """How a container of the image is started when the pod does not say otherwise."""

    entrypoint: Sequence[str]
    user: str = ""
    """User and group, as numbers; empty is root."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables; ``PATH`` has a usual value when it is not among them."""
    working_directory: str = "/"


def write_layer(shop: Workshop, root: Path, directory: Path) -> None:
    """Pack ``root`` as a layer: ``directory`` gets the blob, named by its digest, and ``layer.json``."""
    archive = directory / "layer.tar"
    pack(shop, root, archive)
    content = file_digest(archive, "sha256")
    compressed = compress(shop, archive)
    digest = file_digest(compressed, "sha256")
    description = {
        "diffId": f"sha256:{content}",
        "descriptor": {"mediaType": LAYER_TYPE, "digest": f"sha256:{digest}", "size": compressed.stat().st_size},
    }
    blobs = directory / "blobs"
    blobs.mkdir()
    compressed.rename(blobs / digest)
    (directory / "layer.json").write_text(json.dumps(description))


def write_image(directory: Path, layers: Sequence[Path], config: ImageConfig) -> None:
    """Write an image of ``layers`` (directories of :func:`write_layer`, lowest first) into ``directory``.

    ``directory`` gets ``blobs`` (links to the layers' own where the file system is the same) and ``digest``.
    """
    blobs = directory / "blobs"
    blobs.mkdir(exist_ok=True)
    described: list[dict[str, Any]] = []
    for layer in layers:
        described.append(json.loads((layer / "layer.json").read_text()))
        if layer != directory:
            link_files(layer / "blobs", blobs)
    environment = {"PATH": PATH, **config.environment}
    image = {
        "architecture": "amd64",
        "os": "linux",
        "created": EPOCH,
        "config": {
            "Entrypoint": list(config.entrypoint),
            "Env": [f"{name}={value}" for name, value in environment.items()],
            "User": config.user,
            "WorkingDir": config.working_directory,
        },
        "rootfs": {"type": "layers", "diff_ids": [layer["diffId"] for layer in described]},
        "history": [{"created": EPOCH} for _ in described],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, **write_blob(blobs, image)},
        "layers": [layer["descriptor"] for layer in described],
    }
    (directory / "digest").write_text(str(write_blob(blobs, manifest)["digest"]))


def write_blob(blobs: Path, content: Mapping[str, Any]) -> dict[str, str | int]:
    """Write ``content`` as JSON, named by its digest; the answer is the digest and the size in bytes."""
    data = json.dumps(content).encode()
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def link_files(source: Path, target: Path) -> None:
    """Make every file of ``source`` appear in ``target`` too, as a hard link where that is possible."""
    for file in source.iterdir():
        if not (target / file.name).exists():
            try:
                os.link(file, target / file.name)
            except OSError:
                shutil.copy2(file, target / file.name)


def repository_and_tag(reference: str) -> tuple[str, str]:
    """What a mirror calls an image: ``quay.io/metallb/speaker:v1`` is the repository ``metallb/speaker``, tag ``v1``.

    Raises :class:`ValueError` for a reference without a registry's name or without a tag.
    """
    registry, slash, path = reference.partition("/")
    repository, colon, tag = path.rpartition(":")
    if not slash or not colon or not ("." in registry or ":" in registry):
        raise ValueError(f"{reference!r} is no image reference of the form registry/repository:tag")
    return repository, tag


def write_registry(directory: Path, images: Mapping[str, Path]) -> None:
    """Write the storage of a registry (its root directory on a file system) that holds ``images``.

    ``images`` are directories of :func:`write_image` by reference. Two references may have the same image.
    """
    root = directory / "docker/registry/v2"
    for reference, image in images.items():
        repository, tag = repository_and_tag(reference)
        place = root / "repositories" / repository
        for blob in (image / "blobs").iterdir():
            data = root / "blobs/sha256" / blob.name[:2] / blob.name
            if not data.exists():
                data.mkdir(parents=True)
                try:
                    os.link(blob, data / "data")
                except OSError:
                    shutil.copy2(blob, data / "data")
            link(place / "_layers/sha256" / blob.name, f"sha256:{blob.name}")
        digest = (image / "digest").read_text()
        bare = digest.removeprefix("sha256:")
        link(place / "_manifests/revisions/sha256" / bare, digest)
        link(place / "_manifests/tags" / tag / "current", digest)
        link(place / "_manifests/tags" / tag / "index/sha256" / bare, digest)


def link(directory: Path, digest: str) -> None:
    """Write the registry's own kind of link, a file with a digest."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "link").write_text(digest)
