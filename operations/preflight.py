"""What a pipeline looks at before it lets Pulumi begin: the stack's file, and whether Proxmox can be reached.

For the pipelines: ``python -m operations.preflight configuration FILE``, ``... proxmox FILE`` and ``... tell LOG SENTENCE``.
"""

from __future__ import annotations

import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

import settings
from settings.loading import SECRET_KEYS

TIMEOUT_SECONDS = 15
"""How long the Proxmox API may take for its first answer."""

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

StackFile = Annotated[Path, typer.Argument(help="The stack's file, Pulumi.school.yaml.", metavar="FILE")]


class PreflightError(Exception):
    """Pulumi must not begin; each line of the text is one sentence: what is wrong, why, and what to do."""


def topics(file: Path) -> dict[str, Any]:
    """The configuration in a stack's file, keys without their namespace.

    :raises PreflightError: when the file is missing, or no stack's file.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise PreflightError(
            f"{file} cannot be read ({error.strerror}): write it as docs/first-day.md says."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError):
        raise PreflightError(f"{file} is no YAML: `git diff` shows what was changed last.") from None
    config = content.get("config") if isinstance(content, dict) else None
    if not isinstance(config, dict):
        raise PreflightError(f"{file} has no map `config`: write it as docs/first-day.md says.")
    prefix = f"{settings.NAMESPACE}:"
    return {str(key).removeprefix(prefix): value for key, value in config.items() if str(key).startswith(prefix)}


def check_configuration(file: Path) -> tuple[str, ...]:
    """Check a stack's file without its secrets; returns what is allowed but worth a look, one sentence each.

    :raises PreflightError: when the program would refuse the file, or a secret in it is not encrypted.
    """
    config = topics(file)
    faults = list(_secrets_in_clear(config))
    try:
        checked = settings.load(config)
    except settings.SettingsError as error:
        raise PreflightError("\n".join([*error.faults, *faults])) from None
    if faults:
        raise PreflightError("\n".join(faults))
    return (*checked.warnings(), *checked.placeholders())


def _secrets_in_clear(config: Mapping[str, Any]) -> Iterator[str]:
    for key in SECRET_KEYS:
        value = config.get(key)
        if value is not None and not (isinstance(value, dict) and set(value) == {"secure"}):
            yield (
                f"{key} is not encrypted; whoever can read the repository knows it now: replace it where it is "
                f"accepted, and set the new one with `pulumi config set --secret {key}`."
            )


def check_proxmox(file: Path) -> str:
    """Ask the Proxmox API of a stack's file for any answer at all; returns its address.

    No token is sent: an API that asks for one is reached.

    :raises PreflightError: when there is no answer, or none of Proxmox.
    """
    proxmox = settings.load(topics(file)).proxmox
    context = ssl.create_default_context()
    if proxmox.insecure_tls:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    request = urllib.request.Request(f"{proxmox.endpoint.rstrip('/')}/api2/json/version")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS, context=context):
            return proxmox.endpoint
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 401:
            return proxmox.endpoint
        cause = f"it answers {error.code}, as no healthy Proxmox does"
    except urllib.error.URLError as error:
        cause = _why(error.reason)
    except (OSError, HTTPException) as error:
        cause = _why(error)
    raise PreflightError(
        f"Proxmox at {proxmox.endpoint} cannot be reached from this runner ({cause}), so nothing can be said about what "
        "would change; see that the host runs and the runner is in its network, and run the job again."
    )


def _why(reason: object) -> str:
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {reason.verify_message}"
    if isinstance(reason, TimeoutError):
        return f"it does not answer within {TIMEOUT_SECONDS} s"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return type(reason).__name__


def tell(log: Path, sentence: str) -> None:
    """Append a sentence to an event log as an error of the engine, so that it stands in what is made of the log."""
    event = {
        "sequence": 0,
        "timestamp": int(time.time()),
        "diagnosticEvent": {"message": f"{sentence}\n", "color": "never", "severity": "error"},
    }
    with log.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(event) + "\n")


def _end(error: PreflightError | settings.SettingsError) -> typer.Exit:
    typer.echo(str(error), err=True)
    return typer.Exit(1)


@app.command("configuration")
def configuration_command(file: StackFile) -> None:
    """Check a stack's file; ends with 1 and one sentence for each fault when the program would refuse it."""
    try:
        remarks = check_configuration(file)
    except PreflightError as error:
        raise _end(error) from None
    for remark in remarks:
        typer.echo(f"worth a look: {remark}")
    typer.echo(f"{file} is valid.")


@app.command("proxmox")
def proxmox_command(file: StackFile) -> None:
    """See whether the Proxmox API answers; ends with 1 when it does not."""
    try:
        typer.echo(f"Proxmox at {check_proxmox(file)} answers.")
    except (PreflightError, settings.SettingsError) as error:
        raise _end(error) from None


@app.command("tell")
def tell_command(
    log: Annotated[Path, typer.Argument(help="The event log; made when it is missing.", metavar="LOG")],
    sentence: Annotated[str, typer.Argument(help="What the log shall say.", metavar="SENTENCE")],
) -> None:
    """Append a sentence to an event log."""
    tell(log, sentence)


if __name__ == "__main__":
    app()
