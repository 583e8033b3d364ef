"""What the lab works out without being up: timings, package lists, pid files, listeners."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from lab import packages, timings
from lab.processes import recall, remember
from lab.services import all_services, listens

pytestmark = pytest.mark.unit

URN = "urn:pulumi:lab::school-postgres::"


def event(seconds: int, kind: str, op: str, path: str, **more: object) -> str:
    """One line of the engine's event log."""
    return json.dumps({"timestamp": seconds, kind: {"metadata": {"urn": URN + path, "op": op}, **more}}) + "\n"


NODE = "school:index:ProxmoxLxcNode$proxmoxve:index/containerLegacy:ContainerLegacy::gl2-container"
OPERATOR = "school:index:PostgresCluster$kubernetes:helm.sh/v3:Release::postgres-operator-chart"


@pytest.mark.parametrize(
    ("path", "phase"),
    [
        (NODE, "machines"),
        (OPERATOR, "operator"),
        ("school:index:PostgresCluster$kubernetes:core/v1:Namespace::postgres-namespace", "database"),
        ("school:index:CertificateAuthority$school:index:Certificate$command:remote:Command::x", "datastore"),
        ("school:index:FileShare$command:remote:Command::backup-share-samba", "file share"),
        ("pulumi:providers:kubernetes::kubernetes", None),
        ("pulumi:pulumi:Stack::school-postgres-lab", None),
    ],
)
def test_a_resource_belongs_to_the_part_of_its_component(path: str, phase: str | None) -> None:
    assert timings.phase_of(URN + path) == phase


def test_a_part_lasts_from_its_first_change_to_its_last_and_previews_do_not_count() -> None:
    log = [
        event(100, "resourcePreEvent", "create", NODE, planning=True),
        event(110, "resourcePreEvent", "create", NODE),
        event(111, "resourcePreEvent", "create", OPERATOR),
        event(112, "resourcePreEvent", "same", NODE.replace("gl2", "gl3")),
        event(130, "resOutputsEvent", "create", NODE),
        event(150, "resOpFailedEvent", "create", OPERATOR),
        '{"timestamp": 160, "cut o',
    ]
    assert timings.phases(log) == {"machines": timings.Span(10, 30), "operator": timings.Span(11, 50)}
    assert list(timings.phases(log)) == ["machines", "operator"]
    assert timings.phases([event(1, "resourcePreEvent", "same", NODE)]) == {}


def test_the_package_list_has_names_and_remarks() -> None:
    assert packages.wanted("# to build:\nzstd\n\n lxc # containers\n") == ["zstd", "lxc"]


def test_a_package_nobody_has_is_missing_and_dpkg_is_not() -> None:
    assert packages.missing(["dpkg", "no-such-package-anywhere"]) == ["no-such-package-anywhere"]


def test_the_policy_against_service_starts_is_gone_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "POLICY", tmp_path / "policy-rc.d")
    codes = []

    def interrupted() -> None:
        with packages.no_service_starts():
            codes.append(subprocess.run([str(packages.POLICY)], check=False).returncode)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert codes == [101]
    assert not packages.POLICY.exists()


def test_a_policy_of_the_machines_own_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "POLICY", tmp_path / "policy-rc.d")
    packages.POLICY.write_text("#!/bin/sh\nexit 101\n")
    with packages.no_service_starts():
        assert packages.POLICY.read_text() == "#!/bin/sh\nexit 101\n"
    assert packages.POLICY.exists()
    assert not packages.remove_leftover_policy()


def test_the_policy_of_a_killed_installation_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "POLICY", tmp_path / "policy-rc.d")
    packages.POLICY.write_text(packages.POLICY_TEXT)
    assert packages.remove_leftover_policy()
    assert not packages.POLICY.exists()


@pytest.mark.parametrize("text", ["", "12", "12 x\n", "{pid} {later}\n"])
def test_a_pid_file_that_names_no_process_of_ours_is_nobody(tmp_path: Path, text: str) -> None:
    path = tmp_path / "service"
    mine = remember(path, os.getpid())
    assert mine is not None
    assert recall(path) == mine
    path.write_text(text.format(pid=mine.pid, later=mine.started + 1))
    assert recall(path) is None


def test_a_listener_is_read_from_the_kernels_table() -> None:
    table = (
        "  sl  local_address rem_address   st\n"
        "   0: 0191000A:1388 00000000:0000 0A 00000000:00000000\n"
        "   1: 0A91000A:0016 0191000A:C001 01 00000000:00000000\n"
        "   2: 00000000:1F90 00000000:0000 0A 00000000:00000000\n"
    )
    assert listens(table, ("10.0.145.1", 5000))
    assert listens(table, ("10.0.145.1", 8080)), "a listener on every address"
    assert not listens(table, ("10.0.145.10", 22)), "a connection is no listener"
    assert not listens(table, ("10.0.145.10", 5000))


def test_services_are_told_apart_by_name_and_each_can_be_asked_whether_it_answers() -> None:
    services = all_services()
    assert len({service.name for service in services}) == len(services)
    assert all(service.address or service.socket for service in services)
