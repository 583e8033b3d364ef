"""A certificate authority whose key never leaves its machine, and certificates whose keys never leave theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import pulumi

from components.remote import Host, run_script

AUTHORITY_FOLDER: Final = "/etc/school-postgres/ca"
LEAF_LIFETIME_DAYS: Final = 825
"""The longest that common TLS clients accept. ``pulumi up --replace '**-signed'`` issues again before the end: an
unchanged ``up`` runs no script."""
RENEW_BEFORE_DAYS: Final = 90


class CertificateUsage(StrEnum):
    """What a certificate proves (the extended key usage in it)."""

    SERVER = "serverAuth"
    CLIENT = "clientAuth"


@dataclass(frozen=True, kw_only=True, slots=True)
class CertificateAuthorityArgs:
    """Inputs of :class:`CertificateAuthority`."""

    host: Host
    """The machine the authority lives on."""
    common_name: str
    """Name in the authority's certificate."""


class CertificateAuthority(pulumi.ComponentResource):
    """A private certificate authority on one machine.

    Its key is made there, readable by root only; state holds its certificate and nothing secret.
    It is no general PKI: it signs what :class:`Certificate` asks for, and keeps no revocation list.
    """

    host: Host
    """The machine that signs."""
    certificate_pem: pulumi.Output[str]
    """The authority's certificate, PEM."""

    def __init__(self, name: str, args: CertificateAuthorityArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("school:index:CertificateAuthority", name, {"commonName": args.common_name}, opts)
        self.host = args.host
        made = run_script(
            f"{name}-key",
            args.host,
            "certificate-authority.sh",
            parent=self,
            variables={"directory": AUTHORITY_FOLDER, "common_name": args.common_name},
            timeout_seconds=300,
        )
        self.certificate_pem = made.stdout
        self.register_outputs({"certificate_pem": self.certificate_pem})


@dataclass(frozen=True, kw_only=True, slots=True)
class CertificateArgs:
    """Inputs of :class:`Certificate`."""

    authority: CertificateAuthority
    """Who signs."""
    host: Host
    """The machine that makes the key and uses the certificate."""
    common_name: str
    """Subject of the certificate. For a PostgreSQL client it is the database role, letter for letter."""
    usage: CertificateUsage
    """Whether it proves a server or a client."""
    alternative_names: Sequence[str]
    """Names and addresses of a server as ``DNS:gl8`` and ``IP:10.0.145.113``; empty for a client."""
    files: CertificateFiles
    """Where key, certificate and the authority's certificate are put."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for a server without names: clients check them and would refuse every connection."""
        if self.usage is CertificateUsage.SERVER and not self.alternative_names:
            raise ValueError(
                f"server certificate '{self.common_name}' needs alternative_names: clients ignore its subject."
            )


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Where a certificate lies on its machine."""

    directory: str
    """Folder on the machine."""
    file_name: str
    """Name of the files without ending."""

    @property
    def certificate(self) -> str:
        """Path of the certificate."""
        return f"{self.directory}/{self.file_name}.crt"

    @property
    def key(self) -> str:
        """Path of the private key, which only root may read."""
        return f"{self.directory}/{self.file_name}.key"

    @property
    def authority(self) -> str:
        """Path of the authority's certificate."""
        return f"{self.directory}/ca.crt"


class Certificate(pulumi.ComponentResource):
    """A certificate for one machine: key and request made there, signed by the authority, installed beside the key."""

    files: CertificateFiles
    """Where it lies on its machine."""
    fingerprint: pulumi.Output[str]
    """SHA-256 fingerprint; changes when the certificate does, so whatever uses it can reload."""

    def __init__(self, name: str, args: CertificateArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("school:index:Certificate", name, {"commonName": args.common_name}, opts)
        self.files = args.files
        request = run_script(
            f"{name}-request",
            args.host,
            "certificate-request.sh",
            parent=self,
            variables={
                "directory": args.files.directory,
                "file_name": args.files.file_name,
                "common_name": args.common_name,
            },
            timeout_seconds=300,
        )
        signed = run_script(
            f"{name}-signed",
            args.authority.host,
            "certificate-sign.sh",
            parent=self,
            variables={
                "directory": AUTHORITY_FOLDER,
                "name": name,
                "request": request.stdout,
                "usage": args.usage.value,
                "alternative_names": ",".join(args.alternative_names),
                "lifetime_days": str(LEAF_LIFETIME_DAYS),
                "renew_before_days": str(RENEW_BEFORE_DAYS),
            },
            # The authority must be there, and a new one signs everything again.
            triggers=[args.authority.certificate_pem],
        )
        installed = run_script(
            f"{name}-installed",
            args.host,
            "certificate-install.sh",
            parent=self,
            variables={
                "directory": args.files.directory,
                "file_name": args.files.file_name,
                "certificate": signed.stdout,
                "authority": args.authority.certificate_pem,
            },
        )
        self.fingerprint = installed.stdout
        self.register_outputs({"fingerprint": self.fingerprint})
