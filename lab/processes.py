"""Running commands, and remembering processes so that a recycled pid is never mistaken for one of ours."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError


def run(
    command: Sequence[str | Path],
    *,
    check: bool = True,
    input_text: str | None = None,
    env: Mapping[str, str] | None = None,
    timeout_seconds: float | None = 300,
) -> subprocess.CompletedProcess[str]:
    """Run ``command`` and return what it printed.

    Raises :class:`LabError` with the end of its error output when it fails and ``check`` is true (default),
    when the program is missing, and when it takes longer than ``timeout_seconds`` (default 300; None waits).
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            input=input_text,
            stdin=subprocess.DEVNULL if input_text is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            env=dict(env) if env is not None else None,
            timeout=timeout_seconds,
            check=False,
        )
    except FileNotFoundError as error:
        raise LabError(
            f"The program {words[0]} is not on this machine. Run `school lab up`, which installs it."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"`{' '.join(words[:6])}` did not end within {timeout_seconds:.0f} s.") from error
    if check and done.returncode:
        tail = (done.stderr.strip() or done.stdout.strip())[-800:]
        raise LabError(f"`{' '.join(words[:6])}` ended with code {done.returncode}: {tail or 'no message'}")
    return done


def in_namespace(namespace: Path, command: Sequence[str | Path]) -> list[str]:
    """``command`` as it has to be called to run in the network namespace at ``namespace``."""
    return ["nsenter", f"--net={namespace}", "--", *(str(word) for word in command)]


def start_time(pid: int) -> int | None:
    """When ``pid`` was started, in clock ticks since boot; None when there is no such process or only its zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


@dataclass(frozen=True, kw_only=True, slots=True)
class Process:
    """A process that was started by the lab, told apart from later ones with the same pid by its start time."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """True while this very process runs."""
        return start_time(self.pid) == self.started

    def signal(self, number: signal.Signals) -> None:
        """Send a signal if the process still runs."""
        if self.alive:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return  # ended between the look and the signal

    def stop(self, grace_seconds: float = 5.0) -> None:
        """Ask it to end, and end it after ``grace_seconds``. Returns when it is gone."""
        self.signal(signal.SIGTERM)
        if not self.wait(grace_seconds):
            self.signal(signal.SIGKILL)
            self.wait(5.0)

    def wait(self, seconds: float) -> bool:
        """Wait until it has ended; False when it still runs after ``seconds``."""
        deadline = time.monotonic() + seconds
        while self.alive:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True


def remember(path: Path, pid: int) -> Process | None:
    """Write the pid file ``path`` for ``pid``; None when the process has ended already."""
    started = start_time(pid)
    if started is None:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{pid} {started}\n")
    return Process(pid=pid, started=started)


def recall(path: Path) -> Process | None:
    """The process of a pid file, if it still runs."""
    try:
        words = path.read_text().split()
    except FileNotFoundError:
        return None
    if len(words) != 2 or not all(word.isdigit() for word in words):
        return None  # cut off by a power failure: whatever it named did not survive it either
    process = Process(pid=int(words[0]), started=int(words[1]))
    return process if process.alive else None
