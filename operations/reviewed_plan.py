"""Whether the plan that is about to be carried out is the one that was reviewed in the merge request.

For the pipelines (``.ci/preview``): ``python -m operations.reviewed_plan digest FILE`` and ``... check FILE``. Two plans
are the same when they do the same to the same resources with the same values. Secret values are left out, because they are
encrypted anew in every file; that they are the reviewed ones follows from the commit, in which they are encrypted as well.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from operations.gitlab import GitLabError, reviewed_plan

_SIGNATURE = "4dabf18193072939515e22adb298388d"
"""Key by which Pulumi marks an object that stands for something else, such as a secret."""

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

PlanFile = Annotated[Path, typer.Argument(help="What `pulumi preview --save-plan` wrote.", metavar="FILE")]


class PlanError(Exception):
    """The plan cannot be used; the text is one sentence: what is wrong, why, and what to do."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)


class _Goal(_Part):
    """What one resource is to become; what Pulumi lists in no particular order (dependencies) is left out."""

    type: str
    custom: bool
    inputs: dict[str, Any] = Field(default_factory=dict, alias="inputDiff")
    outputs: dict[str, Any] = Field(default_factory=dict, alias="outputDiff")
    protect: bool = False
    delete_before_replace: bool | None = Field(default=None, alias="deleteBeforeReplace")
    ignore_changes: list[str] = Field(default_factory=list, alias="ignoreChanges")


class _ResourcePlan(_Part):
    goal: _Goal | None = None
    steps: list[str] = Field(default_factory=list)


class _Plan(_Part):
    resources: dict[str, _ResourcePlan] = Field(alias="resourcePlans")


def digest(file: Path) -> str:
    """SHA-256 of what a saved plan does, in hexadecimal digits; the same for every preview that finds the same to do.

    :raises PlanError: when the file is missing or no plan.
    """
    try:
        plan = _Plan.model_validate_json(file.read_bytes())
    except OSError as error:
        raise PlanError(f"There is no plan in {file} ({error.strerror}): the preview has to succeed first.") from error
    except ValidationError:
        raise PlanError(f"{file} is no plan: write one with `pulumi preview --save-plan {file}`.") from None
    content = {urn: resource.model_dump() for urn, resource in plan.resources.items()}
    return hashlib.sha256(json.dumps(_without_secrets(content), sort_keys=True).encode()).hexdigest()


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        if _SIGNATURE in value and "ciphertext" in value:
            return "[secret]"
        return {key: _without_secrets(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_secrets(inner) for inner in value]
    return value


def check(file: Path, commit: str, branch: str) -> str:
    """Which merge request (``!7``) showed exactly this plan before it was merged as ``commit`` on ``branch``.

    :raises PlanError: when it showed another one.
    :raises operations.gitlab.GitLabError: when what it showed is not known.
    """
    found = digest(file)
    reviewed = reviewed_plan(commit, branch)
    if found != reviewed.digest:
        raise PlanError(
            f"The plan is not the one that was reviewed in merge request {reviewed.merge_request}: the system, another "
            "change or the configuration of a provider has moved on since."
        )
    return reviewed.merge_request


@app.command("digest")
def digest_command(file: PlanFile) -> None:
    """Print the digest of a plan."""
    try:
        typer.echo(digest(file))
    except PlanError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


@app.command("check")
def check_command(file: PlanFile) -> None:
    """Print which merge request showed this plan; ends with 1 when that is not the one that made this commit."""
    try:
        name = check(file, os.environ.get("CI_COMMIT_SHA", ""), os.environ.get("CI_COMMIT_BRANCH", ""))
    except (PlanError, GitLabError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    typer.echo(f"This is the plan that was reviewed in merge request {name}.")


if __name__ == "__main__":
    app()
