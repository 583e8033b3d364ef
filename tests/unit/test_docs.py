"""The pages say what is there: links lead somewhere, and files, commands and keys that they name exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ELSEWHERE = {"Pulumi.lab.yaml", "sha256sum-amd64.txt"}
"""Files that pages name although they are not in the repository."""

FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
FILE = re.compile(
    r"[\w.-]+(/[\w.-]+)*\.(py|sh|j2|ya?ml|md|toml|txt|svg)|(components|docs|lab|operations|tests)(/[\w.-]+)*/?"
)
KEY = re.compile(r"[a-z][A-Za-z]*(\.[a-z][A-Za-z]*)+")
SCHOOL = re.compile(r"(?:(?<=bin/)|(?<![\w/.-]))(?<!stack )school ((?:lab )?[a-z][a-z-]*)")
MAKE = re.compile(r"^make ([a-z.][\w.-]*)", re.MULTILINE)

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> str:
    """The page without its blocks of commands."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def code(page: Path) -> str:
    """Everything on the page that a reader may type, one piece a line."""
    text = page.read_text(encoding="utf-8")
    return "\n".join([*FENCE.findall(text), *SPAN.findall(FENCE.sub("", text))])


def anchors(page: Path) -> set[str]:
    """Anchors of the page's headings, as they are made from the headings' text."""
    titles = HEADING.findall(prose(page))
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def named_files(page: Path) -> Iterator[str]:
    """What stands in backticks and looks like a file or folder of this repository."""
    for span in SPAN.findall(prose(page)):
        if FILE.fullmatch(span):
            yield span


def known_keys() -> dict[str, Any]:
    """All topics of the configuration with their keys, from a file that has every key."""
    complete = yaml.safe_load((ROOT / "tests" / "configurations" / "complete.yaml").read_text(encoding="utf-8"))
    topics = complete.get("config", complete)
    return {key.removeprefix("school-postgres:"): value for key, value in topics.items()}


def exists(keys: Any, path: list[str]) -> bool:
    """Whether the dotted path leads to a key; a list stands for its items."""
    if not path:
        return True
    if isinstance(keys, list):
        return any(exists(item, path) for item in keys)
    return isinstance(keys, dict) and path[0] in keys and exists(keys[path[0]], path[1:])


def make_targets() -> set[str]:
    """Targets of the Makefile, those of files included."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return {name for line in re.findall(r"^([\w. /-]+):(?!=)", text, re.MULTILINE) for name in line.split()}


def school_commands() -> set[str]:
    """Commands of ``school`` and of ``school lab``, as they are typed."""
    from operations.cli import app  # only here: the other tests need no more than the pages

    group: Any = typer.main.get_command(app)
    found = set(group.commands)
    return found | {f"lab {name}" for name in group.commands["lab"].commands}


@every_page
def test_links_of_a_page_lead_to_a_file_and_a_heading(page: Path) -> None:
    broken = []
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@every_page
def test_files_that_a_page_names_exist(page: Path) -> None:
    def is_there(name: str) -> bool:
        if "/" in name:
            return (ROOT / name).exists()
        folders = ("", "components", "components/hosts", "components/jobs", "docs")
        return name in ELSEWHERE or any((ROOT / folder / name).exists() for folder in folders)

    assert [name for name in named_files(page) if not is_there(name)] == []


@every_page
def test_configuration_keys_that_a_page_names_exist(page: Path) -> None:
    keys = known_keys()
    named = [span.replace("[]", "") for span in SPAN.findall(prose(page))]
    paths = [name.split(".") for name in named if KEY.fullmatch(name)]
    assert [".".join(path) for path in paths if path[0] in keys and not exists(keys, path)] == []


@every_page
def test_commands_of_school_that_a_page_names_exist(page: Path) -> None:
    named = set(SCHOOL.findall(code(page)))
    assert named - school_commands() == set()


@every_page
def test_targets_of_make_that_a_page_names_exist(page: Path) -> None:
    assert set(MAKE.findall(code(page))) - make_targets() == set()


def test_readme_names_the_targets_for_users() -> None:
    assert {"lab", "lab-down", "lint", "test"} <= set(MAKE.findall(code(ROOT / "README.md")))


def test_readme_names_every_output_of_the_stack() -> None:
    program = (ROOT / "__main__.py").read_text(encoding="utf-8")
    outputs = set(re.findall(r'pulumi\.export\("(\w+)"', program))
    assert outputs
    assert outputs <= set(SPAN.findall(prose(ROOT / "README.md")))


def test_messages_in_the_readme_are_those_of_the_scripts() -> None:
    sources = "\n".join(
        path.read_text(encoding="utf-8")
        for path in [*(ROOT / "components").rglob("*.sh"), *(ROOT / "settings").glob("*.py")]
    )
    for message in (
        "which this stack did not make",
        "cannot be loaded",
        "is not a Proxmox host",
        "to be unlocked",
        "does not start with its raw lxc lines",
        "Debian packages could not be installed",
        "K3s could not be downloaded from",
        "/dev/kmsg is missing",
        "to be ready",
        "another program uses port 445",
        "cannot be written",
        "nothing has been changed",
        "is still the example of this repository",
    ):
        assert message in sources, message
        assert message in (ROOT / "README.md").read_text(encoding="utf-8"), message


def test_every_decision_is_in_the_index_and_has_all_parts() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text(encoding="utf-8")
    records = sorted(folder.glob("[0-9]*.md"))
    assert [int(record.name[:4]) for record in records] == list(range(1, len(records) + 1))
    for record in records:
        assert f"]({record.name})" in index
        assert {"context", "decision", "rejected", "cost"} <= anchors(record), record.name


def test_every_topic_of_the_configuration_is_known_to_this_test() -> None:
    declared = yaml.safe_load((ROOT / "Pulumi.yaml").read_text(encoding="utf-8"))["config"]
    assert {key for key, value in declared.items() if not value.get("secret")} <= set(known_keys())
