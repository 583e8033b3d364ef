"""What the program asks the engine for: every resource, looked at as a whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

import components
from components.proxmox_host import template_file_name
from components.proxmox_lxc_node import KUBERNETES_LXC_LINES
from tests.unit.recording import (
    API_TOKEN,
    COMMAND,
    CONTAINER,
    DOWNLOAD,
    PASSWORD,
    UNKNOWN,
    RecordingMonitor,
    Registered,
    is_secret,
    secret_of,
    stdout_of,
    texts,
    unwrapped,
)

pytestmark = pytest.mark.unit

K3S_MACHINES = ["gl2", "gl3", "gl6"]
DATA_MACHINES = ["gl2", "gl3", "gl6", "gl8"]
MACHINES = [*DATA_MACHINES, "gl9", "gl10"]


def names(resources: list[Registered]) -> list[str]:
    return sorted(resource.name for resource in resources)


def in_kubernetes(monitor: RecordingMonitor) -> list[Registered]:
    """Everything that lives in the cluster: objects and charts."""
    found = [resource for resource in monitor.registered() if resource.type.startswith("kubernetes:")]
    assert found
    return found


def machine_of(monitor: RecordingMonitor, command: Registered) -> str:
    """Name of the machine that a command connects to."""
    address = command.clear["connection"]["host"]
    for node in monitor.of_type("school:index:ProxmoxLxcNode"):
        if node.inputs["address"] == address:
            return node.name
    return ""


# --- the tree


def test_every_resource_belongs_to_a_component(school: RecordingMonitor) -> None:
    for resource in school.registered():
        parent = school.parent(resource)
        if resource.type.startswith(("school:index:", "pulumi:providers:")):
            assert parent.type == "pulumi:pulumi:Stack" or parent.type.startswith("school:index:"), resource.name
        else:
            assert parent.type.startswith("school:index:"), f"{resource.name} has no component as its parent"


def test_every_child_is_named_after_its_parent(school: RecordingMonitor) -> None:
    for resource in school.registered():
        parent = school.parent(resource)
        if parent.type.startswith("school:index:"):
            assert resource.name.startswith(f"{parent.name}-"), f"{resource.name} of {parent.name}"


def test_no_name_holds_the_stack_or_the_project(school: RecordingMonitor) -> None:
    assert [name for name in names(school.registered()) if re.search(r"school|postgres-school", name)] == []


def test_the_type_of_every_component_is_the_name_of_its_class(school: RecordingMonitor) -> None:
    tokens = {resource.type for resource in school.registered() if not resource.custom}
    classes = {name for name in components.__all__ if f"{name}Args" in components.__all__}
    assert tokens == {f"school:index:{name}" for name in classes}


def test_every_component_registers_its_documented_attributes(school: RecordingMonitor) -> None:
    plain_values = re.compile(r"str|pulumi\.Output\[str\]|(Sequence|Mapping)\[.*\]")
    for resource in school.registered():
        if not resource.custom:
            kind = getattr(components, resource.type.removeprefix("school:index:"))
            documented = {name for name, type_ in kind.__annotations__.items() if plain_values.fullmatch(type_)}
            outputs = school.registered_outputs[resource.urn]
            assert set(outputs) == documented, resource.type
            assert all(unwrapped(value) for value in outputs.values()), resource.type


# --- replacing and keeping


def test_what_has_a_fixed_identity_is_deleted_before_it_is_replaced(school: RecordingMonitor) -> None:
    fixed = school.of_type(CONTAINER) + school.of_type(COMMAND)
    fixed += [resource for resource in in_kubernetes(school) if "Release" not in resource.type]
    assert [resource.name for resource in fixed if not resource.request.deleteBeforeReplace] == []


def test_another_template_gets_another_name_and_deletes_nothing_first(school: RecordingMonitor) -> None:
    # Deleting the template first would delete every machine that was made from it first.
    assert [download.name for download in school.of_type(DOWNLOAD) if download.request.deleteBeforeReplace] == []
    url, folder = "http://example.org/debian-12-standard_12.12-1_amd64.tar.zst", "school"
    names_given = {
        template_file_name(url, "0" * 128, folder, "pve1"),
        template_file_name(url, "1" * 128, folder, "pve1"),
        template_file_name(url.replace("http:", "https:"), "0" * 128, folder, "pve1"),
        template_file_name(url, "0" * 128, folder, "pve2"),
        template_file_name(url, "0" * 128, "lab", "pve1"),
    }
    assert len(names_given) == 5
    assert all(name.startswith("debian-12-standard") and name.endswith(".tar.zst") for name in names_given)


def test_a_container_keeps_the_template_and_the_key_it_was_made_with(school: RecordingMonitor) -> None:
    for container in school.of_type(CONTAINER):
        assert list(container.request.ignoreChanges) == ["operatingSystem", "initialization.userAccount"]


def test_protected_is_what_holds_data_and_nothing_else(school: RecordingMonitor) -> None:
    protected = [resource for resource in school.registered() if resource.request.protect]
    containers = [f"{machine}-container" for machine in DATA_MACHINES]
    tokens = ["k3s-agent-token", "k3s-token"]
    assert names(protected) == sorted([*containers, *tokens, "postgres-cluster", "postgres-namespace"])


def test_nothing_is_protected_where_the_stack_says_so(unprotected: RecordingMonitor) -> None:
    assert [resource.name for resource in unprotected.registered() if resource.request.protect] == []


def test_what_is_done_to_a_machine_goes_with_its_container(school: RecordingMonitor) -> None:
    hosts = school.of_type("school:index:ProxmoxHost")
    for command in school.of_type(COMMAND):
        owner = school.deleted_with(command)
        from_outside = command.script in ("raw-lxc-lines.sh", "read-host-key.sh")
        if from_outside:
            assert owner is school.named(f"{school.parent(command).name}-container"), command.name
        elif machine := machine_of(school, command):
            assert owner is school.named(f"{machine}-container"), command.name
        else:
            assert owner is None, command.name
            assert command.clear["connection"]["host"] in [host.inputs["address"] for host in hosts]


def test_what_is_in_the_cluster_goes_with_the_control_plane(school: RecordingMonitor) -> None:
    for resource in in_kubernetes(school):
        assert school.deleted_with(resource) is school.named("k3s"), resource.name


def test_a_replaced_container_runs_its_scripts_again(school: RecordingMonitor) -> None:
    for command in school.of_type(COMMAND):
        container = school.deleted_with(command)
        if container is not None:
            assert f"{container.name}-id" in command.clear["triggers"], command.name


def test_only_what_is_left_behind_on_a_proxmox_host_is_undone(school: RecordingMonitor) -> None:
    undone = [command.name for command in school.of_type(COMMAND) if command.inputs.get("delete")]
    lines = [f"{machine}-lxc-lines" for machine in K3S_MACHINES]
    assert sorted(undone) == sorted([*lines, "pve1-kernel", "pve2-kernel", "pve3-kernel"])


# --- time


def seconds(duration: str) -> int:
    return int(duration[:-1]) * {"s": 1, "m": 60, "h": 3600}[duration[-1]]


def test_every_script_ends_by_itself_before_the_engine_gives_up(school: RecordingMonitor) -> None:
    for command in school.of_type(COMMAND):
        for operation in ("create", "delete"):
            if text := command.inputs.get(operation):
                found = re.match(r"timeout --kill-after=10 (\d+) bash -s -- \S+ \S+ (apply|delete)$", text)
                assert found, f"{command.name}: {text}"
                assert int(found[1]) + 10 < seconds(command.timeouts[operation]), command.name


def test_a_script_that_waits_may_run_as_long_as_it_waits(school: RecordingMonitor) -> None:
    for command in school.of_type(COMMAND):
        waits = [int(limit) for limit in re.findall(r"^ *wait_until (\d+) ", command.clear["stdin"], re.M)]
        waits += [
            int(command.variables["ready_seconds"]) for _ in re.findall(r'until "\$ready_sec', command.clear["stdin"])
        ]
        limit = int(str(command.inputs["create"]).split()[2])
        assert sum(waits) < limit, f"{command.name} waits up to {sum(waits)} s and is ended after {limit} s"


def test_everything_slow_has_a_limit_of_its_own(school: RecordingMonitor) -> None:
    charts = [resource for resource in in_kubernetes(school) if "Release" in resource.type]
    for resource in [*school.of_type(CONTAINER), *charts, school.named("postgres-cluster")]:
        assert set(resource.timeouts) == {"create", "update", "delete"}, resource.name
    for download in school.of_type(DOWNLOAD):
        assert seconds(download.timeouts["create"]) > download.inputs["uploadTimeout"]


def test_a_containers_own_limits_are_below_those_of_the_engine(school: RecordingMonitor) -> None:
    for container in school.of_type(CONTAINER):
        for operation, limit in container.timeouts.items():
            assert container.inputs[f"timeout{operation.capitalize()}"] < seconds(limit), operation


# --- secrets


def test_no_secret_is_in_anything_that_everybody_sees(school: RecordingMonitor, ssh_private_key: str) -> None:
    secrets = [ssh_private_key, ssh_private_key.splitlines()[1], API_TOKEN, stdout_of("k3s-kubeconfig")]
    secrets += [secret_of(password.name) for password in school.of_type(PASSWORD)]
    for resource in school.registered():
        for text in texts(resource.plain):
            assert not any(secret in text for secret in secrets), f"{resource.name} shows a secret"
    for urn, outputs in school.registered_outputs.items():
        for text in texts(unwrapped(outputs, secrets=False)):
            assert not any(secret in text for secret in secrets), f"the outputs of {urn} show a secret"


def test_no_command_line_holds_a_secret_even_hidden(school: RecordingMonitor, ssh_private_key: str) -> None:
    secrets = [secret_of(password.name) for password in school.of_type(PASSWORD)]
    secrets += [ssh_private_key.splitlines()[1], API_TOKEN]
    for command in school.of_type(COMMAND):
        assert "environment" not in command.inputs
        for operation in ("create", "update", "delete"):
            assert not is_secret(command.inputs.get(operation))
            assert not any(secret in str(command.inputs.get(operation)) for secret in secrets), command.name


@pytest.mark.parametrize("name", ["k3s-gl2", "k3s-gl3", "k3s-gl6", "backup-share-samba"])
def test_a_script_that_is_given_a_token_or_a_password_gets_it_secretly(school: RecordingMonitor, name: str) -> None:
    command = school.named(name)
    assert "secret-of-" in command.clear["stdin"], "the test looks at the wrong command"
    assert is_secret(command.inputs["stdin"])


def test_the_passwords_of_roles_reach_kubernetes_secretly(school: RecordingMonitor) -> None:
    for name in ("postgres-credentials-bauer", "backup-share-credentials"):
        secret = school.named(name)
        assert secret.clear["stringData"]["password"].startswith("secret-of-")
        assert secret.plain["stringData"] is None or secret.plain["stringData"]["password"] is None


def test_the_kubeconfig_is_read_in_silence(school: RecordingMonitor) -> None:
    command = school.named("k3s-kubeconfig")
    assert command.inputs["logging"] == "none"
    assert {"stdout", "stderr"} <= set(command.request.additionalSecretOutputs)
    assert is_secret(school.named("kubernetes").inputs["kubeconfig"])


def test_scripts_show_their_progress_and_never_what_they_return(school: RecordingMonitor) -> None:
    others = [command for command in school.of_type(COMMAND) if command.name != "k3s-kubeconfig"]
    assert {command.inputs["logging"] for command in others} == {"stderr"}


def test_the_outputs_that_let_somebody_in_are_secret_and_the_others_readable(school: RecordingMonitor) -> None:
    outputs = school.outputs_of_stack()
    secret = {name for name, value in outputs.items() if is_secret(value)}
    assert secret == {"database_url", "database_read_only_url", "database_pooler_url", "kubeconfig"}
    assert outputs["api_endpoint"] == "https://10.0.145.116:6443"
    assert outputs["backup_location"] == "smb://10.0.145.113/backup/wichtige-daten-3"
    assert outputs["service_addresses"] == {
        "primary": "10.0.145.130",
        "replica": "10.0.145.131",
        "pooler": "10.0.145.132",
    }


def test_the_connection_strings_are_complete(school: RecordingMonitor) -> None:
    outputs = unwrapped(school.outputs_of_stack())
    for name, address in (
        ("database_url", "10.0.145.130"),
        ("database_read_only_url", "10.0.145.131"),
        ("database_pooler_url", "10.0.145.132"),
    ):
        password = secret_of("postgres-password-bauer")
        assert outputs[name] == f"postgresql://bauer:{password}@{address}:5432/firmendaten?sslmode=require"


# --- who talks to whom


def test_every_connection_expects_one_host_key(school: RecordingMonitor, topics: dict[str, Any]) -> None:
    configured = {host["address"]: host["sshHostKey"] for host in topics["proxmox"]["hosts"]}
    for command in school.of_type(COMMAND):
        connection = command.clear["connection"]
        machine = machine_of(school, command)
        expected = stdout_of(f"{machine}-host-key") if machine else configured[connection["host"]]
        assert connection["hostKey"] == expected, command.name


def test_the_key_of_a_machine_is_read_over_its_proxmox_host(school: RecordingMonitor, topics: dict[str, Any]) -> None:
    addresses = {host["name"]: host["address"] for host in topics["proxmox"]["hosts"]}
    for machine in topics["machines"]:
        connection = school.named(f"{machine['name']}-host-key").clear["connection"]
        assert connection["host"] == addresses[machine["proxmoxHost"]]


def test_a_host_key_is_read_after_the_restart_that_raw_lines_cause(school: RecordingMonitor) -> None:
    for machine in K3S_MACHINES:
        assert school.waits_for(school.named(f"{machine}-host-key"), school.named(f"{machine}-lxc-lines"))


def test_every_connection_is_given_up_when_nobody_answers(school: RecordingMonitor) -> None:
    for command in school.of_type(COMMAND):
        assert command.clear["connection"]["dialErrorLimit"] == 12
        assert command.clear["connection"]["perDialTimeout"] == 10


def test_nothing_is_installed_on_a_machine_that_is_not_prepared(school: RecordingMonitor) -> None:
    early = {"prepare-machine.sh", "hosts-file.sh"}
    for command in school.of_type(COMMAND):
        machine = machine_of(school, command)
        if machine and command.script not in early:
            assert school.waits_for(command, school.named(f"{machine}-prepared")), command.name


def test_a_container_is_made_only_when_its_id_is_known_to_be_free(school: RecordingMonitor) -> None:
    for machine in MACHINES:
        assert school.waits_for(school.named(f"{machine}-container"), school.named(f"{machine}-vm-id"))


def test_a_container_is_made_only_on_a_prepared_proxmox_host(school: RecordingMonitor, topics: dict[str, Any]) -> None:
    for machine in topics["machines"]:
        container = school.named(f"{machine['name']}-container")
        assert school.waits_for(container, school.named(f"{machine['proxmoxHost']}-kernel"))
        assert school.waits_for(container, school.named(f"{machine['proxmoxHost']}-template"))


def test_the_kubernetes_provider_keeps_its_identity_when_the_kubeconfig_is_renewed(
    school: RecordingMonitor, first_preview: RecordingMonitor
) -> None:
    assert school.named("kubernetes").inputs["clusterIdentifier"] == "school-k3s"
    assert first_preview.named("kubernetes").inputs["clusterIdentifier"] == "school-k3s"


def test_everything_uses_the_providers_that_the_program_made(school: RecordingMonitor) -> None:
    for resource in in_kubernetes(school):
        assert resource.request.provider.startswith(school.named("kubernetes").urn), resource.name
    for resource in school.of_type(CONTAINER) + school.of_type(DOWNLOAD):
        assert resource.request.provider.startswith(school.named("proxmox").urn), resource.name


# --- the first preview


def test_a_first_preview_knows_every_resource(school: RecordingMonitor, first_preview: RecordingMonitor) -> None:
    assert names(first_preview.registered()) == names(school.registered())


def test_a_first_preview_leaves_open_only_what_scripts_print(first_preview: RecordingMonitor) -> None:
    assert unwrapped(first_preview.named("kubernetes").inputs["kubeconfig"]) == UNKNOWN
    for resource in in_kubernetes(first_preview):
        assert UNKNOWN not in list(texts(resource.clear)), f"{resource.name} cannot be seen in a first preview"


# --- machines


def container_of(monitor: RecordingMonitor, machine: str) -> Any:
    return monitor.named(f"{machine}-container").clear


def test_a_container_is_as_large_as_the_configuration_says(school: RecordingMonitor, topics: dict[str, Any]) -> None:
    for machine in topics["machines"]:
        container = container_of(school, machine["name"])
        assert container["vmId"] == machine["vmId"]
        assert container["nodeName"] == machine["proxmoxHost"]
        assert container["cpu"]["cores"] == machine["cores"]
        assert container["memory"] == {"dedicated": machine["memoryMiB"], "swap": 0}
        assert container["disk"] == {"datastoreId": "local-lvm", "size": machine["diskGiB"]}
        (address,) = container["initialization"]["ipConfigs"]
        assert address == {"ipv4": {"address": f"{machine['address']}/24", "gateway": "10.0.145.1"}}


def test_tags_are_as_proxmox_stores_them(school: RecordingMonitor) -> None:
    for machine in MACHINES:
        tags = container_of(school, machine)["tags"]
        assert tags == sorted(tag.lower() for tag in tags)
        assert "school-postgres-school" in tags
    assert container_of(school, "gl8")["tags"] == ["datastore", "file-share", "school-postgres-school"]


def test_only_machines_that_run_kubernetes_are_privileged(school: RecordingMonitor) -> None:
    for machine in MACHINES:
        container = container_of(school, machine)
        assert container["unprivileged"] is (machine not in K3S_MACHINES)
        # A privileged container with a feature could only be made with root's password.
        assert ("features" in container) is (machine not in K3S_MACHINES)
    raw = [command for command in school.of_type(COMMAND) if command.script == "raw-lxc-lines.sh"]
    assert names(raw) == [f"{machine}-lxc-lines" for machine in K3S_MACHINES]
    assert {command.variables["lines"] for command in raw} == {KUBERNETES_LXC_LINES}


def test_interfaces_suit_addresses_that_move(school: RecordingMonitor) -> None:
    for machine in MACHINES:
        (interface,) = container_of(school, machine)["networkInterfaces"]
        assert interface == {"name": "eth0", "bridge": "vmbr0", "firewall": False}


def test_after_a_power_cut_what_others_need_starts_first(school: RecordingMonitor) -> None:
    order = {machine: container_of(school, machine)["startup"]["order"] for machine in MACHINES}
    assert order["gl8"] < order["gl9"] == order["gl10"] < order["gl2"] == order["gl3"] < order["gl6"]
    assert all(container_of(school, machine)["startOnBoot"] for machine in MACHINES)


def test_every_machine_knows_every_name(school: RecordingMonitor, topics: dict[str, Any]) -> None:
    expected = {machine["address"]: machine["name"] for machine in topics["machines"]} | {"10.0.145.116": "k3s-api"}
    for machine in MACHINES:
        entries = school.named(f"{machine}-hosts-file").variables["entries"].splitlines()
        assert entries == [f"{address} {name} {name}.schule.lan" for address, name in expected.items()]


# --- K3s


def k3s_configuration(monitor: RecordingMonitor, machine: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(monitor.named(f"k3s-{machine}").variables["configuration"])
    return found


def test_the_first_server_starts_when_the_datastore_and_the_balancers_are_there(school: RecordingMonitor) -> None:
    first = school.named("k3s-gl2")
    for name in ("datastore-postgresql", "api-gl9", "api-gl10", "k3s-gl2-datastore-client-installed"):
        assert school.waits_for(first, school.named(name)), name


def test_the_others_start_after_the_first_and_not_after_each_other(school: RecordingMonitor) -> None:
    first, second, worker = (school.named(f"k3s-{machine}") for machine in K3S_MACHINES)
    assert school.waits_for(second, first)
    assert school.waits_for(worker, first)
    assert not school.waits_for(second, worker)
    assert not school.waits_for(worker, second)


def test_the_cluster_is_used_only_when_every_node_is_ready(school: RecordingMonitor) -> None:
    ready = school.named("k3s-ready")
    assert ready.variables["nodes"].split() == K3S_MACHINES
    assert ready.variables["endpoint"] == "https://10.0.145.116:6443"
    for machine in K3S_MACHINES:
        assert school.waits_for(ready, school.named(f"k3s-{machine}"))
    assert school.waits_for(school.named("k3s-kubeconfig"), ready)
    assert school.waits_for(school.named("kubernetes"), ready)


def test_workers_join_through_the_virtual_address_with_a_token_that_only_joins(school: RecordingMonitor) -> None:
    configuration = k3s_configuration(school, "gl6")
    assert configuration["server"] == "https://10.0.145.116:6443"
    assert configuration["token"] == f"K10{stdout_of('k3s-ca-hash')}::node:{secret_of('k3s-agent-token')}"
    assert secret_of("k3s-token") not in school.named("k3s-gl6").clear["stdin"]


def test_servers_differ_only_in_who_they_are(school: RecordingMonitor) -> None:
    first, second = (k3s_configuration(school, machine) for machine in ("gl2", "gl3"))
    assert {key for key in first if first[key] != second[key]} == {"node-name", "node-ip"}
    assert first.keys() == second.keys()
    assert (first["node-name"], first["node-ip"]) == ("gl2", "10.0.145.110")


def test_servers_keep_their_state_in_the_datastore_and_prove_who_they_are(school: RecordingMonitor) -> None:
    configuration = k3s_configuration(school, "gl2")
    assert configuration["datastore-endpoint"] == "postgres://k3s@10.0.145.113:5432/k3s"
    folder = "/etc/school-postgres/datastore"
    assert configuration["datastore-cafile"] == f"{folder}/ca.crt"
    assert configuration["datastore-certfile"] == f"{folder}/client.crt"
    assert configuration["datastore-keyfile"] == f"{folder}/client.key"
    assert "10.0.145.116" in configuration["tls-san"]
    assert "k3s-api.schule.lan" in configuration["tls-san"]
    assert configuration["disable"] == ["servicelb", "traefik"]
    assert configuration["secrets-encryption"] is True


def test_only_k3s_servers_may_connect_to_the_datastore(school: RecordingMonitor) -> None:
    variables = school.named("datastore-postgresql").variables
    assert variables["access_rules"].splitlines() == [
        "local all postgres peer",
        "hostssl k3s k3s 10.0.145.110/32 cert clientcert=verify-full",
        "hostssl k3s k3s 10.0.145.111/32 cert clientcert=verify-full",
    ]
    assert variables["listen_address"] == "10.0.145.113"


def test_client_certificates_are_named_after_the_role_and_servers_after_their_names(school: RecordingMonitor) -> None:
    for server in ("gl2", "gl3"):
        signed = school.named(f"k3s-{server}-datastore-client-signed").variables
        assert (signed["usage"], signed["alternative_names"]) == ("clientAuth", "")
        request = school.named(f"k3s-{server}-datastore-client-request")
        assert request.variables["common_name"] == "k3s"
        assert machine_of(school, request) == server
        assert signed["request"] == stdout_of(request.name)
    signed = school.named("datastore-server-signed").variables
    assert (signed["usage"], signed["alternative_names"]) == ("serverAuth", "DNS:gl8,IP:10.0.145.113")


def test_a_new_authority_signs_everything_again(school: RecordingMonitor) -> None:
    signed = [command for command in school.of_type(COMMAND) if command.script == "certificate-sign.sh"]
    assert len(signed) == 3
    for command in signed:
        assert stdout_of("datastore-ca-key") in command.clear["triggers"]
        assert machine_of(school, command) == "gl8"


def test_k3s_is_installed_from_one_pinned_binary(school: RecordingMonitor, topics: dict[str, Any]) -> None:
    wanted = topics["kubernetes"]
    for machine in K3S_MACHINES:
        variables = school.named(f"k3s-{machine}").variables
        assert variables["version"] == wanted["version"]
        assert variables["binary_url"] == wanted["binaryUrl"]
        assert variables["binary_sha256"] == wanted["binarySha256"]


def test_the_balancers_take_turns(school: RecordingMonitor) -> None:
    preferred, other = (school.named(f"api-{name}").variables["keepalived_configuration"] for name in ("gl9", "gl10"))
    assert priority(preferred) > priority(other)
    assert "unicast_src_ip 10.0.145.114" in preferred
    assert re.search(r"unicast_peer \{\s*10\.0\.145\.115\s*\}", preferred)
    assert re.search(r"unicast_peer \{\s*10\.0\.145\.114\s*\}", other)


def priority(configuration: str) -> int:
    found = re.search(r"^ *priority (\d+)$", configuration, re.M)
    assert found
    return int(found[1])


# --- the database


def values(monitor: RecordingMonitor, name: str) -> Any:
    return monitor.named(name).clear["values"]


def test_charts_are_pinned_and_come_from_the_mirror_when_there_is_one(school: RecordingMonitor, run: Any) -> None:
    expected = {"metallb-chart": ("metallb", "0.15.2"), "postgres-operator-chart": ("postgres-operator", "1.15.0")}
    mirror = "http://10.0.145.1:8080/charts/"
    mirrored = run(lambda topics: topics["kubernetes"].update(helmRepository=mirror))
    for name, chart in expected.items():
        release = school.named(name).clear
        assert (release["chart"], release["version"]) == chart
        assert release["repositoryOpts"]["repo"].startswith("https://")
        assert mirrored.named(name).clear["repositoryOpts"]["repo"] == mirror


def test_the_operators_dangerous_defaults_are_turned_round(school: RecordingMonitor) -> None:
    chart = values(school, "postgres-operator-chart")
    kubernetes = chart["configKubernetes"]
    assert kubernetes["enable_pod_antiaffinity"] is True
    assert kubernetes["pod_antiaffinity_preferred_during_scheduling"] is False
    assert kubernetes["enable_pod_disruption_budget"] is True
    assert kubernetes["enable_persistent_volume_claim_deletion"] is False
    assert kubernetes["enable_secrets_deletion"] is False
    assert kubernetes["persistent_volume_claim_retention_policy"] == {"when_deleted": "retain", "when_scaled": "retain"}
    assert kubernetes["spilo_runasuser"] == 101
    assert kubernetes["spilo_allow_privilege_escalation"] is False
    assert chart["configPatroni"]["enable_patroni_failsafe_mode"] is True


def test_operator_and_controller_leave_a_dead_node_soon(school: RecordingMonitor) -> None:
    for tolerations in (
        values(school, "postgres-operator-chart")["tolerations"],
        values(school, "metallb-chart")["controller"]["tolerations"],
    ):
        assert {item["key"] for item in tolerations} == {
            "node.kubernetes.io/unreachable",
            "node.kubernetes.io/not-ready",
        }
        assert {item["tolerationSeconds"] for item in tolerations} == {10}


def test_the_cluster_is_what_the_configuration_says(school: RecordingMonitor, topics: dict[str, Any]) -> None:
    spec, wanted = school.named("postgres-cluster").clear["spec"], topics["postgres"]
    assert spec["numberOfInstances"] == wanted["instances"]
    assert spec["postgresql"]["version"] == wanted["version"]
    assert spec["postgresql"]["parameters"] == {"password_encryption": "scram-sha-256", **wanted["parameters"]}
    assert spec["users"] == wanted["users"]
    assert spec["databases"] == wanted["databases"]
    assert spec["volume"] == {"size": "10Gi", "storageClass": "local-path"}
    assert spec["allowedSourceRanges"] == wanted["allowedSources"]
    assert spec["connectionPooler"] == {"numberOfInstances": 2, "mode": "transaction", "maxDBConnections": 60}


def test_patroni_loses_no_commit_and_its_times_fit_together(school: RecordingMonitor) -> None:
    patroni = school.named("postgres-cluster").clear["spec"]["patroni"]
    assert patroni["synchronous_mode"] is True
    assert patroni["failsafe_mode"] is True
    assert patroni["loop_wait"] + 2 * patroni["retry_timeout"] <= patroni["ttl"]


def test_every_service_of_the_database_has_its_fixed_address(school: RecordingMonitor) -> None:
    spec = school.named("postgres-cluster").clear["spec"]
    pooler = school.named("postgres-pooler-address").clear
    for given, address in (
        (spec["masterServiceAnnotations"], "10.0.145.130"),
        (spec["replicaServiceAnnotations"], "10.0.145.131"),
        (pooler["metadata"]["annotations"], "10.0.145.132"),
    ):
        assert given == {"metallb.io/loadBalancerIPs": address, "metallb.io/address-pool": "metallb"}
    assert spec["enableMasterPoolerLoadBalancer"] is False
    assert pooler["spec"]["loadBalancerSourceRanges"] == ["10.0.145.0/24"]


def test_addresses_are_handed_out_by_name_only(school: RecordingMonitor) -> None:
    pool = school.named("metallb-pool").clear
    assert pool["spec"] == {"addresses": ["10.0.145.130-10.0.145.149"], "autoAssign": False, "avoidBuggyIPs": True}
    assert school.named("metallb-advertisement").clear["spec"] == {"ipAddressPools": [pool["metadata"]["name"]]}


def test_the_cluster_is_awaited_and_finds_its_passwords(school: RecordingMonitor) -> None:
    cluster, secret = school.named("postgres-cluster"), school.named("postgres-credentials-bauer")
    assert cluster.clear["metadata"]["annotations"]["pulumi.com/waitFor"] == (
        "jsonpath={.status.PostgresClusterStatus}=Running"
    )
    limit = int(cluster.clear["metadata"]["annotations"]["pulumi.com/timeoutSeconds"])
    assert limit < seconds(cluster.timeouts["create"])
    assert school.waits_for(cluster, secret)
    assert school.waits_for(cluster, school.named("postgres-operator-chart"))
    assert school.waits_for(cluster, school.named("metallb-pool"))
    assert secret.clear["metadata"]["name"] == "bauer.wichtige-daten-3.credentials.postgresql.acid.zalan.do"
    assert secret.clear["metadata"]["namespace"] == "postgres"


# --- the backup


def test_the_backup_runs_by_night_and_never_twice_at_once(school: RecordingMonitor) -> None:
    job = school.named("backup-schedule").clear
    assert job["metadata"]["name"] == "wichtige-daten-3-backup"
    spec = job["spec"]
    assert (spec["schedule"], spec["timeZone"]) == ("0 2 * * *", "Europe/Berlin")
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["startingDeadlineSeconds"] == 4 * 3600
    assert spec["jobTemplate"]["spec"]["activeDeadlineSeconds"] == 3 * 3600
    assert school.waits_for(school.named("backup-schedule"), school.named("postgres-cluster"))


def test_the_backup_dumps_first_and_then_uploads(school: RecordingMonitor) -> None:
    pod = school.named("backup-schedule").clear["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (dump,), (upload,) = pod["initContainers"], pod["containers"]
    assert dump["command"] == ["/bin/sh", "/scripts/dump.sh"]
    assert upload["command"] == ["/bin/sh", "/scripts/upload.sh"]
    assert pod["restartPolicy"] == "Never"
    environment = {item["name"]: item for item in [*dump["env"], *upload["env"]]}
    assert environment["PGHOST"]["value"] == "wichtige-daten-3.postgres.svc"
    assert environment["DATABASES"]["value"] == "firmendaten"
    assert environment["PATH"]["value"].startswith("/usr/lib/postgresql/16/bin:")
    assert environment["KEEP_DAYS"]["value"] == "14"
    for name in ("PGPASSWORD", "SMB_PASSWORD", "SMB_USER", "PGUSER"):
        assert "value" not in environment[name]
        assert environment[name]["valueFrom"]["secretKeyRef"]["name"]


def test_the_backup_runs_without_any_right(school: RecordingMonitor) -> None:
    pod = school.named("backup-schedule").clear["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    for container in [*pod["initContainers"], *pod["containers"]]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]


def test_the_backups_mounts_and_secrets_all_exist(school: RecordingMonitor) -> None:
    pod = school.named("backup-schedule").clear["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in [*pod["initContainers"], *pod["containers"]]:
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    scripts = school.named("backup-scripts").clear
    assert set(scripts["data"]) == {"dump.sh", "upload.sh"}
    (volume,) = [volume for volume in pod["volumes"] if "configMap" in volume]
    assert volume["configMap"]["name"] == scripts["metadata"]["name"]
    assert school.named("backup-share-credentials").clear["metadata"]["name"] == "wichtige-daten-3-backup-share"


# --- what a change changes


def changed(before: RecordingMonitor, after: RecordingMonitor) -> set[str]:
    """Names of the resources that both have and whose inputs differ."""
    then = {resource.name: resource.inputs for resource in before.registered()}
    return {
        resource.name
        for resource in after.registered()
        if resource.name in then and then[resource.name] != resource.inputs
    }


def new_in(before: RecordingMonitor, after: RecordingMonitor) -> Iterator[Registered]:
    then = {resource.name for resource in before.registered()}
    return (resource for resource in after.registered() if resource.name not in then)


def test_the_same_configuration_asks_for_the_same_again(school: RecordingMonitor, run: Any) -> None:
    again = run()
    assert changed(school, again) == set()
    assert list(new_in(school, again)) == []


def test_more_memory_for_one_machine_changes_its_container_and_nothing_else(
    school: RecordingMonitor, more_memory: RecordingMonitor
) -> None:
    assert changed(school, more_memory) == {"gl6-container"}
    before, after = (dict(container_of(monitor, "gl6")) for monitor in (school, more_memory))
    assert {key for key in before if before[key] != after[key]} == {"memory"}
    assert list(new_in(school, more_memory)) == []


def test_one_more_worker_changes_only_lists_that_name_all_machines(
    school: RecordingMonitor, one_more_worker: RecordingMonitor
) -> None:
    hosts_files = {f"{machine}-hosts-file" for machine in MACHINES}
    assert changed(school, one_more_worker) == {*hosts_files, "k3s-ready"}
    assert {resource.name for resource in new_in(school, one_more_worker)} == {
        "gl11",
        "gl11-vm-id",
        "gl11-container",
        "gl11-lxc-lines",
        "gl11-host-key",
        "gl11-prepared",
        "gl11-hosts-file",
        "k3s-gl11",
        "k3s-gl11-node-password",
    }


def test_a_change_of_protection_changes_no_input(school: RecordingMonitor, unprotected: RecordingMonitor) -> None:
    assert changed(school, unprotected) == set()
