"""``python -m lab.supervisor``: starts the lab's services and starts again those that end.

It knows nothing but the pid files, so it takes over services that an earlier supervisor started, and ending it (by
SIGTERM or SIGKILL) leaves them alone. ``school lab up`` and ``school lab down`` end services themselves.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field

from lab.errors import LabError
from lab.services import Service, all_services, leftovers

LOOK_SECONDS = 0.1
"""How often it looks for services that have ended."""
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 15.0
"""The pause before a restart doubles up to this when a service ends again soon."""
SETTLED_SECONDS = 20.0
"""A service that ran for so long is restarted without delay."""


@dataclass(slots=True)
class Watch:
    """What the supervisor remembers of one service."""

    service: Service
    child: subprocess.Popen[bytes] | None = None
    pause: float = 0.0
    due: float = 0.0
    """When it may be started next, on the monotonic clock."""
    begun: float = field(default_factory=time.monotonic)
    ran: bool = False

    def look(self, now: float) -> None:
        """Start the service if it does not run and its pause is over."""
        if self.child is not None and self.child.poll() is not None:
            say(f"{self.service.name} ended with code {self.child.returncode}")
            self.child = None
        if self.service.process() is not None:
            self.ran = True
            return
        if self.ran:
            self.ran = False
            soon = now - self.begun < SETTLED_SECONDS
            self.pause = min(max(self.pause * 2, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS) if soon else 0.0
            self.due = now + self.pause
        if now >= self.due:
            self.start(now)

    def start(self, now: float) -> None:
        """Start the service, after ending what is left of its former process."""
        self.begun = now
        for rest in leftovers(self.service):
            say(f"{self.service.name}: ending process {rest.pid}, left over")
            rest.stop(grace_seconds=1.0)
        try:
            self.child = self.service.spawn()
        except OSError as error:
            say(f"{self.service.name} cannot be started: {error.strerror}: {error.filename}")
            self.due = now + LONGEST_PAUSE_SECONDS
            return
        self.ran = True
        say(f"{self.service.name} started, pid {self.child.pid}")


def say(text: str) -> None:
    """One line of the supervisor's log."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)


def main() -> int:
    """Watch until told to end; 1 when the services cannot even be listed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        watches = [Watch(service) for service in all_services()]
    except LabError as error:
        say(str(error))
        return 1
    while True:
        for watch in watches:
            watch.look(time.monotonic())
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
