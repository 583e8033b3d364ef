"""What a person sees of the builds: live bars on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

PLAIN_EVERY_SECONDS = 60.0
"""How often a build that goes on is mentioned where there is no terminal."""


def duration(seconds: float) -> str:
    """A duration as people say it: ``8 s``, ``2 min 5 s``."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"


class ConsoleReport:
    """A report on a terminal or, where there is none, in plain lines. Use it as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._live = self._console.is_terminal
        self._progress = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=30),
            TimeElapsedColumn(),
            TextColumn("usually {task.fields[usual]}"),
            console=self._console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, float] = {}
        self._usual: dict[str, float] = {}
        self._mentioned = time.monotonic()

    def __enter__(self) -> ConsoleReport:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._progress.stop()

    def started(self, name: str, usual_seconds: float) -> None:
        """Show the build of ``name``."""
        self._began[name] = time.monotonic()
        self._usual[name] = usual_seconds
        if self._live:
            self._progress.start()
            self._tasks[name] = self._progress.add_task(
                f"building {name}", total=max(usual_seconds, 1), usual=duration(usual_seconds)
            )
        else:
            self._console.print(f"building {name} (usually {duration(usual_seconds)})", highlight=False)

    def finished(self, name: str, seconds: float) -> None:
        """Replace the bar of ``name`` by a line that stays."""
        if self._live:
            self._progress.remove_task(self._tasks.pop(name))
        del self._began[name]
        self._console.print(f"  built {name} in {duration(seconds)}", highlight=False)
        if self._live and not self._tasks:
            self._progress.stop()

    def tick(self) -> None:
        """Move the bars; a build that takes longer than usual stays just before its end."""
        now = time.monotonic()
        if self._live:
            for name, task in self._tasks.items():
                self._progress.update(task, completed=min(now - self._began[name], self._usual[name] * 0.99))
        elif now - self._mentioned > PLAIN_EVERY_SECONDS:
            self._mentioned = now
            for name, began in self._began.items():
                text = f"  still building {name}: {duration(now - began)} of usually {duration(self._usual[name])}"
                self._console.print(text, highlight=False)
