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
import json
import os
import re
import signal
import ssl
import sys
import time
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
from lab.proxmox.guest_config import GuestConfig, GuestConfigs, from_api, properties

NODE = places.PROXMOX_NODE
FAKEPVE = f"https://{places.FAKEPVE_ADDRESS}:{places.PROXMOX_PORT}"
FAKEPVE_READY_SECONDS = 20.0
LOOK_SECONDS = 0.5
"""How often the gateway looks for containers that ended by themselves."""
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
        body = aiohttp.FormData(form or {})() if form else None
        content = bytes(body._value) if body is not None and isinstance(body, aiohttp.BytesPayload) else b""
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
        owner = trusted
        if credential.startswith("PVEAPIToken="):
            given = credential.removeprefix("PVEAPIToken=").encode()
            if not hmac.compare_digest(given, self._token.encode()):
                return web.Response(status=401, reason="invalid token value!")
            owner = True
        path = re.sub(r"^/api2/(json|extjs)", "", request.path)
        form = {key: str(value) for key, value in (await request.post()).items()} if request.can_read_body else {}
        form |= dict(request.query)
        if owner and request.content_type == "application/json" and request.can_read_body:
            form = {key: str(value) for key, value in json.loads(await request.read() or b"{}").items()}
        try:
            if owner:
                answer = await self._own(request.method, path, form)
                if answer is not None:
                    return web.json_response({"data": answer[0]})
            return await self._pass_on(request, owner)
        except Refused as refusal:
            return web.Response(
                status=refusal.status, reason=refusal.reason, body=refusal.body, content_type="application/json"
            )
        except LabError as error:
            return web.json_response({"data": None}, status=500, reason=str(error).replace("\n", " "))

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
        if method == "GET" and path == f"/nodes/{NODE}/query-url-metadata":
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
        container = re.fullmatch(rf"/nodes/{NODE}/lxc/(\d+)(/.*)?", path)
        if container is None:
            return None
        vmid, rest = int(container[1]), container[2] or ""
        if method == "GET" and rest == "/config":
            data = await self._fakepve.call("GET", path)
            raw = self._configs.load(vmid).raw
            return ({**data, "lxc": [list(line) for line in raw]} if raw else data,)
        if method == "GET" and rest == "/interfaces":
            return (_interfaces(self._configs.load(vmid)) if self._containers.running(vmid) else [],)
        if method == "GET" and rest == "/status/current":
            await self._follow(vmid)
            return (await self._fakepve.call("GET", path),)
        if method == "PUT" and rest in ("/config", "/resize"):
            data = await self._fakepve.call("PUT", path, form)
            await self._fakepve.finish(data)
            await self._save(vmid)
            return (data,)
        if method == "DELETE" and rest == "":
            return (await self._delete(vmid, form),)
        action = re.fullmatch(r"/status/(start|stop|shutdown|reboot)", rest)
        if method == "POST" and action:
            return (await self._power(vmid, action[1], form),)
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
        await self._fakepve.finish(await self._fakepve.call("POST", f"/nodes/{NODE}/lxc", asked))
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
                except LabError:
                    await self._fakepve.finish(await self._fakepve.call("DELETE", f"/nodes/{NODE}/lxc/{vmid}"))
                    self._configs.remove(vmid)
                    raise
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
        await self._fakepve.finish(await self._fakepve.call("POST", f"{path}/start"))
        await self._save(vmid)
        try:
            await asyncio.to_thread(self._containers.start, vmid, self._configs.load(vmid), log)
        except LabError:
            await self._fakepve.finish(await self._fakepve.call("POST", f"{path}/stop"))
            raise

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
                options=from_api(values),
                raw=old.raw,
                description=description if not description or description.endswith("\n") else f"{description}\n",
                pending=pending,
                snapshots=old.snapshots,
            ),
        )

    # ------------------------------------------------------------------ downloads

    def _download(self, form: Form) -> str:
        name = form.get("filename", "")
        if not re.fullmatch(r"[A-Za-z0-9._+-]+\.tar\.(zst|gz|xz)", name):
            raise LabError(f"wrong file extension or name: '{name}'")
        target = places.TEMPLATE_CACHE / name

        async def work(log: Callable[[str], None]) -> None:
            places.TEMPLATE_CACHE.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f"{name}.tmp.{os.getpid()}")
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
            await self._fakepve.finish(
                await self._fakepve.call("POST", f"/nodes/{NODE}/storage/local/download-url", form)
            )

        return self._begin("download", name, work)

    # ------------------------------------------------------------------ start and running

    async def restore(self) -> None:
        """Tell fakepve of the templates on disk, and start what Proxmox starts at boot, in its order."""
        for template in sorted(places.TEMPLATE_CACHE.glob("*.tar.*")):
            form = {"url": "http://localhost/", "filename": template.name, "content": "vztmpl"}
            await self._fakepve.finish(
                await self._fakepve.call("POST", f"/nodes/{NODE}/storage/local/download-url", form)
            )
        for vmid in self._configs.ids():
            await self._follow(vmid)
        waiting = []
        for vmid in self._configs.ids():
            options = self._configs.load(vmid).options
            if options.get("onboot") == "1" and not self._containers.running(vmid):
                order = re.search(r"order=(\d+)", options.get("startup", ""))
                waiting.append((int(order[1]) if order else 1 << 30, vmid))
        for _, vmid in sorted(waiting):

            async def work(log: Callable[[str], None], vmid: int = vmid) -> None:
                async with self._lock(vmid):
                    await self._start(vmid, log)

            self._begin("vzstart", str(vmid), work)

    async def watch(self) -> None:
        """Follow containers that end by themselves, and take over the monitors that nobody else would wait for."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for vmid in self._configs.ids():
                await self._follow(vmid)
            for pid in _zombies():
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)


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
