"""The real Pulumi engine, with the lab's stand-ins as its plugins, on stacks in temporary directories."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lab import places
from lab.builds.cache import Cache
from lab.builds.recipes import all_recipes
from lab.builds.run import Silence, build
from lab.engine.launchers import write_launchers

LIMIT_SECONDS = 60
ERROR_LIMIT = 4000


@dataclass
class Outcome:
    """What one call of the engine's command line did."""

    status: int
    text: str
    seconds: float

    def expect(self) -> Outcome:
        """The outcome itself, if it went well."""
        assert self.status == 0, self.text[-ERROR_LIMIT:]
        return self

    def expect_failure(self) -> Outcome:
        """The outcome itself, if it failed."""
        assert self.status != 0, self.text[-ERROR_LIMIT:]
        return self


@dataclass
class Stack:
    """A project with one program and one stack."""

    directory: Path
    environment: dict[str, str]
    options: dict[str, Any] = field(default_factory=dict)
    """What the program reads with ``option(name)``; stands for the stack's configuration, and is faster to change."""

    def write(self, program: str) -> None:
        """Replace the program; ``option`` and ``pulumi`` are there already."""
        start = "import json, os, pulumi\n\n\ndef option(name, default=None):\n"
        start += "    return json.loads(os.environ['TEST_OPTIONS']).get(name, default)\n\n\n"
        (self.directory / "__main__.py").write_text(start + program)

    def start(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        """Start the engine; its output is one text."""
        environment = self.environment | variables | {"TEST_OPTIONS": json.dumps(self.options)}
        return subprocess.Popen(
            ["pulumi", *words, "--non-interactive", "--color=never"],
            cwd=self.directory,
            env={name: value for name, value in environment.items() if value},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *words: str, **variables: str) -> Outcome:
        """Run the engine to its end."""
        began = time.monotonic()
        process = self.start(*words, **variables)
        try:
            text, _ = process.communicate(timeout=LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            text, _ = process.communicate()
            raise AssertionError(f"the engine took more than {LIMIT_SECONDS} s: {text[-ERROR_LIMIT:]}") from None
        return Outcome(process.returncode, text, time.monotonic() - began)

    def up(self, *words: str, **variables: str) -> Outcome:
        """``pulumi up`` without a preview."""
        return self.run("up", "--yes", "--skip-preview", *words, **variables)

    def resources(self) -> dict[str, dict[str, Any]]:
        """The stored resources, without providers and the stack itself, by name."""
        found = (self.directory / "state").glob(".pulumi/stacks/*/lab.json")
        state = json.loads(next(found).read_text())
        listed = state["checkpoint"]["latest"].get("resources") or []
        return {
            resource["urn"].rsplit("::", 1)[1]: resource
            for resource in listed
            if not resource["type"].startswith("pulumi:")
        }

    def destroy(self) -> Outcome:
        """``pulumi destroy`` without a preview."""
        return self.run("destroy", "--yes", "--skip-preview")


@pytest.fixture(scope="session")
def pulumi_cli() -> Path:
    """The engine's command line: the one on PATH, or else the one the lab builds."""
    found = shutil.which("pulumi")
    if found:
        return Path(found)
    cache, recipe = Cache(places.CACHE), all_recipes()["tools"]
    build([recipe], cache, Silence())
    return cache.path(recipe) / "pulumi"


@pytest.fixture(scope="session")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the stand-ins under the plugins' names."""
    directory = tmp_path_factory.mktemp("plugins")
    write_launchers(directory, Path(sys.prefix) / "bin" / "python")
    return directory


@pytest.fixture
def stack(tmp_path: Path, pulumi_cli: Path, plugins: Path) -> Stack:
    """A new project with an empty stack."""
    directory = tmp_path / "project"
    (directory / "state").mkdir(parents=True)
    (directory / "Pulumi.yaml").write_text(
        f"name: test\nruntime: {{name: python, options: {{virtualenv: {json.dumps(sys.prefix)}}}}}\n"
    )
    environment = dict(os.environ)
    environment.pop("SSH_AUTH_SOCK", None)
    environment |= {
        "PATH": os.pathsep.join([str(plugins), str(pulumi_cli.parent), os.environ["PATH"]]),
        "PULUMI_HOME": str(tmp_path / "home"),
        "PULUMI_BACKEND_URL": f"file://{directory / 'state'}",
        "PULUMI_CONFIG_PASSPHRASE": "test",
        "PULUMI_SKIP_UPDATE_CHECK": "1",
    }
    made = Stack(directory, environment)
    made.run("stack", "init", "lab").expect()
    return made


def free_port(address: str = "127.0.0.1") -> int:
    """A TCP port nobody listens on."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def wait_for_port(address: str, port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until something listens."""
    for _ in range(200):
        assert process.poll() is None, "the server ended at once"
        try:
            socket.create_connection((address, port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"nothing listens on {address}:{port}")


def _private_key() -> tuple[str, str]:
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private.decode(), public.decode()


@dataclass
class SshServer:
    """An SSH server on loopback that accepts one key."""

    port: int
    host_key: str
    private_key: str


@pytest.fixture(scope="session")
def ssh_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    """Debian's sshd with keys of its own; it accepts variables that begin with ``TEST_``."""
    directory = tmp_path_factory.mktemp("sshd")
    host_private, host_public = _private_key()
    user_private, user_public = _private_key()
    (directory / "host_key").write_text(host_private)
    (directory / "host_key").chmod(0o600)
    (directory / "authorized_keys").write_text(user_public + "\n")
    port = free_port()
    lines = [
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {directory / 'host_key'}",
        "PidFile none",
        f"AuthorizedKeysFile {directory / 'authorized_keys'}",
        "StrictModes no",
        "UsePAM no",
        "PermitRootLogin yes",
        "PasswordAuthentication no",
        "AcceptEnv TEST_*",
        "MaxStartups 200",
    ]
    (directory / "sshd_config").write_text("\n".join(lines) + "\n")
    Path("/run/sshd").mkdir(exist_ok=True)
    process = subprocess.Popen(
        ["/usr/sbin/sshd", "-D", "-e", "-f", str(directory / "sshd_config")], stderr=subprocess.DEVNULL
    )
    wait_for_port("127.0.0.1", port, process)
    yield SshServer(port, host_public, user_private)
    process.terminate()
    process.wait()


@dataclass
class FakeProxmox:
    """fakepve as a process of its own, unmodified."""

    port: int
    certificate: Path
    process: subprocess.Popen[bytes]
    password: str = "secret"

    @property
    def endpoint(self) -> str:
        """URL of its API."""
        return f"https://127.0.0.2:{self.port}/"

    def call(self, method: str, path: str, **parameters: str) -> Any:
        """Ask the API directly, as root."""
        context = ssl.create_default_context(cafile=str(self.certificate))

        def send(method: str, path: str, body: dict[str, str], headers: dict[str, str]) -> Any:
            data = urllib.parse.urlencode(body).encode() if method != "GET" else None
            request = urllib.request.Request(f"{self.endpoint}api2/json/{path}", data, headers, method=method)
            with urllib.request.urlopen(request, context=context) as answer:
                return json.load(answer)["data"]

        login = send("POST", "access/ticket", {"username": "root@pam", "password": self.password}, {})
        headers = {"Cookie": f"PVEAuthCookie={login['ticket']}", "CSRFPreventionToken": login["CSRFPreventionToken"]}
        return send(method, path, parameters, headers)

    def containers(self) -> set[int]:
        """Numbers of the containers there are."""
        return {int(entry["vmid"]) for entry in self.call("GET", "nodes/pve1/lxc")}

    def tasks(self, kind: str) -> int:
        """How many tasks of a kind, ``vzreboot``, there have been."""
        return sum(task["type"] == kind for task in self.call("GET", "nodes/pve1/tasks"))

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()


@pytest.fixture
def proxmox(tmp_path: Path) -> Iterator[FakeProxmox]:
    """A Proxmox host without guests."""
    directory = tmp_path / "proxmox"
    directory.mkdir()
    (directory / "guests.json").write_text('{"guests": []}')
    subject = ["-subj", "/CN=pve1", "-addext", "subjectAltName=IP:127.0.0.2", "-days", "2"]
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", *subject]
    make += ["-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(make, cwd=directory, check=True, stderr=subprocess.DEVNULL)
    port = free_port("127.0.0.2")
    command = [str(Path(sys.prefix) / "bin" / "fakepve"), "guests.json", "--time-scale", "0", "--host", "127.0.0.2"]
    command += ["--port", str(port), "--cert", "cert.pem", "--key", "key.pem", "--user", "root@pam"]
    process = subprocess.Popen([*command, "--password", "secret"], cwd=directory, stdout=subprocess.DEVNULL)
    fake = FakeProxmox(port, directory / "cert.pem", process)
    wait_for_port("127.0.0.2", port, process)
    yield fake
    fake.stop()
