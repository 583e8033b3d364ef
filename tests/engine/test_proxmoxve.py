"""Containers and templates on a fake Proxmox VE, as the lab's ``proxmoxve`` provider makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lab.engine.provider import Call, ProviderError
from lab.engine.proxmoxve import (
    Container,
    DownloadedFile,
    ProxmoxProvider,
    complete,
    create_parameters,
    observed,
    refreshed,
    update_parameters,
)

if TYPE_CHECKING:
    from tests.engine.conftest import FakeProxmox, Stack

pytestmark = pytest.mark.engine

PROGRAM = """
import pulumi_proxmoxve as proxmoxve
from pulumi_proxmoxve import download

provider = proxmoxve.Provider(
    "proxmox", endpoint=option("endpoint"), insecure=option("insecure", False), username="root@pam", password="secret"
)
name = "debian-12-standard_12.12-1_amd64.tar.zst"
template = download.File(
    "template", node_name="pve1", datastore_id="local", content_type="vztmpl", url="http://mirror.invalid/" + name,
    file_name=name, overwrite=False, opts=pulumi.ResourceOptions(provider=provider),
)
container = proxmoxve.ContainerLegacy(
    "container", node_name="pve1", vm_id=110, unprivileged=False, tags=["school"], description="by Pulumi",
    operating_system=proxmoxve.ContainerLegacyOperatingSystemArgs(template_file_id=template.id, type="debian"),
    cpu=proxmoxve.ContainerLegacyCpuArgs(cores=option("cores", 1)),
    memory=proxmoxve.ContainerLegacyMemoryArgs(dedicated=option("memory", 512), swap=0),
    disk=proxmoxve.ContainerLegacyDiskArgs(datastore_id="local-lvm", size=option("disk", 4)),
    network_interfaces=[proxmoxve.ContainerLegacyNetworkInterfaceArgs(name="eth0", bridge="vmbr0")],
    startup=proxmoxve.ContainerLegacyStartupArgs(order=2, up_delay=10),
    initialization=proxmoxve.ContainerLegacyInitializationArgs(
        hostname="gl2",
        dns=proxmoxve.ContainerLegacyInitializationDnsArgs(domain="schule.lan", servers=["10.0.145.1"]),
        ip_configs=[proxmoxve.ContainerLegacyInitializationIpConfigArgs(
            ipv4=proxmoxve.ContainerLegacyInitializationIpConfigIpv4Args(address="10.0.145.110/24", gateway="10.0.145.1")
        )],
        user_account=proxmoxve.ContainerLegacyInitializationUserAccountArgs(keys=[option("key", "ssh-ed25519 AAAA a")]),
    ),
    opts=pulumi.ResourceOptions(provider=provider, delete_before_replace=option("delete_first", True)),
)
pulumi.export("address", container.ipv4["eth0"])
"""


@pytest.fixture
def pve_stack(stack: Stack, proxmox: FakeProxmox) -> Stack:
    """A stack with a template and a container on the fake host, not yet made."""
    stack.options["endpoint"] = proxmox.endpoint
    stack.environment["SSL_CERT_FILE"] = str(proxmox.certificate)
    stack.write(PROGRAM)
    return stack


def test_a_container_is_made_from_a_template_changed_read_and_destroyed(pve_stack: Stack, proxmox: FakeProxmox) -> None:
    first = pve_stack.up().expect()
    assert 'address: "10.0.145.110"' in first.text
    assert proxmox.containers() == {110}
    assert "5 unchanged" not in first.text
    assert "4 unchanged" in pve_stack.run("up", "--yes", "--refresh").expect().text
    # cores, disk growth: in place and running on; memory: with a reboot
    pve_stack.options |= {"cores": 2, "disk": 8}
    pve_stack.up().expect()
    assert proxmox.tasks("vzreboot") == 0
    pve_stack.options["memory"] = 1024
    assert "1 updated" in pve_stack.up().expect().text
    assert proxmox.tasks("vzreboot") == 1
    config = proxmox.call("GET", "nodes/pve1/lxc/110/config")
    assert (config["cores"], config["memory"], config["hostname"]) == (2, 1024, "gl2")
    # a smaller disk, another key: only a new container
    pve_stack.options["disk"] = 4
    assert "1 to replace" in pve_stack.run("preview").expect().text
    pve_stack.options |= {"disk": 8, "key": "ssh-ed25519 AAAA b"}
    assert "1 to replace" in pve_stack.run("preview").expect().text
    pve_stack.destroy().expect()
    assert proxmox.containers() == set()


def test_replacing_a_container_with_a_fixed_number_destroys_it_unless_the_old_one_goes_first(
    pve_stack: Stack, proxmox: FakeProxmox
) -> None:
    pve_stack.up().expect()
    pve_stack.options["key"] = "ssh-ed25519 AAAA b"
    pve_stack.up().expect()
    assert proxmox.containers() == {110}
    pve_stack.options |= {"key": "ssh-ed25519 AAAA c", "delete_first": False}
    pve_stack.up().expect()
    assert proxmox.containers() == set()


def test_a_foreign_container_of_the_same_number_is_adopted(pve_stack: Stack, proxmox: FakeProxmox) -> None:
    template = "local:vztmpl/debian-12-standard_12.12-1_amd64.tar.zst"
    proxmox.call(
        "POST",
        "nodes/pve1/storage/local/download-url",
        content="vztmpl",
        filename=template.rpartition("/")[2],
        url="http://mirror.invalid/t.tar.zst",
    )
    proxmox.call(
        "POST",
        "nodes/pve1/lxc",
        vmid="110",
        ostemplate=template,
        hostname="foreign",
        storage="local-lvm",
        net0="name=eth0,bridge=vmbr0,ip=10.0.145.9/24",
        start="1",
    )
    pve_stack.up().expect()
    assert proxmox.call("GET", "nodes/pve1/lxc/110/config")["hostname"] == "foreign"
    pve_stack.destroy().expect()
    assert proxmox.containers() == set()


def test_a_failed_update_is_stored_as_done_until_a_refresh(pve_stack: Stack, proxmox: FakeProxmox) -> None:
    pve_stack.up().expect()
    pve_stack.options["cores"] = 9000
    assert "Container update failed: received an HTTP 400" in pve_stack.up().expect_failure().text
    pve_stack.up().expect()
    assert proxmox.call("GET", "nodes/pve1/lxc/110/config")["cores"] == 1
    assert "Container update failed" in pve_stack.up("--refresh").expect_failure().text


def test_reading_while_the_api_is_down_drops_a_file_but_fails_for_a_container() -> None:
    provider = ProxmoxProvider()
    token = "root@pam!lab=11111111-2222-3333-4444-555555555555"
    provider.configure({"endpoint": "https://127.0.0.1:1/", "apiToken": token})
    call = Call(provider, "urn:pulumi:lab::test::proxmoxve:download/file:File::template")
    stored = {"nodeName": "pve1", "datastoreId": "local", "contentType": "vztmpl"}
    assert DownloadedFile().read(call, "local:vztmpl/t.tar.zst", stored, stored) is None
    with pytest.raises(ProviderError, match="connection refused"):
        Container().read(call, "110", {"nodeName": "pve1"}, {})


def test_a_certificate_of_nobody_known_is_refused_unless_insecure(pve_stack: Stack) -> None:
    pve_stack.environment["SSL_CERT_FILE"] = "/etc/ssl/certs/ca-certificates.crt"
    assert "failed to verify certificate" in pve_stack.up().expect_failure().text
    pve_stack.options["insecure"] = True
    pve_stack.up().expect()


def test_everything_that_is_wished_arrives_in_the_request_that_makes_a_container() -> None:
    wished = {
        "operatingSystem": {"templateFileId": "local:vztmpl/t.tar.zst", "type": "debian"},
        "features": {"nesting": True, "mounts": ["nfs", "cifs"]},
        "devicePassthroughs": [{"path": "/dev/kmsg", "mode": "0600"}],
        "mountPoints": [{"path": "/srv", "volume": "local-lvm", "size": "20G", "backup": True}],
        "console": {"type": "shell"},
        "protection": True,
        "startup": {"order": 3},
        "initialization": {"userAccount": {"password": "secret"}},
    }
    made = create_parameters(complete(wished), 120)
    assert made["features"] == "nesting=1,mount=nfs;cifs"
    assert made["dev0"] == "/dev/kmsg,deny-write=0,gid=0,mode=0600,uid=0"
    assert made["mp0"] == "local-lvm:20,mp=/srv,backup=1"
    assert (made["cmode"], made["protection"], made["startup"], made["password"]) == ("shell", "1", "order=3", "secret")
    assert made["rootfs"] == "local:4"


def test_a_container_as_wished_is_read_back_as_it_was_written_and_what_differs_is_seen() -> None:
    wished = {
        "nodeName": "pve1",
        "description": "text",
        "mountPoints": [{"path": "/srv", "volume": "local-lvm", "size": "20G", "backup": True}],
        "networkInterfaces": [{"name": "eth0"}],
        "disk": {"datastoreId": "local-lvm", "size": 8},
        "startup": {"order": 3},
    }
    config = {
        "description": "text\n",
        "rootfs": "local-lvm:vm-110-disk-0,size=8G",
        "mp0": "local-lvm:vm-110-disk-1,mp=/srv,backup=1,size=20G",
        "net0": "name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:00:01,type=veth",
        "startup": "order=3",
        "onboot": 1,
    }
    assert refreshed(wished, observed(config, True)) == wished
    changed = refreshed(wished, observed(config | {"memory": 2048}, True))
    assert changed["memory"]["dedicated"] == 2048
    update = update_parameters(complete(changed), complete(wished), [("memory", "dedicated")])
    assert update == {"memory": 512, "swap": 0}
