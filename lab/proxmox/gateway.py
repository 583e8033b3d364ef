"""The Proxmox interface of the lab: what its API says, happens with real containers.

``python -m lab.proxmox.gateway`` runs in the lab's network. It starts fakepve (unmodified, on a loopback address) and
answers at https://10.0.145.10:8006 in front of it. Every call goes to fakepve first, which checks it and words its
refusals as Proxmox does; of what it accepts, the gateway does the real part: unpack a template, start LXC, download a
file. Such calls end in a task of the gateway's own, with the real outcome. What must last stands in
``/etc/pve/lxc/<id>.conf`` on disk; fakepve is filled from there at every start.

Root on the Proxmox host (``pct``) uses the same interface without a login, over a socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import hmac
import itertools
import json
import os
import re
import signal
import ssl
import sys
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from lab import keys, places, services
from lab.errors import LabError
from lab.proxmox import lxc_config
from lab.proxmox.containers import Containers
from lab.proxmox.guest_config import GuestConfig, GuestConfigs, digest, from_api, parse, properties

NODE = places.PROXMOX_NODE
FAKEPVE = f"https://{places.FAKEPVE_ADDRESS}:{places.PROXMOX_PORT}"
FAKEPVE_READY_SECONDS = 20.0
LOOK_SECONDS = 0.5
"""How often the gateway looks for containers that ended by themselves."""
LOOKS_BEFORE_REAPING = 10
SHUTDOWN_SECONDS = 60
DOWNLOAD_SECONDS = 1800
PR_SET_CHILD_SUBREAPER = 36

Form = dict[str, str]
Work = Callable[[Callable[[str], None]], Awaitable[None]]


@dataclass(slots=True)
class Task:
    """A piece of real work, as ``/nodes/pve1/tasks`` shows it."""

    upid: str
    kind: str
    subject: str
    started: float = field(default_factory=time.time)
    lines: list[str] = field(default_factory=list)
    exit_status: str | None = None

    def status(self) -> dict[str, object]:
        """The answer of ``/tasks/{upid}/status``."""
        shown: dict[str, object] = {
            "upid": self.upid,
            "node": NODE,
            "pid": 1,
            "pstart": 1,
            "starttime": int(self.started),
            "type": self.kind,
            "id": self.subject,
            "user": "root@pam",
            "status": "running" if self.exit_status is None else "stopped",
        }
        return shown if self.exit_status is None else {**shown, "exitstatus": self.exit_status}


class Refused(Exception):
    """fakepve said no; its answer is the answer."""

    def __init__(self, status: int, reason: str, body: bytes) -> None:
        super().__init__(f"{status} {reason}")
        self.status, self.reason, self.body = status, reason, body


class Fakepve:
    """The fakepve process and calls to it as root."""

    def __init__(self, guests: Path, password: str) -> None:
        self._guests, self._password = guests, password
        self._process: asyncio.subprocess.Process | None = None
        self._session: aiohttp.ClientSession | None = None
        self._headers: dict[str, str] = {}

    async def start(self) -> None:
        """Start the process and log in. Raises :class:`LabError` when it does not answer."""
        self._process = await asyncio.create_subprocess_exec(
            str(places.REPOSITORY / ".venv" / "bin" / "fakepve"),
            *(
                "--host",
                places.FAKEPVE_ADDRESS,
                "--port",
                str(places.PROXMOX_PORT),
                "--time-scale",
                "0",
                str(self._guests),
            ),
            env={**os.environ, "PVE_PASS": self._password},
            stdin=asyncio.subprocess.DEVNULL,
            # It goes with the gateway, however that ends.
            preexec_fn=_die_with_parent,
        )
        # fakepve signs its own certificate at every start, and nothing but this process reaches its address.
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False))
        deadline = time.monotonic() + FAKEPVE_READY_SECONDS
        while True:
            try:
                await self._log_in()
                return
            except aiohttp.ClientError as error:
                if self._process.returncode is not None or time.monotonic() > deadline:
                    raise LabError(f"fakepve does not answer at {FAKEPVE}: {error}. Its messages are above.") from error
                await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """End the process."""
        if self._session is not None:
            await self._session.close()
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()

    async def ended(self) -> int:
        """Wait until the process ends; returns its exit code."""
        assert self._process is not None
        return await self._process.wait()

    async def _log_in(self) -> None:
        assert self._session is not None
        form = {"username": "root@pam", "password": self._password}
        async with self._session.post(f"{FAKEPVE}/api2/json/access/ticket", data=form) as answer:
            answer.raise_for_status()
            ticket = (await answer.json())["data"]
        self._headers = {
            "Cookie": f"PVEAuthCookie={ticket['ticket']}",
            "CSRFPreventionToken": ticket["CSRFPreventionToken"],
        }

    async def raw(
        self,
        method: str,
        path: str,
        *,
        query: str = "",
        body: bytes = b"",
        kind: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, str, bytes, str]:
        """Pass a call on; ``headers`` are the caller's credentials, ours when None. A ticket that is too old is renewed."""
        assert self._session is not None
        for attempt in (1, 2):
            sent = dict(self._headers if headers is None else headers)
            if kind:
                sent["Content-Type"] = kind
            url = f"{FAKEPVE}{path}" + (f"?{query}" if query else "")
            async with self._session.request(method, URL(url, encoded=True), data=body or None, headers=sent) as answer:
                content = await answer.read()
                if answer.status == 401 and headers is None and attempt == 1:
                    await self._log_in()
                    continue
                return (
                    answer.status,
                    answer.reason or "",
                    content,
                    answer.headers.get("Content-Type", "application/json"),
                )
        raise AssertionError("unreachable")

    async def call(self, method: str, path: str, form: Mapping[str, str] | None = None) -> Any:
        """One call below ``/api2/json``; returns ``data``. Raises :class:`Refused`."""
        content = urllib.parse.urlencode(form or {}).encode()
        status, reason, answer, _ = await self.raw(
            method, f"/api2/json{path}", body=content, kind="application/x-www-form-urlencoded" if content else ""
        )
        if status >= 400:
            raise Refused(status, reason, answer)
        return json.loads(answer)["data"]

    async def finish(self, upid: object) -> None:
        """Wait for a task of fakepve's. Raises :class:`LabError` with its exit status when it failed."""
        if not isinstance(upid, str) or not upid.startswith("UPID:"):
            return
        for _ in range(600):
            status = await self.call("GET", f"/nodes/{NODE}/tasks/{upid}/status")
            if status["status"] == "stopped":
                if status["exitstatus"] != "OK":
                    raise LabError(str(status["exitstatus"]))
                return
            await asyncio.sleep(0.05)
        raise LabError(f"fakepve's task {upid} does not end")


class Gateway:
    """Connects the API with the containers."""

    def __init__(self, configs: GuestConfigs, containers: Containers, fakepve: Fakepve, token: str) -> None:
        self._configs, self._containers, self._fakepve, self._token = configs, containers, fakepve, token
        self._tasks: dict[str, Task] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._locks: dict[int, asyncio.Lock] = {}
        self._tickets: dict[str, str] = {}
        self._seen: dict[int, bool] = {}
        self._count = 0

    def application(self, *, trusted: bool) -> web.Application:
        """The web application; ``trusted`` callers (the socket of the Proxmox host) need no login."""

        async def handle(request: web.Request) -> web.StreamResponse:
            return await self._handle(request, trusted)

        application = web.Application(client_max_size=1 << 26)
        application.router.add_route("*", "/{path:.*}", handle)
        return application

    # ------------------------------------------------------------------ requests

    async def _handle(self, request: web.Request, trusted: bool) -> web.StreamResponse:
        credential = request.headers.get("Authorization", "")
        by_token = credential.startswith("PVEAPIToken=")
        if by_token and not hmac.compare_digest(credential.removeprefix("PVEAPIToken=").encode(), self._token.encode()):
            return web.Response(status=401, reason="invalid token value!")
        owner = trusted or by_token or self._has_ticket(request)
        path = re.sub(r"^/api2/(json|extjs)", "", request.path)
        try:
            if owner:
                form = await _form(request)
                if by_token:
                    await self._refuse_what_only_root_may(request.method, path, form)
                answer = await self._own(request.method, path, form)
                if answer is not None:
                    return web.json_response({"data": answer[0]})
            return await self._pass_on(request, owner)
        except Refused as refusal:
            return web.Response(
                status=refusal.status, reason=refusal.reason, body=refusal.body, content_type="application/json"
            )
        except LabError as error:
            text = str(error)
            return web.json_response(
                {"data": None, "message": f"{text}\n"},
                status=500,
                reason=text.replace("\n", " ").encode("ascii", "replace").decode(),
            )

    def _has_ticket(self, request: web.Request) -> bool:
        """Whether the call carries a ticket that was given out here, and for a change its CSRF token too."""
        token = self._tickets.get(urllib.parse.unquote(request.cookies.get("PVEAuthCookie", "")))
        return token is not None and (
            request.method == "GET" or hmac.compare_digest(request.headers.get("CSRFPreventionToken", ""), token)
        )

    async def _refuse_what_only_root_may(self, method: str, path: str, form: Form) -> None:
        """Raise :class:`Refused` for what Proxmox leaves to ``root@pam`` with its password: no token may do it."""
        container = re.fullmatch(rf"/nodes/{NODE}/lxc(?:/(\d+)/config)?", path)
        if container is None or method not in ("POST", "PUT"):
            return
        unprivileged = form.get("unprivileged", "1")
        if container[1]:
            unprivileged = self._configs.load(int(container[1])).options.get("unprivileged", "0")
        wanted = properties(form.get("features", ""))
        if container[1] and "features" in form:
            before = properties(self._configs.load(int(container[1])).options.get("features", ""))
            wanted = {key: value for key, value in wanted.items() if before.get(key) != value}
        if wanted and unprivileged not in ("1", "true"):
            raise _forbidden("changing feature flags for privileged container is only allowed for root@pam")
        if set(wanted) - {"nesting"}:
            raise _forbidden("changing feature flags (except nesting) is only allowed for root@pam")
        for key, value in form.items():
            if re.fullmatch(r"dev\d+", key):
                raise _forbidden("configuring device passthrough is only allowed for root@pam")
            if re.fullmatch(r"mp\d+", key) and value.split(",")[0].removeprefix("volume=").startswith("/"):
                kind = "device" if value.removeprefix("volume=").startswith("/dev/") else "bind"
                raise _forbidden(f"mount point type {kind} is only allowed for root@pam")
            if key == "hookscript":
                raise _forbidden("changing the hookscript is only allowed for root@pam")

    async def _pass_on(self, request: web.Request, owner: bool) -> web.StreamResponse:
        own = ("Authorization", "Cookie", "CSRFPreventionToken")
        headers = None if owner else {name: request.headers[name] for name in own if name in request.headers}
        status, reason, content, kind = await self._fakepve.raw(
            request.method,
            request.path,
            query=request.query_string,
            body=await request.read(),
            kind=request.headers.get("Content-Type", ""),
            headers=headers,
        )
        if request.path.endswith("/access/ticket") and status == 200:
            given = json.loads(content)["data"]
            if "NeedTFA" not in given:
                self._tickets[given["ticket"]] = given["CSRFPreventionToken"]
        return web.Response(status=status, reason=reason, body=content, headers={"Content-Type": kind})

    async def _own(self, method: str, path: str, form: Form) -> tuple[object] | None:
        """Do what the gateway does itself; None: fakepve answers."""
        task = re.fullmatch(rf"/nodes/{NODE}/tasks/([^/]+)/(status|log)", path)
        if task and (known := self._tasks.get(task[1])):
            if task[2] == "status":
                return (known.status(),)
            return ([{"n": number, "t": line} for number, line in enumerate(known.lines, 1)],)
        if method == "POST" and path == f"/nodes/{NODE}/lxc":
            return (await self._create(form),)
        if method == "GET" and path == f"/nodes/{NODE}/lxc":
            return ([self._as_it_is(one) for one in await self._fakepve.call("GET", path)],)
        if method == "GET" and path == f"/nodes/{NODE}/query-url-metadata":
            _require(form, "url")
            return (await _metadata(form["url"]),)
        if method == "POST" and path == f"/nodes/{NODE}/storage/local/download-url":
            return (self._download(form),)
        content = re.fullmatch(
            rf"/nodes/{NODE}/storage/local/content/(?:local:)?vztmpl/([^/]+)", path.replace("%2F", "/")
        )
        if method == "DELETE" and content:
            data = await self._fakepve.call("DELETE", path)
            (places.TEMPLATE_CACHE / content[1]).unlink(missing_ok=True)
            return (data,)
        if method != "GET" and re.match(rf"/nodes/{NODE}/(qemu|vzdump|storage/[^/]+/upload)(/|$)", path):
            raise _not_here(f"{method} {path}")
        container = re.fullmatch(rf"/nodes/{NODE}/lxc/(\d+)(/.*)?", path)
        if container is None:
            return None
        vmid, rest = int(container[1]), container[2] or ""
        if method == "GET" and rest == "/config":
            text = self._configs.text(vmid)
            view = parse(text).api_view(current=form.get("current", "0") in ("1", "true"))
            return ({**view, "digest": digest(text)},)
        if method == "GET" and rest == "/interfaces":
            return (_interfaces(self._configs.load(vmid)) if self._containers.running(vmid) else [],)
        if method == "GET" and rest == "/status/current":
            await self._follow(vmid)
            return (self._as_it_is(await self._fakepve.call("GET", path)),)
        if method == "PUT" and rest in ("/config", "/resize"):
            async with self._lock(vmid):
                await self._learn(vmid, print)
                asked = dict(form)
                expected = asked.pop("digest", "")
                if expected and expected != digest(self._configs.text(vmid)):
                    raise LabError("detected modified configuration - file changed by other user? Try again.")
                data = await self._fakepve.call("PUT", path, asked)
                await self._fakepve.finish(data)
                await self._save(vmid)
            return (data,)
        if method == "DELETE" and rest == "":
            return (await self._delete(vmid, form),)
        action = re.fullmatch(r"/status/(start|stop|shutdown|reboot)", rest)
        if method == "POST" and action:
            return (await self._power(vmid, action[1], form),)
        if method != "GET":
            raise _not_here(f"{method} {path}")
        return None

    # ------------------------------------------------------------------ tasks

    def _begin(self, kind: str, subject: str, work: Work) -> str:
        self._count += 1
        now = int(time.time())
        upid = f"UPID:{NODE}:{os.getpid():08X}:{self._count:08X}:{now:08X}:{kind}:{subject}:root@pam:"
        task = self._tasks[upid] = Task(upid=upid, kind=kind, subject=subject)

        async def run() -> None:
            try:
                await work(task.lines.append)
            except LabError as error:
                task.exit_status = str(error)
            except Refused as refusal:
                task.exit_status = refusal.reason
            except OSError as error:
                task.exit_status = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            else:
                task.exit_status = "OK"
            task.lines.append("TASK OK" if task.exit_status == "OK" else f"TASK ERROR: {task.exit_status}")
            print(f"{kind} {subject}: {task.exit_status}", flush=True)

        running = asyncio.create_task(run())
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        return upid

    def _lock(self, vmid: int) -> asyncio.Lock:
        return self._locks.setdefault(vmid, asyncio.Lock())

    # ------------------------------------------------------------------ containers

    async def _create(self, form: Form) -> str:
        asked = dict(form)
        start = asked.pop("start", "0") in ("1", "true")
        checked = await self._fakepve.call("POST", f"/nodes/{NODE}/lxc", asked)
        try:
            await self._fakepve.finish(checked)
        except LabError:
            return str(checked)  # a task of fakepve's, which says there what is wrong
        vmid = int(form["vmid"])
        template = places.TEMPLATE_CACHE / form["ostemplate"].rsplit("/", 1)[-1]

        async def work(log: Callable[[str], None]) -> None:
            async with self._lock(vmid):
                try:
                    if not template.exists():
                        raise LabError(f"volume '{form['ostemplate']}' does not exist")
                    await self._save(vmid)
                    config = self._configs.load(vmid)
                    await asyncio.to_thread(
                        self._containers.create,
                        vmid,
                        config,
                        template,
                        form.get("ssh-public-keys", ""),
                        form.get("password", ""),
                        log,
                    )
                except (LabError, OSError) as error:
                    await self._fakepve.finish(await self._fakepve.call("DELETE", f"/nodes/{NODE}/lxc/{vmid}"))
                    self._configs.remove(vmid)
                    raise LabError(f"unable to create CT {vmid} - {error}") from error
                if start:
                    await self._start(vmid, log)

        return self._begin("vzcreate", str(vmid), work)

    async def _delete(self, vmid: int, form: Form) -> str:
        await self._follow(vmid)
        await self._fakepve.finish(await self._fakepve.call("DELETE", f"/nodes/{NODE}/lxc/{vmid}", form))

        async def work(log: Callable[[str], None]) -> None:
            async with self._lock(vmid):
                await asyncio.to_thread(self._containers.destroy, vmid)
                self._configs.remove(vmid)

        return self._begin("vzdestroy", str(vmid), work)

    async def _power(self, vmid: int, action: str, form: Form) -> str:
        self._configs.load(vmid)
        await self._follow(vmid)
        path = f"/nodes/{NODE}/lxc/{vmid}/status"
        # Proxmox refuses these at once, before there is a task
        if not self._lock(vmid).locked() and self._containers.running(vmid) == (action == "start"):
            raise LabError(f"CT {vmid} {'already' if action == 'start' else 'not'} running")
        seconds = float(form.get("timeout", SHUTDOWN_SECONDS))
        force = form.get("forceStop", "0") in ("1", "true")

        async def halt(log: Callable[[str], None]) -> None:
            if await asyncio.to_thread(self._containers.shutdown, vmid, seconds):
                return
            if not force and action != "reboot":
                raise LabError(f"container did not stop within {seconds:.0f} seconds")
            log("container did not stop in time, killing it")
            await asyncio.to_thread(self._containers.kill, vmid)

        async def work(log: Callable[[str], None]) -> None:
            async with self._lock(vmid):
                if action == "start":
                    await self._start(vmid, log)
                    return
                if not self._containers.running(vmid):
                    raise LabError(f"CT {vmid} not running")
                if action == "stop":
                    await asyncio.to_thread(self._containers.kill, vmid)
                else:
                    await halt(log)
                await self._fakepve.finish(await self._fakepve.call("POST", f"{path}/stop"))
                await self._save(vmid)
                if action == "reboot":
                    await self._start(vmid, log)

        return self._begin(f"vz{action}", str(vmid), work)

    async def _start(self, vmid: int, log: Callable[[str], None]) -> None:
        if self._containers.running(vmid):
            raise LabError(f"CT {vmid} already running")
        path = f"/nodes/{NODE}/lxc/{vmid}/status"
        await self._learn(vmid, log)
        await self._fakepve.finish(await self._fakepve.call("POST", f"{path}/start"))
        await self._save(vmid)
        try:
            await asyncio.to_thread(self._containers.start, vmid, self._configs.load(vmid), log)
        except (LabError, OSError):
            await self._fakepve.finish(await self._fakepve.call("POST", f"{path}/stop"))
            raise

    def _as_it_is(self, shown: Mapping[str, object]) -> dict[str, object]:
        """A container's status with the real state: fakepve has it running as soon as its start begins."""
        running = self._containers.running(int(str(shown["vmid"])))
        return {**shown, "status": "running" if running else "stopped"}

    async def _follow(self, vmid: int) -> None:
        """Let fakepve know of a container that ended by itself, or was started or stopped behind its back."""
        if self._lock(vmid).locked() or vmid not in self._configs.ids():
            return
        try:
            said = (await self._fakepve.call("GET", f"/nodes/{NODE}/lxc/{vmid}/status/current"))["status"]
            is_running = self._containers.running(vmid)
            if (said == "running") != is_running:
                path = f"/nodes/{NODE}/lxc/{vmid}/status/{'start' if is_running else 'stop'}"
                await self._fakepve.finish(await self._fakepve.call("POST", path))
                if not is_running:
                    await asyncio.to_thread(self._containers.stopped, vmid)
        except Refused as refusal:
            print(f"container {vmid}: fakepve: {refusal}", flush=True)

    async def _learn(self, vmid: int, log: Callable[[str], None]) -> None:
        """Tell fakepve of options that root has changed in the container's file. The caller has the container's lock.

        What Proxmox could not use either is logged, and the file keeps the old value.
        """
        held = await self._fakepve.call("GET", f"/nodes/{NODE}/lxc/{vmid}/pending")
        has = _options({item["key"]: item["value"] for item in held if "value" in item})
        stands = self._configs.load(vmid).options
        changed = {key: value for key, value in stands.items() if has.get(key) != value}
        gone = sorted(set(has) - set(stands))
        if not changed and not gone:
            return
        for form in [{key: value} for key, value in changed.items()] + [{"delete": key} for key in gone]:
            try:
                await self._fakepve.call("PUT", f"/nodes/{NODE}/lxc/{vmid}/config", form)
            except Refused:
                line = next(f"{key}: {value}" for key, value in form.items())
                log(f"vm {vmid} - unable to use the line '{line}' of the configuration")

    async def _save(self, vmid: int) -> None:
        """Write what fakepve holds into the container's file; raw lines are nobody's but root's and stay."""
        path = f"/nodes/{NODE}/lxc/{vmid}"
        effective = await self._fakepve.call("GET", f"{path}/pending")
        old = self._configs.load(vmid) if vmid in self._configs.ids() else GuestConfig()
        values = {item["key"]: item["value"] for item in effective if "value" in item}
        description = str(values.get("description", ""))
        pending: dict[str, str | None] = {
            item["key"]: None if item.get("delete") else str(item["pending"])
            for item in effective
            if item.get("delete") or "pending" in item
        }
        self._configs.save(
            vmid,
            GuestConfig(
                options=_options(values),
                raw=old.raw,
                description=description if not description or description.endswith("\n") else f"{description}\n",
                pending=pending,
                snapshots=old.snapshots,
            ),
        )

    # ------------------------------------------------------------------ downloads

    def _download(self, form: Form) -> str:
        _require(form, "url", "filename", "content")
        name = form["filename"]
        if form["content"] != "vztmpl":
            raise _not_here(f"content of the kind '{form['content']}'")
        if not re.fullmatch(r"[A-Za-z0-9._+-]+\.tar\.(zst|gz|xz)", name):
            raise LabError(f"wrong file extension or name: '{name}'")
        target = places.TEMPLATE_CACHE / name
        if target.exists():
            raise LabError(f"refusing to override existing file '{name}'")

        async def work(log: Callable[[str], None]) -> None:
            places.TEMPLATE_CACHE.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f"{name}.tmp.{os.getpid()}.{self._count}")
            try:
                log(f"downloading {form['url']} to {target}")
                await _fetch(form["url"], part)
                expected = form.get("checksum", "").lower()
                if expected:
                    algorithm = form.get("checksum-algorithm", "sha256")
                    got = await asyncio.to_thread(_checksum, part, algorithm)
                    if got != expected:
                        raise LabError(f"checksum mismatch: got '{got}' != expect '{expected}'")
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)
            await self._register(target)

        return self._begin("download", name, work)

    async def _register(self, template: Path) -> None:
        """Let fakepve list a template that lies on disk, with its true size."""
        form = {
            "url": "http://localhost/",
            "filename": template.name,
            "content": "vztmpl",
            # fakepve's own parameter
            "size": str(template.stat().st_size),
        }
        await self._fakepve.finish(await self._fakepve.call("POST", f"/nodes/{NODE}/storage/local/download-url", form))

    # ------------------------------------------------------------------ start and running

    async def restore(self) -> None:
        """Tell fakepve of the templates on disk and of what runs; after a boot, start what Proxmox starts then."""
        for template in sorted(places.TEMPLATE_CACHE.glob("*.tar.*")):
            await self._register(template)
        for vmid in self._configs.ids():
            await self._follow(vmid)
        # the directory is empty after a boot; without the mark, what somebody switched off would come back with
        # every restart of this process
        booted = places.RUNTIME / "pve1-booted"
        if not booted.exists():
            booted.touch()
            waiting = []
            for vmid in self._configs.ids():
                options = self._configs.load(vmid).options
                if options.get("onboot") == "1" and not self._containers.running(vmid):
                    startup = properties(options.get("startup", ""))
                    order = startup.get("order", "")
                    waiting.append((int(order) if order else 1 << 30, vmid, float(startup.get("up", "0"))))
            starting = asyncio.create_task(self._start_in_order(sorted(waiting)))
            self._running.add(starting)
            starting.add_done_callback(self._running.discard)

    async def _start_in_order(self, waiting: list[tuple[int, int, float]]) -> None:
        """Start containers one after the other: (order, id, seconds to wait after it)."""
        for _, vmid, pause in waiting:

            async def work(log: Callable[[str], None], vmid: int = vmid) -> None:
                async with self._lock(vmid):
                    if not self._containers.running(vmid):
                        await self._start(vmid, log)

            task = self._tasks[self._begin("vzstart", str(vmid), work)]
            while task.exit_status is None:
                await asyncio.sleep(0.05)
            await asyncio.sleep(pause)

    async def watch(self) -> None:
        """Follow containers that end by themselves, and take over the monitors that nobody else would wait for."""
        for look in itertools.count():
            await asyncio.sleep(LOOK_SECONDS)
            for vmid in self._configs.ids():
                running = self._containers.running(vmid)
                if self._seen.get(vmid) != running and not self._lock(vmid).locked():
                    await self._follow(vmid)
                    self._seen[vmid] = running
            # this reads all of /proc
            for pid in _zombies() if look % LOOKS_BEFORE_REAPING == 0 else ():
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)


async def _form(request: web.Request) -> Form:
    """Parameters of a call: query, form or JSON. Raises :class:`Refused` when the JSON is none."""
    form = dict(request.query)
    if request.content_type != "application/json":
        return form | {key: str(value) for key, value in (await request.post()).items()}
    try:
        given = json.loads(await request.read() or b"{}").items()
    except (ValueError, AttributeError):
        raise _refused(400, "request body is not a JSON object") from None
    return form | {key: str(int(value)) if isinstance(value, bool) else str(value) for key, value in given}


def _refused(status: int, reason: str, errors: Mapping[str, str] | None = None) -> Refused:
    body: dict[str, object] = {"data": None, "message": f"{reason}\n"}
    return Refused(status, reason, json.dumps({**body, "errors": dict(errors)} if errors else body).encode())


def _forbidden(why: str) -> Refused:
    return _refused(403, f"Permission check failed ({why})")


def _not_here(what: str) -> Refused:
    return _refused(501, f"Method not implemented: the lab has no {what}")


def _require(form: Form, *names: str) -> None:
    """Raise :class:`Refused`, as Proxmox words it, when a parameter is missing."""
    missing = {name: "property is missing and it is not optional" for name in names if not form.get(name)}
    if missing:
        raise _refused(400, "Parameter verification failed.", missing)


def _options(values: Mapping[str, object]) -> dict[str, str]:
    """Options as they stand in a container's file: a privileged container has no line that says so."""
    options = from_api(values)
    if options.get("unprivileged") == "0":
        del options["unprivileged"]
    return options


def _interfaces(config: GuestConfig) -> list[dict[str, str]]:
    """The network cards of a running container, as the API shows them."""
    shown = [{"name": "lo", "hwaddr": "00:00:00:00:00:00", "inet": "127.0.0.1/8"}]
    for key in sorted(key for key in config.options if re.fullmatch(r"net\d+", key)):
        card = properties(config.options[key])
        if "/" in card.get("ip", ""):
            shown.append({"name": card.get("name", ""), "hwaddr": card.get("hwaddr", "").lower(), "inet": card["ip"]})
    return shown


async def _fetch(url: str, target: Path) -> None:
    timeout = aiohttp.ClientTimeout(total=DOWNLOAD_SECONDS, sock_connect=15)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as answer:
            if answer.status != 200:
                raise LabError(f"download failed: {url}: {answer.status} {answer.reason}")
            with target.open("wb") as file:
                async for chunk in answer.content.iter_chunked(1 << 20):
                    file.write(chunk)
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        raise LabError(f"download failed: {url}: {error or type(error).__name__}") from error


async def _metadata(url: str) -> dict[str, object]:
    timeout = aiohttp.ClientTimeout(total=30, sock_connect=15)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session, session.head(url, allow_redirects=True) as answer:
            if answer.status != 200:
                raise LabError(f"invalid server response: '{answer.status} {answer.reason}'")
            return {
                "filename": url.rsplit("/", 1)[-1],
                "mimetype": answer.content_type,
                "size": int(answer.headers.get("Content-Length", "0")),
            }
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        raise LabError(f"{url} cannot be reached: {error or type(error).__name__}") from error


def _checksum(path: Path, algorithm: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest()
    except ValueError as error:
        raise LabError(f"checksum algorithm '{algorithm}' is not known") from error


def _zombies() -> list[int]:
    """Ended LXC monitors whose parent is this process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name, _, rest = (entry / "stat").read_text().rpartition(")")
            except (FileNotFoundError, ProcessLookupError):
                continue
            fields = rest.split()
            if fields[0] == "Z" and int(fields[1]) == os.getpid() and "lxc" in name:
                found.append(int(entry.name))
    return found


def _die_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)


def guests(configs: GuestConfigs) -> dict[str, object]:
    """fakepve's guests file: the containers as their files describe them."""
    listed = []
    for vmid in configs.ids():
        config = configs.load(vmid)
        options = {key: value for key, value in config.api_view(current=True).items() if key != "lxc"}
        # fakepve takes a container without this line for an unprivileged one, Proxmox VE for a privileged one
        options.setdefault("unprivileged", 0)
        listed.append(
            {"type": "lxc", "vmid": vmid, "name": config.hostname, "node": NODE, "status": "stopped", "config": options}
        )
    return {"guests": listed}


async def serve() -> None:
    """Run until told to end, or until fakepve ends."""
    configs = GuestConfigs(places.GUEST_CONFIGS)
    containers = Containers(places.CONTAINERS, places.TEMPLATE_ROOTS, lxc_config.Machine.detect())
    for folder in (
        places.GUEST_CONFIGS,
        places.CONTAINERS,
        places.TEMPLATE_CACHE,
        places.TEMPLATE_ROOTS,
        places.RUNTIME,
    ):
        folder.mkdir(parents=True, exist_ok=True)
    guests_file = places.RUNTIME / "guests.json"
    guests_file.write_text(json.dumps(guests(configs)), encoding="utf-8")
    fakepve = Fakepve(guests_file, places.API_PASSWORD.read_text(encoding="utf-8").strip())
    await fakepve.start()
    gateway = Gateway(configs, containers, fakepve, places.API_TOKEN.read_text(encoding="utf-8").strip())
    await gateway.restore()

    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(keys.API_CERTIFICATE, keys.API_KEY)
    runners = []
    for application, site in (
        (gateway.application(trusted=False), "tcp"),
        (gateway.application(trusted=True), "unix"),
    ):
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        runners.append(runner)
        if site == "tcp":
            await web.TCPSite(runner, places.PROXMOX_ADDRESS, places.PROXMOX_PORT, ssl_context=tls).start()
        else:
            places.API_SOCKET.unlink(missing_ok=True)
            await web.UnixSite(runner, str(places.API_SOCKET)).start()
            places.API_SOCKET.chmod(0o600)
    print(f"Proxmox interface at {places.PROXMOX_ENDPOINT}", flush=True)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    waits = [asyncio.create_task(coroutine) for coroutine in (gateway.watch(), fakepve.ended(), stop.wait())]
    done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for runner in runners:
        await runner.cleanup()
    await fakepve.stop()
    if waits[2] not in done:
        for task in done:
            task.result()
        raise LabError("fakepve ended")


def main() -> int:
    """1 when the gateway cannot go on; the supervisor starts it again."""
    # What is started from here is a container, not a part of this service.
    os.environ.pop(services.MARK, None)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        asyncio.run(serve())
    except (LabError, OSError) as error:
        print(f"the Proxmox interface ended: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
