"""Programs built from Go modules that are pinned, hash by hash, in the folders below ``go/``."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from lab.builds.cache import BuildError, Workshop

MODULES = Path(__file__).parent / "go"
"""One folder a module: go.mod, go.sum, and main.go where the program is our own."""

TOOLCHAIN = "1.26.8"
"""The Go release that is fetched as a Go module when the machine's own is too old."""

TOOLCHAIN_SUM = "h1:ZOmGe1OnfREDMIdb1Qi4G9JSuDPBLGExZMQ4nis1RXM="
"""Checksum of that module for amd64, as a go.sum would have it."""

OLDEST = (1, 26)
"""Kubernetes and Helm need this Go release or a later one."""


def version_of(go: str, environment: Mapping[str, str] | None = None) -> tuple[int, ...] | None:
    """The release of the ``go`` program, for example (1, 26, 8); None when it cannot be run."""
    try:
        answer = subprocess.run(
            [go, "version"], capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})}
        ).stdout
    except OSError:
        return None
    match = re.search(r"go(\d+)\.(\d+)(?:\.(\d+))?", answer)
    return tuple(int(part or 0) for part in match.groups()) if match else None


@cache
def find_go() -> str:
    """The path of a ``go`` program that is new enough.

    An older one is used to fetch a newer one from the Go module proxy. Raises :class:`BuildError` without any.
    """
    candidates = [path for path in (shutil.which("go"), "/usr/local/go/bin/go", "/usr/lib/go/bin/go") if path]
    usable = [(go, version) for go in candidates if (version := version_of(go))]
    for go, version in usable:
        if version >= OLDEST:
            return go
    if not usable:
        raise BuildError(
            "There is no go program on this machine, and the lab builds Kubernetes with it: install any Go release "
            "(Debian: apt-get install golang-go); the lab fetches a newer one with it where that is needed."
        )
    return _fetch_toolchain(usable[0][0])


def _fetch_toolchain(go: str) -> str:
    """Fetch the Go release of :data:`TOOLCHAIN` with an older ``go`` and return the path of its program."""
    name = f"golang.org/toolchain@v0.0.1-go{TOOLCHAIN}.linux-amd64"
    with tempfile.TemporaryDirectory() as empty:
        done = subprocess.run(
            [go, "mod", "download", "-json", name], capture_output=True, text=True, check=False, cwd=empty
        )
    answer = json.loads(done.stdout or "{}")
    if done.returncode or "Dir" not in answer:
        cause = answer.get("Error") or done.stderr.strip()[-400:]
        raise BuildError(f"Go {TOOLCHAIN} could not be fetched from the Go module proxy with {go}: {cause}")
    if answer.get("Sum") != TOOLCHAIN_SUM:
        raise BuildError(f"Go {TOOLCHAIN} came with the checksum {answer.get('Sum')} instead of {TOOLCHAIN_SUM}.")
    directory = Path(answer["Dir"])
    # A module's files carry no execute bits and may not contain go.mod; the go program repairs both in the same way.
    for tool in [*directory.glob("bin/*"), *directory.glob("pkg/tool/*/*")]:
        tool.chmod(0o755)
    for shipped in directory.rglob("_go.mod"):
        if not (target := shipped.with_name("go.mod")).exists():
            directory.chmod(0o755)
            shipped.parent.chmod(0o755)
            shutil.copyfile(shipped, target)
    return str(directory / "bin" / "go")


@cache
def go_version() -> str:
    """The release of the ``go`` program in use, as text: a part of the key of everything built with it."""
    return ".".join(str(part) for part in version_of(find_go()) or ())


def go_environment() -> dict[str, str]:
    """The variables of every Go build: static, reproducible, exactly the pinned versions."""
    return {
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=readonly -trimpath -buildvcs=false",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
        "PATH": f"{Path(find_go()).parent}:{os.environ.get('PATH', os.defpath)}",
    }


def go_build(
    shop: Workshop, module: Path, output: Path, *packages: str, variables: Mapping[str, str] | None = None
) -> None:
    """Build ``packages`` of the module in the directory ``module`` into ``output``, a file or an existing directory.

    ``variables`` are string variables set by the linker.
    """
    flags = " ".join(["-s -w", *(f"-X {name}={value}" for name, value in (variables or {}).items())])
    command: list[str | Path] = [find_go(), "build", "-ldflags", flags, "-o", output, *packages]
    shop.run(command, directory=module, environment=go_environment())


def module_directory(shop: Workshop, module: Path, name: str, scratch: Path) -> Path:
    """Where the sources of the required module ``name`` are on this machine; fetches them when they are not."""
    answer = scratch / "module.txt"
    command = [find_go(), "mod", "download", "-json", name]
    shop.run(command, directory=module, environment=go_environment(), output=answer)
    directory = Path(json.loads(answer.read_text())["Dir"])
    answer.unlink()
    return directory
