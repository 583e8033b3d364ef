"""Debian packages that this machine lacks, installed without a single service being started."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lab import places
from lab.builds.debian import PACKAGE_LIST
from lab.errors import LabError
from lab.processes import run

POLICY = Path("/usr/sbin/policy-rc.d")
"""Debian asks this program before a package starts a service; 101 means no."""
POLICY_MARK = "# of the school lab, for the time of one installation"
POLICY_TEXT = f"#!/bin/sh\n{POLICY_MARK}\nexit 101\n"


def wanted(text: str) -> list[str]:
    """The package names in a list with one name a line and ``#`` before remarks."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def missing(names: Sequence[str]) -> list[str]:
    """Those of ``names`` that are not installed completely."""
    shown = run(["dpkg-query", "--show", "--showformat=${binary:Package} ${db:Status-Status}\n", *names], check=False)
    installed = {line.split()[0].partition(":")[0] for line in shown.stdout.splitlines() if line.endswith(" installed")}
    return [name for name in names if name not in installed]


def install() -> list[str]:
    """Install what is missing of the lab's packages; returns their names, none when all were there.

    Services of packages that come new onto the machine are neither started nor enabled. Raises :class:`LabError`
    with apt's own words when it fails. The whole output is in the log ``apt.log``.
    """
    names = missing(wanted(PACKAGE_LIST.read_text(encoding="utf-8")))
    if not names:
        return []
    places.LOGS.mkdir(parents=True, exist_ok=True)
    log = places.LOGS / "apt.log"
    with no_service_starts():
        _apt(["update", "--quiet=2"], log)
        _apt(["install", "--yes", "--quiet=2", "--no-install-recommends", *names], log)
        _disable_services(names)
    return names


def remove_leftover_policy() -> bool:
    """Remove the policy of an installation that was killed; true when there was one."""
    if POLICY.exists() and POLICY_MARK in POLICY.read_text(errors="replace"):
        POLICY.unlink()
        return True
    return False


@contextmanager
def no_service_starts() -> Iterator[None]:
    """Forbid service starts, unless the machine has a policy of its own, which stays in force."""
    remove_leftover_policy()
    if POLICY.exists():
        yield
        return
    try:
        POLICY.write_text(POLICY_TEXT)
        POLICY.chmod(0o755)
        yield
    finally:
        POLICY.unlink(missing_ok=True)


def _apt(arguments: Sequence[str], log: Path) -> None:
    command = ["apt-get", "-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Options::=--force-confold", *arguments]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    with log.open("ab") as file:
        try:
            code = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, check=False
            ).returncode
        except FileNotFoundError as error:
            raise LabError("This machine has no apt-get: the lab needs Debian 12.") from error
    if code:
        end = "\n".join(f"  {line}" for line in log.read_text(errors="replace").splitlines()[-8:])
        raise LabError(
            f"`apt-get {arguments[0]}` ended with code {code}: is the machine's package source reachable? "
            f"The whole log is in {log}; it ends with:\n{end}"
        )


def _disable_services(names: Sequence[str]) -> None:
    """Keep what came with new packages from running after the next boot, where the machine boots with systemd."""
    if not Path("/run/systemd/system").is_dir():
        return
    files = run(["dpkg", "--listfiles", *names], check=False).stdout.splitlines()
    units = {Path(file).name for file in files if "/systemd/system/" in file and file.endswith((".service", ".timer"))}
    plain = sorted(unit for unit in units if "@" not in unit)
    if plain:
        run(["systemctl", "disable", "--quiet", *plain], check=False)
