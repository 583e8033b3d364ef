"""Commands: no secret on a command line, in a trigger or in the log, and no machine that does not prove who it is."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from policy import commands
from policy.rule import PlanPolicy, ResourcePolicy
from tests.policy.judging import UNKNOWN, Judge, Planned, Verdict, with_property

pytestmark = pytest.mark.unit

REMOTE, LOCAL = "command:remote:Command", "command:local:Command"
PINNED = {"connection": {"host": "10.0.145.113", "hostKey": "ssh-ed25519 AAAA"}, "logging": "stderr"}


def judged(properties: Mapping[str, object], type_: str = REMOTE) -> Verdict:
    """What all policies say about a command that is otherwise safe."""
    command = Planned(type=type_, name="gl8-datastore", properties=PINNED | dict(properties))
    return Judge(*commands.POLICIES).of_plan([command])


def test_the_schools_commands_are_safe(school_plan: list[Planned], first_plan: list[Planned]) -> None:
    judge = Judge(*commands.POLICIES)
    assert not judge.of_plan(school_plan).violations
    assert not judge.of_plan(school_plan).checked_at_up
    assert not judge.of_plan(first_plan).violations


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("k3s server --token=hunter2", "a password as an argument"),
        ("k3s agent --agent-token hunter2", "a password as an argument"),
        ("sshpass -p hunter2 ssh gl8", "a password as an argument"),
        ("PGPASSWORD=hunter2 psql", "a password that is assigned"),
        ("curl 'https://pve1/?api_key=hunter2'", "a password that is assigned"),
        ("psql postgres://k3s:hunter2@gl8/k3s", "an address with a password"),
        ("echo K10aa5f::server:hunter2 > token", "a K3s token"),
        ("curl -H 'Authorization: Bearer hunter2'", "an authorization header"),
        ("pvesh --x root@pam!x=11111111-2222-3333-4444-555555555555", "a Proxmox API token"),
        ("echo '-----BEGIN OPENSSH PRIVATE KEY-----hunter2'", "a private key"),
    ],
)
@pytest.mark.parametrize("operation", ["create", "update", "delete"])
def test_a_secret_on_a_command_line_is_found_and_not_repeated(text: str, kind: str, operation: str) -> None:
    verdict = judged({operation: text})
    assert list(verdict.violations) == ["command-without-secret"]
    assert f"gl8-datastore has {kind} in `{operation}`; allowed is none." in verdict.sentences[0]
    assert "hunter2" not in "".join(verdict.sentences)
    assert "1111" not in "".join(verdict.sentences)
    assert verdict.mandatory == {"command-without-secret"}


@pytest.mark.parametrize(
    "text",
    [
        "timeout --kill-after=10 600 bash -s -- gl8 k3s-datastore apply",
        'PGPASSWORD="$password" psql',
        "PGPASSWORD=$(cat /root/password) psql",
        "mysql --password-file=/root/password --token-file /root/token",
        "docker login --password-stdin",
        "compass=north bypass=1 OLDPWD=x PWD=y make",
        "psql postgres://k3s@gl8:5432/k3s?sslmode=verify-full",
        'psql "postgres://k3s:$PASSWORD@gl8/k3s"',
        "curl https://gl8:8006/a@b",
        'if [ "$token" == expected ]; then true; fi',
        "",
    ],
)
def test_what_is_no_secret_is_none(text: str) -> None:
    assert not judged({"create": text}).violations


def test_an_environment_and_an_interpreter_are_looked_at() -> None:
    named = judged({"environment": {"DB_PASSWORD": "hunter2"}})
    assert "gl8-datastore has the secret DB_PASSWORD in `environment`" in named.sentences[0]
    valued = judged({"environment": {"TARGET": "postgres://k3s:hunter2@gl8/k3s"}})
    assert "gl8-datastore has an address with a password in `environment`" in valued.sentences[0]
    interpreter = judged({"interpreter": ["bash", "-c", "PGPASSWORD=hunter2 psql"]}, LOCAL)
    assert "a password that is assigned in `interpreter`" in "".join(interpreter.violations["command-without-secret"])
    assert "hunter2" not in "".join([*named.sentences, *valued.sentences, *interpreter.sentences])
    harmless = {
        "PASSWORD_FILE": "/root/password",
        "PATH": "/bin",
        "TOKEN_EXPIRY": "3600",
        "SSL_KEY": "/etc/tls/tls.key",
    }
    assert not judged({"environment": harmless}).violations


@pytest.mark.parametrize("value", [True, 0.5, [{}], [None]])
def test_what_has_another_shape_crashes_no_policy(value: object) -> None:
    for key in ("environment", "create", "interpreter", "triggers", "connection"):
        judged({key: value})


def test_a_secret_as_a_trigger_is_found_and_not_repeated(school_plan: list[Planned]) -> None:
    triggers = ["container-id", "postgres://k3s:hunter2@gl8/k3s"]
    plan = with_property(school_plan, "datastore-postgresql", ("triggers",), triggers)
    verdict = Judge(*commands.POLICIES).of_plan(plan)
    assert list(verdict.violations) == ["command-triggers-without-secret"]
    assert "datastore-postgresql has an address with a password in `triggers`; allowed is none." in verdict.sentences[0]
    assert "hunter2" not in verdict.sentences[0]


@pytest.mark.parametrize(
    ("logging", "said"), [(None, "unset"), ("stdout", "stdout"), ("stdoutAndStderr", "stdoutAndStderr")]
)
@pytest.mark.parametrize("given", [{"stdin": "x"}, {"environment": {"TARGET": "gl8"}}])
def test_what_a_command_prints_is_not_shown_as_it_comes(
    logging: str | None, said: str, given: Mapping[str, object]
) -> None:
    properties = {key: value for key, value in (PINNED | dict(given)).items() if key != "logging"}
    if logging is not None:
        properties["logging"] = logging
    command = Planned(type=REMOTE, name="gl8-datastore", properties=properties)
    (message,) = Judge(*commands.POLICIES).of_plan([command]).violations["command-output-hidden"]
    assert f"gl8-datastore has `logging` {said}; allowed are none, stderr." in message


@pytest.mark.parametrize("properties", [{"logging": "none", "stdin": "x"}, {"logging": None, "create": "date"}])
def test_what_has_nothing_to_hide_may_be_shown(properties: Mapping[str, object]) -> None:
    assert not judged(properties).violations


@pytest.mark.parametrize("type_", commands.REMOTE)
@pytest.mark.parametrize("connection", [None, {"host": "gl8"}, {"host": "gl8", "hostKey": ""}])
def test_a_machine_proves_who_it_is(type_: str, connection: Mapping[str, str] | None) -> None:
    verdict = judged({"connection": connection}, type_)
    assert list(verdict.violations) == ["command-host-key-pinned"]
    assert "gl8-datastore connects without a host key; allowed is one in `connection.hostKey`." in verdict.sentences[0]


def test_a_connection_that_was_blotted_out_tells_nothing() -> None:
    assert not judged({"connection": "[secret]"}).violations


def test_a_proxy_proves_who_it_is() -> None:
    connection = {"host": "gl8", "hostKey": "ssh-ed25519 AAAA", "proxy": {"host": "pve1"}}
    verdict = judged({"connection": connection})
    assert "gl8-datastore connects over a proxy without a host key" in verdict.sentences[0]
    assert not judged({"connection": connection | {"proxy": {"host": "pve1", "hostKey": "ssh-rsa AAAA"}}}).violations


def test_a_command_on_this_computer_needs_no_host_key() -> None:
    assert not judged({"connection": None, "create": "date"}, LOCAL).violations


@pytest.mark.parametrize(
    ("policy", "properties"),
    [
        (commands.COMMAND_WITHOUT_SECRET, {"create": UNKNOWN}),
        (commands.COMMAND_TRIGGERS_WITHOUT_SECRET, {"triggers": ["id", UNKNOWN]}),
        (commands.COMMAND_OUTPUT_HIDDEN, {"logging": "stdout", "stdin": UNKNOWN}),
        (commands.COMMAND_HOST_KEY_PINNED, {"connection": UNKNOWN}),
        (commands.COMMAND_HOST_KEY_PINNED, {"connection": {"hostKey": UNKNOWN}}),
    ],
)
def test_what_is_not_known_yet_is_checked_at_up(
    policy: ResourcePolicy | PlanPolicy, properties: Mapping[str, object]
) -> None:
    verdict = judged(properties)
    assert not verdict.violations
    assert list(verdict.checked_at_up) == [policy.name]


def test_output_that_is_hidden_needs_no_look_at_what_is_not_known_yet() -> None:
    assert not judged({"stdin": UNKNOWN}).checked_at_up
