"""The lab's services: they come back when they are killed, and ``down`` leaves nothing, whatever state the lab is in.

This is a lab of its own beside the one of the other tests: other state, other network, nothing deployed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import places
from lab.processes import start_time

pytestmark = pytest.mark.lab

SCHOOL = places.REPOSITORY / ".venv" / "bin" / "school"
NAME = "school-lab-test"
STATE = Path("/var/lib") / NAME
RUNTIME = Path("/run") / NAME
STACK_FILE = places.REPOSITORY / "Pulumi.lab-test.yaml"
ENVIRONMENT = {
    **os.environ,
    "SCHOOL_LAB_STATE": str(STATE),
    "SCHOOL_LAB_RUNTIME": str(RUNTIME),
    "SCHOOL_LAB_NAMESPACE": NAME,
    "SCHOOL_LAB_STACK": "lab-test",
    "SCHOOL_LAB_LOOPBACK_PORT": "3243",
    "COLUMNS": "200",
}
SERVICES = (
    "package-proxy",
    "package-proxy-out",
    "package-proxy-in",
    "dns",
    "registry",
    "artefacts",
    "proxmox-api",
    "proxmox-host",
)


def school(*arguments: str, stdin: str = "", timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run ``school lab ...`` on this module's lab."""
    return subprocess.run(
        [str(SCHOOL), "lab", *arguments],
        capture_output=True,
        text=True,
        input=stdin,
        env=ENVIRONMENT,
        cwd="/",
        timeout=timeout,
        check=False,
    )


def up() -> str:
    """Bring the lab up without its stack; returns what it printed."""
    done = school("up", "--no-deploy", timeout=3600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def status() -> dict[str, Any]:
    """What ``status --json`` says."""
    shown: dict[str, Any] = json.loads(school("status", "--json").stdout)
    return shown


def pids() -> dict[str, int]:
    """Pids of all services that run, the supervisor too."""
    return {service["name"]: service["pid"] for service in status()["services"] if service["pid"]}


def until_all_answer(seconds: float = 20) -> None:
    """Wait until every service answers."""
    deadline = time.monotonic() + seconds
    while not all(service["answers"] for service in status()["services"]):
        assert time.monotonic() < deadline, status()
        time.sleep(0.2)


def remains() -> list[str]:
    """What is there of the lab: processes that name its places, mounts, directories, the network."""
    found = [str(path) for path in (STATE, RUNTIME, STACK_FILE, Path("/run/netns") / NAME) if path.exists()]
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if NAME in line]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                told = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            except OSError:
                continue  # ended meanwhile
            if f"SCHOOL_LAB_SERVICE={STATE}".encode() in told or f"{STATE}/".encode() in told:
                found.append(f"process {entry.name}: {told[-200:]!r}")
    return found


@pytest.fixture(scope="module", autouse=True)
def lab() -> Iterator[None]:
    """The lab, up at the first test and gone after the last."""
    up()
    yield
    done = school("down")
    assert done.returncode == 0, done.stderr
    assert remains() == []


def test_every_service_answers_and_a_second_up_leaves_all_of_them_alone() -> None:
    before = pids()
    assert set(before) == {"supervisor", *SERVICES}
    configuration = STACK_FILE.read_bytes()
    assert "all ran already" in up()
    assert pids() == before
    assert STACK_FILE.read_bytes() == configuration


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_that_is_killed_is_started_again(name: str) -> None:
    before = pids()
    os.kill(before[name], signal.SIGKILL)
    until_all_answer()
    after = pids()
    assert after.pop(name) != before.pop(name)
    assert after == before


def test_a_killed_supervisor_leaves_the_services_and_the_next_one_takes_them_over() -> None:
    before = pids()
    os.kill(before["supervisor"], signal.SIGKILL)
    time.sleep(0.5)
    assert school("status", "--json").returncode == 1
    up()
    after = pids()
    assert after.pop("supervisor") != before.pop("supervisor")
    assert after == before


def test_a_service_that_was_started_from_something_else_is_restarted_by_up_and_no_other() -> None:
    before = pids()
    (RUNTIME / "pids" / "registry.made-of").write_text("an earlier configuration")
    assert "started registry\n" in up()
    after = pids()
    assert after.pop("registry") != before.pop("registry")
    assert after == before


def test_a_pid_file_whose_pid_belongs_to_somebody_else_harms_nobody() -> None:
    with subprocess.Popen(["sleep", "60"], env={"PATH": os.environ["PATH"]}) as stranger:
        os.kill(pids()["artefacts"], signal.SIGKILL)
        (RUNTIME / "pids" / "artefacts").write_text(f"{stranger.pid} 1\n")
        until_all_answer()
        assert pids()["artefacts"] != stranger.pid
        assert stranger.poll() is None
        stranger.kill()


def test_secrets_are_readable_by_root_alone() -> None:
    private = [STATE / "tools-path"]
    for directory in ("ca", "secrets", "ssh"):
        assert (STATE / directory).stat().st_mode & 0o077 == 0
        private += [path for path in (STATE / directory).iterdir() if not path.name.endswith(".pub")]
    assert [path.name for path in private if path.stat().st_mode & 0o077] == ["in-stack-file"]


def test_run_passes_exit_code_input_and_directory_on() -> None:
    done = school("run", "--", "sh", "-c", "cat; pwd; exit 7", stdin="through\n")
    assert (done.returncode, done.stdout) == (7, "through\n/\n")
    missing = school("run", "--", "no-such-program")
    assert missing.returncode != 0
    assert "no-such-program" in missing.stderr
    assert "Traceback" not in missing.stderr


def test_nothing_in_the_lab_reaches_the_machine_or_the_world() -> None:
    assert school("run", "--", "ip", "route", "show", "default").stdout == ""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        refused = school("run", "--", "bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{port}")
    assert refused.returncode != 0


def test_the_package_proxy_leads_to_the_machines_debian_sources_and_nowhere_else() -> None:
    host = (STATE / "package-proxy-hosts").read_text().split()[0]
    ask = "exec 3<>/dev/tcp/10.0.145.1/3142; printf 'GET http://%s/ HTTP/1.0\\r\\n\\r\\n' \"$1\" >&3; head -n 1 <&3"
    allowed = school("run", "--", "bash", "-c", ask, "ask", f"{host}/debian").stdout
    assert "403" not in allowed
    assert "HTTP/1" in allowed
    for other in ("127.0.0.1:22", "example.org", f"{host}.example.org", "localhost"):
        assert "403" in school("run", "--", "bash", "-c", ask, "ask", other).stdout, other


def test_the_registry_refuses_to_be_written() -> None:
    ask = "exec 3<>/dev/tcp/10.0.145.1/5000; printf 'POST /v2/x/blobs/uploads/ HTTP/1.0\\r\\n\\r\\n' >&3; head -n 1 <&3"
    assert "405" in school("run", "--", "bash", "-c", ask).stdout


def test_a_machine_that_does_not_exist_is_named_in_a_sentence() -> None:
    done = school("kill", "gl99")
    assert done.returncode == 1
    assert "No machine of the lab is called gl99" in done.stderr
    assert "Traceback" not in done.stderr


def test_down_removes_what_is_left_after_everything_was_killed() -> None:
    lost = pids()
    for pid in lost.values():
        os.kill(pid, signal.SIGKILL)
    (RUNTIME / "pids" / "registry").unlink()
    done = school("down")
    assert done.returncode == 0, done.stderr
    assert remains() == []
    assert all(start_time(pid) is None for pid in lost.values())
    assert "nothing to remove" in school("down").stdout
    assert "The lab is not up" in school("run", "--", "true").stderr
    up()


def test_down_finds_services_that_no_pid_file_names() -> None:
    for path in (RUNTIME / "pids").iterdir():
        path.unlink()
    done = school("down")
    assert done.returncode == 0, done.stderr
    assert remains() == []
    up()


# ------------------------------------------------------------------ machines


def api(method: str, path: str, **form: str) -> Any:
    """One call of the Proxmox interface with the lab's token; waits for the task it starts."""
    code = (
        "import json, os, sys, time, urllib.parse, urllib.request as r\n"
        "method, path, form, token = json.load(sys.stdin)\n"
        "def call(method, path, form):\n"
        "    data = urllib.parse.urlencode(form).encode() if form else None\n"
        "    asked = r.Request(f'https://10.0.145.10:8006/api2/json{path}', data, method=method)\n"
        "    asked.add_header('Authorization', f'PVEAPIToken={token}')\n"
        "    return json.load(r.urlopen(asked))['data']\n"
        "answer = call(method, path, form)\n"
        "while str(answer).startswith('UPID:'):\n"
        "    task = call('GET', f'/nodes/pve1/tasks/{answer}/status', {})\n"
        "    if task['status'] == 'stopped':\n"
        "        answer = task['exitstatus']\n"
        "    time.sleep(0.05)\n"
        "print(json.dumps(answer))\n"
    )
    token = (STATE / "secrets" / "proxmox-api-token").read_text().strip()
    done = school("run", "--", "python", "-c", code, stdin=json.dumps([method, path, form, token]))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def machine() -> str:
    """A running container called gl99, which the Proxmox host starts at boot."""
    template = places.TEMPLATE_NAME
    url = f"{places.ARTEFACT_URL}/templates/{template}"
    got = api("POST", "/nodes/pve1/storage/local/download-url", url=url, filename=template, content="vztmpl")
    assert got == "OK"
    made = api(
        "POST",
        "/nodes/pve1/lxc",
        vmid="199",
        ostemplate=f"local:vztmpl/{template}",
        hostname="gl99",
        rootfs="local-lvm:8",
        memory="256",
        onboot="1",
        net0="name=eth0,bridge=vmbr0,ip=10.0.145.99/24,gw=10.0.145.1",
    )
    assert made == "OK"
    assert api("POST", "/nodes/pve1/lxc/199/status/start") == "OK"
    return "gl99"


def test_kill_is_a_power_cut_that_the_proxmox_interface_sees_and_start_undoes_it(machine: str) -> None:
    shown = {"name": "gl99", "vmid": 199, "address": "10.0.145.99", "running": True}
    assert status()["machines"] == [shown]
    assert school("kill", machine).returncode == 0
    assert api("GET", "/nodes/pve1/lxc/199/status/current")["status"] == "stopped"
    assert status()["machines"] == [{**shown, "running": False}]
    again = school("kill", machine)
    assert (again.returncode, "off already" in again.stderr) == (1, True)
    assert school("start", machine).returncode == 0
    assert api("GET", "/nodes/pve1/lxc/199/status/current")["status"] == "running"


def test_a_shell_on_a_machine_is_one_of_root_in_it(machine: str) -> None:
    done = school("shell", machine, stdin="hostname; id -u; exit 5\n")
    assert (done.returncode, done.stdout.split()) == (5, ["gl99", "0"])
    assert school("shell", "pve1", stdin="pct status 199\n").stdout.strip() == "status: running"


def test_up_switches_on_what_is_off_and_leaves_what_runs(machine: str) -> None:
    assert "switched on" not in up()
    school("kill", machine)
    assert f"Machines switched on: {machine}\n" in up()
    assert status()["machines"][0]["running"]


def test_a_killed_proxmox_interface_finds_its_machines_running_again(machine: str) -> None:
    os.kill(pids()["proxmox-api"], signal.SIGKILL)
    until_all_answer()
    assert api("GET", "/nodes/pve1/lxc/199/status/current")["status"] == "running"


def test_down_ends_a_machine_whose_monitor_and_services_were_killed(machine: str) -> None:
    monitor = int((STATE / "containers" / "199" / "monitor").read_text().split()[0])
    for pid in (*pids().values(), monitor):
        os.kill(pid, signal.SIGKILL)
    done = school("down")
    assert done.returncode == 0, done.stderr
    assert remains() == []
    up()
