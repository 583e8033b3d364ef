"""The tables of docs/configuration.md, made from the fields themselves."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from settings.base import alias, inner_type, rule_of
from settings.faults import shown
from settings.models import Settings
from settings.values import AddressRange


def _models(model: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """The model and those inside it, each with the path of its fields."""
    yield path, model
    for name, field in model.model_fields.items():
        annotation = inner_type(field.annotation)
        is_list = typing.get_origin(annotation) is tuple
        inner = inner_type(typing.get_args(annotation)[0]) if is_list else annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            prefix = f"{path}.{alias(name)}" if path else alias(name)
            yield from _models(inner, f"{prefix}[]" if is_list else prefix)


_TYPE_NAMES: Mapping[object, str] = {
    bool: "boolean",
    int: "integer",
    str: "text",
    IPv4Address: "address",
    IPv4Network: "network",
    AddressRange: "address range",
}


def _type_name(annotation: object) -> str:
    annotation = inner_type(annotation)
    if typing.get_origin(annotation) is tuple:
        inner = inner_type(typing.get_args(annotation)[0])
        return "list" if isinstance(inner, type) and issubclass(inner, BaseModel) else f"list of {_type_name(inner)}"
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return "text"
    return _TYPE_NAMES.get(annotation, "map")


def _default_name(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if isinstance(field.default, BaseModel):
        return "the defaults of its keys"
    if field.default is None or field.default == ():
        return "none"
    if field.default == {}:
        return "none"
    return f"`{shown(field.default)}`"


def reference() -> dict[str, list[str]]:
    """Rows of the tables in docs/configuration.md, by heading; each row is one key of the configuration."""
    tables: dict[str, list[str]] = {}
    for path, model in _models(Settings, ""):
        rows = tables.setdefault(path or "Topics", [])
        for name, field in model.model_fields.items():
            cells = (f"`{alias(name)}`", _type_name(field.annotation), _default_name(field), rule_of(field).allowed)
            meaning = (field.description or "").replace("\n", " ")
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in (*cells, meaning)) + " |")
    return tables
