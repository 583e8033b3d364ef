"""Makes a test's log of the event log of a real preview: ``python -m tests.unit.previews.shorten < recorded > short.jsonl``.

What the command reads stays as the engine wrote it. Left out is what makes a log long: debug messages, the outputs of
resources, the inputs of what does not change, and what stands on the standard input of commands. Left out is also what
differs from machine to machine: times, ids of providers, and the warnings of the Pulumi command about itself.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

_EVENTS = ("resourcePreEvent", "diagnosticEvent", "policyEvent", "summaryEvent", "cancelEvent")
_STEP = ("op", "urn", "type", "old", "new", "keys", "diffs", "detailedDiff")
_STATE = ("type", "custom", "delete", "parent", "protect", "inputs")
_TOLD = ("proxmoxve:index/containerLegacy:ContainerLegacy", "kubernetes:acid.zalan.do/v1:postgresql")
_LONG = 400


def shorten(lines: Iterable[str]) -> Iterator[str]:
    """The lines of a shorter log that gives the same comment."""
    number = 0
    for line in lines:
        event = json.loads(line)
        name = next((name for name in _EVENTS if name in event), None)
        if name is None or not _matters(event):
            continue
        if name == "resourcePreEvent":
            event[name] = {"metadata": _step(event[name]["metadata"])}
        if name == "summaryEvent":
            packs = event[name]["PolicyPacks"]
            event[name]["PolicyPacks"] = {f"{pack.split('|')[0]}|local|policy": packs[pack] for pack in packs}
            event[name]["durationSeconds"] = 0
        yield json.dumps({"sequence": number, "timestamp": 0, name: event[name]}, ensure_ascii=False)
        number += 1


def _matters(event: dict[str, Any]) -> bool:
    said = event.get("diagnosticEvent", {})
    return said.get("severity") != "debug" and not said.get("message", "").startswith("using pulumi-")


def _step(step: dict[str, Any]) -> dict[str, Any]:
    short = {key: step[key] for key in _STEP if key in step}
    changes = step["op"] not in ("same", "refresh")
    for side in ("old", "new"):
        if short.get(side):
            told = step["type"].startswith("school:") or step["type"] in _TOLD
            short[side] = {key: short[side][key] for key in _STATE if short[side].get(key)}
            inputs = short[side].pop("inputs", {})
            if changes or (told and side == "new"):
                short[side]["inputs"] = _texts(inputs)
    return short


def _texts(value: Any) -> Any:
    """Values without long texts, such as scripts."""
    if isinstance(value, dict):
        return {key: _texts(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_texts(item) for item in value]
    return f"{value[:_LONG]} ... (shortened)" if isinstance(value, str) and len(value) > _LONG + 20 else value


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in shorten(sys.stdin))
