"""Reading the event log of a `pulumi preview`: one JSON object a line, each one event of the engine.

The log of ``--event-log`` is read, or what ``--json`` prints with ``PULUMI_ENABLE_STREAMING_JSON_PREVIEW=true``; both are
the same. Plain ``--json`` is no substitute: it leaves out everything the policies said.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

RECORD = "PULUMI_DEBUG_COMMANDS=true pulumi preview --event-log FILE"
"""How a log is recorded."""

_STACK_TYPE = "pulumi:pulumi:Stack"


class LogError(Exception):
    """The file is no event log of a preview; the text says what it is instead and what to do."""


class _Event(BaseModel):
    # Extra is ignored: the engine has more to say with every release.
    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)


# The engine writes null for a mapping that it never filled.
_Properties = Annotated[Mapping[str, Any], BeforeValidator(lambda value: {} if value is None else value)]


class PropertyDiff(_Event):
    """How one property differs."""

    kind: str = Field(alias="diffKind")
    """``add``, ``update`` or ``delete``; with ``-replace`` it replaces the resource."""
    inputs_only: bool = Field(default=False, alias="inputDiff")
    """Whether the old value is an input, and no output of the provider."""


class State(_Event):
    """A resource before or after the step."""

    type: str
    parent: str = ""
    custom: bool = False
    """False for a component."""
    protect: bool = False
    is_leftover: bool = Field(default=False, alias="delete")
    """Whether it only waits for its deletion: an earlier run replaced it."""
    inputs: _Properties = Field(default_factory=dict)
    outputs: _Properties = Field(default_factory=dict)


class Step(_Event):
    """What the engine would do to one resource."""

    op: str
    urn: str
    type: str
    old: State | None = None
    new: State | None = None
    replaced_because_of: Sequence[str] | None = Field(default=None, alias="keys")
    changed: Sequence[str] | None = Field(default=None, alias="diffs")
    """Top-level properties that differ, as the provider names them."""
    details: Mapping[str, PropertyDiff] | None = Field(default=None, alias="detailedDiff")
    """Property path to how it differs; None when the provider does not say."""

    @property
    def name(self) -> str:
        """The resource's name in the program."""
        return self.urn.rsplit("::", 1)[-1]

    @property
    def state(self) -> State | None:
        """What the resource will be, and of one that goes, what it was."""
        return self.new or self.old


class _StepEvent(_Event):
    metadata: Step


class Diagnostic(_Event):
    """Something the engine, a provider or the program said."""

    severity: str
    message: str
    urn: str = ""
    ephemeral: bool = False


class PolicyResult(_Event):
    """One violation, or one advisory, of one policy."""

    policy: str = Field(alias="policyName")
    message: str
    pack: str = Field(default="", alias="policyPackName")
    enforcement: str = Field(default="", alias="enforcementLevel")
    severity: str = ""
    urn: str = Field(default="", alias="resourceUrn")


class Summary(_Event):
    """How the run ended."""

    result: str = "succeeded"
    is_preview: bool = Field(default=False, alias="isPreview")
    packs: _Properties = Field(default_factory=dict, alias="PolicyPacks")


class _EngineEvent(_Event):
    step: _StepEvent | None = Field(default=None, alias="resourcePreEvent")
    diagnostic: Diagnostic | None = Field(default=None, alias="diagnosticEvent")
    policy: PolicyResult | None = Field(default=None, alias="policyEvent")
    summary: Summary | None = Field(default=None, alias="summaryEvent")


class Action(StrEnum):
    """What happens to a resource, all its steps taken together."""

    DELETE = "delete"
    REPLACE = "replace"
    UPDATE = "update"
    CREATE = "create"
    NONE = "none"


_ACTIONS = {
    "create": Action.CREATE,
    "import": Action.CREATE,
    "update": Action.UPDATE,
    "replace": Action.REPLACE,
    "create-replacement": Action.REPLACE,
    "delete-replaced": Action.REPLACE,
    "import-replacement": Action.REPLACE,
    "discard-replaced": Action.REPLACE,
    "read-replacement": Action.REPLACE,
    "delete": Action.DELETE,
    "discard": Action.DELETE,
}
"""Other operations (same, read, refresh, ...) change nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """One resource of the plan with everything that happens to it."""

    urn: str
    action: Action
    step: Step
    """The step that tells most: of a replacement the one that has the old and the new state."""

    @property
    def name(self) -> str:
        """The resource's name in the program."""
        return self.step.name

    @property
    def type(self) -> str:
        """Its type token."""
        return self.step.type

    @property
    def before(self) -> Mapping[str, Any]:
        """Its inputs as they are now; empty for a new resource."""
        return self.step.old.inputs if self.step.old else {}

    @property
    def after(self) -> Mapping[str, Any]:
        """Its inputs as they will be; empty for one that goes."""
        return self.step.new.inputs if self.step.new else {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """Everything a preview said."""

    stack: str | None
    """Name of the stack; None when the run ended before it was named."""
    resources: Mapping[str, Planned]
    """URN to resource, in the order of the URNs; the stack itself is left out."""
    errors: Sequence[Diagnostic]
    warnings: Sequence[Diagnostic]
    policies: Sequence[PolicyResult]
    packs: Mapping[str, str]
    """Policy packs that ran: name to version."""
    is_destroy: bool
    """Whether it shows `pulumi destroy`: the stack itself goes."""
    result: str
    """``succeeded``, ``failed``, ``canceled`` or ``ended early``."""

    @property
    def failed(self) -> bool:
        """Whether the preview does not say what `pulumi up` would do."""
        return self.result != "succeeded" or bool(self.errors)

    def with_action(self, *actions: Action) -> list[Planned]:
        """The resources to which one of ``actions`` happens."""
        return [resource for resource in self.resources.values() if resource.action in actions]


def read(file: Path) -> Preview:
    """Read an event log. Raises :class:`LogError` when the file is missing, or something else."""
    try:
        with file.open(encoding="utf-8") as lines:
            return parse(lines, str(file))
    except OSError as error:
        raise LogError(f"the event log {file} cannot be read: {error.strerror}. Record one with `{RECORD}`.") from error
    except UnicodeDecodeError as error:
        raise LogError(f"{file} is no event log of Pulumi: it is not text. Record one with `{RECORD}`.") from error


def parse(lines: Iterable[str], name: str = "the event log") -> Preview:
    """Make a :class:`Preview` of the lines of an event log; ``name`` is what messages call the file.

    A log that is empty, or that stops before the summary, is a preview that ended early. Raises :class:`LogError` for
    anything that is no event log of a preview.
    """
    events = [event for number, line in enumerate(lines, 1) if line.strip() and (event := _event(line, number, name))]
    summary = next((event.summary for event in reversed(events) if event.summary), None)
    if summary and not summary.is_preview:
        raise LogError(f"{name} was recorded by `pulumi up` or `pulumi destroy`, not by a preview: `{RECORD}`.")
    steps: dict[str, list[Step]] = {}
    for event in events:
        if event.step:
            steps.setdefault(event.step.metadata.urn, []).append(event.step.metadata)
    diagnostics = [event.diagnostic for event in events if event.diagnostic and not event.diagnostic.ephemeral]
    urns = [*steps, *(found.urn for found in diagnostics)]
    return Preview(
        stack=next((urn.split("::")[0].rsplit(":", 1)[-1] for urn in urns if urn.startswith("urn:pulumi:")), None),
        resources={urn: _together(urn, steps[urn]) for urn in sorted(steps) if steps[urn][0].type != _STACK_TYPE},
        errors=[found for found in diagnostics if found.severity == "error"],
        warnings=[found for found in diagnostics if found.severity == "warning"],
        policies=[event.policy for event in events if event.policy],
        packs=summary.packs if summary else {},
        is_destroy=any(step.type == _STACK_TYPE and step.op == "delete" for found in steps.values() for step in found),
        result=summary.result if summary else "ended early",
    )


def _event(line: str, number: int, name: str) -> _EngineEvent | None:
    """One event; None for the kinds that are not needed."""
    try:
        data = json.loads(line)
    except ValueError:
        if number > 1 and not line.endswith("\n"):
            # The engine was killed while it wrote: the log ends here, and has no summary.
            return None
        raise _foreign(name, number, line) from None
    if not isinstance(data, dict) or not isinstance(data.get("sequence"), int):
        raise _foreign(name, number, line)
    said = data.get("diagnosticEvent")
    if isinstance(said, dict) and said.get("severity") == "debug":
        return None
    try:
        return _EngineEvent.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise LogError(
            f"line {number} of {name} is no event that this command knows: {where}: {first['msg']}. It reads the event log "
            "of Pulumi 3.259 or newer."
        ) from None


def _foreign(name: str, number: int, line: str) -> LogError:
    if number == 1 and line.strip() == "{":
        return LogError(
            f"{name} is what `pulumi preview --json` prints, which leaves out the policies; record the event log: "
            f"`{RECORD}`."
        )
    return LogError(f"line {number} of {name} is no event of Pulumi. Record an event log with `{RECORD}`.")


def _together(urn: str, steps: Sequence[Step]) -> Planned:
    planned = [step for step in steps if step.op != "refresh"]
    found = {_ACTIONS.get(step.op, Action.NONE) for step in planned} or {Action.NONE}
    # Where one goes and one stays under the same name, an earlier run had replaced it and was not finished.
    mixed = Action.DELETE in found and len(found) > 1
    order = (Action.REPLACE, Action.UPDATE, Action.CREATE, Action.DELETE, Action.NONE)
    action = Action.REPLACE if mixed else next(kind for kind in order if kind in found)
    matching = [step for step in steps if _ACTIONS.get(step.op, Action.NONE) is action] or list(steps)
    best = max(matching, key=lambda step: (step.old is not None) + (step.new is not None))
    return Planned(urn=urn, action=action, step=best)
