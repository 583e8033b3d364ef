"""Running the scripts of ``components/hosts`` on machines over SSH, the one way this program changes a machine.

A script travels on standard input, in front of it its variables and ``common.sh``: nothing secret is on a command line,
no file is left behind, and a changed script or value runs again by itself. The command that an error message quotes is
short (``timeout 300 bash -s -- gl8 datastore``); what went wrong follows it, written by the script.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pulumi
import pulumi_command as command

HOSTS_FOLDER = Path(__file__).parent / "hosts"
_VARIABLE_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """A machine that scripts can be run on: where it is, how it proves who it is, what must have happened before."""

    name: str
    """Name shown in progress and errors, e.g. ``gl8``."""
    address: str
    """IPv4 address that SSH listens on (port 22)."""
    private_key: pulumi.Input[str]
    """Private key of root, OpenSSH form. Secret."""
    host_key: pulumi.Input[str]
    """Expected public host key in authorized-keys form; any other key is refused."""
    machine: pulumi.Resource | None = None
    """The container this host is. Whatever was done on it is gone with it. None: a machine the program did not make."""
    identity: Sequence[pulumi.Input[str]] = field(default=())
    """What tells the machine from another of the same name that takes its place: then every script runs again."""
    prepared_by: Sequence[pulumi.Resource] = field(default=())
    """What has to be finished on the machine before any script may run."""
    dial_error_limit: int = 12
    """Failed connections before giving up; pulumi-command waits at most 5 s between two, so 12 are about 21 s."""

    def connection(self) -> command.remote.ConnectionArgs:
        """The SSH connection, with the host key pinned."""
        return command.remote.ConnectionArgs(
            host=self.address,
            user="root",
            private_key=self.private_key,
            host_key=self.host_key,
            dial_error_limit=self.dial_error_limit,
            per_dial_timeout=10,
        )


def read_host_file(name: str) -> str:
    """The text of a script or template in ``components/hosts``."""
    return (HOSTS_FOLDER / name).read_text(encoding="utf-8")


def compose_script(script: str, variables: Mapping[str, str]) -> str:
    """Standard input for ``bash -s``: the variables, ``common.sh`` and the script, read to the end before it starts.

    The braces make bash read everything first, so that no program in the script can swallow the rest of it, and
    ``</dev/null`` gives those programs an empty standard input.

    Raises ``ValueError`` for a variable that is no lower-case shell name.
    """
    lines = []
    for name, value in variables.items():
        if not _VARIABLE_NAME.fullmatch(name):
            raise ValueError(f"'{name}' cannot be a variable of a host script: lower-case letters, digits and _ only.")
        lines.append(f"{name}='" + value.replace("'", "'\\''") + "'")
    return "\n".join([*lines, "{", read_host_file("common.sh"), read_host_file(script), "} </dev/null", ""])


def run_script(
    name: str,
    host: Host,
    script: str,
    *,
    parent: pulumi.Resource,
    variables: Mapping[str, pulumi.Input[str]] | None = None,
    timeout_seconds: int = 120,
    on_delete: bool = False,
    secret_output: bool = False,
    triggers: Sequence[pulumi.Input[str]] = (),
    depends_on: Sequence[pulumi.Resource] = (),
) -> command.remote.Command:
    """Declare that ``components/hosts/<script>`` has been run on ``host``.

    ``variables`` become shell variables of the script. ``timeout_seconds`` bounds every run on the machine itself,
    since pulumi-command has no limit of its own. ``on_delete`` runs the script again with the operation ``delete``
    when the resource goes while its machine stays. ``secret_output`` marks what the script prints as secret and keeps it
    out of the console. ``triggers`` replace the resource when they change; a replaced machine is one by itself.

    Scripts are idempotent: a changed connection, variable or script runs them again in place.
    """
    values: Mapping[str, pulumi.Input[str]] = variables or {}
    # By position: without any value, Output.all would give a list and not a mapping.
    stdin = pulumi.Output.all(*values.values()).apply(
        lambda texts: compose_script(script, dict(zip(values, texts, strict=True)))
    )
    task = script.removesuffix(".sh")

    def operation(kind: str) -> str:
        return f"timeout --kill-after=10 {timeout_seconds} bash -s -- {host.name} {task} {kind}"

    return command.remote.Command(
        name,
        connection=host.connection(),
        create=operation("apply"),
        delete=operation("delete") if on_delete else None,
        stdin=stdin,
        triggers=[*host.identity, *triggers],
        logging=command.remote.Logging.NONE if secret_output else command.remote.Logging.STDERR,
        add_previous_output_in_env=False,
        opts=pulumi.ResourceOptions(
            parent=parent,
            depends_on=[*host.prepared_by, *depends_on],
            deleted_with=host.machine,
            # The old delete of a create-before-delete replacement would undo what the new create has just done.
            delete_before_replace=True,
            additional_secret_outputs=["stdout", "stderr"] if secret_output else None,
            custom_timeouts=pulumi.CustomTimeouts(
                create=f"{timeout_seconds + 60}s", update=f"{timeout_seconds + 60}s", delete=f"{timeout_seconds + 60}s"
            ),
        ),
    )
