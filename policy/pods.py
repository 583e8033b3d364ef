"""Reading the pods of a workload: its containers, and what holds for each of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from policy.resources import Resource, dig

_IN_A_TEMPLATE: Final = ("spec", "template", "spec")
_POD_SPEC: Final[Mapping[str, tuple[str, ...]]] = {
    "kubernetes:core/v1:Pod": ("spec",),
    "kubernetes:batch/v1:CronJob": ("spec", "jobTemplate", "spec", "template", "spec"),
}


@dataclass(frozen=True, slots=True)
class PodContainer:
    """One container of a workload, initial ones included."""

    workload: Resource
    path: tuple[str | int, ...]
    """Where it stands in the workload's properties."""

    @property
    def name(self) -> str:
        """The workload's name and its own, as sentences name it."""
        return f"{self.workload.name}: {self.short_name}"

    @property
    def short_name(self) -> str:
        """Its own name, where the workload has been named."""
        return f"container {self.get('name') or self.path[-1]}"

    def get(self, *path: str | int) -> Any:
        """A property of the container; None where it is absent."""
        return self.workload.get(*self.path, *path)

    def list(self, *path: str | int) -> Sequence[Any]:
        """The list at a path in the container; empty where it is absent."""
        return self.workload.list(*self.path, *path)

    @property
    def words(self) -> Sequence[str]:
        """What it is started with, command and arguments; empty: what its image says."""
        return [str(word) for word in (*self.list("command"), *self.list("args"))]

    def setting(self, name: str, *path: str) -> Any:
        """A property of its security context. What the container does not say, its pod says for it."""
        own = self.get("securityContext", name)
        return dig(self.workload.get(*pod_path(self.workload), "securityContext", name) if own is None else own, *path)


def pod_path(workload: Resource) -> tuple[str, ...]:
    """Where the specification of the pods stands in a workload's properties."""
    return _POD_SPEC.get(workload.type, _IN_A_TEMPLATE)


def containers(workload: Resource) -> Iterator[PodContainer]:
    """Every container of the pods, in the order in which they start."""
    for kind in ("initContainers", "containers"):
        path = (*pod_path(workload), kind)
        for index in range(len(workload.list(*path))):
            yield PodContainer(workload, (*path, index))
