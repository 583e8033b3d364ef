"""Machines: a container has no more rights on its Proxmox host than its task needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pulumi_policy import Severity

from policy import vocabulary
from policy.resources import Machine, Resource, number
from policy.rule import ResourcePolicy

KUBERNETES_TAGS: Final = (vocabulary.TAG_SERVER, vocabulary.TAG_WORKER)
RISKY_FEATURES: Final = ("fuse", "keyctl", "mknod", "mounts")


def _unprivileged(container: Resource) -> Iterator[str]:
    machine = Machine(container)
    if not machine.runs_kubernetes and container.get("unprivileged") is not True:
        yield f"{machine.name} is a privileged container; allowed is unprivileged: true on machines without Kubernetes."


MACHINE_UNPRIVILEGED: Final = ResourcePolicy(
    "machine-unprivileged",
    of=(vocabulary.CONTAINER,),
    description="Only machines that run Kubernetes are privileged containers.",
    why="Root in a privileged container is nearly root on its Proxmox host, and privileged is the provider's default. The "
    "balancers and the datastore answer the whole school network and need none of it.",
    remedy="Set unprivileged=True for the machine in components/proxmox_lxc_node.py, or give it a K3s role.",
    severity=Severity.CRITICAL,
    check=_unprivileged,
)


def _without_risky_features(container: Resource) -> Iterator[str]:
    # Absent is safe: the provider's default of each is off.
    for feature in RISKY_FEATURES:
        if container.get("features", feature):
            yield f"{Machine(container).name} has the feature {feature}; allowed is nesting alone."


MACHINE_WITHOUT_RISKY_FEATURES: Final = ResourcePolicy(
    "machine-without-risky-features",
    of=(vocabulary.CONTAINER,),
    description="No machine has the Proxmox features fuse, keyctl, mknod or mounts.",
    why="Each lets a container reach further into the kernel of its Proxmox host, and Proxmox gives them to root alone: the "
    "API token could no longer change the machine.",
    remedy="Remove the feature from the machine in components/proxmox_lxc_node.py.",
    severity=Severity.HIGH,
    check=_without_risky_features,
)


def _lines_only_for_kubernetes(node: Resource) -> Iterator[str]:
    lines = node.list("lxcLines")
    roles = node.list("roles")
    if lines and not any(tag in roles for tag in KUBERNETES_TAGS):
        yield f"{node.name} has {len(lines)} raw LXC lines without running Kubernetes; allowed are none."


MACHINE_LXC_LINES_ONLY_FOR_KUBERNETES: Final = ResourcePolicy(
    "machine-lxc-lines-only-for-kubernetes",
    of=(vocabulary.NODE_COMPONENT,),
    description="Only machines that run Kubernetes have raw LXC lines.",
    why="The lines switch AppArmor off and keep all capabilities and devices: root in the container is root on the Proxmox host.",
    remedy="Set runs_kubernetes=False for the machine, or give it a K3s role in `machines`.",
    severity=Severity.CRITICAL,
    check=_lines_only_for_kubernetes,
)


def _swap_off(container: Resource) -> Iterator[str]:
    machine = Machine(container)
    # Absent is safe: the provider's default is 0.
    swap = number(container.get("memory", "swap")) if machine.runs_kubernetes else None
    if swap:
        yield f"{machine.name} has {swap} MiB of swap; allowed are 0 on machines that run Kubernetes."


MACHINE_SWAP_OFF: Final = ResourcePolicy(
    "machine-swap-off",
    of=(vocabulary.CONTAINER,),
    description="Machines that run Kubernetes have no swap.",
    why="With swap the kubelet does not start unless it is told to ignore it, and the memory limits of pods mean nothing: a "
    "database that swaps answers too late and is taken for dead.",
    remedy="Set swap=0 for the machine in components/proxmox_lxc_node.py, and raise `machines[].memoryMiB` instead.",
    severity=Severity.MEDIUM,
    check=_swap_off,
)

POLICIES: Final = (
    MACHINE_UNPRIVILEGED,
    MACHINE_WITHOUT_RISKY_FEATURES,
    MACHINE_LXC_LINES_ONLY_FOR_KUBERNETES,
    MACHINE_SWAP_OFF,
)
