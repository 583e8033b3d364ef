"""Where everything of the lab is: paths, addresses and names. Every other module takes them from here."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
"""The working tree the lab was started from."""

# ------------------------------------------------------------------ directories

CACHE = Path(os.environ.get("SCHOOL_LAB_CACHE", "/var/cache/school-lab"))
"""Built artefacts, keyed by content. Survives ``school lab down``."""

STATE = Path(os.environ.get("SCHOOL_LAB_STATE", "/var/lib/school-lab"))
"""Everything one lab consists of; ``school lab down`` removes it."""

RUNTIME = Path(os.environ.get("SCHOOL_LAB_RUNTIME", "/run/school-lab"))
"""Pid files, sockets and links that are worthless after a reboot."""

LOGS = STATE / "logs"
PIDS = RUNTIME / "pids"
CONTAINERS = STATE / "containers"
"""One directory a container: its layer over the template, its /var/lib, its LXC configuration and logs."""

TEMPLATE_ROOTS = CACHE / "template-roots"
"""Unpacked container templates, one directory a SHA-512, shared read-only by the containers made from them."""

PROXMOX_HOST = STATE / "pve1"
"""What belongs to the Proxmox host alone: its /etc, /root and /usr/sbin layers and /etc/pve."""
PVE_ETC = PROXMOX_HOST / "pve"
"""The directory that the Proxmox host sees as /etc/pve."""
GUEST_CONFIGS = PVE_ETC / "nodes" / "pve1" / "lxc"
"""``<vmid>.conf`` of every container: the one truth about it."""
TEMPLATE_CACHE = PROXMOX_HOST / "vz" / "template" / "cache"
"""What the Proxmox host sees as /var/lib/vz/template/cache."""
AUTHORIZED_KEYS = PVE_ETC / "priv" / "authorized_keys"

CERTIFICATES = STATE / "ca"
CA_CERTIFICATE = CERTIFICATES / "ca.crt"
CA_BUNDLE = CERTIFICATES / "bundle.crt"
"""The lab's CA after the machine's own, for tools that read ``SSL_CERT_FILE``."""

SSH_KEY = STATE / "ssh" / "id_ed25519"
"""Logs in as root on the Proxmox host and on every machine."""
PROXMOX_HOST_KEY = STATE / "ssh" / "pve1_host_ed25519"
API_TOKEN = STATE / "secrets" / "proxmox-api-token"
"""``user@realm!id=uuid``, the credential of the program."""
API_PASSWORD = STATE / "secrets" / "proxmox-root-password"
PASSPHRASE = STATE / "secrets" / "pulumi-passphrase"
PULUMI_BACKEND = STATE / "state"
PULUMI_HOME = STATE / "pulumi-home"

ARTEFACTS = STATE / "artefacts"
"""Links to cached artefacts, laid out as the artefact server shows them."""

STAND_INS = RUNTIME / "stand-ins"
"""Links to the stand-in plugins that this machine needs; last on PATH."""
API_SOCKET = RUNTIME / "pve1.sock"
"""The Proxmox interface without a login, for root on the Proxmox host (``pct``)."""
APT_PROXY_SOCKET = RUNTIME / "apt-proxy.sock"
SUPERVISOR_PID = PIDS / "supervisor"
SYSCTL_BEFORE = STATE / "sysctl-before.json"

STACK = os.environ.get("SCHOOL_LAB_STACK", "lab")
STACK_FILE = REPOSITORY / f"Pulumi.{STACK}.yaml"
SCHOOL_STACK_FILE = REPOSITORY / "Pulumi.school.yaml"

# ------------------------------------------------------------------ network

NAMESPACE = os.environ.get("SCHOOL_LAB_NAMESPACE", "school-lab")
NAMESPACE_PATH = Path("/run/netns") / NAMESPACE
BRIDGE = "vmbr0"
NETWORK = ipaddress.IPv4Network("10.0.145.0/24")
GATEWAY = "10.0.145.1"
"""The school's router, package proxy, registry and artefact server. There is no route beyond it."""

PROXMOX_ADDRESS = "10.0.145.10"
PROXMOX_NODE = "pve1"
PROXMOX_ENDPOINT = f"https://{PROXMOX_ADDRESS}:8006/"
PROXMOX_PORT = 8006
SSH_PORT = 22

FAKEPVE_ADDRESS = "127.0.0.2"
"""Loopback address of the namespace that fakepve answers on; nothing but the gateway reaches it."""

APT_PROXY_PORT = 3142
APT_PROXY_URL = f"http://{GATEWAY}:{APT_PROXY_PORT}"
APT_PROXY_LOOPBACK_PORT = int(os.environ.get("SCHOOL_LAB_LOOPBACK_PORT", "3143"))
"""Port on the machine's own loopback where the package proxy listens before socat carries it over."""

REGISTRY_PORT = 5000
REGISTRY_URL = f"http://{GATEWAY}:{REGISTRY_PORT}"
ARTEFACT_PORT = 8080
ARTEFACT_URL = f"http://{GATEWAY}:{ARTEFACT_PORT}"

TEMPLATE_NAME = "debian-12-standard_12.12-1_amd64.tar.zst"


def container(vmid: int) -> Path:
    """Directory of the container ``vmid``; it need not exist."""
    return CONTAINERS / str(vmid)
