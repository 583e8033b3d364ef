"""The running lab, as a person uses it: by its commands, over SSH and through its addresses."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from lab import places
from lab.network import enter

SCHOOL = places.REPOSITORY / ".venv" / "bin" / "school"
MACHINES = {"gl2": 110, "gl3": 111, "gl6": 112, "gl8": 113, "gl9": 114, "gl10": 115}
API_ADDRESS = "10.0.145.116"


@dataclass(frozen=True, slots=True)
class Lab:
    """A running lab, used as a person would use it."""

    def school(self, *arguments: str, check: bool = True, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        """Run ``school lab ...``."""
        return _run([str(SCHOOL), "lab", *arguments], check=check, timeout=timeout)

    def run(self, *command: str, check: bool = True, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        """Run a command in the lab's network, in the stack's environment."""
        return self.school("run", "--", *command, check=check, timeout=timeout)

    def pulumi(self, *arguments: str, check: bool = True, timeout: float = 1500) -> subprocess.CompletedProcess[str]:
        """Run the plain Pulumi command on the lab's stack."""
        return self.run(
            "pulumi", "--non-interactive", *arguments, "--stack", places.STACK, check=check, timeout=timeout
        )

    def output(self, name: str) -> str:
        """One output of the stack."""
        return str(json.loads(self.pulumi("stack", "output", name, "--show-secrets", "--json").stdout))

    def ssh_command(self, machine: str, command: str) -> list[str]:
        """The words that run ``command`` as root on a machine (or on the Proxmox host ``pve1``)."""
        address = places.PROXMOX_ADDRESS if machine == "pve1" else f"10.0.145.{MACHINES[machine]}"
        options = ["BatchMode=yes", "ConnectTimeout=5", "StrictHostKeyChecking=no", "LogLevel=ERROR"]
        words = [word for option in (*options, "UserKnownHostsFile=/dev/null") for word in ("-o", option)]
        return enter(["ssh", "-i", str(places.SSH_KEY), *words, f"root@{address}", command])

    def on(
        self, machine: str, script: str, check: bool = True, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell script as root on a machine (or on the Proxmox host ``pve1``)."""
        return _run(self.ssh_command(machine, "bash -s"), check=check, timeout=timeout, stdin=script)

    def kubectl(self, arguments: str, check: bool = True, timeout: float = 120) -> str:
        """Run kubectl on the first server."""
        return self.on("gl2", f"k3s kubectl {arguments}", check=check, timeout=timeout).stdout

    def sql(
        self, statement: str, address: str = "10.0.145.130", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run SQL as the application, at one of the service addresses."""
        url = urlsplit(self.output("database_url"))
        environment = {
            **os.environ,
            "PGHOST": address,
            "PGUSER": url.username or "",
            "PGPASSWORD": url.password or "",
            "PGDATABASE": url.path.lstrip("/"),
            "PGSSLMODE": "require",
            "PGCONNECT_TIMEOUT": "5",
        }
        return _run(enter(["psql", "-XAtq", "-c", statement]), check=check, timeout=60, environment=environment)


def _run(
    command: Sequence[str],
    *,
    check: bool,
    timeout: float,
    stdin: str | None = None,
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, capture_output=True, text=True, input=stdin, timeout=timeout, env=environment, check=False
    )
    if check and done.returncode:
        pytest.fail(
            f"{' '.join(command)[:200]}\nended with {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        )
    return done


def wait_for(test: Callable[[], Any], seconds: float, what: str) -> Any:
    """Ask ``test`` until it gives something true; fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (found := test()):
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not happen within {seconds:.0f} s")
        time.sleep(0.5)
    return found


@contextmanager
def changed_configuration(**topics: Any) -> Iterator[None]:
    """The stack's configuration with some topics changed; back to what it was at the end."""
    before = places.STACK_FILE.read_text(encoding="utf-8")
    content = yaml.safe_load(before)
    for topic, change in topics.items():
        key = f"school-postgres:{topic}"
        content["config"][key] = change(content["config"][key])
    places.STACK_FILE.write_text(yaml.safe_dump(content, sort_keys=True), encoding="utf-8")
    try:
        yield
    finally:
        places.STACK_FILE.write_text(before, encoding="utf-8")


def planned_changes(lab: Lab) -> dict[str, str]:
    """Name of every resource that a preview would touch, and how."""
    steps = json.loads(lab.pulumi("preview", "--json").stdout)["steps"]
    return {step["urn"].rsplit("::", 1)[1]: step["op"] for step in steps if step["op"] not in ("same", "read")}


def with_memory(machine: str, memory_mib: int) -> Any:
    """A change of ``machines`` that gives one of them another amount of memory."""
    return lambda machines: [{**m, "memoryMiB": memory_mib} if m["name"] == machine else m for m in machines]
