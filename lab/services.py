"""The lab's services: what each one runs, whether it answers, and starting and stopping all of them.

Every service is a process with a pid file in :data:`lab.places.PIDS` and a log in :data:`lab.places.LOGS`. One more
process, :mod:`lab.supervisor`, starts those that do not run. It takes over what already runs, so that neither its own
end nor a second ``school lab up`` interrupts anything.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from lab import keys, places
from lab.builds.debian import apt_proxy, debian_sources
from lab.errors import LabError
from lab.network import enter
from lab.processes import Process, recall, remember, start_time

PYTHON = places.REPOSITORY / ".venv" / "bin" / "python"
REGISTRY_CONFIGURATION = places.STATE / "registry.yml"
PACKAGE_PROXY_CONFIGURATION = places.STATE / "package-proxy.conf"
PACKAGE_PROXY_HOSTS = places.STATE / "package-proxy-hosts"
SUPERVISOR_LOG = places.LOGS / "supervisor.log"
READY_SECONDS = 30.0
"""How long :func:`start` waits until all services answer."""

MARK = "SCHOOL_LAB_SERVICE"
"""Variable in the environment of every service: by it a process is known that no pid file names any more."""

_LISTENING = "0A"


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """One long-running process."""

    name: str
    """Name of the pid file and the log."""
    purpose: str
    """What it is there for, for people."""
    command: tuple[str, ...]
    """Program and arguments; stays in the foreground."""
    inside: bool = True
    """Whether it runs in the lab's network (default) or in the machine's."""
    address: tuple[str, int] | None = None
    """Where it listens: IPv4 address and TCP port."""
    socket: Path | None = None
    """Where it listens, when that is a Unix socket."""
    files: tuple[Path, ...] = ()
    """Files and directories it reads at its start: when their content changes, it is restarted."""

    @property
    def pid_file(self) -> Path:
        """Names the process."""
        return places.PIDS / self.name

    @property
    def log(self) -> Path:
        """Everything it prints."""
        return places.LOGS / f"{self.name}.log"

    @property
    def mark(self) -> str:
        """Value of :data:`MARK` in its environment."""
        return f"{places.STATE}:{self.name}"

    @property
    def words(self) -> list[str]:
        """The whole command that starts it."""
        return enter(self.command) if self.inside else list(self.command)

    def process(self) -> Process | None:
        """The running process, if there is one."""
        return recall(self.pid_file)

    def fingerprint(self) -> str:
        """Changes when the command or the content of one of ``files`` does."""
        total = hashlib.sha256(json.dumps([self.words, self.mark]).encode())
        for path in sorted(file for top in self.files for file in _sources(top)):
            total.update(f"\n{path}\n".encode() + path.read_bytes())
        return total.hexdigest()

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start it, in a session of its own; the pid file is written before this returns."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > 10 << 20:
            self.log.replace(self.log.with_suffix(".log.1"))
        if self.socket is not None:
            self.socket.unlink(missing_ok=True)
        fingerprint = self.fingerprint()
        with self.log.open("ab") as log:
            child = subprocess.Popen(
                self.words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=environment(self.mark),
                start_new_session=True,
            )
        remember(self.pid_file, child.pid)
        self.pid_file.with_suffix(".made-of").write_text(fingerprint)
        return child

    def is_current(self) -> bool:
        """Whether the running process was started from the present command and files."""
        note = self.pid_file.with_suffix(".made-of")
        return note.exists() and note.read_text() == self.fingerprint()

    def answers(self) -> bool:
        """Whether the process runs and listens. Looks into the process's own network; connects to nothing."""
        process = self.process()
        if process is None:
            return False
        try:
            if self.address is not None:
                return listens(Path(f"/proc/{process.pid}/net/tcp").read_text(), self.address)
            if self.socket is not None:
                listed = Path(f"/proc/{process.pid}/net/unix").read_text().splitlines()
                return any(line.split()[-1] == str(self.socket) for line in listed)
        except (FileNotFoundError, ProcessLookupError):
            return False  # ended meanwhile
        return True

    def log_end(self, lines: int = 6) -> str:
        """The last lines of its log, indented."""
        text = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(f"  {line}" for line in text[-lines:]) or "  (nothing)"


def environment(mark: str) -> dict[str, str]:
    """Environment of a service: nothing of the caller's but where the lab is."""
    moved = {name: value for name, value in os.environ.items() if name.startswith("SCHOOL_LAB_") and name != MARK}
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "HOME": "/root",
        "PYTHONUNBUFFERED": "1",
        MARK: mark,
        **moved,
    }


def _sources(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from path.rglob("*.py")
    elif path.exists():
        yield path


def listens(table: str, address: tuple[str, int]) -> bool:
    """Whether a ``/proc/PID/net/tcp`` shows a listener on ``address`` (or on every address)."""
    host = struct.unpack("=I", ipaddress.IPv4Address(address[0]).packed)[0]
    wanted = {f"{host:08X}:{address[1]:04X}", f"00000000:{address[1]:04X}"}
    rows = (line.split() for line in table.splitlines()[1:])
    return any(row[1] in wanted and row[3] == _LISTENING for row in rows)


# ------------------------------------------------------------------ which there are


def module(name: str) -> tuple[str, ...]:
    """The command that runs a module of the lab: the lab's Python, with the working tree it was started from."""
    return (str(PYTHON), "-P", "-m", name)


_GATEWAY_SOURCES = ("gateway.py", "containers.py", "guest_config.py", "lxc_config.py")


def all_services() -> list[Service]:
    """Every service of the lab, what others need first."""
    here = Path(__file__).parent
    return [
        Service(
            name="package-proxy",
            purpose="Debian packages, from this machine's sources",
            command=("tinyproxy", "-d", "-c", str(PACKAGE_PROXY_CONFIGURATION)),
            inside=False,
            address=("127.0.0.1", places.APT_PROXY_LOOPBACK_PORT),
            files=(PACKAGE_PROXY_CONFIGURATION, PACKAGE_PROXY_HOSTS),
        ),
        Service(
            name="package-proxy-out",
            purpose="leads to it from the lab",
            command=(
                "socat",
                f"UNIX-LISTEN:{places.APT_PROXY_SOCKET},fork,mode=600,unlink-early",
                f"TCP:127.0.0.1:{places.APT_PROXY_LOOPBACK_PORT}",
            ),
            inside=False,
            socket=places.APT_PROXY_SOCKET,
        ),
        Service(
            name="package-proxy-in",
            purpose=places.APT_PROXY_URL,
            command=(
                "socat",
                f"TCP-LISTEN:{places.APT_PROXY_PORT},bind={places.GATEWAY},reuseaddr,fork,backlog=64",
                f"UNIX-CONNECT:{places.APT_PROXY_SOCKET}",
            ),
            address=(places.GATEWAY, places.APT_PROXY_PORT),
        ),
        Service(
            name="dns",
            purpose="the school's name server: an unknown name is answered at once, and not after a timeout",
            command=(
                *(
                    "dnsmasq",
                    "--keep-in-foreground",
                    "--conf-file=/dev/null",
                    "--user=root",
                    "--pid-file=",
                    "--log-facility=-",
                ),
                *(
                    "--bind-interfaces",
                    "--no-resolv",
                    "--no-hosts",
                    "--local=/#/",
                    f"--listen-address={places.GATEWAY}",
                ),
            ),
            address=(places.GATEWAY, 53),
        ),
        Service(
            name="registry",
            purpose=f"images: {places.REGISTRY_URL}",
            command=("docker-registry", "serve", str(REGISTRY_CONFIGURATION)),
            address=(places.GATEWAY, places.REGISTRY_PORT),
            files=(REGISTRY_CONFIGURATION,),
        ),
        Service(
            name="artefacts",
            purpose=f"downloads: {places.ARTEFACT_URL}",
            command=module("lab.artefacts"),
            address=(places.GATEWAY, places.ARTEFACT_PORT),
            files=(here / "artefacts.py",),
        ),
        Service(
            name="proxmox-api",
            purpose=places.PROXMOX_ENDPOINT,
            command=module("lab.proxmox.gateway"),
            address=(places.PROXMOX_ADDRESS, places.PROXMOX_PORT),
            files=(
                *(here / "proxmox" / name for name in _GATEWAY_SOURCES),
                *(here / name for name in ("processes.py", "places.py")),
                keys.API_CERTIFICATE,
                places.API_TOKEN,
            ),
        ),
        Service(
            name="proxmox-host",
            purpose=f"sshd of {places.PROXMOX_NODE}: {places.PROXMOX_ADDRESS}",
            command=("unshare", "--mount", "--uts", "--propagation", "private", "--", *module("lab.proxmox.host")),
            address=(places.PROXMOX_ADDRESS, places.SSH_PORT),
            files=(here / "proxmox" / "host.py", places.PROXMOX_HOST_KEY),
        ),
    ]


def write_configurations(registry_storage: Path) -> None:
    """Write what the services read at their start. Raises :class:`LabError` when apt has no usable source."""
    sources = [urlsplit(source.uri) for source in debian_sources()]
    hosts = sorted({source.hostname for source in sources if source.hostname})
    if not hosts:
        raise LabError("The package sources of this machine's apt name no host: the lab's machines need one over HTTP.")
    _write(PACKAGE_PROXY_HOSTS, "".join(f"{host}\n" for host in hosts))
    upstream = urlsplit(apt_proxy().get("http_proxy", ""))
    ports = sorted({source.port or 443 for source in sources if source.scheme == "https"})
    lines = [
        "User tinyproxy",
        "Group tinyproxy",
        f"Port {places.APT_PROXY_LOOPBACK_PORT}",
        "Listen 127.0.0.1",
        "Allow 127.0.0.1",
        "Timeout 120",
        "MaxClients 100",
        "LogLevel Warning",
        "DisableViaHeader Yes",
        f'Filter "{PACKAGE_PROXY_HOSTS}"',
        "FilterType fnmatch",
        "FilterDefaultDeny Yes",
        *([f"Upstream http {upstream.hostname}:{upstream.port or 80}"] if upstream.hostname else []),
        # without a port here tinyproxy would tunnel to any
        *[f"ConnectPort {port}" for port in ports or [0]],
    ]
    _write(PACKAGE_PROXY_CONFIGURATION, "\n".join(lines) + "\n")
    registry = {
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(registry_storage)},
            "cache": {"blobdescriptor": "inmemory"},
            # the storage is an artefact in the cache and must stay as it was built
            "maintenance": {"readonly": {"enabled": True}, "uploadpurging": {"enabled": False}},
        },
        "http": {"addr": f"{places.GATEWAY}:{places.REGISTRY_PORT}"},
    }
    _write(REGISTRY_CONFIGURATION, json.dumps(registry, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


# ------------------------------------------------------------------ starting and stopping


def supervisor() -> Service:
    """The process that keeps the others running."""
    here = Path(__file__).parent
    return Service(
        name=places.SUPERVISOR_PID.name,
        purpose="restarts services that end",
        command=module("lab.supervisor"),
        inside=False,
        files=tuple(here / name for name in ("services.py", "supervisor.py", "processes.py", "places.py")),
    )


def start(timeout_seconds: float = READY_SECONDS) -> list[str]:
    """Start what does not run, restart what was started from something else; returns the names of both.

    Returns when all answer. Raises :class:`LabError` naming a service that does not, with the end of its log.
    """
    watcher = supervisor()
    running = watcher.process()
    if running is not None and not watcher.is_current():
        running.stop()
        running = None
    changed = []
    for service in all_services():
        process = service.process()
        if process is None:
            changed.append(service.name)
        elif not service.is_current():
            changed.append(service.name)
            process.stop()
    if running is None:
        watcher.spawn()
    deadline = time.monotonic() + timeout_seconds
    for service in all_services():
        while not service.answers():
            if watcher.process() is None:
                raise LabError(f"The lab's supervisor ended at once; {watcher.log} ends with:\n{watcher.log_end()}")
            if time.monotonic() > deadline:
                raise LabError(
                    f"The service {service.name} ({service.purpose}) does not answer after {timeout_seconds:.0f} s; "
                    f"{service.log} ends with:\n{service.log_end()}"
                )
            time.sleep(0.02)
    return changed


def stop() -> list[str]:
    """Stop the supervisor, then every service and whatever is left of them; returns the names of what ran."""
    stopped = []
    for service in [supervisor(), *reversed(all_services())]:
        process = service.process()
        if process is not None:
            process.stop()
            stopped.append(service.name)
        for path in (service.pid_file, service.pid_file.with_suffix(".made-of")):
            path.unlink(missing_ok=True)
    for stray in marked(f"{places.STATE}:"):
        stray.stop(grace_seconds=1.0)
        stopped.append(f"process {stray.pid}")
    return stopped


def marked(prefix: str) -> list[Process]:
    """Processes whose environment says that they are (or come from) a service whose mark begins with ``prefix``."""
    wanted = f"{MARK}={prefix}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # ended meanwhile, or not readable even for root: none of ours
        started = start_time(int(entry.name))
        if started is not None and any(variable.startswith(wanted) for variable in variables):
            found.append(Process(pid=int(entry.name), started=started))
    return found


def leftovers(service: Service) -> list[Process]:
    """Of a service whose process has ended: children that outlived it, and a process that no pid file names.

    Daemons it started in sessions of their own (the containers of the Proxmox host) are none of these.
    """
    words = service.pid_file.read_text().split() if service.pid_file.exists() else []
    former = int(words[0]) if words and words[0].isdigit() else 0
    command = b"\0".join(word.encode() for word in service.command) + b"\0"
    found = []
    for process in marked(service.mark):
        try:
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            same = Path(f"/proc/{process.pid}/cmdline").read_bytes() == command
        except (FileNotFoundError, ProcessLookupError):
            continue
        if same or int(fields[3]) == former:
            found.append(process)
    return found


def since(process: Process) -> float:
    """When the process was started, in seconds since the epoch."""
    boot = next(line.split()[1] for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
    return int(boot) + process.started / os.sysconf("SC_CLK_TCK")
