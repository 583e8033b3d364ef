"""Host scripts that need no container, really run: with an /etc and a ``pct`` of their own, in a mount namespace."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from components.proxmox_lxc_node import KUBERNETES_LXC_LINES
from components.remote import compose_script

pytestmark = [
    pytest.mark.hosts,
    pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace needs root"),
]

CONTAINER = """\
#gl2%3A k3s-server. Made by school-postgres; change it there.
arch: amd64
cores: 2
hostname: gl2
memory: 4096
net0: name=eth0,bridge=vmbr0,ip=10.0.145.110/24
tags: k3s-server;school-postgres-school
unprivileged: 0
"""
SNAPSHOT = """
[before-exam]
#a snapshot%3A yes
arch: amd64
hostname: gl2
lxc.cap.drop: sys_admin
snaptime: 1763700000
"""

PCT = """\
#!/bin/sh
folder={folder}
echo "$*" >>"$folder/pct.log"
case $1 in
    status) echo "status: $(cat "$folder/pct.state")" ;;
    shutdown) echo stopped >"$folder/pct.state" ;;
    start) echo running >"$folder/pct.state" ;;
    *) exit 2 ;;
esac
"""

ENTER = """\
mount --bind "$1/etc" /etc
mount --bind "$1/bin" /usr/local/sbin
exec bash -s -- pve1 "$2" "$3"
"""


@dataclass(frozen=True)
class ProxmoxStandIn:
    """A folder that becomes /etc of a script, with the ``pct`` that it finds."""

    folder: Path

    @property
    def etc(self) -> Path:
        return self.folder / "etc"

    def configuration(self, vm_id: int = 110) -> Path:
        return self.etc / "pve" / "lxc" / f"{vm_id}.conf"

    def set_state(self, state: str) -> None:
        (self.folder / "pct.state").write_text(f"{state}\n")

    @property
    def state(self) -> str:
        return (self.folder / "pct.state").read_text().strip()

    def calls(self) -> list[str]:
        """What ``pct`` was asked to do since the last look, questions left out."""
        log = self.folder / "pct.log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [line for line in lines if not line.startswith("status")]

    def start(self, script: str, variables: Mapping[str, str], operation: str = "apply") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [
                *("unshare", "--mount", "--propagation", "private", "sh", "-euc", ENTER, "sh"),
                *(str(self.folder), script.removesuffix(".sh"), operation),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        process.stdin.write(compose_script(script, variables))
        process.stdin.close()
        process.stdin = None
        return process

    def run(self, script: str, variables: Mapping[str, str], operation: str = "apply") -> str:
        """Run a script that must succeed; returns what it printed."""
        process = self.start(script, variables, operation)
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
        return stdout

    def refused(self, script: str, variables: Mapping[str, str]) -> str:
        """Run a script that must fail; returns what it said."""
        process = self.start(script, variables)
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 1, stderr
        assert stdout == ""
        return stderr


@pytest.fixture
def proxmox(tmp_path: Path) -> ProxmoxStandIn:
    etc = tmp_path / "etc"
    (etc / "pve" / "lxc").mkdir(parents=True)
    (etc / "pve" / "qemu-server").mkdir()
    for name in ("passwd", "group", "nsswitch.conf", "ld.so.cache"):
        shutil.copy2(f"/etc/{name}", etc / name)
    for name in ("alternatives", "ssl", "dpkg"):
        shutil.copytree(f"/etc/{name}", etc / name, symlinks=True)
    pct = tmp_path / "bin" / "pct"
    pct.parent.mkdir()
    pct.write_text(PCT.format(folder=tmp_path))
    pct.chmod(0o755)
    stand_in = ProxmoxStandIn(tmp_path)
    stand_in.set_state("running")
    return stand_in


# --- hosts-file.sh


def test_the_hosts_file_gets_one_block_and_keeps_the_rest(proxmox: ProxmoxStandIn) -> None:
    hosts = proxmox.etc / "hosts"
    rest = "127.0.0.1 localhost\n# --- BEGIN PVE ---\n10.0.145.110 gl2.schule.lan gl2\n# --- END PVE ---\n"
    hosts.write_text(rest)
    block = "# --- BEGIN school-postgres ---\n{}\n# --- END school-postgres ---\n"
    proxmox.run("hosts-file.sh", {"entries": "10.0.145.110 gl2\n10.0.145.111 gl3"})
    assert hosts.read_text() == rest + block.format("10.0.145.110 gl2\n10.0.145.111 gl3")
    assert hosts.stat().st_mode & 0o777 == 0o644
    proxmox.run("hosts-file.sh", {"entries": "10.0.145.112 gl6"})
    assert hosts.read_text() == rest + block.format("10.0.145.112 gl6")


def test_the_same_names_again_leave_the_hosts_file_alone(proxmox: ProxmoxStandIn) -> None:
    hosts = proxmox.etc / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    proxmox.run("hosts-file.sh", {"entries": "10.0.145.110 gl2"})
    before = hosts.stat()
    proxmox.run("hosts-file.sh", {"entries": "10.0.145.110 gl2"})
    assert (hosts.stat().st_ino, hosts.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


# --- raw-lxc-lines.sh

LINES = {"vm_id": "110", "lines": KUBERNETES_LXC_LINES}


@pytest.mark.parametrize("snapshot", ["", SNAPSHOT])
def test_raw_lines_stand_at_the_end_of_the_main_section(proxmox: ProxmoxStandIn, snapshot: str) -> None:
    file = proxmox.configuration()
    file.write_text(CONTAINER + snapshot)
    proxmox.run("raw-lxc-lines.sh", LINES)
    assert file.read_text() == CONTAINER + KUBERNETES_LXC_LINES + "\n" + snapshot
    assert proxmox.calls() == ["shutdown 110 --timeout 60 --forceStop 1", "start 110"]


def test_the_same_raw_lines_again_restart_nothing(proxmox: ProxmoxStandIn) -> None:
    file = proxmox.configuration()
    file.write_text(CONTAINER + SNAPSHOT)
    proxmox.run("raw-lxc-lines.sh", LINES)
    proxmox.calls()
    before = file.stat().st_mtime_ns
    proxmox.run("raw-lxc-lines.sh", LINES)
    assert proxmox.calls() == []
    assert file.stat().st_mtime_ns == before


def test_proxmoxs_own_spelling_of_raw_lines_is_no_change(proxmox: ProxmoxStandIn) -> None:
    file = proxmox.configuration()
    file.write_text(CONTAINER + KUBERNETES_LXC_LINES.replace("lxc.cap.drop:", "lxc.cap.drop: ") + "\n")
    proxmox.run("raw-lxc-lines.sh", LINES)
    assert proxmox.calls() == []


def test_a_stopped_container_gets_its_lines_and_is_started(proxmox: ProxmoxStandIn) -> None:
    proxmox.configuration().write_text(CONTAINER)
    proxmox.set_state("stopped")
    proxmox.run("raw-lxc-lines.sh", LINES)
    assert proxmox.calls() == ["start 110"], "a run that was killed between stopping and starting must be made good"


def test_a_container_that_a_killed_run_left_stopped_with_its_lines_is_started(proxmox: ProxmoxStandIn) -> None:
    proxmox.configuration().write_text(CONTAINER + KUBERNETES_LXC_LINES + "\n")
    proxmox.set_state("stopped")
    proxmox.run("raw-lxc-lines.sh", LINES)
    assert proxmox.state == "running"


@pytest.mark.parametrize("snapshot", ["", SNAPSHOT])
def test_removed_raw_lines_leave_the_file_as_it_was(proxmox: ProxmoxStandIn, snapshot: str) -> None:
    file = proxmox.configuration()
    file.write_text(CONTAINER + snapshot)
    proxmox.run("raw-lxc-lines.sh", LINES)
    proxmox.run("raw-lxc-lines.sh", LINES, "delete")
    assert file.read_bytes() == (CONTAINER + snapshot).encode()


def test_removing_raw_lines_of_a_container_that_is_gone_is_no_error(proxmox: ProxmoxStandIn) -> None:
    proxmox.run("raw-lxc-lines.sh", LINES, "delete")
    assert proxmox.calls() == []


def test_raw_lines_of_somebody_else_stay(proxmox: ProxmoxStandIn) -> None:
    foreign = "lxc.environment: TZ=Europe/Berlin\nlxc.mount.entry: /srv/books srv/books none bind,create=dir 0 0\n"
    file = proxmox.configuration()
    file.write_text(CONTAINER + foreign)
    proxmox.run("raw-lxc-lines.sh", LINES)
    assert file.read_text() == CONTAINER + foreign + KUBERNETES_LXC_LINES + "\n"
    proxmox.run("raw-lxc-lines.sh", LINES, "delete")
    assert file.read_text() == CONTAINER + foreign


def test_other_raw_lines_of_ours_are_replaced(proxmox: ProxmoxStandIn) -> None:
    file = proxmox.configuration()
    file.write_text(CONTAINER + "lxc.apparmor.profile: generated\nlxc.cap.drop: mknod\n")
    proxmox.run("raw-lxc-lines.sh", LINES)
    assert file.read_text() == CONTAINER + KUBERNETES_LXC_LINES + "\n"


def test_a_locked_container_is_waited_for(proxmox: ProxmoxStandIn) -> None:
    file = proxmox.configuration()
    file.write_text(CONTAINER + "lock: backup\n")
    process = proxmox.start("raw-lxc-lines.sh", LINES)
    time.sleep(1)
    assert process.poll() is None
    assert file.read_text() == CONTAINER + "lock: backup\n"
    assert proxmox.calls() == []
    file.write_text(CONTAINER)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 0, stderr
    assert file.read_text() == CONTAINER + KUBERNETES_LXC_LINES + "\n"


def test_a_container_on_another_host_is_named(proxmox: ProxmoxStandIn) -> None:
    assert proxmox.refused("raw-lxc-lines.sh", LINES) == (
        "pve1: raw-lxc-lines: FAILED: /etc/pve/lxc/110.conf does not exist: the container 110 is not on this Proxmox "
        "host (was it migrated?)\n"
    )


# --- claim-vm-id.sh

CLAIM = {"vm_id": "110", "owner_tag": "school-postgres-school", "machine_name": "gl2"}


def test_a_free_id_may_be_used(proxmox: ProxmoxStandIn) -> None:
    proxmox.configuration(111).write_text(CONTAINER)
    proxmox.run("claim-vm-id.sh", CLAIM)


def test_the_own_container_of_a_run_that_was_killed_may_be_used(proxmox: ProxmoxStandIn) -> None:
    proxmox.configuration().write_text(CONTAINER + SNAPSHOT)
    proxmox.run("claim-vm-id.sh", CLAIM)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        pytest.param(CONTAINER.replace("school-postgres-school", "school-postgres-lab"), "gl2", id="another-stack"),
        pytest.param(CONTAINER.replace("hostname: gl2", "hostname: mail"), "mail", id="another-machine"),
        pytest.param("hostname: mail\ncores: 1\n", "mail", id="no-tags"),
        pytest.param(
            "hostname: mail\n\n[snap]\nhostname: gl2\ntags: school-postgres-school\n", "mail", id="only-in-a-snapshot"
        ),
    ],
)
def test_an_id_of_somebody_else_is_refused_and_nothing_changed(
    proxmox: ProxmoxStandIn, content: str, name: str
) -> None:
    file = proxmox.configuration()
    file.write_text(content)
    assert proxmox.refused("claim-vm-id.sh", CLAIM) == (
        f"pve1: claim-vm-id: FAILED: vm id 110 is taken by '{name}' (/etc/pve/lxc/110.conf), which this stack did not "
        f"make. Choose a free machines[].vmId for gl2, or remove '{name}' in Proxmox if nobody needs it. "
        "Nothing was changed.\n"
    )
    assert file.read_text() == content
    assert proxmox.calls() == []


@pytest.mark.parametrize("kind", ["qemu-server", "lxc"])
def test_an_id_used_on_another_host_of_the_proxmox_cluster_is_refused(proxmox: ProxmoxStandIn, kind: str) -> None:
    folder = proxmox.etc / "pve" / "nodes" / "pve2" / kind
    folder.mkdir(parents=True)
    (folder / "110.conf").write_text("name: windows\n")
    assert "vm id 110 is taken by 'windows' (/etc/pve/nodes/pve2" in proxmox.refused("claim-vm-id.sh", CLAIM)


# --- certificate-*.sh


@dataclass(frozen=True)
class Certificates:
    """An authority and one machine, in folders of their own."""

    proxmox: ProxmoxStandIn
    authority: Path
    machine: Path

    def make_authority(self) -> str:
        return self.proxmox.run(
            "certificate-authority.sh", {"directory": str(self.authority), "common_name": "school datastore"}
        )

    def request(self, common_name: str = "k3s") -> str:
        return self.proxmox.run(
            "certificate-request.sh",
            {"directory": str(self.machine), "file_name": "client", "common_name": common_name},
        )

    def signing(self, request: str, **changes: str) -> dict[str, str]:
        return {
            "directory": str(self.authority),
            "name": "k3s-gl2",
            "request": request,
            "usage": "clientAuth",
            "alternative_names": "",
            "lifetime_days": "825",
            "renew_before_days": "90",
        } | changes

    def sign(self, request: str, **changes: str) -> str:
        return self.proxmox.run("certificate-sign.sh", self.signing(request, **changes))

    def installing(self, certificate: str, authority: str) -> dict[str, str]:
        return {
            "directory": str(self.machine),
            "file_name": "client",
            "certificate": certificate.strip(),
            "authority": authority.strip(),
        }


@pytest.fixture
def certificates(proxmox: ProxmoxStandIn, tmp_path: Path) -> Certificates:
    return Certificates(proxmox, tmp_path / "ca", tmp_path / "machine")


def openssl(*arguments: str, text: str | None = None) -> str:
    done = subprocess.run(["openssl", *arguments], input=text, capture_output=True, text=True, check=True)
    return done.stdout


def test_the_authority_is_made_once_and_its_key_is_for_root_only(certificates: Certificates) -> None:
    certificate = certificates.make_authority()
    key = certificates.authority / "ca.key"
    before = key.read_bytes()
    assert certificates.make_authority() == certificate
    assert key.read_bytes() == before
    assert key.stat().st_mode & 0o777 == 0o600
    assert certificates.authority.stat().st_mode & 0o777 == 0o700
    text = openssl("x509", "-noout", "-text", text=certificate)
    assert "CA:TRUE, pathlen:0" in text


def test_an_authority_half_made_by_a_killed_run_is_completed(certificates: Certificates) -> None:
    certificates.make_authority()
    key = (certificates.authority / "ca.key").read_bytes()
    (certificates.authority / "ca.crt").unlink()
    (certificates.authority / "ca.key.new").write_text("half")
    assert "BEGIN CERTIFICATE" in certificates.make_authority()
    assert (certificates.authority / "ca.key").read_bytes() == key


def test_the_same_request_is_printed_again_and_the_key_is_made_once(certificates: Certificates) -> None:
    request = certificates.request()
    key = certificates.machine / "client.key"
    before = key.read_bytes()
    assert certificates.request() == request
    assert key.read_bytes() == before
    assert key.stat().st_mode & 0o777 == 0o600
    assert b"BEGIN PRIVATE KEY" in before, "PKCS#8 is what every reader understands"
    assert "PRIVATE" not in request


def test_another_name_is_requested_with_the_same_key(certificates: Certificates) -> None:
    first = certificates.request()
    key = (certificates.machine / "client.key").read_bytes()
    second = certificates.request("k3s-other")
    assert second != first
    assert (certificates.machine / "client.key").read_bytes() == key
    assert "CN=k3s-other" in openssl("req", "-noout", "-subject", "-nameopt", "RFC2253", text=second)


def test_a_request_is_recognised_in_the_spelling_of_every_openssl(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    # OpenSSL 3.2 and newer (Debian 13) print "CN=k3s" where 3.0 (Debian 12) prints "CN = k3s".
    newer = certificates.proxmox.folder / "bin" / "openssl"
    newer.write_text(
        '#!/bin/bash\nset -o pipefail\n[[ " $* " == *" -subject"* ]] || exec /usr/bin/openssl "$@"\n'
        '/usr/bin/openssl "$@" | sed "s/ = /=/g"\n'
    )
    newer.chmod(0o755)
    assert certificates.request() == certificates.request()


def test_signing_twice_hands_out_the_same_certificate(certificates: Certificates) -> None:
    certificates.make_authority()
    request = certificates.request()
    first = certificates.sign(request)
    assert certificates.sign(request) == first
    assert "BEGIN CERTIFICATE" in first


@pytest.mark.parametrize(
    "change", [{"usage": "serverAuth"}, {"alternative_names": "DNS:gl8,IP:10.0.145.113"}, {"renew_before_days": "830"}]
)
def test_another_use_other_names_or_a_near_end_give_a_new_certificate(
    certificates: Certificates, change: dict[str, str]
) -> None:
    certificates.make_authority()
    request = certificates.request()
    assert certificates.sign(request) != certificates.sign(request, **change)


def test_a_certificate_says_what_it_is_for(certificates: Certificates) -> None:
    authority = certificates.make_authority()
    certificate = certificates.sign(
        certificates.request("gl8"), usage="serverAuth", alternative_names="DNS:gl8,IP:10.0.145.113"
    )
    text = openssl("x509", "-noout", "-text", text=certificate)
    for part in ("CA:FALSE", "TLS Web Server Authentication", "DNS:gl8, IP Address:10.0.145.113", "CN = gl8"):
        assert part.replace(" ", "") in text.replace(" ", "")
    folder = certificates.proxmox.folder
    (folder / "authority.crt").write_text(authority)
    (folder / "leaf.crt").write_text(certificate)
    openssl("verify", "-CAfile", str(folder / "authority.crt"), "-purpose", "sslserver", str(folder / "leaf.crt"))


def test_a_new_authority_hands_out_no_certificate_of_the_old_one(certificates: Certificates) -> None:
    certificates.make_authority()
    request = certificates.request()
    first = certificates.sign(request)
    for name in ("ca.key", "ca.crt"):
        (certificates.authority / name).unlink()
    certificates.make_authority()
    assert certificates.sign(request) != first


@pytest.mark.parametrize("spoil", [lambda text: "no request", lambda text: text[:80] + "AAAA" + text[84:]])
def test_what_is_no_request_or_was_altered_is_not_signed(certificates: Certificates, spoil: object) -> None:
    assert callable(spoil)
    certificates.make_authority()
    request = spoil(certificates.request())
    assert certificates.proxmox.refused("certificate-sign.sh", certificates.signing(request)) == (
        "pve1: certificate-sign: FAILED: the request for k3s-gl2 is not a valid signing request\n"
    )
    assert list((certificates.authority / "issued").iterdir()) == []


def test_an_installed_certificate_prints_its_fingerprint_every_time(certificates: Certificates) -> None:
    authority = certificates.make_authority()
    certificate = certificates.sign(certificates.request())
    printed = certificates.proxmox.run("certificate-install.sh", certificates.installing(certificate, authority))
    assert printed == openssl("x509", "-noout", "-fingerprint", "-sha256", text=certificate)
    assert (certificates.machine / "client.crt").read_text() == certificate
    assert (certificates.machine / "ca.crt").read_text() == authority
    again = certificates.proxmox.run("certificate-install.sh", certificates.installing(certificate, authority))
    assert again == printed


def test_a_certificate_of_another_key_is_not_installed(certificates: Certificates) -> None:
    authority = certificates.make_authority()
    certificate = certificates.sign(certificates.request())
    shutil.rmtree(certificates.machine)
    certificates.request()
    said = certificates.proxmox.refused("certificate-install.sh", certificates.installing(certificate, authority))
    assert said == (
        f"pve1: certificate-install: FAILED: the certificate does not belong to the key "
        f"{certificates.machine}/client.key\n"
    )
    assert not (certificates.machine / "client.crt").exists()
