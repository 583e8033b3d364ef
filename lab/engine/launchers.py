"""Executables under the names by which the engine looks for its plugins on PATH."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from lab.engine import forked

MODULES = {
    "pulumi-language-python": "lab.engine.language_host",
    "pulumi-resource-command": "lab.engine.command",
    "pulumi-resource-kubernetes": "lab.engine.kubernetes",
    "pulumi-resource-proxmoxve": "lab.engine.proxmoxve",
    "pulumi-resource-random": "lab.engine.random",
}
"""Plugin executable to the module that is its stand-in."""


def write_launchers(directory: Path, python: Path, names: Sequence[str] = tuple(MODULES)) -> list[Path]:
    """Write one executable for each of ``names`` into ``directory`` (made if absent); returns their paths.

    :param python: the interpreter that has the requirements of the project and the lab, ``.venv/bin/python``.
    :param names: keys of :data:`MODULES`; default: all.
    :raises ValueError: for a name that no stand-in has.
    """
    unknown = [name for name in names if name not in MODULES]
    if unknown:
        raise ValueError(f"no stand-in is called {', '.join(unknown)}; there are {', '.join(MODULES)}")
    directory.mkdir(parents=True, exist_ok=True)
    root = Path(__file__).resolve().parents[2]
    written = []
    for name in names:
        # -I -S: it needs nothing but the standard library, and starts in half the time.
        command = shlex.join([str(python.absolute()), "-I", "-S", forked.__file__, str(root), MODULES[name]])
        path = directory / name
        fresh = path.with_name(f".{name}.new")
        fresh.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
        fresh.chmod(0o755)
        fresh.replace(path)
        written.append(path)
    return written
