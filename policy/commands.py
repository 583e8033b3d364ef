"""Commands: what runs on a machine over SSH shows no secret, and runs on the machine that was meant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pulumi_policy import Severity

from policy import vocabulary
from policy.resources import Plan, Resource, shown
from policy.rule import PlanPolicy, ResourcePolicy
from policy.secret_texts import may_be_secret, names_a_secret, secrets_in

REMOTE: Final = ("command:remote:Command", "command:remote:CopyFile", "command:remote:CopyToRemote")
"""What connects to another machine."""
HIDDEN: Final = ("none", "stderr")


def _without_secret(command: Resource) -> Iterator[str]:
    for operation in ("create", "update", "delete", "interpreter", "environment"):
        for kind in secrets_in(command.get(operation)):
            yield f"{command.name} has {kind} in `{operation}`; allowed is none."
    for name in command.keys("environment"):
        if names_a_secret(name) and may_be_secret(command.get("environment", name)):
            yield f"{command.name} has the secret {name} in `environment`; allowed is none."


COMMAND_WITHOUT_SECRET: Final = ResourcePolicy(
    "command-without-secret",
    of=vocabulary.COMMANDS,
    description="No secret is on a command line.",
    why="Every user of the machine sees it in the list of processes, and when the command fails, Pulumi prints it.",
    remedy="Hand it over in `stdin`, as `run_script` of components/remote.py does, and change the secret that was shown.",
    severity=Severity.CRITICAL,
    check=_without_secret,
)


def _triggers(command: Resource, _: Plan) -> Iterator[str]:
    for kind in secrets_in(command.get("triggers")):
        yield f"{command.name} has {kind} in `triggers`; allowed is none."


COMMAND_TRIGGERS_WITHOUT_SECRET: Final = PlanPolicy(
    "command-triggers-without-secret",
    description="No secret triggers a command.",
    why="The preview shows a trigger that changes, with the old value and the new one, to everybody who reads the log.",
    remedy="Give a hash of the secret as the trigger, and change the secret that was shown.",
    severity=Severity.HIGH,
    of=vocabulary.COMMANDS,
    check_each=_triggers,
)


def _output_hidden(command: Resource) -> Iterator[str]:
    logging = command.get("logging")
    if logging in HIDDEN:
        return
    # Absent is not safe: both are shown.
    if command.get("stdin") is not None or command.get("environment"):
        yield f"{command.name} has `logging` {shown(logging)}; allowed are {', '.join(HIDDEN)}."


COMMAND_OUTPUT_HIDDEN: Final = ResourcePolicy(
    "command-output-hidden",
    of=vocabulary.COMMANDS,
    description="What a command writes to its standard output is not shown while it runs, when it may have been given secrets.",
    why="Pulumi shows the lines as they come, before it knows which of them are secret: a kubeconfig or a password would be "
    "in the log of the pipeline.",
    remedy="Set `logging` to stderr, or to none where errors may hold a secret as well.",
    severity=Severity.HIGH,
    check=_output_hidden,
)


def _host_key_pinned(command: Resource) -> Iterator[str]:
    # An analysis without the passphrase sees a text in its place, and can tell nothing.
    if isinstance(command.get("connection"), str):
        return
    # Absent is not safe: any key is taken.
    if not command.get("connection", "hostKey"):
        yield f"{command.name} connects without a host key; allowed is one in `connection.hostKey`."
    if command.get("connection", "proxy") and not command.get("connection", "proxy", "hostKey"):
        yield f"{command.name} connects over a proxy without a host key; allowed is one in `connection.proxy.hostKey`."


COMMAND_HOST_KEY_PINNED: Final = ResourcePolicy(
    "command-host-key-pinned",
    of=REMOTE,
    description="A command runs only on a machine that proves who it is.",
    why="Without a host key every computer that answers at the address is taken for the machine, and is handed root's "
    "scripts with all passwords in them.",
    remedy="Take the connection from `Host` of components/remote.py, and set `proxmox.hosts[].sshHostKey`.",
    severity=Severity.CRITICAL,
    check=_host_key_pinned,
)

POLICIES: Final = (
    COMMAND_WITHOUT_SECRET,
    COMMAND_TRIGGERS_WITHOUT_SECRET,
    COMMAND_OUTPUT_HIDDEN,
    COMMAND_HOST_KEY_PINNED,
)
