"""A copy of the pipelines' scripts that can be run: with a stack's file, a GitLab and a Proxmox on loopback."""

from __future__ import annotations

import datetime
import ipaddress
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tests.unit.gitlab_api import MERGE_REQUEST, PROJECT, TOKEN, Server, serving

ROOT = Path(__file__).resolve().parents[2]
PASSPHRASE = "correct-horse-battery-staple"
LIMIT_SECONDS = 180

ON_MAIN: Mapping[str, str | None] = {
    "CI_PIPELINE_SOURCE": "push",
    "CI_MERGE_REQUEST_IID": None,
    "CI_COMMIT_BRANCH": "main",
}
"""What is different in the pipeline after merging."""
BY_HAND: Mapping[str, str | None] = {**ON_MAIN, "CI_PIPELINE_SOURCE": "web"}
"""What is different in a pipeline that was started by hand."""


@dataclass
class Project:
    """The folder a job works in, and the environment it is given."""

    folder: Path
    gitlab: Server
    environment: dict[str, str]
    commit: str = ""
    output: str = field(default="", init=False)
    """What the last script printed."""

    def start(self, script: str, **variables: str | None) -> subprocess.Popen[str]:
        """Start a script of ``.ci``; a variable that is None is not set."""
        environment = {name: value for name, value in {**self.environment, **variables}.items() if value is not None}
        return subprocess.Popen(
            [f".ci/{script}"],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A runner ends a job by signalling everything that belongs to it.
            start_new_session=True,
        )

    def run(self, script: str, **variables: str | None) -> int:
        """Run a script to its end; nothing that it prints may be a secret or a traceback."""
        with self.start(script, **variables) as process:
            self.output, _ = process.communicate(timeout=LIMIT_SECONDS)
        assert PASSPHRASE not in self.output
        assert TOKEN not in self.output
        assert "Traceback" not in self.output
        return process.returncode

    def note(self) -> str:
        """The text of the merge request's only note."""
        (note,) = self.gitlab.notes
        assert PASSPHRASE not in note["body"]
        return str(note["body"])

    def save(self, **files: str) -> None:
        """Write files of the folder (``__`` in a name is a dot) and commit them all."""
        for name, content in files.items():
            (self.folder / name.replace("__", ".")).write_text(content)
        identity = ["-c", "user.name=x", "-c", "user.email=x@localhost"]
        for words in (["add", "--all"], ["commit", "-q", "-m", "one"]):
            subprocess.run(["git", *identity, *words], cwd=self.folder, check=True, timeout=LIMIT_SECONDS)
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=self.folder, check=True, capture_output=True, text=True)
        self.commit = head.stdout.strip()
        self.gitlab.head = self.gitlab.commit = self.environment["CI_COMMIT_SHA"] = self.commit

    def merge(self) -> None:
        """Merge the merge request; its commit becomes that of the default branch."""
        self.gitlab.merge_requests = [
            {"iid": 5, "state": "merged", "target_branch": "main", "sha": self.commit, "merge_commit_sha": None}
        ]


@contextmanager
def project_in(folder: Path, path: str) -> Iterator[Project]:
    """A project without a stack's file, in the pipeline of a merge request; ``path`` is its PATH."""
    place = folder / "project"
    place.mkdir()
    shutil.copytree(ROOT / ".ci", place / ".ci")
    (place / ".venv").symlink_to(sys.prefix)
    (place / ".gitignore").write_text(".venv\n/plan/\n/drift/\n/state/\n")
    subprocess.run(["git", "init", "-q"], cwd=place, check=True, timeout=LIMIT_SECONDS)
    with serving(Server()) as gitlab:
        environment = {
            "PATH": path,
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "PULUMI_BACKEND_URL": f"file://{place / 'state'}",
            "PULUMI_CONFIG_PASSPHRASE": PASSPHRASE,
            "SCHOOL_GITLAB_TOKEN": TOKEN,
            "CI_API_V4_URL": f"{gitlab.address}/api/v4",
            "CI_PROJECT_ID": PROJECT,
            "CI_PIPELINE_SOURCE": "merge_request_event",
            "CI_MERGE_REQUEST_IID": MERGE_REQUEST,
        }
        yield Project(folder=place, gitlab=gitlab, environment=environment)


def certificate(folder: Path) -> ssl.SSLContext:
    """A context for a server with a certificate that nobody signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pve1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, SHA256())
    )
    file = folder / "proxmox.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(private + made.public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


@contextmanager
def proxmox_in(folder: Path) -> Iterator[str]:
    """The address of a Proxmox API that asks for a token; its certificate is put into ``folder``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401, "No ticket")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = certificate(folder).wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def stack_file(endpoint: str, *, insecure: bool = True) -> str:
    """The school's file with another Proxmox."""
    content = yaml.safe_load((ROOT / "Pulumi.school.yaml").read_text(encoding="utf-8"))
    content["config"]["school-postgres:proxmox"] |= {"endpoint": endpoint, "insecureTls": insecure}
    return yaml.safe_dump(content)
