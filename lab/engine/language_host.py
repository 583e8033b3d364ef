"""The Python language host of the engine, on the gRPC stubs that PyPI's ``pulumi`` carries.

It serves preview, up, refresh, destroy, ``--policy-pack`` and ``policy analyze``. The runtime option ``virtualenv``
names the project's virtual environment, relative to ``Pulumi.yaml`` (or ``PulumiPolicy.yaml``); without it ``python``
from PATH runs the program. Dependencies are not installed here: ``make`` has done that.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, Final, Protocol

import grpc
from google.protobuf import empty_pb2
from pulumi.runtime.proto import language_pb2, language_pb2_grpc, plugin_pb2

from lab.engine import forked
from lab.engine.provider import MAX_MESSAGE_BYTES, watch_parent

EXECUTOR: Final = Path(__file__).with_name("executor.py")
EXECUTOR_MODULE: Final = "lab.engine.executor"
USER_HAS_BEEN_TOLD: Final = 32
STOP_SECONDS: Final = 5.0
"""How long an interrupted program has to end before it is killed."""


class HostError(Exception):
    """The project cannot be run; the message is one sentence for the user."""


def python_command(info: language_pb2.ProgramInfo) -> tuple[list[str], dict[str, str]]:
    """The interpreter for a program and the environment it runs in.

    Raises :class:`HostError` if the virtual environment that the project names does not exist.
    """
    environment = dict(os.environ)
    option = str(info.options.fields["virtualenv"].string_value) if "virtualenv" in info.options.fields else ""
    if not option:
        found = shutil.which("python3") or shutil.which("python")
        return [found or sys.executable], environment
    directory = Path(info.root_directory) / option
    python = directory / "bin" / "python"
    if not python.is_file():
        raise HostError(
            f"the runtime option virtualenv names {directory}, which is no virtual environment; "
            f"create it (python3 -m venv {directory}) and install the project's requirements"
        )
    environment.pop("PYTHONHOME", None)
    environment["VIRTUAL_ENV"] = str(directory)
    environment["PATH"] = os.pathsep.join([str(directory / "bin"), environment.get("PATH", "")])
    return [str(python)], environment


class Process(Protocol):
    """What the language host needs of a program that runs: the part of :class:`subprocess.Popen` that a fork has too."""

    def poll(self) -> int | None:
        """The exit status (minus the signal that ended it); ``None`` while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; returns the status. Raises :class:`subprocess.TimeoutExpired`."""

    def send_signal(self, sig: int) -> None:
        """Send a signal; a process that has ended gets none."""

    def kill(self) -> None:
        """End it at once."""


class ForkedProgram:
    """A program that runs in a fork of the warm process (see :mod:`lab.engine.forked`).

    Raises :class:`OSError` or :class:`lab.engine.forked.NoWarmProcess` if the warm process is gone.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], directory: str) -> None:
        self._connection = forked.connect(forked.warm_process)
        self._ended = threading.Event()
        self._status = -signal.SIGKILL
        with open(os.devnull, "rb") as nothing:
            streams = (nothing.fileno(), *forked.STANDARD_STREAMS[1:])
            forked.request(self._connection, EXECUTOR_MODULE, arguments, environment, directory, streams)
        threading.Thread(target=self._watch, name="program-watch", daemon=True).start()

    def _watch(self) -> None:
        status = forked.status_of(self._connection)
        if status is not None:  # otherwise the warm process has been killed, and its forks with it
            self._status = status
        self._ended.set()
        self._connection.close()

    def poll(self) -> int | None:
        return self._status if self._ended.is_set() else None

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired(EXECUTOR_MODULE, timeout or 0)
        return self._status

    def send_signal(self, sig: int) -> None:
        with contextlib.suppress(OSError):  # it has ended meanwhile
            self._connection.send(bytes([sig]))

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _end(process: Process) -> None:
    """Interrupt a program, and kill it if it takes longer than :data:`STOP_SECONDS`."""
    if process.poll() is not None:
        return
    with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


class LanguageHost(language_pb2_grpc.LanguageRuntimeServicer):
    """Answers the engine's calls about Python programs."""

    def __init__(self, engine: str = "") -> None:
        self._engine = engine
        self._cancelled = threading.Event()
        self._running: set[Process] = set()
        self._lock = threading.Lock()

    # About the host.

    def Handshake(self, request: Any, context: Any) -> language_pb2.LanguageHandshakeResponse:
        self._engine = request.engine_address or self._engine
        return language_pb2.LanguageHandshakeResponse()

    def GetPluginInfo(self, request: Any, context: Any) -> plugin_pb2.PluginInfo:
        return plugin_pb2.PluginInfo(version=importlib.metadata.version("pulumi"))

    def About(self, request: Any, context: Any) -> language_pb2.AboutResponse:
        python, environment = self._python(request.info, context)
        report = self._ask(python, environment, "import sys; print(sys.executable); print(sys.version.split()[0])")
        executable, version = report.split()
        return language_pb2.AboutResponse(executable=executable, version=version, metadata={"toolchain": "pip"})

    def RuntimeOptionsPrompts(self, request: Any, context: Any) -> language_pb2.RuntimeOptionsResponse:
        return language_pb2.RuntimeOptionsResponse()

    def Template(self, request: Any, context: Any) -> language_pb2.TemplateResponse:
        return language_pb2.TemplateResponse()

    # About a program.

    def GetRequiredPackages(self, request: Any, context: Any) -> language_pb2.GetRequiredPackagesResponse:
        # None: the engine would otherwise look for plugins to download before the program says which it needs.
        return language_pb2.GetRequiredPackagesResponse()

    def GetRequiredPlugins(self, request: Any, context: Any) -> language_pb2.GetRequiredPluginsResponse:
        return language_pb2.GetRequiredPluginsResponse()

    def InstallDependencies(self, request: Any, context: Any) -> Iterator[language_pb2.InstallDependenciesResponse]:
        yield language_pb2.InstallDependenciesResponse(stdout=b"The project's environment is used as it is.\n")

    def GetProgramDependencies(self, request: Any, context: Any) -> language_pb2.GetProgramDependenciesResponse:
        python, environment = self._python(request.info, context)
        script = (
            "import importlib.metadata as m, json\n"
            "print(json.dumps(sorted({(d.metadata['Name'], d.version) for d in m.distributions()})))"
        )
        found = json.loads(self._ask(python, environment, script))
        dependencies = [language_pb2.DependencyInfo(name=name, version=version) for name, version in found]
        return language_pb2.GetProgramDependenciesResponse(dependencies=dependencies)

    # Running.

    def Run(self, request: Any, context: Any) -> language_pb2.RunResponse:
        python, environment = self._python(request.info, context)
        environment["PULUMI_CONFIG"] = json.dumps(dict(request.config))
        environment["PULUMI_CONFIG_SECRET_KEYS"] = json.dumps(list(request.configSecretKeys))
        arguments = []
        for option, value in (
            ("monitor", request.monitor_address),
            ("engine", self._engine),
            ("project", request.project),
            ("stack", request.stack),
            ("organization", request.organization),
            ("root-directory", request.info.root_directory),
            ("pwd", request.pwd),
            ("dry-run", "true" if request.dryRun else "false"),
            ("parallel", str(request.parallel)),
        ):
            if value:
                arguments.append(f"--{option}={value}")
        arguments += ["--", request.info.entry_point, *request.args]
        process = self._start(python, arguments, environment, request.pwd or os.getcwd())
        context.add_callback(lambda: threading.Thread(target=_end, args=(process,), daemon=True).start())
        status = self._wait(process)
        if status == 0:
            return language_pb2.RunResponse()
        if status == USER_HAS_BEEN_TOLD:
            return language_pb2.RunResponse(bail=True)
        if status < 0:
            return language_pb2.RunResponse(error=f"program ended by signal {signal.Signals(-status).name}")
        return language_pb2.RunResponse(error=f"program exited with non-zero exit code: {status}")

    def RunPlugin(self, request: Any, context: Any) -> Iterator[language_pb2.RunPluginResponse]:
        python, environment = self._python(request.info, context)
        environment |= dict(entry.split("=", 1) for entry in request.env if "=" in entry)
        if request.kind == "analyzer":
            command = [*python, "-u", "-m", "pulumi.policy", *request.args, request.info.program_directory]
            directory = request.info.program_directory
        else:
            command = [*python, "-u", request.info.program_directory, *request.args]
            directory = request.pwd
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        context.add_callback(lambda: threading.Thread(target=_end, args=(process,), daemon=True).start())
        with self._tracked(process):
            assert process.stdout is not None
            for line in process.stdout:
                yield language_pb2.RunPluginResponse(stdout=line)
            yield language_pb2.RunPluginResponse(exitcode=process.wait())

    def Cancel(self, request: Any, context: Any) -> empty_pb2.Empty:
        self.stop()
        return empty_pb2.Empty()

    def stop(self) -> None:
        """End every program that runs, and start no other. Waits until they have ended."""
        self._cancelled.set()
        with self._lock:
            running = list(self._running)
        enders = [threading.Thread(target=_end, args=(process,), daemon=True) for process in running]
        for ender in enders:
            ender.start()
        for ender in enders:
            ender.join()

    # Inner workings.

    @staticmethod
    def _start(
        python: Sequence[str], arguments: Sequence[str], environment: Mapping[str, str], directory: str
    ) -> Process:
        """Start a program. The engine reads this process's output; the program writes to the same place."""
        own = Path(python[0]).parent.samefile(Path(sys.executable).parent)
        if own and forked.warm_process:
            return ForkedProgram(arguments, environment, directory)
        # -P keeps this package's directory off the program's module path; -u shows its output as it is written.
        command = [*python, "-u", "-P", str(EXECUTOR), *arguments]
        return subprocess.Popen(command, env=environment, cwd=directory, stdin=subprocess.DEVNULL)

    @contextlib.contextmanager
    def _tracked(self, process: Process) -> Iterator[None]:
        with self._lock:
            self._running.add(process)
        if self._cancelled.is_set():
            _end(process)
        try:
            yield
        finally:
            with self._lock:
                self._running.discard(process)

    def _wait(self, process: Process) -> int:
        with self._tracked(process):
            return process.wait()

    @staticmethod
    def _python(info: Any, context: Any) -> tuple[list[str], dict[str, str]]:
        try:
            return python_command(info)
        except HostError as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        raise AssertionError("context.abort returned")

    @staticmethod
    def _ask(python: Sequence[str], environment: Mapping[str, str], script: str) -> str:
        done = subprocess.run(
            [*python, "-c", script], env=environment, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=True
        )
        return done.stdout.decode()


def main() -> None:
    """Serve until the engine ends this process or is gone itself; prints the port on stdout."""
    host = LanguageHost(next((word for word in sys.argv[1:] if not word.startswith("-")), ""))
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=32),
        options=[("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.so_reuseport", 0)],
    )
    language_pb2_grpc.add_LanguageRuntimeServicer_to_server(host, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()

    def end() -> None:
        host.stop()
        os._exit(0)

    # The engine ends its plugins with SIGINT.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: threading.Thread(target=end).start())
    watch_parent(end)
    print(port, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
