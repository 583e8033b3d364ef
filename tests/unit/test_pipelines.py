"""The pipelines: what ``.gitlab-ci.yml`` promises, and the scripts in ``.ci``, run for real beside a stand-in of Pulumi.

The stand-in answers what a test tells it to; GitLab and Proxmox are servers on loopback.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from operations import preflight, reviewed_plan
from operations.preflight import PreflightError
from operations.reviewed_plan import PlanError
from tests.unit.gitlab_api import HEAD
from tests.unit.pipeline_project import (
    BY_HAND,
    LIMIT_SECONDS,
    ON_MAIN,
    ROOT,
    Project,
    project_in,
    proxmox_in,
    stack_file,
)

pytestmark = pytest.mark.unit

SECRETS = ("PULUMI_CONFIG_PASSPHRASE", "SCHOOL_GITLAB_TOKEN", "AWS_SECRET_ACCESS_KEY")
SCRIPTS = sorted(path.name for path in (ROOT / ".ci").iterdir())
OLD_PASSWORD = "password-of-the-time-of-the-plan"
PULUMI_SIGNATURE = "4dabf18193072939515e22adb298388d"

# ------------------------------------------------------------------ the file


@pytest.fixture(scope="module")
def pipeline() -> dict[str, Any]:
    """The whole file."""
    content = yaml.safe_load((ROOT / ".gitlab-ci.yml").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def job(pipeline: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A job with what it inherits, as GitLab puts them together: maps are merged, everything else replaces."""
    own = dict(pipeline[name])
    parent = own.pop("extends", None)
    return merged(job(pipeline, parent), own) if parent else own


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = {**base, **over}
    for key in base.keys() & over.keys():
        if isinstance(base[key], dict) and isinstance(over[key], dict):
            both[key] = merged(base[key], over[key])
    return both


@pytest.fixture(scope="module")
def jobs(pipeline: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every job that runs."""
    hidden = {"stages", "workflow", "variables", "default", "include"}
    return {name: job(pipeline, name) for name in pipeline if name not in hidden and not name.startswith(".")}


def touches_the_stack(described: Mapping[str, Any]) -> bool:
    return bool(re.search(r"\.ci/(preview|up|drift)\b|\bpulumi\b", " ".join(described["script"])))


def runs(described: Mapping[str, Any], source: str, branch: str | None, target: str | None = None) -> str | None:
    """When a job runs in a pipeline (``on_success``, ``manual``), or None if it does not: the rules, evaluated."""
    values = {
        "$CI_PIPELINE_SOURCE": source,
        "$CI_COMMIT_BRANCH": branch,
        "$CI_MERGE_REQUEST_TARGET_BRANCH_NAME": target,
        "$CI_DEFAULT_BRANCH": "main",
    }

    def term(text: str) -> bool:
        left, operator, right = text.strip().split(" ", 2)
        value = values[left]
        if operator == "=~":
            return value is not None and re.search(right.strip("/"), value) is not None
        other = values[right] if right.startswith("$") else right.strip('"')
        return (value == other) is (operator == "==")

    for rule in described["rules"]:
        if all(term(text) for text in rule["if"].split("&&")):
            return str(rule.get("when", "on_success"))
    return None


def test_the_file_keeps_gitlabs_published_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.gitlab-ci", ".gitlab-ci.yml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_schema_would_notice_a_mistake(tmp_path: Path) -> None:
    broken = tmp_path / ".gitlab-ci.yml"
    broken.write_text((ROOT / ".gitlab-ci.yml").read_text(encoding="utf-8").replace("when: manual", "when: by-hand"))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.gitlab-ci", str(broken)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS)
    assert done.returncode != 0


def test_every_job_that_touches_the_stack_is_alone_with_it_and_is_not_ended_by_a_newer_commit(
    jobs: dict[str, dict[str, Any]],
) -> None:
    on_stack = {name: described for name, described in jobs.items() if touches_the_stack(described)}
    assert set(on_stack) == {"preview", "plan", "up", "drift"}
    for name, described in on_stack.items():
        assert described["resource_group"] == "school", name
        assert described["interruptible"] is False, name
        assert described["environment"]["name"] == "school", name
        assert "retry" not in described, name


def test_jobs_that_do_not_touch_the_stack_are_not_given_its_secrets(jobs: dict[str, dict[str, Any]]) -> None:
    others = {name: described for name, described in jobs.items() if not touches_the_stack(described)}
    assert set(others) == {"gates", "configuration", "tests"}
    for name, described in others.items():
        assert "environment" not in described, name
        assert "tags" not in described, name


def test_a_job_with_secrets_takes_nothing_from_a_cache(jobs: dict[str, dict[str, Any]]) -> None:
    assert [name for name, described in jobs.items() if "environment" in described and "cache" in described] == []


def test_images_are_pinned_to_a_release(jobs: dict[str, dict[str, Any]]) -> None:
    for name, described in jobs.items():
        image = described["image"]
        image = image["name"] if isinstance(image, dict) else image
        assert re.fullmatch(r"[a-z0-9./-]+:\d+\.\d+(\.\d+)?(-[a-z]+)?", image), f"{name}: {image}"


def test_the_command_line_has_the_version_of_the_sdk(jobs: dict[str, dict[str, Any]]) -> None:
    found = re.search(r"^pulumi==(\S+)", (ROOT / "requirements.in").read_text(encoding="utf-8"), re.MULTILINE)
    assert found
    for name in ("preview", "plan", "up", "drift"):
        assert jobs[name]["image"]["name"].endswith(f":{found[1]}"), name
        # The image would run `pulumi` instead of the job's script.
        assert jobs[name]["image"]["entrypoint"] == [""], name


def test_no_job_asks_for_more_rights_or_services(pipeline: dict[str, Any]) -> None:
    text = yaml.safe_dump(pipeline)
    assert not re.search(r"privileged|docker:.*dind|services:|DOCKER_HOST|sudo", text)


def test_no_variable_with_a_secret_has_a_value_here(pipeline: dict[str, Any]) -> None:
    text = (ROOT / ".gitlab-ci.yml").read_text(encoding="utf-8")
    variables = {**pipeline["variables"]}
    for described in pipeline.values():
        variables |= described.get("variables", {}) if isinstance(described, dict) else {}
    assert not [name for name in variables if re.search(r"TOKEN|PASS|SECRET|KEY|BACKEND", name)]
    assert not re.search(r"glpat-|BEGIN [A-Z ]*KEY|v1:[A-Za-z0-9+/=]{16}|PULUMI_CONFIG_PASSPHRASE", text)


CHECKS = {"gates", "configuration", "tests"}


@pytest.mark.parametrize(
    ("source", "branch", "target", "expected"),
    [
        ("merge_request_event", None, "next", CHECKS),
        ("merge_request_event", None, "main", CHECKS | {"preview"}),
        ("push", "main", None, CHECKS | {"plan", "up"}),
        ("web", "main", None, CHECKS | {"plan", "up"}),
        ("schedule", "main", None, {"drift"}),
    ],
)
def test_what_runs_when(
    jobs: dict[str, dict[str, Any]], source: str, branch: str | None, target: str | None, expected: set[str]
) -> None:
    found = {name: runs(described, source, branch, target) for name, described in jobs.items()}
    assert {name for name, when in found.items() if when} == expected
    assert {name for name, when in found.items() if when == "manual"} == expected & {"up"}


@pytest.mark.parametrize(
    ("source", "branch"),
    [
        ("merge_request_event", None),
        ("push", "change/memory"),
        ("web", "change/memory"),
        ("schedule", "try"),
        ("api", "main"),
    ],
)
def test_nothing_is_carried_out_anywhere_but_on_the_default_branch(
    jobs: dict[str, dict[str, Any]], source: str, branch: str | None
) -> None:
    assert runs(jobs["up"], source, branch) is None
    assert runs(jobs["drift"], source, branch) is None


def test_pipelines_start_only_where_jobs_are_meant_to_run(pipeline: dict[str, Any]) -> None:
    starts = [
        (source, branch)
        for source in ("push", "web", "schedule", "api", "trigger", "merge_request_event")
        for branch in ("main", "change/memory", None)
        if runs(pipeline["workflow"], source, branch)
    ]
    merge_requests = [("merge_request_event", branch) for branch in ("main", "change/memory", None)]
    assert starts == [("push", "main"), ("web", "main"), ("schedule", "main"), *merge_requests]


def test_what_is_carried_out_is_what_the_same_pipeline_planned(jobs: dict[str, dict[str, Any]]) -> None:
    assert jobs["up"]["needs"] == ["plan"]
    assert jobs["plan"]["artifacts"]["paths"] == ["plan/"]
    assert jobs["plan"]["artifacts"]["access"] == "developer"
    assert "artifacts" not in jobs["preview"]
    manual = [rule for rule in jobs["up"]["rules"] if rule.get("when") == "manual"]
    assert manual == jobs["up"]["rules"]
    assert all(rule["allow_failure"] is False for rule in manual)


def test_jobs_are_in_stages_that_exist_and_say_how_long_they_may_take(
    pipeline: dict[str, Any], jobs: dict[str, dict[str, Any]]
) -> None:
    assert pipeline["stages"] == ["validate", "preview", "up", "drift"]
    assert {described["stage"] for described in jobs.values()} == set(pipeline["stages"])
    assert all("timeout" in described for described in jobs.values())


def test_scripts_that_jobs_run_exist_and_can_be_run(jobs: dict[str, dict[str, Any]]) -> None:
    named = set()
    for described in jobs.values():
        lines = [*described["before_script"], *described["script"]]
        # More than one command belongs into a file, where it can be tested.
        assert [line for line in lines if "\n" in line or ";" in line or "&&" in line] == []
        named |= {line.split()[0].removeprefix(".ci/") for line in lines if line.startswith(".ci/")}
    assert named == {"prepare", "preview", "up", "drift"}
    assert all(os.access(ROOT / ".ci" / name, os.X_OK) for name in named)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_clean(name: str) -> None:
    done = subprocess.run(
        ["shellcheck", "--norc", "-x", f".ci/{name}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout + done.stderr == ""
    text = (ROOT / ".ci" / name).read_text(encoding="utf-8")
    assert name == "common.sh" or re.search(r"^set -eu", text, re.MULTILINE)


def test_the_page_explains_every_variable_and_every_job(jobs: dict[str, dict[str, Any]]) -> None:
    page = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8")
    scripts = "\n".join((ROOT / ".ci" / name).read_text(encoding="utf-8") for name in SCRIPTS if name != "run")
    used = set(re.findall(r"\$\{?((?:PULUMI|PROXMOX|SCHOOL|AWS)_[A-Z_]+)", scripts)) - {"SCHOOL_PLAN_DIGEST"}
    assert used == {"PULUMI_BACKEND_URL", "PULUMI_CONFIG_PASSPHRASE", "PROXMOX_CA_FILE"}
    for name in {*used, *SECRETS, *(f"`{name}`" for name in jobs)}:
        assert name in page, name


# ------------------------------------------------------------------ the scripts, run

PULUMI = """\
#!{python}
# Stands in for Pulumi: does what the files beside it say, and writes down how it was called.
import json, os, pathlib, signal, sys, time

here = pathlib.Path(__file__).parent
words = [word for word in sys.argv[1:] if not word.startswith("-")]
name = "policy" if words[0] == "policy" else "state" if words[0] == "stack" else words[0]
with (here / "calls").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
told = json.loads((here / (name + ".json")).read_text())


def option(name):
    return pathlib.Path(sys.argv[sys.argv.index(name) + 1])


if name == "preview":
    assert os.environ["PULUMI_DEBUG_COMMANDS"] == "true"
    assert os.environ["PULUMI_CONFIG_PASSPHRASE"]
    if told["events"]:
        option("--event-log").write_text(told["events"])
    if told["plan"]:
        option("--save-plan").write_text(told["plan"])
if told.get("waits"):
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    print("creating", flush=True)
    while not stopped:
        time.sleep(0.05)
    time.sleep(0.5)
    print("stopped in good order", flush=True)
sys.stdout.write(told["says"])
sys.stderr.write(told.get("complains", ""))
sys.exit(told["code"])
"""


def event(**content: Any) -> str:
    return json.dumps({"sequence": 0, "timestamp": 1, **content}) + "\n"


STATE = '{"version": 3}'
URN = "urn:pulumi:school::school-postgres::random:index/randomPassword:RandomPassword::password"
EVENTS = event(
    resourcePreEvent={
        "metadata": {
            "op": "create",
            "urn": URN,
            "type": "random:index/randomPassword:RandomPassword",
            "new": {"type": "random:index/randomPassword:RandomPassword", "urn": URN, "custom": True, "inputs": {}},
        },
        "planning": True,
    }
) + event(summaryEvent={"result": "succeeded", "resourceChanges": {"create": 1}, "isPreview": True, "PolicyPacks": {}})


def plan_file(length: int = 20, ciphertext: str = "v1:one", seed: str = "a") -> str:
    """What ``pulumi preview --save-plan`` writes."""
    secret = {PULUMI_SIGNATURE: "1b47061264138c4ac30d75fd1eb44270", "ciphertext": ciphertext}
    goal = {
        "type": "random:index/randomPassword:RandomPassword",
        "name": "password",
        "custom": True,
        "inputDiff": {"adds": {"length": length, "keepers": secret}},
        "outputDiff": {},
        "dependencies": [seed],
    }
    resources = {URN: {"goal": goal, "steps": ["create"], "seed": seed}}
    return json.dumps({"manifest": {"time": seed}, "config": {}, "resourcePlans": resources})


@dataclass
class Pulumi:
    """The stand-in of Pulumi."""

    folder: Path

    def answers(self, name: str, **told: Any) -> None:
        """What it does when it is asked for ``name``."""
        (self.folder / f"{name}.json").write_text(json.dumps({"code": 0, "says": "", **told}))

    def calls(self) -> list[list[str]]:
        """How it was called."""
        file = self.folder / "calls"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def has_updated(self) -> bool:
        """Whether it was asked to carry anything out."""
        return "up" in [call[0] for call in self.calls()]


@pytest.fixture
def proxmox(tmp_path: Path) -> Iterator[str]:
    """A Proxmox API that asks for a token."""
    with proxmox_in(tmp_path) as address:
        yield address


@pytest.fixture
def pulumi(tmp_path: Path) -> Pulumi:
    """A stand-in whose every run succeeds."""
    made = Pulumi(tmp_path / "tools")
    made.folder.mkdir()
    (made.folder / "pulumi").write_text(PULUMI.format(python=sys.executable))
    (made.folder / "pulumi").chmod(0o755)
    made.answers("state", says=STATE)
    made.answers("preview", says="Resources:\n    + 1 to create\n", events=EVENTS, plan=plan_file())
    made.answers("up", says="Resources:\n    + 1 created\n")
    made.answers("refresh")
    made.answers("policy")
    return made


@pytest.fixture
def project(tmp_path: Path, proxmox: str, pulumi: Pulumi) -> Iterator[Project]:
    """A project in the pipeline of a merge request."""
    with project_in(tmp_path, f"{pulumi.folder}:{os.environ['PATH']}") as made:
        made.save(Pulumi__school__yaml=stack_file(proxmox))
        yield made


@pytest.fixture
def planned(project: Project) -> Project:
    """A project in a pipeline that was started by hand and has its plan."""
    plan = project.folder / "plan"
    plan.mkdir()
    (plan / "plan.json").write_text(plan_file())
    (plan / "commit").write_text(f"{project.commit}\n")
    (plan / "state").write_text(f"{hashlib.sha256(STATE.encode()).hexdigest()}\n")
    project.environment |= {name: value for name, value in BY_HAND.items() if value is not None}
    del project.environment["CI_MERGE_REQUEST_IID"]
    return project


def test_a_preview_tells_the_merge_request_and_saves_the_plan(project: Project, pulumi: Pulumi) -> None:
    assert project.run("preview") == 0, project.output
    assert "1 made" in project.note()
    digest = reviewed_plan.digest(project.folder / "plan" / "plan.json")
    assert f"<!-- school-postgres plan {digest} of {project.commit} -->" in project.note()
    (call,) = [call for call in pulumi.calls() if call[0] == "preview"]
    assert call[call.index("--stack") + 1] == "school"
    assert call[call.index("--policy-pack") + 1] == "policy"
    assert "--non-interactive" in call
    assert (project.folder / "plan").stat().st_mode & 0o077 == 0


def test_an_unreachable_proxmox_fails_the_job_and_the_comment_says_so(project: Project, pulumi: Pulumi) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"https://127.0.0.1:{unused.getsockname()[1]}/"
        (project.folder / "Pulumi.school.yaml").write_text(stack_file(address))
        assert project.run("preview") == 1
    sentence = f"Proxmox at {address} cannot be reached from this runner (Connection refused)"
    assert sentence in project.output
    assert "cannot be reached from this runner" in project.note()
    assert "failed" in project.note()
    assert "<!-- school-postgres plan" not in project.note()
    assert "nothing changes" not in project.note()
    assert pulumi.calls() == []


def test_every_preview_replaces_the_comment_of_the_one_before(project: Project, pulumi: Pulumi) -> None:
    assert project.run("preview") == 0, project.output
    first = project.note()
    pulumi.answers("preview", events=EVENTS, plan=plan_file(length=32))
    assert project.run("preview") == 0, project.output
    assert project.note().count("<!-- school-postgres plan") == 1
    assert project.note() != first
    pulumi.answers("preview", code=1, says="error: connection refused", events="", plan="")
    assert project.run("preview", SCHOOL_PLAN_DIGEST="f" * 64) == 1
    assert "The preview failed, so nothing can be said about what would change" in project.output
    assert "failed" in project.note()
    assert "<!-- school-postgres plan" not in project.note()


REPLACED = (ROOT / "tests" / "unit" / "previews" / "replaced.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize("labels", ["", "urgent", "no-data-loss-accepted,data-loss-accepted-not"])
def test_a_plan_that_loses_data_fails_the_job_and_is_not_a_reviewed_one(
    project: Project, pulumi: Pulumi, labels: str
) -> None:
    pulumi.answers("preview", events=REPLACED, plan=plan_file())
    assert project.run("preview", CI_MERGE_REQUEST_LABELS=labels) == 1
    assert "This plan would lose data; the merge request's comment says which." in project.output
    assert "the label data-loss-accepted" in project.output
    assert "Data that would be lost" in project.note()
    assert "<!-- school-postgres plan" not in project.note()


@pytest.mark.parametrize("labels", ["data-loss-accepted", "urgent,data-loss-accepted"])
def test_a_maintainer_s_label_accepts_the_loss_of_data(project: Project, pulumi: Pulumi, labels: str) -> None:
    pulumi.answers("preview", events=REPLACED, plan=plan_file())
    assert project.run("preview", CI_MERGE_REQUEST_LABELS=labels) == 0, project.output
    assert "Data that would be lost" in project.note()
    assert "<!-- school-postgres plan" in project.note()


@pytest.mark.parametrize(
    ("events", "code"),
    [
        ("no event\n", 2),
        (EVENTS.replace('"isPreview": true', '"isPreview": false'), 2),
        (event(diagnosticEvent={"message": "no more room on local-lvm\n", "severity": "error"}) + EVENTS, 1),
        (EVENTS.splitlines()[0] + "\n", 1),
    ],
)
def test_not_to_know_whether_data_is_lost_fails_the_job(
    project: Project, pulumi: Pulumi, events: str, code: int
) -> None:
    pulumi.answers("preview", events=events, plan=plan_file())
    assert project.run("preview") == 1
    told = f"Whether this plan would lose data is not known: school preview-comment ended with code {code}."
    assert told in project.output
    assert not (project.folder / "plan" / "plan.json").exists()
    if code == 2:
        assert "The merge request was not told." in project.output
        assert project.gitlab.notes == []
    else:
        assert "<!-- school-postgres plan" not in project.note()


def test_a_failure_that_the_log_does_not_know_of_is_told_all_the_same(project: Project, pulumi: Pulumi) -> None:
    pulumi.answers("preview", code=1, events=EVENTS, plan=plan_file())
    assert project.run("preview") == 1
    assert "nothing can be said about what would change" in project.note()
    assert "<!-- school-postgres plan" not in project.note()
    assert not (project.folder / "plan" / "plan.json").exists()


def test_a_preview_that_fails_after_it_began_tells_why(project: Project, pulumi: Pulumi) -> None:
    events = event(diagnosticEvent={"message": "no more room on local-lvm\n", "severity": "error"})
    pulumi.answers("preview", code=1, events=events, plan="")
    assert project.run("preview") == 1
    assert "no more room on local-lvm" in project.note()
    assert not (project.folder / "plan" / "plan.json").exists()


def test_a_state_that_cannot_be_read_fails_the_job_and_the_comment_says_so(project: Project, pulumi: Pulumi) -> None:
    pulumi.answers("state", code=6, complains="error: no stack named 'school' found")
    assert project.run("preview") == 1
    assert "no stack named 'school' found" in project.output
    assert "The state of the stack school cannot be read" in project.note()


@pytest.mark.parametrize("name", ["PULUMI_CONFIG_PASSPHRASE", "PULUMI_BACKEND_URL"])
@pytest.mark.parametrize("script", ["preview", "up", "drift"])
def test_without_the_secrets_a_job_says_who_can_start_it(
    project: Project, pulumi: Pulumi, script: str, name: str
) -> None:
    assert project.run(script, **{name: None}) == 1
    assert "only changes that a maintainer has read and merged into the branch next are previewed" in project.output
    assert pulumi.calls() == []


def test_a_comment_that_cannot_be_written_fails_the_job(project: Project) -> None:
    assert project.run("preview", SCHOOL_GITLAB_TOKEN="") != 0
    assert "the variable SCHOOL_GITLAB_TOKEN is empty" in project.output
    assert project.gitlab.notes == []


def review(project: Project, pulumi: Pulumi, plan: str) -> None:
    """Let the merge request show a plan and be merged as the project's commit."""
    pulumi.answers("preview", events=EVENTS, plan=plan)
    assert project.run("preview") == 0, project.output
    project.merge()


def test_after_merging_the_reviewed_plan_is_planned_again_and_carried_out(project: Project, pulumi: Pulumi) -> None:
    review(project, pulumi, plan_file(ciphertext="v1:one", seed="a"))
    pulumi.answers("preview", events=EVENTS, plan=plan_file(ciphertext="v1:two", seed="b"))
    assert project.run("preview", **ON_MAIN) == 0, project.output
    assert "This is the plan that was reviewed in merge request !5." in project.output
    assert project.run("up", **ON_MAIN) == 0, project.output
    assert "+ 1 created" in project.output
    assert project.output.endswith("The plan was carried out.\n")
    call = pulumi.calls()[-1]
    assert call[0] == "up"
    assert call[call.index("--plan") + 1] == "plan/plan.json"
    assert call[call.index("--policy-pack") + 1] == "policy"
    assert "--skip-preview" not in call


def test_after_merging_any_other_plan_is_refused(project: Project, pulumi: Pulumi) -> None:
    review(project, pulumi, plan_file(length=20))
    pulumi.answers("preview", events=EVENTS, plan=plan_file(length=32))
    assert project.run("preview", **ON_MAIN) == 1
    assert "The plan is not the one that was reviewed in merge request !5" in project.output
    assert "Start a pipeline on this branch by hand" in project.output
    assert project.run("up", **ON_MAIN) == 1
    assert "There is no plan in plan/plan.json" in project.output
    assert not pulumi.has_updated()


def test_a_commit_that_nobody_reviewed_is_refused(project: Project) -> None:
    assert project.run("preview", **ON_MAIN) == 1
    assert "did not come from a merge request, so nobody reviewed its plan" in project.output
    assert not (project.folder / "plan" / "plan.json").exists()


def test_a_pipeline_started_by_hand_leaves_its_plan_to_be_approved(project: Project) -> None:
    assert project.run("preview", **BY_HAND) == 0, project.output
    assert "whoever starts its job `up` approves the plan above" in project.output
    assert project.gitlab.requests == []
    assert project.run("up", **BY_HAND) == 0, project.output


def test_nothing_is_carried_out_when_the_stack_was_changed_since(planned: Project, pulumi: Pulumi) -> None:
    pulumi.answers("state", says='{"version": 4}')
    assert planned.run("up") == 1
    assert "The stack school has been changed since the plan was made" in planned.output
    assert not pulumi.has_updated()


def test_nothing_is_carried_out_for_another_commit(planned: Project, pulumi: Pulumi) -> None:
    (planned.folder / "plan" / "commit").write_text(f"{HEAD}\n")
    assert planned.run("up") == 1
    assert f"The plan was made for commit aaaaaaaa, but this is {planned.commit[:8]}." in planned.output
    assert not pulumi.has_updated()


def test_secrets_in_a_refusal_of_pulumi_are_withheld(planned: Project, pulumi: Pulumi) -> None:
    refusal = (
        f"error: resource {URN} violates plan: properties changed: ++key[{{&{{{{{OLD_PASSWORD}\nline two {OLD_PASSWORD}"
    )
    pulumi.answers("up", code=1, says=f"Previewing update (school):\n{refusal}\nDiagnostics:\n  {refusal}\n")
    assert planned.run("up") == 1
    assert OLD_PASSWORD not in planned.output
    assert f"resource {URN} violates plan (values, and all that follows, are withheld" in planned.output
    assert "Previewing update" in planned.output
    assert "The plan was not carried out, or not to its end (code 1)." in planned.output


def test_an_update_that_is_ended_stops_in_good_order(planned: Project, pulumi: Pulumi) -> None:
    pulumi.answers("up", code=8, waits=True, says="update canceled\n")
    with planned.start("up") as process:
        assert process.stdout is not None
        seen = next(line for line in process.stdout if "creating" in line)
        os.killpg(process.pid, signal.SIGTERM)
        rest = process.stdout.read()
        assert process.wait(LIMIT_SECONDS) == 1
    assert seen
    assert "stopped in good order\nupdate canceled\n" in rest
    assert "not to its end (code 8)" in rest


def test_a_system_without_drift_is_reported_as_such(project: Project, pulumi: Pulumi) -> None:
    assert project.run("drift") == 0, project.output
    summary = (project.folder / "drift" / "summary.txt").read_text()
    assert summary == "The system is as Pulumi remembers it.\nThe system keeps every mandatory policy.\n"
    refresh, analyze = pulumi.calls()
    assert refresh[0] == "refresh"
    assert {"--preview-only", "--expect-no-changes", "--non-interactive"} <= set(refresh)
    assert analyze[:2] == ["policy", "analyze"]


@pytest.mark.parametrize(
    ("refresh", "policy", "found"),
    [
        (7, 0, "The system differs from what Pulumi remembers"),
        (1, 0, "The comparison with the system failed (code 1), so nothing is known of it"),
        (0, 1, "The system breaks policies, or they could not be checked (code 1)"),
    ],
)
def test_every_finding_fails_the_job_and_both_reports_are_made(
    project: Project, pulumi: Pulumi, refresh: int, policy: int, found: str
) -> None:
    pulumi.answers("refresh", code=refresh, says="~ gl6-container\n")
    pulumi.answers("policy", code=policy, says="one violation\n")
    assert project.run("drift") == 1
    assert found in project.output
    assert found in (project.folder / "drift" / "summary.txt").read_text()
    assert (project.folder / "drift" / "refresh.txt").read_text() == "~ gl6-container\n"
    assert (project.folder / "drift" / "policies.txt").read_text() == "one violation\n"


def test_drift_of_an_unreachable_proxmox_is_not_called_none(project: Project) -> None:
    (project.folder / "Pulumi.school.yaml").write_text(stack_file("https://127.0.0.1:1/"))
    assert project.run("drift") == 1
    assert "cannot be reached from this runner (Connection refused)" in project.output
    assert "as Pulumi remembers" not in project.output


def test_preparing_adds_only_what_is_missing(project: Project, pulumi: Pulumi) -> None:
    for name in ("make", "apt-get", "install", "update-ca-certificates"):
        (pulumi.folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >>"$(dirname "$0")/prepared"\n')
        (pulumi.folder / name).chmod(0o755)
    command = [".ci/prepare", "shellcheck=shellcheck", "no-such-command=its-package"]
    environment = {**project.environment, "PROXMOX_CA_FILE": "/builds/ca.pem"}
    subprocess.run(command, cwd=project.folder, env=environment, check=True, timeout=LIMIT_SECONDS)
    assert (pulumi.folder / "prepared").read_text().splitlines() == [
        "apt-get update --quiet=2",
        "apt-get install --yes --quiet=2 --no-install-recommends its-package",
        "install -m 0644 /builds/ca.pem /usr/local/share/ca-certificates/proxmox.crt",
        "update-ca-certificates ",
        "make .venv",
    ]


# ------------------------------------------------------------------ what the scripts stand on


def test_the_digest_of_a_plan_is_of_what_it_does(tmp_path: Path) -> None:
    def digest(**parts: Any) -> str:
        file = tmp_path / "plan.json"
        file.write_text(plan_file(**parts))
        return reviewed_plan.digest(file)

    assert re.fullmatch(r"[0-9a-f]{64}", digest())
    assert digest(ciphertext="v1:two", seed="b") == digest()
    assert digest(length=21) != digest()


def test_another_operation_on_the_same_resource_is_another_plan(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(plan_file())
    before = reviewed_plan.digest(file)
    file.write_text(plan_file().replace('"create"', '"create-replacement"'))
    assert reviewed_plan.digest(file) != before


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "There is no plan in"), ("{", "is no plan"), ("{}", "is no plan"), ("[]", "is no plan")],
)
def test_what_is_no_plan_is_a_sentence(tmp_path: Path, content: str | None, said: str) -> None:
    file = tmp_path / "plan.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(PlanError, match=said):
        reviewed_plan.digest(file)


def test_the_stack_file_of_the_repository_is_valid() -> None:
    remarks = preflight.check_configuration(ROOT / "Pulumi.school.yaml")
    assert all("sshHostKey" in remark for remark in remarks)


@pytest.mark.parametrize("key", ["proxmoxApiToken", "sshPrivateKey"])
def test_a_secret_in_clear_is_refused_and_not_shown(tmp_path: Path, key: str) -> None:
    content = yaml.safe_load((ROOT / "Pulumi.school.yaml").read_text(encoding="utf-8"))
    file = tmp_path / "Pulumi.school.yaml"
    content["config"][f"school-postgres:{key}"] = {"secure": "v1:abc"}
    file.write_text(yaml.safe_dump(content))
    preflight.check_configuration(file)
    content["config"][f"school-postgres:{key}"] = "hunter2"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(PreflightError, match=f"^{key} is not encrypted") as caught:
        preflight.check_configuration(file)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ("a: [", "is no YAML"),
        ("config: 3", "has no map `config`"),
        ("config: {'school-postgres:network': 3}", "network"),
    ],
)
def test_a_stack_file_that_cannot_be_used_is_a_sentence(tmp_path: Path, content: str | None, said: str) -> None:
    file = tmp_path / "Pulumi.school.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(PreflightError, match=said):
        preflight.check_configuration(file)


def test_a_proxmox_that_asks_for_a_token_is_reached(tmp_path: Path, proxmox: str) -> None:
    file = tmp_path / "Pulumi.school.yaml"
    file.write_text(stack_file(proxmox))
    assert preflight.check_proxmox(file) == proxmox


def test_a_certificate_that_nobody_signed_is_named(tmp_path: Path, proxmox: str) -> None:
    file = tmp_path / "Pulumi.school.yaml"
    file.write_text(stack_file(proxmox, insecure=False))
    with pytest.raises(PreflightError, match=r"\(its certificate is not trusted: self.signed certificate\)"):
        preflight.check_proxmox(file)


def test_a_proxmox_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "TIMEOUT_SECONDS", 0.2)
    file = tmp_path / "Pulumi.school.yaml"
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        file.write_text(stack_file(f"https://127.0.0.1:{silent.getsockname()[1]}/"))
        with pytest.raises(PreflightError, match=r"cannot be reached .* \(it does not answer within 0.2 s\)"):
            preflight.check_proxmox(file)
    assert time.monotonic() - began < 60
