"""The database K3s keeps its objects in: PostgreSQL that only answers K3s servers with a certificate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pulumi

from components.certificate_authority import (
    Certificate,
    CertificateArgs,
    CertificateAuthority,
    CertificateFiles,
    CertificateUsage,
)
from components.remote import Host, run_script

ROLE: Final = "k3s"
"""Role and database of K3s; client certificates carry it as their subject. Lower case: PostgreSQL folds anything else."""
CERTIFICATE_FOLDER: Final = "/etc/school-postgres/datastore"
"""Where the certificates for this connection lie: on the datastore's machine and on every K3s server."""


def access_rules(client_addresses: Sequence[str]) -> list[str]:
    """Lines of ``pg_hba.conf``: PostgreSQL's own user on the machine itself, and K3s servers with a certificate."""
    # verify-full: the name in the certificate must be the role.
    clients = [f"hostssl {ROLE} {ROLE} {address}/32 cert clientcert=verify-full" for address in client_addresses]
    return ["local all postgres peer", *clients]


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
    address: str
    """IPv4 address of the machine it runs on."""
    authority: CertificateAuthority
    """Signs client certificates for this datastore."""

    def __init__(self, name: str, args: K3sDatastoreArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        rules = access_rules(args.client_addresses)
        summary = {"address": args.host.address, "accessRules": rules}
        super().__init__("school:index:K3sDatastore", name, summary, opts)
        self.address = args.host.address
        self.endpoint = f"postgres://{ROLE}@{self.address}:5432/{ROLE}"
        self.authority = args.authority
        certificate = Certificate(
            f"{name}-server",
            CertificateArgs(
                authority=args.authority,
                host=args.host,
                common_name=args.host.name,
                usage=CertificateUsage.SERVER,
                alternative_names=[f"DNS:{args.host.name}", f"IP:{args.host.address}"],
                files=CertificateFiles(CERTIFICATE_FOLDER, "server"),
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
                "access_rules": "\n".join(rules),
                "certificate_file": certificate.files.certificate,
                "key_file": certificate.files.key,
                "authority_file": certificate.files.authority,
                "fingerprint": certificate.fingerprint,
            },
            timeout_seconds=600,
        )
        self.register_outputs({"endpoint": self.endpoint, "address": self.address})
