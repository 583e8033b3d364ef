"""``pct`` of the lab's Proxmox host: the part of Proxmox's command that people and this project use.

It asks the Proxmox interface over its socket, so that what ``pct`` does and what the API says are one. It is run as a
program on its own (``python -P pct.py``), with nothing but Python's library.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import subprocess
import sys
import time
import urllib.parse
from typing import Any

RUNTIME = os.environ.get("SCHOOL_LAB_RUNTIME", "/run/school-lab")
STATE = os.environ.get("SCHOOL_LAB_STATE", "/var/lib/school-lab")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NODE = "pve1"


class Failure(Exception):
    """What went wrong, in Proxmox's words."""


class Connection(http.client.HTTPConnection):
    """HTTP over the socket of the Proxmox interface."""

    def connect(self) -> None:
        """Open the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(f"{RUNTIME}/pve1.sock")


def call(method: str, path: str, form: dict[str, str] | None = None) -> Any:
    """One call of the API; returns its ``data``. Raises :class:`Failure`."""
    connection = Connection("pve1", timeout=600)
    headers = {"Content-Type": "application/x-www-form-urlencoded"} if form else {}
    try:
        connection.request(method, f"/api2/json/nodes/{NODE}{path}", urllib.parse.urlencode(form or {}), headers)
        answer = connection.getresponse()
        body = answer.read()
    except OSError as error:
        raise Failure(f"the Proxmox interface does not answer: {error}") from error
    if answer.status >= 400:
        raise Failure(answer.reason)
    return json.loads(body)["data"]


def wait(upid: str) -> None:
    """Wait for a task. Raises :class:`Failure` with its log when it failed."""
    while True:
        status = call("GET", f"/tasks/{urllib.parse.quote(upid, safe='')}/status")
        if status["status"] == "stopped":
            break
        time.sleep(0.05)
    if status["exitstatus"] != "OK":
        for line in call("GET", f"/tasks/{urllib.parse.quote(upid, safe='')}/log")[:-1]:
            print(line["t"], file=sys.stderr)
        raise Failure(status["exitstatus"])


def power(action: str, options: argparse.Namespace) -> None:
    """Start, stop, shut down or reboot a container, and wait for it."""
    form = {}
    if getattr(options, "timeout", None) is not None:
        form["timeout"] = str(options.timeout)
    if getattr(options, "forceStop", None) is not None:
        form["forceStop"] = options.forceStop
    wait(call("POST", f"/lxc/{options.vmid}/status/{action}", form))


def attached(vmid: int, command: list[str]) -> list[str]:
    """``command`` as it has to be called to run in the container."""
    variables = ["-v", f"PATH={PATH}", "-v", "HOME=/root", "-v", f"TERM={os.environ.get('TERM', 'dumb')}"]
    words = ["lxc-attach", "-P", f"{STATE}/containers", "-n", str(vmid), "--clear-env", *variables]
    return [*words, "--", *command]


def attach(vmid: int, command: list[str]) -> None:
    """Replace this program by ``command`` in the container."""
    os.execvp("lxc-attach", attached(vmid, command))


def require_running(vmid: int) -> None:
    """Raise :class:`Failure` unless the container runs."""
    if call("GET", f"/lxc/{vmid}/status/current")["status"] != "running":
        raise Failure(f"CT {vmid} not running!")


def copy(options: argparse.Namespace) -> None:
    """Copy one file into the container (push) or out of it (pull). Raises :class:`Failure`."""
    try:
        if options.command == "push":
            write = ["sh", "-c", 'cat >"$1" && chmod "$2" "$1"', "sh", options.target, options.perms]
            with open(options.source, "rb") as source:
                code = subprocess.run(attached(options.vmid, write), stdin=source, check=False).returncode
        else:
            with open(options.target, "wb") as target:
                read = attached(options.vmid, ["cat", "--", options.source])
                code = subprocess.run(read, stdin=subprocess.DEVNULL, stdout=target, check=False).returncode
    except OSError as error:
        raise Failure(f"{error.filename}: {error.strerror}") from error
    if code:
        raise Failure(f"{options.command} of {options.source} failed")


def main() -> int:
    """Exit code 0, or 255 as Proxmox's own ``pct``."""
    parser = argparse.ArgumentParser(prog="pct")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list")
    for name in ("status", "config", "start", "stop", "shutdown", "reboot", "destroy", "enter", "exec"):
        command = commands.add_parser(name)
        command.add_argument("vmid", type=int)
        if name in ("shutdown", "reboot"):
            command.add_argument("--timeout", type=int)
        if name == "shutdown":
            command.add_argument("--forceStop", choices=("0", "1"))
        if name == "exec":
            command.add_argument("words", nargs=argparse.REMAINDER)
    for name in ("push", "pull"):
        command = commands.add_parser(name)
        command.add_argument("vmid", type=int)
        command.add_argument("source")
        command.add_argument("target")
        command.add_argument("--perms", default="0644")
    options = parser.parse_args()
    try:
        if options.command == "list":
            print(f"{'VMID':<11}{'Status':<11}{'Lock':<13}Name")
            for one in sorted(call("GET", "/lxc"), key=lambda found: int(found["vmid"])):
                print(f"{one['vmid']:<11}{one['status']:<11}{one.get('lock') or '':<13}{one['name']}")
        elif options.command == "status":
            print(f"status: {call('GET', f'/lxc/{options.vmid}/status/current')['status']}")
        elif options.command == "config":
            configuration = call("GET", f"/lxc/{options.vmid}/config")
            for key in sorted(key for key in configuration if key not in ("digest", "lxc")):
                print(f"{key}: {configuration[key]}")
            for key, value in configuration.get("lxc", []):
                print(f"{key}: {value}")
        elif options.command == "destroy":
            wait(call("DELETE", f"/lxc/{options.vmid}"))
        elif options.command in ("push", "pull"):
            require_running(options.vmid)
            copy(options)
        elif options.command in ("enter", "exec"):
            require_running(options.vmid)
            words = [word for number, word in enumerate(getattr(options, "words", [])) if number or word != "--"]
            attach(options.vmid, words or ["/bin/bash", "-l"])
        else:
            power(options.command, options)
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 255
    return 0


if __name__ == "__main__":
    sys.exit(main())
