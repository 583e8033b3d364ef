"""Starts a stand-in in no time: as a fork of one process that has loaded what all of them need.

The engine starts a dozen plugins in every ``pulumi up``, and each would spend most of its life with importing the same
packages. So a plugin's executable runs this file, which asks the *warm process* of its engine (:mod:`lab.engine.warm`)
for a fork that is the plugin: with the standard streams, the directory, the environment and the command line that the
executable was started with. This process passes signals on, and ends with the fork's status when the fork ends.

The first executable starts the warm process. They meet at an abstract socket, which needs no file and is gone with the
process; its name holds the engine's pid, so every engine has its own. Whoever may speak there is checked by user id.
"""

# Started a dozen times in every `pulumi up`, without site-packages: import only what is really needed.
from __future__ import annotations

import marshal
import os
import signal
import socket
import struct
import sys
import time
import zlib
from collections.abc import Mapping, Sequence

warm_process = ""
"""Name of the socket of the warm process that this process is a fork of; empty: it is none."""

START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from lab.engine import warm; warm.main()"
START_SECONDS = 10.0
"""How long to try, when several plugins start at once and none is listening yet."""
BACKLOG = 64
LENGTH = struct.Struct("!I")
"""Length of a request, in front of it."""
_CREDENTIALS = struct.Struct("3i")
STANDARD_STREAMS = (0, 1, 2)
GONE = 1
"""Exit status when the fork's own is not known."""


class NoWarmProcess(Exception):
    """There is no warm process and none can be started; the message is one sentence."""


def socket_name(root: str, engine: int) -> str:
    """Where the warm process of an engine (its pid) listens, for the stand-ins of the tree ``root``."""
    return f"\0school-lab-{engine}-{zlib.crc32(root.encode()):08x}"


def is_own(connection: socket.socket) -> bool:
    """Whether the process at the other end belongs to the same user."""
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(packed)[1]) == os.geteuid()


def connect(name: str) -> socket.socket:
    """A connection to the warm process. Raises :class:`OSError` if there is none, :class:`NoWarmProcess` if it is not ours."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(name)
    except OSError:
        connection.close()
        raise
    if not is_own(connection):
        connection.close()
        raise NoWarmProcess(f"the socket {name[1:]} belongs to another user; end that user's process")
    return connection


def _start(root: str, engine: int, name: str) -> None:
    """Start the warm process of an engine. Raises :class:`OSError` if another process is just doing the same."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(name)
        listener.listen(BACKLOG)
        listener.set_inheritable(True)
        # It listens before it has loaded anything: whoever comes meanwhile waits in the queue.
        words = [sys.executable, "-P", "-c", START, root, str(listener.fileno()), str(engine), name[1:]]
        null = [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_RDWR, 0) for stream in STANDARD_STREAMS[:2]]
        # A session of its own: the engine ends its plugins by their process group.
        os.posix_spawn(sys.executable, words, os.environ, file_actions=null, setsid=True)


def connect_or_start(root: str, engine: int) -> socket.socket:
    """A connection to the warm process of an engine, which is started if need be. Raises :class:`NoWarmProcess`."""
    name = socket_name(root, engine)
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return connect(name)
        except OSError as error:
            if time.monotonic() > deadline:
                raise NoWarmProcess(f"the socket {name[1:]} cannot be reached: {error.strerror}") from error
        try:
            _start(root, engine, name)
        except OSError:
            # Another plugin of the engine was faster, and may not listen yet.
            time.sleep(0.005)


def request(
    connection: socket.socket,
    module: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    directory: str,
    streams: Sequence[int] = STANDARD_STREAMS,
) -> None:
    """Ask for a fork that runs ``module``'s ``main``. Raises :class:`OSError` if the warm process is gone.

    Afterwards each byte sent is the number of a signal for the fork; closing the connection kills it; what comes back
    is its status (see :func:`status_of`).
    """
    message = marshal.dumps((module, list(arguments), dict(environment), directory))
    socket.send_fds(connection, [LENGTH.pack(len(message))], list(streams))
    connection.sendall(message)


def status_of(connection: socket.socket) -> int | None:
    """Waits for the fork's end; its exit status, or minus the signal that ended it. ``None``: the warm process is gone."""
    try:
        answer = connection.recv(16)
    except ConnectionResetError:
        return None
    return int(answer) if answer else None


def main() -> int:
    """Be the plugin that the command line names: the tree's root, the module, and the plugin's own arguments."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    root, module, *arguments = sys.argv[1:]
    try:
        connection = connect_or_start(root, os.getppid())
        request(connection, module, arguments, os.environ, os.getcwd())
    except (OSError, NoWarmProcess) as error:
        print(f"{module} cannot be started: {error}", file=sys.stderr)
        return GONE

    def pass_on(number: int, _: object) -> None:
        try:
            connection.send(bytes([number]))
        except OSError:
            return  # It has just ended; the status below says how.

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    status = status_of(connection)
    if status is None:
        print(f"{module} has ended: the process it was a fork of was killed", file=sys.stderr)
        return GONE
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
