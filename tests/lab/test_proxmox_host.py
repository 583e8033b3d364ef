"""The lab's Proxmox host: its API, its ``/etc/pve`` and its ``pct``, with real containers.

Only the Proxmox host runs here, in a network and with a state of its own: no image, no cluster, half a minute.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lab import places
from lab.builds.cache import Cache
from lab.builds.recipes import template

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="containers need root"),
    pytest.mark.skipif(shutil.which("lxc-start") is None, reason="needs the Debian package lxc"),
]

NAME = "school-lab-pve-test"
STATE = Path("/var/lib") / NAME
RUNTIME = Path("/run") / NAME
CONFIGS = STATE / "pve1" / "pve" / "nodes" / "pve1" / "lxc"
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONPATH": str(places.REPOSITORY),
    "PYTHONUNBUFFERED": "1",
    "SCHOOL_LAB_CACHE": str(places.CACHE),
    "SCHOOL_LAB_STATE": str(STATE),
    "SCHOOL_LAB_RUNTIME": str(RUNTIME),
    "SCHOOL_LAB_NAMESPACE": NAME,
}
TEMPLATE = places.TEMPLATE_NAME
VOLUME = f"local:vztmpl/{TEMPLATE}"
SOURCE = f"http://{places.GATEWAY}:8080/{TEMPLATE}"
CALL = """
import http.client, json, ssl, sys, urllib.parse
method, path, headers, form = json.load(sys.stdin)
body = urllib.parse.urlencode(form)
if method == "GET" and form:
    path, body = f"{path}?{body}", ""
connection = http.client.HTTPSConnection("10.0.145.10", 8006, timeout=60, context=ssl.create_default_context())
headers |= ({"Content-Type": "application/x-www-form-urlencoded"} if body else {})
connection.request(method, f"/api2/json{path}", body, headers)
answer = connection.getresponse()
text = answer.read()
json.dump([answer.status, json.loads(text)["data"] if answer.status < 400 else answer.reason], sys.stdout)
"""
KUBERNETES_LINES = """\
lxc.apparmor.profile: unconfined
lxc.cap.drop:
lxc.cgroup2.devices.allow: a
lxc.mount.auto: proc:rw sys:rw
lxc.mount.entry: /dev/kmsg dev/kmsg none defaults,bind,create=file 0 0
"""


def python(code: str, *, stdin: str = "") -> str:
    """Run Python with the lab's modules and this lab's places; returns what it prints."""
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(
        command, env=ENVIRONMENT, input=stdin, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def enter(*command: str) -> list[str]:
    """A command in this lab's network."""
    return ["nsenter", f"--net=/run/netns/{NAME}", "--", *command]


@dataclass
class Host:
    """The running Proxmox host and what talks to it."""

    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *command: str) -> None:
        """Start a process in the network; its messages go to a log in the state directory."""
        with (STATE / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                enter(*command),
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_gateway(self) -> None:
        """Start the API and wait until it answers."""
        self.start("gateway", sys.executable, "-P", "-m", "lab.proxmox.gateway")
        deadline = time.monotonic() + 30
        while self.api("GET", "/version", check=False)[0] != 200:
            assert self.processes["gateway"].poll() is None, (STATE / "gateway.log").read_text()
            assert time.monotonic() < deadline, (STATE / "gateway.log").read_text()
            time.sleep(0.1)

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End a process."""
        process = self.processes.pop(name)
        process.send_signal(number)
        process.wait(20)

    def api(
        self, method: str, path: str, *, token: str | None = None, login: str = "", check: bool = True, **form: str
    ) -> tuple[int, Any]:
        """One call; returns status and ``data``, or the words of the refusal. A name's ``_`` stands for ``-``."""
        given = (STATE / "secrets" / "proxmox-api-token").read_text().strip() if token is None else token
        headers = (login or f"Authorization: PVEAPIToken={given}").splitlines()
        parameters = {key.replace("_", "-"): value for key, value in form.items()}
        question = json.dumps([method, path, dict(line.split(": ", 1) for line in headers), parameters])
        done = subprocess.run(
            enter(sys.executable, "-I", "-S", "-c", CALL),
            input=question,
            env={**ENVIRONMENT, "SSL_CERT_FILE": str(STATE / "ca" / "ca.crt")},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            assert not check, done.stderr
            return 0, done.stderr
        status, answer = json.loads(done.stdout)
        return status, answer

    def data(self, method: str, path: str, **form: Any) -> Any:
        """The ``data`` of a call that is not refused."""
        status, data = self.api(method, f"/nodes/pve1{path}", **form)
        assert status == 200, data
        return data

    def task(self, method: str, path: str, **form: str) -> str:
        """The exit status of the task that a call starts; its log is kept in ``self.log``."""
        upid = self.data(method, path, **form)
        deadline = time.monotonic() + 90
        while (status := self.data("GET", f"/tasks/{upid}/status"))["status"] != "stopped":
            assert time.monotonic() < deadline, status
            time.sleep(0.05)
        self.log = [line["t"] for line in self.data("GET", f"/tasks/{upid}/log")]
        return str(status["exitstatus"])

    log: list[str] = field(default_factory=list)

    def ssh(self, address: str, script: str, check: bool = True) -> str:
        """Run a script as root on a machine of this lab; waits for its sshd."""
        options = ["BatchMode=yes", "ConnectTimeout=5", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null"]
        words = ["ssh", "-F", "none", "-i", str(STATE / "ssh" / "id_ed25519"), "-o", "LogLevel=ERROR"]
        words += [word for option in options for word in ("-o", option)]
        deadline = time.monotonic() + 20
        while True:
            done = subprocess.run(
                enter(*words, f"root@{address}", "bash -s"), input=script, capture_output=True, text=True, check=False
            )
            if done.returncode != 255 or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done.stdout + ("" if check else done.stderr)

    def pve1(self, script: str, check: bool = True) -> str:
        """Run a script as root on the Proxmox host."""
        return self.ssh(places.PROXMOX_ADDRESS, script, check)

    def create(self, vmid: int, **more: str) -> str:
        """Make a container; returns the exit status."""
        form = {
            "vmid": str(vmid),
            "hostname": f"t{vmid}",
            "ostemplate": VOLUME,
            "rootfs": "local-lvm:4",
            "memory": "256",
            "unprivileged": "0",
            "nameserver": places.GATEWAY,
            "searchdomain": "schule.lan",
            "net0": f"name=eth0,bridge=vmbr0,ip={address(vmid)}/24,gw={places.GATEWAY}",
            "ssh_public_keys": (STATE / "ssh" / "id_ed25519.pub").read_text(),
        }
        return self.task("POST", "/lxc", **{**form, **more})

    def status(self, vmid: int) -> str:
        """``running`` or ``stopped``."""
        return str(self.data("GET", f"/lxc/{vmid}/status/current")["status"])


def address(vmid: int) -> str:
    """The address that a container of these tests has."""
    return f"10.0.145.{vmid - 700}"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """The Proxmox host with the template in its storage."""
    artefact = Cache(places.CACHE).make(template())
    _remove()
    running = Host()
    try:
        python("from lab import keys, network; keys.make_all(); network.create()")
        served = ("-m", "http.server", "8080", "--bind", places.GATEWAY, "--directory", str(artefact))
        running.start("artefacts", sys.executable, *served)
        running.start_gateway()
        private = ("unshare", "--mount", "--uts", "--propagation", "private", "--")
        running.start("host", *private, sys.executable, "-P", "-m", "lab.proxmox.host")
        form = {"url": SOURCE, "filename": TEMPLATE, "content": "vztmpl"}
        form |= {"checksum": (artefact / "sha512").read_text().strip(), "checksum_algorithm": "sha512"}
        assert running.task("POST", "/storage/local/download-url", **form) == "OK"
        yield running
    finally:
        python("from lab import machines; machines.stop_all(); machines.leave_proxmox_host()")
        for name in list(running.processes):
            running.stop(name)
        _remove()


def _remove() -> None:
    python(
        "import shutil\n"
        "from lab import machines, network, places\n"
        "machines.stop_all()\n"
        "for directory in (places.STATE, places.RUNTIME):\n"
        "    machines.unmount_below(directory)\n"
        "    shutil.rmtree(directory) if directory.exists() else None\n"
        "network.remove()\n"
    )


@pytest.fixture(scope="module")
def container(host: Host) -> int:
    """A running container, 801."""
    assert host.create(801, description="made by hand", onboot="1") == "OK"
    assert host.task("POST", "/lxc/801/status/start") == "OK"
    return 801


# ------------------------------------------------------------------ storage


def test_a_wrong_token_is_refused(host: Host) -> None:
    assert host.api("GET", "/nodes/pve1/lxc", token="root@pam!school-lab=no")[0] == 401
    assert host.api("GET", "/nodes/pve1/lxc", token="", login="Cookie: PVEAuthCookie=no")[0] == 401


def test_a_download_with_another_checksum_fails_and_leaves_nothing(host: Host) -> None:
    form = {"url": SOURCE, "filename": "debian-12-other.tar.zst", "content": "vztmpl", "checksum": "0" * 128}
    status = host.task("POST", "/storage/local/download-url", **form, checksum_algorithm="sha512")
    assert status.startswith("checksum mismatch: got '")
    assert [entry["volid"] for entry in host.data("GET", "/storage/local/content")] == [VOLUME]
    assert os.listdir(STATE / "pve1" / "vz" / "template" / "cache") == [TEMPLATE]


def test_a_download_that_is_not_there_fails_with_the_servers_answer(host: Host) -> None:
    form = {"url": f"{SOURCE}.gone.tar.zst", "filename": "debian-12-gone.tar.zst", "content": "vztmpl"}
    assert "404" in host.task("POST", "/storage/local/download-url", **form)
    assert host.api("GET", "/nodes/pve1/query-url-metadata", url=form["url"])[0] == 500


def test_an_existing_template_is_not_overwritten(host: Host) -> None:
    form: dict[str, Any] = {"url": SOURCE, "filename": TEMPLATE, "content": "vztmpl"}
    status, reason = host.api("POST", "/nodes/pve1/storage/local/download-url", **form)
    assert (status, reason) == (500, f"refusing to override existing file '{TEMPLATE}'")


def test_a_download_without_a_url_is_refused_as_proxmox_does(host: Host) -> None:
    refused = host.api(
        "POST", "/nodes/pve1/storage/local/download-url", filename="debian-12-a.tar.zst", content="vztmpl"
    )
    assert refused == (400, "Parameter verification failed.")


def test_the_listed_size_is_that_of_the_file(host: Host) -> None:
    size = (STATE / "pve1" / "vz" / "template" / "cache" / TEMPLATE).stat().st_size
    assert host.data("GET", "/storage/local/content")[0]["size"] == size
    assert host.data("GET", "/query-url-metadata", url=SOURCE)["size"] == size


# ------------------------------------------------------------------ containers


def test_a_container_is_what_its_configuration_says(host: Host, container: int) -> None:
    shown = host.ssh(
        address(container),
        "hostname -f; cat /etc/resolv.conf; cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max;"
        "systemctl is-system-running --wait; ip route | head -1; true",
    )
    assert "t801.schule.lan" in shown
    assert f"nameserver {places.GATEWAY}" in shown
    assert str(256 << 20) in shown
    assert "running" in shown.split()
    assert f"default via {places.GATEWAY}" in shown


def test_two_containers_share_neither_host_keys_nor_machine_id(host: Host, container: int) -> None:
    assert host.create(802) == "OK"
    assert host.task("POST", "/lxc/802/status/start") == "OK"
    identity = "cat /etc/ssh/ssh_host_ed25519_key.pub /etc/machine-id"
    assert (
        set(host.ssh(address(801), identity).split()[1::2]) & set(host.ssh(address(802), identity).split()[1::2])
        == set()
    )
    assert host.task("POST", "/lxc/802/status/stop") == "OK"
    assert host.task("DELETE", "/lxc/802") == "OK"
    assert not (STATE / "containers" / "802").exists()
    assert not (CONFIGS / "802.conf").exists()


def test_a_plain_container_is_confined(host: Host, container: int) -> None:
    shown = host.ssh(
        address(container),
        "ls /dev/kmsg; echo 1 >/proc/sys/vm/overcommit_memory; mknod /k c 1 11 && cat /k",
        check=False,
    )
    assert "cannot access '/dev/kmsg'" in shown
    assert "Read-only file system" in shown
    assert "Operation not permitted" in shown


def test_the_file_is_written_as_proxmox_writes_it(host: Host, container: int) -> None:
    lines = (CONFIGS / "801.conf").read_text().splitlines()
    assert lines[0] == "#made by hand"
    assert lines[1:] == sorted(lines[1:])
    assert "onboot: 1" in lines
    assert not any(line.startswith("unprivileged") for line in lines)
    config = host.data("GET", "/lxc/801/config")
    assert config["description"] == "made by hand\n"
    assert config["memory"] == 256


def test_raw_lines_work_from_the_next_start_and_survive_changes_over_the_api(host: Host, container: int) -> None:
    host.pve1(f"cat >>/etc/pve/lxc/801.conf <<'E'\n{KUBERNETES_LINES}E\npct stop 801; pct start 801")
    shown = host.ssh(
        address(801), "ls /dev/kmsg; cat /proc/sys/vm/swappiness >/proc/sys/vm/swappiness && echo writable"
    )
    assert shown.split() == ["/dev/kmsg", "writable"]
    host.data("PUT", "/lxc/801/config", memory="320", tags="b;a")
    text = (CONFIGS / "801.conf").read_text()
    assert text.endswith(KUBERNETES_LINES.replace("lxc.cap.drop:\n", "lxc.cap.drop: \n"))
    assert "memory: 320" in text
    raw = host.data("GET", "/lxc/801/config")["lxc"]
    assert ["lxc.cap.drop", ""] in raw


def test_an_option_that_root_changes_in_the_file_counts(host: Host, container: int) -> None:
    host.pve1("sed -i 's/^memory: .*/memory: 300/' /etc/pve/lxc/801.conf")
    assert host.data("GET", "/lxc/801/config")["memory"] == 300
    host.data("PUT", "/lxc/801/config", cores="1")
    assert "memory: 300" in (CONFIGS / "801.conf").read_text()


def test_a_change_of_a_file_that_somebody_else_changed_is_refused(host: Host, container: int) -> None:
    digest = host.data("GET", "/lxc/801/config")["digest"]
    host.pve1("sed -i 's/^memory: .*/memory: 301/' /etc/pve/lxc/801.conf")
    status, reason = host.api("PUT", "/nodes/pve1/lxc/801/config", cores="2", digest=digest)
    assert (status, reason) == (500, "detected modified configuration - file changed by other user? Try again.")


def test_a_line_that_lxc_cannot_use_ends_the_start_with_its_reason(host: Host) -> None:
    assert host.create(803) == "OK"
    with (CONFIGS / "803.conf").open("a") as file:
        file.write("lxc.mount.entry: /nonexistent mnt none bind 0 0\n")
    assert host.task("POST", "/lxc/803/status/start") == "startup for container '803' failed"
    assert any("/nonexistent" in line for line in host.log), host.log
    assert host.status(803) == "stopped"
    text = (CONFIGS / "803.conf").read_text()
    (CONFIGS / "803.conf").write_text(text.replace("memory: 256", "memory: much"))
    host.task("POST", "/lxc/803/status/start")
    assert "vm 803 - unable to use the line 'memory: much' of the configuration" in host.log
    assert "memory: 256" in (CONFIGS / "803.conf").read_text()
    assert host.task("DELETE", "/lxc/803") == "OK"


def test_creating_fails_as_a_task_without_the_template_and_at_once_for_a_used_id(host: Host, container: int) -> None:
    missing = host.create(804, ostemplate="local:vztmpl/debian-12-missing_amd64.tar.zst")
    assert missing == "unable to create CT 804 - volume 'local:vztmpl/debian-12-missing_amd64.tar.zst' does not exist"
    assert not (CONFIGS / "804.conf").exists()
    status, reason = host.api("POST", "/nodes/pve1/lxc", vmid="801", ostemplate=VOLUME)
    assert (status, reason) == (500, "CT 801 already exists on node 'pve1'")


def test_what_only_root_may_is_refused_to_a_token(host: Host, container: int) -> None:
    features = host.api(
        "POST", "/nodes/pve1/lxc", vmid="805", ostemplate=VOLUME, unprivileged="0", features="nesting=1"
    )
    assert features[0] == 403
    assert host.api("PUT", "/nodes/pve1/lxc/801/config", dev0="/dev/kmsg,mode=0600")[0] == 403
    assert host.api("PUT", "/nodes/pve1/lxc/801/config", mp0="/srv,mp=/srv")[0] == 403
    assert "does not exist" in host.api("GET", "/nodes/pve1/lxc/805/config")[1]


def test_a_login_with_the_password_does_real_work_too(host: Host, container: int) -> None:
    password = (STATE / "secrets" / "proxmox-root-password").read_text().strip()
    _, ticket = host.api("POST", "/access/ticket", username="root@pam", password=password, login="Accept: */*")
    cookie = f"Cookie: PVEAuthCookie={ticket['ticket']}"
    assert host.api("GET", "/nodes/pve1/lxc/801/config", login=cookie)[1]["hostname"] == "t801"
    assert host.api("POST", "/nodes/pve1/lxc/801/status/stop", login=cookie)[0] == 401
    assert host.status(801) == "running"
    login = f"{cookie}\nCSRFPreventionToken: {ticket['CSRFPreventionToken']}"
    assert host.api("PUT", "/nodes/pve1/lxc/801/config", login=login, description="by password")[0] == 200
    assert (CONFIGS / "801.conf").read_text().startswith("#by password\n")


@pytest.mark.parametrize("path", ["/lxc/801/snapshot", "/lxc/801/clone", "/qemu", "/lxc/801/status/suspend"])
def test_what_the_lab_does_not_do_is_refused_and_not_pretended(host: Host, container: int, path: str) -> None:
    assert host.api("POST", f"/nodes/pve1{path}", vmid="806", snapname="x", newid="806")[0] == 501


def test_power_is_refused_at_once_where_it_makes_no_sense(host: Host, container: int) -> None:
    assert host.api("POST", "/nodes/pve1/lxc/801/status/start") == (500, "CT 801 already running")
    assert host.task("POST", "/lxc/801/status/shutdown", timeout="20") == "OK"
    assert host.api("POST", "/nodes/pve1/lxc/801/status/stop") == (500, "CT 801 not running")
    assert host.task("POST", "/lxc/801/status/start") == "OK"
    before = host.ssh(address(801), "cat /proc/1/stat | cut -d' ' -f22")
    assert host.task("POST", "/lxc/801/status/reboot") == "OK"
    assert host.ssh(address(801), "cat /proc/1/stat | cut -d' ' -f22") != before


def test_a_container_that_powers_itself_off_is_stopped_and_one_that_reboots_itself_runs(
    host: Host, container: int
) -> None:
    host.ssh(address(801), "(sleep 0.2; systemctl reboot) >/dev/null 2>&1 &")
    time.sleep(2)
    assert host.ssh(address(801), "echo back").strip() == "back"
    assert host.status(801) == "running"
    host.ssh(address(801), "(sleep 0.2; systemctl poweroff) >/dev/null 2>&1 &")
    deadline = time.monotonic() + 15
    while host.status(801) != "stopped":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert host.task("POST", "/lxc/801/status/start") == "OK"


def test_pct_does_what_the_api_does(host: Host, container: int) -> None:
    listed = host.pve1("pct list").splitlines()
    assert listed[0].split() == ["VMID", "Status", "Lock", "Name"]
    assert [line.split() for line in listed[1:]] == [["801", "running", "t801"]]
    assert host.pve1("pct status 801") == "status: running\n"
    assert host.pve1("pct exec 801 -- sh -c 'hostname; exit 7'; echo $?").split() == ["t801", "7"]
    assert (
        host.pve1(
            "echo hello >/tmp/$$; pct push 801 /tmp/$$ /root/a; pct pull 801 /root/a /tmp/b.$$; cat /tmp/b.$$; rm /tmp/*$$"
        )
        == "hello\n"
    )
    assert "already running" in host.pve1("pct start 801 || true", check=False)
    assert "nodes/pve1/lxc/899.conf' does not exist" in host.pve1("pct config 899 || true", check=False)


def test_what_root_writes_on_the_proxmox_host_stays_there(host: Host) -> None:
    host.pve1(
        "hostname | grep -qx pve1; touch /etc/school-test /root/school-test; ls /etc/pve/lxc/ /etc/pve/qemu-server"
    )
    assert not Path("/etc/school-test").exists()
    assert not Path("/root/school-test").exists()


# ------------------------------------------------------------------ what lasts


def test_a_killed_api_comes_back_with_the_same_containers(host: Host, container: int) -> None:
    assert host.create(807, onboot="1") == "OK"
    before = {vmid: host.data("GET", f"/lxc/{vmid}/config") for vmid in (801, 807)}
    files = {vmid: (CONFIGS / f"{vmid}.conf").read_text() for vmid in (801, 807)}
    host.stop("gateway", signal.SIGKILL)
    host.start_gateway()
    assert {vmid: host.data("GET", f"/lxc/{vmid}/config") for vmid in (801, 807)} == before
    assert host.status(801) == "running"
    time.sleep(1)
    assert host.status(807) == "stopped", "what was off before comes on only with a boot"
    host.data("PUT", "/lxc/801/config", cores="2")
    host.data("PUT", "/lxc/807/config", cores="2")
    assert (CONFIGS / "807.conf").read_text() == files[807].replace("hostname", "cores: 2\nhostname", 1)
    assert [entry["volid"] for entry in host.data("GET", "/storage/local/content")] == [VOLUME]


def test_a_boot_starts_what_is_to_start_then_in_its_order(host: Host, container: int) -> None:
    host.data("PUT", "/lxc/807/config", startup="order=1")
    assert host.task("POST", "/lxc/801/status/stop") == "OK"
    host.stop("gateway")
    (RUNTIME / "pve1-booted").unlink()
    host.start_gateway()
    deadline = time.monotonic() + 20
    while {host.status(801), host.status(807)} != {"running"}:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    started = {vmid: (STATE / "containers" / str(vmid) / "monitor").read_text().split()[1] for vmid in (801, 807)}
    assert int(started[807]) < int(started[801]), (STATE / "gateway.log").read_text()[-2000:]


def test_no_ended_monitor_stays_behind(host: Host, container: int) -> None:
    for action in ("stop", "start", "stop", "start"):
        assert host.task("POST", f"/lxc/801/status/{action}") == "OK"
    gateway, deadline = host.processes["gateway"].pid, time.monotonic() + 20
    while _zombies_of(gateway):
        assert time.monotonic() < deadline
        time.sleep(0.5)


def _zombies_of(parent: int) -> Sequence[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # ended meanwhile
            if fields[0] == "Z" and int(fields[1]) == parent:
                found.append(entry.name)
    return found
