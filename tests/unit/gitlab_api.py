"""A server on loopback that behaves as GitLab's API of users, merge requests and notes does."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "glpat-0123456789abcdefghij"
ME, SOMEBODY = 7, 8
PROJECT, MERGE_REQUEST = "42", "5"
HEAD, MERGE = "a" * 40, "b" * 40
"""The last commit of the merge request, and the one it was merged as."""


@dataclass
class Answer:
    """An answer that is given instead of the real one."""

    status: int
    body: object = None
    headers: dict[str, str] = field(default_factory=dict)
    after: bool = False
    """Whether the request is carried out all the same, as when a proxy gives up too early."""


@dataclass
class Server:
    """GitLab with one project, one merge request and one token."""

    notes: list[dict[str, Any]] = field(default_factory=list)
    merge_requests: list[dict[str, Any]] = field(default_factory=list)
    instead: list[tuple[str, Answer]] = field(default_factory=list)
    """Method (or ``*``) and what it is answered once, in this order."""
    always: Answer | None = None
    requests: list[str] = field(default_factory=list)
    """Method and path of everything that was asked."""
    address: str = ""

    head: str = HEAD
    """Last commit of the merge request."""
    commit: str = MERGE
    """The commit whose merge requests are known."""

    def add(self, body: str, author: int, **more: Any) -> dict[str, Any]:
        """Another note."""
        note = {"id": 1000 + len(self.notes), "body": body, "author": {"id": author}, "system": False, **more}
        self.notes.append(note)
        return note

    def next_answer(self, method: str) -> Answer | None:
        if self.instead and self.instead[0][0] in ("*", method):
            return self.instead.pop(0)[1]
        return self.always

    def count(self, method: str) -> int:
        return sum(request.startswith(f"{method} ") for request in self.requests)

    def handle(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, object, dict[str, str]]:
        """Status, content and headers of the answer."""
        project = f"/api/v4/projects/{PROJECT}"
        notes = f"{project}/merge_requests/{MERGE_REQUEST}/notes"
        if path == "/api/v4/user":
            return 200, {"id": ME, "username": "project_42_bot"}, {}
        if path == f"{project}/repository/commits/{self.commit}/merge_requests":
            return 200, self.merge_requests, {}
        if path == f"{project}/merge_requests/{MERGE_REQUEST}":
            return (
                200,
                {"iid": 5, "sha": self.head, "web_url": f"{self.address}/school/postgres/-/merge_requests/5"},
                {},
            )
        if path == notes and method == "GET":
            return self.page(int(query.get("page", 1)), min(100, int(query.get("per_page", 20))))
        if path == notes and method == "POST":
            return 201, self.add(body["body"], ME), {}
        found = re.fullmatch(rf"{notes}/(\d+)", path)
        if found and method == "PUT":
            note = next(note for note in self.notes if note["id"] == int(found[1]))
            note["body"] = body["body"]
            return 200, note, {}
        return 404, {"message": "404 Not found"}, {}

    def page(self, page: int, size: int) -> tuple[int, object, dict[str, str]]:
        headers = {"X-Page": str(page), "X-Per-Page": str(size)}
        if page * size < len(self.notes):
            path = f"/api/v4/projects/{PROJECT}/merge_requests/{MERGE_REQUEST}/notes"
            headers["Link"] = f'<{self.address}{path}?page={page + 1}&per_page={size}&sort=asc>; rel="next"'
        return 200, self.notes[(page - 1) * size : page * size], headers


def handler_of(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def serve(self) -> None:
            address = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            server.requests.append(f"{self.command} {address.path}")
            answer = server.next_answer(self.command)
            status: int = 401
            content: object = {"message": "401 Unauthorized"}
            headers: dict[str, str] = {}
            if self.headers.get("PRIVATE-TOKEN") == TOKEN and (answer is None or answer.after):
                query = {key: values[0] for key, values in parse_qs(address.query).items()}
                status, content, headers = server.handle(self.command, address.path, query, body)
            if answer is not None:
                status, content, headers = answer.status, answer.body, answer.headers
            text = json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = serve

        def log_message(self, format: str, *args: object) -> None:
            """Requests are kept in the server's list."""

    return Handler


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Answer requests as long as the block lasts."""
    listening = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(server))
    server.address = f"http://127.0.0.1:{listening.server_port}"
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()
