"""As many Proxmox hosts as a school has: what docs/first-day.md says to waive is what is needed, and it is enough."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from policy import stack_file
from policy.catalogue import POLICIES
from settings import NAMESPACE
from tests.conftest import Program
from tests.policy.judging import Judge, Planned, Verdict, planned
from tests.unit.recording import ROOT

pytestmark = pytest.mark.unit

SECTION = re.compile(r"^### With one or two Proxmox hosts$(.*?)^##", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```yaml$(.*?)^```$", re.MULTILINE | re.DOTALL)
WAIVERS = f"{NAMESPACE}:policyWaivers"

ONE_HOST = dict.fromkeys(("gl2", "gl3", "gl6", "gl8", "gl9", "gl10"), "pve1")
TWO_HOSTS = {"gl2": "pve1", "gl3": "pve2", "gl9": "pve1", "gl10": "pve2"}

Change = Callable[[dict[str, Any]], None]
Build = Callable[[Change], Verdict]


def waivers_of_the_page() -> list[list[dict[str, str]]]:
    """The waivers for one host and for two, as somebody copies them out of the page."""
    (section,) = SECTION.findall((ROOT / "docs" / "first-day.md").read_text(encoding="utf-8"))
    return [yaml.safe_load(block)[WAIVERS] for block in BLOCK.findall(section)]


def on_hosts(placed: Mapping[str, str]) -> Change:
    """The school has these Proxmox hosts only."""

    def change(topics: dict[str, Any]) -> None:
        hosts = topics["proxmox"]["hosts"]
        topics["proxmox"]["hosts"] = [host for host in hosts if host["name"] in placed.values()]
        topics["machines"] = [{**machine, "proxmoxHost": placed[machine["name"]]} for machine in topics["machines"]]

    return change


@pytest.fixture
def build(run: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Build]:
    """Runs the program with a changed configuration and judges its plan, on a day on which the page's waivers hold."""
    last_days = [waiver["until"] for waivers in waivers_of_the_page() for waiver in waivers]
    monkeypatch.setattr(stack_file, "today", lambda: datetime.date.fromisoformat(min(last_days)))
    monkeypatch.setattr(stack_file, "PROJECT", tmp_path)

    def start(change: Change) -> Verdict:
        written: dict[str, Any] = {}

        def remember(topics: dict[str, Any]) -> None:
            change(topics)
            written.update({f"{NAMESPACE}:{key}": value for key, value in topics.items()})

        plan: list[Planned] = planned(run(remember))
        (tmp_path / "Pulumi.school.yaml").write_text(yaml.safe_dump({"config": written}), encoding="utf-8")
        stack_file.of_stack.cache_clear()
        return Judge(*POLICIES).of_plan(plan)

    yield start
    stack_file.of_stack.cache_clear()


@pytest.mark.parametrize(
    ("position", "placed"),
    [
        (0, ONE_HOST),
        (1, {**TWO_HOSTS, "gl6": "pve1", "gl8": "pve2"}),
        (1, {**TWO_HOSTS, "gl6": "pve2", "gl8": "pve2"}),
    ],
    ids=["one host", "two hosts", "two hosts, another way"],
)
def test_the_page_waives_what_few_hosts_cannot_keep(build: Build, position: int, placed: Mapping[str, str]) -> None:
    waivers = waivers_of_the_page()[position]
    refused = build(on_hosts(placed))
    assert refused.mandatory == {waiver["policy"] for waiver in waivers}

    def waived(topics: dict[str, Any]) -> None:
        on_hosts(placed)(topics)
        topics["policyWaivers"] = waivers

    verdict = build(waived)
    assert {name: verdict.violations[name] for name in verdict.mandatory} == {}
    shown = verdict.violations["waivers-in-force"]
    assert len(shown) == len(waivers)
    assert [sentence for sentence in shown if "Nothing in this plan needs it." in sentence] == []


def test_the_page_has_waivers_for_one_host_and_for_two() -> None:
    assert [len(waivers) for waivers in waivers_of_the_page()] == [4, 2]


def with_machine(topics: dict[str, Any], like: str, name: str, number: int, host: str) -> None:
    """There is one more machine."""
    (original,) = (machine for machine in topics["machines"] if machine["name"] == like)
    more = {"name": name, "address": f"10.0.145.{number}", "vmId": number, "proxmoxHost": host}
    topics["machines"].append({**original, **more})


def two_more_workers(topics: dict[str, Any]) -> None:
    """Five members on five machines of three Proxmox hosts."""
    with_machine(topics, "gl6", "gl11", 117, "pve1")
    with_machine(topics, "gl6", "gl12", 118, "pve2")
    topics["postgres"]["instances"] = 5


def a_third_server(topics: dict[str, Any]) -> None:
    """A server in the place of the worker, on the host of the datastore."""
    (worker,) = (machine for machine in topics["machines"] if machine["roles"] == ["k3s-worker"])
    worker["roles"] = ["k3s-server"]


def a_worker_on_a_fourth_host(topics: dict[str, Any]) -> None:
    """A host without K3s machines gets one."""
    hosts = topics["proxmox"]["hosts"]
    key = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    hosts.append({"name": "pve4", "address": "10.0.145.13", "sshHostKey": key})
    with_machine(topics, "gl6", "gl11", 117, "pve4")


@pytest.mark.parametrize("grown", [two_more_workers, a_third_server, a_worker_on_a_fourth_host])
def test_the_documented_ways_to_grow_break_no_policy(build: Build, grown: Change) -> None:
    verdict = build(grown)
    assert {name: verdict.violations[name] for name in verdict.mandatory} == {}


def test_one_more_worker_beside_another_k3s_machine_is_refused(build: Build) -> None:
    verdict = build(lambda topics: with_machine(topics, "gl6", "gl11", 117, "pve1"))
    assert verdict.mandatory == {"k3s-machines-across-hosts"}
