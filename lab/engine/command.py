"""Stand-in for the ``command`` provider: ``remote.Command`` and ``local.Command``.

As the real one does: a preview runs nothing; any changed input but ``triggers`` runs ``update``, or else ``create``
once more; ``triggers`` replace; a create that fails leaves nothing behind in the state; there is no limit on a
command's time.
"""

from __future__ import annotations

import abc
import os
import secrets
import signal
import subprocess
import threading
from typing import Final

from lab.engine.command_output import Output, failure_text
from lab.engine.provider import (
    UNKNOWN,
    Call,
    InputError,
    Path,
    Provider,
    ProviderError,
    Resource,
    Values,
    serve,
)

SDK_MODULES: Final = ("pulumi_command.local", "pulumi_command.remote")
"""Where the properties of the types are described."""
PREVIOUS_OUTPUTS: Final = {"PULUMI_COMMAND_STDOUT": "stdout", "PULUMI_COMMAND_STDERR": "stderr"}
LOGGED_STREAMS: Final = {
    None: ("stdout", "stderr"),
    "stdoutAndStderr": ("stdout", "stderr"),
    "stdout": ("stdout",),
    "stderr": ("stderr",),
    "none": (),
}
CONNECTION_DEFAULTS: Final = {"user": "root", "port": 22, "dialErrorLimit": 10, "perDialTimeout": 15}
POLL_SECONDS: Final = 0.2


class _Command(Resource):
    """What a local and a remote command have in common."""

    replace_on = ("triggers",)
    computed_outputs = ("stdout", "stderr")

    def check(self, call: Call, inputs: Values, old_inputs: Values | None) -> Values:
        logging = inputs.get("logging")
        if logging is not UNKNOWN and logging not in LOGGED_STREAMS:
            known = ", ".join(name for name in LOGGED_STREAMS if name)
            raise InputError("logging", f"expected one of {known}, got {logging!r}")
        return inputs

    def planned(self, call: Call, inputs: Values, old_state: Values | None) -> Values:
        return {**inputs, "stdout": UNKNOWN, "stderr": UNKNOWN}

    def extra_secret_outputs(self, inputs: Values, secrets: frozenset[Path]) -> tuple[str, ...]:
        return ("stdout", "stderr") if any(path[0] != "connection" for path in secrets) else ()

    def create(self, call: Call, inputs: Values) -> tuple[str, Values]:
        outputs = {**inputs, "stdout": "", "stderr": ""}
        if inputs.get("create") is not None:
            outputs |= self._texts(self.run(call, inputs["create"], inputs, {}))
        return f"{call.name}{secrets.token_hex(4)}", outputs

    def update(self, call: Call, resource_id: str, old_inputs: Values, old_state: Values, inputs: Values) -> Values:
        outputs = {**inputs, "stdout": old_state.get("stdout", ""), "stderr": old_state.get("stderr", "")}
        command = inputs.get("update") if inputs.get("update") is not None else inputs.get("create")
        if command is not None:
            outputs |= self._texts(self.run(call, command, inputs, old_state))
        return outputs

    def delete(self, call: Call, resource_id: str, inputs: Values, state: Values) -> None:
        if state.get("delete") is not None:
            self.run(call, state["delete"], state, state)

    @abc.abstractmethod
    def run(self, call: Call, command: str, inputs: Values, state: Values) -> Output:
        """Run one command. Raises :class:`ProviderError`."""

    @staticmethod
    def _texts(output: Output) -> Values:
        return {
            "stdout": output.stdout.decode(errors="replace").removesuffix("\n"),
            "stderr": output.stderr.decode(errors="replace").removesuffix("\n"),
        }

    @staticmethod
    def _previous(inputs: Values, state: Values) -> dict[str, str]:
        if inputs.get("addPreviousOutputInEnv", True) is False:
            return {}
        return {variable: state[name] for variable, name in PREVIOUS_OUTPUTS.items() if state.get(name)}

    @staticmethod
    def _show(call: Call, inputs: Values, name: str, line: str) -> None:
        if name in LOGGED_STREAMS[inputs.get("logging")]:
            call.status(line.removesuffix("\r"))


class RemoteCommand(_Command):
    """``command:remote:Command``."""

    inputs_class = "pulumi_command.remote:CommandArgs"
    secret_outputs = ("connection",)

    def check(self, call: Call, inputs: Values, old_inputs: Values | None) -> Values:
        inputs = super().check(call, inputs, old_inputs)
        connection = inputs.get("connection")
        if connection is None:
            raise InputError("connection", "missing required property 'connection'")
        if connection is UNKNOWN:
            return inputs
        if connection.get("host") is None:
            raise InputError("connection.host", "missing required property 'host'")
        if connection.get("proxy") is not None:
            raise InputError("connection.proxy", "the lab's command provider does not go through a proxy")
        return {**inputs, "connection": {**CONNECTION_DEFAULTS, **connection}}

    def run(self, call: Call, command: str, inputs: Values, state: Values) -> Output:
        # Only here: most runs change nothing, and paramiko takes longer to load than they take to be checked.
        from lab.engine.ssh import Connection, Session, SshError

        connection = inputs["connection"]

        def refused(variable: str) -> None:
            call.warn(_refusal(variable))

        session = Session(
            Connection(
                host=connection["host"],
                port=int(connection["port"]),
                user=connection["user"],
                password=connection.get("password"),
                private_key=connection.get("privateKey"),
                private_key_password=connection.get("privateKeyPassword"),
                agent_socket=connection.get("agentSocketPath"),
                host_key=connection.get("hostKey"),
                dial_error_limit=int(connection["dialErrorLimit"]),
                per_dial_timeout_seconds=int(connection["perDialTimeout"]),
            ),
            call.cancelled,
            call.status,
        )
        try:
            return session.run(
                command,
                stdin=inputs.get("stdin"),
                environment=inputs.get("environment"),
                optional_environment=self._previous(inputs, state),
                on_line=lambda name, line: self._show(call, inputs, name, line),
                on_refused=refused,
            )
        except SshError as error:
            raise ProviderError(str(error)) from error


def _refusal(variable: str) -> str:
    return (
        f"Unable to set '{variable}'. This only works if the SSH server accepts the variable (AcceptEnv). "
        "Set addPreviousOutputInEnv to false, or write 'VAR=value command' for a shell."
    )


class LocalCommand(_Command):
    """``command:local:Command``, without ``assetPaths`` and ``archivePaths``."""

    inputs_class = "pulumi_command.local:CommandArgs"

    def check(self, call: Call, inputs: Values, old_inputs: Values | None) -> Values:
        for name in ("assetPaths", "archivePaths"):
            if inputs.get(name):
                raise InputError(name, "the lab's command provider does not collect files")
        return super().check(call, inputs, old_inputs)

    def run(self, call: Call, command: str, inputs: Values, state: Values) -> Output:
        interpreter = inputs.get("interpreter") or ["/bin/sh", "-c"]
        environment = {**os.environ, **(inputs.get("environment") or {}), **self._previous(inputs, state)}
        try:
            process = subprocess.Popen(
                [*interpreter, command],
                cwd=inputs.get("dir"),
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise ProviderError(failure_text(f"{error.filename}: {error.strerror}", command, b"")) from error
        output = Output()
        lock = threading.Lock()

        def collect(name: str, own: bytearray, stream: object) -> None:
            for line in stream:  # type: ignore[attr-defined]
                with lock:
                    own.extend(line)
                    output.both.extend(line)
                self._show(call, inputs, name, line.decode(errors="replace").removesuffix("\n"))

        def feed() -> None:
            assert process.stdin is not None
            try:
                with process.stdin as stream:
                    stream.write((inputs.get("stdin") or "").encode())
            except BrokenPipeError:
                # The command has ended without reading all of its input; its exit status tells the rest.
                return

        threads = [
            threading.Thread(target=collect, args=("stdout", output.stdout, process.stdout), daemon=True),
            threading.Thread(target=collect, args=("stderr", output.stderr, process.stderr), daemon=True),
            threading.Thread(target=feed, daemon=True),
        ]
        for thread in threads:
            thread.start()
        while True:
            try:
                status = process.wait(POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                if call.cancelled.is_set():
                    os.killpg(process.pid, signal.SIGKILL)
        for thread in threads[:2]:
            thread.join()
        if status < 0:
            raise ProviderError(failure_text(f"signal: {signal.Signals(-status).name}", command, output.both))
        if status:
            raise ProviderError(failure_text(f"exit status {status}", command, output.both))
        return output


def provider() -> Provider:
    """The provider with its types."""
    return Provider(
        "command",
        {"command:remote:Command": RemoteCommand(), "command:local:Command": LocalCommand()},
        package="pulumi_command",
    )


def main() -> None:
    """Serve the provider until the engine ends it."""
    serve(provider())


if __name__ == "__main__":
    main()
