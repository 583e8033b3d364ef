"""Root file systems from Debian packages: the container template and what the database image is made of."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.builds.cache import BuildError, Workshop

RELEASE = "bookworm"
"""Debian 12, which Proxmox's template and all machines of the school are."""

PACKAGE_LIST = Path(__file__).with_name("debian-packages.txt")
"""The Debian packages that the machine under the lab needs."""

SOURCES_OF_APT = Path("/etc/apt")

REMOVED_FROM_ALL = (
    "var/cache/apt/archives/*.deb",
    "var/cache/apt/*.bin",
    "var/cache/ldconfig/*",
    "var/cache/debconf/*-old",
    "var/lib/apt/lists/*",
    "var/log/*.log",
    "var/log/apt/*",
    "var/lib/dpkg/*-old",
    "etc/resolv.conf",
    "etc/hostname",
)
"""What a package installation leaves behind and no machine needs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One package source of this machine's apt."""

    uri: str
    suite: str
    components: tuple[str, ...]

    @property
    def line(self) -> str:
        """The source as a line of sources.list."""
        return f"deb {self.uri} {self.suite} {' '.join(self.components)}"


def parse_sources(text: str, deb822: bool) -> list[Source]:
    """The binary package sources in a file of apt, in either of its two formats."""
    found = []
    if not deb822:
        for line in text.splitlines():
            match = re.match(r"deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)\s+(.+)", line.partition("#")[0].strip())
            if match:
                found.append(Source(uri=match[1], suite=match[2], components=tuple(match[3].split())))
        return found
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line.startswith("#") or not line.strip():
                continue
            if line[0].isspace():
                fields[name] += f" {line.strip()}"
            else:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() == "no":
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                components = tuple(fields.get("components", "").split())
                found.append(Source(uri=uri, suite=suite, components=components))
    return found


def debian_sources(directory: Path = SOURCES_OF_APT) -> list[Source]:
    """Where this machine gets Debian 12, its updates and its security updates from, the release first.

    Raises :class:`BuildError` when the machine's apt has no source of that release.
    """
    files = [directory / "sources.list", *sorted((directory / "sources.list.d").glob("*"))]
    found = [
        source
        for file in files
        if file.is_file() and file.suffix in (".list", ".sources")
        for source in parse_sources(file.read_text(), deb822=file.suffix == ".sources")
    ]
    suites = (RELEASE, f"{RELEASE}-updates", f"{RELEASE}-security")
    wanted = [source for suite in suites for source in found if source.suite.strip("/") == suite and source.components]
    if not wanted or wanted[0].suite != RELEASE:
        raise BuildError(
            f"apt on this machine has no source of Debian 12 ({RELEASE}) in {directory}: "
            "the lab takes the packages of its machines from there. Add one, or run the lab on Debian 12."
        )
    return wanted


def apt_proxy() -> dict[str, str]:
    """The proxy that this machine's apt uses, as variables for debootstrap; empty without one."""
    setting = subprocess.run(
        ["apt-config", "shell", "PROXY", "Acquire::http::Proxy"], capture_output=True, text=True, check=False
    ).stdout
    match = re.search(r"PROXY='([^']+)'", setting)
    return {"http_proxy": match[1]} if match and match[1] != "DIRECT" else {}


def bootstrap(shop: Workshop, root: Path, packages: Sequence[str], downloads: Path) -> None:
    """Install Debian's essential packages and ``packages`` with all they depend on into the new directory ``root``.

    ``downloads`` keeps the package files for the next time. Runs in namespaces of its own, so that neither a mount
    nor a process of the new system stays behind, however the build ends.
    """
    downloads.mkdir(parents=True, exist_ok=True)
    source = debian_sources()[0]
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--", "debootstrap", "--variant=minbase"]
    command += [f"--include={','.join(packages)}", f"--cache-dir={downloads}", RELEASE, str(root), source.uri]
    shop.run(command, environment={"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8", **apt_proxy()})
    remove(root, REMOVED_FROM_ALL)
    (root / "etc/machine-id").write_text("")  # systemd fills an empty one at the first start


def remove(root: Path, patterns: Sequence[str]) -> None:
    """Delete what the glob ``patterns`` find below ``root``."""
    for pattern in patterns:
        for path in root.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def pack(shop: Workshop, root: Path, archive: Path) -> None:
    """Pack ``root`` into a tar archive that depends only on names, contents, owners, modes and capabilities."""
    command = ["tar", "--create", "--sort=name", "--mtime=@0", "--numeric-owner", "--xattrs", "--format=posix"]
    command += [
        "--xattrs-include=security.capability",
        "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime",
    ]
    command += [f"--directory={root}", f"--file={archive}", "."]
    shop.run(command)


def compress(shop: Workshop, archive: Path) -> Path:
    """Replace ``archive`` by a Zstandard-compressed one beside it and return its path."""
    shop.run(["zstd", "-q", "-3", "-T2", "--rm", archive])
    return archive.with_name(f"{archive.name}.zst")


def file_digest(path: Path, algorithm: str) -> str:
    """The hexadecimal checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


# ------------------------------------------------------------------ the container template

TEMPLATE_PACKAGES = (
    "ca-certificates",
    "cron",
    "dbus",
    "debian-archive-keyring",
    "ifupdown",
    "init",
    "iproute2",
    "iputils-ping",
    "isc-dhcp-client",
    "kmod",
    "less",
    "libnss-systemd",
    "libpam-systemd",
    "logrotate",
    "nano",
    "netbase",
    "openssh-client",
    "openssh-server",
    "openssh-sftp-server",
    "openssl",
    "procps",
    "sensible-utils",
    "systemd",
    "systemd-sysv",
    "tzdata",
    "udev",
    "wget",
)
"""What Proxmox's own Debian 12 template offers to a program over SSH: no curl, no iptables, no database."""

REMOVED_FROM_TEMPLATE = ("etc/ssh/ssh_host_*", "usr/share/doc/*/*", "usr/share/man/*", "usr/share/locale/*")


def build_template(directory: Path, shop: Workshop, name: str, downloads: Path) -> None:
    """Make the container template ``name``, the file ``sha512`` with its checksum, and ``root``, its content."""
    root = directory / "root"
    bootstrap(shop, root, TEMPLATE_PACKAGES, downloads)
    remove(root, REMOVED_FROM_TEMPLATE)
    (root / "etc/apt/sources.list").write_text("".join(f"{source.line}\n" for source in debian_sources()))
    (root / "etc/network/interfaces").write_text("auto lo\niface lo inet loopback\n")
    pack(shop, root, directory / name.removesuffix(".zst"))
    archive = compress(shop, directory / name.removesuffix(".zst"))
    (directory / "sha512").write_text(file_digest(archive, "sha512"))


# ------------------------------------------------------------------ what the database image is made of

DATABASE_PACKAGES = ("busybox-static", "ca-certificates", "openssl", "pgbouncer", "postgresql-15", "python3", "tini")

REMOVED_FROM_DATABASE = (
    "etc/postgresql/*",
    "etc/ssl/*/ssl-cert-snakeoil.*",
    "usr/lib/postgresql/*/lib/bitcode",
    "usr/lib/postgresql/*/lib/llvmjit*",
    "usr/lib/python3*/ensurepip",
    "usr/lib/x86_64-linux-gnu/libLLVM*",
    "usr/lib/x86_64-linux-gnu/libz3*",
    "usr/lib/x86_64-linux-gnu/perl*",
    "usr/share/doc/*",
    "usr/share/i18n",
    "usr/share/info/*",
    "usr/share/locale/*",
    "usr/share/man/*",
    "usr/share/perl*",
    "usr/share/postgresql-common",
    "var/lib/postgresql/*",
)
"""LLVM (jit is off), Perl (only Debian's cluster scripts need it) and the cluster that the installation made."""

SPILO_UID, SPILO_GID = 101, 103
"""User and group of postgres in Spilo, which the operator's ``spilo_runasuser`` and ``spilo_fsgroup`` mean."""


def build_database_root(directory: Path, shop: Workshop, requirements: Path, downloads: Path) -> None:
    """Make ``root``: PostgreSQL, PgBouncer and Patroni on Debian, with postgres numbered as in Spilo."""
    root = directory / "root"
    bootstrap(shop, root, DATABASE_PACKAGES, downloads)
    renumber(root, "postgres", SPILO_UID, SPILO_GID)
    remove(root, REMOVED_FROM_DATABASE)
    link_client_programs(root)
    install_wheels(shop, root, requirements)
    for path in ("var/lib/postgresql", "run/postgresql", "home/postgres"):
        (root / path).mkdir(parents=True, exist_ok=True)
        shutil.chown(root / path, SPILO_UID, SPILO_GID)
    (root / "run/postgresql").chmod(0o2775)


def renumber(root: Path, name: str, uid: int, gid: int) -> None:
    """Give the user and the group ``name`` of the system in ``root`` other numbers, and their files to them."""
    users, groups = root / "etc/passwd", root / "etc/group"
    user = next(line.split(":") for line in users.read_text().splitlines() if line.startswith(f"{name}:"))
    old_uid, old_gid = int(user[2]), int(user[3])
    for file, number in ((users, uid), (groups, gid)):
        taken = [line for line in file.read_text().splitlines() if line.split(":")[2] == str(number)]
        if taken and not taken[0].startswith(f"{name}:"):
            raise BuildError(f"The number {number} of {name} belongs to {taken[0].split(':')[0]} in {file}.")
    users.write_text(users.read_text().replace(f"{name}:x:{old_uid}:{old_gid}:", f"{name}:x:{uid}:{gid}:"))
    groups.write_text(groups.read_text().replace(f"{name}:x:{old_gid}:", f"{name}:x:{gid}:"))
    for path in root.rglob("*"):
        status = path.lstat()
        if status.st_uid == old_uid or status.st_gid == old_gid:
            owner = uid if status.st_uid == old_uid else -1
            group = gid if status.st_gid == old_gid else -1
            os.chown(path, owner, group, follow_symlinks=False)


def link_client_programs(root: Path) -> None:
    """Put links to PostgreSQL's programs where Debian has Perl scripts that choose one for a cluster."""
    for program in root.glob("usr/lib/postgresql/*/bin/*"):
        wrapper = root / "usr/bin" / program.name
        wrapper.unlink(missing_ok=True)
        wrapper.symlink_to(f"/{program.relative_to(root)}")


def install_wheels(shop: Workshop, root: Path, requirements: Path) -> None:
    """Install the hash-pinned Python packages of ``requirements`` into the system in ``root``, compiled."""
    version = next(root.glob("usr/lib/python3.*")).name.removeprefix("python")
    target = f"usr/local/lib/python{version}/dist-packages"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--require-hashes", "--no-deps", "--no-compile"]
    command += ["--root-user-action=ignore", "--python-version", version, "--implementation", "cp"]
    command += ["--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_28_x86_64"]
    command += ["--target", str(root / target), "--requirement", str(requirements)]
    shop.run(command)
    # compiled here: the pod's user may not write there, and would compile at every start
    compile_command = ["python3", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", f"/{target}"]
    shop.run(["chroot", root, *compile_command, f"/usr/lib/python{version}"])
