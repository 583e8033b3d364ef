"""Secrets: they stay where they are needed, and every connection knows whom it talks to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from policy import secrecy, vocabulary
from policy.rule import ResourcePolicy
from policy.secret_texts import names_a_secret
from tests.policy.judging import UNKNOWN, Judge, Planned, with_property

pytestmark = pytest.mark.unit

PROXMOX, DATABASE, MACHINE, K3S, TEMPLATE = "proxmox", "postgres-cluster", "gl6-container", "k3s", "pve1-template"
SETTINGS = ("serverSettings",)
ENDPOINT = (*SETTINGS, "datastore-endpoint")
ACCOUNT = ("initialization", "userAccount")
PARAMETERS = ("spec", "postgresql", "parameters")
SHARED_TOKEN = "root@pam!x=11111111-2222-3333-4444-555555555555"


def named(plan: Sequence[Planned], name: str) -> list[Planned]:
    """What the plan has of this name."""
    return [resource for resource in plan if resource.name == name]


def test_the_schools_plan_keeps_its_secrets(school_plan: list[Planned]) -> None:
    verdict = Judge(*secrecy.POLICIES).of_plan(school_plan)
    assert not verdict.violations
    assert not verdict.checked_at_up


def test_the_schools_first_preview_keeps_its_secrets(first_plan: list[Planned]) -> None:
    assert not Judge(*secrecy.POLICIES).of_plan(first_plan).violations


@pytest.mark.parametrize(
    ("policy", "resource", "path", "value", "sentence"),
    [
        (
            secrecy.PROXMOX_TLS_VERIFIED,
            PROXMOX,
            ("insecure",),
            "true",
            "provider proxmox has `insecure` true; allowed is",
        ),
        (
            secrecy.PROXMOX_TLS_VERIFIED,
            PROXMOX,
            ("insecure",),
            True,
            "provider proxmox has `insecure` true; allowed is",
        ),
        (secrecy.PROXMOX_TLS_VERIFIED, PROXMOX, ("insecure",), None, "has `insecure` unset; allowed is false."),
        (secrecy.PROXMOX_ENDPOINT_HTTPS, PROXMOX, ("endpoint",), "http://pve1:8006/", "no https address in `endpoint`"),
        (secrecy.PROXMOX_ENDPOINT_HTTPS, PROXMOX, ("endpoint",), None, "no https address in `endpoint`"),
        (secrecy.PROXMOX_TOKEN_NOT_ROOT, PROXMOX, ("password",), "hunter2", "logs in with `password`; allowed is only"),
        (secrecy.PROXMOX_TOKEN_NOT_ROOT, PROXMOX, ("authTicket",), "hunter2", "logs in with `authTicket`; allowed is"),
        (
            secrecy.PROXMOX_TOKEN_NOT_ROOT,
            PROXMOX,
            ("username",),
            "root@pam",
            "logs in as root; allowed is an API token",
        ),
        (
            secrecy.PROXMOX_TOKEN_NOT_ROOT,
            PROXMOX,
            ("apiToken",),
            SHARED_TOKEN,
            "proxmox has an API token of root; allowed",
        ),
        (
            secrecy.PROXMOX_TOKEN_NOT_ROOT,
            PROXMOX,
            ("apiToken",),
            None,
            "proxmox has no `apiToken`; allowed is one of a",
        ),
        (
            secrecy.KUBERNETES_TLS_VERIFIED,
            "kubernetes",
            ("kubeconfig",),
            "clusters:\n- cluster: {insecure-skip-tls-verify: true}",
            "The provider kubernetes does not check the cluster's certificate; allowed is checking it.",
        ),
        (
            secrecy.KUBERNETES_TLS_VERIFIED,
            "kubernetes",
            ("kubeconfig",),
            '{"clusters": [{"cluster": {"insecure-skip-tls-verify": true}}]}',
            "does not check the cluster's certificate",
        ),
        (
            secrecy.KUBERNETES_TLS_VERIFIED,
            "kubernetes",
            ("kubeconfig",),
            None,
            "kubernetes has no `kubeconfig`; allowed",
        ),
        (
            secrecy.DATASTORE_MUTUAL_TLS,
            "datastore",
            ("accessRules",),
            None,
            "says nothing about who may connect; allowed",
        ),
        (
            secrecy.DATASTORE_MUTUAL_TLS,
            "datastore",
            ("accessRules",),
            ["# nobody"],
            "says nothing about who may connect",
        ),
        (secrecy.K3S_DATASTORE_VERIFIED, K3S, (*SETTINGS, "datastore-cafile"), None, "k3s has no `datastore-cafile`"),
        (secrecy.K3S_DATASTORE_VERIFIED, K3S, (*SETTINGS, "datastore-certfile"), "", "k3s has no `datastore-certfile`"),
        (secrecy.K3S_DATASTORE_VERIFIED, K3S, (*SETTINGS, "datastore-keyfile"), None, "k3s has no `datastore-keyfile`"),
        (secrecy.K3S_DATASTORE_VERIFIED, K3S, ENDPOINT, None, "has no `datastore-endpoint`; without one, every server"),
        *(
            (
                secrecy.K3S_DATASTORE_VERIFIED,
                K3S,
                ENDPOINT,
                endpoint,
                "another `datastore-endpoint` than the datastore; allowed is postgres://user@host/name.",
            )
            for endpoint in (
                "mysql://k3s:hunter2@tcp(10.0.145.113)/k3s",
                "sqlite:///var/lib/k3s",
                "https://etcd:2379",
                "postgres://[hunter2",
                "nats://10.0.145.113",
                True,
            )
        ),
        (
            secrecy.K3S_DATASTORE_VERIFIED,
            K3S,
            ENDPOINT,
            "postgres://k3s:hunter2@10.0.145.113:5432/k3s",
            "k3s has a password in `datastore-endpoint`; allowed is the certificate alone.",
        ),
        (
            secrecy.K3S_DATASTORE_VERIFIED,
            K3S,
            ENDPOINT,
            "postgres://k3s@10.0.145.113/k3s?password=hunter2",
            "k3s has a password in `datastore-endpoint`",
        ),
        *(
            (
                secrecy.K3S_DATASTORE_VERIFIED,
                K3S,
                ENDPOINT,
                f"postgres://k3s@10.0.145.113:5432/k3s?sslmode={mode}",
                "k3s has an `sslmode` in `datastore-endpoint`; allowed is verify-full, or none.",
            )
            for mode in ("disable", "allow", "prefer", "require", "verify-ca")
        ),
        (
            secrecy.K3S_SECRETS_ENCRYPTED,
            K3S,
            (*SETTINGS, "secrets-encryption"),
            False,
            "`secrets-encryption` false; allow",
        ),
        (
            secrecy.K3S_SECRETS_ENCRYPTED,
            K3S,
            (*SETTINGS, "secrets-encryption"),
            None,
            "`secrets-encryption` unset; allow",
        ),
        (
            secrecy.K3S_KUBECONFIG_PRIVATE,
            K3S,
            (*SETTINGS, "write-kubeconfig-mode"),
            "0644",
            "`write-kubeconfig-mode` 0644;",
        ),
        (
            secrecy.K3S_KUBECONFIG_PRIVATE,
            K3S,
            (*SETTINGS, "write-kubeconfig-mode"),
            "640",
            "`write-kubeconfig-mode` 640;",
        ),
        (
            secrecy.K3S_SETTINGS_WITHOUT_SECRET,
            K3S,
            (*SETTINGS, "agent-token"),
            "hunter2",
            "k3s has `agent-token` among its",
        ),
        (
            secrecy.MACHINE_LOGIN_BY_KEY_ONLY,
            MACHINE,
            (*ACCOUNT, "password"),
            "hunter2",
            "gives root a password; allowed",
        ),
        (secrecy.MACHINE_LOGIN_BY_KEY_ONLY, MACHINE, (*ACCOUNT, "keys"), [], "gl6-container has no SSH key for root;"),
        (
            secrecy.MACHINE_LOGIN_BY_KEY_ONLY,
            MACHINE,
            ACCOUNT,
            None,
            "gl6-container has no SSH key for root; allowed is",
        ),
        (
            secrecy.PASSWORD_STRENGTH,
            "k3s-token",
            ("length",),
            23.0,
            "k3s-token has 23 characters; allowed are 24 or more.",
        ),
        (
            secrecy.PASSWORD_STRENGTH,
            "k3s-token",
            ("length",),
            None,
            "k3s-token has 0 characters; allowed are 24 or more.",
        ),
        (
            secrecy.PASSWORD_STRENGTH,
            "k3s-token",
            ("upper",),
            False,
            "k3s-token leaves out letters; allowed are capital",
        ),
        (secrecy.PASSWORD_STRENGTH, "k3s-token", ("lower",), "false", "k3s-token leaves out letters; allowed are"),
        (
            secrecy.WORKLOAD_SECRET_BY_REFERENCE,
            DATABASE,
            ("spec", "env"),
            [{"name": "AWS_SECRET_ACCESS_KEY", "value": "hunter2"}],
            "postgres-cluster has a value in AWS_SECRET_ACCESS_KEY; allowed is a reference to a Secret.",
        ),
        (
            secrecy.WORKLOAD_SECRET_BY_REFERENCE,
            DATABASE,
            ("spec", "env"),
            [{"name": "TARGET", "value": "postgres://bauer:hunter2@db/x"}],
            "postgres-cluster has an address with a password in TARGET; allowed is a reference to a Secret.",
        ),
        *(
            (
                secrecy.DATABASE_ROLES_LEAST,
                DATABASE,
                ("spec", "users", "bauer"),
                ["createdb", flag],
                f"postgres-cluster gives the role bauer the flag {flag}; allowed are all others.",
            )
            for flag in ("superuser", "REPLICATION", "bypassrls")
        ),
        (
            secrecy.DATABASE_PASSWORD_SCRAM,
            DATABASE,
            (*PARAMETERS, "password_encryption"),
            "md5",
            "`password_encryption` md5;",
        ),
        (
            secrecy.DATABASE_PASSWORD_SCRAM,
            DATABASE,
            PARAMETERS,
            None,
            "postgres-cluster has `password_encryption` unset; allowed is scram-sha-256.",
        ),
        (
            secrecy.DOWNLOAD_VERIFIED,
            TEMPLATE,
            ("checksum",),
            None,
            "pve1-template has no checksum; allowed is one of sha256",
        ),
        (
            secrecy.DOWNLOAD_VERIFIED,
            TEMPLATE,
            ("checksumAlgorithm",),
            "md5",
            "has a checksum of the kind md5; allowed are",
        ),
        (
            secrecy.DOWNLOAD_VERIFIED,
            TEMPLATE,
            ("checksumAlgorithm",),
            None,
            "a checksum of the kind unset; allowed are",
        ),
    ],
)
def test_what_gives_a_secret_away_is_a_violation(
    school_plan: list[Planned],
    policy: ResourcePolicy,
    resource: str,
    path: Sequence[str],
    value: object,
    sentence: str,
) -> None:
    verdict = Judge(*secrecy.POLICIES).of_plan(with_property(named(school_plan, resource), resource, path, value))
    assert list(verdict.violations) == [policy.name]
    (message,) = verdict.violations[policy.name]
    assert sentence in message
    assert "hunter2" not in message
    assert "11111111" not in message
    assert policy.name in verdict.mandatory


@pytest.mark.parametrize(
    ("resource", "path", "value"),
    [
        (PROXMOX, ("insecure",), False),
        (K3S, ENDPOINT, "postgres://k3s@10.0.145.113:5432/k3s?sslmode=verify-full"),
        (DATABASE, ("spec", "env"), [{"name": "LOG_LEVEL", "value": "DEBUG"}]),
        (DATABASE, ("spec", "env"), 0.5),
        (K3S, (*SETTINGS, "disable"), True),
        (K3S, (*SETTINGS, "write-kubeconfig-mode"), None),
        (K3S, (*SETTINGS, "write-kubeconfig-mode"), "600"),
        ("k3s-token", ("length",), 24.0),
        (DATABASE, ("spec", "users", "bauer"), ["createdb", "login"]),
        (DATABASE, ("spec", "users", "bauer"), ["createrole"]),
        (DATABASE, ("spec", "users"), None),
        (TEMPLATE, ("checksumAlgorithm",), "sha256"),
    ],
)
def test_what_keeps_a_secret_is_none(
    school_plan: list[Planned], resource: str, path: Sequence[str], value: object
) -> None:
    assert (
        not Judge(*secrecy.POLICIES)
        .of_plan(with_property(named(school_plan, resource), resource, path, value))
        .violations
    )


@pytest.mark.parametrize(
    ("version", "is_allowed"), [("15", False), ("13", False), (None, False), ("16", True), (16.0, True), ("17", True)]
)
@pytest.mark.parametrize("flag", ["createrole", "CREATEROLE"])
def test_a_role_makes_roles_only_where_it_gives_away_no_more_than_it_has(
    school_plan: list[Planned], version: object, is_allowed: bool, flag: str
) -> None:
    (database,) = named(school_plan, DATABASE)
    spec = dict(database.properties["spec"]) | {"users": {"bauer": [flag]}, "postgresql": {"version": version}}
    verdict = Judge(secrecy.DATABASE_ROLES_LEAST).of_plan([replace(database, properties={"spec": spec})])
    if is_allowed:
        assert not verdict.violations
    else:
        (message,) = verdict.violations["database-roles-least"]
        assert f"postgres-cluster gives the role bauer the flag {flag}; allowed is it from PostgreSQL 16 on." in message


@pytest.mark.parametrize(
    ("rule", "named_as"),
    [
        ("host all all 0.0.0.0/0 ldap ldapserver=dc ldapbindpasswd=hunter2", "rule 4 (host 0.0.0.0/0) does"),
        ("hostssl all all ldapbindpasswd=hunter2", "rule 4 (hostssl) lets"),
        ("local all all ldap ldapbindpasswd=hunter2", "rule 4 (local) lets"),
        ("hunter2", "rule 4 (of another kind) does"),
    ],
)
def test_a_rule_is_named_without_its_password(school_plan: list[Planned], rule: str, named_as: str) -> None:
    plan = with_property(named(school_plan, "datastore"), "datastore", ("accessRules",), lambda rules: [*rules, rule])
    (message,) = Judge(secrecy.DATASTORE_MUTUAL_TLS).of_plan(plan).violations["datastore-mutual-tls"]
    assert f"datastore: {named_as} " in message
    assert "hunter2" not in message


@pytest.mark.parametrize("value", [True, 0.5, "text", [None], [{}], {"a": [{}]}])
def test_what_has_another_shape_crashes_no_policy(school_plan: list[Planned], value: object) -> None:
    judge = Judge(*secrecy.POLICIES)
    for name, path in (
        (K3S, SETTINGS),
        (DATABASE, ("spec",)),
        (DATABASE, ("spec", "users")),
        ("backup-scripts", ("data",)),
        ("backup-schedule", ("spec", "jobTemplate", "spec", "template", "spec", "containers", 0, "command")),
        ("backup-schedule", ("spec", "jobTemplate", "spec", "template", "spec", "containers", 0, "env")),
        ("k3s-gl2", ("environment",)),
        ("datastore", ("accessRules",)),
    ):
        judge.of_plan(with_property(named(school_plan, name), name, path, value))


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        ("hostssl k3s k3s 10.0.145.110/32 cert clientcert=verify-full", None),
        ("hostssl k3s k3s fd00::1/128 cert clientcert=verify-full", None),
        (
            "hostssl k3s k3s 10.0.145.110/32 scram-sha-256 clientcert=verify-full",
            "lets in by something else than the certificate",
        ),
        (
            "hostssl k3s k3s 10.0.145.110/32 trust clientcert=verify-full",
            "lets in by something else than the certificate",
        ),
        ("include other.conf", "does without TLS"),
        ("local all postgres peer map=root", None),
        ("host all all 0.0.0.0/0 reject", None),
        ("host k3s k3s 10.0.145.110/32 scram-sha-256", "does without TLS"),
        ("hostnossl k3s k3s 10.0.145.110/32 trust clientcert=verify-full", "does without TLS"),
        ("hostssl k3s k3s 0.0.0.0/0 cert clientcert=verify-full", "lets more than one address in"),
        ("hostssl k3s k3s 10.0.145.0/24 cert clientcert=verify-full", "lets more than one address in"),
        ("hostssl k3s k3s samenet cert clientcert=verify-full", "lets more than one address in"),
        ("hostssl k3s k3s", "lets more than one address in"),
        ("hostssl k3s k3s 10.0.145.110/32 md5", "does without a client's certificate"),
        ("hostssl k3s k3s 10.0.145.110/32 md5 # clientcert=verify-full", "does without a client's certificate"),
        ("hostssl k3s k3s 10.0.145.110/32 scram-sha-256 clientcert=verify-ca", "does without a client's certificate"),
        ("local all all trust", "lets every user of the machine in"),
    ],
)
def test_the_datastore_lets_in_only_who_has_a_certificate(
    school_plan: list[Planned], rule: str, fault: str | None
) -> None:
    plan = with_property(
        named(school_plan, "datastore"), "datastore", ("accessRules",), lambda rules: [*rules, rule, ""]
    )
    violations = Judge(secrecy.DATASTORE_MUTUAL_TLS).of_plan(plan).violations
    if fault is None:
        assert not violations
    else:
        (message,) = violations["datastore-mutual-tls"]
        assert f" {fault}; allowed are" in message
        assert "datastore: rule 4 (" in message


def workload(type_: str, container: Mapping[str, object], kind: str = "containers") -> Planned:
    """A workload of one container."""
    spec: dict[str, object] = {kind: [{"name": "app", **container}]}
    if type_ == "kubernetes:core/v1:Pod":
        return Planned(type=type_, name="web", properties={"spec": spec})
    template: dict[str, object] = {"template": {"spec": spec}}
    if type_ == vocabulary.CRON_JOB:
        template = {"jobTemplate": {"spec": template}}
    return Planned(type=type_, name="web", properties={"spec": template})


@pytest.mark.parametrize("type_", vocabulary.WORKLOADS)
@pytest.mark.parametrize("kind", ["containers", "initContainers"])
@pytest.mark.parametrize(
    ("container", "sentence"),
    [
        (
            {"env": [{"name": "DB_PASSWORD", "value": "hunter2"}]},
            "web: container app has a value in DB_PASSWORD; allowed",
        ),
        (
            {"env": [{"name": "DATABASE_URL", "value": "postgresql://bauer:hunter2@db/firmendaten"}]},
            "web: container app has an address with a password in DATABASE_URL; allowed is a reference to a Secret.",
        ),
        ({"args": ["--password=hunter2"]}, "web: container app has a password as an argument on its command line"),
        ({"args": ["--token", "hunter2"]}, "web: container app has a password as an argument on its command line"),
        ({"command": ["sh", "-c", "PGPASSWORD=hunter2 psql"]}, "has a password that is assigned on its command line"),
        ({"command": ["sh", "-c", "DB_PASS=hunter2 psql"]}, "has a password that is assigned on its command line"),
        ({"args": ["--passwort", "hunter2"]}, "has a password as an argument on its command line"),
        ({"env": [{"name": "PIN_TOKEN", "value": "/hunter2"}]}, "has a value in PIN_TOKEN; allowed"),
        ({"env": [{"name": "DB_PWD", "value": "hunter2"}]}, "has a value in DB_PWD; allowed"),
        ({"env": [{"name": "DB_PASSWORD", "value": "123456"}]}, "has a value in DB_PASSWORD; allowed"),
        ({"env": [{"name": "DB_PASSWORD", "value": 123456.0}]}, "has a value in DB_PASSWORD; allowed"),
    ],
)
def test_a_container_gets_its_secrets_by_reference(
    type_: str, kind: str, container: Mapping[str, object], sentence: str
) -> None:
    verdict = Judge(*secrecy.POLICIES).of_resource(workload(type_, container, kind))
    (message,) = verdict.violations["workload-secret-by-reference"]
    assert sentence in message
    assert "hunter2" not in message
    assert "workload-secret-by-reference" in verdict.mandatory


def test_what_is_not_known_yet_hides_no_secret_that_is() -> None:
    env = [{"name": "PGHOST", "value": UNKNOWN}, {"name": "PGPASSWORD", "value": "hunter2"}]
    verdict = Judge(secrecy.WORKLOAD_SECRET_BY_REFERENCE).of_resource(workload("kubernetes:core/v1:Pod", {"env": env}))
    assert "web: container app has a value in PGPASSWORD" in verdict.sentences[0]
    assert list(verdict.checked_at_up) == ["workload-secret-by-reference"]


@pytest.mark.parametrize(
    "container",
    [
        {},
        {"env": [{"name": "DB_PASSWORD", "valueFrom": {"secretKeyRef": {"name": "db", "key": "password"}}}]},
        {"env": [{"name": "DB_PASSWORD", "value": "$(PGPASSWORD)"}, {"name": "API_TOKEN", "value": ""}]},
        {"env": [{"name": "TOKEN_EXPIRY", "value": "3600"}, {"name": "PASSWORD_MIN_CHARS", "value": "8"}]},
        {"env": [{"name": "CACHE_KEY_PREFIX", "value": "school"}, {"name": "PRIMARY_KEY", "value": "id"}]},
        {"env": [{"name": "SSL_KEY", "value": "/etc/tls/tls.key"}, {"name": "LEAST_PASSWORD", "value": 8.0}]},
        {"env": [{"name": "USE_TOKEN", "value": "True"}, {"name": "MAX_TOKEN", "value": "1.5"}]},
        {"env": 0.5, "command": 0.5, "args": {"a": "b"}},
        {"env": [{"name": "PASSWORD_FILE", "value": "/run/secret"}, {"name": "KEEP_DAYS", "value": "14"}]},
        {"args": ["--password-file=/run/secret", "--from=postgresql://$(USER):$(PASSWORD)@db/x"]},
    ],
)
def test_a_container_without_a_secret_of_its_own_is_left_alone(container: Mapping[str, object]) -> None:
    resource = workload("kubernetes:apps/v1:Deployment", container)
    assert not Judge(secrecy.WORKLOAD_SECRET_BY_REFERENCE).of_resource(resource).violations


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("PASSWORD", True),
        ("PGPASSWORD", True),
        ("db-password", True),
        ("apiToken", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("tls.key", True),
        ("SMB_PASS", True),
        ("KEYCLOAK_HOST", False),
        ("MONKEY", False),
        ("TOKEN_FILE", False),
        ("SSH_PUBLIC_KEY", False),
        ("secretName", False),
        ("secrets-encryption", False),
        ("datastore-keyfile", False),
        ("PASSENGER_COUNT", False),
        ("PWD", True),
        ("DB_PWD", True),
        ("PASSWORT", True),
        ("LDAP_KENNWORT", True),
        ("SMB_CRED", True),
        ("WIFI_PSK", True),
        ("DBPASS", True),
        ("PASS", True),
        ("APIKEY", True),
        ("MYAPIKEY", True),
        ("PASSWORD2", True),
        ("DB_PASSWORD_1", True),
        ("DB_PASSWORD_OLD", True),
        ("TOKEN_EXPIRY", False),
        ("PASSWORD_MIN_CHARS", False),
        ("CACHE_KEY_PREFIX", False),
        ("PRIMARY_KEY", False),
        ("sshKey.pub", False),
        ("", False),
        ("_1_", False),
    ],
)
def test_a_name_says_whether_it_is_a_secrets(name: str, is_one: bool) -> None:
    assert names_a_secret(name) is is_one


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"password": "hunter2"}, "settings has a value in password; allowed is no secret at all."),
        ({"dump.sh": "set -e\nexport PGPASSWORD='hunter2'\n"}, "settings has a password that is assigned in dump.sh;"),
        ({"app.yaml": "database:\n  password: hunter2\n"}, "settings has a password that is assigned in app.yaml;"),
        ({"app.json": '{\n  "apiToken": "hunter2"\n}'}, "settings has a password that is assigned in app.json;"),
        ({"id_ed25519": "-----BEGIN OPENSSH PRIVATE KEY-----\nhunter2"}, "settings has a private key in id_ed25519;"),
        ({"dump.sh": "psql postgresql://postgres:hunter2@db/x"}, "settings has an address with a password in dump.sh;"),
    ],
)
def test_a_config_map_holds_no_secret(data: Mapping[str, str], sentence: str) -> None:
    config_map = Planned(type=secrecy.CONFIG_MAP, name="settings", properties={"data": data})
    verdict = Judge(secrecy.CONFIG_MAP_WITHOUT_SECRET).of_resource(config_map)
    (message,) = verdict.violations["config-map-without-secret"]
    assert sentence in message
    assert "hunter2" not in message
    binary = Planned(type=secrecy.CONFIG_MAP, name="settings", properties={"binaryData": {"tls.key": "aHVudGVyMg=="}})
    assert Judge(secrecy.CONFIG_MAP_WITHOUT_SECRET).of_resource(binary).violations


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"password": ""},
        {"sshKey.pub": "ssh-ed25519 AAAA", "tls.key": "/etc/tls/tls.key"},
        {"dump.sh": "# needs PGPASSWORD; the password: see the Secret\nPGPASSWORD=$1 psql\nunset PGPASSWORD\n"},
        {"app.yaml": "password_encryption: scram-sha-256\npassword: ${DB_PASSWORD}\ntokenFile: /run/token\n"},
    ],
)
def test_a_config_map_without_a_secret_is_left_alone(data: Mapping[str, str]) -> None:
    config_map = Planned(type=secrecy.CONFIG_MAP, name="settings", properties={"data": data})
    assert not Judge(secrecy.CONFIG_MAP_WITHOUT_SECRET).of_resource(config_map).violations


@pytest.mark.parametrize(
    ("policy", "resource", "path"),
    [
        (secrecy.PROXMOX_TLS_VERIFIED, PROXMOX, ("insecure",)),
        (secrecy.PROXMOX_ENDPOINT_HTTPS, PROXMOX, ("endpoint",)),
        (secrecy.PROXMOX_TOKEN_NOT_ROOT, PROXMOX, ("apiToken",)),
        (secrecy.KUBERNETES_TLS_VERIFIED, "kubernetes", ("kubeconfig",)),
        (secrecy.WORKLOAD_SECRET_BY_REFERENCE, "backup-schedule", ("spec",)),
        (secrecy.CONFIG_MAP_WITHOUT_SECRET, "backup-scripts", ("data", "dump.sh")),
        (secrecy.DATASTORE_MUTUAL_TLS, "datastore", ("accessRules",)),
        (secrecy.K3S_DATASTORE_VERIFIED, K3S, ENDPOINT),
        (secrecy.K3S_SECRETS_ENCRYPTED, K3S, (*SETTINGS, "secrets-encryption")),
        (secrecy.K3S_KUBECONFIG_PRIVATE, K3S, (*SETTINGS, "write-kubeconfig-mode")),
        (secrecy.K3S_SETTINGS_WITHOUT_SECRET, K3S, SETTINGS),
        (secrecy.MACHINE_LOGIN_BY_KEY_ONLY, MACHINE, ACCOUNT),
        (secrecy.PASSWORD_STRENGTH, "k3s-token", ("length",)),
        (secrecy.DATABASE_ROLES_LEAST, DATABASE, ("spec", "users", "bauer")),
        (secrecy.DATABASE_PASSWORD_SCRAM, DATABASE, (*PARAMETERS, "password_encryption")),
        (secrecy.DOWNLOAD_VERIFIED, TEMPLATE, ("checksum",)),
    ],
)
def test_what_is_not_known_yet_is_checked_at_up(
    school_plan: list[Planned], policy: ResourcePolicy, resource: str, path: Sequence[str]
) -> None:
    verdict = Judge(policy).of_plan(with_property(named(school_plan, resource), resource, path, UNKNOWN))
    assert not verdict.violations
    assert verdict.checked_at_up == {
        policy.name: f"{'.'.join(path)} of {resource}: not known yet, checked at `pulumi up`"
    }
