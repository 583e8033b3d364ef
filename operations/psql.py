"""Opening psql on the stack's database without the password ever being on a command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import typer


class ConnectionUnknown(Exception):
    """The stack has no database to connect to; the text says why."""


def connection_environment(url: str, service_file: Path) -> dict[str, str]:
    """Variables for libpq that describe ``url``; the password goes into ``service_file`` (0600) next to the rest.

    Raises :class:`ConnectionUnknown` when ``url`` is no PostgreSQL connection string.
    """
    parts = urlsplit(url)
    if parts.scheme != "postgresql" or not parts.hostname or not parts.username or parts.password is None:
        raise ConnectionUnknown("the stack's database_url is no PostgreSQL connection string; run `pulumi up` again.")
    lines = {
        "host": parts.hostname,
        "port": str(parts.port or 5432),
        "user": unquote(parts.username),
        "password": unquote(parts.password),
        "dbname": parts.path.lstrip("/"),
        "sslmode": "require",
        "connect_timeout": "10",
    }
    service_file.touch(mode=0o600)
    service_file.write_text(
        "[school]\n" + "".join(f"{key}={value}\n" for key, value in lines.items()), encoding="utf-8"
    )
    return {"PGSERVICEFILE": str(service_file), "PGSERVICE": "school"}


def stack_output(name: str, stack: str | None, environment: Mapping[str, str]) -> str:
    """One output of the stack, decrypted. Raises :class:`ConnectionUnknown` with Pulumi's own reason."""
    command = ["pulumi", "stack", "output", name, "--show-secrets", "--json", "--non-interactive"]
    if stack:
        command += ["--stack", stack]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=dict(environment), check=False)
    except FileNotFoundError as error:
        raise ConnectionUnknown("the program `pulumi` is not on PATH.") from error
    if done.returncode:
        reason = done.stderr.strip().removeprefix("error: ") or "no reason given"
        raise ConnectionUnknown(f"the stack's output {name} cannot be read: {reason}")
    return str(json.loads(done.stdout))


def open_psql(stack: str | None, read_only: bool, arguments: Sequence[str]) -> int:
    """Run psql until its user leaves it; returns its exit code."""
    if shutil.which("psql") is None:
        typer.echo("psql is not on this machine: apt-get install postgresql-client", err=True)
        return 1
    name = "database_read_only_url" if read_only else "database_url"
    with tempfile.TemporaryDirectory(prefix="school-psql-") as folder:
        try:
            variables = connection_environment(stack_output(name, stack, os.environ), Path(folder) / "service.conf")
        except ConnectionUnknown as error:
            typer.echo(f"Cannot open the database: {error}", err=True)
            return 1
        return subprocess.run(["psql", *arguments], env={**os.environ, **variables}, check=False).returncode
