"""A Kubernetes API on loopback that keeps objects in memory: enough of it to see what a provider asks for."""

from __future__ import annotations

import json
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Object = dict[str, Any]

KINDS: dict[str, dict[str, tuple[str, bool]]] = {
    "v1": {
        "Namespace": ("namespaces", False),
        "Secret": ("secrets", True),
        "ConfigMap": ("configmaps", True),
        "Service": ("services", True),
        "Pod": ("pods", True),
        "Event": ("events", True),
    },
    "apps/v1": {"Deployment": ("deployments", True)},
    "discovery.k8s.io/v1": {"EndpointSlice": ("endpointslices", True)},
}


class Refusal(Exception):
    """An error answer: status, reason, message."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason = status, reason


@dataclass
class Request:
    """A change somebody asked for."""

    method: str
    path: str
    query: dict[str, str]
    body: Any


@dataclass
class Api:
    """What the server knows, to be looked at and changed by a test."""

    port: int = 0
    kinds: dict[str, dict[str, tuple[str, bool]]] = field(default_factory=lambda: {**KINDS})
    objects: dict[str, Object] = field(default_factory=dict)
    """Path to object."""
    requests: list[Request] = field(default_factory=list)
    on_apply: Callable[[str, Object], None] = lambda path, live: None
    """Called after an apply with the path and the live object; may change it or raise :class:`Refusal`."""
    on_get: Callable[[str, Object], None] = lambda path, live: None
    keep_deleted: bool = False
    """Whether a deleted object stays, with a deletionTimestamp, as one with a finalizer does."""
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def kubeconfig(self) -> str:
        """A kubeconfig for it."""
        return json.dumps(
            {
                "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
                "users": [{"name": "u", "user": {"token": "test"}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
        )

    def put(self, api_version: str, kind: str, namespace: str, name: str, **content: Any) -> Object:
        """Place an object there, as another program would."""
        plural = self.kinds[api_version][kind][0]
        root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
        names = {"name": name, "namespace": namespace, "uid": f"uid-{name}", **content.pop("metadata", {})}
        live = {"apiVersion": api_version, "kind": kind, "metadata": names, **content}
        self.objects[f"{root}/namespaces/{namespace}/{plural}/{name}"] = live
        return live

    def changes(self, method: str) -> list[Request]:
        """The requests of one method so far."""
        return [request for request in self.requests if request.method == method]

    def answer(self, request: Request) -> Object:
        """The answer to a request."""
        with self.lock:
            if request.method != "GET":
                self.requests.append(request)
            if request.path == "/version":
                return {"gitVersion": "v1.36.3"}
            for api_version, kinds in self.kinds.items():
                root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
                if request.path == root:
                    listed = [{"kind": kind, "name": name, "namespaced": ns} for kind, (name, ns) in kinds.items()]
                    return {"resources": listed}
            answers = {"GET": self._get, "PATCH": self._patch, "DELETE": self._delete}
            return answers[request.method](request)

    def _get(self, request: Request) -> Object:
        if request.path in self.objects:
            live = self.objects[request.path]
            self.on_get(request.path, live)
            return live
        last = request.path.rsplit("/", 1)[1]
        if any(last == plural for kinds in self.kinds.values() for plural, _ in kinds.values()):
            found = [live for path, live in self.objects.items() if path.startswith(request.path + "/")]
            return {"items": [live for live in found if _selected(live, request.query)]}
        raise Refusal(404, "NotFound", f'"{last}" not found')

    def _patch(self, request: Request) -> Object:
        if "/namespaces/" in request.path:
            namespace = request.path.split("/namespaces/")[1].split("/")[0]
            if "/" in request.path.split("/namespaces/")[1] and f"/api/v1/namespaces/{namespace}" not in self.objects:
                raise Refusal(404, "NotFound", f'namespaces "{namespace}" not found')
        before = self.objects.get(request.path, {})
        live: Object = _merge(before, request.body)
        live["metadata"].setdefault("uid", f"uid-{len(self.requests)}")
        live["metadata"]["generation"] = before.get("metadata", {}).get("generation", 0) + 1
        live["metadata"]["managedFields"] = [{"manager": request.query["fieldManager"]}]
        self.on_apply(request.path, live)
        self.objects[request.path] = live
        return live

    def _delete(self, request: Request) -> Object:
        if request.path not in self.objects:
            raise Refusal(404, "NotFound", "not found")
        if self.keep_deleted:
            self.objects[request.path]["metadata"] |= {"deletionTimestamp": "now", "finalizers": ["example.org/guard"]}
        else:
            del self.objects[request.path]
        return {}


def _selected(live: Object, query: dict[str, str]) -> bool:
    labels = live["metadata"].get("labels") or {}
    for part in filter(None, query.get("labelSelector", "").split(",")):
        key, _, value = part.partition("=")
        if labels.get(key) != value:
            return False
    for part in filter(None, query.get("fieldSelector", "").split(",")):
        key, _, value = part.partition("=")
        if str((live.get("involvedObject") or {}).get(key.rpartition(".")[2])) != value:
            return False
    return True


def _merge(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: _merge(old.get(key), value) for key, value in new.items()}}
    return new


def serve(api: Api) -> ThreadingHTTPServer:
    """Start serving ``api`` in a thread; the caller shuts it down."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            parts = urllib.parse.urlsplit(self.path)
            text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            query = dict(urllib.parse.parse_qsl(parts.query))
            status, answer = 200, {}
            try:
                request = Request(self.command, parts.path, query, json.loads(text) if text else None)
                answer = json.loads(json.dumps(api.answer(request)))
            except Refusal as error:
                status = error.status
                answer = {"kind": "Status", "reason": error.reason, "message": str(error), "code": status}
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PATCH = do_DELETE = _handle

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    api.port = server.server_port
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server
