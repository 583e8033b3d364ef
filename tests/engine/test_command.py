"""Commands over SSH as the lab's ``command`` provider runs them: the ways of the real one that a program meets."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.engine.command_output import go_quote
from lab.engine.ssh import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, PAUSE_GROWTH

if TYPE_CHECKING:
    from tests.engine.conftest import SshServer, Stack

pytestmark = pytest.mark.engine

START = """
import pulumi_command as command
from pulumi import ResourceOptions

connection = command.remote.ConnectionArgs(host="127.0.0.1", **option("connection"))


def run(name, create, opts=None, **more):
    more = {"add_previous_output_in_env": False, **more}
    return command.remote.Command(name, connection=connection, create=create, opts=opts, **more)


"""


@pytest.fixture
def ssh_stack(stack: Stack, ssh_server: SshServer) -> Stack:
    """A stack whose program has ``run(name, create, ...)`` against the SSH server."""
    stack.options["connection"] = json.loads(
        json.dumps({"port": ssh_server.port, "private_key": ssh_server.private_key, "host_key": ssh_server.host_key})
    )
    return stack


def test_a_command_gets_its_input_and_variables_and_gives_its_output_without_the_last_newline(
    ssh_stack: Stack, tmp_path: Path
) -> None:
    ssh_stack.write(
        START
        + f"""
made = run("made", "cat; echo $TEST_NAME; echo; echo trouble >&2; echo run >> {tmp_path}/runs",
           stdin="first\\n", environment={{"TEST_NAME": "value"}})
secret = run("secret", "cat", stdin=pulumi.Output.secret("hidden"), logging=command.remote.Logging.NONE)
"""
    )
    ssh_stack.run("preview").expect()
    assert not (tmp_path / "runs").exists(), "a preview runs nothing"
    ssh_stack.up().expect()
    stored = ssh_stack.resources()
    assert stored["made"]["outputs"]["stdout"] == "first\nvalue\n"
    assert stored["made"]["outputs"]["stderr"] == "trouble"
    assert "ciphertext" in stored["made"]["outputs"]["connection"]
    assert "ciphertext" in stored["secret"]["outputs"]["stdout"]
    assert "3 unchanged" in ssh_stack.up().expect().text
    assert (tmp_path / "runs").read_text() == "run\n"


def test_any_change_of_the_connection_runs_create_again_unless_it_is_ignored(ssh_stack: Stack, tmp_path: Path) -> None:
    ssh_stack.write(
        START
        + f"""
run("plain", "echo plain >> {tmp_path}/runs")
run("ignoring", "echo ignoring >> {tmp_path}/runs", ResourceOptions(ignore_changes=["connection"]))
run("updating", "echo created >> {tmp_path}/runs", update="echo updated >> {tmp_path}/runs")
"""
    )
    ssh_stack.up().expect()
    ssh_stack.options["connection"] |= {"dial_error_limit": 11}
    (tmp_path / "runs").unlink()
    ssh_stack.up().expect()
    assert sorted((tmp_path / "runs").read_text().split()) == ["plain", "updated"]


def test_triggers_replace_and_the_old_delete_runs_after_the_new_create(ssh_stack: Stack, tmp_path: Path) -> None:
    ssh_stack.write(
        START
        + f"""
run("plain", "echo create >> {tmp_path}/plain", delete="echo delete >> {tmp_path}/plain", triggers=[option("generation")])
run("first", "echo create >> {tmp_path}/first", delete="echo delete >> {tmp_path}/first",
    triggers=[option("generation")], opts=ResourceOptions(delete_before_replace=True))
"""
    )
    ssh_stack.options["generation"] = "1"
    ssh_stack.up().expect()
    ssh_stack.options["generation"] = "2"
    ssh_stack.up().expect()
    assert (tmp_path / "plain").read_text().split() == ["create", "create", "delete"]
    assert (tmp_path / "first").read_text().split() == ["create", "delete", "create"]
    ssh_stack.destroy().expect()
    assert (tmp_path / "plain").read_text().split()[-1] == "delete"


def test_a_failure_shows_the_command_and_all_output_even_without_logging_and_leaves_no_state(ssh_stack: Stack) -> None:
    ssh_stack.write(START + "run('failing', 'echo out; echo err >&2; exit 3', logging=command.remote.Logging.NONE)\n")
    text = ssh_stack.up().expect_failure().text
    assert 'Process exited with status 3: running "echo out; echo err >&2; exit 3":' in text
    assert "out" in text.partition("exit 3")[2]
    assert "failing" not in ssh_stack.resources()


def test_a_wrong_host_key_and_a_dead_agent_are_refused(ssh_stack: Stack, tmp_path: Path) -> None:
    ssh_stack.write(START + "run('made', 'true')\n")
    ssh_stack.options["connection"] |= {"dial_error_limit": 0}
    dead = ssh_stack.up(SSH_AUTH_SOCK=str(tmp_path / "dead.sock")).expect_failure()
    assert "dead.sock: connect: no such file or directory" in dead.text
    ssh_stack.options["connection"] |= {
        "host_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE5qQmYVfQjTlZ1fTqUo1JY3HqVwCkMXZ0VtFmcF3g6P"
    }
    assert "host key" in ssh_stack.up().expect_failure().text


def test_dialling_is_repeated_with_growing_pauses_up_to_the_limit(ssh_stack: Stack) -> None:
    pauses = [min(FIRST_PAUSE_SECONDS * PAUSE_GROWTH**count, LONGEST_PAUSE_SECONDS) for count in range(10)]
    assert 11 < sum(pauses) < 12, "the default limit of 10 gives up after 11 seconds"
    ssh_stack.write(START + "run('made', 'true')\n")
    ssh_stack.options["connection"] |= {"port": 1, "dial_error_limit": 4}
    outcome = ssh_stack.up().expect_failure()
    assert "after 4 failed attempts: dial tcp 127.0.0.1:1: connect: connection refused" in outcome.text
    assert outcome.seconds > sum(pauses[:4])


def test_a_host_that_accepts_and_says_nothing_is_waited_for_until_an_interrupt(ssh_stack: Stack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        accepted = threading.Event()

        def accept() -> None:
            held, _ = silent.accept()
            accepted.set()
            held.recv(1000)
            held.recv(1000)
            held.close()

        threading.Thread(target=accept, daemon=True).start()
        ssh_stack.write(START + "run('made', 'true')\n")
        ssh_stack.options["connection"] |= {"port": silent.getsockname()[1], "per_dial_timeout": 1}
        process = ssh_stack.start("up", "--yes", "--skip-preview")
        assert accepted.wait(20)
        time.sleep(3)
        assert process.poll() is None, "neither perDialTimeout nor the dial limit ends it"
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert time.monotonic() - began < 10


def test_a_refused_variable_fails_but_a_refused_previous_output_only_warns(ssh_stack: Stack) -> None:
    ssh_stack.write(START + "run('made', 'echo hello', environment={'OTHER': 'x'})\n")
    assert 'could not set environment variable "OTHER"' in ssh_stack.up().expect_failure().text
    ssh_stack.write(
        START + "run('made', 'echo ' + option('word', 'one'), add_previous_output_in_env=option('previous', True))\n"
    )
    ssh_stack.up().expect()
    ssh_stack.options["word"] = "two"
    assert "Unable to set 'PULUMI_COMMAND_STDOUT'" in ssh_stack.up().expect().text
    assert ssh_stack.resources()["made"]["outputs"]["stdout"] == "two"


def test_an_unknown_property_is_named(ssh_stack: Stack) -> None:
    ssh_stack.write(
        """
class Wrong(pulumi.CustomResource):
    def __init__(self):
        super().__init__("command:remote:Command", "wrong", {"connection": {"host": "h"}, "crate": "true"})

Wrong()
"""
    )
    text = ssh_stack.run("preview").expect_failure().text
    assert "has no property 'crate'" in text


def test_forty_commands_run_at_the_same_time(ssh_stack: Stack) -> None:
    ssh_stack.write(START + "for number in range(40):\n    run(f'made-{number}', 'sleep 1')\n")
    outcome = ssh_stack.up("--parallel=64").expect()
    assert outcome.seconds < 25
    assert len(ssh_stack.resources()) == 40


def test_a_killed_update_is_continued_by_the_next(ssh_stack: Stack, tmp_path: Path) -> None:
    ssh_stack.write(
        START
        + f"""
one = run("one", "echo one >> {tmp_path}/runs")
two = run("two", "echo two >> {tmp_path}/runs; sleep " + option("sleep"), ResourceOptions(depends_on=[one]))
"""
    )
    ssh_stack.options["sleep"] = "100"
    process = ssh_stack.start("up", "--yes", "--skip-preview")
    deadline = time.monotonic() + 30
    while not (tmp_path / "runs").exists() or "two" not in (tmp_path / "runs").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.kill()
    process.communicate()
    ssh_stack.options["sleep"] = "0"
    ssh_stack.run("cancel", "--yes")
    ssh_stack.run("refresh", "--yes", "--skip-preview", "--clear-pending-creates").expect()
    ssh_stack.up().expect()
    assert (tmp_path / "runs").read_text().split() == ["one", "two", "two"]


def test_a_local_command_runs_on_this_machine(stack: Stack, tmp_path: Path) -> None:
    stack.write(
        f"""
import pulumi_command as command
command.local.Command("made", create="cat; echo $NAME; pwd", stdin="in ", environment={{"NAME": "x"}}, dir={str(tmp_path)!r})
"""
    )
    stack.up().expect()
    assert stack.resources()["made"]["outputs"]["stdout"] == f"in x\n{tmp_path}"


def test_a_command_is_quoted_as_go_does() -> None:
    assert go_quote('a "b"\n\tc\\d\x01é') == '"a \\"b\\"\\n\\tc\\\\d\\x01é"'
