"""The secrets a person gives the program, checked before anything is registered, and what is derived from them."""

from __future__ import annotations

import pulumi
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

PRIVATE_KEY = "sshPrivateKey"
PROXMOX_API_TOKEN = "proxmoxApiToken"


def ssh_public_key(private_key: str) -> str:
    """The public half of an OpenSSH private key, in authorized-keys form.

    Raises :class:`pulumi.RunError`, which never quotes the key, when it is no unencrypted OpenSSH private key.
    """
    try:
        key = load_ssh_private_key(private_key.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise pulumi.RunError(
            f"school-postgres:{PRIVATE_KEY} is not an unencrypted OpenSSH private key. Make one with "
            "'ssh-keygen -t ed25519 -N \"\" -f key', put key.pub into root's authorized_keys on every Proxmox host, and "
            f"run 'pulumi config set --secret {PRIVATE_KEY} < key'."
        ) from error
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
