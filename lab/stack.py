"""The stack ``lab``: the school's configuration with as few differences as one machine needs.

``Pulumi.lab.yaml`` is written, not kept in git: checksums of what was built, host keys and secrets are this machine's.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lab import places
from lab.builds import Artefacts
from lab.errors import LabError
from lab.network import enter
from lab.processes import run, start_time

NAMESPACE = "school-postgres"
K3S_VERSION = "v1.36.3+k3s1"
POSTGRES_VERSION = "15"
"""The version Debian 12 has; the lab's database image is made of it."""

MEMORY_MIB = {"k3s-server": 1536, "k3s-worker": 1280, "datastore": 512, "api-load-balancer": 256}
"""A third of the school's, measured to be enough without users; the lab fits into 6 GiB."""

ONE_HOST = "The lab has one Proxmox host, this machine, and ends with it."
DATA_MAY_GO = "What is in the lab's database is made up, and thrown away with the lab."
WAIVERS = (
    ("k3s-servers-on-different-hosts", "stack", ONE_HOST),
    ("k3s-machines-across-hosts", "postgres-cluster", ONE_HOST),
    ("api-load-balancers-on-different-hosts", "stack", ONE_HOST),
    ("datastore-apart-from-k3s-servers", "stack", ONE_HOST),
    ("data-protected", "*", DATA_MAY_GO),
    ("database-namespace-protected", "postgres-namespace", DATA_MAY_GO),
)
"""Policies that one machine cannot keep: policy, resource, reason."""

_HEADER = """\
# Written by `school lab up` from Pulumi.school.yaml; changes here are lost. Not in git: keys and checksums are this machine's.
"""


def configuration(
    school: Mapping[str, Any], artefacts: Artefacts, proxmox_host_key: str, today: datetime.date
) -> dict[str, Any]:
    """The lab's configuration: ``school`` (the topics of Pulumi.school.yaml without their prefix) with the differences.

    Its waivers end with the month after ``today``: the next start of the lab writes them anew.
    """
    lab = dict(school)
    lab["network"] = {**school["network"], "gateway": places.GATEWAY, "aptProxy": places.APT_PROXY_URL}
    lab["proxmox"] = {
        **school["proxmox"],
        "endpoint": places.PROXMOX_ENDPOINT,
        "hosts": [{"name": places.PROXMOX_NODE, "address": places.PROXMOX_ADDRESS, "sshHostKey": proxmox_host_key}],
    }
    lab["machines"] = [
        {
            **machine,
            "proxmoxHost": places.PROXMOX_NODE,
            "memoryMiB": max(MEMORY_MIB.get(role, 0) for role in machine["roles"]),
            "diskGiB": 8,
        }
        for machine in school["machines"]
    ]
    lab["template"] = {
        "url": f"{places.ARTEFACT_URL}/templates/{places.TEMPLATE_NAME}",
        "sha512": artefacts.template_sha512,
    }
    lab["kubernetes"] = {
        **school["kubernetes"],
        "version": K3S_VERSION,
        "binaryUrl": f"{places.ARTEFACT_URL}/k3s/k3s",
        "binarySha256": artefacts.k3s_sha256.strip(),
        "registryMirrors": {"*": [places.REGISTRY_URL]},
        "helmRepository": f"{places.ARTEFACT_URL}/charts/",
    }
    lab["postgres"] = {
        **school["postgres"],
        "version": POSTGRES_VERSION,
        "storage": {**school["postgres"]["storage"], "sizeGiB": 1},
        "resources": {"cpuRequestMillicores": 50, "memoryRequestMiB": 128, "memoryLimitMiB": 512},
    }
    lab["protectData"] = False
    until = str(end_of_next_month(today))
    lab["policyWaivers"] = [
        {"policy": policy, "resource": resource, "reason": reason, "until": until}
        for policy, resource, reason in WAIVERS
    ]
    return lab


def end_of_next_month(day: datetime.date) -> datetime.date:
    """Last day of the month after a day's."""
    return (day.replace(day=1) + datetime.timedelta(days=62)).replace(day=1) - datetime.timedelta(days=1)


def prepare(artefacts: Artefacts, environment: Mapping[str, str]) -> None:
    """Write Pulumi.lab.yaml, make the stack when it is missing, and set its secrets.

    A second call in the same month leaves the file byte for byte as it is. Raises :class:`LabError` when a Pulumi command fails.
    """
    school = yaml.safe_load(places.SCHOOL_STACK_FILE.read_text(encoding="utf-8"))["config"]
    topics = {key.removeprefix(f"{NAMESPACE}:"): value for key, value in school.items()}
    host_key = " ".join(places.PROXMOX_HOST_KEY.with_suffix(".pub").read_text(encoding="utf-8").split()[:2])
    wanted = {
        f"{NAMESPACE}:{key}": value
        for key, value in configuration(topics, artefacts, host_key, datetime.date.today()).items()
    }
    secrets = {
        f"{NAMESPACE}:proxmoxApiToken": places.API_TOKEN.read_text(encoding="utf-8").strip(),
        f"{NAMESPACE}:sshPrivateKey": places.SSH_KEY.read_text(encoding="utf-8"),
    }
    places.PULUMI_BACKEND.mkdir(parents=True, exist_ok=True)
    places.PULUMI_HOME.mkdir(parents=True, exist_ok=True)

    # Encrypted values can be kept as long as they are those of this lab: same passphrase, same secrets.
    digest = hashlib.sha256(
        "\0".join([places.PASSPHRASE.read_text(encoding="utf-8"), *secrets.values()]).encode()
    ).hexdigest()
    mark = places.STATE / "secrets" / "in-stack-file"
    kept: dict[str, Any] = {}
    if places.STACK_FILE.exists() and mark.exists() and mark.read_text(encoding="utf-8") == digest:
        kept = yaml.safe_load(places.STACK_FILE.read_text(encoding="utf-8")) or {}
    encrypted = {key: value for key, value in kept.get("config", {}).items() if key in secrets}
    complete = set(encrypted) == set(secrets) and "encryptionsalt" in kept
    content: dict[str, Any] = {"encryptionsalt": kept["encryptionsalt"]} if complete else {}
    content["config"] = {**wanted, **(encrypted if complete else {})}
    text = _HEADER + yaml.safe_dump(content, sort_keys=True, allow_unicode=True, width=200)
    if not places.STACK_FILE.exists() or places.STACK_FILE.read_text(encoding="utf-8") != text:
        places.STACK_FILE.write_text(text, encoding="utf-8")

    if not _stack_exists():
        _pulumi(["stack", "init", places.STACK, "--secrets-provider", "passphrase"], environment)
    if not complete:
        for key, value in secrets.items():
            _pulumi(["config", "set", "--stack", places.STACK, "--secret", key], environment, value)
        mark.write_text(digest, encoding="utf-8")
        # Pulumi writes the file its own way; ours is the one that a second run must find unchanged.
        content = yaml.safe_load(places.STACK_FILE.read_text(encoding="utf-8"))
        encrypted = {key: value for key, value in content["config"].items() if key in secrets}
        final = {"encryptionsalt": content["encryptionsalt"], "config": {**wanted, **encrypted}}
        text = _HEADER + yaml.safe_dump(final, sort_keys=True, allow_unicode=True, width=200)
        places.STACK_FILE.write_text(text, encoding="utf-8")


def remove_stale_locks() -> list[int]:
    """Remove the locks of Pulumi runs that were killed; returns their pids. A lock of a run that goes on is left alone.

    Pulumi would refuse every further run until somebody types ``pulumi cancel``.
    """
    removed = []
    for lock in places.PULUMI_BACKEND.glob(f".pulumi/locks/**/{places.STACK}/*.json"):
        pid = int(json.loads(lock.read_text(encoding="utf-8"))["pid"])
        if not _is_pulumi(pid):
            lock.unlink()
            removed.append(pid)
    return removed


def _is_pulumi(pid: int) -> bool:
    try:
        return start_time(pid) is not None and "pulumi" in Path(f"/proc/{pid}/comm").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False  # ended between the two looks


def _stack_exists() -> bool:
    return (places.PULUMI_BACKEND / ".pulumi" / "stacks" / NAMESPACE / f"{places.STACK}.json").exists()


def _pulumi(arguments: list[str], environment: Mapping[str, str], secret: str | None = None) -> None:
    command = enter(["pulumi", "--cwd", str(places.REPOSITORY), "--non-interactive", *arguments])
    try:
        run(command, input_text=secret, env=environment, timeout_seconds=120)
    except LabError as error:
        raise LabError(f"The stack {places.STACK} could not be set up: {error}") from error
