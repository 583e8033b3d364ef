"""Secrets: they stay where they are needed, and every connection knows whom it talks to.

What commands are given is looked at in ``commands``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import parse_qs, urlsplit

from pulumi_policy import Severity

from policy import commands, vocabulary
from policy.pods import containers
from policy.resources import Resource, dig, number, shown
from policy.rule import ResourcePolicy
from policy.secret_texts import may_be_secret, names_a_secret, secrets_in, secrets_in_file

CONFIG_MAP: Final = "kubernetes:core/v1:ConfigMap"

# --- Proxmox


def _tls_verified(provider: Resource) -> Iterator[str]:
    insecure = provider.get("insecure")
    # Absent is not safe: the environment (PROXMOX_VE_INSECURE) decides.
    if insecure not in (False, "false"):
        yield f"The provider {provider.name} has `insecure` {shown(insecure)}; allowed is false."


PROXMOX_TLS_VERIFIED: Final = ResourcePolicy(
    "proxmox-tls-verified",
    of=(vocabulary.PROXMOX_PROVIDER,),
    description="The certificate of the Proxmox API is checked.",
    why="Otherwise every computer in the network can answer in the name of Proxmox, and is handed the token that may delete "
    "all machines.",
    remedy="Set `proxmox.insecureTls` to false and trust /etc/pve/pve-root-ca.pem of the Proxmox cluster.",
    severity=Severity.CRITICAL,
    check=_tls_verified,
)


def _endpoint_https(provider: Resource) -> Iterator[str]:
    # Absent is not safe: the environment (PROXMOX_VE_ENDPOINT) decides.
    if not str(provider.get("endpoint")).startswith("https://"):
        yield f"The provider {provider.name} has no https address in `endpoint`; allowed is https://host:port/."


PROXMOX_ENDPOINT_HTTPS: Final = ResourcePolicy(
    "proxmox-endpoint-https",
    of=(vocabulary.PROXMOX_PROVIDER,),
    description="The Proxmox API is reached over TLS.",
    why="Over plain HTTP the token that may delete all machines crosses the network in clear text.",
    remedy="Begin `proxmox.endpoint` with https://.",
    severity=Severity.CRITICAL,
    check=_endpoint_https,
)


def _token_not_root(provider: Resource) -> Iterator[str]:
    for key in ("password", "authTicket"):
        if provider.get(key) is not None:
            yield f"The provider {provider.name} logs in with `{key}`; allowed is only an API token."
    if str(provider.get("username") or "").startswith("root@"):
        yield f"The provider {provider.name} logs in as root; allowed is an API token of another user."
    token = provider.get("apiToken")
    if not token:
        yield f"The provider {provider.name} has no `apiToken`; allowed is one of a user other than root."
    elif str(token).startswith("root@"):
        yield f"The provider {provider.name} has an API token of root; allowed is one of another user."


PROXMOX_TOKEN_NOT_ROOT: Final = ResourcePolicy(
    "proxmox-token-not-root",
    of=(vocabulary.PROXMOX_PROVIDER,),
    description="Proxmox is used through an API token of a user of its own, not as root.",
    why="Root of Proxmox may do everything to every machine of the school, and its password cannot be withdrawn without "
    "locking everybody out. A token has the rights it was given, and is withdrawn alone.",
    remedy="Make a user and a token as docs/first-day.md says, and set `proxmoxApiToken`.",
    severity=Severity.HIGH,
    check=_token_not_root,
)


# --- Kubernetes

_TLS_SKIPPED: Final = re.compile(r"insecure-skip-tls-verify['\"]?\s*:\s*['\"]?true", re.I)


def _kubeconfig(provider: Resource) -> Iterator[str]:
    kubeconfig = provider.get("kubeconfig")
    if not kubeconfig:
        yield f"The provider {provider.name} has no `kubeconfig`; allowed is the one of this stack's cluster."
    elif _TLS_SKIPPED.search(str(kubeconfig)):
        yield f"The provider {provider.name} does not check the cluster's certificate; allowed is checking it."


KUBERNETES_TLS_VERIFIED: Final = ResourcePolicy(
    "kubernetes-tls-verified",
    of=(vocabulary.KUBERNETES_PROVIDER,),
    description="Kubernetes is the stack's own cluster, and proves it.",
    why="Without a kubeconfig the provider takes whichever cluster the computer used last. Without a check of the certificate "
    "every computer in the network can be the cluster, and is handed all passwords.",
    remedy="Hand over the kubeconfig of K3sControlPlane, as __main__.py does.",
    severity=Severity.CRITICAL,
    check=_kubeconfig,
)


def _by_reference(workload: Resource) -> Iterator[str]:
    all_containers = list(containers(workload))
    for container in all_containers:
        # Together, since an argument and its value may be two words.
        for kind in secrets_in(" ".join(container.words)):
            yield f"{container.name} has {kind} on its command line; allowed is a reference to a Secret."
    variables = [(container.name, entry) for container in all_containers for entry in container.list("env")]
    if workload.type == vocabulary.DATABASE:
        variables = [(workload.name, entry) for entry in workload.list("spec", "env")]
    # By name first: a value that is not known yet, such as an address, must not hide a password that is.
    for where, entry in variables:
        name = str(dig(entry, "name"))
        if names_a_secret(name) and may_be_secret(dig(entry, "value")):
            yield f"{where} has a value in {name}; allowed is a reference to a Secret."
    for where, entry in variables:
        name = str(dig(entry, "name"))
        for kind in () if names_a_secret(name) else secrets_in(dig(entry, "value")):
            yield f"{where} has {kind} in {name}; allowed is a reference to a Secret."


WORKLOAD_SECRET_BY_REFERENCE: Final = ResourcePolicy(
    "workload-secret-by-reference",
    of=(*vocabulary.WORKLOADS, vocabulary.DATABASE),
    description="A container gets its secrets from a Secret, not in clear text.",
    why="Whoever may look at a pod, and everybody who reads a preview, would read the password. A Secret is encrypted where "
    "Kubernetes keeps it, and has rights of its own.",
    remedy="Use `valueFrom.secretKeyRef`, and change the secret that was shown.",
    severity=Severity.CRITICAL,
    check=_by_reference,
)


def _config_map(config_map: Resource) -> Iterator[str]:
    for section in ("data", "binaryData"):
        for key in config_map.keys(section):
            value = str(config_map.get(section, key))
            kinds = list(secrets_in_file(value))
            if kinds or (names_a_secret(key) and may_be_secret(value)):
                yield f"{config_map.name} has {kinds[0] if kinds else 'a value'} in {key}; allowed is no secret at all."


CONFIG_MAP_WITHOUT_SECRET: Final = ResourcePolicy(
    "config-map-without-secret",
    of=(CONFIG_MAP,),
    description="No secret is in a ConfigMap.",
    why="A ConfigMap is not encrypted where Kubernetes keeps it, and whoever may look at anything in the namespace may read "
    "it. A backup script with the superuser's password in it is where this has happened.",
    remedy="Put the secret into a Secret and let the script read it from a variable, and change the secret that was shown.",
    severity=Severity.CRITICAL,
    check=_config_map,
)


# --- K3s and its datastore


_RULE_KINDS: Final = ("local", "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc")
_RULE_ADDRESS: Final = re.compile(r"[0-9a-fA-F:.]{2,39}(/\d{1,3})?|all|samehost|samenet")


def _access_rule_fault(rule: str) -> str | None:
    """What is wrong with a line of ``pg_hba.conf``; None: nothing."""
    kind, *fields = rule.split()
    address, method = ("", fields[2:3]) if kind == "local" else ("".join(fields[2:3]), fields[3:4])
    if method == ["reject"]:
        return None
    if kind == "local":
        return None if method == ["peer"] else "lets every user of the machine in"
    if kind != "hostssl":
        return "does without TLS"
    if not address.endswith(("/32", "/128")):
        return "lets more than one address in"
    if "clientcert=verify-full" not in fields:
        return "does without a client's certificate"
    return None if method == ["cert"] else "lets in by something else than the certificate"


def _rule_named(number_: int, rule: str) -> str:
    """A rule by its number, kind and address; what else stands in it may be a password."""
    fields = rule.split()
    kind = fields[0] if fields[0] in _RULE_KINDS else "of another kind"
    address = fields[3] if len(fields) > 3 and _RULE_ADDRESS.fullmatch(fields[3]) else ""
    return f"rule {number_} ({kind}{f' {address}' if address and kind != 'local' else ''})"


def _access_rules(datastore: Resource) -> Iterator[str]:
    lines = [str(line).split("#", 1)[0].strip() for line in datastore.list("accessRules")]
    rules = [line for line in lines if line]
    if not rules:
        yield f"{datastore.name} says nothing about who may connect; allowed is one rule for each K3s server."
    for number_, rule in enumerate(rules, 1):
        fault = _access_rule_fault(rule)
        if fault:
            yield (
                f"{datastore.name}: {_rule_named(number_, rule)} {fault}; allowed are `local ... peer` and "
                "`hostssl ... <address>/32 cert clientcert=verify-full`."
            )


DATASTORE_MUTUAL_TLS: Final = ResourcePolicy(
    "datastore-mutual-tls",
    of=(vocabulary.DATASTORE_COMPONENT,),
    description="The datastore answers K3s servers only, each by its address and its certificate, and only over TLS.",
    why="Everything in Kubernetes is in the datastore, the Secrets included. Whoever can write to it is the cluster's "
    "administrator.",
    remedy="Keep `access_rules` in components/k3s_datastore.py.",
    severity=Severity.CRITICAL,
    check=_access_rules,
)

_ENDPOINT: Final = re.compile(r"postgres://[!-Z^-~]+")
"""Printable characters but brackets and blanks, which no address of this program has."""
_CERTIFICATE_SETTINGS: Final = ("datastore-cafile", "datastore-certfile", "datastore-keyfile")


def _datastore_verified(control_plane: Resource) -> Iterator[str]:
    for key in _CERTIFICATE_SETTINGS:
        if not control_plane.get("serverSettings", key):
            yield f"{control_plane.name} has no `{key}`; allowed is the file that the datastore's authority has signed."
    endpoint = control_plane.get("serverSettings", "datastore-endpoint")
    if not endpoint:
        yield f"{control_plane.name} has no `datastore-endpoint`; without one, every server keeps a cluster of its own."
        return
    if not _ENDPOINT.fullmatch(str(endpoint)):
        yield f"{control_plane.name} has another `datastore-endpoint` than the datastore; allowed is postgres://user@host/name."
        return
    address = urlsplit(str(endpoint))
    parameters = parse_qs(address.query)
    if address.password is not None or "password" in parameters:
        yield f"{control_plane.name} has a password in `datastore-endpoint`; allowed is the certificate alone."
    # Absent is safe: with the three files K3s checks certificate and name.
    if set(parameters.get("sslmode", ())) - {"verify-full"}:
        yield f"{control_plane.name} has an `sslmode` in `datastore-endpoint`; allowed is verify-full, or none."


K3S_DATASTORE_VERIFIED: Final = ResourcePolicy(
    "k3s-datastore-verified",
    of=(vocabulary.CONTROL_PLANE_COMPONENT,),
    description="A K3s server talks only to the stack's own datastore, and proves itself by a certificate.",
    why="With a weaker `sslmode` every computer that answers at the address is taken for the datastore, and is sent all "
    "Secrets. A password in the address is in Pulumi's state and in every preview.",
    remedy="Keep these settings of `server_settings` in components/k3s_control_plane.py.",
    severity=Severity.CRITICAL,
    check=_datastore_verified,
)


def _secrets_encrypted(control_plane: Resource) -> Iterator[str]:
    value = control_plane.get("serverSettings", "secrets-encryption")
    # Absent is not safe: K3s's default is false.
    if value is not True:
        yield f"{control_plane.name} has `secrets-encryption` {shown(value)}; allowed is true."


K3S_SECRETS_ENCRYPTED: Final = ResourcePolicy(
    "k3s-secrets-encrypted",
    of=(vocabulary.CONTROL_PLANE_COMPONENT,),
    description="Kubernetes encrypts Secrets in the datastore.",
    why="Otherwise all passwords are readable in the datastore's tables, in its dumps and on its disk. It can only be "
    "switched on when the cluster is made.",
    remedy="Keep `secrets-encryption` in components/k3s_control_plane.py.",
    severity=Severity.HIGH,
    check=_secrets_encrypted,
)


def _kubeconfig_private(control_plane: Resource) -> Iterator[str]:
    mode = control_plane.get("serverSettings", "write-kubeconfig-mode")
    # Absent is safe: 0600.
    if mode is not None and not re.fullmatch(r"0?[0-7]00", str(mode)):
        yield f"{control_plane.name} has `write-kubeconfig-mode` {shown(mode)}; allowed is 0600, in quotes."


K3S_KUBECONFIG_PRIVATE: Final = ResourcePolicy(
    "k3s-kubeconfig-private",
    of=(vocabulary.CONTROL_PLANE_COMPONENT,),
    description="Only root reads the administrator's kubeconfig on a K3s server.",
    why="It is the key to the whole cluster. With a wider mode every user and every service of the machine has it.",
    remedy="Set `write-kubeconfig-mode` to 0600 in components/k3s_control_plane.py.",
    severity=Severity.HIGH,
    check=_kubeconfig_private,
)


def _settings_without_secret(control_plane: Resource) -> Iterator[str]:
    for key in control_plane.keys("serverSettings"):
        if names_a_secret(key):
            yield f"{control_plane.name} has `{key}` among its settings; allowed is no secret at all."


K3S_SETTINGS_WITHOUT_SECRET: Final = ResourcePolicy(
    "k3s-settings-without-secret",
    of=(vocabulary.CONTROL_PLANE_COMPONENT,),
    description="What a plan shows of K3s's configuration holds no token.",
    why="Inputs of a component are shown in every preview. With the token any computer joins the cluster, and decrypts what "
    "the datastore holds.",
    remedy="Add it in `server_configuration` of components/k3s_control_plane.py, which is a secret, and make a new one.",
    severity=Severity.CRITICAL,
    check=_settings_without_secret,
)


# --- passwords, logins and downloads


def _key_only(machine: Resource) -> Iterator[str]:
    account = machine.get("initialization", "userAccount")
    if dig(account, "password") is not None:
        yield f"{machine.name} gives root a password; allowed is a key only."
    if not dig(account, "keys"):
        yield f"{machine.name} has no SSH key for root; allowed is one at least."


MACHINE_LOGIN_BY_KEY_ONLY: Final = ResourcePolicy(
    "machine-login-by-key-only",
    of=(vocabulary.CONTAINER,),
    description="Root of a machine logs in with a key only.",
    why="A password can be tried out from every computer in the school, day and night. Without any key nobody gets in, this "
    "program included.",
    remedy="Set `sshPrivateKey`, and give no password in components/proxmox_lxc_node.py.",
    severity=Severity.HIGH,
    check=_key_only,
)

SHORTEST_PASSWORD: Final = 24
"""Letters and digits: 142 bits, more than anybody can try."""


def _password_strength(password: Resource) -> Iterator[str]:
    length = number(password.get("length")) or 0
    if length < SHORTEST_PASSWORD:
        yield f"{password.name} has {length} characters; allowed are {SHORTEST_PASSWORD} or more."
    # Absent is safe: both are used.
    if any(password.get(letters) not in (None, True) for letters in ("lower", "upper")):
        yield f"{password.name} leaves out letters; allowed are capital and small ones."


PASSWORD_STRENGTH: Final = ResourcePolicy(
    "password-strength",
    of=(vocabulary.PASSWORD,),
    description="A password that the program makes cannot be guessed.",
    why="Nobody types these passwords, so a long one costs nothing. A short one can be tried out from any computer in the "
    "school.",
    remedy="Set its length to 24 or more, and leave lower and upper alone.",
    severity=Severity.HIGH,
    check=_password_strength,
)

POWERFUL_FLAGS: Final = frozenset({"superuser", "replication", "bypassrls"})
CREATEROLE_IS_LIMITED: Final = 16
"""First major version in which ``createrole`` gives away no more than the role has itself."""


def _version(database: Resource) -> int:
    """Major version of PostgreSQL; 0 where nothing is said, or no number."""
    version = shown(database.get("spec", "postgresql", "version"))
    return int(version) if version.isdecimal() else 0


def _roles_least(database: Resource) -> Iterator[str]:
    for user in database.keys("spec", "users"):
        flags = [(flag, str(flag).lower()) for flag in database.list("spec", "users", user)]
        for flag, meant in flags:
            if meant in POWERFUL_FLAGS:
                yield f"{database.name} gives the role {user} the flag {flag}; allowed are all others."
            elif meant == "createrole" and _version(database) < CREATEROLE_IS_LIMITED:
                yield (
                    f"{database.name} gives the role {user} the flag {flag}; allowed is it from PostgreSQL "
                    f"{CREATEROLE_IS_LIMITED} on."
                )


DATABASE_ROLES_LEAST: Final = ResourcePolicy(
    "database-roles-least",
    of=(vocabulary.DATABASE,),
    description="No application's role is a superuser, replicates, or is above row security.",
    why="Whoever finds a hole in an application has the rights of its role. A superuser reads every database and runs "
    "programs on the machine; replication copies everything. Before PostgreSQL 16, a role with createrole changes every "
    "other role but superusers, and makes itself a member of those that run programs.",
    remedy="Remove the flag from the role in `postgres.users`, or for createrole set `postgres.version` to 16 or more.",
    severity=Severity.CRITICAL,
    check=_roles_least,
)


def _password_scram(database: Resource) -> Iterator[str]:
    value = database.get("spec", "postgresql", "parameters", "password_encryption")
    # Absent is not safe: the operator's default is md5.
    if value != "scram-sha-256":
        yield f"{database.name} has `password_encryption` {shown(value)}; allowed is scram-sha-256."


DATABASE_PASSWORD_SCRAM: Final = ResourcePolicy(
    "database-password-scram",
    of=(vocabulary.DATABASE,),
    description="PostgreSQL keeps passwords as SCRAM-SHA-256.",
    why="An MD5 hash is as good as the password: whoever reads it in a dump logs in with it. The operator's default is MD5.",
    remedy="Keep `password_encryption` in `cluster_spec` of components/operators/zalando.py.",
    severity=Severity.HIGH,
    check=_password_scram,
)

STRONG_HASHES: Final = ("sha256", "sha384", "sha512")


def _download_verified(file: Resource) -> Iterator[str]:
    algorithm = file.get("checksumAlgorithm")
    if not file.get("checksum"):
        yield f"{file.name} has no checksum; allowed is one of {', '.join(STRONG_HASHES)}."
    elif algorithm not in STRONG_HASHES:
        yield f"{file.name} has a checksum of the kind {shown(algorithm)}; allowed are {', '.join(STRONG_HASHES)}."


DOWNLOAD_VERIFIED: Final = ResourcePolicy(
    "download-verified",
    of=(vocabulary.DOWNLOAD,),
    description="A download is the file that was meant.",
    why="Every machine is made from the template. Whoever can answer for the server it comes from, or for the way there, would "
    "be root on all of them.",
    remedy="Set `template.sha512`.",
    severity=Severity.CRITICAL,
    check=_download_verified,
)

POLICIES: Final = (
    PROXMOX_TLS_VERIFIED,
    PROXMOX_ENDPOINT_HTTPS,
    PROXMOX_TOKEN_NOT_ROOT,
    *commands.POLICIES,
    KUBERNETES_TLS_VERIFIED,
    WORKLOAD_SECRET_BY_REFERENCE,
    CONFIG_MAP_WITHOUT_SECRET,
    DATASTORE_MUTUAL_TLS,
    K3S_DATASTORE_VERIFIED,
    K3S_SECRETS_ENCRYPTED,
    K3S_KUBECONFIG_PRIVATE,
    K3S_SETTINGS_WITHOUT_SECRET,
    MACHINE_LOGIN_BY_KEY_ONLY,
    PASSWORD_STRENGTH,
    DATABASE_ROLES_LEAST,
    DATABASE_PASSWORD_SCRAM,
    DOWNLOAD_VERIFIED,
)
