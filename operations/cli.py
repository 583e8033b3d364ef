"""The command line of ``school``."""

from __future__ import annotations

from typing import Annotated

import typer

from lab.cli import app as lab
from operations.psql import open_psql

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(lab, name="lab")


@app.callback()
def school() -> None:
    """A school's highly available PostgreSQL: what to do with it once `pulumi up` has built it."""


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def psql(
    context: typer.Context,
    stack: Annotated[str | None, typer.Option(help="Pulumi stack; default: the selected one.")] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Connect to a standby.")] = False,
) -> None:
    """Open psql on the application's database. Further arguments go to psql: `school psql -- -c 'select 1'`.

    The password is read from the stack and handed over in a private file. Ends with psql's exit code.
    """
    raise typer.Exit(open_psql(stack, read_only, context.args))
