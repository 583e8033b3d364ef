"""A small client of the Kubernetes API: plain HTTPS requests and discovery, light enough to start in no time.

The engine starts a provider for every operation, most of which touch few objects or none, so nothing is imported and
nobody is contacted before the first object is really needed.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import ssl
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import urllib3
import yaml

Object = dict[str, Any]
"""A Kubernetes object, as JSON has it."""

APPLY_TYPE: Final = "application/apply-patch+yaml"
DEFAULT_REQUEST_SECONDS: Final = 32.0
CONNECT_SECONDS: Final = 5.0
TRANSIENT_STATUS: Final = frozenset({429, 502, 503, 504})
_DATASTORE_WORDS: Final = ("rpc error", "etcdserver", "transport: ", "connection error")
"""How an API server says that its datastore does not answer."""


class ClusterError(Exception):
    """Talking to the cluster failed; the text says how."""


class KubeconfigError(ClusterError):
    """A kubeconfig cannot be used; the text says what is wrong with it."""


class UnreachableError(ClusterError):
    """The API server does not answer."""

    def __init__(self, server: str, reason: str) -> None:
        super().__init__(f"the Kubernetes API at {server} does not answer: {reason}")
        self.server = server
        self.reason = reason


class NoKindError(ClusterError):
    """The API server does not know a kind (a CustomResourceDefinition that is not there, or not yet)."""

    def __init__(self, api_version: str, kind: str) -> None:
        super().__init__(f'no matches for kind "{kind}" in version "{api_version}"')
        self.api_version = api_version
        self.kind = kind


class ApiError(ClusterError):
    """The API server refused a request."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status code."""
        self.reason = reason
        """The API's own word for it (``NotFound``, ``Conflict``, ...)."""
        self.message = message

    @property
    def webhook_down(self) -> bool:
        """Whether an admission webhook of the cluster did not answer (as it does shortly after its chart was installed)."""
        return self.status == 500 and "failed calling webhook" in self.message


@dataclass(frozen=True)
class ClusterAddress:
    """What a kubeconfig says about the chosen cluster and how to log in there."""

    server: str
    context: str
    namespace: str
    authority_pem: str = ""
    certificate_pem: str = field(default="", repr=False)
    key_pem: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    token_file: str = ""
    username: str = ""
    password: str = field(default="", repr=False)
    server_name: str = ""
    skip_verification: bool = False


def kubeconfig_text(kubeconfig: str | None) -> str:
    """The content of a kubeconfig given as content or as path; without one: ``$KUBECONFIG``, then ``~/.kube/config``.

    Raises :class:`KubeconfigError`.
    """
    if kubeconfig and ("\n" in kubeconfig or kubeconfig.lstrip().startswith("{")):
        return kubeconfig
    ambient = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0] or "~/.kube/config"
    path = Path(kubeconfig or ambient).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise KubeconfigError(f"the kubeconfig {path} cannot be read: {error}") from error


def _named(document: Mapping[str, Any], group: str, name: str, part: str) -> dict[str, Any]:
    for entry in document.get(group) or []:
        if isinstance(entry, Mapping) and entry.get("name") == name and isinstance(entry.get(part), Mapping):
            return dict(entry[part])
    raise KubeconfigError(f"the kubeconfig has no {part} named {name!r}")


def _pem(values: Mapping[str, Any], name: str) -> str:
    data = values.get(f"{name}-data")
    if data:
        try:
            return base64.b64decode(str(data), validate=True).decode("ascii")
        except ValueError as error:
            raise KubeconfigError(f"{name}-data of the kubeconfig is not base64 of a PEM text") from error
    path = values.get(name)
    if not path:
        return ""
    try:
        return Path(str(path)).expanduser().read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise KubeconfigError(f"{name} {path}, named by the kubeconfig, cannot be read: {error}") from error


def parse_kubeconfig(text: str, *, context: str = "", cluster: str = "", namespace: str = "") -> ClusterAddress:
    """The cluster that a kubeconfig's (chosen or current) context names. Raises :class:`KubeconfigError`."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise KubeconfigError("the kubeconfig is not YAML") from error
    if not isinstance(document, Mapping):
        raise KubeconfigError("the kubeconfig holds no settings")
    chosen = context or str(document.get("current-context") or "")
    if not chosen:
        raise KubeconfigError("the kubeconfig has no current-context and none was chosen")
    settings = _named(document, "contexts", chosen, "context")
    target = _named(document, "clusters", cluster or str(settings.get("cluster", "")), "cluster")
    user_name = settings.get("user")
    user = _named(document, "users", str(user_name), "user") if user_name else {}
    if "exec" in user or "auth-provider" in user:
        raise KubeconfigError(
            f"user {user_name} of the kubeconfig logs in by a helper program, which the lab does not run"
        )
    if target.get("proxy-url"):
        raise KubeconfigError("the kubeconfig names a proxy-url, which the lab does not use")
    return ClusterAddress(
        server=str(target.get("server", "")).rstrip("/"),
        context=chosen,
        namespace=namespace or str(settings.get("namespace") or "default"),
        authority_pem=_pem(target, "certificate-authority"),
        certificate_pem=_pem(user, "client-certificate"),
        key_pem=_pem(user, "client-key"),
        token=str(user.get("token") or ""),
        token_file=str(user.get("tokenFile") or ""),
        username=str(user.get("username") or ""),
        password=str(user.get("password") or ""),
        server_name=str(target.get("tls-server-name") or ""),
        skip_verification=bool(target.get("insecure-skip-tls-verify")),
    )


@dataclass(frozen=True)
class ResourceKind:
    """Where objects of one kind are found."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool

    def path(self, namespace: str, name: str = "") -> str:
        """The path of an object, or of the list when ``name`` is empty."""
        root = f"/apis/{self.api_version}" if "/" in self.api_version else f"/api/{self.api_version}"
        middle = f"/namespaces/{urllib.parse.quote(namespace)}" if self.namespaced else ""
        return f"{root}{middle}/{self.plural}" + (f"/{urllib.parse.quote(name)}" if name else "")


class Cluster:
    """One cluster's API. Safe for use by many threads.

    :param request_seconds: longest wait for one answer.
    :param on_warning: called with each warning the API server attaches to an answer.
    """

    def __init__(
        self,
        address: ClusterAddress,
        *,
        request_seconds: float = DEFAULT_REQUEST_SECONDS,
        on_warning: Callable[[str], None] | None = None,
    ) -> None:
        self.address = address
        self._on_warning = on_warning
        self._limit = urllib3.Timeout(connect=min(CONNECT_SECONDS, request_seconds), read=request_seconds)
        self._kinds: dict[str, dict[str, ResourceKind]] = {}
        self._lock = threading.Lock()
        headers = {"User-Agent": "school-lab", "Accept": "application/json"}
        if address.token:
            headers["Authorization"] = f"Bearer {address.token}"
        elif address.username:
            login = base64.b64encode(f"{address.username}:{address.password}".encode()).decode()
            headers["Authorization"] = f"Basic {login}"
        pool: dict[str, Any] = {}
        if address.server.startswith("https:"):
            pool["ssl_context"] = _tls(address)
            if address.server_name:
                pool["server_hostname"] = address.server_name
        self._pool = urllib3.PoolManager(
            num_pools=2,
            maxsize=32,
            headers=headers,
            retries=False,
            **pool,
        )

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        seconds: float | None = None,
    ) -> Object:
        """One request; returns the decoded answer.

        :param seconds: longest wait for it; default: the one of this connection.

        Raises :class:`ApiError` and :class:`UnreachableError`.
        """
        url = self.address.server + path + (f"?{urllib.parse.urlencode(query)}" if query else "")
        headers = dict(self._pool.headers)
        if self.address.token_file:
            headers["Authorization"] = f"Bearer {self._token_from_file()}"
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = content_type
        try:
            limit = urllib3.Timeout(seconds) if seconds else self._limit
            response = self._pool.request(method, url, body=data, headers=headers, timeout=limit)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise UnreachableError(self.address.server, _network_reason(error)) from error
        for warning in response.headers.getlist("Warning"):
            if self._on_warning and '"' in warning:
                self._on_warning(warning.partition('"')[2].rpartition('"')[0])
        return self._decode(response.status, response.data)

    def _token_from_file(self) -> str:
        try:
            return Path(self.address.token_file).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise KubeconfigError(f"the kubeconfig's tokenFile {self.address.token_file} cannot be read") from error

    def _decode(self, status: int, data: bytes) -> Object:
        try:
            answer = json.loads(data) if data else {}
        except ValueError:
            answer = {"message": data[:300].decode("utf-8", "replace").strip()}
        if not isinstance(answer, dict):
            answer = {"message": str(answer)[:300]}
        if status < 400:
            return answer
        message = str(answer.get("message") or "no message")
        if status in TRANSIENT_STATUS or (status == 500 and any(word in message for word in _DATASTORE_WORDS)):
            raise UnreachableError(self.address.server, f"it answered {status}: {message}")
        if status == 401:
            message = f"the API at {self.address.server} does not accept the kubeconfig's credentials ({message})"
        raise ApiError(status, str(answer.get("reason") or status), message)

    # Discovery.

    def kind(self, api_version: str, kind: str, *, refresh: bool = False) -> ResourceKind:
        """Where objects of a kind live. Raises :class:`NoKindError` when the server does not know it."""
        with self._lock:
            known = None if refresh else self._kinds.get(api_version)
            if known is None or kind not in known:
                known = self._kinds[api_version] = self._discover(api_version)
        if kind not in known:
            raise NoKindError(api_version, kind)
        return known[kind]

    def _discover(self, api_version: str) -> dict[str, ResourceKind]:
        path = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
        try:
            answer = self.request("GET", path)
        except ApiError as error:
            if error.status == 404:
                return {}
            raise
        return {
            entry["kind"]: ResourceKind(api_version, entry["kind"], entry["name"], bool(entry.get("namespaced")))
            for entry in answer.get("resources") or []
            if "/" not in entry["name"]
        }

    # Objects.

    def get(self, kind: ResourceKind, namespace: str, name: str) -> Object | None:
        """An object, or ``None`` when there is none of that name."""
        try:
            return self.request("GET", kind.path(namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def apply(self, kind: ResourceKind, namespace: str, body: Object, *, manager: str, force: bool) -> Object:
        """Server-side apply ``body`` as field manager ``manager``; returns the live object."""
        query = {"fieldManager": manager, "force": "true" if force else "false"}
        name = str(body["metadata"]["name"])
        return self.request("PATCH", kind.path(namespace, name), query=query, body=body, content_type=APPLY_TYPE)

    def delete(self, kind: ResourceKind, namespace: str, name: str, *, propagation: str) -> bool:
        """Ask for the deletion of an object; ``False`` when it is gone already."""
        options = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation}
        try:
            self.request("DELETE", kind.path(namespace, name), body=options)
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    def items(self, path: str, **query: str) -> list[Object]:
        """The items of a list request."""
        return list(self.request("GET", path, query=query).get("items") or [])

    def pods(self, namespace: str, selector: str = "") -> list[Object]:
        """Pods of a namespace, narrowed by a label selector."""
        query = {"labelSelector": selector} if selector else {}
        return self.items(f"/api/v1/namespaces/{urllib.parse.quote(namespace)}/pods", **query)

    def events(self, namespace: str, kind: str, name: str) -> list[Object]:
        """Events about one object, oldest first."""
        fields = f"involvedObject.name={name}" + (f",involvedObject.kind={kind}" if kind else "")
        path = f"/api/v1/namespaces/{urllib.parse.quote(namespace or 'default')}/events"
        return sorted(self.items(path, fieldSelector=fields), key=event_time)


def event_time(event: Object) -> str:
    """When an event was last seen, as sortable text."""
    series = event.get("series") or {}
    created = (event.get("metadata") or {}).get("creationTimestamp")
    return str(series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime") or created or "")[
        :19
    ]


def _network_reason(error: BaseException) -> str:
    """The innermost cause of a failed request, in a few words."""
    chain: list[BaseException] = [error]
    while (deeper := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(deeper)
    for cause in reversed(chain):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not one of the kubeconfig's authority for this address ({cause.verify_message})"
        if isinstance(cause, TimeoutError | urllib3.exceptions.ReadTimeoutError):
            return "no answer in time"
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno).lower()
    return str(error)


def _tls(address: ClusterAddress) -> ssl.SSLContext:
    """TLS settings of a cluster. Key and certificate touch the disk only for the moment OpenSSL reads them."""
    try:
        settings = ssl.create_default_context(cadata=address.authority_pem or None)
        if address.skip_verification:
            settings.check_hostname = False
            settings.verify_mode = ssl.CERT_NONE
        if address.certificate_pem:
            with private_file(address.certificate_pem + "\n" + address.key_pem) as path:
                settings.load_cert_chain(path)
    except ssl.SSLError as error:
        raise KubeconfigError(f"the certificates in the kubeconfig cannot be used: {error}") from error
    return settings


@contextlib.contextmanager
def private_file(text: str) -> Iterator[Path]:
    """A temporary file only its owner can read (mode 0600), removed at the end of the ``with`` block."""
    handle, name = tempfile.mkstemp(prefix="school-lab-")
    path = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        yield path
    finally:
        path.unlink(missing_ok=True)


def with_patience(
    action: Callable[[], Object],
    *,
    seconds: float,
    is_transient: Callable[[ClusterError], bool],
    pause: Callable[[float], None],
    on_retry: Callable[[str], None],
) -> Object:
    """Run ``action`` again, after 0.5, 1, 2, ... (at most 8) s, while it fails transiently and ``seconds`` have not passed."""
    deadline = time.monotonic() + seconds
    wait = 0.5
    while True:
        try:
            return action()
        except ClusterError as error:
            if not is_transient(error) or time.monotonic() + wait > deadline:
                raise
            on_retry(str(error))
        pause(wait)
        wait = min(wait * 2, 8.0)
