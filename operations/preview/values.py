"""Values of properties: how they are compared and shown, and which are never shown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from operations.preview.log import Action, Planned, State
from operations.preview.redaction import HIDDEN, is_secret_name, redacted

PropertyPath = tuple[str | int, ...]
"""Where a value lies in a resource's properties: keys and list positions."""
Form = re.Pattern[str]
"""How a value must be written, from its beginning to its end, to be shown."""

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

_SEGMENT = re.compile(r'\["((?:[^"\\]|\\.)*)"\]|\[(\d+)\]|([^.\[\]]+)')


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
        """Whether neither value may be shown, whatever it looks like."""
        named = any(is_secret_name(part) for part in self.path if isinstance(part, str))
        return named or is_secret(self.before) or is_secret(self.after)

    def sentence(self, label: str, unit: str = "", form: Form | None = None) -> str:
        """``memory 4096 MiB -> 6144 MiB``. Without a ``form``, or when a value has another one, only that it changes."""
        if self.is_secret:
            return f"{label} changes {HIDDEN}"
        if form is None or not (fits(self.before, form) and fits(self.after, form)):
            happens = "is set" if self.before is None else "is taken away" if self.after is None else "changes"
            return f"{label} {happens}"
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


def shown(value: Any) -> str:
    """A value for people: short, on one line, and without anything secret. Of anything but plain values nothing is shown."""
    if isinstance(value, list) and all(_is_plain(item) for item in value):
        text = ", ".join(shown(item) for item in value) or "nothing"
    elif value is None:
        text = "nothing"
    elif is_secret(value) or not _is_plain(value):
        text = HIDDEN
    elif is_unknown(value):
        text = LATER
    elif isinstance(value, bool):
        text = "yes" if value else "no"
    else:
        text = redacted(_written(value))
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 4]} ..."


def is_unknown(value: Any) -> bool:
    """Whether the value is known only after ``pulumi up``."""
    return isinstance(value, str) and value in _UNKNOWN


def fits(value: Any, form: Form) -> bool:
    """Whether a value may be shown: each of its items has the form, or there is nothing to show yet."""
    if value is None or is_unknown(value) or isinstance(value, bool):
        return True
    if isinstance(value, list):
        return all(_is_plain(item) and fits(item, form) for item in value)
    return _is_plain(value) and form.fullmatch(_written(value)) is not None


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _written(value: str | int | float) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


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
