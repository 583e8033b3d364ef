"""Everything secret of one lab, made once: its certificate authority, SSH keys, the API token, the passphrase."""

from __future__ import annotations

import datetime
import ipaddress
import os
import secrets
import uuid
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lab import places
from lab.errors import LabError
from lab.processes import run

CA_KEY = places.CERTIFICATES / "ca.key"
API_CERTIFICATE = places.CERTIFICATES / "pve1.crt"
"""Certificate of the Proxmox interface, for :data:`lab.places.PROXMOX_ADDRESS` and the host's name."""
API_KEY = places.CERTIFICATES / "pve1.key"
KNOWN_HOSTS = places.STATE / "ssh" / "known_hosts"
"""The Proxmox host's key as ``ssh`` wants it."""

TOKEN_ID = "school@pve!pulumi"
MACHINE_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
"""The authorities this machine trusts (Debian's package ca-certificates)."""

VALIDITY = datetime.timedelta(days=3650)
MARGIN = datetime.timedelta(days=1)
"""How far back validity begins: the clock of a machine may be wrong."""


def make_all() -> None:
    """Make what is missing, readable by root alone; what is there stays. Raises :class:`LabError` on a failure."""
    for directory in (places.STATE, places.RUNTIME, places.PIDS):
        directory.mkdir(parents=True, exist_ok=True)
    for directory in (places.CERTIFICATES, places.SSH_KEY.parent, places.API_TOKEN.parent, places.LOGS):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
    try:
        _authority()
        _api_certificate()
        _bundle()
        _ssh_key(places.SSH_KEY, "school-lab")
        _ssh_key(places.PROXMOX_HOST_KEY, f"root@{places.PROXMOX_NODE}")
        _once(places.API_TOKEN, lambda: f"{TOKEN_ID}={uuid.uuid4()}\n")
        _once(places.API_PASSWORD, lambda: f"{secrets.token_urlsafe(24)}\n")
        _once(places.PASSPHRASE, lambda: f"{secrets.token_urlsafe(32)}\n")
        _known_hosts()
        _authorized_keys()
    except OSError as error:
        raise LabError(f"The lab's keys could not be written: {error.strerror}: {error.filename}") from error


def write_private(path: Path, content: bytes) -> None:
    """Write ``path`` with mode 0600 in one step: a reader or a power failure meets the old content or the new."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _once(path: Path, make: Callable[[], str]) -> None:
    if not path.exists():
        write_private(path, make().encode())


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _draft(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - MARGIN)
        .not_valid_after(now + VALIDITY)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _authority() -> None:
    if CA_KEY.exists() and places.CA_CERTIFICATE.exists():
        return
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(f"School lab CA {uuid.uuid4().hex[:8]}")
    certificate = (
        _draft(subject, subject, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    API_CERTIFICATE.unlink(missing_ok=True)  # signed by the authority that this one replaces
    write_private(CA_KEY, _private_pem(key))
    write_private(places.CA_CERTIFICATE, certificate.public_bytes(serialization.Encoding.PEM))


def _api_certificate() -> None:
    if API_KEY.exists() and API_CERTIFICATE.exists():
        return
    authority = x509.load_pem_x509_certificate(places.CA_CERTIFICATE.read_bytes())
    signer = serialization.load_pem_private_key(CA_KEY.read_bytes(), password=None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise LabError(f"{CA_KEY} holds no key of the lab's: run `school lab down`, then `school lab up`.")
    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address(places.PROXMOX_ADDRESS))]
    names += [x509.DNSName(name) for name in (places.PROXMOX_NODE, f"{places.PROXMOX_NODE}.schule.lan")]
    certificate = (
        _draft(_name(places.PROXMOX_NODE), authority.subject, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    write_private(API_KEY, _private_pem(key))
    write_private(API_CERTIFICATE, certificate.public_bytes(serialization.Encoding.PEM))


def _bundle() -> None:
    machine = MACHINE_BUNDLE.read_bytes() if MACHINE_BUNDLE.exists() else b""
    wanted = machine.rstrip() + b"\n" + places.CA_CERTIFICATE.read_bytes()
    if not places.CA_BUNDLE.exists() or places.CA_BUNDLE.read_bytes() != wanted:
        write_private(places.CA_BUNDLE, wanted)


def _ssh_key(path: Path, comment: str) -> None:
    public = path.with_suffix(".pub")
    if path.exists() and public.exists():
        return
    path.unlink(missing_ok=True)
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path])


def _public(path: Path) -> str:
    return path.with_suffix(".pub").read_text(encoding="utf-8").strip()


def _known_hosts() -> None:
    line = f"{places.PROXMOX_ADDRESS} {' '.join(_public(places.PROXMOX_HOST_KEY).split()[:2])}\n"
    write_private(KNOWN_HOSTS, line.encode())


def _authorized_keys() -> None:
    """Let the lab's key log in on the Proxmox host; keys that somebody added there stay."""
    places.AUTHORIZED_KEYS.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = _public(places.SSH_KEY)
    there = places.AUTHORIZED_KEYS.read_text(encoding="utf-8") if places.AUTHORIZED_KEYS.exists() else ""
    if key not in there.splitlines():
        write_private(places.AUTHORIZED_KEYS, f"{there.rstrip()}\n{key}\n".lstrip().encode())
