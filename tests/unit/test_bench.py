"""The configurations that `school bench` generates, and the table it prints."""

from __future__ import annotations

import io
import json
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

import settings
from operations import bench
from tests.unit.recording import ROOT

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def school() -> dict[str, Any]:
    """The topics of the school's stack file as they stand."""
    config = yaml.safe_load((ROOT / "Pulumi.school.yaml").read_text(encoding="utf-8"))["config"]
    return {key.removeprefix("school-postgres:"): value for key, value in config.items()}


@pytest.mark.parametrize("size", [5, 6, 7, 40, 400, 1000])
def test_every_size_passes_all_rules_of_the_configuration(school: dict[str, Any], size: int) -> None:
    loaded = settings.load(bench.configuration(school, size))

    assert len(loaded.machines) == size
    assert sum(machine.runs_k3s for machine in loaded.machines) >= loaded.postgres.instances


def test_the_configuration_of_the_school_is_not_changed(school: dict[str, Any]) -> None:
    before = json.dumps(school)

    bench.configuration(school, 40)

    assert json.dumps(school) == before


def test_the_size_of_the_school_keeps_its_machines(school: dict[str, Any]) -> None:
    assert bench.configuration(school, len(school["machines"]))["machines"] == school["machines"]


def test_further_machines_are_workers_at_addresses_of_their_own_on_all_hosts(school: dict[str, Any]) -> None:
    topics = bench.configuration(school, 400)
    further = topics["machines"][len(school["machines"]) :]
    network = IPv4Network(topics["network"]["cidr"])

    assert all(machine["roles"] == ["k3s-worker"] for machine in further)
    assert all(IPv4Address(machine["address"]) in network for machine in further)
    assert len({machine["address"] for machine in topics["machines"]}) == 400
    assert {machine["proxmoxHost"] for machine in further} == {host["name"] for host in topics["proxmox"]["hosts"]}


def test_fewer_machines_than_the_program_accepts_are_refused(school: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least 5 machines, not 4"):
        bench.configuration(school, 4)


def test_fewer_than_five_really_are_too_few(school: dict[str, Any]) -> None:
    topics = bench.configuration(school, 5)
    topics["machines"] = [machine for machine in topics["machines"] if machine["roles"] != ["k3s-worker"]]

    with pytest.raises(settings.SettingsError):
        settings.load(topics)


def test_registered_resources_are_counted_once_without_stack_and_providers() -> None:
    def event(type_: str, name: str, custom: bool) -> str:
        metadata = {"urn": f"urn:pulumi:s::p::{type_}::{name}", "type": type_, "new": {"custom": custom}}
        return json.dumps({"resourcePreEvent": {"metadata": metadata}}) + "\n"

    lines = [
        json.dumps({"preludeEvent": {}}) + "\n",
        event("pulumi:pulumi:Stack", "s", False),
        event("pulumi:providers:random", "default", True),
        event("school:index:ProxmoxHost", "pve1", False),
        event("command:remote:Command", "one", True),
        event("command:remote:Command", "one", True),
        event("command:remote:Command", "two", True),
    ]

    assert bench.count_registered(lines) == (1, 2)


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [(12.34, "s", "12.3 s"), (1.234, "x", "1.23 x"), (138.2, "MiB", "138 MiB"), (None, "", "-")],
)
def test_a_figure_is_shown_with_its_unit(value: float | None, unit: str, shown: str) -> None:
    assert bench.Figure(group="g", name="n", value=value, unit=unit).shown() == shown


def test_the_table_has_every_figure_with_its_group() -> None:
    figures = [
        bench.Figure(group="first", name="preview", value=2.5, unit="s", note="median of 3"),
        bench.Figure(group="first", name="memory", value=100, unit="MiB"),
        bench.Figure(group="second", name="the lab's stack", note=bench.NOT_UP),
    ]
    console = Console(width=140, record=True, file=io.StringIO())

    console.print(bench.Report(machine={}, figures=figures).table())
    text = console.export_text()

    assert text.count("first") == 1
    for expected in ("preview", "2.50 s", "median of 3", "100 MiB", "second", "the lab is not up"):
        assert expected in text


def test_the_heading_says_what_was_measured_on() -> None:
    facts = {"cores": 2, "memory_gib": 7.5, "load": 0.3, "tools": "all Pulumi tools are this machine's own"}

    heading = bench.Report(machine=facts, figures=()).heading()

    assert heading == "2 cores, 7.5 GiB of memory, load 0.3; all Pulumi tools are this machine's own"


def test_the_report_for_programs_holds_the_same_figures() -> None:
    figure = bench.Figure(group="g", name="n", value=1.5, unit="s", note="one run")

    shown = json.loads(json.dumps(bench.Report(machine={"cores": 2}, figures=[figure]).as_dict()))

    assert shown == {
        "machine": {"cores": 2},
        "figures": [{"group": "g", "name": "n", "value": 1.5, "unit": "s", "note": "one run"}],
    }


def test_without_a_lab_its_rows_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "lab_is_up", lambda: False)
    shop = bench.Workshop(Path("/nowhere"), "")

    rows = [*bench.repeated_up(shop, lambda text: None), *bench.lab_memory()]

    assert [row.note for row in rows] == ["the lab is not up"] * 2
    assert all(row.value is None for row in rows)


@pytest.mark.parametrize(
    ("folder", "usage", "key"),
    [("memory", "memory.usage_in_bytes", "total_inactive_file"), (".", "memory.current", "inactive_file")],
)
def test_memory_of_a_container_is_read_from_either_version_of_control_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, usage: str, key: str
) -> None:
    group = tmp_path / folder / "lxc.payload.110-1"
    group.mkdir(parents=True)
    (group / usage).write_text(f"{3 * 2**30}\n")
    (group / "memory.stat").write_text(f"cache 5\n{key} {2**30}\n")
    monkeypatch.setattr(bench, "_control_groups", lambda pid: "4:memory:/lxc.monitor.110-1\n0::/lxc.monitor.110-1\n")

    assert bench.container_memory(1, tmp_path) == (2.0, 1.0)


def test_a_container_without_a_control_group_has_no_figure(tmp_path: Path) -> None:
    assert bench.container_memory(1, tmp_path) is None


def test_the_deployment_is_the_run_that_made_most(tmp_path: Path) -> None:
    folder = tmp_path / ".pulumi" / "history" / "school-postgres" / "lab"
    folder.mkdir(parents=True)
    runs = [("update", 100, 270, "succeeded", {"create": 94}), ("update", 300, 305, "succeeded", {"same": 94})]
    runs += [("update", 400, 401, "failed", {"create": 95}), ("destroy", 500, 508, "succeeded", {"delete": 94})]
    for number, (kind, begun, ended, result, changes) in enumerate(runs):
        record = {"kind": kind, "startTime": begun, "endTime": ended, "result": result, "resourceChanges": changes}
        (folder / f"lab-{number}.history.json").write_text(json.dumps(record))

    (figure,) = bench._whole_deployment(tmp_path)

    assert (figure.value, figure.unit) == (170.0, "s")
    assert "94 resources" in figure.note


def test_without_a_deployment_its_row_says_so(tmp_path: Path) -> None:
    (figure,) = bench._whole_deployment(tmp_path)

    assert figure.value is None
    assert figure.note == "no deployment of the lab is recorded"
