"""The database K3s keeps its objects in: PostgreSQL that only answers K3s servers with a certificate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pulumi

from components.certificate_authority import Certificate, CertificateArgs, CertificateAuthority, CertificateUsage
from components.remote import Host, run_script

ROLE: Final = "k3s"
"""Role and database of K3s; client certificates carry it as their subject. Lower case: PostgreSQL folds anything else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class K3sDatastoreArgs:
    """Inputs of :class:`K3sDatastore`."""

    host: Host
    """The machine PostgreSQL runs on."""
    authority: CertificateAuthority
    """Signs the server's certificate, and every client's that may connect."""
    client_addresses: Sequence[str]
    """IPv4 addresses of the K3s servers; no other address is answered."""


class K3sDatastore(pulumi.ComponentResource):
    """Debian's PostgreSQL as the datastore of K3s.

    Database in collation C, owned by its role; ``hostssl`` with client certificates only, one rule per K3s server.
    It is a single machine: while it is down, running pods and the school's database go on, but nothing new is scheduled.
    """

    endpoint: str
    """Connection string for K3s; holds no password, since the certificate is the credential."""
    authority: CertificateAuthority
    """Signs client certificates for this datastore."""

    def __init__(self, name: str, args: K3sDatastoreArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("school:index:K3sDatastore", name, {"address": args.host.address}, opts)
        self.endpoint = f"postgres://{ROLE}@{args.host.address}:5432/{ROLE}"
        self.authority = args.authority
        certificate = Certificate(
            f"{name}-server",
            CertificateArgs(
                authority=args.authority,
                host=args.host,
                common_name=args.host.name,
                usage=CertificateUsage.SERVER,
                alternative_names=[f"DNS:{args.host.name}", f"IP:{args.host.address}"],
                directory="/etc/school-postgres/datastore",
                file_name="server",
            ),
            opts=pulumi.ResourceOptions(parent=self),
        )
        run_script(
            f"{name}-postgresql",
            args.host,
            "k3s-datastore.sh",
            parent=self,
            variables={
                "listen_address": args.host.address,
                "client_addresses": " ".join(args.client_addresses),
                "certificate_file": certificate.certificate_file,
                "key_file": certificate.key_file,
                "authority_file": certificate.authority_file,
                "fingerprint": certificate.fingerprint,
            },
            timeout_seconds=600,
        )
        self.register_outputs({"endpoint": self.endpoint})
