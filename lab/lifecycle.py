"""Bringing the whole lab up, and taking it down again whatever state it is in."""

from __future__ import annotations

import fcntl
import os
import platform
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lab import artefacts as artefact_server
from lab import kernel, keys, machines, network, packages, places, services, stack, timings, tools
from lab.builds import ConsoleReport, build_all
from lab.builds.progress import duration
from lab.errors import LabError
from lab.processes import run

TOOLS_PATH = places.STATE / "tools-path"
"""PATH for what runs in the lab, noted by ``up``: other commands need not look at the builds."""
KUBECONFIG = places.STATE / "kubeconfig"
EVENT_LOG = places.RUNTIME / "pulumi-events.json"
"""Pulumi's own record of a run. It holds secrets in the clear, so it is read for its times and removed."""
PHASES = places.LOGS / "phases.json"
"""When each part of the last deployment began and ended."""
LOCK = Path("/run/lock") / places.NAMESPACE
"""Held by ``up`` and ``down``: they never run at the same time."""

MEMORY_GIB = 6
"""Memory the running lab takes."""
DATABASE_SECONDS = 120.0
"""How long the database may take to answer after the deployment has ended."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def require_root() -> None:
    """Raise :class:`LabError` unless this is root on a machine that can run the lab."""
    if os.geteuid() != 0:
        raise LabError("The lab makes a network and containers of its own and needs root: run the command with sudo.")
    if platform.machine() != "x86_64":
        raise LabError(f"The lab's programs are built for x86_64; this machine is {platform.machine()}.")


def environment() -> dict[str, str]:
    """The environment of everything that runs in the lab. Raises :class:`LabError` when there is no lab."""
    if not TOOLS_PATH.exists() or not network.exists():
        raise LabError("The lab is not up. Start it with `make lab`.")
    return _environment(TOOLS_PATH.read_text(encoding="utf-8").strip())


def _environment(path: str) -> dict[str, str]:
    return {**tools.environment(path), "PULUMI_STACK": places.STACK, "KUBECONFIG": str(KUBECONFIG)}


@contextmanager
def lock() -> Iterator[None]:
    """Keep ``up`` and ``down`` from running twice at the same time. Raises :class:`LabError` when one does."""
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError("Another `school lab up` or `down` is at work. Wait until it has ended.") from None
        yield


def _say(console: Console, text: str) -> None:
    """One line: nothing in it is coloured, cut or wrapped."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


# ------------------------------------------------------------------ up


@dataclass(slots=True)
class Clock:
    """How long each part of ``up`` took."""

    rows: list[tuple[str, float, float]] = field(default_factory=list)
    """Name, when it began and how long it took, in seconds."""
    begun: float = field(default_factory=time.monotonic)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Note how long the block takes, if it succeeds."""
        begun = time.monotonic()
        yield
        self.rows.append((name, begun - self.begun, time.monotonic() - begun))

    def table(self, parts: Mapping[str, timings.Span]) -> Table:
        """All of it, with the parts of the deployment below it."""
        table = Table(title="Where the time went", title_justify="left", show_footer=True)
        table.add_column("phase", footer="all together")
        table.add_column("begun after", justify="right")
        table.add_column("time", justify="right", footer=duration(time.monotonic() - self.begun))
        for name, begun, seconds in self.rows:
            table.add_row(name, duration(begun), duration(seconds))
            if name == _DEPLOYMENT:
                for part, span in parts.items():
                    table.add_row(f"  {part}", duration(begun + span.begun), duration(span.seconds), style="dim")
        return table


_DEPLOYMENT = "pulumi up"


def up(console: Console, deploy: bool = True) -> int:
    """Bring the lab up, and with ``deploy`` (default) the stack in it. Returns the exit code.

    What runs already is kept. Raises :class:`LabError` with a sentence for the user.
    """
    require_root()
    with lock():
        clock = Clock()
        given = _ready(console, clock)
        if not deploy:
            _say(
                console, f"The lab is up, without its stack: `{_school()} lab run -- pulumi up --stack {places.STACK}`"
            )
            return 0
        try:
            with clock.measure(_DEPLOYMENT):
                code = _pulumi_up(given)
            with EVENT_LOG.open(encoding="utf-8") as lines:
                parts = timings.phases(lines)
        finally:
            EVENT_LOG.unlink(missing_ok=True)
        if code == INTERRUPTED:
            _say(console, "Interrupted. What is there stays; `make lab` goes on from here.")
            return code
        if code:
            raise LabError(
                f"`pulumi up` ended with code {code}; its own messages stand above. Go on with `make lab` when the cause is "
                f"gone; logs of the lab are in {places.LOGS}."
            )
        _write_kubeconfig(given)
        with clock.measure("first query"):
            version = _ask_database(given)
        if parts:
            timings.save(PHASES, parts)
        console.print(clock.table(parts))
        _say(console, f"The database answers: PostgreSQL {version}. Machines: `{_school()} lab status`. To its prompt:")
        _say(console, f"{_school()} lab run -- school psql")
    return 0


def _school() -> str:
    return ".venv/bin/school"


def _ready(console: Console, clock: Clock) -> dict[str, str]:
    """Everything but the deployment; returns the environment for that."""
    with clock.measure("Debian packages"):
        installed = packages.install()
    if installed:
        _say(console, f"Installed Debian packages: {', '.join(installed)}")
    _warn(console)
    with clock.measure("builds"), ConsoleReport(console) as report:
        artefacts = build_all(report)
    with clock.measure("network and services"):
        keys.make_all()
        kernel.prepare()
        network.create()
        artefact_server.lay_out(places.ARTEFACTS, artefacts)
        services.write_configurations(artefacts.registry_storage)
        started = services.start()
    _say(console, f"Services: {'started ' + ', '.join(started) if started else 'all ran already'}")
    with clock.measure("switching machines on"):
        switched_on = machines.switch_all_on()
    if switched_on:
        _say(console, f"Machines switched on: {', '.join(switched_on)}")
    toolbox = tools.choose(artefacts)
    _say(console, toolbox.sentence())
    _write_kubectl(artefacts.k3s)
    keys.write_private(TOOLS_PATH, f"{toolbox.path}\n".encode())
    given = _environment(toolbox.path)
    with clock.measure("stack"):
        stack.prepare(artefacts, given)
        for pid in stack.remove_stale_locks():
            _say(console, f"A run of Pulumi (pid {pid}) was killed; its lock is removed, and this run continues it.")
    return given


def _warn(console: Console) -> None:
    """Say what will probably be too little; it is not refused, for nothing breaks before it is really used up."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    if pages < MEMORY_GIB:
        _say(console, f"Warning: the lab takes {MEMORY_GIB} GiB of memory, this machine has {pages:.1f} GiB.")
    for place, gib in ((places.CACHE, 12), (places.STATE, 8)):
        there = next(parent for parent in (place, *place.parents) if parent.exists())
        free = shutil.disk_usage(there).free / 2**30
        if free < gib and not any(place.glob("registry-*")):
            _say(console, f"Warning: {place} needs about {gib} GiB, its file system has {free:.1f} GiB free.")


def _write_kubectl(k3s: Path) -> None:
    """kubectl of the cluster's own version, where the machine has no other."""
    launcher = places.STAND_INS / "kubectl"
    launcher.write_text(f'#!/bin/sh\nexec {shlex.quote(str(k3s))} kubectl "$@"\n', encoding="utf-8")
    launcher.chmod(0o755)


def _pulumi_up(given: Mapping[str, str]) -> int:
    """Run the deployment on this terminal. Ctrl-C reaches Pulumi too, which ends in its own way."""
    command = ["pulumi", "up", "--stack", places.STACK, "--yes", "--non-interactive", "--event-log", str(EVENT_LOG)]
    command += ["--policy-pack", str(places.REPOSITORY / "policy")]
    # Made here, so that nobody else can read what Pulumi writes into it.
    keys.write_private(EVENT_LOG, b"")
    interrupted = False

    def note(*_: object) -> None:
        nonlocal interrupted
        interrupted = True

    before = signal.signal(signal.SIGINT, note)
    try:
        code = subprocess.Popen(
            network.enter(command),
            cwd=places.REPOSITORY,
            # without this variable Pulumi hides the option for the event log
            env={**given, "PULUMI_DEBUG_COMMANDS": "true"},
            stdin=subprocess.DEVNULL,
        ).wait()
    finally:
        signal.signal(signal.SIGINT, before)
    return INTERRUPTED if interrupted and code else code


def _write_kubeconfig(given: Mapping[str, str]) -> None:
    """Keep the stack's kubeconfig for kubectl in the lab."""
    command = ["pulumi", "--cwd", str(places.REPOSITORY), "stack", "output", "kubeconfig", "--show-secrets"]
    shown = run(network.enter([*command, "--stack", places.STACK]), env=given, timeout_seconds=60)
    keys.write_private(KUBECONFIG, shown.stdout.encode())


def _ask_database(given: Mapping[str, str]) -> str:
    """The version that the database says it is, asked as the application asks, at its address.

    Asks again for :data:`DATABASE_SECONDS`: addresses settle a moment after the resources are ready.
    """
    command = [str(tools.VENV_BIN / "school"), "psql", "--stack", places.STACK, "--", "-XAtc", "show server_version"]
    deadline = time.monotonic() + DATABASE_SECONDS
    while True:
        done = run(
            network.enter(command), env={**given, "PWD": str(places.REPOSITORY)}, check=False, timeout_seconds=60
        )
        if done.returncode == 0:
            return done.stdout.strip()
        if time.monotonic() > deadline:
            raise LabError(
                f"The stack is deployed, but its database did not answer within {DATABASE_SECONDS:.0f} s: "
                f"{done.stderr.strip() or 'no reason given'}. See `{_school()} lab run -- kubectl -n postgres get pods`."
            )
        time.sleep(1)


# ------------------------------------------------------------------ down


def down() -> list[str]:
    """Stop and remove everything of the lab but the cache; returns what that was, none when there was nothing.

    Works on what is left of a lab too, and ends no process that the lab did not start.
    """
    require_root()
    with lock():
        removed = []
        # the supervisor first: nothing is started again while the rest ends
        watcher = services.supervisor().process()
        if watcher is not None:
            watcher.stop()
        off = machines.stop_all()
        removed += [f"machines {', '.join(off)}"] if off else []
        ended = services.stop() + machines.leave_proxmox_host()
        if watcher is not None:
            ended.insert(0, services.supervisor().name)
        removed += [f"services {', '.join(ended)}"] if ended else []
        for directory in (places.STATE, places.RUNTIME):
            machines.unmount_below(directory)
        if network.exists():
            network.remove()
            removed.append(f"network {places.NAMESPACE}")
        restored = kernel.restore()
        removed += [f"settings {', '.join(restored)}"] if restored else []
        if packages.remove_leftover_policy():
            removed.append(str(packages.POLICY))
        places.STACK_FILE.with_name(f"{places.STACK_FILE.name}.bak").unlink(missing_ok=True)
        if places.STACK_FILE.exists():
            places.STACK_FILE.unlink()
            removed.append(places.STACK_FILE.name)
        for directory in (places.STATE, places.RUNTIME):
            if directory.exists():
                _remove_tree(directory)
                removed.append(str(directory))
    return removed


def _remove_tree(directory: Path) -> None:
    """Remove a directory of the lab. Raises :class:`LabError` when something is still mounted below it."""
    inside = machines.mounted_below(directory)
    if inside:
        raise LabError(
            f"{inside[0]} is still mounted and cannot be unmounted: end what uses it, then `school lab down` again."
        )
    try:
        shutil.rmtree(directory)
    except OSError as error:
        raise LabError(f"{error.filename} cannot be removed: {error.strerror}. Run `school lab down` again.") from error
