"""The part of the Proxmox VE API that the stand-in for the ``proxmoxve`` provider uses, over HTTPS.

Errors keep the wording of the real provider: ``received an HTTP 500 response - Reason: ...``.
"""

from __future__ import annotations

import functools
import http.client
import json
import ssl
import threading
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

REQUEST_TIMEOUT_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.2
LONGEST_POLL_SECONDS: Final = 1.0


class PveError(Exception):
    """A request failed; the message is one sentence."""


class NotThere(PveError):
    """What the request is about does not exist."""


class AuthenticationFailed(PveError):
    """The API did not accept the credentials, or could not be asked about them."""


class TaskFailed(PveError):
    """A task of the Proxmox host ended with an error."""


@dataclass(frozen=True)
class Credentials:
    """How to log in: an API token (``user@realm!name=secret``), or a user with a password."""

    api_token: str | None = field(default=None, repr=False)
    username: str | None = None
    password: str | None = field(default=None, repr=False)


class PveClient:
    """A client of one Proxmox VE API; may be used by several threads.

    :param endpoint: ``https://host:8006/``, without ``/api2/json``.
    :param insecure: accept any certificate. Otherwise the system's authorities count, or those of ``SSL_CERT_FILE``.
    :param cancelled: when set, waiting ends with :class:`PveError`.
    """

    def __init__(self, endpoint: str, credentials: Credentials, *, insecure: bool, cancelled: threading.Event) -> None:
        parts = urllib.parse.urlsplit(endpoint)
        if parts.scheme not in ("https", "http") or not parts.hostname:
            raise PveError(f"the endpoint {endpoint!r} is no URL of the form https://host:8006/")
        self._secure = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port or (443 if self._secure else 80)
        self._base = parts.path.rstrip("/") + "/api2/json"
        self._credentials = credentials
        self._cancelled = cancelled
        self._insecure = insecure
        self._lock = threading.Lock()
        self._ticket: tuple[str, str] | None = None

    @functools.cached_property
    def _context(self) -> ssl.SSLContext:
        """Made for the first request: reading all authorities takes longer than a whole run that sends none."""
        context = ssl.create_default_context()
        if self._insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def get(self, path: str, **parameters: Any) -> Any:
        """GET; returns the answer's ``data``."""
        return self._authorized("GET", path, parameters)

    def post(self, path: str, parameters: Mapping[str, Any] | None = None) -> Any:
        """POST; returns the answer's ``data`` (for most: the id of a task, see :meth:`wait`)."""
        return self._authorized("POST", path, parameters or {})

    def put(self, path: str, parameters: Mapping[str, Any]) -> Any:
        """PUT; returns the answer's ``data``."""
        return self._authorized("PUT", path, parameters)

    def delete(self, path: str) -> Any:
        """DELETE; returns the answer's ``data``."""
        return self._authorized("DELETE", path, {})

    def pause(self, seconds: float) -> None:
        """Wait; raises :class:`PveError` at once when the user interrupts."""
        if self._cancelled.wait(seconds):
            raise PveError("interrupted")

    def wait(self, node: str, task: str, timeout_seconds: float) -> str:
        """Wait for the end of a task; returns its exit status (``OK`` or ``WARNINGS: n``).

        :raises TaskFailed: if it ended otherwise; with the last lines of its log.
        :raises PveError: if it did not end in ``timeout_seconds``.
        """
        waited, pause = 0.0, POLL_SECONDS / 4
        path = f"nodes/{node}/tasks/{urllib.parse.quote(task, safe='')}"
        while True:
            status = self.get(f"{path}/status")
            if status.get("status") == "stopped":
                break
            if waited >= timeout_seconds:
                raise PveError(f"task {task} did not end within {timeout_seconds:.0f} s; look at it on node {node}")
            self.pause(pause)
            waited += pause
            pause = min(pause * 1.5, LONGEST_POLL_SECONDS)
        exit_status = str(status.get("exitstatus", ""))
        if exit_status == "OK" or exit_status.startswith("WARNINGS"):
            return exit_status
        lines = [str(line.get("t", "")) for line in self.get(f"{path}/log", limit=500) or []]
        last = "; ".join(line for line in lines[-5:] if line and not line.startswith("TASK "))
        raise TaskFailed(
            f'task "{task}" failed to complete with exit code: {exit_status}' + (f" ({last})" if last else "")
        )

    # Inner workings.

    def _authorized(self, method: str, path: str, parameters: Mapping[str, Any]) -> Any:
        if self._credentials.api_token:
            return self._send(method, path, parameters, {"Authorization": f"PVEAPIToken={self._credentials.api_token}"})
        ticket, token = self._log_in(method)
        headers = {"Cookie": f"PVEAuthCookie={ticket}"}
        if method != "GET":
            headers["CSRFPreventionToken"] = token
        return self._send(method, path, parameters, headers)

    def _log_in(self, method: str) -> tuple[str, str]:
        with self._lock:
            if self._ticket is None:
                login = {"username": self._credentials.username, "password": self._credentials.password}
                try:
                    answer = self._send("POST", "access/ticket", login, {})
                except PveError as error:
                    raise AuthenticationFailed(
                        f"failed to authenticate HTTP {method} request: "
                        f"failed to retrieve authentication response: {error}"
                    ) from error
                self._ticket = (answer["ticket"], answer["CSRFPreventionToken"])
            return self._ticket

    def _send(self, method: str, path: str, parameters: Mapping[str, Any], headers: Mapping[str, str]) -> Any:
        encoded = urllib.parse.urlencode({name: _text(value) for name, value in parameters.items()})
        target = f"{self._base}/{path}"
        body = None
        all_headers = dict(headers)
        if method in ("GET", "DELETE"):
            target += f"?{encoded}" if encoded else ""
        else:
            body = encoded
            all_headers["Content-Type"] = "application/x-www-form-urlencoded"
        connection: http.client.HTTPConnection
        if self._secure:
            connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=REQUEST_TIMEOUT_SECONDS, context=self._context
            )
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=REQUEST_TIMEOUT_SECONDS)
        try:
            connection.request(method, target, body, all_headers)
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise PveError(
                f"failed to perform HTTP {method} request (path: {path}) - Reason: "
                f"{self._host}:{self._port}: {_reason(error)}"
            ) from error
        finally:
            connection.close()
        return _data(method, path, response.status, response.reason, content)


def _data(method: str, path: str, status: int, reason: str, content: bytes) -> Any:
    try:
        answer = json.loads(content) if content else {}
    except ValueError:
        answer = {}
    if 200 <= status < 300:
        return answer.get("data")
    details = answer.get("errors") or {}
    text = f"received an HTTP {status} response - Reason: {reason}"
    message = str(answer.get("message") or "").strip()
    if message and message not in reason:
        text += f" - {message}"
    if details:
        text += " (" + ", ".join(f"{name}: {str(value).strip()}" for name, value in details.items()) + ")"
    if status in (401, 403) and path != "access/ticket":
        raise PveError(f"{text} (path: {path}; check the token and its privileges)")
    if status == 404 or (status == 500 and "does not exist" in text):
        raise NotThere(text)
    raise PveError(text)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    return str(value)


def _reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"tls: failed to verify certificate: {error.verify_message} (set insecure, "
            "or name the authority that signed it in SSL_CERT_FILE)"
        )
    if isinstance(error, TimeoutError):
        return "i/o timeout"
    if isinstance(error, OSError):
        return f"connect: {(error.strerror or str(error)).lower()}"
    return f"{type(error).__name__} {error}".strip()
