"""The topic ``postgres``: the database cluster, its roles and databases, its pooler and its addresses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, StrictInt, StrictStr

from settings.base import (
    LARGEST_GIB,
    LARGEST_MIB,
    Model,
    Refused,
    Rule,
    between,
    check,
    editor,
    matches,
    not_empty,
    unique,
    whole,
)
from settings.values import LABEL, NETWORK_OF_KNOWN_COMPUTERS, SUBDOMAIN, Address, Network, is_subdomain


class Operator(StrEnum):
    """Software that runs the PostgreSQL cluster."""

    ZALANDO = "zalando"
    """Zalando postgres-operator (Patroni, Spilo)."""


class PoolMode(StrEnum):
    """When PgBouncer gives a server connection back to the pool."""

    TRANSACTION = "transaction"
    SESSION = "session"


_DO_ADDRESS = "write an address such as 10.0.145.130"

DEFAULT_MAX_CONNECTIONS = 100
"""PostgreSQL's ``max_connections`` when ``postgres.parameters`` does not set it."""

FEWEST_INSTANCES = 3
"""Copies of the database of which one may be lost while another still confirms every write."""

_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_USER = re.compile(r"[a-z]([a-z0-9_]{0,61}[a-z0-9])?")
_PARAMETER = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?")


class StorageSettings(Model):
    """Volume of one PostgreSQL instance."""

    size_gib: Annotated[
        StrictInt,
        between(1, LARGEST_GIB),
        Rule(f"a whole number of GiB from 1 to {LARGEST_GIB}", "write the number alone, such as 10", example=10),
    ]
    """Size of each instance's volume in GiB."""
    storage_class: Annotated[
        StrictStr,
        check(is_subdomain, maxLength=253, pattern=whole(SUBDOMAIN)),
        Rule("the name of a Kubernetes StorageClass", "write local-path, which K3s brings along"),
    ] = "local-path"
    """StorageClass of the volumes."""


class ResourceSettings(Model):
    """Processor and memory of one PostgreSQL instance."""

    cpu_request_millicores: Annotated[
        StrictInt,
        between(10, 2000),
        Rule(
            "a whole number of thousandths of a core from 10 to 2000, each instance's limit",
            "write the number alone, such as 250",
        ),
    ] = 250
    """Processor time kept for each instance, in thousandths of a core."""
    memory_request_mib: Annotated[
        StrictInt,
        between(128, LARGEST_MIB),
        Rule(f"a whole number of MiB from 128 to {LARGEST_MIB}", "write the number alone, such as 512"),
    ] = 512
    """Memory kept for each instance, in MiB."""
    memory_limit_mib: Annotated[
        StrictInt,
        between(250, LARGEST_MIB),
        Rule(
            f"a whole number of MiB from 250 (the operator's minimum) to {LARGEST_MIB}",
            "write the number alone, such as 1024",
        ),
    ] = 1024
    """Memory at which an instance is ended by the kernel, in MiB."""


class PoolerSettings(Model):
    """The connection pooler (PgBouncer) in front of the primary."""

    instances: Annotated[
        StrictInt,
        between(2, 50),
        Rule("a whole number from 2, so that one may fail, to 50", "write 2"),
    ] = 2
    """How many PgBouncer pods there are."""
    mode: Annotated[
        PoolMode,
        Rule(
            "transaction (many clients share few connections) or session",
            "write transaction unless applications use session state such as LISTEN or prepared statements by name",
        ),
    ] = PoolMode.TRANSACTION
    """When a client's server connection goes back to the pool."""
    max_database_connections: Annotated[
        StrictInt,
        between(8, 10_000),
        Rule("a whole number from 8 to 10000", "write for example 60"),
    ] = 60
    """Most connections to each database that all pooler pods together open; the pods share them equally."""


class ServiceAddressSettings(Model):
    """Fixed addresses at which applications reach the database."""

    primary: Annotated[Address, Rule("an IPv4 address inside network.servicePool", _DO_ADDRESS, example="10.0.145.130")]
    """Address of the primary (reads and writes)."""
    replica: Annotated[Address, Rule("an IPv4 address inside network.servicePool", _DO_ADDRESS, example="10.0.145.131")]
    """Address of the replicas (reads only)."""
    pooler: Annotated[Address, Rule("an IPv4 address inside network.servicePool", _DO_ADDRESS, example="10.0.145.132")]
    """Address of the pooler (reads and writes, for many clients)."""

    def __iter__(self) -> Iterator[tuple[str, IPv4Address]]:  # type: ignore[override]
        """Pairs of name and address in the order primary, replica, pooler."""
        yield "primary", self.primary
        yield "replica", self.replica
        yield "pooler", self.pooler


SUPPORTED_POSTGRES = ("13", "14", "15", "16", "17")
"""Major versions that the operator's image holds."""

RESERVED_USERS = ("admin", "cron_admin", "pooler", "postgres", "standby", "zalandos")
"""Roles the operator makes and manages itself."""

RESERVED_DATABASES = ("pgbouncer", "postgres", "template0", "template1")
"""Databases that PostgreSQL and the pooler keep for themselves."""

_WORDS_OF_SQL = """
    all analyse analyze and any array as asc asymmetric both case cast check collate column constraint create
    current_catalog current_date current_role current_time current_timestamp current_user default deferrable desc distinct
    do else end except false fetch for foreign from grant group having in initially intersect into lateral leading limit
    localtime localtimestamp none not null offset on only or order placing primary public references returning select
    session_user some symmetric system_user table then to trailing true union unique user using variadic when where window
    with
"""
RESERVED_WORDS = frozenset(_WORDS_OF_SQL.split())
"""Words that SQL does not take as a name without quotes, and the two role names that PostgreSQL keeps for itself."""

OWNED_PARAMETERS: Mapping[str, str] = {
    "archive_command": "the program",
    "archive_mode": "the operator",
    "archive_timeout": "the operator",
    "cluster_name": "Patroni",
    "config_file": "Patroni",
    "data_directory": "Patroni",
    "external_pid_file": "Patroni",
    "hba_file": "Patroni",
    "hot_standby": "Patroni",
    "ident_file": "Patroni",
    "listen_addresses": "Patroni",
    "max_prepared_transactions": "Patroni",
    "max_replication_slots": "Patroni",
    "max_wal_senders": "Patroni",
    "password_encryption": "the program",
    "port": "Patroni",
    "primary_conninfo": "Patroni",
    "primary_slot_name": "Patroni",
    "recovery_target": "Patroni",
    "restore_command": "the operator",
    "shared_preload_libraries": "the operator",
    "ssl": "the operator",
    "synchronous_standby_names": "Patroni",
    "track_commit_timestamp": "Patroni",
    "unix_socket_directories": "the operator",
    "wal_level": "Patroni",
    "wal_log_hints": "Patroni",
}
"""PostgreSQL parameters that are set by the software named; a value in the configuration would not last."""

DANGEROUS_PARAMETERS: Mapping[str, str] = {
    "autovacuum": "without it tables grow until the disk is full, and in the end PostgreSQL stops accepting writes",
    "default_transaction_read_only": "with it nobody can write",
    "ignore_checksum_failure": "with it damaged pages are read as if they were whole",
    "ignore_invalid_pages": "with it a recovery goes on without the pages it cannot find",
    "session_replication_role": "it switches foreign keys and triggers off",
    "transaction_read_only": "with it nobody can write",
    "zero_damaged_pages": "with it PostgreSQL throws away pages that it cannot read",
}
"""PostgreSQL parameters that damage data or stop the database when they differ from the default, and how."""


def _postgres_version(value: object) -> object:
    if isinstance(value, int | float) and not isinstance(value, bool) and str(value) in SUPPORTED_POSTGRES:
        raise Refused("text in quotes", f'write "{value}"')
    return value


def _check_words(value: str) -> None:
    if value.startswith("pg_"):
        raise Refused("a name that does not start with pg_, which PostgreSQL reserves", "choose another name")
    if value in RESERVED_WORDS:
        raise Refused(
            "a name that is no reserved word of SQL, which needs quotes wherever it stands", "choose another name"
        )


def _user_name(value: str) -> str:
    if value in RESERVED_USERS:
        raise Refused(
            "a name that the operator does not keep for itself (" + ", ".join(RESERVED_USERS) + ")",
            "choose another name",
        )
    _check_words(value)
    if not _USER.fullmatch(value):
        raise ValueError("not a role name")
    return value


def _name_pattern(form: re.Pattern[str], reserved: Iterable[str]) -> str:
    """Pattern of the names that are left to choose."""
    return whole(rf"(?!pg_|({'|'.join([*reserved, *sorted(RESERVED_WORDS)])})$){form.pattern}")


def _database_name(value: str) -> str:
    if value in RESERVED_DATABASES:
        raise Refused("a name other than " + ", ".join(RESERVED_DATABASES), "choose another name")
    _check_words(value)
    if not _IDENTIFIER.fullmatch(value):
        raise ValueError("not an identifier")
    return value


USER_FLAGS = ("createdb", "createrole", "inherit", "login", "nologin")

_REFUSED_FLAGS: Mapping[str, str] = {
    "superuser": "a superuser may do everything, also outside its own database",
    "replication": "a replication role can read every database",
    "bypassrls": "bypassrls switches row security off",
}


def _user_flag(value: str) -> str:
    if value in _REFUSED_FLAGS:
        raise Refused(
            "one of " + ", ".join(USER_FLAGS) + f", because {_REFUSED_FLAGS[value]}",
            "leave it out; the owner of a database may do everything inside it",
        )
    if value not in USER_FLAGS:
        raise ValueError("unknown flag")
    return value


_REFUSED_PARAMETERS = "|".join((*OWNED_PARAMETERS, *DANGEROUS_PARAMETERS))


def _parameter_name(value: str) -> str:
    if value in OWNED_PARAMETERS or value.startswith(("ssl_", "recovery_target_")):
        owner = OWNED_PARAMETERS.get(value, "the operator")
        raise Refused(f"a parameter that is yours to set; this one is set by {owner}", "leave it out")
    if value in DANGEROUS_PARAMETERS:
        raise Refused(
            f"a parameter that neither damages data nor stops the database; {DANGEROUS_PARAMETERS[value]}",
            "leave it out",
        )
    if not _PARAMETER.fullmatch(value):
        raise ValueError("not a parameter name")
    return value


def _parameter_values(value: object) -> object:
    """PostgreSQL's parameters are strings; a YAML number or truth value is taken as PostgreSQL would write it."""
    if not isinstance(value, Mapping):
        return value

    def text(item: object) -> object:
        if isinstance(item, bool):
            return "on" if item else "off"
        return str(item) if isinstance(item, int | float) else item

    return {name: text(item) for name, item in value.items()}


_UNITS = ("B", "kB", "MB", "GB", "TB", "us", "ms", "s", "min", "h", "d")
_OTHER_THAN_A_WRONG_UNIT = rf"^(?! *[0-9]+(\.[0-9]+)? *(?!({'|'.join(_UNITS)}) *$)[A-Za-z]+ *$)"


def _parameter_value(value: str) -> str:
    """Accept any text but a quantity in a unit that PostgreSQL does not know."""
    if not re.match(_OTHER_THAN_A_WRONG_UNIT, value):
        raise Refused("a number with one of PostgreSQL's units, " + ", ".join(_UNITS), 'write for example "64MB"')
    return value


LARGEST_SOURCE = 8
"""Shortest prefix of a network that may connect; 10.0.0.0/8 is the largest private network there is."""


def _allowed_source(value: IPv4Network) -> IPv4Network:
    if value.prefixlen < LARGEST_SOURCE:
        raise Refused(
            f"a network of the school with a prefix from /{LARGEST_SOURCE} to /32; {value} lets computers of strangers "
            "try passwords",
            "write the networks the applications are in, such as 10.0.145.0/24",
        )
    return value


class PostgresSettings(Model):
    """The database cluster."""

    operator: Annotated[Operator, Rule("zalando, the operator this release implements", "write zalando")] = (
        Operator.ZALANDO
    )
    """Software that runs the database cluster."""
    name: Annotated[
        StrictStr,
        matches(r"[a-z]([a-z0-9-]{0,43}[a-z0-9])?"),
        Rule(
            "at most 45 lower-case letters, digits and hyphens, a letter first, so that names derived from it "
            "(such as <name>-pooler-repl) fit Kubernetes",
            "write for example wichtige-daten-3",
            example="wichtige-daten-3",
        ),
    ]
    """Name of the database cluster and of the Services in front of it."""
    team: Annotated[
        StrictStr,
        matches(LABEL),
        Rule("at most 63 lower-case letters, digits and hyphens", "write for example schule"),
    ] = "schule"
    """Team the operator files the cluster under."""
    version: Annotated[
        StrictStr,
        BeforeValidator(_postgres_version),
        check(lambda value: value in SUPPORTED_POSTGRES, enum=list(SUPPORTED_POSTGRES)),
        Rule(
            "one of " + ", ".join(f'"{version}"' for version in SUPPORTED_POSTGRES) + ", in quotes",
            'write "16"',
            example="16",
        ),
    ]
    """Major version of PostgreSQL."""
    instances: Annotated[
        StrictInt,
        between(FEWEST_INSTANCES, 15),
        Rule(
            f"a whole number from {FEWEST_INSTANCES} to 15; with fewer than {FEWEST_INSTANCES} the loss of one machine "
            "leaves no synchronous standby, and writes stop or become unsafe",
            "write 3",
        ),
    ] = 3
    """How many copies of the database there are, each on a machine of its own."""
    storage: Annotated[StorageSettings, Rule("a map with sizeGiB and storageClass", "write for example {sizeGiB: 10}")]
    """Volume of each instance."""
    resources: Annotated[
        ResourceSettings,
        Rule("a map with cpuRequestMillicores, memoryRequestMiB, memoryLimitMiB", "leave the key out for the defaults"),
    ] = ResourceSettings()
    """Processor and memory of each instance."""
    users: Annotated[
        Mapping[
            Annotated[
                StrictStr,
                AfterValidator(_user_name),
                editor(pattern=_name_pattern(_USER, RESERVED_USERS)),
                Rule(
                    "a name of at most 63 lower-case letters, digits and underscores, a letter first, no underscore last",
                    "choose another name",
                ),
            ],
            Annotated[
                tuple[
                    Annotated[
                        StrictStr,
                        AfterValidator(_user_flag),
                        editor(enum=list(USER_FLAGS)),
                        Rule("one of " + ", ".join(USER_FLAGS), "write one of these or leave it out"),
                    ],
                    ...,
                ],
                check(unique, uniqueItems=True),
                Rule("a list of " + ", ".join(USER_FLAGS) + ", each at most once", "write for example []"),
            ],
        ],
        check(not_empty, minProperties=1),
        Rule(
            "a map with at least one entry from names (at most 63 lower-case letters, digits and underscores, a letter "
            "first, no underscore last) to lists of " + ", ".join(USER_FLAGS),
            "write for example {bauer: []}",
            example={"bauer": []},
        ),
    ]
    """Database roles and their flags; the program makes a password for each."""
    databases: Annotated[
        Mapping[
            Annotated[
                StrictStr,
                AfterValidator(_database_name),
                editor(pattern=_name_pattern(_IDENTIFIER, RESERVED_DATABASES)),
                Rule(
                    "a name of at most 63 lower-case letters, digits and underscores, no digit first",
                    "choose another name",
                ),
            ],
            Annotated[StrictStr, Rule("the name of a role in postgres.users", "write for example bauer")],
        ],
        check(not_empty, minProperties=1),
        Rule(
            "a map with at least one entry from database names (lower-case letters, digits and underscores, no digit "
            "first, at most 63) to their owners in postgres.users",
            "write for example {firmendaten: bauer}",
            example={"firmendaten": "bauer"},
        ),
    ]
    """Databases and their owners; the first is the application's."""
    parameters: Annotated[
        Mapping[
            Annotated[
                StrictStr,
                AfterValidator(_parameter_name),
                editor(pattern=whole(rf"(?!ssl_|recovery_target_|({_REFUSED_PARAMETERS})$){_PARAMETER.pattern}")),
                Rule("the lower-case name of a PostgreSQL parameter", "write for example work_mem"),
            ],
            Annotated[
                StrictStr,
                AfterValidator(_parameter_value),
                editor(type=["string", "number", "boolean"], pattern=_OTHER_THAN_A_WRONG_UNIT),
                Rule("a text, a number, true or false", 'write for example "64MB"'),
            ],
        ],
        BeforeValidator(_parameter_values),
        Rule(
            "a map from PostgreSQL parameter names (lower case) to values",
            'write for example {max_connections: "200"}',
            example={"max_connections": "200"},
        ),
    ] = {}
    """PostgreSQL parameters; numbers are taken as text, true and false as on and off."""
    pooler: Annotated[
        PoolerSettings, Rule("a map with instances, mode, maxDatabaseConnections", "leave the key out for the defaults")
    ] = PoolerSettings()
    """The connection pooler."""
    allowed_sources: Annotated[
        tuple[
            Annotated[
                Network,
                AfterValidator(_allowed_source),
                editor(pattern=whole(NETWORK_OF_KNOWN_COMPUTERS)),
                Rule("an IPv4 network without host bits", "write for example 10.0.145.0/24"),
            ],
            ...,
        ],
        check(not_empty, minItems=1),
        check(unique, uniqueItems=True),
        Rule(
            "a list of at least one IPv4 network without host bits, each once",
            "write the networks the applications are in, such as [10.0.145.0/24]",
            example=["10.0.145.0/24"],
        ),
    ]
    """Networks whose computers may connect to the database's addresses."""
    addresses: Annotated[
        ServiceAddressSettings,
        Rule("a map with primary, replica and pooler", "write three addresses of network.servicePool"),
    ]
    """Fixed addresses of the database."""

    @property
    def application_database(self) -> tuple[str, str]:
        """Name and owner of the application's database, the first one in the configuration."""
        return next(iter(self.databases.items()))
