"""What every topic of the configuration is made of: a frozen model whose fields say in words what they allow."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

LARGEST_MIB = 4 * 1024 * 1024
LARGEST_GIB = 65536


@dataclass(frozen=True, slots=True)
class Rule:
    """What a field may hold, in words: completes "allowed is ..." and says what to do about anything else."""

    allowed: str
    do: str
    example: object = field(default=None, compare=False)
    """A value as the file may have it, for editors; None where the words are enough."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        found = handler(schema)
        found["description"] = f"Allowed: {self.allowed}."
        found["errorMessage"] = f"Allowed is {self.allowed}: {self.do}."
        if self.example is not None:
            found["examples"] = [self.example]
        return found


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


@dataclass(frozen=True, slots=True, eq=False)
class EditorSchema:
    """What an editor is told about a value beside its type: keywords of JSON schema."""

    keywords: Mapping[str, object]

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(schema), **self.keywords}


@dataclass(frozen=True, slots=True, eq=False)
class Check(EditorSchema):
    """Keeps a value which ``accept`` likes; the field's :class:`Rule` words the refusal."""

    accept: Callable[[Any], bool]

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._validate, handler(source))

    def _validate(self, value: Any) -> Any:
        if not self.accept(value):
            raise ValueError("not allowed")
        return value


def editor(**keywords: object) -> EditorSchema:
    """Tells an editor as much of a rule as JSON schema can say; checks nothing here."""
    return EditorSchema(keywords)


def check(accept: Callable[[Any], bool], **keywords: object) -> Check:
    """Validator that keeps a value which ``accept`` likes; ``keywords`` say as much of it as JSON schema can."""
    return Check(keywords, accept)


def between(lowest: int, highest: int) -> Check:
    """Validator that keeps a number from ``lowest`` to ``highest``."""
    return check(lambda value: lowest <= value <= highest, minimum=lowest, maximum=highest)


def whole(pattern: str | re.Pattern[str]) -> str:
    """The pattern as JSON schema wants it, where a pattern may match anywhere in a text."""
    return f"^({pattern if isinstance(pattern, str) else pattern.pattern})$"


def matches(pattern: str | re.Pattern[str]) -> Check:
    """Validator that keeps a text which the whole pattern matches. Only what Python and ECMAScript both understand."""
    return check(lambda value: re.fullmatch(pattern, value) is not None, pattern=whole(pattern))


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
