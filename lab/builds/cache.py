"""Artefacts that are built once: every one has a directory named after the content of everything it is made of.

A build writes into a temporary sibling, which gets the final name when it is complete: what has the final name is
whole, whatever was killed in between. A lock per artefact keeps two runs from building the same thing at the same time.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from lab.errors import LabError

DIGITS = 12
"""How many hexadecimal digits of the hash stand in a directory's name."""


class BuildError(LabError):
    """A build failed. The text names the artefact, the cause, its log file and the end of that log."""


class Stopped(BuildError):
    """A build was ended because another one failed or the user interrupted the run."""


def digest_of(inputs: Iterable[str | Path], extra: Iterable[str] = ()) -> str:
    """Hash, in hexadecimal, of strings and of files or whole directories with their names, contents and modes.

    Hidden files and Python's caches are left out. Raises :class:`FileNotFoundError` for a path that does not exist.
    """
    total = hashlib.sha256()

    def add(kind: str, value: bytes) -> None:
        total.update(f"{kind} {len(value)}\n".encode())
        total.update(value)

    for item in inputs:
        if isinstance(item, str):
            add("text", item.encode())
            continue
        for path in sorted(files_below(item)):
            add("name", str(path.relative_to(item.parent)).encode())
            add("mode", b"x" if path.stat().st_mode & 0o100 else b"-")
            add("content", path.read_bytes())
    for item in extra:
        add("extra", item.encode())
    return total.hexdigest()


def files_below(path: Path) -> Iterator[Path]:
    """The files of a directory that are sources: no hidden ones, no caches. A file is its own only element."""
    if not path.is_dir():
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing, but an artefact of the lab is built of it.")
        yield path
        return
    for entry in path.iterdir():
        if not entry.name.startswith(".") and entry.name != "__pycache__":
            yield from files_below(entry)


class Workshop:
    """Runs the commands of one build, with everything they print in one log file."""

    def __init__(self, name: str, log: Path, stop: threading.Event) -> None:
        self.name = name
        self.log = log
        self._stop = stop
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("")

    def note(self, text: str) -> None:
        """Write a line of our own into the log."""
        with self.log.open("a", encoding="utf-8") as file:
            file.write(f"# {text}\n")

    def run(
        self,
        command: Sequence[str | Path],
        *,
        directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
        output: Path | None = None,
    ) -> None:
        """Run ``command``; its standard output goes to the log, or to the file ``output`` when that is given.

        ``environment`` is added to this process's own. Raises :class:`BuildError` when the command fails, and
        :class:`Stopped` when the whole run is being stopped.
        """
        words = [str(word) for word in command]
        variables = {**os.environ, **(environment or {})}
        self.note(" ".join(words))
        if not shutil.which(words[0], path=variables.get("PATH")):
            raise self.failure(f"the program {words[0]} is not on this machine")
        with self.log.open("ab") as log, open(output, "wb") if output else nullcontext(log) as out:
            process = subprocess.Popen(
                # ends with this process, however that ends: a build without its owner would go on in a lost directory
                ["setpriv", "--pdeathsig", "KILL", "--", *words],
                cwd=directory,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                start_new_session=True,
            )
            while process.poll() is None:
                if self._stop.wait(0.1):
                    _end(process)
                    raise Stopped(f"Building {self.name} was stopped.")
        if process.returncode:
            raise self.failure(f"`{' '.join(words[:3])}` ended with code {process.returncode}")

    def failure(self, cause: str) -> BuildError:
        """The error for ``cause``, with the end of the log."""
        lines = self.log.read_text(errors="replace").splitlines()
        end = "\n".join(f"  {line}" for line in lines[-12:])
        return BuildError(f"Building {self.name} failed: {cause}. The whole log is in {self.log}; it ends with:\n{end}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command and its children, which are a process group of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=3)
            break
        except subprocess.TimeoutExpired:
            continue


Build = Callable[[Path, Workshop, Mapping[str, Path]], None]
"""Fills the given directory; the mapping has the directories of the recipe's ``needs`` by their names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How one artefact is made, and everything that decides how it comes out."""

    name: str
    """Name of the artefact; the first part of its directory's name."""
    build: Build
    """Does the work."""
    inputs: tuple[str | Path, ...]
    """Texts (versions, options) and files or directories (sources) whose content makes the artefact what it is."""
    needs: tuple[Recipe, ...] = ()
    """Artefacts this one is made of; they are built before."""
    usual_seconds: float = 1.0
    """How long it takes on the two-core machine it was measured on, in seconds, with nothing in any cache."""
    _key: list[str] = field(default_factory=list, compare=False, repr=False)

    @property
    def key(self) -> str:
        """The name of the artefact's directory: name and hash. Computed once."""
        if not self._key:
            digest = digest_of(self.inputs, extra=(need.key for need in self.needs))
            self._key.append(f"{self.name}-{digest[:DIGITS]}")
        return self._key[0]


@dataclass(frozen=True, slots=True)
class Cache:
    """A directory of artefacts."""

    directory: Path

    def path(self, recipe: Recipe) -> Path:
        """Where the finished artefact is or will be."""
        return self.directory / recipe.key

    def has(self, recipe: Recipe) -> bool:
        """True when the artefact is finished."""
        return self.path(recipe).is_dir()

    def log(self, recipe: Recipe) -> Path:
        """The log file of the artefact's last build."""
        return self.directory / "logs" / f"{recipe.name}.log"

    def make(self, recipe: Recipe, stop: threading.Event | None = None) -> Path:
        """The directory of the artefact, which is built now unless it is finished. Its needs must be finished.

        Waits while another process builds the same artefact. Raises :class:`BuildError`.
        """
        final = self.path(recipe)
        stop = stop or threading.Event()
        with self._lock(recipe.name, stop):
            if final.is_dir():
                return final
            for rest in self.directory.glob(f".{recipe.name}-{'[0-9a-f]' * DIGITS}.partial"):
                remove_tree(rest)  # of a build that was killed: the lock says that nobody is at work on it
            partial = self.directory / f".{recipe.key}.partial"
            partial.mkdir(parents=True)
            shop = Workshop(recipe.name, self.log(recipe), stop)
            try:
                recipe.build(partial, shop, {need.name: self.path(need) for need in recipe.needs})
            except OSError as error:
                raise shop.failure(f"{error.strerror or error} ({error.filename or partial})") from error
            os.sync()  # a power failure after the renaming must not leave a whole directory of empty files
            partial.rename(final)
        return final

    @contextmanager
    def _lock(self, name: str, stop: threading.Event) -> Iterator[None]:
        directory = self.directory / "locks"
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / name).open("w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if stop.is_set():
                        raise Stopped(f"Building {name} was stopped.") from None
                    time.sleep(0.2)
            yield


def remove_tree(path: Path) -> None:
    """Remove a build's directory. Raises :class:`BuildError` when something is mounted in it."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    inside = [mount for mount in mounts if mount == str(path) or mount.startswith(f"{path}/")]
    if inside:
        raise BuildError(f"{inside[0]} is a mount left in an unfinished build: unmount it, then start again.")
    shutil.rmtree(path)
