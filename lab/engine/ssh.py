"""One command on a machine over SSH, the way the real ``command`` provider runs it.

Kept on purpose, because a program must be right with them: a failed dial is repeated with a growing pause up to a limit
(authentication and host key failures too), the time limit of a dial covers only the TCP connection (a host that accepts
and then sends nothing is waited for without end), and an SSH agent that is named but dead fails at once.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import paramiko

from lab.engine.command_output import Output, failure_text

FIRST_PAUSE_SECONDS: Final = 0.1
PAUSE_GROWTH: Final = 1.5
LONGEST_PAUSE_SECONDS: Final = 5.0
UNLIMITED: Final = -1
POLL_SECONDS: Final = 0.2
NEVER_SECONDS: Final = 10 * 365 * 24 * 3600
CHUNK_BYTES: Final = 32768
KEY_CLASSES: Final = (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey)
NO_EXIT_STATUS: Final = -1


class SshError(Exception):
    """The connection or the command failed; the message is one sentence (and the command's output)."""


@dataclass(frozen=True)
class Connection:
    """Where and how to log in. Fields and defaults are those of the provider's ``connection``."""

    host: str
    port: int = 22
    user: str = "root"
    password: str | None = field(default=None, repr=False)
    private_key: str | None = field(default=None, repr=False)
    private_key_password: str | None = field(default=None, repr=False)
    agent_socket: str | None = None
    """Socket of an SSH agent; default: ``SSH_AUTH_SOCK`` if set."""
    host_key: str | None = None
    """Expected host key as in an authorized_keys line; ``None``: any host key is accepted."""
    dial_error_limit: int = 10
    """How many failed dials are allowed; -1: without limit."""
    per_dial_timeout_seconds: int = 15
    """Limit of one TCP connection attempt; 0: none."""


def parse_host_key(text: str) -> paramiko.PKey:
    """The public key of an authorized_keys line (options before it are skipped). Raises :class:`SshError`."""
    words = text.split()
    for index, word in enumerate(words[:-1]):
        try:
            data = base64.b64decode(words[index + 1], validate=True)
            return paramiko.PKey.from_type_string(word, data)
        except (binascii.Error, ValueError, paramiko.SSHException, IndexError):
            continue
    raise SshError("failed to parse host key: expected the form 'ssh-ed25519 AAAA...', as in an authorized_keys line")


def parse_private_key(text: str, password: str | None) -> paramiko.PKey:
    """The private key in PEM or OpenSSH form. Raises :class:`SshError`, which never contains the key."""
    for kind in KEY_CLASSES:
        try:
            return kind.from_private_key(io.StringIO(text), password)
        except paramiko.PasswordRequiredException as error:
            raise SshError("the private key is protected by a passphrase; set privateKeyPassword") from error
        except (paramiko.SSHException, ValueError, binascii.Error, IndexError):
            continue
    raise SshError("ssh: no key found: privateKey is no OpenSSH or PEM private key, or its password is wrong")


class Interrupted(SshError):
    """The user has interrupted the engine."""

    def __init__(self) -> None:
        super().__init__("interrupted")


@dataclass
class Session:
    """Runs commands; everything that waits ends when ``cancelled`` is set."""

    connection: Connection
    cancelled: threading.Event
    note: Callable[[str], None]
    """Told about every failed dial."""

    def dial(self) -> paramiko.Transport:
        """A logged-in connection; repeats failed dials. Raises :class:`SshError`."""
        where = self.connection
        host_key = parse_host_key(where.host_key) if where.host_key is not None else None
        private_key = (
            parse_private_key(where.private_key, where.private_key_password) if where.private_key is not None else None
        )
        agent_keys = self._agent_keys()
        failures = 0
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                return self._dial_once(host_key, private_key, agent_keys)
            except Interrupted:
                raise
            except (OSError, EOFError, paramiko.SSHException, SshError) as error:
                # The count is of the failures before this one, as the real provider counts.
                if UNLIMITED < where.dial_error_limit < failures + 1:
                    raise SshError(f"after {failures} failed attempts: {_reason(error, where)}") from error
                failures += 1
                limit = "inf" if where.dial_error_limit == UNLIMITED else str(where.dial_error_limit)
                self.note(f"Dial {failures}/{limit} failed: retrying")
            if self.cancelled.wait(pause):
                raise Interrupted
            pause = min(pause * PAUSE_GROWTH, LONGEST_PAUSE_SECONDS)

    def _agent_keys(self) -> tuple[paramiko.AgentKey, ...]:
        path = self.connection.agent_socket or os.environ.get("SSH_AUTH_SOCK")
        if not path:
            return ()
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            probe.connect(path)
        except OSError as error:
            raise SshError(f"dial unix {path}: connect: {(error.strerror or str(error)).lower()}") from error
        finally:
            probe.close()
        if path != os.environ.get("SSH_AUTH_SOCK"):
            raise SshError("the lab's command provider uses an agent only through SSH_AUTH_SOCK; set that variable")
        return tuple(paramiko.Agent().get_keys())

    def _dial_once(
        self,
        host_key: paramiko.PKey | None,
        private_key: paramiko.PKey | None,
        agent_keys: tuple[paramiko.AgentKey, ...],
    ) -> paramiko.Transport:
        where = self.connection
        stream = socket.create_connection(
            (where.host, where.port), timeout=where.per_dial_timeout_seconds or NEVER_SECONDS
        )
        stream.settimeout(None)
        transport = paramiko.Transport(stream)
        try:
            # Only the TCP connection has a limit.
            transport.banner_timeout = NEVER_SECONDS
            transport.handshake_timeout = NEVER_SECONDS
            transport.auth_timeout = NEVER_SECONDS
            transport.daemon = True
            if host_key is not None:
                transport.get_security_options().key_types = _signature_types(host_key)
            self._await(transport, transport.start_client)
            if host_key is not None and transport.get_remote_server_key() != host_key:
                raise SshError("ssh: handshake failed: ssh: host key mismatch")
            self._log_in(transport, private_key, agent_keys)
        except BaseException:
            transport.close()
            raise
        return transport

    def _await(self, transport: paramiko.Transport, start: Callable[[threading.Event], object]) -> None:
        """Start a step of the handshake and wait for its end without limit, but for an interrupt."""
        event = threading.Event()
        start(event)
        while not event.wait(POLL_SECONDS):
            if self.cancelled.is_set():
                raise Interrupted
        error = transport.get_exception()
        if error is not None:
            raise error

    def _log_in(
        self,
        transport: paramiko.Transport,
        private_key: paramiko.PKey | None,
        agent_keys: tuple[paramiko.AgentKey, ...],
    ) -> None:
        user, password = self.connection.user, self.connection.password
        attempts: list[Callable[[threading.Event], object]] = []
        for key in [private_key] if private_key is not None else []:
            attempts.append(lambda event, key=key: transport.auth_publickey(user, key, event))  # type: ignore[misc]
        if password is not None:
            attempts.append(lambda event: transport.auth_password(user, password, event))
        for agent_key in agent_keys:
            attempts.append(lambda event, key=agent_key: transport.auth_publickey(user, key, event))  # type: ignore[misc]
        for attempt in attempts or [lambda event: transport.auth_publickey(user, _no_key(), event)]:
            try:
                self._await(transport, attempt)
            except paramiko.AuthenticationException:
                continue
            if transport.is_authenticated():
                return
        offered = [
            name for name, has in (("publickey", private_key or agent_keys), ("password", password is not None)) if has
        ]
        raise SshError(
            f"ssh: handshake failed: ssh: unable to authenticate, attempted methods [none {' '.join(offered)}], "
            "no supported methods remain"
        )

    def run(
        self,
        command: str,
        *,
        stdin: str | None = None,
        environment: Mapping[str, str] | None = None,
        optional_environment: Mapping[str, str] | None = None,
        on_line: Callable[[str, str], None] | None = None,
        on_refused: Callable[[str], None] | None = None,
    ) -> Output:
        """Run ``command`` in the user's shell and wait for its end, without limit.

        :param environment: variables that the server must accept.
        :param optional_environment: variables whose refusal is only told to ``on_refused``.
        :param on_line: called with ``stdout`` or ``stderr`` and a line as it comes.
        :raises SshError: if the connection or the command fails; with the output of both streams.
        """
        transport = self.dial()
        try:
            wanted = {**(optional_environment or {}), **(environment or {})}
            while True:
                channel = transport.open_session(timeout=NEVER_SECONDS)
                refused = next(
                    (name for name, value in wanted.items() if not _set_variable(channel, name, value)), None
                )
                if refused is None:
                    return self._run(channel, command, stdin, on_line)
                # A refusal has closed the channel: once more without the variable, if it was not a must.
                if refused in (environment or {}):
                    raise SshError(f'could not set environment variable "{refused}": ssh: setenv failed')
                del wanted[refused]
                if on_refused is not None:
                    on_refused(refused)
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise SshError(_reason(error, self.connection)) from error
        finally:
            transport.close()

    def _run(
        self, channel: paramiko.Channel, command: str, stdin: str | None, on_line: Callable[[str, str], None] | None
    ) -> Output:
        channel.exec_command(command.encode())
        output = Output()
        lock = threading.Lock()

        def collect(name: str, own: bytearray, receive: Callable[[int], bytes]) -> None:
            rest = b""
            while chunk := receive(CHUNK_BYTES):
                with lock:
                    own.extend(chunk)
                    output.both.extend(chunk)
                if on_line is not None:
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        on_line(name, line.decode(errors="replace"))
            if rest and on_line is not None:
                on_line(name, rest.decode(errors="replace"))

        def feed() -> None:
            try:
                channel.sendall((stdin or "").encode())
                channel.shutdown_write()
            except OSError:
                # The command has ended without reading all of its input; its exit status tells the rest.
                return

        threads = [
            threading.Thread(target=collect, args=("stdout", output.stdout, channel.recv), daemon=True),
            threading.Thread(target=collect, args=("stderr", output.stderr, channel.recv_stderr), daemon=True),
            threading.Thread(target=feed, daemon=True),
        ]
        for thread in threads:
            thread.start()
        while not channel.status_event.wait(POLL_SECONDS):
            if self.cancelled.is_set():
                raise Interrupted
        for thread in threads[:2]:
            while thread.is_alive():
                thread.join(POLL_SECONDS)
                if self.cancelled.is_set():
                    raise Interrupted
        status = channel.recv_exit_status()
        if status == NO_EXIT_STATUS:
            raise CommandFailed("wait: remote command exited without exit status or exit signal", command, output)
        if status != 0:
            raise CommandFailed(f"Process exited with status {status}", command, output)
        return output


class CommandFailed(SshError):
    """The command ran and failed; the message holds it and all it wrote, as the real provider's does."""

    def __init__(self, reason: str, command: str, output: Output) -> None:
        super().__init__(failure_text(reason, command, output.both))


def _no_key() -> paramiko.PKey:
    raise SshError(
        "ssh: handshake failed: ssh: unable to authenticate, attempted methods [none], no supported methods remain"
    )


def _signature_types(host_key: paramiko.PKey) -> list[str]:
    name = host_key.get_name()
    return ["rsa-sha2-512", "rsa-sha2-256"] if name == "ssh-rsa" else [name]


def _set_variable(channel: paramiko.Channel, name: str, value: str) -> bool:
    """Ask the server to set a variable; ``False`` if it refuses (``AcceptEnv`` does not list it)."""
    message = paramiko.Message()
    message.add_byte(paramiko.common.cMSG_CHANNEL_REQUEST)
    message.add_int(channel.remote_chanid)
    message.add_string("env")
    message.add_boolean(True)
    message.add_string(name)
    message.add_string(value)
    # paramiko's own set_environment_variable does not wait for the answer; this is how it waits for others.
    inner: Any = channel
    inner._event_pending()
    inner.transport._send_user_message(message)
    try:
        inner._wait_for_event()
    except paramiko.SSHException:
        return False
    return True


def _reason(error: BaseException, where: Connection) -> str:
    if isinstance(error, SshError):
        return str(error)
    if isinstance(error, TimeoutError):
        return f"dial tcp {where.host}:{where.port}: i/o timeout"
    if isinstance(error, OSError):
        return f"dial tcp {where.host}:{where.port}: connect: {(error.strerror or str(error)).lower()}"
    if isinstance(error, EOFError):
        return "ssh: handshake failed: EOF"
    return f"ssh: handshake failed: {error}"
