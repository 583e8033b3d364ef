"""Where the time of ``pulumi up`` went, from the engine's own event log."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PHASES = (
    "machines",
    "file share",
    "datastore",
    "control plane",
    "service addresses",
    "operator",
    "database",
    "backup",
)
"""Parts of the stack, what others stand on first. Much of it is done at the same time."""

_COMPONENTS = {
    "ProxmoxHost": "machines",
    "ProxmoxLxcNode": "machines",
    "CertificateAuthority": "datastore",
    "K3sDatastore": "datastore",
    "ApiLoadBalancer": "control plane",
    "K3sControlPlane": "control plane",
    "MetalLbPool": "service addresses",
    "PostgresCluster": "database",
    "FileShare": "file share",
    "SmbBackup": "backup",
}
_CHANGES = frozenset({"create", "update", "replace", "create-replacement", "delete", "delete-replaced"})
_OPERATOR_TYPE = "kubernetes:helm.sh/v3:Release"


@dataclass(slots=True)
class Span:
    """From when to when a part of the stack was worked on, in seconds after the deployment began."""

    begun: float
    ended: float

    @property
    def seconds(self) -> float:
        """How long that is."""
        return self.ended - self.begun


def phase_of(urn: str) -> str | None:
    """The part of the stack a resource belongs to; None for what belongs to none (providers, the stack itself)."""
    types = urn.split("::")[2].split("$")
    for kind in types:
        phase = _COMPONENTS.get(kind.rpartition(":")[2]) if kind.startswith("school:") else None
        if phase == "database" and types[-1] == _OPERATOR_TYPE:
            return "operator"
        if phase is not None:
            return phase
    return None


def phases(lines: Iterable[str]) -> dict[str, Span]:
    """The parts in which something was changed, in the order of :data:`PHASES`.

    ``lines`` are those of a file written by ``pulumi up --event-log``; a last line that was cut off is left out.
    """
    found: dict[str, Span] = {}
    start: float | None = None
    for line in lines:
        if not line.endswith("\n"):
            break
        event: Mapping[str, Any] = json.loads(line)
        now = float(event["timestamp"])
        start = now if start is None else start
        outcome = event.get("resourcePreEvent") or event.get("resOutputsEvent") or event.get("resOpFailedEvent")
        if not outcome or outcome.get("planning") or outcome["metadata"]["op"] not in _CHANGES:
            continue
        phase = phase_of(outcome["metadata"]["urn"])
        if phase is None:
            continue
        span = found.setdefault(phase, Span(now - start, now - start))
        span.ended = now - start
    return {phase: found[phase] for phase in PHASES if phase in found}


def save(path: Path, parts: Mapping[str, Span]) -> None:
    """Keep the phases of a deployment for later."""
    path.write_text(json.dumps({name: [span.begun, span.ended] for name, span in parts.items()}), encoding="utf-8")


def load(path: Path) -> dict[str, Span]:
    """The phases of the last deployment; empty when none is recorded."""
    if not path.exists():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    return {name: Span(begun=begun, ended=ended) for name, (begun, ended) in found.items()}
