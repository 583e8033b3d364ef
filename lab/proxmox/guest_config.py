"""Container configuration files as Proxmox VE writes them (``/etc/pve/lxc/<vmid>.conf``)."""

from __future__ import annotations

import hashlib
import os
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lab.errors import LabError

INTEGER_OPTIONS = frozenset(
    {
        "console",
        "cores",
        "cpuunits",
        "debug",
        "memory",
        "onboot",
        "protection",
        "swap",
        "template",
        "tty",
        "unprivileged",
    }
)
"""Options that the API shows as numbers."""

_RAW_LINE = re.compile(r"^(lxc\.[a-z0-9_.-]+)(?::|\s*=)\s*(.*?)\s*$")
_OPTION_LINE = re.compile(r"^([a-z][a-z_]*\d*):\s*(.*?)\s*$")
_SECTION_LINE = re.compile(r"^\[([a-zA-Z0-9_:-]+)\]\s*$")
_RAW_KEYS = re.compile(
    r"lxc\.(include|arch|uts\.name|signal\.(halt|reboot|stop)|init\.(cmd|uid|gid|cwd)|pty\.max|console\.(logfile|path)|tty\.(max|dir)|"
    r"hook\.[a-z.-]+|kmsg|autodev|autodev\.tmpfs\.size|mount\.(fstab|entry|auto)|rootfs\.(mount|options)|cap\.(drop|keep)|"
    r"seccomp\.[a-z._]+|idmap|log\.(level|file|syslog)|start\.(auto|delay|order)|group|environment(\.runtime)?|apparmor\.[a-z_]+|"
    r"selinux\.context(\.keyring)?|no_new_privs|ephemeral|monitor\.(signal\.pdeath|unshare)|execute\.cmd|keyring\.session|"
    r"namespace\.(keep|clone|share\.[a-z]+)|cgroup\.(relative|dir(\.[a-z.]+)?)|cgroup2?\.[a-z0-9_.]+|prlimit\.[a-z]+|sysctl\.[a-z0-9_.-]+|"
    r"proc\.[a-z0-9_.-]+|net\.\d+\.[a-z0-9_.]+|sched\.core)"
)


@dataclass(slots=True)
class GuestConfig:
    """One container's configuration: what stands in its file, in the parts that Proxmox VE tells apart."""

    options: dict[str, str] = field(default_factory=dict)
    """``key: value`` lines of the main section."""
    raw: list[tuple[str, str]] = field(default_factory=list)
    """``lxc.*`` lines, in the order of the file."""
    description: str = ""
    """The ``#`` lines. Ends with a newline unless it is empty, as Proxmox VE returns it."""
    pending: dict[str, str | None] = field(default_factory=dict)
    """Changes that wait for the next start; None means that the option is going to be removed."""
    snapshots: str = ""
    """Snapshot sections, kept word for word."""
    ignored: list[str] = field(default_factory=list)
    """Lines that Proxmox VE would warn about and not use."""

    @property
    def hostname(self) -> str:
        """Name of the container."""
        return self.options.get("hostname", "")

    def api_view(self, *, current: bool) -> dict[str, object]:
        """The configuration as ``GET config`` returns it; without pending changes when ``current`` is true."""
        options: dict[str, str] = dict(self.options)
        if not current:
            for key, value in self.pending.items():
                if value is None:
                    options.pop(key, None)
                else:
                    options[key] = value
        view: dict[str, object] = {
            key: int(value) if key in INTEGER_OPTIONS and re.fullmatch(r"\d+", value) else value
            for key, value in options.items()
        }
        if self.description:
            view["description"] = self.description
        if self.raw:
            view["lxc"] = [[key, value] for key, value in self.raw]
        return view


def parse(text: str) -> GuestConfig:
    """Read a configuration file. Lines that Proxmox VE would not accept land in ``ignored``."""
    config = GuestConfig()
    section = ""
    snapshots: list[str] = []
    for line in text.splitlines():
        header = _SECTION_LINE.match(line)
        if header:
            section = header.group(1)
        if section and section != "pve:pending":
            snapshots.append(line)
            continue
        if header or not line.strip():
            continue
        if line.startswith("#"):
            if not section:
                config.description += urllib.parse.unquote(line[1:]) + "\n"
            continue
        raw = _RAW_LINE.match(line)
        option = _OPTION_LINE.match(line)
        if raw and not section:
            if _RAW_KEYS.fullmatch(raw.group(1)):
                config.raw.append((raw.group(1), raw.group(2)))
            else:
                config.ignored.append(line)
        elif option and section and option.group(1) == "delete":
            config.pending.update(dict.fromkeys(re.split(r"[,; ]+", option.group(2)), None))
        elif option and section:
            config.pending[option.group(1)] = option.group(2)
        elif option:
            config.options[option.group(1)] = option.group(2)
        else:
            config.ignored.append(line)
    if snapshots:
        config.snapshots = "\n".join(snapshots).rstrip("\n") + "\n"
    return config


def render(config: GuestConfig) -> str:
    """The file as Proxmox VE writes it: description, sorted options, ``lxc.*`` lines, then the other sections."""
    lines = [f"#{_encode(line)}" for line in config.description.splitlines()]
    lines += [f"{key}: {config.options[key]}" for key in sorted(config.options)]
    lines += [f"{key}: {value}" for key, value in config.raw]
    if config.pending:
        lines += ["", "[pve:pending]"]
        lines += [f"{key}: {value}" for key, value in sorted(config.pending.items()) if value is not None]
        deleted = sorted(key for key, value in config.pending.items() if value is None)
        lines += [f"delete: {','.join(deleted)}"] if deleted else []
    text = "\n".join(lines) + "\n"
    return f"{text}\n{config.snapshots}" if config.snapshots else text


def digest(text: str) -> str:
    """What the API calls the digest of a configuration."""
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def from_api(values: Mapping[str, object]) -> dict[str, str]:
    """Options of an API answer as they stand in a file (``description`` and what is no option left out)."""
    return {
        key: str(value)
        for key, value in values.items()
        if key not in {"description", "digest", "lxc", "snapshots", "parent"} and value is not None
    }


def properties(value: str) -> dict[str, str]:
    """The ``key=value`` pairs of a property string such as ``name=eth0,bridge=vmbr0``."""
    return dict(part.split("=", 1) for part in value.split(",") if "=" in part)


class GuestConfigs:
    """The directory of configuration files. It is read anew each time: root may edit the files at any moment."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, vmid: int) -> Path:
        """File of the container ``vmid``; it need not exist."""
        return self.directory / f"{vmid}.conf"

    def ids(self) -> list[int]:
        """Ids of all containers, ascending."""
        return sorted(int(path.stem) for path in self.directory.glob("*.conf") if path.stem.isdigit())

    def text(self, vmid: int) -> str:
        """The file as it stands. Raises :class:`LabError` in Proxmox VE's words when there is none."""
        try:
            return self.path(vmid).read_text()
        except FileNotFoundError:
            raise LabError(f"Configuration file 'nodes/pve1/lxc/{vmid}.conf' does not exist") from None

    def load(self, vmid: int) -> GuestConfig:
        """The configuration of ``vmid``. Raises :class:`LabError` when there is none."""
        return parse(self.text(vmid))

    def save(self, vmid: int, config: GuestConfig) -> None:
        """Write the file in one step, so that a reader or a power failure meets the old or the new one."""
        self.directory.mkdir(parents=True, exist_ok=True)
        target = self.path(vmid)
        fresh = target.with_suffix(".tmp")
        with fresh.open("w") as handle:
            handle.write(render(config))
            handle.flush()
            os.fsync(handle.fileno())
        fresh.chmod(0o640)
        fresh.replace(target)

    def remove(self, vmid: int) -> None:
        """Forget the container."""
        self.path(vmid).unlink(missing_ok=True)


def _encode(line: str) -> str:
    return urllib.parse.quote(line, safe=" !\"#$&'()*+,-./;<=>?@[\\]^_`{|}~")
