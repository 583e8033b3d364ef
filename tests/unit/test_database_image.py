"""The lab's database image: what it makes of the environment that the postgres-operator gives it."""

from __future__ import annotations

import configparser
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lab import places

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def launch() -> ModuleType:
    """The image's entry program as a module."""
    path = places.REPOSITORY / "lab" / "images" / "database" / "launch.py"
    spec = importlib.util.spec_from_file_location("launch", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def database_environment(**changes: str) -> dict[str, str]:
    """What operator 1.15.0 puts into a database pod."""
    return {
        "SCOPE": "wichtige-daten-3",
        "PGROOT": "/home/postgres/pgdata/pgroot",
        "POD_IP": "10.42.1.7",
        "POD_NAMESPACE": "postgres",
        "PGVERSION": "15",
        "PGUSER_SUPERUSER": "postgres",
        "PGPASSWORD_SUPERUSER": "super",
        "PGUSER_STANDBY": "standby",
        "PGPASSWORD_STANDBY": "stand",
        "KUBERNETES_SCOPE_LABEL": "cluster-name",
        "KUBERNETES_ROLE_LABEL": "spilo-role",
        "KUBERNETES_LABELS": '{"application":"spilo"}',
        "KUBERNETES_BOOTSTRAP_LABELS": '{"critical-operation":"true"}',
        **changes,
    }


def pooler_environment(**changes: str) -> dict[str, str]:
    """What operator 1.15.0 puts into a pooler pod."""
    return {
        "PGHOST": "wichtige-daten-3",
        "PGPORT": "5432",
        "PGUSER": "pooler",
        "PGPASSWORD": 'p"w',
        "PGSCHEMA": "pooler",
        "CONNECTION_POOLER_PORT": "5432",
        "CONNECTION_POOLER_MODE": "transaction",
        "CONNECTION_POOLER_DEFAULT_SIZE": "30",
        "CONNECTION_POOLER_MIN_SIZE": "30",
        "CONNECTION_POOLER_RESERVE_SIZE": "15",
        "CONNECTION_POOLER_MAX_CLIENT_CONN": "10000",
        "CONNECTION_POOLER_MAX_DB_CONN": "60",
        **changes,
    }


def settings_of(launch: ModuleType, environment: dict[str, str]) -> dict[str, Any]:
    """Patroni's configuration for ``environment``."""
    made: dict[str, Any] = launch.patroni_settings(
        environment,
        version="15",
        certificate="/c",
        key="/k",
        socket_directory="/run/postgresql",
        home=Path("/tmp/spilo"),
    )
    return made


def test_patroni_finds_what_the_operator_relies_on(launch: ModuleType) -> None:
    settings = settings_of(launch, database_environment())
    kubernetes = settings["kubernetes"]
    assert settings["scope"] == "wichtige-daten-3"
    assert kubernetes["leader_label_value"] == "master"
    assert kubernetes["follower_label_value"] == "replica"
    assert kubernetes["labels"] == {"application": "spilo"}
    assert kubernetes["bootstrap_labels"] == {"critical-operation": "true"}
    assert kubernetes["use_endpoints"] is True
    assert settings["restapi"] == {"listen": "0.0.0.0:8008", "connect_address": "10.42.1.7:8008"}
    assert settings["postgresql"]["data_dir"] == "/home/postgres/pgdata/pgroot/data"
    assert settings["postgresql"]["bin_dir"] == "/usr/lib/postgresql/15/bin"
    assert settings["postgresql"]["parameters"]["ssl"] == "on"
    assert settings["bootstrap"]["dcs"]["postgresql"]["parameters"]


def test_leader_may_be_kept_in_config_maps(launch: ModuleType) -> None:
    assert "use_endpoints" not in launch.kubernetes_settings(database_environment(KUBERNETES_USE_CONFIGMAPS="true"))


def test_the_operators_own_settings_have_the_last_word(launch: ModuleType) -> None:
    asked = {
        "postgresql": {"parameters": {"password_encryption": "scram-sha-256"}, "pg_hba": ["hostssl all all all md5"]},
        "bootstrap": {
            "initdb": [{"auth-host": "md5"}, {"locale": "de_DE.UTF-8"}],
            "dcs": {"ttl": 20, "synchronous_mode": True, "postgresql": {"parameters": {"max_connections": "200"}}},
        },
    }
    settings = settings_of(launch, database_environment(SPILO_CONFIGURATION=json.dumps(asked)))
    assert settings["bootstrap"]["dcs"]["ttl"] == 20
    assert settings["bootstrap"]["dcs"]["loop_wait"] == 10
    assert settings["bootstrap"]["dcs"]["postgresql"]["parameters"]["max_connections"] == "200"
    assert settings["bootstrap"]["dcs"]["postgresql"]["parameters"]["wal_level"] == "replica"
    assert settings["postgresql"]["parameters"]["password_encryption"] == "scram-sha-256"
    assert settings["postgresql"]["parameters"]["ssl"] == "on"
    assert settings["postgresql"]["pg_hba"] == ["hostssl all all all md5"]
    assert settings["bootstrap"]["initdb"] == [
        {"encoding": "UTF8"},
        "data-checksums",
        {"auth-host": "md5"},
        {"locale": "de_DE.UTF-8"},
    ]


@pytest.mark.parametrize("name", ["SCOPE", "POD_IP", "PGROOT", "PGPASSWORD_SUPERUSER", "PGPASSWORD_STANDBY"])
def test_missing_variable_is_named(launch: ModuleType, name: str) -> None:
    with pytest.raises(launch.Refused, match=f"The variable {name} is missing"):
        settings_of(launch, database_environment(**{name: ""}))


def test_version_that_the_image_does_not_have_is_refused(launch: ModuleType) -> None:
    assert launch.server_version({"PGVERSION": "15"}, ["13", "15"]) == "15"
    assert launch.server_version({}, ["13", "15"]) == "15"
    with pytest.raises(launch.Refused, match=r"PostgreSQL 16 is not in .* which has 13, 15: set postgres\.version"):
        launch.server_version({"PGVERSION": "16"}, ["13", "15"])


def test_cloning_is_refused_and_not_ignored(launch: ModuleType) -> None:
    with pytest.raises(launch.Refused, match="CLONE_SCOPE is set"):
        launch.run_database(database_environment(CLONE_SCOPE="other"))


def test_roles_are_quoted(launch: ModuleType) -> None:
    sql = launch.roles_sql("o'\"x")
    assert "rolname = 'admin'" in sql
    assert "rolname = 'o''\"x'" in sql
    assert 'CREATE ROLE "o\'""x" NOLOGIN' in sql


def test_pooler_looks_users_up_and_insists_on_encryption(launch: ModuleType) -> None:
    ini = configparser.ConfigParser(interpolation=None)
    ini.read_string(launch.pgbouncer_ini(pooler_environment(), "/c", "/k", Path("/u")))
    assert ini["databases"]["*"] == "host=wichtige-daten-3 port=5432 auth_user=pooler"
    pooler = ini["pgbouncer"]
    assert pooler["auth_query"] == "SELECT * FROM pooler.user_lookup($1)"
    assert pooler["client_tls_sslmode"] == "require"
    assert pooler["server_tls_sslmode"] == "require"
    assert pooler["pool_mode"] == "transaction"
    assert pooler["max_db_connections"] == "60"
    assert 'p"w' not in launch.pgbouncer_ini(pooler_environment(), "/c", "/k", Path("/u"))


def test_pooler_password_is_quoted(launch: ModuleType) -> None:
    assert launch.users_file(pooler_environment()) == '"pooler" "p""w"\n'


def test_generated_files_are_private(launch: ModuleType, tmp_path: Path) -> None:
    launch.write_private(tmp_path / "secret", "secret")
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
