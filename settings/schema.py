"""The JSON schema of ``Pulumi.<stack>.yaml``, with which an editor completes, explains and checks what is written there.

Made from the same fields as everything else here. It says as much as a schema can: types, names, bounds and forms. Rules
across fields and what has to be decoded stay with :func:`settings.load`, which has the last word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from settings.base import Rule, alias, rule_of
from settings.faults import NAMESPACE
from settings.loading import SECRET_RULES
from settings.models import Settings
from settings.reference import models_in

Schema = dict[str, Any]


def schema() -> Schema:
    """The whole schema, in draft 7, which is the one that editors know best."""
    topics = _topics()
    keys = {f"{NAMESPACE}:{key}": node for key, node in topics["properties"].items()}
    keys |= {f"{NAMESPACE}:{key}": _secret(key, rule) for key, rule in SECRET_RULES.items()}
    own = "|".join(re.escape(key.removeprefix(f"{NAMESPACE}:")) for key in keys)
    text = {"type": "string", "minLength": 1}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": f"A stack of {NAMESPACE}",
        "description": "Pulumi.<stack>.yaml. Made from settings/ by `python -m settings`.",
        "type": "object",
        "required": ["config"],
        "additionalProperties": False,
        "properties": {
            "config": {
                "description": "Every key with its namespace; those of other namespaces belong to providers.",
                "type": "object",
                "required": [f"{NAMESPACE}:{key}" for key in topics["required"]],
                "properties": keys,
                # Keys of our own namespace that are none of these.
                "patternProperties": {f"^{NAMESPACE}:(?!({own})$)": False},
                "propertyNames": {
                    "pattern": "^[^:]+:.",
                    "errorMessage": f"Allowed is a key with its namespace: write for example {NAMESPACE}:network.",
                },
            },
            "secretsprovider": {**text, "description": "What encrypts the secrets; written by Pulumi."},
            "encryptionsalt": {**text, "description": "Salt of the passphrase; written by Pulumi."},
            "encryptedkey": {**text, "description": "Encrypted key of the secrets; written by Pulumi."},
            "environment": {"description": "Environments of Pulumi ESC that are imported."},
        },
    }


def _secret(key: str, rule: Rule) -> Schema:
    """A secret as Pulumi writes it; the value itself never stands in the file."""
    return {
        "title": f"{NAMESPACE}:{key}",
        "description": f"Secret: {rule.allowed}.",
        "errorMessage": f"Allowed is {rule.allowed}, encrypted: {rule.do}.",
        "type": "object",
        "required": ["secure"],
        "additionalProperties": False,
        "properties": {
            "secure": {"description": "The encrypted value; written by Pulumi.", "type": "string", "minLength": 1}
        },
    }


def _topics() -> Schema:
    """The topics as pydantic describes them, without references, and with the words of the fields."""
    described = Settings.model_json_schema(by_alias=True)
    topics: Schema = _plain(described, described.pop("$defs"))
    for path, model in models_in(Settings):
        _name_fields(_at(topics, path), path, model)
    return topics


def _plain(node: Any, definitions: Mapping[str, Any]) -> Any:
    """The node with references, lone alternatives to null and patterns of keys written out the simple way."""
    if isinstance(node, list):
        return [_plain(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        node = {**definitions[node["$ref"].rsplit("/", 1)[-1]], **node}
        del node["$ref"]
    result = {key: _plain(value, definitions) for key, value in node.items() if key != "default" or value is not None}
    if "anyOf" in result:
        value, _null = result.pop("anyOf")
        result = {**value, **result, "type": [value["type"], "null"]}
    if "patternProperties" in result:
        ((pattern, content),) = result.pop("patternProperties").items()
        result |= {"propertyNames": {**result["propertyNames"], "pattern": pattern}, "additionalProperties": content}
    return result


def _at(topics: Schema, path: str) -> Schema:
    """The node of the map at a path such as ``proxmox.hosts[]``."""
    node = topics
    for part in path.split(".") if path else ():
        node = node["properties"][part.removesuffix("[]")]
        if part.endswith("[]"):
            node = node["items"]
    return node


def _name_fields(node: Schema, path: str, model: type[BaseModel]) -> None:
    """Give every key of a map its path as title, and its meaning and rule as description."""
    if path.endswith("[]"):
        node["title"] = path
    for name, field in model.model_fields.items():
        key = alias(name)
        inner = node["properties"][key]
        inner["title"] = f"{path}.{key}" if path else f"{NAMESPACE}:{key}"
        inner["description"] = field.description
        if "properties" in inner:
            # An editor would say this about every fault inside.
            del inner["errorMessage"]
        else:
            inner["description"] += f"\n\nAllowed: {rule_of(field).allowed}."
