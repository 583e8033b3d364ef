"""Values of properties: how they are compared and shown, and which are never shown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from operations.preview.log import Action, Planned, State

PropertyPath = tuple[str | int, ...]
"""Where a value lies in a resource's properties: keys and list positions."""

HIDDEN: Final = "(not shown)"
LATER: Final = "(known after `pulumi up`)"
LONGEST_VALUE: Final = 80
"""Characters of a value that are shown."""

_SIGNATURE: Final = "4dabf18193072939515e22adb298388d"
_SECRET: Final = "1b47061264138c4ac30d75fd1eb44270"
_UNKNOWN: Final = frozenset(
    {
        "1c4a061d-8072-4f0a-a4cb-0ff528b18fe7",
        "3eeb2bf0-c639-47a8-9e75-3b44932eb421",
        "04da6b54-80e4-46f7-96ec-b56ff0331ba9",
        "6a19a0b0-7e62-4c92-b797-7f8e31da9cc2",
        "030794c1-ac77-496b-92df-f27374a8bd58",
        "e48ece36-62e2-4504-bad9-02848725956a",
        "dd056dcd-154b-4c76-9bd3-c8f88648b5ff",
    }
)
"""By these the engine writes a value that is not known during a preview, one for each type."""

_SECRET_WORDS: Final = frozenset(
    {
        "password",
        "passwords",
        "passwd",
        "passphrase",
        "passphrases",
        "token",
        "tokens",
        "secret",
        "secrets",
        "key",
        "keys",
        "kubeconfig",
        "credential",
        "credentials",
        "pgpass",
    }
)
_SECRET_NAMES: Final = frozenset({"stringdata", "binarydata", "stdin", "environment", "connection"})
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SEGMENT = re.compile(r'\["((?:[^"\\]|\\.)*)"\]|\[(\d+)\]|([^.\[\]]+)')

_LEAKS: Final = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|$)", re.DOTALL), HIDDEN),
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s:/@]*:)[^\s@]+(?=@)"), rf"\1{HIDDEN}"),
    (re.compile(r"([\w.+-]+@[\w.-]+![\w.-]+=)[0-9a-fA-F-]{8,}"), rf"\1{HIDDEN}"),
    (re.compile(r"\bK10[0-9a-f]{8,}::\S+"), HIDDEN),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]+(\.[\w-]+)?"), HIDDEN),
    (
        re.compile(
            r"(?i)(\b[\w.-]*(?:password|passwd|passphrase|token|secret|private_?key|api_?key)\b[\"']?\s*[:=]\s*)"
            r"(\"[^\"]*\"|'[^']*'|[^\s,;)}\]]+)"
        ),
        rf"\1{HIDDEN}",
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PropertyChange:
    """One property before and after; None: it is not there."""

    path: PropertyPath
    before: Any
    after: Any

    @property
    def dotted(self) -> str:
        """The path for comparing: ``spec.postgresql.parameters.work_mem``, list positions left out."""
        return ".".join(part for part in self.path if isinstance(part, str))

    @property
    def is_secret(self) -> bool:
        """Whether neither value may be shown."""
        return any(is_secret_name(part) for part in self.path if isinstance(part, str))

    def sentence(self, label: str, unit: str = "") -> str:
        """``memory 4096 MiB -> 6144 MiB``; for a value that may not be shown only that it changes."""
        if self.is_secret or HIDDEN in (shown(self.before), shown(self.after)):
            return f"{label} changes {HIDDEN}"
        if any(isinstance(value, str) and "\n" in value for value in (self.before, self.after)):
            return f"{label} changes"
        before, after = (
            shown(value) + (f" {unit}" if unit and isinstance(value, int | float) else "")
            for value in (self.before, self.after)
        )
        if self.before is None:
            return f"{label} is set to {after}"
        if self.after is None:
            return f"{label} {before} is taken away"
        if before == after:
            return f"{label} changes"
        return f"{label} {before} -> {after}"


def is_secret(value: Any) -> bool:
    """Whether the engine marked the value as secret."""
    return value == "[secret]" or (isinstance(value, Mapping) and value.get(_SIGNATURE) == _SECRET)


def is_secret_name(name: str) -> bool:
    """Whether a property of this name is taken for a secret, whatever the log says."""
    words = {word.lower() for word in _WORD.findall(name)}
    return bool(words & _SECRET_WORDS) or name.lower() in _SECRET_NAMES


def shown(value: Any) -> str:
    """A value for people: short, on one line, and without anything secret."""
    if is_secret(value):
        return HIDDEN
    if isinstance(value, Mapping) and _SIGNATURE in value:
        return "(a file)"
    if isinstance(value, str) and value in _UNKNOWN:
        return LATER
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and all(isinstance(item, str | int) for item in value)
    ):
        text = ", ".join(shown(item) for item in value) or "nothing"
    elif isinstance(value, str | int | float):
        text = redacted(str(value))
    elif value is None:
        text = "nothing"
    else:
        text = json.dumps(_without_secrets(value), ensure_ascii=False, sort_keys=True)
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 4]} ..."


def _without_secrets(value: Any) -> Any:
    if is_secret(value) or (isinstance(value, str) and value in _UNKNOWN):
        return shown(value)
    if isinstance(value, Mapping):
        return {key: HIDDEN if is_secret_name(str(key)) else _without_secrets(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_secrets(item) for item in value]
    return redacted(value) if isinstance(value, str) else value


def redacted(text: str) -> str:
    """A text that somebody else wrote, without what looks like a password, a token or a private key."""
    for pattern, replacement in _LEAKS:
        text = pattern.sub(replacement, text)
    return text


def parse_path(text: str) -> PropertyPath:
    """A property path as the engine writes it: ``metadata.annotations["metallb.io/address-pool"]``, ``tags[0]``."""
    found: list[str | int] = []
    for quoted, position, plain in _SEGMENT.findall(text):
        if position:
            found.append(int(position))
        else:
            found.append(plain or re.sub(r"\\(.)", r"\1", quoted))
    return tuple(found)


def lookup(values: Any, path: PropertyPath) -> Any:
    """The value at a path; None when there is none."""
    for part in path:
        if isinstance(part, int) and isinstance(values, list) and part < len(values):
            values = values[part]
        elif isinstance(part, str) and isinstance(values, Mapping) and not is_secret(values):
            values = values.get(part)
        else:
            return values if is_secret(values) else None
    return values


def property_changes(resource: Planned) -> list[PropertyChange]:
    """What differs between the old and the new inputs, in the order of the paths.

    The provider's own details are used where it gives them; otherwise the inputs are compared.
    """
    step = resource.step
    if step.old is None or step.new is None or resource.action is Action.NONE:
        return []
    if step.details is not None:
        found = [
            PropertyChange(
                path=parse_path(text),
                before=_old_value(step.old, parse_path(text), inputs_only=diff.inputs_only),
                after=lookup(step.new.inputs, parse_path(text)),
            )
            for text, diff in step.details.items()
        ]
    else:
        compared = list(_differences(resource.before, resource.after, ()))
        named = set(step.changed or ())
        found = [change for change in compared if not named or change.path[0] in named]
    return sorted(found, key=lambda change: [str(part).rjust(8) for part in change.path])


def _old_value(old: State, path: PropertyPath, *, inputs_only: bool) -> Any:
    before = lookup(old.inputs, path)
    return before if inputs_only or before is not None else lookup(old.outputs, path)


def _differences(before: Any, after: Any, path: PropertyPath) -> Iterator[PropertyChange]:
    if isinstance(before, Mapping) and isinstance(after, Mapping) and not is_secret(before) and not is_secret(after):
        for key in sorted({*before, *after}):
            if not str(key).startswith("__"):
                yield from _differences(before.get(key), after.get(key), (*path, str(key)))
    elif before != after:
        yield PropertyChange(path=path, before=before, after=after)
