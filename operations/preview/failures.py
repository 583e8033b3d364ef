"""Why a preview failed, in words: the causes behind what may be dozens of messages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from operations.preview.log import Diagnostic, Preview
from operations.preview.names import Names
from operations.preview.policies import plain

_URN = re.compile(r"urn:pulumi:[^\s\"']+")
_UNREACHABLE = (
    r"(connection refused|no route to host|i/o timeout|timed? ?out|no such host|network is unreachable|does not answer|"
    r"connection reset|EOF|Name or service not known)"
)
POLICY_VIOLATED: Final = "A mandatory policy is violated"
"""Title of the cause that is no fault of the plan's surroundings."""
_EMPTY: Final = frozenset({"preview failed", "update failed", "resource registration failed"})
_TRACEBACK: Final = "Traceback (most recent call last)"
_PROGRAM_ENDED: Final = "an unhandled error occurred: program exited with non-zero exit code"


@dataclass(frozen=True, slots=True)
class _Known:
    pattern: re.Pattern[str]
    title: str
    remedy: str


def _known(pattern: str, title: str, remedy: str) -> _Known:
    return _Known(re.compile(pattern, re.IGNORECASE | re.DOTALL), title, remedy)


_CAUSES: Final = (
    _known(
        r"the configuration of school-postgres has",
        "The configuration has faults",
        "Each line names the key, what it holds and what is allowed (docs/configuration.md).",
    ),
    _known(
        r"unable to (replace|delete) resource .*protect|cannot be deleted.*protect",
        "Something that holds data is protected, and would be deleted or replaced",
        "`protectData` does its work. If it is meant: README.md, Taking it down.",
    ),
    _known(
        rf"kubernetes.*{_UNREACHABLE}|{_UNREACHABLE}.*(:6443|kube)",
        "The Kubernetes API does not answer",
        "Is the cluster up, and does this runner reach the address? `kubectl get nodes` says.",
    ),
    _known(
        rf"(nodes/\S+/|api2|proxmox|pve|container \d+|lxc).*{_UNREACHABLE}|{_UNREACHABLE}.*(:8006|api2)",
        "Proxmox does not answer",
        "Is the host up, is `proxmox.endpoint` right, and does this runner reach it?",
    ),
    _known(
        r"(proxmox|api2|nodes/).*(401|403|authentication|permission)|failed to authenticate",
        "Proxmox refuses the credentials",
        "Is `proxmoxApiToken` right, and has the token the rights of docs/first-day.md?",
    ),
    _known(
        r"unauthorized",
        "Kubernetes refuses the credentials",
        "docs/how-it-works.md#certificates says how to renew them.",
    ),
    _known(
        r"incorrect passphrase|passphrase must be set|decrypt",
        "The stack's secrets cannot be decrypted",
        "`PULUMI_CONFIG_PASSPHRASE_FILE` must name the file of this stack.",
    ),
    _known(
        r"stack is currently locked",
        "Another run holds the stack",
        "Wait for it; if none runs: `pulumi cancel`.",
    ),
)
_OTHER: Final = _known("", "Pulumi stopped with an error", "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cause:
    """One cause of a failure."""

    title: str
    """What is wrong, without a full stop."""
    remedy: str
    """What to do; empty when the messages say it."""
    messages: Sequence[str]
    """What was said, each with the name of the thing it is about in front; lines of a message are kept."""


def causes(preview: Preview, known: Names) -> list[Cause]:
    """Why the preview failed, in the order in which causes are usually found; empty when it did not."""
    if not preview.failed:
        return []
    errors = [error for error in preview.errors if plain(error.message) not in _EMPTY]
    telling = [error for error in errors if not plain(error.message).startswith(_PROGRAM_ENDED)]
    refused = any(result.enforcement == "mandatory" for result in preview.policies)
    found: dict[_Known, dict[str, None]] = {}
    for error in telling or errors:
        text = plain(error.message)
        cause = next((one for one in _CAUSES if one.pattern.search(text)), _OTHER)
        found.setdefault(cause, {})[_message(error, text, known)] = None
    order = (*_CAUSES, _OTHER)
    listed = [
        Cause(title=cause.title, remedy=cause.remedy, messages=sorted(found[cause]))
        for cause in sorted(found, key=order.index)
    ]
    if listed:
        return listed
    if refused:
        return [Cause(title=POLICY_VIOLATED, remedy="What to do stands with each policy below.", messages=[])]
    return [_without_a_message(preview)]


def _message(error: Diagnostic, text: str, known: Names) -> str:
    """The message with people's names instead of URNs."""
    text = _URN.sub(lambda found: known.title_of(found[0].rstrip(".,:;)")), text)
    text = re.sub(r"^(Preview failed|error): ", "", text)
    if _TRACEBACK in text:
        # Its last line says what happened; the rest is for whoever runs the program by hand.
        text = text.splitlines()[-1]
    lines: list[str] = []
    for line in (line.strip() for line in text.splitlines() if line.strip()):
        if lines and not line.startswith("- "):
            lines[-1] += f" {line}"
        else:
            lines.append(line)
    title = f"{known.title_of(error.urn)}: " if error.urn else ""
    return title + "\n".join(lines)


def _without_a_message(preview: Preview) -> Cause:
    if preview.result == "canceled":
        return Cause(title="The preview was interrupted", remedy="Run it again.", messages=[])
    if preview.result == "ended early":
        title = "The preview ended before it was finished"
        return Cause(title=title, remedy="What Pulumi printed in the job's log says why.", messages=[])
    return Cause(title="Pulumi gave no reason", remedy="See what it printed in the job's log.", messages=[])
