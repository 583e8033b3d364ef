"""The command line of ``school``."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from lab.cli import app as lab
from lab.errors import LabError
from operations import bench as measurements
from operations.preview_comment import preview_comment
from operations.psql import open_psql

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(lab, name="lab")
app.command("preview-comment")(preview_comment)


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


@app.command()
def bench(
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON object.")] = False,
    sizes: Annotated[
        list[int] | None, typer.Option("--machines", help="Preview with this many; may be repeated.", min=5)
    ] = None,
) -> None:
    """Measure previews, a repeated `up`, the last `make lab` and the lab's memory; writes reports/bench.json.

    Takes some minutes, and judges nothing: ends with 1 only when there are no tools to measure with.
    """
    try:
        report = measurements.measure(sizes or measurements.SIZES, measurements.say_on_stderr)
    except LabError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("Interrupted.", err=True)
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    else:
        typer.echo(report.heading())
        Console().print(report.table())
