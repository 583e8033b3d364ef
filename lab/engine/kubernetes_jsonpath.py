"""JSONPath as the annotation pulumi.com/waitFor needs it, and the expressions of that annotation.

Understood are names, positions, ``*`` and filters that compare: ``{.status.phase}``, ``{.status['a.b'][0].ip}``,
``{.status.conditions[?(@.type=="Ready")].status}``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

Step = Callable[[Any], list[Any]]

_NAME: Final = re.compile(r"[A-Za-z_\u0080-\uffff][\w\u0080-\uffff-]*")
_QUOTED: Final = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"")
_INDEX: Final = re.compile(r"-?\d+")
_FILTER: Final = re.compile(r"\s*(@[^=!<>]*?)\s*(?:(==|!=)\s*(.+?)\s*)?$")


class ExpressionError(ValueError):
    """An expression cannot be understood; the text says where."""


def compile_path(expression: str) -> Callable[[Any], list[Any]]:
    """A function that finds the values ``expression`` (without braces) names. Raises :class:`ExpressionError`."""
    steps = _steps(expression.removeprefix("$"), expression)

    def find(document: Any) -> list[Any]:
        found = [document]
        for step in steps:
            found = [item for value in found for item in step(value)]
        return found

    return find


def _steps(rest: str, expression: str) -> list[Step]:
    steps: list[Step] = []
    while rest:
        if rest.startswith("["):
            inside, rest = _bracket(rest, expression)
            steps.append(_bracket_step(inside.strip(), expression))
            continue
        if not rest.startswith(".") or rest.startswith(".."):
            raise ExpressionError(f"{expression!r} is not understood at {rest!r}: expected '.name' or '[...]'")
        rest = rest[1:]
        if rest.startswith("*"):
            steps.append(_everything)
            rest = rest[1:]
            continue
        name = _NAME.match(rest)
        if name is None:
            raise ExpressionError(f"{expression!r} has no name after '.' at {rest!r}")
        steps.append(_member(name.group()))
        rest = rest[name.end() :]
    return steps


def _bracket(rest: str, expression: str) -> tuple[str, str]:
    """The inside of the bracket that starts ``rest``, and what follows it."""
    depth, quote, skip = 0, "", False
    for position, letter in enumerate(rest):
        if skip:
            skip = False
        elif quote:
            skip = letter == "\\"
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter == "[":
            depth += 1
        elif letter == "]":
            depth -= 1
            if depth == 0:
                return rest[1:position], rest[position + 1 :]
    raise ExpressionError(f"{expression!r} has a '[' without its ']'")


def _bracket_step(inside: str, expression: str) -> Step:
    if inside == "*":
        return _everything
    if _INDEX.fullmatch(inside):
        return _position(int(inside))
    quoted = _QUOTED.fullmatch(inside)
    if quoted:
        return _member(_literal(inside, expression))
    if inside.startswith("?"):
        return _filter(inside[1:].strip(), expression)
    raise ExpressionError(
        f"{expression!r} is not understood at [{inside}]: expected a name in quotes, a number, * or ?(...)"
    )


def _literal(text: str, expression: str) -> Any:
    quoted = _QUOTED.fullmatch(text)
    if quoted:
        body = quoted.group(1) if quoted.group(1) is not None else quoted.group(2)
        return re.sub(r"\\(.)", r"\1", body)
    try:
        return json.loads(text)
    except ValueError as error:
        raise ExpressionError(
            f"{expression!r} compares with {text!r}, which is neither a text in quotes nor a number"
        ) from error


def _filter(condition: str, expression: str) -> Step:
    if condition.startswith("(") and condition.endswith(")"):
        condition = condition[1:-1]
    found = _FILTER.fullmatch(condition)
    if found is None:
        raise ExpressionError(
            f'{expression!r} has a filter that is not understood: {condition!r} (expected @.name=="value")'
        )
    find = compile_path(found.group(1).removeprefix("@"))
    operator = found.group(2)
    wanted = _literal(found.group(3), expression) if operator else None

    def keep(item: Any) -> bool:
        values = find(item)
        if operator is None:
            return bool(values)
        equal = bool(values) and values[0] == wanted
        return equal if operator == "==" else not equal

    return lambda value: [item for item in _everything(value) if keep(item)]


def _member(name: str) -> Step:
    return lambda value: [value[name]] if isinstance(value, Mapping) and name in value else []


def _position(index: int) -> Step:
    return lambda value: [value[index]] if isinstance(value, list) and -len(value) <= index < len(value) else []


def _everything(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list) else []


@dataclass(frozen=True)
class Wait:
    """One condition that an object must meet."""

    text: str
    """The expression as written."""
    met: Callable[[Mapping[str, Any]], bool]
    """Whether the object meets it now."""
    present: Callable[[Mapping[str, Any]], str]
    """What the object says instead, in a few words."""


def parse_wait(text: str) -> Wait:
    """``jsonpath={...}``, ``jsonpath={...}=value``, ``condition=Type`` or ``condition=Type=Status``.

    Raises :class:`ExpressionError`.
    """
    text = text.strip()
    if text.startswith("jsonpath="):
        return _path_wait(text)
    if text.startswith("condition="):
        name, separator, status = text.removeprefix("condition=").partition("=")
        if not name or (separator and not status):
            raise ExpressionError(f"{text!r} must be condition=Type or condition=Type=Status")
        return _condition_wait(text, name, status or "True")
    raise ExpressionError(f"{text!r} must start with 'jsonpath=' or 'condition='")


def _path_wait(text: str) -> Wait:
    body = text.removeprefix("jsonpath=")
    end = body.rfind("}")
    if not body.startswith("{") or end < 0:
        raise ExpressionError(f"{text!r} must have its path in braces, jsonpath={{.status.phase}}=value")
    rest = body[end + 1 :]
    if rest and (not rest.startswith("=") or len(rest) == 1):
        raise ExpressionError(f"{text!r} has {rest!r} after the path; expected nothing or '=value'")
    find = compile_path(body[1:end].strip())
    wanted = rest[1:].strip().strip("'\"") if rest else None

    def met(document: Mapping[str, Any]) -> bool:
        values = find(document)
        return bool(values) if wanted is None else any(_text(value) == wanted for value in values)

    def present(document: Mapping[str, Any]) -> str:
        values = find(document)
        return ", ".join(_text(value)[:120] for value in values) if values else "not there yet"

    return Wait(text, met, present)


def _condition_wait(text: str, name: str, status: str) -> Wait:
    def current(document: Mapping[str, Any]) -> Mapping[str, Any]:
        conditions = (document.get("status") or {}).get("conditions") or []
        return next((entry for entry in conditions if str(entry.get("type")).lower() == name.lower()), {})

    def present(document: Mapping[str, Any]) -> str:
        entry = current(document)
        if not entry:
            return "not there yet"
        details = " ".join(str(entry.get(key)) for key in ("reason", "message") if entry.get(key))
        return f"{entry.get('status')}" + (f" ({details[:200]})" if details else "")

    return Wait(text, lambda document: str(current(document).get("status", "")).lower() == status.lower(), present)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
