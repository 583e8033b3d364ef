"""Availability: the loss of any one machine is survived. Here: enough of everything, and a loss is noticed in time.

Where things are, so that no two of a kind are lost together, is looked at in ``placement``, and whether machines do what
their tags say in ``roles``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from pulumi_policy import EnforcementLevel, Severity

from policy import placement, roles, vocabulary
from policy.machines import machines, names
from policy.resources import Machine, Plan, Resource, number, shown
from policy.rule import PlanPolicy, ResourcePolicy
from policy.zalando import is_operator_chart, operator_releases, operator_value, pooler_instances

# --- the database


def _has_operator(database: Resource, plan: Plan) -> Iterator[str]:
    releases = [release.name for release in operator_releases(plan)]
    if len(releases) != 1:
        yield (
            f"{database.name} has {len(releases)} Helm releases of the chart {vocabulary.DATABASE_OPERATOR_CHART} "
            f"({', '.join(releases) or 'none'}); allowed is one."
        )


DATABASE_HAS_OPERATOR: Final = PlanPolicy(
    "database-has-operator",
    description="A plan with a database has exactly one operator that looks after it, installed from its chart.",
    why="Without an operator the object is a wish that nobody reads. Two of them undo each other's work. One that is "
    "installed in another way, or from a chart with another name, is not seen here: no policy would look at its settings.",
    remedy="Install it with one Helm release of the chart postgres-operator, as components/operators/zalando.py does.",
    severity=Severity.HIGH,
    of=(vocabulary.DATABASE,),
    check_each=_has_operator,
)


def _three_members(database: Resource) -> Iterator[str]:
    members = number(database.get("spec", "numberOfInstances"))
    if members is None or members < 3:
        yield f"{database.name} has {members or 'no number of'} members; allowed are 3 or more."


DATABASE_THREE_MEMBERS: Final = ResourcePolicy(
    "database-three-members",
    of=(vocabulary.DATABASE,),
    description="A database has at least three members.",
    why="With two members, one machine's failure leaves a single copy: a commit cannot be confirmed by a second one, "
    "and the next failure loses data. With three, one may be lost and one be repaired.",
    remedy="Set `postgres.instances` to 3 or more.",
    severity=Severity.CRITICAL,
    check=_three_members,
)


def _budget(release: Resource) -> Iterator[str]:
    if not is_operator_chart(release):
        return
    # On by default.
    if release.get("values", "configKubernetes", "enable_pod_disruption_budget") not in (None, True):
        yield f"{release.name} switches `enable_pod_disruption_budget` off; allowed is true."


DATABASE_DISRUPTION_BUDGET: Final = ResourcePolicy(
    "database-disruption-budget",
    of=(vocabulary.RELEASE,),
    description="The primary of a database has a disruption budget.",
    why="Without one, draining a machine for maintenance evicts the primary at once, instead of waiting until the "
    "operator has moved its role to another member: writes stop for a whole failover and not for a moment.",
    remedy="Set `enable_pod_disruption_budget` to true in `operator_values` of components/operators/zalando.py.",
    severity=Severity.HIGH,
    check=_budget,
)


def _failsafe(database: Resource, plan: Plan) -> Iterator[str]:
    own = database.get("spec", "patroni", "failsafe_mode")
    # A text such as "false" is neither.
    if own is not None and own is not True:
        yield f"{database.name} has Patroni's `failsafe_mode` {shown(own)}; allowed is true."
    elif own is None and operator_value(plan, "configPatroni", "enable_patroni_failsafe_mode") is not True:
        yield f"{database.name} leaves Patroni's `failsafe_mode` to its default, which is off; allowed is true."


DATABASE_FAILSAFE_MODE: Final = PlanPolicy(
    "database-failsafe-mode",
    description="A primary goes on when the Kubernetes API is away.",
    why="Patroni keeps its leader in the Kubernetes API. Without this mode every primary stops accepting writes when "
    "the API or its datastore is away for `ttl` seconds: the datastore's machine would be a single point of failure "
    "of the database.",
    remedy="Set `failsafe_mode` to true in `cluster_spec` of components/operators/zalando.py.",
    severity=Severity.CRITICAL,
    of=(vocabulary.DATABASE,),
    check_each=_failsafe,
)

PATRONI_DEFAULTS: Final = {"ttl": 30, "loop_wait": 10, "retry_timeout": 10}
PATRONI_MINIMA: Final = {"ttl": 20, "loop_wait": 1, "retry_timeout": 3}
"""Patroni raises a smaller value to these."""


def _timings(database: Resource) -> Iterator[str]:
    # The operator takes a zero for a value that is not set.
    seconds = {
        name: number(database.get("spec", "patroni", name)) or default for name, default in PATRONI_DEFAULTS.items()
    }
    for name, least in PATRONI_MINIMA.items():
        if seconds[name] < least:
            yield f"{database.name} has Patroni's `{name}` at {seconds[name]} s; allowed are {least} s or more."
    needed = seconds["loop_wait"] + 2 * seconds["retry_timeout"]
    if needed > seconds["ttl"]:
        yield (
            f"{database.name} has Patroni's loop_wait + 2 x retry_timeout at {seconds['loop_wait']} + 2 x "
            f"{seconds['retry_timeout']} = {needed} s; allowed is at most its ttl, {seconds['ttl']} s."
        )


PATRONI_TIMINGS: Final = ResourcePolicy(
    "patroni-timings",
    of=(vocabulary.DATABASE,),
    description="Patroni's times fit each other: loop_wait + 2 x retry_timeout is at most ttl.",
    why="Otherwise a primary that merely retries loses its lease, and the role moves without need. Patroni changes "
    "such values by itself with no more than a warning, so what runs is not what was written.",
    remedy="Change the PATRONI_ constants of components/operators/zalando.py; docs/decisions/0010-patroni-timings.md has "
    "the measurements.",
    severity=Severity.HIGH,
    check=_timings,
)


def _two_poolers(database: Resource, plan: Plan) -> Iterator[str]:
    poolers = pooler_instances(database, plan)
    if poolers is not None and poolers < 2:
        yield f"{database.name} has {poolers or 'no'} pooler; allowed are 2 or more."


POOLER_TWO_INSTANCES: Final = PlanPolicy(
    "pooler-two-instances",
    description="A pooler has at least two instances.",
    why="With one, the loss of its machine cuts off every application that connects through the pooler, although the "
    "database itself goes on.",
    remedy="Set `postgres.pooler.instances` to 2 or more.",
    severity=Severity.HIGH,
    of=(vocabulary.DATABASE,),
    check_each=_two_poolers,
)

# --- Kubernetes


def _at_least_two(plan: Plan, tag: str, what: str) -> Iterator[str]:
    found = machines(plan, tag)
    if len(found) < 2:
        yield f"{what} in the plan: {names(found)}; allowed are 2 or more."


def _two_servers(plan: Plan) -> Iterator[str]:
    yield from _at_least_two(plan, vocabulary.TAG_SERVER, "K3s servers")


K3S_TWO_SERVERS: Final = PlanPolicy(
    "k3s-two-servers",
    description="Kubernetes has at least two K3s servers.",
    why="With one server, its loss is the loss of the Kubernetes API: no failed pod is started elsewhere until it is "
    "repaired.",
    remedy="Give another machine in `machines` the role k3s-server.",
    severity=Severity.CRITICAL,
    check=_two_servers,
)

NOTICED_SECONDS: Final = 30
"""How long a machine may be silent before Kubernetes gives it up."""
NOTICED_BY_DEFAULT_SECONDS: Final = 50
MOVED_SECONDS: Final = 60
"""How long pods without a state of their own may stay on a machine that was given up."""
MOVED_BY_DEFAULT_SECONDS: Final = 300

_DURATION: Final = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?")


def _argument(control_plane: Resource, component: str, name: str, default_seconds: int) -> int | None:
    """Seconds of an argument that K3s passes on to a component of Kubernetes; None when it is no duration."""
    given = [text.partition("=")[2] for text in control_plane.list("serverSettings", component) if _names(text, name)]
    if not given:
        return default_seconds
    found = _DURATION.fullmatch(given[-1])
    if found is None or not given[-1]:
        return None
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds


def _names(argument: object, name: str) -> bool:
    return str(argument).partition("=")[0].removeprefix("--") == name


def _noticed(control_plane: Resource) -> Iterator[str]:
    name = "node-monitor-grace-period"
    seconds = _argument(control_plane, "kube-controller-manager-arg", name, NOTICED_BY_DEFAULT_SECONDS)
    if seconds is None or seconds > NOTICED_SECONDS:
        was = "no whole number of seconds" if seconds is None else f"{seconds} s"
        yield f"{control_plane.name} has `{name}` at {was}; allowed are at most {NOTICED_SECONDS} s."


K3S_NODE_FAILURE_NOTICED: Final = ResourcePolicy(
    "k3s-node-failure-noticed",
    of=(vocabulary.CONTROL_PLANE_COMPONENT,),
    description="Kubernetes gives up a machine that is silent within 30 seconds.",
    why="Until then services go on sending connections to the pods of a dead machine, and some of them fail although the "
    "database has failed over. Kubernetes waits 50 seconds by default, longer than the whole failover takes.",
    remedy="Set node-monitor-grace-period in CONTROLLER_MANAGER_ARGUMENTS of components/k3s_control_plane.py.",
    severity=Severity.HIGH,
    check=_noticed,
)


def _moved(control_plane: Resource) -> Iterator[str]:
    for name in ("default-not-ready-toleration-seconds", "default-unreachable-toleration-seconds"):
        seconds = _argument(control_plane, "kube-apiserver-arg", name, MOVED_BY_DEFAULT_SECONDS)
        if seconds is None or seconds > MOVED_SECONDS:
            was = "no whole number of seconds" if seconds is None else f"{seconds} s"
            yield f"{control_plane.name} has `{name}` at {was}; allowed are at most {MOVED_SECONDS} s."


K3S_PODS_MOVE_AWAY: Final = ResourcePolicy(
    "k3s-pods-move-away",
    of=(vocabulary.CONTROL_PLANE_COMPONENT,),
    description="Pods without a state of their own leave a dead machine within a minute.",
    why="By default they stay there for five minutes. K3s runs one CoreDNS: if it was on that machine, no name is "
    "resolved in the cluster for so long, and poolers cannot find the database.",
    remedy="Set both tolerations in API_SERVER_ARGUMENTS of components/k3s_control_plane.py.",
    severity=Severity.HIGH,
    check=_moved,
)

# --- what Kubernetes stands on


def _redundant_datastore(plan: Plan) -> Iterator[str]:
    datastores = machines(plan, vocabulary.TAG_DATASTORE)
    if len(datastores) < 3 or len(datastores) % 2 == 0:
        yield f"Datastores in the plan: {names(datastores)}; a redundant one has 3, 5 or 7 machines."
    for host, together in placement.by_host(datastores).items():
        if len(together) > 1:
            yield f"{host} carries {len(together)} datastores ({', '.join(together)}); allowed is one a host."


DATASTORE_REDUNDANT: Final = PlanPolicy(
    "datastore-redundant",
    description="The datastore of Kubernetes survives the loss of a machine (advice only).",
    why="While a single datastore is away there is no Kubernetes API: the database goes on, but no member takes over "
    "if the primary is lost as well. It is advice because the program builds one datastore; a vote of an even number, "
    "or of two on one Proxmox host, would be no better than one machine less.",
    remedy="docs/decisions/0016-single-datastore.md says what a single datastore costs and what is needed for more.",
    severity=Severity.MEDIUM,
    check=_redundant_datastore,
    enforcement_level=EnforcementLevel.ADVISORY,
)


def _two_balancers(plan: Plan) -> Iterator[str]:
    yield from _at_least_two(plan, vocabulary.TAG_BALANCER, "Balancers of the Kubernetes API")


API_LOAD_BALANCERS_TWO: Final = PlanPolicy(
    "api-load-balancers-two",
    description="Two balancers stand before the Kubernetes API.",
    why="nginx has no redundancy of its own: with a single balancer its machine is all that the API, every worker "
    "that joins and `pulumi up` depend on.",
    remedy="Give another machine in `machines` the role api-load-balancer.",
    severity=Severity.CRITICAL,
    check=_two_balancers,
)

# --- machines


def _starts(container: Resource) -> Iterator[str]:
    # Both are on by default.
    for name, means in (("startOnBoot", "start with its Proxmox host"), ("started", "run")):
        if container.get(name) not in (None, True):
            yield f"{Machine(container).name} does not {means}: `{name}` is not true, the only value allowed."


MACHINE_STARTS_ON_BOOT: Final = ResourcePolicy(
    "machine-starts-on-boot",
    of=(vocabulary.CONTAINER,),
    description="Every machine runs, and starts again with its Proxmox host.",
    why="After a power cut the machine stays off until somebody notices. The redundancy that survived the first "
    "failure is then missing at the second.",
    remedy="Leave `start_on_boot` and `started` true in components/proxmox_lxc_node.py.",
    severity=Severity.HIGH,
    check=_starts,
)

_STAGES: Final = (
    (vocabulary.TAG_DATASTORE, vocabulary.TAG_BALANCER),
    (vocabulary.TAG_SERVER,),
    (vocabulary.TAG_WORKER,),
)
"""What must have been started before the next can work. A machine with several tasks belongs to the first."""


def _place(machine: Machine) -> int | None:
    """Place in Proxmox's start order; None for none, which is what -1 says."""
    place = number(machine.resource.get("startup", "order"))
    return place if place is not None and place >= 0 else None


def _start_order(plan: Plan) -> Iterator[str]:
    earlier: list[Machine] = []
    for tags in _STAGES:
        stage = [machine for machine in machines(plan, *tags) if machine not in earlier]
        for machine in stage:
            place = _place(machine)
            if place is None:
                yield f"{machine.name} has no place in the start order; allowed is 0 or a greater number."
                continue
            late = [(other, before) for other in earlier if (before := _place(other)) is not None and before >= place]
            if late:
                others = ", ".join(f"{other.name} ({before})" for other, before in late)
                yield f"{machine.name} starts at place {place}; allowed is a place after what it needs: {others}."
        earlier += stage


MACHINE_START_ORDER: Final = PlanPolicy(
    "machine-start-order",
    description="After a power cut datastore and balancers start first, then K3s servers, then workers.",
    why="A machine that starts before what it needs fails, waits and tries again. Proxmox starts machines without a "
    "place last, by their ids, so a cluster may come back after minutes of restarts, or look broken to whoever is "
    "called.",
    remedy="Put the roles in START_ORDER of __main__.py in this order.",
    severity=Severity.MEDIUM,
    check=_start_order,
)

POLICIES: Final = (
    DATABASE_HAS_OPERATOR,
    DATABASE_THREE_MEMBERS,
    DATABASE_DISRUPTION_BUDGET,
    DATABASE_FAILSAFE_MODE,
    PATRONI_TIMINGS,
    POOLER_TWO_INSTANCES,
    K3S_TWO_SERVERS,
    K3S_NODE_FAILURE_NOTICED,
    K3S_PODS_MOVE_AWAY,
    DATASTORE_REDUNDANT,
    API_LOAD_BALANCERS_TWO,
    MACHINE_STARTS_ON_BOOT,
    MACHINE_START_ORDER,
    *placement.POLICIES,
    *roles.POLICIES,
)
