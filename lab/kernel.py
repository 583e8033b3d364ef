"""Settings of this machine's kernel that its containers share: raised for the lab, put back by ``school lab down``."""

from __future__ import annotations

import json
from pathlib import Path

from lab import places
from lab.processes import run

MODULES = ("overlay", "br_netfilter", "vxlan")
"""What containers need and cannot load for themselves; kernels that have them built in have nothing to load."""

MINIMUM = {"fs/inotify/max_user_instances": 8192, "fs/inotify/max_user_watches": 524288}
"""Every systemd and kubelet watches files, and all containers draw on one allowance."""

_SETTINGS = Path("/proc/sys")


def prepare() -> None:
    """Load modules and raise settings that are too low; what they were is noted first."""
    for name in MODULES:
        run(["modprobe", "--quiet", name], check=False)  # fails where it is built in
    before = _noted()
    low = {name: int((_SETTINGS / name).read_text()) for name in MINIMUM}
    low = {name: value for name, value in low.items() if value < MINIMUM[name]}
    if low:
        places.SYSCTL_BEFORE.parent.mkdir(parents=True, exist_ok=True)
        places.SYSCTL_BEFORE.write_text(json.dumps({**low, **before}))
        for name in low:
            (_SETTINGS / name).write_text(str(MINIMUM[name]))


def restore() -> list[str]:
    """Put the settings back, unless somebody has changed them since; returns their names."""
    restored = []
    for name, value in _noted().items():
        if name in MINIMUM and int((_SETTINGS / name).read_text()) == MINIMUM[name]:
            (_SETTINGS / name).write_text(str(value))
            restored.append(name.replace("/", "."))
    places.SYSCTL_BEFORE.unlink(missing_ok=True)
    return restored


def _noted() -> dict[str, int]:
    if not places.SYSCTL_BEFORE.exists():
        return {}
    noted: dict[str, int] = json.loads(places.SYSCTL_BEFORE.read_text())
    return noted
