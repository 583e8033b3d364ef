"""``school lab``: a classroom on one machine."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from lab import lifecycle, machines, network, places, services
from lab.errors import LabError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="A classroom on one machine.")

_ANY = {"allow_extra_args": True, "ignore_unknown_options": True}
MachineName = Annotated[str, typer.Argument(metavar="MACHINE", help="Its name, for example gl3, or its id.")]


@contextmanager
def _sentences() -> Iterator[None]:
    """Turn a failure into its sentence and exit code 1, and Ctrl-C into 130."""
    try:
        yield
    except LabError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("Interrupted.", err=True)
        raise typer.Exit(lifecycle.INTERRUPTED) from None


@app.command()
def up(
    deploy: Annotated[bool, typer.Option(help="Run `pulumi up` too; --no-deploy leaves the stack empty.")] = True,
) -> None:
    """Build what is missing, start the lab, and deploy the stack into it. Can be repeated: what runs is kept.

    Ends with 0 when the database answers, 1 with a sentence when something failed, 130 after Ctrl-C.
    """
    with _sentences():
        raise typer.Exit(lifecycle.up(Console(), deploy))


@app.command()
def down() -> None:
    """End the lab and remove everything of it but the cache of built artefacts. Works whatever state the lab is in.

    Ends with 0, or with 1 and a sentence when something cannot be removed.
    """
    with _sentences():
        removed = lifecycle.down()
    for what in removed:
        typer.echo(f"removed: {what}")
    typer.echo(f"The cache stays: {places.CACHE}" if removed else "There is no lab; nothing to remove.")


@app.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON object.")] = False,
) -> None:
    """Show the network, the services and the machines. Ends with 0 when all services answer, otherwise with 1."""
    with _sentences():
        lifecycle.require_root()
        watched = [services.supervisor(), *services.all_services()]
        rows: list[dict[str, object]] = []
        for service in watched:
            process = service.process()
            rows.append(
                {
                    "name": service.name,
                    "purpose": service.purpose,
                    "pid": process.pid if process else None,
                    "since": services.since(process) if process else None,
                    "answers": service.answers(),
                }
            )
        up_now = network.exists()
        there = machines.all_machines()
    if as_json:
        shown = {"network": up_now, "services": rows, "machines": [machine.as_dict() for machine in there]}
        typer.echo(json.dumps(shown, indent=2))
    else:
        _show(up_now, rows, there)
    raise typer.Exit(0 if up_now and all(row["answers"] for row in rows) else 1)


def _show(up_now: bool, rows: Sequence[dict[str, object]], there: Sequence[machines.Machine]) -> None:
    console = Console()
    console.print(f"Network {places.NAMESPACE}: {'there' if up_now else 'not there; `make lab` makes it'}")
    table = Table("service", "state", "pid", "since", "purpose")
    for row in rows:
        begun = row["since"]
        since = time.strftime("%d %b %H:%M:%S", time.localtime(begun)) if isinstance(begun, float) else ""
        state = "answers" if row["answers"] else "does not answer" if row["pid"] else "off"
        table.add_row(str(row["name"]), state, str(row["pid"] or ""), since, str(row["purpose"]))
    console.print(table)
    table = Table("machine", "id", "address", "state")
    for machine in there:
        table.add_row(machine.name, str(machine.vmid), machine.address, "on" if machine.running else "off")
    console.print(table if there else "No machines.")


@app.command(context_settings=_ANY)
def run(context: typer.Context) -> None:
    """Run a command in the lab's network, with the stack's environment: `school lab run -- pulumi preview`.

    Terminal, standard input and the working directory are the caller's; ends with the command's exit code.
    """
    with _sentences():
        lifecycle.require_root()
        if not context.args:
            raise LabError("Which command? For example: school lab run -- pulumi preview")
        _become(network.enter(context.args), lifecycle.environment())


@app.command()
def shell(
    machine: Annotated[
        str | None, typer.Argument(help="A machine, or pve1 for the Proxmox host; without: in the network itself.")
    ] = None,
) -> None:
    """Open a shell in the lab's network, or as root on one of its machines. Ends with the shell's exit code."""
    with _sentences():
        lifecycle.require_root()
        environment = lifecycle.environment()
        if machine is not None:
            _become(machines.shell_on(machine), environment)
        prompt = {"PS1": r"(school lab) \w \$ "}
        _become(network.enter(["bash", "--norc"]), {**environment, **prompt})


@app.command()
def kill(machine: MachineName) -> None:
    """Switch a machine off as a power cut does: everything on it ends at once, nothing is told.

    Ends with 1 when there is no such machine or it is off already.
    """
    with _sentences():
        lifecycle.require_root()
        machines.cut_power(machines.find(machine))
    typer.echo(f"{machine} is off. `school lab start {machine}` switches it on again.")


@app.command()
def start(machine: MachineName) -> None:
    """Switch a machine on, through the Proxmox host. Ends with 1 when it does not start or is on already."""
    with _sentences():
        lifecycle.require_root()
        machines.switch_on(machines.find(machine))
    typer.echo(f"{machine} is on.")


def _become(command: Sequence[str], environment: dict[str, str]) -> NoReturn:
    """Replace this process: signals, terminal and exit code need no passing on."""
    try:
        os.execvpe(command[0], list(command), environment)
    except OSError as error:
        raise LabError(f"{command[0]} cannot be run: {error.strerror}.") from error
