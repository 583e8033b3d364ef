#!/usr/bin/python3
"""Entry of the lab's database image, which stands in for Zalando's Spilo and for its PgBouncer image.

The postgres-operator hands both images everything by environment variables. This program turns them into a Patroni
configuration (Kubernetes as the store of its leader) or into a PgBouncer configuration, and becomes that program.
The operator's pooler pods are told by ``CONNECTION_POOLER_PORT``, which only they have.

What the operator relies on, and Spilo does, is marked below; everything else is Patroni's own.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import yaml

Settings = dict[str, Any]
Environment = Mapping[str, str]

POSTGRESQL = Path("/usr/lib/postgresql")
"""Directory of the installed server versions, one sub-directory a major version."""

DATABASE_HOME = Path("/tmp/spilo")
"""Generated configuration of a database pod; nothing in it is worth keeping."""

POOLER_HOME = Path("/tmp/pgbouncer")
"""Generated configuration of a pooler pod."""

INHERITED_SECRETS = ("PGHOST", "PGPORT", "PGUSER", "SPILO_CONFIGURATION")
"""Variables that neither PostgreSQL nor its children may inherit: libpq would obey them."""


class Refused(Exception):
    """The environment asks for something that this image cannot do. The text is one sentence for the pod's log."""


def required(environment: Environment, name: str) -> str:
    """The value of ``name``; raises :class:`Refused` when it is missing or empty."""
    value = environment.get(name, "")
    if not value:
        raise Refused(f"The variable {name} is missing: this image has to be started by the postgres-operator.")
    return value


def write_private(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` so that only this user can read it."""
    with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def self_signed(directory: Path, common_name: str) -> tuple[str, str]:
    """Paths of a certificate and its key, made in ``directory`` unless they are there (a restart keeps them)."""
    certificate, key = directory / "server.crt", directory / "server.key"
    if not key.exists():
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-days", "3650", "-subj", f"/CN={common_name}", "-keyout", str(key), "-out", str(certificate)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        key.chmod(0o600)
    return str(certificate), str(key)


def merge(base: Settings, changes: Settings) -> Settings:
    """Write ``changes`` over ``base``, mapping by mapping, and return ``base``."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            merge(base[key], value)
        else:
            base[key] = value
    return base


def pgbouncer_ini(environment: Environment, certificate: str, key: str, users: Path) -> str:
    """The PgBouncer configuration for what the operator put into ``environment``."""
    get = environment.get
    host, user = required(environment, "PGHOST"), required(environment, "PGUSER")
    # auth_type md5 is PgBouncer's name for "whatever the stored secret is": a SCRAM secret is answered with SCRAM, and
    # only a role that was stored with MD5 logs in with MD5.
    return f"""[databases]
* = host={host} port={get("PGPORT", "5432")} auth_user={user}

[pgbouncer]
listen_addr = *
listen_port = {get("CONNECTION_POOLER_PORT", "5432")}
unix_socket_dir =
auth_type = md5
auth_file = {users}
auth_query = SELECT * FROM {get("PGSCHEMA", "pooler")}.user_lookup($1)
pool_mode = {get("CONNECTION_POOLER_MODE", "transaction")}
max_client_conn = {get("CONNECTION_POOLER_MAX_CLIENT_CONN", "10000")}
max_db_connections = {get("CONNECTION_POOLER_MAX_DB_CONN", "60")}
default_pool_size = {get("CONNECTION_POOLER_DEFAULT_SIZE", "30")}
min_pool_size = {get("CONNECTION_POOLER_MIN_SIZE", "0")}
reserve_pool_size = {get("CONNECTION_POOLER_RESERVE_SIZE", "0")}
server_tls_sslmode = require
client_tls_sslmode = require
client_tls_cert_file = {certificate}
client_tls_key_file = {key}
ignore_startup_parameters = extra_float_digits,options
server_fast_close = 1
server_login_retry = 2
"""


def users_file(environment: Environment) -> str:
    """PgBouncer's list of users: only the one that looks all others up in the database."""

    def quoted(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    return f"{quoted(required(environment, 'PGUSER'))} {quoted(required(environment, 'PGPASSWORD'))}\n"


def roles_sql(human_role: str) -> str:
    """The roles that Spilo leaves behind and the operator needs: it creates its users IN ROLE admin."""
    statements = []
    for role, options in (("admin", "CREATEDB NOLOGIN"), (human_role, "NOLOGIN")):
        name, literal = '"' + role.replace('"', '""') + '"', "'" + role.replace("'", "''") + "'"
        statements.append(
            f"IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {literal}) THEN CREATE ROLE {name} {options}; END IF;"
        )
    return "DO $roles$ BEGIN\n" + "\n".join(statements) + "\nEND $roles$;\n"


def server_version(environment: Environment, installed: list[str]) -> str:
    """The major version to run; raises :class:`Refused` when the image does not have it."""
    wanted = environment.get("PGVERSION") or (installed[-1] if installed else "none")
    if wanted not in installed:
        raise Refused(
            f"PostgreSQL {wanted} is not in the lab's database image, which has {', '.join(installed) or 'none'}: "
            f"set postgres.version in the stack's configuration to one of these."
        )
    return wanted


def kubernetes_settings(environment: Environment) -> Settings:
    """Patroni's Kubernetes section: labels and objects named as the operator's services select them."""
    get = environment.get
    settings: Settings = {
        "namespace": get("POD_NAMESPACE", "default"),
        "scope_label": get("KUBERNETES_SCOPE_LABEL", "cluster-name"),
        "role_label": get("KUBERNETES_ROLE_LABEL", "spilo-role"),
        "leader_label_value": "master",  # Patroni's own default is "primary" since version 4
        "standby_leader_label_value": "master",
        "follower_label_value": "replica",
        "labels": json.loads(get("KUBERNETES_LABELS") or "{}"),
        "bypass_api_service": True,  # keeps the leader while a proxy to the API is being replaced
        "pod_ip": required(environment, "POD_IP"),
    }
    if get("KUBERNETES_BOOTSTRAP_LABELS"):
        settings["bootstrap_labels"] = json.loads(environment["KUBERNETES_BOOTSTRAP_LABELS"])
    if get("KUBERNETES_USE_CONFIGMAPS") != "true":
        settings |= {"use_endpoints": True, "ports": [{"name": "postgresql", "port": 5432}]}
    return settings


def patroni_settings(
    environment: Environment, *, version: str, certificate: str, key: str, socket_directory: str, home: Path
) -> Settings:
    """The whole Patroni configuration; what the operator put into ``SPILO_CONFIGURATION`` has the last word."""
    get = environment.get
    address = required(environment, "POD_IP")
    binaries = POSTGRESQL / version / "bin"
    standby = get("PGUSER_STANDBY", "standby")
    roles = home / "roles.sql"
    settings: Settings = {
        "scope": required(environment, "SCOPE"),
        "name": get("POD_NAME") or socket.gethostname(),
        "kubernetes": kubernetes_settings(environment),
        # The operator calls this interface on port 8008 in plain HTTP.
        "restapi": {"listen": "0.0.0.0:8008", "connect_address": f"{address}:8008"},
        "bootstrap": {
            "dcs": {
                "ttl": 30,
                "loop_wait": 10,
                "retry_timeout": 10,
                "maximum_lag_on_failover": 33554432,
                "postgresql": {
                    "use_pg_rewind": True,
                    "use_slots": True,
                    # The operator reads this mapping back and fails when it is empty.
                    "parameters": {
                        "wal_level": "replica",
                        "hot_standby": "on",
                        "wal_log_hints": "on",
                        "max_wal_senders": 10,
                        "max_replication_slots": 10,
                        "max_connections": 100,
                    },
                },
            },
            "initdb": [{"encoding": "UTF8"}, {"locale": "C.UTF-8"}, "data-checksums"],
            "post_bootstrap": f"{binaries}/psql -v ON_ERROR_STOP=1 -X -q -f {roles} -d",
        },
        "postgresql": {
            "listen": "*:5432",
            "connect_address": f"{address}:5432",
            "data_dir": f"{required(environment, 'PGROOT')}/data",
            "bin_dir": str(binaries),
            "pgpass": str(home / "pgpass"),
            "use_unix_socket": True,
            "use_unix_socket_repl": True,
            "authentication": {
                "superuser": {
                    "username": get("PGUSER_SUPERUSER", "postgres"),
                    "password": required(environment, "PGPASSWORD_SUPERUSER"),
                },
                "replication": {"username": standby, "password": required(environment, "PGPASSWORD_STANDBY")},
            },
            "parameters": {
                "ssl": "on",
                "ssl_cert_file": certificate,
                "ssl_key_file": key,
                "unix_socket_directories": socket_directory,
                "logging_collector": "off",
                "jit": "off",  # the image goes without LLVM, half of its size
            },
            # md5 in this file means SCRAM for every role whose secret is stored as SCRAM.
            "pg_hba": [
                "local all all trust",
                "host all all 127.0.0.1/32 md5",
                "host all all ::1/128 md5",
                f"local replication {standby} trust",
                f"hostssl replication {standby} all md5",
                "hostnossl all all all reject",
                "hostssl all all all md5",
            ],
        },
        "log": {"level": get("PATRONI_LOG_LEVEL", "INFO")},
    }
    asked: Settings = json.loads(get("SPILO_CONFIGURATION") or "{}")
    options = asked.get("bootstrap", {}).pop("initdb", None) or []
    merge(settings, asked)
    named = {option_name(option) for option in options}
    defaults = [option for option in settings["bootstrap"]["initdb"] if option_name(option) not in named]
    settings["bootstrap"]["initdb"] = defaults + options
    return settings


def option_name(option: str | dict[str, str]) -> str:
    """The name of one of initdb's options, which are words or mappings with one entry."""
    return option if isinstance(option, str) else next(iter(option))


def become(command: list[str], environment: Environment) -> NoReturn:
    """Replace this process by ``command``."""
    os.execvpe(command[0], command, dict(environment))


def run_pooler(environment: Environment) -> NoReturn:
    """Write PgBouncer's configuration and become PgBouncer."""
    POOLER_HOME.mkdir(exist_ok=True)
    certificate = environment.get("CONNECTION_POOLER_CLIENT_TLS_CRT", "")
    key = environment.get("CONNECTION_POOLER_CLIENT_TLS_KEY", "")
    if not certificate or not key:
        certificate, key = self_signed(POOLER_HOME, socket.gethostname())
    users, ini = POOLER_HOME / "users.txt", POOLER_HOME / "pgbouncer.ini"
    write_private(users, users_file(environment))
    write_private(ini, pgbouncer_ini(environment, certificate, key, users))
    rest = {name: value for name, value in environment.items() if not name.startswith("PG")}
    become(["pgbouncer", str(ini)], rest)


def run_database(environment: Environment) -> NoReturn:
    """Write Patroni's configuration and become Patroni."""
    for name in ("CLONE_SCOPE", "STANDBY_HOST", "STANDBY_WALE_S3_PREFIX"):
        if environment.get(name):
            raise Refused(
                f"{name} is set, but the lab's database image has no clone and no standby cluster: "
                "restore a backup into a new cluster instead."
            )
    installed = sorted((entry.name for entry in POSTGRESQL.iterdir()), key=int)
    version = server_version(environment, installed)
    root = Path(required(environment, "PGROOT"))
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    data = root / "data"
    if data.is_dir():
        data.chmod(
            0o700
        )  # a pod's fsGroup widens it at every mount, and PostgreSQL refuses a directory others can read
    DATABASE_HOME.mkdir(exist_ok=True)
    certificate, key = environment.get("SSL_CERTIFICATE_FILE", ""), environment.get("SSL_PRIVATE_KEY_FILE", "")
    if not certificate or not key:
        certificate, key = self_signed(DATABASE_HOME, required(environment, "SCOPE"))
    sockets = "/var/run/postgresql" if os.access("/var/run/postgresql", os.W_OK) else "/tmp"
    settings = patroni_settings(
        environment, version=version, certificate=certificate, key=key, socket_directory=sockets, home=DATABASE_HOME
    )
    (DATABASE_HOME / "roles.sql").write_text(roles_sql(environment.get("HUMAN_ROLE") or "zalandos"), encoding="utf-8")
    configuration = DATABASE_HOME / "patroni.yml"
    write_private(configuration, yaml.safe_dump(settings))
    rest = {
        name: value
        for name, value in environment.items()
        if name not in INHERITED_SECRETS and not name.startswith("PGPASSWORD")
    }
    rest["PATH"] = f"{settings['postgresql']['bin_dir']}:{environment.get('PATH', os.defpath)}"
    become([sys.executable, "-m", "patroni", str(configuration)], rest)


def main() -> NoReturn:
    """Become what the environment asks for."""
    try:
        if os.environ.get("CONNECTION_POOLER_PORT"):
            run_pooler(os.environ)
        run_database(os.environ)
    except (Refused, OSError, ValueError, subprocess.CalledProcessError) as error:
        sys.exit(f"{type(error).__name__}: {error}" if not isinstance(error, Refused) else str(error))


if __name__ == "__main__":
    main()
