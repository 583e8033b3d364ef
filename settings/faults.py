"""How a fault is told: one sentence with the place, what is there, what is allowed and what to do; never a secret."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import NamedTuple

import pulumi

NAMESPACE = "school-postgres"
"""Project name and namespace of every configuration key."""


class SettingsError(pulumi.RunError):
    """The configuration cannot be used; ``str()`` is the text for the person who wrote it, one sentence a fault.

    Being a :class:`pulumi.RunError`, it ends a program run with its text and without a traceback.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        count = "one fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        lines = "\n".join(f"  - {fault}" for fault in self.faults)
        super().__init__(f"The configuration of {NAMESPACE} has {count}; nothing has been changed:\n{lines}")


_LONGEST_SHOWN = 60

_LOOKS_SECRET = re.compile(
    r"PRIVATE KEY|b3BlbnNzaC1rZXkt|(PASSWORD|PASSWD|SECRET|TOKEN)\s*[=:]|\S+@\S+![^=\s]+=|://[^/\s]*@|BEARER|[0-9a-f]{8}-([0-9a-f]{4}-){3}",
    re.IGNORECASE,
)


class Fault(NamedTuple):
    """One fault: where it is, what was found there, what may be there and what to do."""

    path: str
    was: str
    allowed: str
    do: str

    def __str__(self) -> str:
        return f"{self.path} {self.was}; allowed is {self.allowed}: {self.do}."


def shown(value: object) -> str:
    """A value as the reader wrote it, short; never one that looks like a secret."""
    if value is None:
        return "empty"
    if isinstance(value, str):
        if _LOOKS_SECRET.search(value):
            return "a text that looks like a secret (not shown)"
        text = value if len(value) <= _LONGEST_SHOWN else value[:_LONGEST_SHOWN] + "…"
        return json.dumps(text, ensure_ascii=False)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float | date):
        return str(value)
    if isinstance(value, Mapping):
        return "a map" if value else "an empty map"
    if not isinstance(value, Sequence) or not value:
        return "an empty list"
    text = ", ".join(str(item) for item in value)
    plain = all(isinstance(item, str | int | float) for item in value) and not _LOOKS_SECRET.search(text)
    return f"[{text}]" if plain and len(text) <= _LONGEST_SHOWN else "a list"


def path_of(topic: str, location: Sequence[int | str]) -> str:
    """Where a value stands, in the file's own spelling, such as machines[2].memoryMiB."""
    text = topic
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", part):
            text += f".{part}"
        else:
            text += f"[{json.dumps(part, ensure_ascii=False)}]"
    return text


def unknown_key(path: str, key: str, known: Sequence[str]) -> str:
    """Sentence about a key that does not exist; its value is never shown."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(key.lower().replace("_", ""), by_lower, n=1, cutoff=0.6)
    if near:
        return f"{path} is not a known key; did you mean {by_lower[near[0]]}?"
    return f"{path} is not a known key; allowed is one of {', '.join(known)}: take the key out or correct it."
