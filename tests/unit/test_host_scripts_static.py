"""Scripts for machines and jobs, checked without running them: shellcheck, and that callers and scripts agree."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from components.remote import HOSTS_FOLDER, compose_script, read_host_file
from components.smb_backup import JOBS_FOLDER
from tests.unit.recording import COMMAND, ROOT, RecordingMonitor

pytestmark = pytest.mark.unit

SCRIPTS = sorted(path.name for path in HOSTS_FOLDER.glob("*.sh") if path.name != "common.sh")
JOBS = sorted(JOBS_FOLDER.glob("*.sh"))


def declared(script: str) -> set[str]:
    """Variables that a script insists on in its lines ``: "${x:?}"``."""
    lines = [line for line in read_host_file(script).splitlines() if line.startswith(': "')]
    return set(re.findall(r"\$\{([a-z_0-9]+):?\?\}", "\n".join(lines)))


def shellcheck(shell: str, text: str) -> str:
    # A composed script defines every function of common.sh, and each script uses only some.
    done = subprocess.run(
        ["shellcheck", "--norc", "-s", shell, "-"], input=text, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_host_script_is_clean_as_it_is_sent(script: str) -> None:
    assert shellcheck("bash", compose_script(script, dict.fromkeys(sorted(declared(script)), "value"))) == ""


@pytest.mark.parametrize("script", JOBS, ids=lambda path: path.name)
def test_every_script_of_a_job_is_clean_for_any_posix_shell(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert text.startswith("#!/bin/sh\n")
    assert "\nset -eu\n" in text
    assert shellcheck("sh", text) == ""


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_host_script_says_what_it_is_given(script: str) -> None:
    text = read_host_file(script)
    comment = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    assert text.startswith("# shellcheck shell=bash\n# ")
    for variable in declared(script):
        assert re.search(rf"\b{variable}\b", comment), f"{script} does not explain {variable}"


def test_every_host_script_is_used(school: RecordingMonitor) -> None:
    assert sorted({command.script for command in school.of_type(COMMAND)}) == SCRIPTS


def test_every_script_is_given_exactly_what_it_declares(school: RecordingMonitor) -> None:
    for command in school.of_type(COMMAND):
        assert set(command.variables) == declared(command.script), f"{command.name} runs {command.script}"


def test_what_must_not_be_empty_is_never_given_empty(school: RecordingMonitor) -> None:
    for command in school.of_type(COMMAND):
        insisted = set(re.findall(r'"\$\{([a-z_0-9]+):\?\}"', read_host_file(command.script)))
        assert [name for name in insisted if not command.variables[name]] == [], command.name


def test_a_script_that_is_undone_knows_how(school: RecordingMonitor) -> None:
    for command in school.of_type(COMMAND):
        undone = "delete" in command.inputs
        assert ("$operation" in read_host_file(command.script)) is undone, command.script


def test_no_script_names_a_person_a_test_or_the_lab() -> None:
    for script in SCRIPTS:
        assert not re.search(r"\b(lab|pytest|TODO|FIXME)\b", read_host_file(script)), script
    assert all(path.is_relative_to(ROOT) for path in JOBS)
