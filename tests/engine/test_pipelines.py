"""The scripts of the pipelines with the real Pulumi command and a small program: what saved plans can do, and what not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.pipeline_project import BY_HAND, LIMIT_SECONDS, ON_MAIN, Project, project_in, proxmox_in, stack_file

pytestmark = pytest.mark.engine

OLD, NEW = "password-of-the-time-of-the-plan", "password-of-today"

PROGRAM = """\
import os, pulumi, pulumi_command, pulumi_random
length = int(os.environ.get("TEST_LENGTH", "20"))
password = pulumi_random.RandomPassword("password", length=length)
secret = pulumi.Output.secret(os.environ.get("TEST_SECRET", "{old}"))
behind = pulumi.ResourceOptions(depends_on=[password])
pulumi_command.local.Command("job", create=os.environ.get("TEST_JOB", "true"), stdin=secret, opts=behind)
if os.environ.get("TEST_MORE"):
    pulumi_random.RandomId("more", byte_length=4)
pulumi.export("password", password.result)
"""
POLICY = """\
from pulumi_policy import EnforcementLevel, PolicyPack, ResourceValidationPolicy

def long_enough(args, report):
    if args.resource_type.endswith(":RandomPassword") and args.props["length"] < 12:
        report("a password has at least 12 characters")

PolicyPack("rules", [ResourceValidationPolicy(name="length", description="Passwords are long.", validate=long_enough,
    enforcement_level=EnforcementLevel.MANDATORY)])
"""


@pytest.fixture
def project(tmp_path: Path, pulumi_cli: Path, plugins: Path) -> Iterator[Project]:
    """A project with one program, one policy and an empty stack, in the pipeline of a merge request."""
    path = os.pathsep.join([str(plugins), str(pulumi_cli.parent), os.environ["PATH"]])
    with proxmox_in(tmp_path) as proxmox, project_in(tmp_path, path) as made:
        made.environment |= {"PULUMI_SKIP_UPDATE_CHECK": "true", "PULUMI_HOME": str(tmp_path / "home")}
        runtime = f"runtime: {{name: python, options: {{virtualenv: {sys.prefix}}}}}\n"
        (made.folder / "state").mkdir()
        (made.folder / "policy").mkdir()
        (made.folder / "policy" / "PulumiPolicy.yaml").write_text(f"name: rules\nversion: 0.0.1\n{runtime}")
        (made.folder / "policy" / "__main__.py").write_text(POLICY)
        (made.folder / "__main__.py").write_text(PROGRAM.format(old=OLD))
        (made.folder / "Pulumi.yaml").write_text(f"name: school-postgres\n{runtime}")
        pulumi(made, "stack", "init", "school")
        salt = (made.folder / "Pulumi.school.yaml").read_text()
        made.save(Pulumi__school__yaml=salt + stack_file(proxmox))
        yield made


def pulumi(project: Project, *words: str, code: int = 0, **variables: str) -> str:
    """Run Pulumi itself; returns everything it printed."""
    done = subprocess.run(
        ["pulumi", *words, "--non-interactive", "--color=never"],
        cwd=project.folder,
        env=project.environment | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=LIMIT_SECONDS,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def resources(project: Project) -> int:
    """How many resources the stack has."""
    return pulumi(project, "stack", "export", "--stack", "school").count('"urn": ')


def test_what_was_reviewed_is_carried_out_after_merging(project: Project) -> None:
    assert project.run("preview") == 0, project.output
    assert "rules" in project.note()
    reviewed = project.note()
    project.merge()
    assert project.run("preview", **ON_MAIN) == 0, project.output
    assert "This is the plan that was reviewed in merge request !5." in project.output
    assert project.run("up", **ON_MAIN) == 0, project.output
    assert "+ 3 created" in project.output
    assert project.note() == reviewed
    assert project.run("drift", **ON_MAIN) == 0, project.output
    assert "The system is as Pulumi remembers it." in project.output
    assert project.run("up", **ON_MAIN) == 1
    assert "The stack school has been changed since the plan was made" in project.output


def test_a_plan_that_came_out_otherwise_after_merging_is_refused(project: Project) -> None:
    assert project.run("preview") == 0, project.output
    project.merge()
    assert project.run("preview", TEST_LENGTH="32", **ON_MAIN) == 1
    assert "The plan is not the one that was reviewed" in project.output


def test_secrets_are_not_in_clear_in_what_a_job_leaves(project: Project) -> None:
    assert project.run("preview", **BY_HAND) == 0, project.output
    left = {file.name: file.read_text() for file in (project.folder / "plan").iterdir()}
    assert set(left) == {"plan.json", "events.jsonl", "commit", "state"}
    assert '"stdin"' in left["plan.json"]
    assert not [name for name, text in left.items() if OLD in text]


def test_what_is_not_in_the_plan_is_refused_before_anything_is_done(project: Project) -> None:
    assert project.run("preview", **BY_HAND) == 0, project.output
    assert project.run("up", TEST_MORE="another resource", **BY_HAND) == 1
    assert "create is not allowed by the plan" in project.output
    assert project.run("up", TEST_LENGTH="32", **BY_HAND) == 1
    assert "violates plan (values, and all that follows, are withheld" in project.output
    assert resources(project) == 0
    plan = ["up", "--yes", "--stack", "school", "--plan", "plan/plan.json"]
    # If Pulumi learns to mask secrets of the time of the plan, .ci/up need not withhold anything any more.
    assert OLD in pulumi(project, *plan, code=1, TEST_SECRET=NEW)
    assert project.run("up", TEST_SECRET=NEW, **BY_HAND) == 1
    assert "violates plan (values, and all that follows, are withheld" in project.output
    assert OLD not in project.output
    assert NEW not in project.output
    assert resources(project) == 0


def test_what_is_planned_cannot_be_left_out(project: Project) -> None:
    assert project.run("preview", TEST_MORE="yes", **BY_HAND) == 0, project.output
    assert project.run("up", **BY_HAND) == 1
    assert "expected resource operations" in project.output
    assert resources(project) == 0


def test_a_broken_policy_leaves_no_plan_and_is_told(project: Project) -> None:
    assert project.run("preview", TEST_LENGTH="8") == 1
    assert not (project.folder / "plan" / "plan.json").exists()
    assert "a password has at least 12 characters" in project.note()
    assert "<!-- school-postgres plan" not in project.note()


def test_a_policy_that_the_system_breaks_is_reported(project: Project) -> None:
    pulumi(project, "up", "--yes", "--skip-preview", "--stack", "school", TEST_LENGTH="8")
    before = resources(project)
    assert project.run("drift", TEST_LENGTH="8") == 1
    assert "The system breaks policies" in project.output
    assert "a password has at least 12 characters" in (project.folder / "drift" / "policies.txt").read_text()
    assert resources(project) == before


def test_an_update_that_is_ended_gives_the_lock_back(project: Project) -> None:
    assert project.run("preview", TEST_JOB="sleep 3", **BY_HAND) == 0, project.output
    with project.start("up", TEST_JOB="sleep 3", **BY_HAND) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if "job creating" in line)
        locks = [*(project.folder / "state").rglob(".pulumi/locks/**/*.json")]
        os.killpg(process.pid, signal.SIGTERM)
        rest = process.stdout.read()
        process.wait(LIMIT_SECONDS)
    assert len(locks) == 1
    assert not [*(project.folder / "state").rglob(".pulumi/locks/**/*.json")], rest
    # What had been made is noted down, and a new pipeline continues from there.
    assert "RandomPassword::password" in pulumi(project, "stack", "export", "--stack", "school")
    assert project.run("preview", **BY_HAND) == 0, project.output
    assert project.run("up", **BY_HAND) == 0, project.output


def test_a_second_update_at_the_same_time_is_refused(project: Project) -> None:
    assert project.run("preview", TEST_JOB="sleep 5", **BY_HAND) == 0, project.output
    with project.start("up", TEST_JOB="sleep 5", **BY_HAND) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if "job creating" in line)
        said = pulumi(project, "up", "--yes", "--stack", "school", code=1)
        process.stdout.read()
        assert process.wait(LIMIT_SECONDS) == 0
    assert "the stack is currently locked" in said
