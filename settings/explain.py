"""From what pydantic refuses to sentences a teacher can act on."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from settings.base import Refused, Rule, alias, inner_type, rule_in, rule_of
from settings.faults import Fault, path_of, shown, unknown_key
from settings.values import LABEL


def _raw(value: object, location: Sequence[int | str]) -> object:
    """What the file has at the location; None when it has nothing there."""
    for part in location:
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, Sequence) and not isinstance(value, str) and isinstance(part, int):
            value = value[part] if part < len(value) else None
        else:
            return None
    return value


def _field_named(model: type[BaseModel], key: int | str) -> FieldInfo | None:
    return next((field for name, field in model.model_fields.items() if alias(name) == key), None)


def _expected(field: FieldInfo, location: Sequence[int | str], is_key: bool) -> tuple[Rule, object]:
    """The rule for what stands at the location (that of the nearest thing around it which has one), and its type."""
    rule, annotation = rule_of(field), inner_type(field.annotation)
    for depth, part in enumerate(location):
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            inner = _field_named(annotation, part)
            if inner is None:
                break
            rule, annotation = rule_of(inner), inner_type(inner.annotation)
            continue
        arguments = [item for item in typing.get_args(annotation) if item is not Ellipsis]
        if not arguments:
            break
        item = arguments[0 if is_key and depth == len(location) - 1 else -1]
        if typing.get_origin(item) is Annotated:
            rule = rule_in(typing.get_args(item)[1:]) or rule
        annotation = inner_type(item)
    return rule, annotation


def _name_of(topic: str, location: Sequence[int | str], raw: object) -> str:
    """The name of the machine, host or policy in brackets when the location is inside one: nobody has to count."""
    depth = 1 if topic in ("machines", "policyWaivers") else 2 if location[:1] == ("hosts",) else 0
    key = "policy" if topic == "policyWaivers" else "name"
    name = _raw(raw, [*location[:depth], key]) if 0 < depth < len(location) else None
    return f" ({name})" if isinstance(name, str) and location[depth:] != (key,) and LABEL.fullmatch(name) else ""


def explain(topic: str, field: FieldInfo, raw: object, error: ValidationError) -> Iterator[str]:
    """One sentence for every place that pydantic refused, each place once."""
    seen: set[str] = set()
    for item in error.errors(include_url=False, include_input=False):
        location = item["loc"]
        is_key = location[-1:] == ("[key]",)
        if is_key:
            location = location[:-1]
        rule, expected = _expected(field, location, is_key)
        path = path_of(topic, location) + _name_of(topic, location, raw)
        if path in seen:
            continue
        seen.add(path)
        if item["type"] == "extra_forbidden":
            _, owner = _expected(field, location[:-1], False)
            fields = owner.model_fields if isinstance(owner, type) and issubclass(owner, BaseModel) else {}
            yield unknown_key(path, str(location[-1]), [alias(name) for name in fields])
            continue
        refusal = item.get("ctx", {}).get("error")
        if isinstance(refusal, Refused):
            rule = Rule(refusal.allowed, refusal.do)
        if is_key:
            path, was = path_of(topic, location[:-1]), f"has the key {shown(location[-1])}"
        elif item["type"] == "missing":
            was = "is missing"
        elif isinstance(expected, type) and issubclass(expected, BaseModel):
            keys = ", ".join(alias(name) for name in expected.model_fields)
            rule = Rule(f"a map with the keys {keys}", "see docs/configuration.md")
            was = f"is {shown(_raw(raw, location))}"
        else:
            was = f"is {shown(_raw(raw, location))}"
        yield str(Fault(path, was, rule.allowed, rule.do))
