"""Builds what is missing, two artefacts at a time, and says what is going on."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lab import places
from lab.builds.cache import Cache, Recipe, Stopped

AT_ONCE = 2
"""How many artefacts are built at the same time: compilers use all cores, downloads and packing do not."""


class Report(Protocol):
    """Is told what the builds do. Every method is called from the thread that called :func:`build_all`."""

    def started(self, name: str, usual_seconds: float) -> None:
        """The build of ``name`` has begun; it usually takes ``usual_seconds``."""

    def finished(self, name: str, seconds: float) -> None:
        """The build of ``name`` is done, after ``seconds``."""

    def tick(self) -> None:
        """Some time has passed; called about four times a second while anything is being built."""


class Silence:
    """A report that says nothing."""

    def started(self, name: str, usual_seconds: float) -> None:
        """Say nothing."""

    def finished(self, name: str, seconds: float) -> None:
        """Say nothing."""

    def tick(self) -> None:
        """Say nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Artefacts:
    """Everything the lab is made of, finished, in the cache. All paths are read-only for the lab."""

    tools: Path
    """Directory for PATH with ``pulumi`` and ``helm``."""
    k3s: Path
    """The k3s program."""
    k3s_sha256: str
    """Its SHA-256, in hexadecimal."""
    template: Path
    """The container template, a file named as Proxmox names it."""
    template_sha512: str
    """Its SHA-512, in hexadecimal."""
    template_root: Path
    """The content of the template, unpacked."""
    registry_storage: Path
    """Root directory of an image registry's file system storage, with all images."""
    charts: Path
    """Directory of a Helm repository: ``index.yaml`` and packed charts."""


def in_order(wanted: Iterable[Recipe]) -> list[Recipe]:
    """``wanted`` and all they need, each once, what is needed before what needs it."""
    found: dict[str, Recipe] = {}

    def visit(recipe: Recipe) -> None:
        for need in recipe.needs:
            visit(need)
        found.setdefault(recipe.name, recipe)

    for recipe in wanted:
        visit(recipe)
    return list(found.values())


def missing(wanted: Iterable[Recipe], cache: Cache) -> list[Recipe]:
    """What has to be built so that ``wanted`` are there, the longest way to the end first.

    What only an artefact that is there already was made of is not missing.
    """
    needed: dict[str, Recipe] = {}

    def visit(recipe: Recipe) -> None:
        if not cache.has(recipe):
            needed[recipe.name] = recipe
            for need in recipe.needs:
                visit(need)

    for recipe in wanted:
        visit(recipe)
    ordered = [recipe for recipe in in_order(needed.values()) if recipe.name in needed]
    to_the_end: dict[str, float] = {}
    for recipe in reversed(ordered):
        after = [to_the_end[other.name] for other in ordered if recipe in other.needs]
        to_the_end[recipe.name] = recipe.usual_seconds + max(after, default=0.0)
    return sorted(ordered, key=lambda recipe: -to_the_end[recipe.name])


def build(wanted: Collection[Recipe], cache: Cache, report: Report) -> None:
    """Build what is missing of ``wanted``. Raises the first :class:`BuildError`, after ending the other builds."""
    waiting = missing(wanted, cache)
    running: dict[Future[Path], tuple[Recipe, float]] = {}
    stop = threading.Event()
    with ThreadPoolExecutor(max_workers=AT_ONCE, thread_name_prefix="build") as workers:
        try:
            while waiting or running:
                names = {recipe.name for recipe in waiting} | {recipe.name for recipe, _ in running.values()}
                ready = [recipe for recipe in waiting if not any(need.name in names for need in recipe.needs)]
                for recipe in ready[: AT_ONCE - len(running)]:
                    waiting.remove(recipe)
                    running[workers.submit(cache.make, recipe, stop)] = (recipe, time.monotonic())
                    report.started(recipe.name, recipe.usual_seconds)
                done, _ = wait(running, timeout=0.25, return_when=FIRST_COMPLETED)
                report.tick()
                # the error that stopped everything comes before those of the builds that it stopped
                for future in sorted(done, key=lambda one: isinstance(one.exception(), Stopped)):
                    future.result()
                    recipe, began = running.pop(future)
                    report.finished(recipe.name, time.monotonic() - began)
        finally:
            stop.set()


def build_all(report: Report | None = None) -> Artefacts:
    """Everything the lab needs, built now as far as it is not in the cache (:data:`lab.places.CACHE`).

    ``report`` is told what happens (default: nobody). With everything in the cache this takes well under a second.
    Raises :class:`~lab.builds.BuildError` when something cannot be built.
    """
    from lab.builds.recipes import all_recipes  # reads the machine's Go and apt, which a mere import must not

    cache = Cache(places.CACHE)
    recipes = all_recipes()
    build(list(recipes.values()), cache, report or Silence())
    paths = {name: cache.path(recipe) for name, recipe in recipes.items()}
    return Artefacts(
        tools=paths["tools"],
        k3s=paths["k3s"] / "k3s",
        k3s_sha256=(paths["k3s"] / "sha256").read_text(),
        template=paths["template"] / places.TEMPLATE_NAME,
        template_sha512=(paths["template"] / "sha512").read_text(),
        template_root=paths["template"] / "root",
        registry_storage=paths["registry"],
        charts=paths["charts"],
    )
