"""Stand-in for the ``proxmoxve`` provider: ``ContainerLegacy`` and ``download.File`` over the Proxmox VE API.

Ways of the real one that are kept, because a program must be right with them: creating a container whose number is
taken counts as success, and the foreign container is then managed, and destroyed, as ours; a failed update is stored
as done; reading a downloaded file drops it from the state when the API does not answer; some changes reboot the container.
"""

from __future__ import annotations

import copy
import math
import os
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any, Final

from lab.engine.provider import (
    UNKNOWN,
    Call,
    Diff,
    InputError,
    PartialError,
    Path,
    Provider,
    ProviderError,
    Resource,
    Values,
    contains_unknown,
    lookup,
    names_path,
    serve,
    structural_diff,
)
from lab.engine.pve_client import AuthenticationFailed, Credentials, NotThere, PveClient, PveError

SDK_MODULES: Final = ("pulumi_proxmoxve", "pulumi_proxmoxve.download")
"""Where the properties of the types are described."""
API_TOKEN: Final = re.compile(r"^\S+@\S+!\S+=[0-9a-fA-F-]{36}$")
REBOOT_SECONDS: Final = 300
LOCK_SECONDS: Final = 60
STATUS_SECONDS: Final = 60
ADDRESS_SECONDS: Final = 10
DELETE_MARGIN_SECONDS: Final = 5
"""How much sooner Proxmox is told to use force than we stop waiting."""

DEFAULTS: Final[Values] = {
    "console": {"enabled": True, "type": "tty", "ttyCount": 2},
    "cpu": {"architecture": "amd64", "cores": 1, "limit": 0, "units": 0},
    "description": "",
    "devicePassthroughs": [],
    "disk": {"acl": False, "datastoreId": "local", "mountOptions": [], "quota": False, "replicate": False, "size": 4},
    "environmentVariables": {},
    "features": {"fuse": False, "keyctl": False, "mknod": False, "mounts": [], "nesting": False},
    "hookScriptFileId": "",
    "initialization": {"dns": {"domain": "", "servers": []}, "entrypoint": "", "hostname": "", "ipConfigs": []},
    "memory": {"dedicated": 512, "swap": 0},
    "mountPoints": [],
    "networkInterfaces": [],
    "poolId": "",
    "protection": False,
    "startOnBoot": True,
    "started": True,
    "startup": None,
    "tags": [],
    "template": False,
    "timeoutCreate": 1800,
    "timeoutDelete": 60,
    "timeoutUpdate": 1800,
    "unprivileged": False,
}
DEVICE_DEFAULTS: Final[Values] = {"denyWrite": False, "gid": 0, "mode": "0660", "uid": 0}
MOUNT_DEFAULTS: Final[Values] = {
    "acl": False,
    "backup": False,
    "mountOptions": [],
    "quota": False,
    "readOnly": False,
    "replicate": True,
    "shared": False,
    "size": "",
}
NETWORK_DEFAULTS: Final[Values] = {
    "bridge": "vmbr0",
    "enabled": True,
    "firewall": False,
    "hostManaged": False,
    "macAddress": "",
    "mtu": 0,
    "rateLimit": 0,
    "vlanId": 0,
}
STARTUP_DEFAULTS: Final[Values] = {"order": -1, "upDelay": -1, "downDelay": -1}
REBOOTING: Final = (
    "console",
    "devicePassthroughs",
    "environmentVariables",
    "initialization.dns",
    "initialization.entrypoint",
    "initialization.hostname",
    "initialization.ipConfigs",
    "memory",
    "mountPoints",
    "networkInterfaces",
)
"""Inputs whose change is followed by a reboot of the container."""


def complete(inputs: Values) -> Values:
    """Inputs with every default filled in, so that two of them can be compared."""
    merged = _merge(DEFAULTS, inputs)
    merged["description"] = _or_unknown(merged["description"], lambda text: text.rstrip("\n"))
    merged["tags"] = _or_unknown(merged["tags"], lambda tags: sorted(tag.strip() for tag in tags if tag.strip()))
    for name, defaults in (
        ("devicePassthroughs", DEVICE_DEFAULTS),
        ("mountPoints", MOUNT_DEFAULTS),
        ("networkInterfaces", NETWORK_DEFAULTS),
    ):
        if isinstance(merged[name], list):
            merged[name] = [_merge(defaults, item) if isinstance(item, Mapping) else item for item in merged[name]]
    if isinstance(merged["startup"], Mapping):
        merged["startup"] = _merge(STARTUP_DEFAULTS, merged["startup"])
    dns = lookup(merged, "initialization.dns")
    if isinstance(dns, dict) and dns.get("server"):
        dns["servers"] = dns.get("servers") or dns["server"].split()
    return merged


def _or_unknown(value: Any, change: Any) -> Any:
    return value if contains_unknown(value) or value is None else change(value)


def _merge(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> Values:
    merged = copy.deepcopy(dict(defaults))
    for key, value in values.items():
        if value is None:
            continue
        known = merged.get(key)
        merged[key] = _merge(known, value) if isinstance(known, dict) and isinstance(value, Mapping) else value
    return merged


def _wished(state: Values) -> Values:
    """The stored outputs as complete inputs: these, not the stored inputs, are what a change is measured by."""
    return complete({name: value for name, value in state.items() if name not in Container.computed_outputs})


def _without_drawn_addresses(old: Values, new: Values) -> Values:
    """``old`` with the hardware addresses that Proxmox drew left out where ``new`` wishes for none: no difference."""
    cards = [
        {**card, "macAddress": ""} if number < len(new["networkInterfaces"]) and not _drawn(new, number) else card
        for number, card in enumerate(old["networkInterfaces"])
    ]
    return {**old, "networkInterfaces": cards}


def _drawn(values: Values, number: int) -> Any:
    return values["networkInterfaces"][number].get("macAddress")


def _with_addresses(cards: Sequence[Values], present: Sequence[Values]) -> list[Values]:
    """``cards`` with the hardware addresses of ``present`` where they name none."""
    known = [card.get("macAddress") or "" for card in present]
    return [
        {**card, "macAddress": card.get("macAddress") or (known[number] if number < len(known) else "")}
        for number, card in enumerate(cards)
    ]


# --- inputs to the API's parameters ---------------------------------------------------------------------------


def _flag(value: Any) -> str:
    return "1" if value else "0"


def _options(first: str, pairs: Sequence[tuple[str, Any]]) -> str:
    return ",".join([first] * bool(first) + [f"{name}={value}" for name, value in pairs if value not in (None, "")])


def _gigabytes(size: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", size.strip(), re.IGNORECASE)
    if not match:
        raise ProviderError(f"invalid disk size: {size!r}; write it like 20G")
    exponent = {"": -3, "K": -2, "M": -1, "G": 0, "T": 1}[match[2].upper()]
    return math.ceil(float(match[1]) * math.pow(1024, exponent))


def network_parameters(full: Values) -> dict[str, str]:
    """``net0``, ``net1``, ... with the address of the ``ipConfigs`` entry at the same place."""
    addresses = lookup(full, "initialization.ipConfigs") or []
    found = {}
    for index, card in enumerate(full["networkInterfaces"]):
        address = addresses[index] if index < len(addresses) else {}
        found[f"net{index}"] = _options(
            f"name={card['name']}",
            [
                ("bridge", card["bridge"]),
                ("firewall", 1 if card["firewall"] else None),
                ("host-managed", 1 if card["hostManaged"] else None),
                ("hwaddr", card["macAddress"]),
                ("ip", lookup(address, "ipv4.address")),
                ("gw", lookup(address, "ipv4.gateway")),
                ("ip6", lookup(address, "ipv6.address")),
                ("gw6", lookup(address, "ipv6.gateway")),
                ("mtu", card["mtu"] or None),
                ("rate", card["rateLimit"] or None),
                ("tag", card["vlanId"] or None),
            ],
        )
    return found


def mount_parameters(full: Values) -> dict[str, str]:
    """``mp0``, ``mp1``, ...; a volume that is only a storage's name makes a new one of ``size``."""
    found = {}
    for index, mount in enumerate(full["mountPoints"]):
        volume, size = mount["volume"], mount["size"]
        if size and not volume.partition(":")[2]:
            volume, size = f"{volume.rstrip(':')}:{_gigabytes(size)}", ""
        found[f"mp{index}"] = _options(
            volume,
            [
                ("mp", mount["path"]),
                ("acl", 1 if mount["acl"] else None),
                ("backup", 1 if mount["backup"] else None),
                ("mountoptions", ";".join(mount["mountOptions"])),
                ("quota", 1 if mount["quota"] else None),
                ("ro", 1 if mount["readOnly"] else None),
                ("replicate", None if mount["replicate"] else 0),
                ("shared", 1 if mount["shared"] else None),
                ("size", size),
            ],
        )
    return found


def device_parameters(full: Values) -> dict[str, str]:
    """``dev0``, ``dev1``, ..."""
    return {
        f"dev{index}": _options(
            device["path"],
            [
                ("deny-write", _flag(device["denyWrite"])),
                ("gid", device["gid"]),
                ("mode", device["mode"]),
                ("uid", device["uid"]),
            ],
        )
        for index, device in enumerate(full["devicePassthroughs"])
    }


def feature_text(features: Values, *, with_false: bool) -> str:
    """The ``features`` parameter; an update names the false ones too, so that they can be taken back."""
    pairs = [
        (name, _flag(features[name]) if with_false or features[name] else None)
        for name in ("nesting", "keyctl", "fuse", "mknod")
    ]
    return _options("", [*pairs, ("mount", ";".join(features["mounts"]))])


def startup_text(startup: Values | None) -> str:
    """The ``startup`` parameter."""
    if startup is None:
        return ""
    pairs = (("order", "order"), ("up", "upDelay"), ("down", "downDelay"))
    return _options("", [(name, startup[key] if startup[key] >= 0 else None) for name, key in pairs])


def create_parameters(full: Values, vm_id: int) -> dict[str, Any]:
    """All parameters of the request that makes a container."""
    disk, initialization, account = (
        full["disk"],
        full["initialization"],
        full["initialization"].get("userAccount") or {},
    )
    parameters: dict[str, Any] = {
        "vmid": vm_id,
        "ostemplate": full["operatingSystem"]["templateFileId"],
        "ostype": full["operatingSystem"].get("type") or "unmanaged",
        "console": _flag(full["console"]["enabled"]),
        "cmode": full["console"]["type"],
        "tty": full["console"]["ttyCount"],
        "arch": full["cpu"]["architecture"],
        "cores": full["cpu"]["cores"],
        "cpulimit": full["cpu"]["limit"],
        "cpuunits": full["cpu"]["units"] or None,
        "description": full["description"],
        "env": "\0".join(f"{name}={value}" for name, value in full["environmentVariables"].items()),
        "features": feature_text(full["features"], with_false=False),
        "hookscript": full["hookScriptFileId"],
        "hostname": initialization["hostname"],
        "entrypoint": initialization["entrypoint"],
        "nameserver": " ".join(initialization["dns"]["servers"]),
        "searchdomain": initialization["dns"]["domain"],
        "ssh-public-keys": "\n".join(key.strip() for key in account.get("keys") or []),
        "password": account.get("password"),
        "memory": full["memory"]["dedicated"],
        "swap": full["memory"]["swap"],
        "onboot": _flag(full["startOnBoot"]),
        "pool": full["poolId"],
        "protection": _flag(full["protection"]),
        "start": _flag(full["started"]),
        "startup": startup_text(full["startup"]),
        "storage": disk["datastoreId"],
        "tags": ";".join(full["tags"]),
        "template": _flag(full["template"]),
        "unprivileged": _flag(full["unprivileged"]),
    }
    special = disk["mountOptions"] or disk["acl"] or disk["quota"] or disk["replicate"]
    if disk["size"] != DEFAULTS["disk"]["size"] or full["mountPoints"] or special:
        parameters["rootfs"] = _options(
            f"{disk['datastoreId']}:{disk['size']}",
            [
                ("acl", 1 if disk["acl"] else None),
                ("mountoptions", ";".join(disk["mountOptions"])),
                ("quota", 1 if disk["quota"] else None),
                ("replicate", 1 if disk["replicate"] else None),
            ],
        )
    parameters |= network_parameters(full) | mount_parameters(full) | device_parameters(full)
    return {name: value for name, value in parameters.items() if value not in (None, "")}


def update_parameters(old: Values, new: Values, changed: Sequence[Path]) -> dict[str, Any]:
    """The parameters of the request that changes a container's configuration; empty if none is needed."""

    def has(pattern: str) -> bool:
        return any(names_path(pattern, path) for path in changed)

    parameters: dict[str, Any] = {}
    removed: list[str] = []

    def put(name: str, value: Any) -> None:
        if value in (None, ""):
            removed.append(name)
        else:
            parameters[name] = value

    if has("description"):
        parameters["description"] = new["description"]
    if has("template"):
        parameters["template"] = _flag(new["template"])
    if has("console"):
        console = new["console"]
        parameters |= {"console": _flag(console["enabled"]), "cmode": console["type"], "tty": console["ttyCount"]}
    if has("cpu"):
        parameters |= {"arch": new["cpu"]["architecture"], "cores": new["cpu"]["cores"]}
        put("cpulimit", new["cpu"]["limit"] or None)
        if new["cpu"]["units"]:
            parameters["cpuunits"] = new["cpu"]["units"]
    if has("environmentVariables"):
        put("env", "\0".join(f"{name}={value}" for name, value in new["environmentVariables"].items()))
    if has("features"):
        parameters["features"] = feature_text(new["features"], with_false=True)
    if has("hookScriptFileId"):
        put("hookscript", new["hookScriptFileId"])
    if has("initialization.dns"):
        put("searchdomain", new["initialization"]["dns"]["domain"])
        put("nameserver", " ".join(new["initialization"]["dns"]["servers"]))
    if has("initialization.hostname"):
        parameters["hostname"] = new["initialization"]["hostname"]
    if has("initialization.entrypoint"):
        put("entrypoint", new["initialization"]["entrypoint"])
    if has("memory"):
        parameters |= {"memory": new["memory"]["dedicated"], "swap": new["memory"]["swap"]}
    for pattern, written in (
        ("devicePassthroughs", device_parameters),
        ("mountPoints", mount_parameters),
    ):
        if has(pattern):
            parameters |= written(new)
            removed += [name for name in written(old) if name not in written(new)]
    if has("networkInterfaces") or has("initialization.ipConfigs"):
        cards = network_parameters(new)
        disabled = [f"net{index}" for index, card in enumerate(new["networkInterfaces"]) if not card["enabled"]]
        parameters |= {name: value for name, value in cards.items() if name not in disabled}
        removed += [*disabled, *(name for name in network_parameters(old) if name not in cards)]
    if has("startup"):
        put("startup", startup_text(new["startup"]))
    if has("protection"):
        parameters["protection"] = _flag(new["protection"])
    if has("startOnBoot"):
        parameters["onboot"] = _flag(new["startOnBoot"])
    if has("tags"):
        parameters["tags"] = ";".join(new["tags"])
    if removed:
        parameters["delete"] = ",".join(removed)
    return parameters


# --- the API's configuration to inputs --------------------------------------------------------------------------


def _parts(text: str) -> dict[str, str]:
    """``a,b=c`` as ``{"": "a", "b": "c"}``."""
    pairs = [part.partition("=") for part in text.split(",") if part]
    return {name if sign else "": value if sign else name for name, sign, value in pairs}


def _numbered(config: Values, prefix: str) -> list[dict[str, str]]:
    found = {int(key[len(prefix) :]): value for key, value in config.items() if re.fullmatch(rf"{prefix}\d+", key)}
    return [_parts(str(found[index])) for index in sorted(found)]


def _true(value: Any) -> bool:
    return str(value) == "1"


def observed(config: Values, started: bool) -> Values:
    """A container's present configuration in the form of :func:`complete`."""
    root = _parts(str(config.get("rootfs", "")))
    features = _parts(str(config.get("features", "")))
    startup = _parts(str(config.get("startup", "")))
    cards = _numbered(config, "net")
    addresses: list[Values] = []
    for card in cards:
        entry: Values = {}
        for family, address, gateway in (("ipv4", "ip", "gw"), ("ipv6", "ip6", "gw6")):
            if address in card or gateway in card:
                present = {"address": card.get(address), "gateway": card.get(gateway)}
                entry[family] = {name: value for name, value in present.items() if value is not None}
        if entry:
            addresses.append(entry)
    return {
        "console": {
            "enabled": _true(config.get("console", 1)),
            "type": config.get("cmode", "tty"),
            "ttyCount": int(config.get("tty", 2)),
        },
        "cpu": {
            "architecture": config.get("arch", "amd64"),
            "cores": int(config.get("cores", 1)),
            "limit": float(config.get("cpulimit", 0)),
            "units": int(config.get("cpuunits", 0)),
        },
        "description": str(config.get("description", "")).rstrip("\n"),
        "devicePassthroughs": [
            {
                "path": device.get("path", device.get("")),
                "denyWrite": _true(device.get("deny-write", 0)),
                "gid": int(device.get("gid", 0)),
                "mode": device.get("mode", "0660"),
                "uid": int(device.get("uid", 0)),
            }
            for device in _numbered(config, "dev")
        ],
        "disk": {
            "acl": _true(root.get("acl", 0)),
            "datastoreId": root.get("", root.get("volume", "")).partition(":")[0],
            "mountOptions": [option for option in root.get("mountoptions", "").split(";") if option],
            "quota": _true(root.get("quota", 0)),
            "replicate": _true(root.get("replicate", 0)),
            "size": _gigabytes(root["size"]) if "size" in root else DEFAULTS["disk"]["size"],
        },
        "features": {
            **{name: _true(features.get(name, 0)) for name in ("fuse", "keyctl", "mknod", "nesting")},
            "mounts": [kind for kind in features.get("mount", "").split(";") if kind],
        },
        "hookScriptFileId": config.get("hookscript", ""),
        "initialization": {
            "dns": {"domain": config.get("searchdomain", ""), "servers": str(config.get("nameserver", "")).split()},
            "entrypoint": config.get("entrypoint", ""),
            "hostname": config.get("hostname", ""),
            "ipConfigs": addresses,
        },
        "memory": {"dedicated": int(config.get("memory", 512)), "swap": int(config.get("swap", 0))},
        "mountPoints": [
            {
                "path": mount.get("mp", ""),
                "volume": mount.get("", mount.get("volume", "")),
                "acl": _true(mount.get("acl", 0)),
                "backup": _true(mount.get("backup", 0)),
                "mountOptions": [option for option in mount.get("mountoptions", "").split(";") if option],
                "quota": _true(mount.get("quota", 0)),
                "readOnly": _true(mount.get("ro", 0)),
                "replicate": _true(mount.get("replicate", 1)),
                "shared": _true(mount.get("shared", 0)),
                "size": mount.get("size", ""),
            }
            for mount in _numbered(config, "mp")
        ],
        "networkInterfaces": [
            {
                "name": card.get("name", ""),
                "bridge": card.get("bridge", ""),
                "enabled": True,
                "firewall": _true(card.get("firewall", 0)),
                "hostManaged": _true(card.get("host-managed", 0)),
                "macAddress": card.get("hwaddr", ""),
                "mtu": int(card.get("mtu", 0)),
                "rateLimit": float(card.get("rate", 0)),
                "vlanId": int(card.get("tag", 0)),
            }
            for card in cards
        ],
        "protection": _true(config.get("protection", 0)),
        "startOnBoot": _true(config.get("onboot", 0)),
        "started": started,
        "startup": (
            {
                "order": int(startup.get("order", -1)),
                "upDelay": int(startup.get("up", -1)),
                "downDelay": int(startup.get("down", -1)),
            }
            if startup
            else None
        ),
        "tags": sorted(tag.strip() for tag in re.split("[;,]", str(config.get("tags", ""))) if tag.strip()),
        "template": _true(config.get("template", 0)),
        "unprivileged": _true(config.get("unprivileged", 0)),
    }


def refreshed(inputs: Values, present: Values) -> Values:
    """The stored inputs with what has changed outside put in; what is as wished stays as it was written."""
    full = complete(inputs)
    present = copy.deepcopy(present)
    for wished, found in zip(full["networkInterfaces"], present["networkInterfaces"], strict=False):
        if not wished["macAddress"]:  # drawn by Proxmox
            found["macAddress"] = ""
    for wished, found in zip(full["mountPoints"], present["mountPoints"], strict=False):
        storage = wished["volume"].partition(":")
        if not storage[2] and found["volume"].partition(":")[0] == storage[0]:  # named by Proxmox
            found["volume"] = wished["volume"]
            if wished["size"] and found["size"] and _gigabytes(wished["size"]) == _gigabytes(found["size"]):
                found["size"] = wished["size"]
        elif not wished["size"]:
            found["size"] = ""
    if not inputs.get("cpu") or not inputs["cpu"].get("units"):
        present["cpu"]["units"] = full["cpu"]["units"]
    result = dict(inputs)
    for name, value in present.items():
        if name == "initialization":
            wished = dict(full["initialization"])
            account = wished.pop("userAccount", None)
            if structural_diff(wished, value):
                result[name] = value | ({"userAccount": account} if account is not None else {})
        elif structural_diff(full[name], value):
            result[name] = value
    return result


# --- the resources ---------------------------------------------------------------------------------------------------


class ProxmoxProvider(Provider):
    """The provider with its connection to the Proxmox VE API."""

    def __init__(self) -> None:
        super().__init__(
            "proxmoxve",
            {
                "proxmoxve:index/containerLegacy:ContainerLegacy": Container(),
                "proxmoxve:download/file:File": DownloadedFile(),
            },
            package="pulumi_proxmoxve",
        )
        self._client: PveClient | None = None

    def check_config(self, config: Values) -> Values:
        token = config.get("apiToken")
        if isinstance(token, str) and not API_TOKEN.match(token):
            raise InputError("apiToken", "must be of the form user@realm!name=secret, where secret is a UUID")
        return config

    def configure(self, config: Values) -> None:
        def setting(name: str, variable: str) -> Any:
            value = config.get(name)
            return os.environ.get(variable) if value in (None, "") else value

        endpoint = setting("endpoint", "PROXMOX_VE_ENDPOINT")
        if not endpoint:
            raise ProviderError("the proxmoxve provider has no endpoint; set endpoint, or PROXMOX_VE_ENDPOINT")
        credentials = Credentials(
            setting("apiToken", "PROXMOX_VE_API_TOKEN"),
            setting("username", "PROXMOX_VE_USERNAME"),
            setting("password", "PROXMOX_VE_PASSWORD"),
        )
        if not credentials.api_token and not (credentials.username and credentials.password):
            raise ProviderError("must provide either username and password, an API token, or a ticket")
        insecure = setting("insecure", "PROXMOX_VE_INSECURE") in (True, "true", "True", "1")
        try:
            self._client = PveClient(endpoint, credentials, insecure=insecure, cancelled=self.cancelled)
        except PveError as error:
            raise ProviderError(str(error)) from error

    @property
    def client(self) -> PveClient:
        """The API client. Raises :class:`ProviderError` before the provider is configured."""
        if self._client is None:
            raise ProviderError("the proxmoxve provider is not configured")
        return self._client


def _client(call: Call) -> PveClient:
    assert isinstance(call.provider, ProxmoxProvider)
    return call.provider.client


class Container(Resource):
    """``ContainerLegacy``: an LXC container, made from a template."""

    inputs_class = "pulumi_proxmoxve:ContainerLegacyArgs"
    computed_outputs = ("ipv4", "ipv6", "vmId")
    replace_on = (
        "disk.datastoreId",
        "initialization.userAccount",
        "mountPoints.size",
        "mountPoints.volume",
        "nodeName",
        "operatingSystem",
        "poolId",
        "template",
        "unprivileged",
        "vmId",
    )

    def check(self, call: Call, inputs: Values, old_inputs: Values | None) -> Values:
        for name, reason in (
            ("clone", "the lab's proxmoxve provider does not clone; give operatingSystem a template"),
            ("idmaps", "the lab's proxmoxve provider does not write id maps"),
        ):
            if inputs.get(name):
                raise InputError(name, reason)
        if lookup(inputs, "operatingSystem.templateFileId") is None and inputs.get("operatingSystem") is not UNKNOWN:
            raise InputError("operatingSystem.templateFileId", "required field is not set")
        return inputs

    def diff(self, call: Call, resource_id: str, old_inputs: Values, old_state: Values, inputs: Values) -> Diff:
        old, new = _wished(old_state or old_inputs), complete(inputs)
        if inputs.get("vmId") is not None:
            old["vmId"] = int(resource_id)
        old = _without_drawn_addresses(old, new)
        changes = structural_diff(old, new)
        replaces = {path for path in changes if any(names_path(pattern, path) for pattern in self.replace_on)}
        for path in changes:
            if path == ("disk", "size") and isinstance(new["disk"]["size"], int | float):
                shrinks = new["disk"]["size"] < old["disk"]["size"]
                replaces |= {path} if shrinks else set()
        return Diff(changes, replaces)

    def planned(self, call: Call, inputs: Values, old_state: Values | None) -> Values:
        outputs = super().planned(call, inputs, old_state)
        if inputs.get("vmId") is not None:
            outputs["vmId"] = inputs["vmId"]
        if old_state is not None and isinstance(outputs.get("networkInterfaces"), list):
            outputs["networkInterfaces"] = _with_addresses(
                outputs["networkInterfaces"], old_state.get("networkInterfaces") or []
            )
        return outputs

    def create(self, call: Call, inputs: Values) -> tuple[str, Values]:
        client, full, node = _client(call), complete(inputs), inputs["nodeName"]
        try:
            vm_id = int(inputs["vmId"] if inputs.get("vmId") is not None else client.get("cluster/nextid"))
            try:
                task = client.post(f"nodes/{node}/lxc", create_parameters(full, vm_id))
                self._finish(call, node, task, full["timeoutCreate"])
            except PveError as error:
                # The real provider takes a container that exists for the one it was about to make.
                if "already exists" not in str(error):
                    raise
        except PveError as error:
            raise ProviderError(f"Container create failed: {error}") from error
        try:
            self._wait_for_unlock(client, node, vm_id)
            if full["started"] and not full["template"]:
                self._start(call, node, vm_id, full["timeoutCreate"])
            return str(vm_id), self._outputs(call, node, vm_id, inputs)
        except PveError as error:
            outputs = {**full, "vmId": vm_id, "ipv4": {}, "ipv6": {}}
            raise PartialError(f"Container start failed: {error}", str(vm_id), outputs) from error

    def read(self, call: Call, resource_id: str, inputs: Values, state: Values) -> tuple[Values, Values] | None:
        client = _client(call)
        node = (inputs or state).get("nodeName")
        if node is None:
            raise ProviderError(f"container {resource_id} has no nodeName in the state; it cannot be read")
        try:
            config = client.get(f"nodes/{node}/lxc/{resource_id}/config")
            status = client.get(f"nodes/{node}/lxc/{resource_id}/status/current")
            present = refreshed(inputs, observed(config, status.get("status") == "running"))
            return present, self._outputs(call, node, int(resource_id), present)
        except NotThere:
            return None
        except PveError as error:
            raise ProviderError(f"error retrieving container {resource_id}: {error}") from error

    def update(self, call: Call, resource_id: str, old_inputs: Values, old_state: Values, inputs: Values) -> Values:
        client, node, vm_id = _client(call), inputs["nodeName"], int(resource_id)
        new = complete(inputs)
        old = _without_drawn_addresses(_wished(old_state or old_inputs), new)
        changed = list(structural_diff(old, new))
        try:
            self._change(call, client, node, vm_id, old, new, changed)
            return self._outputs(call, node, vm_id, inputs)
        except PveError as error:
            # The real provider stores a failed update as done; only a refresh shows that it was not.
            outputs = {**new, "vmId": vm_id, "ipv4": old_state.get("ipv4"), "ipv6": old_state.get("ipv6")}
            raise PartialError(f"Container update failed: {error}", resource_id, outputs) from error

    def delete(self, call: Call, resource_id: str, inputs: Values, state: Values) -> None:
        client, full = _client(call), complete(state or inputs)
        path, seconds = f"nodes/{full['nodeName']}/lxc/{resource_id}", full["timeoutDelete"]
        try:
            if client.get(f"{path}/status/current").get("status") != "stopped":
                self._shut_down(call, full["nodeName"], int(resource_id), seconds)
            task = client.delete(path)
            self._finish(call, full["nodeName"], task, seconds)
        except NotThere:
            return
        except PveError as error:
            raise ProviderError(f"Container delete failed: {error}") from error

    # Inner workings.

    def _change(
        self, call: Call, client: PveClient, node: str, vm_id: int, old: Values, new: Values, changed: list[Path]
    ) -> None:
        path = f"nodes/{node}/lxc/{vm_id}"
        parameters = update_parameters(old, new, changed)
        reboot = any(names_path(pattern, part) for pattern in REBOOTING for part in changed)
        if any(names_path("disk", part) for part in changed):
            config = client.get(f"{path}/config")
            present = _parts(str(config["rootfs"]))
            disk = new["disk"]
            if _gigabytes(present.get("size", "0")) != disk["size"]:
                task = client.put(f"{path}/resize", {"disk": "rootfs", "size": f"{disk['size']}G"})
                if isinstance(task, str):
                    self._finish(call, node, task, new["timeoutUpdate"])
            if set(present.get("mountoptions", "").split(";")) - {""} != set(disk["mountOptions"]):
                reboot = True
            parameters["rootfs"] = _options(
                present.get("", present.get("volume", "")),
                [
                    ("acl", _flag(disk["acl"])),
                    ("mountoptions", ";".join(disk["mountOptions"])),
                    ("quota", _flag(disk["quota"])),
                    ("replicate", _flag(disk["replicate"])),
                    ("size", f"{disk['size']}G"),
                ],
            )
        if parameters:
            client.put(f"{path}/config", parameters)
        self._wait_for_unlock(client, node, vm_id)
        if new["template"]:
            return
        if old["started"] != new["started"]:
            if new["started"]:
                self._start(call, node, vm_id, new["timeoutUpdate"])
            else:
                self._shut_down(call, node, vm_id, new["timeoutDelete"])
                reboot = False
        if new["started"] and reboot:
            task = client.post(f"{path}/status/reboot", {"timeout": REBOOT_SECONDS})
            self._finish(call, node, task, new["timeoutUpdate"])

    @staticmethod
    def _finish(call: Call, node: str, task: str, seconds: float) -> None:
        status = _client(call).wait(node, task, seconds)
        if status != "OK":
            call.warn(f"the task {task} ended with {status}")

    @staticmethod
    def _wait_for_unlock(client: PveClient, node: str, vm_id: int) -> None:
        waited = 0.0
        while "lock" in client.get(f"nodes/{node}/lxc/{vm_id}/config"):
            if waited >= LOCK_SECONDS:
                raise PveError(f"container {vm_id} is still locked after {LOCK_SECONDS} s; see pct unlock on {node}")
            client.pause(0.5)
            waited += 0.5

    @staticmethod
    def _wait_for_status(client: PveClient, node: str, vm_id: int, wanted: str) -> None:
        waited = 0.0
        while client.get(f"nodes/{node}/lxc/{vm_id}/status/current").get("status") != wanted:
            if waited >= STATUS_SECONDS:
                raise PveError(f"container {vm_id} on {node} is not {wanted} after {STATUS_SECONDS} s")
            client.pause(0.2)
            waited += 0.2

    def _start(self, call: Call, node: str, vm_id: int, seconds: float) -> None:
        client = _client(call)
        path = f"nodes/{node}/lxc/{vm_id}/status"
        if client.get(f"{path}/current").get("status") == "running":
            return
        try:
            self._finish(call, node, client.post(f"{path}/start"), seconds)
        except PveError as error:
            if "already running" not in str(error):
                raise
        self._wait_for_status(client, node, vm_id, "running")

    def _shut_down(self, call: Call, node: str, vm_id: int, seconds: float) -> None:
        client = _client(call)
        path = f"nodes/{node}/lxc/{vm_id}/status/shutdown"
        wait = {"forceStop": 1, "timeout": max(1, int(seconds) - DELETE_MARGIN_SECONDS)}
        self._finish(call, node, client.post(path, wait), seconds)
        self._wait_for_status(client, node, vm_id, "stopped")

    def _outputs(self, call: Call, node: str, vm_id: int, inputs: Values) -> Values:
        full = complete(inputs)
        config = _client(call).get(f"nodes/{node}/lxc/{vm_id}/config")
        present = observed(config, True)["networkInterfaces"]
        full = {**full, "networkInterfaces": _with_addresses(full["networkInterfaces"], present)}
        ipv4, ipv6 = self._addresses(call, node, vm_id, full) if full["started"] and not full["template"] else ({}, {})
        return {**full, "vmId": vm_id, "ipv4": ipv4, "ipv6": ipv6}

    @staticmethod
    def _addresses(call: Call, node: str, vm_id: int, full: Values) -> tuple[Values, Values]:
        """First address of each interface and family, as the container has them now or within a few seconds."""
        client, wanted = _client(call), full.get("waitForIp") or {}
        if not full["networkInterfaces"]:
            return {}, {}
        waited = 0.0
        while True:
            found: dict[str, Values] = {"inet": {}, "inet6": {}}
            for interface in client.get(f"nodes/{node}/lxc/{vm_id}/interfaces") or []:
                if interface.get("name") == "lo":
                    continue
                for family in found:
                    if interface.get(family):
                        found[family][interface["name"]] = str(interface[family]).partition("/")[0]
            families = [family for family, name in (("inet", "ipv4"), ("inet6", "ipv6")) if wanted.get(name)]
            enough = all(found[family] for family in families) if families else any(found.values())
            if enough or waited >= ADDRESS_SECONDS:
                if not enough:
                    call.debug(f"container {vm_id} shows no address after {ADDRESS_SECONDS} s")
                return found["inet"], found["inet6"]
            client.pause(0.2)
            waited += 0.2


class DownloadedFile(Resource):
    """``download.File``: a file that a Proxmox host fetches into one of its storages. Only with ``overwrite`` false."""

    inputs_class = "pulumi_proxmoxve.download:FileArgs"
    computed_outputs = ("size",)
    replace_on = (
        "checksum",
        "checksumAlgorithm",
        "contentType",
        "datastoreId",
        "decompressionAlgorithm",
        "fileName",
        "nodeName",
        "url",
    )

    def check(self, call: Call, inputs: Values, old_inputs: Values | None) -> Values:
        if inputs.get("overwrite", True) is True:
            raise InputError(
                "overwrite",
                "the lab's proxmoxve provider does not look for newer files; set it to false (true fetches again, and "
                "replaces the containers made from the file, whenever the size at the source changes)",
            )
        return inputs

    def create(self, call: Call, inputs: Values) -> tuple[str, Values]:
        client, node, storage = _client(call), inputs["nodeName"], inputs["datastoreId"]
        verify = inputs.get("verify", True)
        seconds = inputs.get("uploadTimeout") or 600
        try:
            remote = client.get(
                f"nodes/{node}/query-url-metadata", **{"url": inputs["url"], "verify-certificates": _flag(verify)}
            )
        except PveError as error:
            raise ProviderError(
                "Error initiating file download: Could not get file metadata, unexpected error: error fetching metadata "
                f"from download url, unexpected error in GetQueryURLMetadata: {error}"
            ) from error
        name = inputs.get("fileName") or remote["filename"]
        volume = f"{storage}:{inputs['contentType']}/{name}"
        request = {
            "content": inputs["contentType"],
            "checksum": inputs.get("checksum"),
            "checksum-algorithm": inputs.get("checksumAlgorithm"),
            "compression": inputs.get("decompressionAlgorithm"),
            "filename": name,
            "url": inputs["url"],
            "verify-certificates": _flag(verify),
        }
        request = {key: value for key, value in request.items() if value is not None}
        path = f"nodes/{node}/storage/{storage}/download-url"
        try:
            try:
                client.wait(node, client.post(path, request), seconds)
            except PveError as error:
                if not (inputs.get("overwriteUnmanaged") and "refusing to override existing file" in str(error)):
                    raise
                self._remove(client, node, storage, volume)
                client.wait(node, client.post(path, request), seconds)
            size = self._size(client, node, storage, inputs["contentType"], volume)
        except PveError as error:
            if "refusing to override existing file" in str(error):
                raise ProviderError(
                    "File already exists in the datastore, it was created outside of Terraform or is managed by another "
                    f"resource.: File already exists in the datastore: '{name}', error: {error}"
                ) from error
            raise ProviderError(
                f"Error downloading file from url: Could not download file '{name}', unexpected error: {error}"
            ) from error
        if size is None:
            raise ProviderError(f"Error when reading file from datastore: {volume} does not exist on {node}")
        return volume, self._with_defaults(inputs, name, size)

    def read(self, call: Call, resource_id: str, inputs: Values, state: Values) -> tuple[Values, Values] | None:
        known = {**state, **inputs}
        try:
            size = self._size(_client(call), known["nodeName"], known["datastoreId"], known["contentType"], resource_id)
        except AuthenticationFailed as error:
            raise ProviderError(f"Failed to authenticate: {error}") from error
        except PveError as error:
            # As the real provider: no answer counts as no file.
            call.warn(f"The file does not exist in datastore and resource must be recreated.: {error}")
            return None
        if size is None:
            call.warn("The file does not exist in datastore and resource must be recreated.")
            return None
        return inputs, {**state, "size": size}

    def update(self, call: Call, resource_id: str, old_inputs: Values, old_state: Values, inputs: Values) -> Values:
        return {**old_state, **inputs}

    def delete(self, call: Call, resource_id: str, inputs: Values, state: Values) -> None:
        known = {**inputs, **state}
        try:
            self._remove(_client(call), known["nodeName"], known["datastoreId"], resource_id)
        except PveError as error:
            if "unable to parse" not in str(error):
                raise ProviderError(
                    "Error deleting datastore file: Could not delete datastore file "
                    f"'{resource_id}', unexpected error: {error}"
                ) from error

    @staticmethod
    def _with_defaults(inputs: Values, name: str, size: int) -> Values:
        return {
            "verify": True,
            "uploadTimeout": 600,
            "overwriteUnmanaged": False,
            **inputs,
            "fileName": name,
            "size": size,
        }

    @staticmethod
    def _remove(client: PveClient, node: str, storage: str, volume: str) -> None:
        path = f"nodes/{node}/storage/{storage}/content/{urllib.parse.quote(volume, safe='')}"
        try:
            task = client.delete(path)
            if isinstance(task, str):
                client.wait(node, task, 60)
        except NotThere:
            return

    @staticmethod
    def _size(client: PveClient, node: str, storage: str, content: str, volume: str) -> int | None:
        for entry in client.get(f"nodes/{node}/storage/{storage}/content", content=content) or []:
            if entry.get("volid") == volume:
                return int(entry.get("size", 0))
        return None


def main() -> None:
    """Serve the provider until the engine ends it."""
    serve(ProxmoxProvider())


if __name__ == "__main__":
    main()
