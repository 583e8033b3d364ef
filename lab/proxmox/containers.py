"""The containers themselves: root file systems, first-boot set-up, and real LXC underneath."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from lab.errors import LabError
from lab.processes import Process, recall, remember, run
from lab.proxmox import lxc_config
from lab.proxmox.guest_config import GuestConfig, properties

Log = Callable[[str], None]

START_TIMEOUT_SECONDS = 30.0
_HASHES: dict[tuple[str, int, int], str] = {}
_UNPACKING = threading.Lock()


class Containers:
    """Real containers below one directory. Every method blocks; callers hold a lock per container.

    Each container has its own layer over the unpacked template (``upper``), and a plain directory for /var/lib:
    containerd and other container runtimes cannot put their overlays on an overlay.
    """

    def __init__(self, directory: Path, template_roots: Path, machine: lxc_config.Machine) -> None:
        self.directory = directory
        self.template_roots = template_roots
        self.machine = machine

    def home(self, vmid: int) -> Path:
        """Directory with everything of the container."""
        return self.directory / str(vmid)

    # ------------------------------------------------------------------ life and death

    def create(self, vmid: int, config: GuestConfig, template: Path, ssh_keys: str, password: str, log: Log) -> None:
        """Lay the root file system over ``template`` and prepare it as Proxmox VE prepares a Debian container.

        Raises :class:`LabError` when the template cannot be unpacked or the disk is full; nothing is left behind then.
        """
        home = self.home(vmid)
        if home.exists():
            self.destroy(vmid)
        try:
            root = self._unpacked(template, log)
            for name in ("upper", "work", "rootfs", "varlib"):
                (home / name).mkdir(parents=True)
            (home / "upper").chmod(0o755)
            (home / "template").write_text(f"{root.name}\n")
            run(["cp", "-a", "--reflink=auto", f"{root}/var/lib/.", home / "varlib"])
            self._mount(vmid)
            try:
                rootfs = home / "rootfs"
                _first_boot(rootfs, config.hostname or f"CT{vmid}", ssh_keys, password, log)
                set_up(rootfs, vmid, config)
            finally:
                self._unmount(vmid)
        except (LabError, OSError) as error:
            self.destroy(vmid)
            raise LabError(_plain(error)) from error

    def destroy(self, vmid: int) -> None:
        """Stop the container if it runs, and remove everything of it."""
        if self.running(vmid):
            self.kill(vmid)
        self._unmount(vmid)
        shutil.rmtree(self.home(vmid), ignore_errors=False) if self.home(vmid).exists() else None

    def start(self, vmid: int, config: GuestConfig, log: Log) -> None:
        """Start the container from ``config`` and return when its init runs.

        Raises :class:`LabError` with LXC's own reason when it does not start.
        """
        home = self.home(vmid)
        if not (home / "template").exists():
            raise LabError(
                f"volume of container {vmid} does not exist: {home} is gone; destroy the container and create it anew"
            )
        text, warnings = lxc_config.generate(vmid, config, home, self.machine)
        for warning in warnings:
            log(warning)
        try:
            self._mount(vmid)
            set_up(home / "rootfs", vmid, config)
            (home / "config").write_text(text)
            _write(home / lxc_config.BRIDGE_SCRIPT, lxc_config.BRIDGE_SCRIPT_TEXT, 0o755)
        except OSError as error:
            self._unmount(vmid)
            raise LabError(_plain(error)) from error
        lxc_log = home / "lxc.log"
        lxc_log.unlink(missing_ok=True)
        pid_file = home / "lxc.pid"
        pid_file.unlink(missing_ok=True)
        started = run(
            ["lxc-start", "-P", self.directory, "-n", str(vmid), "-d", "-p", pid_file, "-o", lxc_log, "-l", "NOTICE"],
            check=False,
            timeout_seconds=START_TIMEOUT_SECONDS,
        )
        if started.returncode or not self._remember_monitor(vmid):
            for line in _lxc_errors(lxc_log):
                log(line)
            self._unmount(vmid)
            raise LabError(f"startup for container '{vmid}' failed")

    def _remember_monitor(self, vmid: int) -> bool:
        pid_file = self.home(vmid) / "lxc.pid"
        if not pid_file.exists() or not pid_file.read_text().strip().isdigit():
            return False
        return remember(self.home(vmid) / "monitor", int(pid_file.read_text())) is not None

    def kill(self, vmid: int) -> None:
        """Stop at once, as a power cut would."""
        monitor = self.monitor(vmid)
        run(["lxc-stop", "-P", self.directory, "-n", str(vmid), "-k"], check=False, timeout_seconds=30)
        if monitor is not None and not monitor.wait(10):
            raise LabError(
                f"container {vmid} did not stop: its LXC monitor (pid {monitor.pid}) is still there after 10 s"
            )
        self._unmount(vmid)

    def shutdown(self, vmid: int, timeout_seconds: float) -> bool:
        """Ask the container's init to power off; False when it still runs after ``timeout_seconds``."""
        monitor = self.monitor(vmid)
        if monitor is None:
            return True
        run(["lxc-stop", "-P", self.directory, "-n", str(vmid), "--nokill", "-t", f"{max(1, int(timeout_seconds))}"],
            check=False, timeout_seconds=timeout_seconds + 30)  # fmt: skip
        if not monitor.wait(2):
            return False
        self._unmount(vmid)
        return True

    # ------------------------------------------------------------------ looking

    def monitor(self, vmid: int) -> Process | None:
        """The LXC process that lives as long as the container runs."""
        return recall(self.home(vmid) / "monitor")

    def running(self, vmid: int) -> bool:
        """True while the container runs."""
        return self.monitor(vmid) is not None

    def init_pid(self, vmid: int) -> int | None:
        """Pid of the container's init on the machine, None when it is stopped."""
        shown = run(["lxc-info", "-P", self.directory, "-n", str(vmid), "-pH"], check=False).stdout.strip()
        return int(shown) if shown.isdigit() and int(shown) > 0 else None

    def stopped(self, vmid: int) -> None:
        """Tidy up after a container that ended by itself."""
        if not self.running(vmid):
            self._unmount(vmid)

    # ------------------------------------------------------------------ file systems

    def _unpacked(self, template: Path, log: Log) -> Path:
        with _UNPACKING:
            root = self.template_roots / _sha512(template)[:32]
            if root.exists():
                return root
            log(f"extracting archive '{template}'")
            fresh = root.with_name(f"{root.name}.{os.getpid()}.part")
            if fresh.exists():
                shutil.rmtree(fresh)
            fresh.mkdir(parents=True)
            try:
                run(
                    [
                        "tar",
                        "--extract",
                        "--auto-compress",
                        "--preserve-permissions",
                        "--numeric-owner",
                        "--same-owner",
                        "--xattrs",
                        "--xattrs-include=*",
                        "--file",
                        template,
                        "--directory",
                        fresh,
                    ],
                    timeout_seconds=600,
                )
                if not (fresh / "sbin/init").is_symlink() and not (fresh / "sbin/init").exists():
                    raise LabError(f"unable to detect OS distribution: {template.name} holds no /sbin/init")
                fresh.rename(root)
            finally:
                if fresh.exists():
                    shutil.rmtree(fresh)
            return root

    def _mount(self, vmid: int) -> None:
        home = self.home(vmid)
        rootfs = home / "rootfs"
        if not rootfs.is_mount():
            lower = self.template_roots / (home / "template").read_text().strip()
            if not lower.exists():
                raise LabError(
                    f"the unpacked template {lower} is gone from the lab's cache; run `school lab down` and `make lab`"
                )
            layers = f"lowerdir={lower},upperdir={home / 'upper'},workdir={home / 'work'}"
            run(["mount", "-t", "overlay", "overlay", "-o", layers, rootfs])
        if not (rootfs / "var/lib").is_mount():
            run(["mount", "--bind", home / "varlib", rootfs / "var/lib"])

    def _unmount(self, vmid: int) -> None:
        rootfs = self.home(vmid) / "rootfs"
        for point in (rootfs / "var/lib", rootfs):
            if point.is_mount():
                run(["umount", "--lazy", point])


# ---------------------------------------------------------------------- what Proxmox VE writes into a Debian container


def set_up(rootfs: Path, vmid: int, config: GuestConfig) -> None:
    """Write host name, hosts, resolver and network cards: done at creation and before every start."""
    options = config.options
    hostname = config.hostname or f"CT{vmid}"
    domain = options.get("searchdomain", "").split(" ")[0]
    full = f"{hostname}.{domain}" if domain and "." not in hostname else hostname
    short = hostname.split(".")[0]
    _write(rootfs / "etc/hostname", f"{short}\n")
    cards = [properties(options[key]) for key in sorted(options) if re.fullmatch(r"net\d+", key)]
    addresses = [card["ip"].split("/")[0] for card in cards if "/" in card.get("ip", "")]
    names = full if full == short else f"{full} {short}"
    _write_section(rootfs / "etc/hosts", f"{addresses[0] if addresses else '127.0.1.1'} {names}\n")
    servers = options.get("nameserver", "").replace(",", " ").split()
    if servers:
        search = f"search {options['searchdomain']}\n" if options.get("searchdomain") else ""
        resolver = rootfs / "etc/resolv.conf"
        if resolver.is_symlink():
            resolver.unlink()
        text = search + "".join(f"nameserver {server}\n" for server in servers)
        _write(resolver, f"# --- BEGIN PVE ---\n{text}# --- END PVE ---\n")
    _write(rootfs / "etc/network/interfaces", _interfaces(cards))


def _interfaces(cards: list[dict[str, str]]) -> str:
    text = "auto lo\niface lo inet loopback\n"
    for number, card in enumerate(cards):
        name = card.get("name", f"eth{number}")
        address = card.get("ip", "manual")
        text += f"\nauto {name}\niface {name} inet {'static' if '/' in address else address}\n"
        if "/" in address:
            text += f"\taddress {address}\n"
        if card.get("gw"):
            text += f"\tgateway {card['gw']}\n"
    return text


def _first_boot(rootfs: Path, hostname: str, ssh_keys: str, password: str, log: Log) -> None:
    for name in ("etc/machine-id", "var/lib/dbus/machine-id"):
        (rootfs / name).unlink(missing_ok=True)
    _write(rootfs / "etc/machine-id", f"{uuid.uuid4().hex}\n", 0o444)
    ssh = rootfs / "etc/ssh"
    if ssh.is_dir():
        for old in ssh.glob("ssh_host_*"):
            old.unlink()
        makers = []
        for kind in ("rsa", "ecdsa", "ed25519"):
            log(f"Creating SSH host key 'ssh_host_{kind}_key' - this may take some time ...")
            command = [
                "ssh-keygen",
                "-q",
                "-t",
                kind,
                "-N",
                "",
                "-C",
                f"root@{hostname}",
                "-f",
                f"{ssh}/ssh_host_{kind}_key",
            ]
            makers.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL))
        if any(maker.wait() for maker in makers):
            raise LabError(f"ssh-keygen could not write host keys for {hostname}")
    if ssh_keys.strip():
        home = rootfs / "root/.ssh"
        home.mkdir(mode=0o700, exist_ok=True)
        _write(home / "authorized_keys", ssh_keys.strip() + "\n", 0o600)
    if password:
        sealed = run(["openssl", "passwd", "-6", "-stdin"], input_text=password + "\n").stdout.strip()
        shadow = rootfs / "etc/shadow"
        text = re.sub(r"^root:[^:]*:", lambda _: f"root:{sealed}:", shadow.read_text(), count=1, flags=re.MULTILINE)
        mode = shadow.stat()
        _write(shadow, text, mode.st_mode & 0o777)
        os.chown(shadow, mode.st_uid, mode.st_gid)


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file of a container without following links out of its root file system."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "w") as handle:
        handle.write(text)
    fresh.chmod(mode)
    fresh.replace(path)


def _write_section(path: Path, section: str) -> None:
    old = path.read_text() if path.exists() and not path.is_symlink() else "127.0.0.1 localhost\n"
    marked = f"# --- BEGIN PVE ---\n{section}# --- END PVE ---\n"
    pattern = re.compile(r"# --- BEGIN PVE ---\n.*?# --- END PVE ---\n", re.DOTALL)
    text = (
        pattern.sub(lambda _: marked, old)
        if pattern.search(old)
        else (old.rstrip("\n") + "\n" if old.strip() else "") + marked
    )
    if not path.exists() or text != old:
        _write(path, text)


def _sha512(path: Path) -> str:
    facts = path.stat()
    key = (str(path), facts.st_mtime_ns, facts.st_size)
    if key not in _HASHES:
        with path.open("rb") as handle:
            _HASHES[key] = hashlib.file_digest(handle, "sha512").hexdigest()
    return _HASHES[key]


def _lxc_errors(log: Path) -> list[str]:
    if not log.exists():
        return []
    lines = [line for line in log.read_text(errors="replace").splitlines() if " ERROR " in line]
    # "lxc-start 110 20261121... ERROR    conf - ../src/lxc/conf.c:func:123 - text" -> "func: text", as Proxmox VE prints it
    return [re.sub(r"^\S+ \S+ \S+ ERROR\s+\S+ - \S*?:(\w+):\d+ - ", r"\1: ", line) for line in lines][-10:]


def _plain(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def wait_until(test: Callable[[], bool], seconds: float) -> bool:
    """Ask ``test`` every 50 ms until it is true; False after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not test():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
