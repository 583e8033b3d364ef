"""The process that all stand-ins of an engine are forks of."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.engine import forked

if TYPE_CHECKING:
    from tests.engine.conftest import Stack

pytestmark = pytest.mark.engine

ROOT = str(Path(forked.__file__).resolve().parents[2])
PLUGIN = [sys.executable, "-I", "-S", forked.__file__, ROOT]
LIMIT_SECONDS = 15


def wait_until(done: Callable[[], bool], what: str) -> None:
    """Wait until something is the case."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def engine() -> subprocess.Popen[str]:
    """A process that starts the plugins it is told to, as an engine does, and says which process each is."""
    script = 'while read module; do "$@" "$module" >&2 & echo $!; done; wait'
    return subprocess.Popen(
        ["bash", "-c", script, "engine", *PLUGIN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    )


def start(engine: subprocess.Popen[str], module: str) -> int:
    """Have a plugin started and wait until it serves; returns the pid of its executable."""
    assert engine.stdin is not None
    assert engine.stdout is not None
    assert engine.stderr is not None
    engine.stdin.write(f"lab.engine.{module}\n")
    pid = int(engine.stdout.readline())
    assert re.fullmatch(r"\d+\n", engine.stderr.readline()), "a plugin prints its port"
    return pid


def warm_process(engine: subprocess.Popen[str]) -> int:
    """The pid of the warm process of an engine."""
    with forked.connect(forked.socket_name(ROOT, engine.pid)):
        found = subprocess.run(
            ["pgrep", "--full", "--oldest", forked.socket_name(ROOT, engine.pid)[1:]], capture_output=True, check=True
        )
    return int(found.stdout)


def forks(warm: int) -> list[int]:
    """The pids of a warm process's forks."""
    return [int(pid) for pid in Path(f"/proc/{warm}/task/{warm}/children").read_text().split()]


def test_preview_and_update_run_in_forks_of_one_process_that_ends_with_the_engine(stack: Stack) -> None:
    stack.write(
        "import pulumi_random as random\nprint('fork of', os.getppid())\nrandom.RandomId('id', byte_length=4)\n"
    )
    text = stack.run("up", "--yes").expect().text
    parents = set(re.findall(r"fork of (\d+)", text))
    assert len(parents) == 1
    warm = int(parents.pop())
    wait_until(lambda: not runs(warm), "the warm process outlives the engine")


def test_a_program_finds_nothing_of_the_lab_loaded(stack: Stack) -> None:
    stack.write(
        "import sys\nprint('of the lab:', [name for name in sys.modules if name.partition('.')[0] == 'lab'])\n"
        f"print('root on the path:', {ROOT!r} in sys.path)\n"
    )
    text = stack.run("preview").expect().text
    assert "of the lab: []" in text
    assert "root on the path: False" in text


def test_a_program_of_another_virtual_environment_runs_in_that_one(stack: Stack, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "bin").mkdir(parents=True)
    (other / "bin" / "python").symlink_to(Path(sys.prefix, "bin", "python").resolve())
    (other / "lib").symlink_to(Path(sys.prefix, "lib"))
    (other / "pyvenv.cfg").write_bytes(Path(sys.prefix, "pyvenv.cfg").read_bytes())
    (stack.directory / "Pulumi.yaml").write_text(
        f"name: test\nruntime: {{name: python, options: {{virtualenv: {other}}}}}\n"
    )
    stack.write("import sys\nprint('runs in', sys.prefix)\n")
    assert f"runs in {other}" in stack.run("preview").expect().text


def test_debug_messages_of_the_program_arrive_and_those_of_the_sdk_do_not(stack: Stack) -> None:
    stack.write("pulumi.log.debug('a message of the program')\n")
    text = stack.run("preview", "--debug").expect().text
    assert "a message of the program" in text
    assert "RPCs" not in text


def test_a_killed_warm_process_leaves_nothing_behind_and_the_run_fails(stack: Stack) -> None:
    stack.write(
        "import time\nprint('program', os.getpid(), 'of', os.getppid(), 'waits', flush=True)\ntime.sleep(1000)\n"
    )
    process = stack.start("preview")
    assert process.stdout is not None
    found = next(match for line in process.stdout if (match := re.search(r"program (\d+) of (\d+) waits", line)))
    os.kill(int(found[2]), signal.SIGKILL)
    process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode != 0
    wait_until(lambda: not runs(int(found[1])), "the program outlives the warm process")


def test_a_program_that_ignores_the_interrupt_is_killed(stack: Stack) -> None:
    stack.write(
        "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "print('program', os.getpid(), 'waits', flush=True)\ntime.sleep(1000)\n"
    )
    process = stack.start("preview")
    assert process.stdout is not None
    found = next(match for line in process.stdout if (match := re.search(r"program (\d+) waits", line)))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=2 * LIMIT_SECONDS)
    assert process.returncode != 0
    wait_until(lambda: not runs(int(found[1])), "the program outlives the engine")


def test_a_plugin_passes_a_signal_on_and_takes_its_fork_with_it_when_it_is_killed(
    engine: subprocess.Popen[str],
) -> None:
    interrupted, killed = start(engine, "random"), start(engine, "command")
    warm = warm_process(engine)
    assert len(forks(warm)) == 2
    os.kill(interrupted, signal.SIGINT)
    wait_until(lambda: not runs(interrupted) and len(forks(warm)) == 1, "the interrupt was not passed on")
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: not forks(warm), "the fork outlives its plugin")
    engine.communicate()
    wait_until(lambda: not runs(warm), "the warm process outlives the engine")


def test_a_request_that_breaks_off_hurts_nobody(engine: subprocess.Popen[str]) -> None:
    start(engine, "random")
    with forked.connect(forked.socket_name(ROOT, engine.pid)) as broken:
        socket.send_fds(broken, [forked.LENGTH.pack(1000)], list(forked.STANDARD_STREAMS))
    start(engine, "random")
    assert len(forks(warm_process(engine))) == 2
    engine.kill()
    engine.communicate()


def test_a_module_that_is_missing_is_named(engine: subprocess.Popen[str]) -> None:
    assert engine.stdin is not None
    assert engine.stderr is not None
    engine.stdin.write("lab.engine.absent\n")
    assert "lab.engine.absent cannot be loaded: No module named" in engine.stderr.readline()
    engine.communicate()


def test_a_socket_of_another_user_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    name = forked.socket_name("/tree", os.getpid())
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(name)
        listener.listen()
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        with pytest.raises(forked.NoWarmProcess, match="belongs to another user"):
            forked.connect(name)
