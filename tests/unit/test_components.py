"""The parts of components that can be looked at one by one: rendered files, composed scripts, refused arguments."""

from __future__ import annotations

import os
import subprocess
from types import SimpleNamespace
from typing import Any, cast

import pulumi
import pytest
import yaml

import credentials
from components import (
    ApiLoadBalancerArgs,
    CertificateArgs,
    CertificateAuthority,
    CertificateFiles,
    CertificateUsage,
    DatabaseRequest,
    Host,
    K3sControlPlaneArgs,
    ProxmoxHost,
    ProxmoxLxcNodeArgs,
)
from components.api_load_balancer import keepalived_configuration, nginx_configuration
from components.k3s_control_plane import registries_configuration, server_configuration, worker_configuration
from components.metallb_pool import move_away_tolerations
from components.operators.zalando import cluster_spec, credentials_secret_name
from components.remote import compose_script, read_host_file

pytestmark = pytest.mark.unit

HOST = Host(name="gl2", address="10.0.145.110", private_key="private", host_key="ssh-ed25519 AAAA")
NODE: dict[str, Any] = {
    "proxmox": cast(ProxmoxHost, SimpleNamespace()),
    "vm_id": 110,
    "machine_name": "gl2",
    "address": "10.0.145.110",
    "prefix_length": 24,
    "gateway": "10.0.145.1",
    "dns_servers": ["10.0.145.1"],
    "search_domain": "schule.lan",
    "bridge": "vmbr0",
    "cores": 1,
    "memory_mib": 512,
    "disk_gib": 8,
    "disk_storage": "local-lvm",
    "tags": ["k3s-server"],
    "owner_tag": "school-postgres-school",
    "start_order": 1,
    "runs_kubernetes": True,
    "hosts_entries": "10.0.145.110 gl2",
    "apt_proxy": None,
    "ssh_public_key": "ssh-ed25519 AAAA",
    "ssh_private_key": "private",
    "holds_data": True,
    "protect_data": True,
}
REQUEST: dict[str, Any] = {
    "cluster_name": "wichtige-daten-3",
    "team": "schule",
    "version": "16",
    "instances": 3,
    "storage_gib": 10,
    "storage_class": "local-path",
    "cpu_request_millicores": 250,
    "memory_request_mib": 512,
    "memory_limit_mib": 1024,
    "users": {"bauer": []},
    "databases": {"firmendaten": "bauer"},
    "parameters": {},
    "pooler_instances": 2,
    "pooler_mode": "transaction",
    "pooler_max_database_connections": 60,
    "allowed_sources": ["10.0.145.0/24"],
    "primary_address": "10.0.145.130",
    "replica_address": "10.0.145.131",
    "pooler_address": "10.0.145.132",
    "address_pool": "metallb",
    "helm_repository": None,
    "protect_data": True,
}


# --- files for the balancers


def test_nginx_asks_every_server_and_waits_for_none_that_is_off() -> None:
    text = nginx_configuration(["10.0.145.110", "10.0.145.111"])
    lines = [line.strip() for line in text.splitlines()]
    assert [line for line in lines if line.startswith("server 10.")] == [
        "server 10.0.145.110:6443 max_fails=2 fail_timeout=10s;",
        "server 10.0.145.111:6443 max_fails=2 fail_timeout=10s;",
    ]
    assert "proxy_connect_timeout 1s;" in lines
    assert "proxy_timeout 24h;" in lines
    assert text.count("{") == text.count("}")
    assert "{{" not in text


@pytest.mark.parametrize("peers", [["10.0.145.115"], ["10.0.145.115", "10.0.145.117"]])
def test_keepalived_talks_to_every_peer_by_its_address(peers: list[str]) -> None:
    text = keepalived_configuration(
        own_address="10.0.145.114",
        peer_addresses=peers,
        virtual_address="10.0.145.116",
        prefix_length=24,
        virtual_router_id=51,
        priority=200,
    )
    words = text.split("unicast_peer {")[1].split("}")[0].split()
    assert words == peers
    lines = [line.strip() for line in text.splitlines()]
    for line in ("unicast_src_ip 10.0.145.114", "10.0.145.116/24 dev eth0", "virtual_router_id 51", "priority 200"):
        assert line in lines
    assert "state BACKUP" in lines, "a balancer that returns must not claim the address before it has listened"
    assert "advert_int 0.3" in lines


# --- files for K3s


def control_plane(**changes: Any) -> K3sControlPlaneArgs:
    values: dict[str, Any] = {
        "servers": [HOST],
        "workers": [],
        "datastore": SimpleNamespace(endpoint="postgres://k3s@10.0.145.113:5432/k3s"),
        "load_balancer": SimpleNamespace(endpoint="https://10.0.145.116:6443"),
        "version": "v1.36.3+k3s1",
        "binary_url": "http://10.0.145.1:8080/k3s/k3s",
        "binary_sha256": "0" * 64,
        "tls_names": ["10.0.145.116", "k3s-api"],
        "registry_mirrors": {},
        "protect_data": False,
    }
    return K3sControlPlaneArgs(**{**values, **changes})


def test_the_configuration_of_a_server_is_yaml_that_says_what_was_asked_for() -> None:
    found = yaml.safe_load(server_configuration(HOST, control_plane(), "one: two", "'three'"))
    assert found["token"] == "one: two"
    assert found["agent-token"] == "'three'"
    assert found["tls-san"] == ["10.0.145.116", "k3s-api"]
    assert found["write-kubeconfig-mode"] == "0600", "a number would be read as something else"
    assert found["cluster-cidr"] == "10.42.0.0/16"
    assert "node-monitor-grace-period=16s" in found["kube-controller-manager-arg"]
    assert "server" not in found, "servers meet in the datastore"


def test_the_configuration_of_a_worker_holds_nothing_that_a_server_needs() -> None:
    found = yaml.safe_load(worker_configuration(HOST, "https://10.0.145.116:6443", "abc", "join"))
    assert found == {
        "server": "https://10.0.145.116:6443",
        "token": "K10abc::node:join",
        "node-name": "gl2",
        "node-ip": "10.0.145.110",
        "kube-proxy-arg": ["nodeport-addresses=127.0.0.0/8"],
    }


@pytest.mark.parametrize(
    ("mirrors", "expected"),
    [
        ({}, {"mirrors": {}}),
        ({"*": ["http://10.0.145.1:5000"]}, {"mirrors": {"*": {"endpoint": ["http://10.0.145.1:5000"]}}}),
        (
            {"docker.io": ("https://a", "https://b"), "quay.io": ("https://a",)},
            {
                "mirrors": {
                    "docker.io": {"endpoint": ["https://a", "https://b"]},
                    "quay.io": {"endpoint": ["https://a"]},
                }
            },
        ),
    ],
)
def test_registries_are_written_as_k3s_reads_them(mirrors: Any, expected: Any) -> None:
    assert yaml.safe_load(registries_configuration(mirrors)) == expected


# --- Kubernetes objects


@pytest.mark.parametrize(
    ("user", "name"),
    [
        ("bauer", "bauer.wichtige-daten-3.credentials.postgresql.acid.zalan.do"),
        ("frau_bauer", "frau-bauer.wichtige-daten-3.credentials.postgresql.acid.zalan.do"),
    ],
)
def test_passwords_are_where_the_operator_looks_for_them(user: str, name: str) -> None:
    assert credentials_secret_name(user, "wichtige-daten-3") == name


def test_parameters_of_the_configuration_win_over_those_of_the_program() -> None:
    request = DatabaseRequest(**{**REQUEST, "parameters": {"max_connections": "200", "work_mem": "8MB"}})
    assert cluster_spec(request, "metallb")["postgresql"]["parameters"] == {
        "password_encryption": "scram-sha-256",
        "max_connections": "200",
        "work_mem": "8MB",
    }


def test_a_pod_leaves_a_node_that_is_gone_and_one_that_is_ill() -> None:
    tolerations = move_away_tolerations(7)
    assert [item["key"].split("/")[1] for item in tolerations] == ["unreachable", "not-ready"]
    assert all(item["tolerationSeconds"] == 7 and item["effect"] == "NoExecute" for item in tolerations)


# --- arguments that are refused before anything is registered


def test_a_single_balancer_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two hosts"):
        ApiLoadBalancerArgs(
            hosts=[HOST],
            server_addresses=["10.0.145.110"],
            virtual_address="10.0.145.116",
            prefix_length=24,
            virtual_router_id=51,
        )


def test_a_server_certificate_without_names_is_refused() -> None:
    with pytest.raises(ValueError, match="'gl8' needs alternative_names"):
        CertificateArgs(
            authority=cast(CertificateAuthority, SimpleNamespace()),
            host=HOST,
            common_name="gl8",
            usage=CertificateUsage.SERVER,
            alternative_names=(),
            files=CertificateFiles("/etc", "server"),
        )


@pytest.mark.parametrize("change", [{"tags": ["K3s"]}, {"owner_tag": "School"}])
def test_a_tag_that_proxmox_would_rewrite_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be lower case"):
        ProxmoxLxcNodeArgs(**{**NODE, **change})


def test_a_cluster_without_a_database_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one database"):
        DatabaseRequest(**{**REQUEST, "databases": {}})


def test_the_public_half_of_a_key_is_derived_and_the_private_half_not_quoted(ssh_private_key: str) -> None:
    assert credentials.ssh_public_key(ssh_private_key).startswith("ssh-ed25519 AAAA")
    with pytest.raises(pulumi.RunError) as caught:
        credentials.ssh_public_key("hunter2")
    assert "hunter2" not in str(caught.value)


# --- scripts on their way to a machine


def run_composed(tail: str, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    """Send a script whose own part is ``tail`` to bash in the way the program does."""
    common = read_host_file("common.sh")
    monkeypatch.setattr("components.remote.read_host_file", lambda name: common if name == "common.sh" else tail)
    done = subprocess.run(
        ["bash", "-s", "--", "gl8", "test", "apply"],
        input=compose_script("test.sh", variables),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "value",
    [
        "plain",
        "",
        "it's",
        "'; echo broken; '",
        "''''",
        '$HOME `id` $(id) \\ " !',
        "two\nlines\n}\nEOF",
        "umlauts äöü €",
        " spaces  around ",
        "a\tb",
    ],
)
def test_a_value_arrives_in_the_script_as_it_is(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code, stdout, stderr = run_composed(
        'printf "%s|%s" "$value" "$second"', {"value": value, "second": "2"}, monkeypatch
    )
    assert (code, stderr) == (0, "")
    assert stdout == f"{value}|2"


def test_a_program_that_reads_its_input_swallows_no_line_of_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    code, stdout, _ = run_composed('cat\nread -r line || true\necho "end:${line:-}"', {}, monkeypatch)
    assert (code, stdout) == (0, "end:\n")


def test_a_script_cut_short_on_its_way_does_nothing(tmp_path: Any) -> None:
    text = compose_script("hosts-file.sh", {"entries": "x"})
    text = text.replace("/etc/hosts", str(tmp_path / "hosts"))
    assert str(tmp_path) in text
    cut = text[: text.rindex("}")]
    done = subprocess.run(["bash", "-s", "--", "a", "b"], input=cut, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert list(tmp_path.iterdir()) == []


def test_a_script_stops_at_the_first_command_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    code, stdout, _ = run_composed("false\necho reached", {}, monkeypatch)
    assert code != 0
    assert stdout == ""
    code, stdout, _ = run_composed("false | cat\necho reached", {}, monkeypatch)
    assert code != 0
    assert stdout == ""


def test_a_failure_says_where_and_what_on_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    code, stdout, stderr = run_composed('fail "the disk is full"', {}, monkeypatch)
    assert (code, stdout, stderr) == (1, "", "gl8: test: FAILED: the disk is full\n")


def test_waiting_in_vain_ends_with_the_usual_cause_and_the_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    tail = 'last_words() { printf "It said: no"; }\nwait_until 1 "the sun" "it is night" false'
    code, _, stderr = run_composed(tail, {}, monkeypatch)
    assert code == 1
    assert stderr == "gl8: test: FAILED: the sun did not happen within 1 s. Usual cause: it is night. It said: no\n"


def test_a_service_is_stale_when_its_file_changed_until_it_has_loaded_it(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, service = tmp_path / "file", f"test-{tmp_path.name}"
    tail = (
        "owner=$(id -un):$(id -gn)\nstate() { if is_stale \"$service\"; then printf 'stale '; else printf 'loaded '; fi; }\n"
        'for content in one one two; do\nmark_loaded "$service"\n'
        'write_file "$path" 0640 "$owner" "$content" "$service"\nstate\ndone\n'
        # A run that is killed before it reloads leaves the mark to the next one, whose file has not changed.
        'write_file "$path" 0640 "$owner" two "$service"\nstate\nmark_loaded "$service"\n'
        'write_file "$path" 0600 "$owner" two "$service"\nstate\nmark_loaded "$service"'
    )
    code, stdout, stderr = run_composed(tail, {"path": str(path), "service": service}, monkeypatch)
    assert (code, stdout, stderr) == (0, "stale loaded stale stale stale ", "")
    assert path.read_text() == "two\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path], "nothing half-written may be left behind"


def test_work_goes_on_when_nobody_listens_to_its_progress_any_more(tmp_path: Any) -> None:
    script = f"{read_host_file('common.sh')}\nsleep 0.3\nsay one\nsay two\ntouch '{tmp_path}/done'\n"
    reader, writer = os.pipe()
    running = subprocess.Popen(["bash", "-c", script, "bash", "gl8", "test"], stderr=writer)
    os.close(writer)
    os.close(reader)
    assert running.wait(timeout=20) == 0
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("name", ["UPPER", "with-hyphen", "1st", "a b", "x;id", ""])
def test_a_name_that_is_no_shell_variable_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be a variable"):
        compose_script("hosts-file.sh", {name: "value"})
