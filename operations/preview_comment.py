"""``school preview-comment``: what a `pulumi preview` means, as the comment of a merge request."""

from __future__ import annotations

import json
from enum import IntEnum
from pathlib import Path
from typing import Annotated

import typer

from operations.preview.comment import DEFAULT_LIMIT, LARGEST_LIMIT, SMALLEST_LIMIT, comment, marker
from operations.preview.log import LogError, parse, read
from operations.preview.report import Report, Verdict, report


class ExitCode(IntEnum):
    """How the command ends."""

    FINE = 0
    """The preview succeeded."""
    PREVIEW_FAILED = 1
    UNREADABLE = 2
    """The file is no event log, or an option is wrong."""
    DATA_LOSS = 3
    """With ``--refuse-data-loss``: the plan loses data."""
    NOT_PUBLISHED = 4


def exit_code(found: Report, *, refuse_data_loss: bool) -> ExitCode:
    """What a pipeline gets for a preview."""
    if found.verdict is Verdict.FAILED:
        return ExitCode.PREVIEW_FAILED
    if refuse_data_loss and found.data_loss:
        return ExitCode.DATA_LOSS
    return ExitCode.FINE


def preview_comment(
    log: Annotated[Path, typer.Argument(metavar="EVENT-LOG", help="The event log of the preview.")],
    stack: Annotated[str | None, typer.Option(help="Name of the stack; default: what the log says.")] = None,
    refuse_data_loss: Annotated[
        bool, typer.Option("--refuse-data-loss", help="End with 3 when the plan deletes or replaces what holds data.")
    ] = False,
    publish: Annotated[
        bool, typer.Option("--publish", help="Write it as the merge request's own note, instead of printing it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: the same facts as one JSON object.")] = False,
    limit: Annotated[
        int,
        typer.Option("--max-characters", help="Longest comment.", min=SMALLEST_LIMIT, max=LARGEST_LIMIT),
    ] = DEFAULT_LIMIT,
) -> None:
    """Turn a `pulumi preview` into a comment for a merge request: data that would be lost, interruptions, policies, changes.

    Record the log with `PULUMI_DEBUG_COMMANDS=true pulumi preview --event-log FILE`.
    A failed preview becomes a comment that says so and why; with --stack so does one that left no log at all.
    Plain `pulumi preview --json` is no substitute: it leaves out what the policies said.

    Exit code:
    0 the preview succeeded;
    1 the preview failed, or policies refuse the plan;
    2 the file is no event log, or an option is wrong;
    3 with --refuse-data-loss: something that holds data would be deleted or replaced;
    4 the comment could not be published, whatever is in it.
    """
    try:
        # No file at all is what a run leaves that ended before the engine began, e.g. with a wrong passphrase.
        preview = parse([]) if stack and not log.exists() else read(log)
        name = stack or preview.stack
        if name is None:
            raise LogError(f"{log} does not say which stack it is about; give --stack.")
    except LogError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(ExitCode.UNREADABLE) from None
    found = report(preview, name)
    body = comment(found, limit)
    code = exit_code(found, refuse_data_loss=refuse_data_loss)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2, ensure_ascii=False))
    elif not publish:
        typer.echo(body, nl=False)
    if publish:
        # First of all: whoever reads the merge request would take an older comment for this one.
        code = _publish(body, marker(name)) or code
    raise typer.Exit(code)


def _publish(body: str, own: str) -> ExitCode:
    """Write the note and say on stderr where it is, or why it is not there."""
    # Not at the top: whoever only wants the text needs nothing of GitLab.
    from operations.gitlab import GitLabError, publish

    try:
        url = publish(body, own)
    except GitLabError as error:
        typer.echo(f"The comment was not published: {error}", err=True)
        return ExitCode.NOT_PUBLISHED
    typer.echo(f"Published: {url}", err=True)
    return ExitCode.FINE
