"""What every topic of the configuration is made of: a frozen model whose fields say in words what they allow."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo

LARGEST_MIB = 4 * 1024 * 1024
LARGEST_GIB = 65536


@dataclass(frozen=True, slots=True)
class Rule:
    """What a field may hold, in words: completes "allowed is ..." and says what to do about anything else."""

    allowed: str
    do: str


class Refused(ValueError):
    """A value is refused for a reason of its own, which replaces the field's general rule."""

    def __init__(self, allowed: str, do: str) -> None:
        super().__init__(allowed)
        self.allowed = allowed
        self.do = do


def alias(field: str) -> str:
    """Spelling of a field in the YAML file: camelCase, with the binary units in their usual form."""
    return re.sub(r"(Mib|Gib)$", lambda unit: {"Mib": "MiB", "Gib": "GiB"}[unit[0]], to_camel(field))


class Model(BaseModel):
    """Base of all settings: frozen, no unknown keys, values never printed by pydantic."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=alias,
        populate_by_name=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )


def check(accept: Callable[[Any], bool]) -> AfterValidator:
    """Validator that keeps a value which ``accept`` likes; the field's :class:`Rule` words the refusal."""

    def validate(value: Any) -> Any:
        if not accept(value):
            raise ValueError("not allowed")
        return value

    return AfterValidator(validate)


def between(lowest: int, highest: int) -> AfterValidator:
    """Validator that keeps a number from ``lowest`` to ``highest``."""
    return check(lambda value: lowest <= value <= highest)


def matches(pattern: str | re.Pattern[str]) -> AfterValidator:
    """Validator that keeps a text which the whole pattern matches."""
    return check(lambda value: re.fullmatch(pattern, value) is not None)


def not_empty(value: Any) -> bool:
    """Whether there is at least one item."""
    return len(value) > 0


def unique(values: Sequence[object]) -> bool:
    """Whether no item is there twice."""
    return len(set(values)) == len(values)


def inner_type(annotation: object) -> object:
    """The type behind Annotated and "or nothing"."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return inner_type(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return inner_type(next(item for item in typing.get_args(annotation) if item is not type(None)))
    return annotation


def rule_in(metadata: Iterable[object]) -> Rule | None:
    """The rule among the metadata of an annotation, if there is one."""
    return next((item for item in metadata if isinstance(item, Rule)), None)


def rule_of(field: FieldInfo) -> Rule:
    """The rule of a field; every field has one."""
    found = rule_in(field.metadata)
    if found is None:
        raise TypeError(f"the field {field.alias} has no Rule")
    return found
