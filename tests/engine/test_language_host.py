"""Programs and policy packs as the engine runs them through the lab's Python language host."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.engine.conftest import Stack

pytestmark = pytest.mark.engine


def test_a_program_prints_where_the_engine_prints_and_a_second_update_changes_nothing(stack: Stack) -> None:
    stack.write(
        """
import sys
import pulumi_random as random
print("to the output")
print("to the errors", file=sys.stderr)
password = random.RandomPassword("password", length=20, special=False)
identity = random.RandomId("identity", byte_length=4)
pulumi.export("password", password.result)
"""
    )
    first = stack.up().expect()
    assert "to the output" in first.text
    assert "to the errors" in first.text
    assert "3 created" in first.text
    stored = stack.resources()["password"]["outputs"]
    assert all("ciphertext" in stored[name] for name in ("result", "bcryptHash"))
    again = stack.run("up", "--yes").expect()
    assert "created" not in again.text
    assert "3 unchanged" in again.text


def test_an_uncaught_exception_shows_the_programs_own_traceback_once(stack: Stack) -> None:
    stack.write("def inner():\n    raise ValueError('the cause')\n\ninner()\n")
    text = stack.run("preview").expect_failure().text
    diagnostics = text.partition("Diagnostics:")[2]
    assert "Program failed with an unhandled exception" in diagnostics
    assert "ValueError: the cause" in diagnostics
    assert "executor.py" not in diagnostics
    assert diagnostics.count("Traceback") == 1
    assert "non-zero exit code" not in diagnostics


def test_a_run_error_is_one_sentence_without_a_traceback(stack: Stack) -> None:
    stack.write("raise pulumi.RunError('the network is too small; make it larger')\n")
    text = stack.run("preview").expect_failure().text
    assert "error: the network is too small; make it larger" in text
    assert "Traceback" not in text


def test_a_program_that_has_told_the_user_and_ends_with_32_is_not_commented_on(stack: Stack) -> None:
    stack.write("pulumi.log.error('the network is too small')\nraise SystemExit(32)\n")
    diagnostics = stack.run("preview").expect_failure().text.partition("Diagnostics:")[2]
    assert diagnostics.count("error:") == 1


def test_an_interrupt_ends_a_program_that_hangs(stack: Stack) -> None:
    stack.write("import time\nprint('waiting now', flush=True)\ntime.sleep(1000)\n")
    process = stack.start("preview")
    assert process.stdout is not None
    for line in process.stdout:
        if "waiting now" in line:
            break
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "preview canceled" in rest
    assert "Traceback" not in rest
    assert time.monotonic() - began < 10


def test_a_killed_engine_leaves_no_plugin_behind(stack: Stack) -> None:
    stack.write("import time, os\nprint('program', os.getpid(), 'waits', flush=True)\ntime.sleep(1000)\n")
    process = stack.start("preview")
    assert process.stdout is not None
    line = next(line for line in process.stdout if "waits" in line)
    program = line[line.index("program ") :].split()[1]
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 15
    while subprocess.run(["kill", "-0", program], stderr=subprocess.DEVNULL, check=False).returncode == 0:
        assert time.monotonic() < deadline, "the program outlives the engine"
        time.sleep(0.1)


def test_a_virtual_environment_that_does_not_exist_is_named(stack: Stack) -> None:
    project = stack.directory / "Pulumi.yaml"
    project.write_text("name: test\nruntime: {name: python, options: {virtualenv: .missing}}\n")
    stack.write("")
    text = stack.run("preview").expect_failure().text
    assert ".missing, which is no virtual environment" in text


def test_a_policy_pack_stops_a_preview(stack: Stack) -> None:
    policy = stack.directory / "policy"
    policy.mkdir()
    runtime = f"{{name: python, options: {{virtualenv: {sys.prefix}}}}}"
    (policy / "PulumiPolicy.yaml").write_text(f"name: rules\nruntime: {runtime}\nversion: 0.0.1\n")
    (policy / "__main__.py").write_text(
        """
from pulumi_policy import EnforcementLevel, PolicyPack, ResourceValidationPolicy

def long_enough(args, report):
    if args.resource_type.endswith(":RandomPassword") and args.props["length"] < 16:
        report("a password has at least 16 characters")

PolicyPack("rules", [
    ResourceValidationPolicy(
        name="password-length", description="Passwords are long.", validate=long_enough,
        enforcement_level=EnforcementLevel.MANDATORY,
    )
])
"""
    )
    stack.write("import pulumi_random as random\nrandom.RandomPassword('short', length=option('length', 8))\n")
    refused = stack.run("preview", "--policy-pack", "policy")
    assert refused.status != 0
    assert "a password has at least 16 characters" in refused.text
    stack.options["length"] = 20
    stack.run("preview", "--policy-pack", "policy").expect()
