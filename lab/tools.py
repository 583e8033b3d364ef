"""Which Pulumi tools the lab uses: the machine's own where there are any, stand-ins where there are none."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from lab import places
from lab.builds import Artefacts
from lab.engine.launchers import MODULES, write_launchers

VENV_BIN = places.REPOSITORY / ".venv" / "bin"
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, kw_only=True, slots=True)
class Toolbox:
    """What stands on PATH for the Pulumi command."""

    path: str
    """PATH of everything that runs in the lab."""
    real: tuple[str, ...]
    """Tools of the machine that are used."""
    stand_ins: tuple[str, ...]
    """Tools that the lab brings because the machine has none."""

    def sentence(self) -> str:
        """One line that says which are in use."""
        real = ", ".join(self.real) or "none"
        return f"Pulumi tools: from this machine: {real}; stand-ins of the lab: {', '.join(self.stand_ins) or 'none'}"


def _is_installed(name: str) -> bool:
    """Whether the machine has this plugin, on PATH or among Pulumi's installed plugins."""
    if shutil.which(name, path=_outside_path()):
        return True
    kind, _, plugin = name.removeprefix("pulumi-").partition("-")
    return any((Path.home() / ".pulumi" / "plugins").glob(f"{kind}-{plugin}-v*"))


def _outside_path() -> str:
    """PATH without what the lab itself put there, for a command that is run inside ``school lab run``."""
    own = {str(places.STAND_INS), str(VENV_BIN)}
    parts = [part for part in os.environ.get("PATH", _SYSTEM_PATH).split(":") if part not in own]
    return ":".join(part for part in parts if not part.startswith(str(places.CACHE)))


def choose(artefacts: Artefacts) -> Toolbox:
    """Write launchers for the plugins that this machine lacks and say what is used."""
    missing = [name for name in MODULES if not _is_installed(name)]
    if places.STAND_INS.exists():
        shutil.rmtree(places.STAND_INS)
    write_launchers(places.STAND_INS, VENV_BIN / "python", missing)
    plugins = Path.home() / ".pulumi" / "plugins"
    mirrored = places.PULUMI_HOME / "plugins"
    if plugins.is_dir() and not mirrored.exists():
        mirrored.parent.mkdir(parents=True, exist_ok=True)
        mirrored.symlink_to(plugins)
    path = [str(places.STAND_INS), str(VENV_BIN)]
    found = shutil.which("pulumi", path=_outside_path())
    if found:
        path.append(str(Path(found).parent))
    # The lab's own pulumi is the real one, built from its published source; helm serves the stand-in.
    path.append(str(artefacts.tools))
    real = [name for name in MODULES if name not in missing]
    real.insert(0, "pulumi" if found else "pulumi (built from its source)")
    return Toolbox(path=":".join([*path, _SYSTEM_PATH]), real=tuple(real), stand_ins=tuple(missing))


def environment(path: str) -> dict[str, str]:
    """Environment in which the Pulumi command works on the lab's stack."""
    kept = {name: os.environ[name] for name in ("HOME", "TERM", "LANG", "USER", "LOGNAME") if name in os.environ}
    return {
        **kept,
        "PATH": path,
        "PULUMI_BACKEND_URL": f"file://{places.PULUMI_BACKEND}",
        "PULUMI_CONFIG_PASSPHRASE_FILE": str(places.PASSPHRASE),
        "PULUMI_HOME": str(places.PULUMI_HOME),
        "PULUMI_SKIP_UPDATE_CHECK": "1",
        "PULUMI_PYTHON_CMD": str(VENV_BIN / "python"),
        # An Output in a string is a mistake; here it is an error.
        "PULUMI_ERROR_OUTPUT_STRING": "true",
        "SSL_CERT_FILE": str(places.CA_BUNDLE),
    }
