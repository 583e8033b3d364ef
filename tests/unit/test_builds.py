"""What the lab builds: kept by content, whole or not at all, built once, reported."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import threading
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from rich.console import Console

import versions
from lab import packages, places
from lab.builds import cache as caching
from lab.builds import debian, golang, oci, progress, recipes, run
from lab.builds.cache import BuildError, Cache, Recipe, Stopped, Workshop

pytestmark = pytest.mark.unit


class Written:
    """A report that remembers what it was told."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def started(self, name: str, usual_seconds: float) -> None:
        self.events.append(f"+{name}")

    def finished(self, name: str, seconds: float) -> None:
        self.events.append(f"-{name}")

    def tick(self) -> None:
        return


def recipe(
    name: str = "thing",
    *inputs: str | Path,
    build: Callable[[Path], None] | None = None,
    needs: tuple[Recipe, ...] = (),
    usual_seconds: float = 1.0,
) -> Recipe:
    """A recipe that writes a file, or does what ``build`` does."""

    def write(directory: Path, shop: Workshop, have: Mapping[str, Path]) -> None:
        if build:
            build(directory)
        else:
            (directory / "file").write_text(name)

    return Recipe(name=name, build=write, inputs=inputs, needs=needs, usual_seconds=usual_seconds)


# ------------------------------------------------------------------ keys


def test_key_depends_on_names_contents_and_modes_of_the_sources(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    (source / "below" / "main.go").write_text("one")
    keys = [recipe("thing", source).key]
    (source / "below" / "main.go").write_text("two")
    keys.append(recipe("thing", source).key)
    (source / "below" / "main.go").rename(source / "below" / "other.go")
    keys.append(recipe("thing", source).key)
    (source / "below" / "other.go").chmod(0o755)
    keys.append(recipe("thing", source).key)
    keys.append(recipe("thing", source, "go 1.26").key)
    assert len(set(keys)) == len(keys)


def test_key_does_not_depend_on_place_time_or_caches(tmp_path: Path) -> None:
    for place in ("one", "two"):
        source = tmp_path / place / "source"
        source.mkdir(parents=True)
        (source / "main.go").write_text("same")
    (source / "__pycache__").mkdir()
    (source / "__pycache__" / "x.pyc").write_text("cache")
    (source / ".hidden").write_text("an editor's")
    os.utime(source / "main.go", (1, 1))
    assert recipe("thing", tmp_path / "one" / "source").key == recipe("thing", source).key


def test_key_depends_on_what_the_artefact_is_made_of() -> None:
    assert recipe("top", needs=(recipe("base", "1"),)).key != recipe("top", needs=(recipe("base", "2"),)).key


def test_texts_that_run_together_are_different_inputs() -> None:
    assert recipe("thing", "ab", "c").key != recipe("thing", "a", "bc").key


def test_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere is missing, but an artefact of the lab is built of it"):
        assert recipe("thing", tmp_path / "nowhere").key


# ------------------------------------------------------------------ building


def test_second_call_builds_nothing(tmp_path: Path) -> None:
    built: list[Path] = []
    cache = Cache(tmp_path)
    first = cache.make(recipe("thing", "1", build=built.append))
    assert cache.make(recipe("thing", "1", build=built.append)) == first
    assert len(built) == 1


def test_changed_input_builds_anew_and_keeps_the_old(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    first, second = cache.make(recipe("thing", "1")), cache.make(recipe("thing", "2"))
    assert first != second
    assert first.is_dir()
    assert second.is_dir()


def test_failed_build_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    def fail(directory: Path) -> None:
        (directory / "half").write_text("half")
        raise OSError(28, "No space left on device", str(directory / "half"))

    broken = recipe("thing", "1", build=fail)
    cache = Cache(tmp_path)
    with pytest.raises(BuildError, match=r"Building thing failed: No space left on device .*thing\.log"):
        cache.make(broken)
    assert not cache.has(broken)
    whole = cache.make(recipe("thing", "1"))
    assert [path.name for path in whole.iterdir()] == ["file"]


def _build_slowly(directory: Path, began: Path) -> None:
    def slow(target: Path) -> None:
        (target / "half").write_text("half")
        began.touch()
        time.sleep(60)

    Cache(directory).make(recipe("thing", "1", build=slow))


def test_killed_build_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    began = tmp_path / "began"
    process = multiprocessing.get_context("fork").Process(target=_build_slowly, args=(tmp_path / "cache", began))
    process.start()
    deadline = time.monotonic() + 20
    while not began.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    cache = Cache(tmp_path / "cache")
    assert not cache.has(recipe("thing", "1"))
    assert list((tmp_path / "cache").glob(".thing-*.partial"))
    whole = cache.make(recipe("thing", "1"))
    assert [path.name for path in whole.iterdir()] == ["file"]
    assert not list((tmp_path / "cache").glob(".thing-*.partial"))


def test_leftovers_of_other_artefacts_are_left_alone(tmp_path: Path) -> None:
    other = tmp_path / f".thing-of-others-{'0' * caching.DIGITS}.partial"
    other.mkdir()
    Cache(tmp_path).make(recipe("thing", "1"))
    assert other.is_dir()


def test_two_runs_build_the_same_thing_once(tmp_path: Path) -> None:
    built: list[str] = []

    def slow(directory: Path) -> None:
        built.append(directory.name)
        time.sleep(0.4)

    made: list[Path] = []
    threads = [
        threading.Thread(target=lambda: made.append(Cache(tmp_path).make(recipe("thing", "1", build=slow))))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert len(made) == 3
    assert len(set(made)) == 1


def test_waiting_for_another_run_ends_when_told_to_stop(tmp_path: Path) -> None:
    let_go = threading.Event()

    def hold(directory: Path) -> None:
        let_go.wait(20)

    holder = threading.Thread(target=lambda: Cache(tmp_path).make(recipe("thing", "1", build=hold)))
    holder.start()
    while not list(tmp_path.glob(".thing-*.partial")):
        time.sleep(0.01)
    stop = threading.Event()
    stop.set()
    try:
        with pytest.raises(Stopped):
            Cache(tmp_path).make(recipe("thing", "1"), stop)
    finally:
        let_go.set()
        holder.join()


# ------------------------------------------------------------------ commands and their log


def test_error_has_the_command_the_log_and_its_end(tmp_path: Path) -> None:
    shop = Workshop("thing", tmp_path / "thing.log", threading.Event())
    with pytest.raises(BuildError) as failed:
        shop.run(["sh", "-c", "for i in $(seq 50); do echo line $i; done; echo the cause >&2; exit 3"])
    text = str(failed.value)
    assert "Building thing failed: `sh -c" in text
    assert "ended with code 3" in text
    assert str(tmp_path / "thing.log") in text
    assert text.endswith("the cause")
    assert "line 1\n" not in text


def test_missing_program_is_named(tmp_path: Path) -> None:
    shop = Workshop("thing", tmp_path / "thing.log", threading.Event())
    with pytest.raises(BuildError, match="the program no-such-program is not on this machine"):
        shop.run(["no-such-program"])


def test_stop_ends_a_command_with_its_children(tmp_path: Path) -> None:
    stop = threading.Event()
    shop = Workshop("thing", tmp_path / "thing.log", stop)
    threading.Timer(0.3, stop.set).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        shop.run(["sh", "-c", f"sleep 60 & echo $! > {tmp_path}/child; wait"])
    assert time.monotonic() - began < 10
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and Path(f"/proc/{child}/stat").exists():
        if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.02)
    else:
        assert not Path(f"/proc/{child}").exists()


# ------------------------------------------------------------------ order


def test_what_is_needed_is_built_before_and_the_longest_way_first(tmp_path: Path) -> None:
    heavy = recipe("heavy", usual_seconds=100)
    light = recipe("light", usual_seconds=1)
    top = recipe("top", needs=(light, heavy), usual_seconds=1)
    report = Written()
    run.build([light, top], Cache(tmp_path), report)
    assert report.events[0] == "+heavy"
    assert report.events[-2:] == ["+top", "-top"]
    again = Written()
    run.build([light, top], Cache(tmp_path), again)
    assert again.events == []


def test_parts_of_a_finished_artefact_are_not_built_again(tmp_path: Path) -> None:
    part = recipe("part")
    whole = recipe("whole", needs=(part,))
    cache = Cache(tmp_path)
    run.build([whole], cache, Written())
    cache.path(part).rename(tmp_path / "pruned")
    assert run.missing([whole], cache) == []


def test_first_failure_stops_the_other_builds(tmp_path: Path) -> None:
    def fail(directory: Path) -> None:
        time.sleep(0.2)
        raise OSError(28, "No space left on device")

    def wait_long(directory: Path, shop: Workshop, have: Mapping[str, Path]) -> None:
        shop.run(["sleep", "60"])

    slow = Recipe(name="slow", build=wait_long, inputs=(), usual_seconds=100)
    never = recipe("never", needs=(slow,))
    began = time.monotonic()
    with pytest.raises(BuildError, match="Building bad failed"):
        run.build([slow, recipe("bad", build=fail), never], Cache(tmp_path), Written())
    assert time.monotonic() - began < 15
    assert not Cache(tmp_path).has(slow)
    assert not Cache(tmp_path).has(never)


# ------------------------------------------------------------------ images


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("quay.io/metallb/controller:v0.15.2", ("metallb/controller", "v0.15.2")),
        ("registry.example.org:5000/a/b/c:1", ("a/b/c", "1")),
    ],
)
def test_mirror_name_of_an_image(reference: str, expected: tuple[str, str]) -> None:
    assert oci.repository_and_tag(reference) == expected


@pytest.mark.parametrize("reference", ["library/busybox:1", "quay.io/metallb/controller", "busybox"])
def test_reference_without_registry_or_tag_is_refused(reference: str) -> None:
    with pytest.raises(ValueError, match="is no image reference of the form"):
        oci.repository_and_tag(reference)


def test_image_and_registry_storage(tmp_path: Path) -> None:
    shop = Workshop("image", tmp_path / "log", threading.Event())
    digests = []
    for place in ("one", "two"):
        root, image = tmp_path / f"root-{place}", tmp_path / place
        root.mkdir()
        image.mkdir()
        (root / "program").write_text("same content")
        (root / "program").chmod(0o755)
        oci.write_layer(shop, root, image)
        oci.write_image(image, [image], oci.ImageConfig(entrypoint=("/program",), user="1:2"))
        digests.append((image / "digest").read_text())
    assert digests[0] == digests[1]
    manifest = json.loads((tmp_path / "one/blobs" / digests[0].removeprefix("sha256:")).read_text())
    layer = tmp_path / "one/blobs" / manifest["layers"][0]["digest"].removeprefix("sha256:")
    assert manifest["layers"][0]["size"] == layer.stat().st_size
    assert layer.name == debian.file_digest(layer, "sha256")
    config = json.loads((tmp_path / "one/blobs" / manifest["config"]["digest"].removeprefix("sha256:")).read_text())
    assert config["config"]["Entrypoint"] == ["/program"]
    assert config["config"]["User"] == "1:2"

    storage = tmp_path / "storage"
    oci.write_registry(storage, {"quay.io/a/b:1": tmp_path / "one", "ghcr.io/a/c:2": tmp_path / "two"})
    root = storage / "docker/registry/v2"
    assert (root / "repositories/a/b/_manifests/tags/1/current/link").read_text() == digests[0]
    for repository in ("a/b", "a/c"):
        for link in (root / "repositories" / repository).rglob("link"):
            bare = link.read_text().removeprefix("sha256:")
            assert debian.file_digest(root / "blobs/sha256" / bare[:2] / bare / "data", "sha256") == bare


# ------------------------------------------------------------------ Debian


def test_sources_are_read_in_both_formats_release_first(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(
        "# deb http://old.example/debian buster main\n"
        "deb [signed-by=/x.gpg] http://security.example/debian-security bookworm-security main contrib # ours\n"
        "deb-src http://mirror.example/debian bookworm main\n"
    )
    (tmp_path / "sources.list.d" / "debian.sources").write_text(
        "Types: deb\n# a comment\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n"
        "Components: main\n non-free-firmware\n\n"
        "Types: deb\nEnabled: no\nURIs: http://off.example/debian\nSuites: bookworm\nComponents: main\n"
    )
    (tmp_path / "sources.list.d" / "notes.txt").write_text("deb http://notes.example/ bookworm main\n")
    assert [source.line for source in debian.debian_sources(tmp_path)] == [
        "deb http://mirror.example/debian bookworm main non-free-firmware",
        "deb http://mirror.example/debian bookworm-updates main non-free-firmware",
        "deb http://security.example/debian-security bookworm-security main contrib",
    ]


def test_machine_without_debian_12_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text("deb http://mirror.example/debian trixie main\n")
    with pytest.raises(BuildError, match=r"has no source of Debian 12 \(bookworm\)"):
        debian.debian_sources(tmp_path)


def test_renumbering_refuses_a_number_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("other:x:101:101::/:/bin/sh\npostgres:x:100:102::/:/bin/sh\n")
    (tmp_path / "etc/group").write_text("postgres:x:102:\n")
    with pytest.raises(BuildError, match="The number 101 of postgres belongs to other"):
        debian.renumber(tmp_path, "postgres", 101, 103)


def test_package_list_has_one_name_a_line() -> None:
    names = packages.wanted(debian.PACKAGE_LIST.read_text())
    assert {"lxc", "debootstrap", "docker-registry", "python3-venv"} <= set(names)
    assert all(" " not in name for name in names)
    assert len(set(names)) == len(names)


# ------------------------------------------------------------------ versions that have to agree


def go_mod(module: str) -> str:
    """The go.mod of one of the pinned modules."""
    return (golang.MODULES / module / "go.mod").read_text()


def test_module_versions_are_those_of_the_program() -> None:
    assert f"go.universe.tf/metallb v{versions.METALLB.version} " in go_mod("metallb")
    assert f"github.com/zalando/postgres-operator v{versions.ZALANDO_OPERATOR.version} " in go_mod("postgres-operator")
    assert f"github.com/rclone/rclone v{versions.RCLONE_IMAGE.rpartition(':')[2]}\n" in go_mod("rclone")
    assert f"github.com/pulumi/pulumi/pkg/v3 v{recipes.PULUMI} " in go_mod("pulumi")
    assert f"helm.sh/helm/v4 v{recipes.HELM} " in go_mod("helm")


def test_command_line_and_library_of_pulumi_are_of_one_version() -> None:
    project = tomllib.loads((places.REPOSITORY / "pyproject.toml").read_text())["project"]
    assert f"pulumi=={recipes.PULUMI}" in project["dependencies"]


def test_project_and_requirements_name_the_same_versions() -> None:
    project = tomllib.loads((places.REPOSITORY / "pyproject.toml").read_text())["project"]
    pinned = (places.REPOSITORY / "requirements.in").read_text().splitlines()
    assert set(project["dependencies"]) <= set(pinned)


def test_go_too_old_and_go_missing_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    golang.find_go.cache_clear()
    monkeypatch.setattr(golang, "version_of", lambda go: None)
    with pytest.raises(BuildError, match="There is no go program on this machine"):
        golang.find_go()
    monkeypatch.setattr(golang, "version_of", lambda go: (1, 19, 8))
    monkeypatch.setattr(golang, "_fetch_toolchain", lambda go: f"newer than {go}")
    assert golang.find_go().startswith("newer than /")
    golang.find_go.cache_clear()


# ------------------------------------------------------------------ what a person sees


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0 s"), (59.4, "59 s"), (60, "1 min 0 s"), (301, "5 min 1 s")])
def test_durations(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


def test_plain_report_without_a_terminal() -> None:
    written = io.StringIO()
    with progress.ConsoleReport(Console(file=written, force_terminal=False, width=100)) as report:
        report.started("k3s", 360)
        report.tick()
        report.finished("k3s", 301)
    assert written.getvalue() == "building k3s (usually 6 min 0 s)\n  built k3s in 5 min 1 s\n"
