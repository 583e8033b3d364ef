"""The configurations of the tests: the school's stack file, the ones in this folder, and changes to them."""

from __future__ import annotations

import copy
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

import settings

FOLDER = Path(__file__).parent
REPOSITORY = FOLDER.parents[1]


class _EveryKeyOnce(yaml.SafeLoader):
    """Refuses a key that a map has twice, as Pulumi does; PyYAML would take the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key} is there twice", problem_mark=node.start_mark
                )
        return super().construct_mapping(node, deep)


def parsed(text: str) -> Any:
    """What a YAML text says; raises :class:`yaml.YAMLError` also when a key is there twice."""
    return yaml.load(text, _EveryKeyOnce)


def read(path: Path) -> Any:
    """What a YAML file says."""
    return parsed(path.read_text(encoding="utf-8"))


def school() -> dict[str, Any]:
    """The school's stack file as plain objects per topic."""
    config = read(REPOSITORY / "Pulumi.school.yaml")["config"]
    return {key.removeprefix(f"{settings.NAMESPACE}:"): value for key, value in config.items()}


def changed(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the configuration with ``path: value`` applied; ``~remove`` takes the key or item out."""
    result: dict[str, Any] = copy.deepcopy(dict(config))
    for path, value in changes.items():
        parts = [int(part[1:-1]) if part[0] == "[" else part for part in re.findall(r"\[\d+\]|[^.\[\]]+", path)]
        target: Any = result
        for part in parts[:-1]:
            target = target[part]
        if value == "~remove":
            del target[parts[-1]]
        else:
            target[parts[-1]] = value
    return result


INVALID: list[dict[str, Any]] = read(FOLDER / "invalid.yaml")
"""Every configuration that is refused: ``name``, ``change`` and ``sentences``, perhaps ``editor``."""
