"""Measuring the program and the lab: how long a preview takes, what a second `up` costs, what the running lab takes.

Nothing here judges a figure. The previews are real ones, by the Pulumi command on empty stacks of their own in a temporary
directory; the lab, when it runs, is only looked at, apart from one `pulumi up` that has nothing to do.
"""

from __future__ import annotations

import copy
import ctypes
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from rich.table import Table

from lab import lifecycle, machines, network, places, services, timings, tools
from lab.builds import build_all
from lab.engine.launchers import MODULES
from lab.errors import LabError

REPORT = places.REPOSITORY / "reports" / "bench.json"
"""Where the figures are written; not in git."""

SIZES = (5, 6, 40, 400)
"""Numbers of machines the program is previewed with; five are the fewest that it accepts, six are the school's."""
REPEATS = 3
"""Runs of what is short; the figure is their median."""
ONCE_FROM = 400
"""From this many machines on one run has to do."""
LIMIT_SECONDS = 900
"""How long one run of the Pulumi command may take."""
SAMPLE_SECONDS = 0.1

NOT_UP = "the lab is not up"
_NAMESPACE = "school-postgres"
_STACK = "bench"
_SMALLEST = 5
_PROGRAM_FILES = ("__main__.py", "components", "settings", "credentials.py", "versions.py")
_EXECUTORS = (b"executor.py", b"pulumi-language-python-exec")
"""What stands on the command line of the process that runs a Python program: the lab's stand-in, Pulumi's own."""
_EXECUTOR_NAME = b"executor\n"
"""Name of that process where it is a fork and has no command line of its own."""
_PR_SET_CHILD_SUBREAPER = 36
REAP_SECONDS = 5.0
"""How long what Pulumi leaves behind may take to end by itself."""

_FLOOR = """\
import json
import pathlib

import pulumi
import pulumi_random


class Group(pulumi.ComponentResource):
    def __init__(self, name):
        super().__init__("bench:index:Group", name)


counts = json.loads(pathlib.Path(__file__).with_name("counts.json").read_text())
groups = [Group(f"group-{number}") for number in range(counts["components"])]
for number in range(counts["resources"]):
    parent = groups[number % len(groups)] if groups else None
    pulumi_random.RandomPassword(f"plain-{number}", length=16, opts=pulumi.ResourceOptions(parent=parent))
"""
"""As many resources as the program has, with nothing in them: what the engine needs at least."""


# ------------------------------------------------------------------ figures


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One measured value, or the reason why there is none."""

    group: str
    """What belongs together in the table."""
    name: str
    value: float | None = None
    unit: str = ""
    """``s``, ``MiB``, ``GiB`` or ``x`` (times)."""
    note: str = ""
    """How it was measured, or why it was not."""

    def shown(self) -> str:
        """The value as the table has it."""
        if self.value is None:
            return "-"
        digits = 0 if self.unit == "MiB" else 2 if abs(self.value) < 10 else 1
        return f"{self.value:.{digits}f} {self.unit}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Everything that was measured, and on what."""

    machine: Mapping[str, object]
    figures: Sequence[Figure]

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {"machine": dict(self.machine), "figures": [asdict(figure) for figure in self.figures]}

    def heading(self) -> str:
        """What the figures were measured on, one line."""
        facts = self.machine
        return f"{facts['cores']} cores, {facts['memory_gib']} GiB of memory, load {facts['load']}; {facts['tools']}"

    def table(self) -> Table:
        """For people."""
        table = Table()
        table.add_column("what")
        table.add_column("measured", justify="right", no_wrap=True)
        table.add_column("how")
        group = ""
        for figure in self.figures:
            if figure.group != group:
                if group:
                    table.add_section()
                group = figure.group
                table.add_row(group, "", "", style="bold")
            table.add_row(f"  {figure.name}", figure.shown(), figure.note)
        return table


def machine_facts(toolbox: str) -> dict[str, object]:
    """What the figures were measured on; ``toolbox`` is the sentence about the Pulumi tools."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "load": round(os.getloadavg()[0], 1),
        "tools": toolbox,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


# ------------------------------------------------------------------ configurations


def configuration(school: Mapping[str, Any], size: int) -> dict[str, Any]:
    """The school's topics (without their prefix) for ``size`` machines, in a wider network where that is needed.

    More machines than the school has are further workers; with fewer, datastore and file share move onto the K3s servers.
    Host keys are made up, since those of the school's file are refused as examples.
    Raises ``ValueError`` below five machines, which the program refuses: three for Kubernetes and two balancers.
    """
    if size < _SMALLEST:
        raise ValueError(f"The program needs at least {_SMALLEST} machines, not {size}.")
    topics = copy.deepcopy(dict(school))
    for host in topics["proxmox"]["hosts"]:
        public = Ed25519PrivateKey.generate().public_key()
        host["sshHostKey"] = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    listed = _fewer(topics["machines"], size)
    network = IPv4Network(topics["network"]["cidr"])
    if network.prefixlen > 16:
        network = network.supernet(new_prefix=16)
        topics["network"]["cidr"] = str(network)
    free = _free_addresses(topics, network)
    hosts = [host["name"] for host in topics["proxmox"]["hosts"]]
    pattern = next(machine for machine in school["machines"] if "k3s-server" in machine["roles"])
    for number in range(len(listed), size):
        listed.append(
            {
                **pattern,
                "name": f"worker{number}",
                "roles": ["k3s-worker"],
                "address": str(next(free)),
                "proxmoxHost": hosts[number % len(hosts)],
                "vmId": 10_000 + number,
            }
        )
    topics["machines"] = listed
    return topics


def _fewer(school: Sequence[Mapping[str, Any]], size: int) -> list[dict[str, Any]]:
    """At most ``size`` of the school's machines, which together still have every role."""
    listed = [dict(machine) for machine in school]
    servers = [machine for machine in listed if "k3s-server" in machine["roles"]]
    for machine in [machine for machine in listed if {"datastore", "file-share"} & set(machine["roles"])]:
        if len(listed) > size and machine not in servers:
            listed.remove(machine)
            for server, role in zip(servers, machine["roles"], strict=False):
                server["roles"] = [*server["roles"], role]
    return listed


def _free_addresses(topics: Mapping[str, Any], network: IPv4Network) -> Iterator[IPv4Address]:
    """Addresses of ``network`` outside the first /24 below any address that the configuration names."""
    named = re.findall(r"\d+\.\d+\.\d+\.\d+", json.dumps(topics))
    taken = {IPv4Network(f"{address}/24", strict=False) for address in named}
    for part in network.subnets(new_prefix=24):
        if part not in taken:
            yield from part.hosts()


# ------------------------------------------------------------------ running the Pulumi command


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run of the Pulumi command that succeeded."""

    seconds: float
    cpu_seconds: float
    """Processor time of the command and everything it started; says more than the clock on a busy machine."""
    components: int
    """Component resources that it registered."""
    resources: int
    """Other resources that it registered, providers and the stack left out."""
    program_mib: float | None
    """Peak resident memory of the process that ran the program; None when that was not seen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Project:
    """A Pulumi project of its own in a temporary directory, with one empty stack in a file backend."""

    directory: Path
    environment: Mapping[str, str]

    def preview(self) -> Run:
        """Preview. Raises :class:`LabError` with the end of the output when it fails."""
        return self._measure("preview", "--suppress-progress")

    def judged_preview(self) -> Run:
        """Preview with the policy pack. What the policies say is advice here: the machines are made up, the time is not."""
        config = self.directory / "policies.json"
        config.write_text(json.dumps({"all": "advisory"}), encoding="utf-8")
        pack = ["--policy-pack", str(places.REPOSITORY / "policy"), "--policy-pack-config", str(config)]
        return self._measure("preview", "--suppress-progress", *pack)

    def up(self) -> Run:
        """Deploy, without a question. Raises as :meth:`preview` does."""
        return self._measure("up", "--yes", "--suppress-progress")

    def call(self, *words: str) -> str:
        """Run the Pulumi command on the stack, untimed; returns its output. Raises :class:`LabError`."""
        output, _ = _pulumi(words, self.directory, self.environment)
        return output

    def _measure(self, *words: str) -> Run:
        log = self.directory / "events.json"
        log.unlink(missing_ok=True)
        cpu, began = _children_cpu(), time.monotonic()
        _, mib = _pulumi([*words, "--event-log", str(log)], self.directory, self.environment)
        seconds = time.monotonic() - began
        _reap_orphans()
        cpu = _children_cpu() - cpu
        with log.open(encoding="utf-8") as lines:
            components, resources = count_registered(lines)
        return Run(seconds=seconds, cpu_seconds=cpu, components=components, resources=resources, program_mib=mib)


def _adopt_orphans() -> None:
    """What outlives the Pulumi command becomes a child of this process, so that its time is counted."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise LabError(f"Processes cannot be adopted: {os.strerror(ctypes.get_errno())}.")


def _reap_orphans() -> None:
    """Wait for adopted processes, at most :data:`REAP_SECONDS`. Called when none of this process's own runs."""
    deadline = time.monotonic() + REAP_SECONDS
    while time.monotonic() < deadline:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            time.sleep(0.01)


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def count_registered(lines: Iterable[str]) -> tuple[int, int]:
    """Component resources and other resources in an event log, each once; the stack and providers are left out."""
    components: set[str] = set()
    resources: set[str] = set()
    for line in lines:
        event = json.loads(line).get("resourcePreEvent")
        if not event or event["metadata"]["type"].startswith("pulumi:"):
            continue
        state = event["metadata"].get("new") or event["metadata"].get("old") or {}
        (resources if state.get("custom") else components).add(event["metadata"]["urn"])
    return len(components), len(resources)


def _pulumi(
    words: Sequence[str], directory: Path, environment: Mapping[str, str], prefix: Sequence[str] = ()
) -> tuple[str, float | None]:
    """Run ``pulumi``; returns its output and the peak memory in MiB of the Python program it ran, if that was seen."""
    command = [*prefix, "pulumi", *words, "--non-interactive", "--color=never"]
    if "init" not in words:
        command += ["--stack", environment.get("PULUMI_STACK", _STACK)]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, cwd=directory, env=dict(environment), stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        # Below this process: what the command left behind has been adopted.
        watch = _MemoryWatch(os.getpid())
        try:
            code = process.wait(LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            raise LabError(f"`pulumi {words[0]}` did not end within {LIMIT_SECONDS} s.") from None
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
            watch.stop()
        output.seek(0)
        text = output.read().decode(errors="replace")
    if code:
        raise LabError(f"`pulumi {words[0]}` ended with code {code}: {' '.join(text.split())[-400:]}")
    return text, watch.peak_mib


class _MemoryWatch:
    """Looks ten times a second at the process that runs the Python program below another process."""

    def __init__(self, root: int) -> None:
        self.peak_mib: float | None = None
        self._root = root
        self._program: int | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End looking."""
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            if self._program is None:
                self._program = next(filter(_runs_program, descendants(self._root)), None)
            peak = None if self._program is None else _status_kib(self._program, "VmHWM")
            if peak is None:
                self._program = None
            else:
                self.peak_mib = max(self.peak_mib or 0.0, peak / 1024)


def _runs_program(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        name = Path(f"/proc/{pid}/comm").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return name == _EXECUTOR_NAME or any(mark in words for mark in _EXECUTORS)


def _status_kib(pid: int, name: str) -> int | None:
    """A memory figure of a process; None when there is no such process any more."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return None
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) if found else None


def descendants(root: int) -> list[int]:
    """The processes below ``root``, without itself."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    todo = [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


@dataclass(slots=True)
class Workshop:
    """Makes projects in one temporary directory."""

    root: Path
    path: str
    """PATH with the Pulumi command and its plugins."""
    made: int = field(default=0)

    def program(self, topics: Mapping[str, Any]) -> Project:
        """The project's own program, with this configuration."""
        folder = self._folder()
        for name in _PROGRAM_FILES:
            (folder / name).symlink_to(places.REPOSITORY / name)
        project = self._project(folder)
        file = folder / f"Pulumi.{_STACK}.yaml"
        made = (yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else None) or {}
        key = Ed25519PrivateKey.generate()
        secrets = {
            "proxmoxApiToken": "bench@pve!bench=00000000-0000-4000-8000-000000000000",
            "sshPrivateKey": key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode(),
        }
        made["config"] = {f"{_NAMESPACE}:{key}": value for key, value in {**topics, **secrets}.items()}
        file.write_text(yaml.safe_dump(made, sort_keys=False), encoding="utf-8")
        return project

    def floor(self, components: int, resources: int) -> Project:
        """A program that registers as many resources with nothing in them."""
        folder = self._folder()
        (folder / "__main__.py").write_text(_FLOOR, encoding="utf-8")
        (folder / "counts.json").write_text(json.dumps({"components": components, "resources": resources}))
        return self._project(folder)

    def empty(self) -> Project:
        """A program that registers nothing."""
        folder = self._folder()
        (folder / "__main__.py").write_text("", encoding="utf-8")
        return self._project(folder)

    def _folder(self) -> Path:
        self.made += 1
        folder = self.root / f"project-{self.made}"
        (folder / "state").mkdir(parents=True)
        return folder

    def _project(self, folder: Path) -> Project:
        options = {"virtualenv": str(places.REPOSITORY / ".venv")}
        project = {"name": _NAMESPACE, "runtime": {"name": "python", "options": options}}
        (folder / "Pulumi.yaml").write_text(yaml.safe_dump(project), encoding="utf-8")
        home = self.root / "home"
        home.mkdir(exist_ok=True)
        installed = Path.home() / ".pulumi" / "plugins"
        if installed.is_dir() and not (home / "plugins").exists():
            (home / "plugins").symlink_to(installed)
        variables = tools.environment(self.path) | {
            "PULUMI_BACKEND_URL": f"file://{folder / 'state'}",
            "PULUMI_HOME": str(home),
            "PULUMI_CONFIG_PASSPHRASE": "bench",
            # without this variable Pulumi hides the option for the event log
            "PULUMI_DEBUG_COMMANDS": "true",
        }
        for name in ("PULUMI_CONFIG_PASSPHRASE_FILE", "SSL_CERT_FILE"):
            variables.pop(name)
        made = Project(directory=folder, environment=variables)
        made.call("stack", "init", _STACK)
        return made


# ------------------------------------------------------------------ what is measured


Say = Callable[[str], None]


def previews(workshop: Workshop, sizes: Sequence[int], say: Say) -> Iterator[Figure]:
    """Previews of the program and of as many plain resources, for each number of machines."""
    topics = yaml.safe_load(places.SCHOOL_STACK_FILE.read_text(encoding="utf-8"))["config"]
    school = {key.removeprefix(f"{_NAMESPACE}:"): value for key, value in topics.items()}
    for size in sizes:
        repeats = 1 if size >= ONCE_FROM else REPEATS
        how = "one run" if repeats == 1 else f"median of {repeats}"
        group = f"preview, {size} machines, empty stack"
        say(f"preview of the program with {size} machines")
        try:
            project = workshop.program(configuration(school, size))
            program = [project.preview() for _ in range(repeats)]
            judged = [project.judged_preview() for _ in range(repeats)]
            components, resources = program[0].components, program[0].resources
            say(f"preview of {components + resources} plain resources")
            floor_project = workshop.floor(components, resources)
            floor = [floor_project.preview() for _ in range(repeats)]
        except LabError as error:
            yield Figure(group=group, name="preview", note=str(error))
            continue
        counted = f"{components} components and {resources} other resources"
        ours, ours_cpu, with_pack, least, least_cpu = (
            statistics.median(values)
            for values in (
                [run.seconds for run in program],
                [run.cpu_seconds for run in program],
                [run.seconds for run in judged],
                [run.seconds for run in floor],
                [run.cpu_seconds for run in floor],
            )
        )
        yield Figure(group=group, name="the program", value=ours, unit="s", note=f"{how}; {counted}")
        yield Figure(group=group, name="the policy pack adds", value=with_pack - ours, unit="s", note=how)
        yield Figure(group=group, name="as many plain resources", value=least, unit="s", note=how)
        yield Figure(group=group, name="program / plain resources", value=ours / least, unit="x")
        yield Figure(
            group=group,
            name="program / plain resources, processor time",
            value=ours_cpu / least_cpu,
            unit="x",
            note=f"{ours_cpu:.1f} s and {least_cpu:.1f} s; says more than the clock when the machine is busy",
        )
        peaks = [run.program_mib for run in program if run.program_mib is not None]
        yield Figure(
            group=group,
            name="peak memory of the program",
            value=max(peaks, default=None),
            unit="MiB",
            note="resident, of the process that runs it" if peaks else "its process was not seen",
        )


def repeated_up(workshop: Workshop, say: Say) -> Iterator[Figure]:
    """A second `pulumi up` of the lab's stack, which changes nothing, against one of an empty stack."""
    group = "pulumi up with nothing to do"
    if not lab_is_up():
        yield Figure(group=group, name="the lab's stack", note=NOT_UP)
        return
    say("pulumi up of the lab's stack, without changes")
    try:
        with lifecycle.lock():
            given = {**lifecycle.environment(), "PULUMI_DEBUG_COMMANDS": "true"}
            enter = network.enter([])
            # This command measures, it does not deploy: the plan is empty, and Pulumi refuses whatever is not in it.
            plan = workshop.root / "no-changes.json"
            log = workshop.root / "no-changes.log"
            guard = ["preview", "--expect-no-changes", "--save-plan", str(plan), "--event-log", str(log)]
            try:
                _pulumi(guard, places.REPOSITORY, given, enter)
            except LabError as error:
                if "no changes were expected" not in str(error):
                    raise
                raise LabError("The stack differs from the program, so an `up` would change it: `make lab`.") from None
            began = time.monotonic()
            up = ["up", "--yes", "--suppress-progress", "--plan", str(plan)]
            _pulumi(up, places.REPOSITORY, given, enter)
            ours = time.monotonic() - began
        with log.open(encoding="utf-8") as lines:
            components, resources = count_registered(lines)
        say("pulumi up of as many plain resources, without changes")
        project = workshop.floor(components, resources)
        project.up()
        plain = statistics.median(project.up().seconds for _ in range(REPEATS))
        say("pulumi up of an empty stack")
        project = workshop.empty()
        least = statistics.median(project.up().seconds for _ in range(REPEATS))
    except LabError as error:
        yield Figure(group=group, name="the lab's stack", note=str(error))
        return
    yield Figure(group=group, name="the lab's stack", value=ours, unit="s", note="one run, preview included")
    counted = f"{components + resources} of them"
    yield Figure(
        group=group, name="as many plain resources", value=plain, unit="s", note=f"median of {REPEATS}; {counted}"
    )
    yield Figure(group=group, name="an empty stack", value=least, unit="s", note=f"median of {REPEATS}")
    yield Figure(group=group, name="lab / plain resources", value=ours / plain, unit="x")
    yield Figure(group=group, name="lab / empty", value=ours / least, unit="x")


def last_deployment() -> Iterator[Figure]:
    """How long the deployment of the lab took, from Pulumi's history, and its phases."""
    yield from _whole_deployment(places.PULUMI_BACKEND)
    group = "last `make lab`: phases of pulumi up, to the second (they overlap)"
    if not lifecycle.PHASES.exists():
        yield Figure(group=group, name="phases", note="no deployment of the lab is recorded")
        return
    parts = timings.load(lifecycle.PHASES)
    if not parts:
        yield Figure(group=group, name="phases", note="the last run had nothing to change")
        return
    begun, ended = min(span.begun for span in parts.values()), max(span.ended for span in parts.values())
    yield Figure(group=group, name="all phases", value=ended - begun, unit="s", note="first begin to last end")
    for name, span in parts.items():
        yield Figure(group=group, name=name, value=span.seconds, unit="s", note=f"begun at {span.begun - begun:.1f} s")


def _whole_deployment(backend: Path) -> Iterator[Figure]:
    group = "first deployment of the lab"
    best: tuple[int, int, Mapping[str, Any]] | None = None
    for file in (backend / ".pulumi" / "history" / _NAMESPACE / places.STACK).glob("*.history.json"):
        record = json.loads(file.read_text(encoding="utf-8"))
        created = (record.get("resourceChanges") or {}).get("create", 0)
        if record["kind"] == "update" and record["result"] == "succeeded" and created:
            best = max(best or (0, 0, {}), (created, record["startTime"], record), key=lambda entry: entry[:2])
    if best is None:
        yield Figure(group=group, name="pulumi up", note="no deployment of the lab is recorded")
        return
    created, begun, record = best
    note = f"{created} resources made, without the preview; recorded by Pulumi"
    yield Figure(group=group, name="pulumi up", value=float(record["endTime"] - begun), unit="s", note=note)


def lab_memory() -> Iterator[Figure]:
    """What the running lab takes: its containers by their control groups, its services by their processes."""
    group = "memory of the running lab"
    if not lab_is_up():
        yield Figure(group=group, name="all together", note=NOT_UP)
        return
    containers = 0.0
    cached = 0.0
    running = 0
    for machine in machines.all_machines():
        monitor = machines.monitor(machine.vmid)
        usage = None if monitor is None else container_memory(monitor.pid)
        if usage is not None:
            running += 1
            containers += usage[0]
            cached += usage[1]
    watched = [services.supervisor(), *services.all_services()]
    found = [process.pid for process in (service.process() for service in watched) if process is not None]
    processes = {child for pid in found for child in (pid, *_service_children(pid))}
    taken = sum(proportional_kib(pid) for pid in processes) / 2**20
    yield Figure(
        group=group, name="all together", value=containers + taken, unit="GiB", note="without cache that can be dropped"
    )
    yield Figure(
        group=group,
        name=f"{running} containers",
        value=containers,
        unit="GiB",
        note=f"control groups, less {cached:.2f} GiB of file cache not used lately",
    )
    yield Figure(
        group=group, name="services", value=taken, unit="GiB", note=f"proportional size of {len(processes)} processes"
    )


def _service_children(pid: int) -> list[int]:
    """Processes below a service, without containers: those are counted by their control groups."""
    return [child for child in descendants(pid) if "lxc.payload" not in _control_groups(child)]


def _control_groups(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def container_memory(monitor_pid: int, root: Path = Path("/sys/fs/cgroup")) -> tuple[float, float] | None:
    """Memory of the container that an LXC process watches: in use, and file cache not used lately, both in GiB.

    None when the control group is not there. ``root`` is where the control groups are mounted, of either version.
    """
    found = re.search(r"lxc\.monitor\.([^\n/]+)", _control_groups(monitor_pid))
    if not found:
        return None
    name = f"lxc.payload.{found[1]}"
    versions = (("memory", "memory.usage_in_bytes", "total_inactive_file"), (".", "memory.current", "inactive_file"))
    for folder, usage, key in versions:
        group = root / folder / name
        if (group / usage).exists():
            total = int((group / usage).read_text())
            entries = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            inactive = int(entries[key])
            return (total - inactive) / 2**30, inactive / 2**30
    return None


def proportional_kib(pid: int) -> int:
    """Proportional memory of a process, shared pages divided among their users; 0 when it has ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) if found else 0


def lab_is_up() -> bool:
    """Whether there is a lab with a stack that can be measured."""
    return lifecycle.TOOLS_PATH.exists() and network.exists()


@contextmanager
def workshop() -> Iterator[tuple[Workshop, str]]:
    """A place for projects and the sentence about the tools; removed afterwards.

    Uses the tools of the running lab, and otherwise builds and chooses them as the lab does.
    """
    if lifecycle.TOOLS_PATH.exists():
        path = lifecycle.TOOLS_PATH.read_text(encoding="utf-8").strip()
    else:
        path = tools.choose(build_all()).path
    stand_ins = [name for name in MODULES if str(shutil.which(name, path=path)).startswith(str(places.STAND_INS))]
    sentence = f"stand-ins for {', '.join(stand_ins)}" if stand_ins else "all Pulumi tools are this machine's own"
    with tempfile.TemporaryDirectory(prefix="school-bench-") as folder:
        yield Workshop(Path(folder), path), sentence


def measure(sizes: Sequence[int] = SIZES, say: Say = lambda text: None) -> Report:
    """Measure everything and write :data:`REPORT`. ``say`` is told what is going on (default: nobody).

    Raises :class:`LabError` when there are no tools to measure with; what cannot be measured is a row that says why.
    """
    lifecycle.require_root()
    _adopt_orphans()
    with workshop() as (shop, sentence):
        facts = machine_facts(sentence)
        figures = [*last_deployment(), *lab_memory(), *repeated_up(shop, say), *previews(shop, sizes, say)]
    report = Report(machine=facts, figures=figures)
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")
    return report


def say_on_stderr(text: str) -> None:
    """One line of progress, apart from the report."""
    print(text, file=sys.stderr, flush=True)
