"""What `make lab` ends with: a database at its addresses, and everything under it as promised."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from itertools import pairwise

import pytest

from tests.lab.classroom import API_ADDRESS, Lab, wait_for

pytestmark = pytest.mark.lab
CLUSTER = "wichtige-daten-3"


def test_psql_answers_at_the_line_that_the_lab_prints(lab: Lab) -> None:
    done = lab.run("school", "psql", "--", "-XAtc", "select current_user, current_database()")
    assert done.stdout.strip().endswith("bauer|firmendaten")


def test_the_primary_address_accepts_writes_and_the_replica_address_only_reads(lab: Lab) -> None:
    lab.sql("create table if not exists proof (n int); insert into proof values (1)")
    assert lab.sql("select pg_is_in_recovery()", "10.0.145.131").stdout.strip() == "t"
    refused = lab.sql("insert into proof values (2)", "10.0.145.131", check=False)
    assert refused.returncode != 0
    assert "read-only" in refused.stderr


def test_the_pooler_address_answers_with_the_same_data(lab: Lab) -> None:
    lab.sql("create table if not exists pooled (n int); insert into pooled values (7)")
    assert "7" in lab.sql("select n from pooled", "10.0.145.132").stdout


def test_the_password_is_stored_as_scram_and_connections_are_encrypted(lab: Lab) -> None:
    assert lab.sql("show password_encryption").stdout.strip() == "scram-sha-256"
    assert lab.sql("select ssl from pg_stat_ssl where pid = pg_backend_pid()").stdout.strip() == "t"


def test_every_node_is_ready_seen_through_the_virtual_address(lab: Lab) -> None:
    nodes = lab.kubectl(f"--server https://{API_ADDRESS}:6443 get nodes --no-headers")
    assert sorted(re.findall(r"^(\S+)\s+Ready\b", nodes, re.MULTILINE)) == ["gl2", "gl3", "gl6"]


def test_three_members_run_on_three_machines_with_a_synchronous_standby(lab: Lab) -> None:
    pods = json.loads(lab.kubectl(f"-n postgres get pods -l cluster-name={CLUSTER},application=spilo -o json"))["items"]
    assert len({pod["spec"]["nodeName"] for pod in pods}) == 3
    states = lab.on(
        "gl2",
        f"k3s kubectl -n postgres exec {CLUSTER}-0 -c postgres -- psql -XAt -U postgres"
        " -c 'show synchronous_standby_names' || true",
    ).stdout
    primary = lab.sql("show synchronous_standby_names").stdout.strip()
    assert primary or states.strip()


def test_poolers_run_on_two_machines(lab: Lab) -> None:
    pods = json.loads(lab.kubectl("-n postgres get pods -l application=db-connection-pooler -o json"))["items"]
    assert len({pod["spec"]["nodeName"] for pod in pods}) == 2


def test_the_operator_keeps_volumes_and_secrets_when_the_cluster_goes(lab: Lab) -> None:
    configuration = json.loads(lab.kubectl("-n postgres-operator get operatorconfigurations -o json"))["items"][0]
    settings = configuration["configuration"]["kubernetes"]
    assert settings["enable_persistent_volume_claim_deletion"] is False
    assert settings["enable_secrets_deletion"] is False
    assert settings["enable_pod_antiaffinity"] is True


def test_secrets_are_encrypted_in_the_datastore(lab: Lab) -> None:
    row = lab.on(
        "gl8",
        "runuser -u postgres -- psql -XAt -d k3s -c \"select encode(substr(value, 1, 18), 'escape') from kine"
        " where name like '/registry/secrets/postgres/%' order by id desc limit 1\"",
    ).stdout
    assert "k8s:enc:" in row


# --- the datastore answers certificates and nothing else


def _connect_to_datastore(
    lab: Lab, machine: str, parameters: str, prepare: str = ""
) -> subprocess.CompletedProcess[str]:
    script = f"""set -u
command -v psql >/dev/null || apt-get -q -y install --no-install-recommends postgresql-client >/dev/null 2>&1
cd "$(mktemp -d)"
{prepare}
psql -XAt "host=10.0.145.113 user=k3s dbname=k3s connect_timeout=5 {parameters}" -c 'select 1'
"""
    return lab.on(machine, script, check=False, timeout=300)


KEYS = "/etc/school-postgres/datastore"


def test_a_server_with_its_certificate_reaches_the_datastore(lab: Lab) -> None:
    done = _connect_to_datastore(
        lab, "gl2", f"sslmode=verify-full sslrootcert={KEYS}/ca.crt sslcert={KEYS}/client.crt sslkey={KEYS}/client.key"
    )
    assert done.stdout.strip() == "1", done.stderr


def test_the_datastore_refuses_a_client_without_a_certificate(lab: Lab) -> None:
    done = _connect_to_datastore(lab, "gl2", "sslmode=require sslcert=/nonexistent sslkey=/nonexistent")
    assert done.returncode != 0
    assert "requires a valid client certificate" in done.stderr or "certificate authentication failed" in done.stderr


def test_the_datastore_refuses_a_strangers_certificate(lab: Lab) -> None:
    make = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=k3s"
        " -keyout stranger.key -out stranger.crt 2>/dev/null; chmod 600 stranger.key"
    )
    done = _connect_to_datastore(lab, "gl2", "sslmode=require sslcert=stranger.crt sslkey=stranger.key", make)
    assert done.returncode != 0
    assert "unknown ca" in done.stderr or "certificate" in done.stderr


def test_the_datastore_refuses_plain_text(lab: Lab) -> None:
    done = _connect_to_datastore(lab, "gl2", "sslmode=disable")
    assert done.returncode != 0
    assert "no encryption" in done.stderr


def test_the_datastore_refuses_a_machine_that_is_no_server(lab: Lab) -> None:
    done = _connect_to_datastore(lab, "gl9", "sslmode=require sslcert=/nonexistent sslkey=/nonexistent")
    assert done.returncode != 0
    assert "no pg_hba.conf entry" in done.stderr


# --- the API balancers


def api_silence_seconds(lab: Lab, during: Callable[[], object]) -> float:
    """Ask the API at the virtual address all the time while ``during`` happens; the longest time without an answer."""
    # wget ends with 6 or 8 when the server answered and refused: it lives.
    ask = f"wget -q -T 1 -t 1 --no-check-certificate -O /dev/null https://{API_ADDRESS}:6443/livez"
    script = f"for i in $(seq 150); do {ask}; case $? in 0|6|8) date +%s.%N;; esac; sleep 0.05; done"
    with subprocess.Popen(lab.ssh_command("gl8", script), stdout=subprocess.PIPE, text=True) as watcher:
        time.sleep(2)
        during()
        out, _ = watcher.communicate(timeout=400)
    times = [float(line) for line in out.split()]
    assert len(times) > 50, "the API was hardly ever reached"
    return max(later - earlier for earlier, later in pairwise(times))


@pytest.mark.parametrize("balancer", ["gl9", "gl10"])
def test_the_api_is_reached_within_3_seconds_when_a_balancer_s_programs_are_killed(lab: Lab, balancer: str) -> None:
    try:
        silence = api_silence_seconds(lab, lambda: lab.on(balancer, "pkill -9 nginx; pkill -9 keepalived", check=False))
    finally:
        lab.on(balancer, "systemctl reset-failed nginx keepalived; systemctl restart nginx keepalived")
    assert silence <= 3


def test_the_api_is_reached_within_3_seconds_when_the_balancer_with_the_address_loses_power(lab: Lab) -> None:
    def holds_it(machine: str) -> bool:
        return API_ADDRESS in lab.on(machine, "ip -4 address show dev eth0").stdout

    holder = wait_for(lambda: next((m for m in ("gl9", "gl10") if holds_it(m)), ""), 20, "a holder of the address")
    try:
        silence = api_silence_seconds(lab, lambda: lab.school("kill", holder))
    finally:
        lab.school("start", holder)
    assert silence <= 3


# --- the backup


def _backup_now(lab: Lab, name: str) -> bool:
    lab.kubectl(f"-n postgres delete job {name} --ignore-not-found --wait=true")
    lab.kubectl(f"-n postgres create job {name} --from=cronjob/{CLUSTER}-backup")

    def finished() -> str:
        status = json.loads(lab.kubectl(f"-n postgres get job {name} -o json"))["status"]
        return next(
            (
                condition["type"]
                for condition in status.get("conditions", [])
                if condition["status"] == "True" and condition["type"] in ("Complete", "Failed")
            ),
            "",
        )

    return bool(wait_for(finished, 240, f"the end of job {name}") == "Complete")


def test_a_backup_started_by_hand_lands_on_the_share_with_a_true_manifest(lab: Lab) -> None:
    lab.sql("create table if not exists kept (n int); truncate kept; insert into kept select generate_series(1, 1234)")
    assert _backup_now(lab, "by-hand"), lab.kubectl(
        "-n postgres logs job/by-hand --all-containers --tail=30", check=False
    )
    folder = f"/srv/school-postgres/backup/{CLUSTER}"
    newest = lab.on("gl8", f"ls -d {folder}/*Z | tail -n 1").stdout.strip()
    manifest = json.loads(lab.on("gl8", f"cat {newest}/manifest.json").stdout)
    assert manifest["dumps"][0]["database"] == "firmendaten"
    assert manifest["dumps"][0]["rows"]["public.kept"] == 1234
    for entry in (manifest["globals"], *manifest["dumps"]):
        digest, size = lab.on(
            "gl8", f"sha256sum {newest}/{entry['file']}; stat -c %s {newest}/{entry['file']}"
        ).stdout.split()[::2]
        assert digest == entry["sha256"]
        assert int(size) == entry["bytes"]


def test_the_backup_runs_at_2_in_the_school_s_time_zone(lab: Lab) -> None:
    spec = json.loads(lab.kubectl(f"-n postgres get cronjob {CLUSTER}-backup -o json"))["spec"]
    assert (spec["schedule"], spec["timeZone"], spec["concurrencyPolicy"]) == ("0 2 * * *", "Europe/Berlin", "Forbid")


def test_a_wrong_password_for_the_share_makes_the_backup_fail_loudly(lab: Lab) -> None:
    secret = f"{CLUSTER}-backup-share"
    before = json.loads(lab.kubectl(f"-n postgres get secret {secret} -o json"))["data"]["password"]
    patch = 'patch secret {s} --type merge -p \'{{"data":{{"password":"{p}"}}}}\''
    lab.kubectl(f"-n postgres {patch.format(s=secret, p='d3Jvbmc=')}")
    try:
        assert not _backup_now(lab, "wrong-password")
        said = lab.kubectl("-n postgres logs -l job-name=wrong-password -c upload --tail=20")
        assert "FAILED" in said
        assert "cannot be written" in said
    finally:
        lab.kubectl(f"-n postgres {patch.format(s=secret, p=before)}")


def test_the_share_refuses_a_client_without_encryption(lab: Lab) -> None:
    done = lab.run(
        "smbclient", "//10.0.145.113/backup", "-U", "pgbackup%wrong", "--client-protection=off", "-c", "ls", check=False
    )
    assert done.returncode != 0
    assert "NT_STATUS_ACCESS_DENIED" in done.stdout + done.stderr or "LOGON_FAILURE" in done.stdout + done.stderr
