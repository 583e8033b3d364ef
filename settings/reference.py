"""What docs/configuration.md says about every key, made from the fields themselves."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from datetime import date
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from settings.base import alias, inner_type, rule_of
from settings.faults import shown
from settings.models import Settings
from settings.values import AddressRange


def models_in(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """The model and those inside it, each with the path of its fields."""
    yield path, model
    for name, field in model.model_fields.items():
        annotation = inner_type(field.annotation)
        is_list = typing.get_origin(annotation) is tuple
        inner = inner_type(typing.get_args(annotation)[0]) if is_list else annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            prefix = f"{path}.{alias(name)}" if path else alias(name)
            yield from models_in(inner, f"{prefix}[]" if is_list else prefix)


_TYPE_NAMES: Mapping[object, str] = {
    bool: "boolean",
    int: "integer",
    str: "text",
    IPv4Address: "address",
    IPv4Network: "network",
    AddressRange: "address range",
    date: "date",
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
    for path, model in models_in(Settings):
        rows = tables.setdefault(path or "Topics", [])
        for name, field in model.model_fields.items():
            cells = (f"`{alias(name)}`", _type_name(field.annotation), _default_name(field), rule_of(field).allowed)
            meaning = (field.description or "").replace("\n", " ")
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in (*cells, meaning)) + " |")
    return tables


_HEADER = "| key | type | default | allowed | meaning |"


def rewritten(page: str) -> str:
    """The page with the rows of every table of keys replaced by those of :func:`reference`.

    A table belongs to the nearest heading above it that ends in the path of its keys in backticks, or is "Topics". Raises
    ValueError when the page has no table for some path, or one for a path that does not exist.
    """
    tables = reference()
    lines: list[str] = []
    heading, in_table = "", False
    for line in page.splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ").split("`")[-2] if line.endswith("`") else line.removeprefix("## ")
        in_table = line.startswith("|") and (in_table or line == _HEADER)
        if not in_table:
            lines.append(line)
        elif line == _HEADER:
            if heading not in tables:
                raise ValueError(f"the table under the heading {heading} belongs to no key")
            lines += [line, "|---|---|---|---|---|", *tables.pop(heading)]
    if tables:
        raise ValueError(f"the page has no table for {', '.join(tables)}")
    return "\n".join(lines) + "\n"
