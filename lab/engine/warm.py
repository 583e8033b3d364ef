"""The warm process of an engine: it has loaded what the stand-ins need, and each of them is a fork of it.

:mod:`lab.engine.forked` starts it and says how to ask it for a fork. It ends when the engine ends. Nothing that matters
is left to it: when it is killed, its forks notice (:func:`lab.engine.provider.watch_parent`) and end, and a fork whose
connection closes is killed. It has one thread and never calls grpc, so that forking is safe.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import importlib
import io
import marshal
import os
import selectors
import signal
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NoReturn

from lab.engine import forked
from lab.engine.launchers import MODULES
from lab.engine.provider import watch_parent

PROGRAM: Final = "lab.engine.executor"
"""The fork that runs a Pulumi program, asked for by the language host."""
REQUEST_SECONDS: Final = 30.0
"""How long a request may take to arrive."""
IDLE_SECONDS: Final = 0.05
"""How long a program must have asked for nothing before it is used to load more."""


@dataclass(frozen=True)
class _Request:
    module: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    directory: str
    streams: Sequence[int]
    """File descriptors that become the fork's standard streams."""


@dataclass(frozen=True)
class _Fork:
    module: str
    pid: int
    handle: int
    """File descriptor of the process; readable when it has ended."""
    connection: socket.socket
    """Leads to the process that asked for it."""


class _Child(BaseException):
    """Raised in a new fork, to leave the warm process's loop for good."""

    def __init__(self, request: _Request) -> None:
        super().__init__()
        self.request = request


class WarmProcess:
    """Serves requests for forks until the engine is gone.

    :param listener: the socket that requests come to.
    :param engine: file descriptor of the engine's process.
    """

    def __init__(self, listener: socket.socket, engine: int) -> None:
        self._listener = listener
        self._engine = engine
        self._events = selectors.DefaultSelector()
        self._forks: set[_Fork] = set()
        self._likely = collections.deque(MODULES.values())
        """Modules that are worth having loaded."""

    def serve(self) -> None:
        """Serve until the engine is gone. In every fork it ends at once, by :class:`_Child`."""
        self._events.register(self._listener, selectors.EVENT_READ)
        self._events.register(self._engine, selectors.EVENT_READ)
        pause = IDLE_SECONDS
        while True:
            happened = self._events.select(pause if self._likely and self._runs_a_program() else None)
            pause = IDLE_SECONDS if happened else 0
            if not happened:
                self._load_more()
            for key, _ in happened:
                if key.fileobj == self._engine:
                    return
                if key.fileobj is self._listener:
                    self._admit(self._listener.accept()[0])
                elif key.fileobj == key.data.handle:
                    self._bury(key.data)
                elif key.data in self._forks:
                    self._signal(key.data)

    def _runs_a_program(self) -> bool:
        return any(child.module == PROGRAM for child in self._forks)

    def _load_more(self) -> None:
        """Load what the program's resources will probably need, while the program still loads its own modules."""
        name = self._likely.popleft()
        # One that is missing is told to whoever asks for it.
        with contextlib.suppress(ImportError):
            self._likely.extendleft(sdk_modules(importlib.import_module(name)))

    def _admit(self, connection: socket.socket) -> None:
        """Fork for one request; one that is not complete in time, or of another user, is dropped."""
        connection.settimeout(REQUEST_SECONDS)
        request = _receive(connection) if forked.is_own(connection) else None
        if request is None:
            connection.close()
            return
        try:
            _load(request.module)
        except ImportError as error:
            with contextlib.suppress(OSError):  # nobody is left to read it
                os.write(request.streams[2], f"{request.module} cannot be loaded: {error}\n".encode())
            connection.close()
        else:
            self._fork(request, connection)
        for stream in request.streams:
            os.close(stream)

    def _fork(self, request: _Request, connection: socket.socket) -> None:
        gc.freeze()
        pid = os.fork()
        if pid == 0:
            self._forget()
            connection.close()
            raise _Child(request)
        child = _Fork(request.module, pid, os.pidfd_open(pid), connection)
        self._forks.add(child)
        self._events.register(child.handle, selectors.EVENT_READ, child)
        self._events.register(connection, selectors.EVENT_READ, child)

    def _forget(self) -> None:
        """In a fork: let go of what is the warm process's own."""
        self._events.close()
        self._listener.close()
        os.close(self._engine)
        for other in self._forks:
            other.connection.close()
            os.close(other.handle)

    def _signal(self, child: _Fork) -> None:
        """Pass on what the other end sends; kill the fork if the other end is gone."""
        try:
            numbers = child.connection.recv(16)
        except OSError:
            numbers = b""
        for number in numbers or [signal.SIGKILL]:
            signal.pidfd_send_signal(child.handle, number)
        if not numbers:
            self._events.unregister(child.connection)

    def _bury(self, child: _Fork) -> None:
        """Tell how a fork has ended."""
        status = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
        self._forks.remove(child)
        self._events.unregister(child.handle)
        os.close(child.handle)
        with contextlib.suppress(KeyError):  # the other end had gone before
            self._events.unregister(child.connection)
        with contextlib.suppress(OSError):  # nobody waits for it any more
            child.connection.send(str(status).encode())
        child.connection.close()


def _receive(connection: socket.socket) -> _Request | None:
    """What is asked for; ``None`` if the other end goes away or takes too long."""
    streams: list[int] = []
    try:
        header, streams, _, _ = socket.recv_fds(connection, forked.LENGTH.size, len(forked.STANDARD_STREAMS))
        (missing,) = forked.LENGTH.unpack(header)
        message = b""
        while missing > 0:
            part = connection.recv(missing)
            if not part:
                raise EOFError
            message, missing = message + part, missing - len(part)
    except (OSError, EOFError, struct.error):
        for stream in streams:
            os.close(stream)
        return None
    module, arguments, environment, directory = marshal.loads(message)
    return _Request(module, arguments, environment, directory, streams)


def sdk_modules(stand_in: ModuleType) -> Sequence[str]:
    """What a stand-in will need of the SDK once it has something to do."""
    return getattr(stand_in, "SDK_MODULES", ())


def _load(module: str) -> Any:
    """Import a stand-in, and what it will need of the SDK: the next fork of it has all that already."""
    found = importlib.import_module(module)
    for name in sdk_modules(found):
        importlib.import_module(name)
    return found


def _become(request: _Request, root: str, name: str) -> NoReturn:
    """Make this fork what was asked for, and run it."""
    for number, stream in enumerate(request.streams):
        os.dup2(stream, number)
        os.close(stream)
    # Whoever reads wants to see each line at once.
    raw = open(1, "wb", buffering=0, closefd=False)  # noqa: SIM115 (lives as long as the process)
    sys.stdout = io.TextIOWrapper(raw, encoding=sys.stdout.encoding, errors=sys.stdout.errors, write_through=True)
    os.chdir(request.directory)
    os.environ.clear()
    os.environ.update(request.environment)
    sys.argv = [request.module, *request.arguments]
    # The command line stays the warm process's; this is what tells the forks apart, in `ps -o comm` as well.
    Path("/proc/self/comm").write_text(request.module.rpartition(".")[2])
    forked.warm_process = name
    run = _load(request.module).main
    if request.module == PROGRAM:
        # The stand-ins see to it themselves.
        watch_parent(lambda: os._exit(1))
        # A program has its own modules, and may call them as it likes.
        sys.path.remove(root)
        for loaded in [module for module in sys.modules if module.partition(".")[0] == "lab"]:
            del sys.modules[loaded]
    gc.enable()
    sys.exit(run())


def main() -> None:
    """Serve the engine that the command line names: the socket's file descriptor, the engine's pid, the socket's name."""
    listener, pid, name = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), f"\0{sys.argv[3]}"
    listener.set_inheritable(False)
    try:
        engine = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    # What is loaded stays: looking through it for garbage again and again would take a tenth of all time.
    gc.disable()
    _load("lab.engine.language_host")
    # Until here a traceback was for the first plugin's reader; no longer, or the engine would wait for this process.
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 2)
    os.close(null)
    try:
        WarmProcess(listener, engine).serve()
    except _Child as child:
        request = child.request
    else:
        return
    _become(request, sys.path[0], name)
