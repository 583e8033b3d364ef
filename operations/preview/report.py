"""The facts of a preview, put together: what the comment tells, and what programs get with ``--json``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from operations.preview.changes import Change, changes
from operations.preview.data_loss import DataLoss, data_loss, lifted_protection
from operations.preview.failures import POLICY_VIOLATED, Cause, causes
from operations.preview.interruptions import Interruption, interruptions
from operations.preview.log import Action, Preview
from operations.preview.names import Names
from operations.preview.picture import Picture, picture
from operations.preview.policies import Finding, findings, plain


class Verdict(StrEnum):
    """What a preview came to."""

    FAILED = "failed"
    UNCHANGED = "unchanged"
    CHANGES = "changes"


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Everything there is to tell about one preview."""

    stack: str
    verdict: Verdict
    command: str
    """What was previewed: ``pulumi up`` or ``pulumi destroy``."""
    data_loss: Sequence[DataLoss]
    unprotected: Sequence[str]
    """What is protected now and would not be afterwards."""
    interruptions: Sequence[Interruption]
    is_first: bool
    """Whether no machine exists yet."""
    changes: Sequence[Change]
    policies: Sequence[Finding]
    packs: Sequence[str]
    """Policy packs that ran, as ``name version``."""
    causes: Sequence[Cause]
    """Why the preview failed."""
    warnings: Sequence[str]
    """What the program itself warned of."""
    resources: int
    """Resources in the plan."""
    unchanged: int
    """How many of them stay as they are."""
    picture: Picture

    @property
    def is_refused(self) -> bool:
        """Whether policies are the only reason why the preview failed."""
        return [cause.title for cause in self.causes] == [POLICY_VIOLATED]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the picture is left out."""
        return {
            "stack": self.stack,
            "verdict": self.verdict.value,
            "command": self.command,
            "dataLoss": [asdict(one) for one in self.data_loss],
            "unprotected": list(self.unprotected),
            "interruptions": [asdict(one) for one in self.interruptions],
            "changes": [
                {
                    "things": [thing.title for thing in change.things],
                    "action": change.action.value,
                    "words": list(change.words),
                    "parts": change.parts,
                }
                for change in self.changes
            ],
            "policies": [asdict(one) for one in self.policies],
            "policyPacks": list(self.packs),
            "causes": [asdict(one) for one in self.causes],
            "warnings": list(self.warnings),
            "resources": self.resources,
            "unchanged": self.unchanged,
        }


def report(preview: Preview, stack: str) -> Report:
    """Everything there is to tell about ``preview``; ``stack`` is what the stack is called."""
    known = Names(preview)
    changed = changes(preview, known)
    return Report(
        stack=stack,
        verdict=_verdict(preview, changed),
        command="pulumi destroy" if preview.is_destroy else "pulumi up",
        data_loss=data_loss(preview, known),
        unprotected=lifted_protection(preview, known),
        interruptions=interruptions(preview, known),
        is_first=not known.existing,
        changes=changed,
        policies=findings(preview, known),
        # The engine adds where a local pack lies, which differs from runner to runner.
        packs=sorted(f"{name.split('|')[0]} {version}".strip() for name, version in preview.packs.items()),
        causes=causes(preview, known),
        warnings=_warnings(preview),
        resources=len(preview.resources),
        unchanged=len(preview.with_action(Action.NONE)),
        picture=picture(preview, known, changed),
    )


def _verdict(preview: Preview, changed: Sequence[Change]) -> Verdict:
    if preview.failed:
        return Verdict.FAILED
    return Verdict.CHANGES if changed else Verdict.UNCHANGED


def _warnings(preview: Preview) -> list[str]:
    """Warnings of the program; those of the Pulumi command about itself say nothing about the plan."""
    said = {" ".join(plain(one.message).split()) for one in preview.warnings}
    return sorted(text for text in said if not text.startswith("using pulumi-"))
