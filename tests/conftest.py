"""The program, run once for each configuration that tests look at."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tests.unit.recording import API_TOKEN, ROOT, RecordingMonitor, run_program, stack_configuration

Program = Callable[..., RecordingMonitor]


@pytest.fixture(scope="session")
def ssh_private_key() -> str:
    """The key that logs in as root everywhere."""
    key = Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()


@pytest.fixture(scope="session")
def topics() -> dict[str, Any]:
    """The school's configuration with host keys that somebody could have, ready to be copied and changed."""
    config = yaml.safe_load((ROOT / "Pulumi.school.yaml").read_text(encoding="utf-8"))["config"]
    topics = {key.removeprefix("school-postgres:"): value for key, value in config.items()}
    for host in topics["proxmox"]["hosts"]:
        key = Ed25519PrivateKey.generate().public_key()
        host["sshHostKey"] = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return topics


@pytest.fixture(scope="session")
def run(topics: dict[str, Any], ssh_private_key: str) -> Program:
    """Runs the program; ``change`` gets a copy of all topics and may change it."""

    def start(change: Callable[[dict[str, Any]], None] = lambda topics: None, *, preview: bool = False) -> Any:
        changed = copy.deepcopy(topics)
        change(changed)
        changed |= {"sshPrivateKey": ssh_private_key, "proxmoxApiToken": API_TOKEN}
        return run_program(stack_configuration(ROOT / "Pulumi.school.yaml", **changed), preview=preview)

    return start


@pytest.fixture(scope="session")
def school(run: Program) -> RecordingMonitor:
    """The school's program as it stands."""
    return run()


@pytest.fixture(scope="session")
def first_preview(run: Program) -> RecordingMonitor:
    """The first preview: nothing exists, so no script has printed anything."""
    return run(preview=True)


@pytest.fixture(scope="session")
def unprotected(run: Program) -> RecordingMonitor:
    """The program of a stack whose data may be deleted, such as the lab."""
    return run(lambda topics: topics.update(protectData=False))


@pytest.fixture(scope="session")
def more_memory(run: Program) -> RecordingMonitor:
    """One machine gets more memory."""
    return run(lambda topics: topics["machines"][2].update(memoryMiB=6144))


@pytest.fixture(scope="session")
def one_more_worker(run: Program) -> RecordingMonitor:
    """One more worker is listed."""

    def add(topics: dict[str, Any]) -> None:
        worker = next(machine for machine in topics["machines"] if machine["roles"] == ["k3s-worker"])
        topics["machines"].append({**worker, "name": "gl11", "address": "10.0.145.117", "vmId": 117})

    return run(add)
