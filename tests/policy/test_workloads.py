"""Workloads: each policy passes, fails, and does not take absence for consent."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest

from policy import exact_versions, k3s, machine_rights, vocabulary, workloads
from policy.rule import ResourcePolicy
from tests.policy.judging import UNKNOWN, Judge, Planned, with_property

pytestmark = pytest.mark.unit

SCHEDULE = "backup-schedule"
POD = ["spec", "jobTemplate", "spec", "template", "spec"]
DUMP = [*POD, "initContainers", 0]
UPLOAD = [*POD, "containers", 0]
Path = Sequence[str | int]

TOPIC = workloads.POLICIES

GOOD_POD: dict[str, Any] = {
    "automountServiceAccountToken": False,
    "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
    "volumes": [{"name": "data", "emptyDir": {}}],
    "containers": [
        {
            "name": "web",
            "image": "ghcr.io/school/web:1.2.3",
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
            },
            "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
        }
    ],
}


def sentences(policy: ResourcePolicy, resource: Planned) -> list[str]:
    """What a policy says about a resource, without what stands in every message: the policy itself, remedy and link."""
    verdict = Judge(policy).of_resource(resource)
    messages = verdict.violations.get(policy.name, ())
    start, end = f"{policy.description}\n", f" {policy.remediation_steps} (docs/policies.md#{policy.name})"
    assert all(message.startswith(start) and message.endswith(end) for message in messages)
    return [message.removeprefix(start).removesuffix(end) for message in messages]


def of_plan(policy: ResourcePolicy, plan: list[Planned]) -> list[str]:
    """What a policy says about each resource of a plan."""
    return [sentence for resource in plan for sentence in sentences(policy, resource)]


def planned(type_: str, name: str = "thing", **properties: Any) -> Planned:
    """A resource made by hand."""
    return Planned(type=type_, name=name, properties=properties)


def workload(type_: str, pod: dict[str, Any]) -> Planned:
    """A workload of any type around a pod."""
    inside: dict[str, Any] = {"template": {"spec": pod}}
    if type_.endswith(":Pod"):
        inside = pod
    elif type_.endswith(":CronJob"):
        inside = {"jobTemplate": {"spec": inside}}
    return planned(type_, "thing", spec=inside)


def without(pod: dict[str, Any], *path: str | int) -> dict[str, Any]:
    """The pod without the property at the path."""
    changed: Any = copy.deepcopy(pod)
    at = changed
    for step in path[:-1]:
        at = at[step]
    del at[path[-1]]
    return dict(changed)


@pytest.mark.parametrize("policy", TOPIC, ids=lambda policy: policy.name)
def test_the_school_has_no_violation(
    policy: ResourcePolicy, school_plan: list[Planned], first_plan: list[Planned]
) -> None:
    assert of_plan(policy, school_plan) == []
    assert of_plan(policy, first_plan) == []


@pytest.mark.parametrize("type_", vocabulary.WORKLOADS)
def test_a_good_pod_passes_in_every_workload(type_: str) -> None:
    verdict = Judge(*TOPIC).of_resource(workload(type_, GOOD_POD))
    assert not verdict.violations
    assert not verdict.checked_at_up


@pytest.mark.parametrize("type_", vocabulary.WORKLOADS)
def test_every_workload_is_looked_into(type_: str) -> None:
    bare = {"containers": [{"name": "web"}], "initContainers": [{"name": "first", "image": "busybox"}]}
    verdict = Judge(*workloads.POLICIES).of_resource(workload(type_, bare))
    assert set(verdict.violations) == {
        "workload-non-root",
        "workload-restricted",
        "workload-read-only-root",
        "workload-resources-set",
        "workload-image-pinned",
        "workload-no-service-account-token",
    }
    assert verdict.mandatory == set(verdict.violations) - {"workload-read-only-root"}
    about_users = verdict.violations["workload-non-root"]
    named = [text.splitlines()[1].split(" may ")[0] for text in about_users]
    assert named == ["thing: container first", "thing: container web"]


@pytest.mark.parametrize(
    ("policy", "path", "value", "sentence"),
    [
        (
            workloads.WORKLOAD_NO_HOST_NAMESPACES,
            [*POD, "hostNetwork"],
            True,
            "backup-schedule has hostNetwork: true; allowed is false.",
        ),
        (
            workloads.WORKLOAD_NO_HOST_NAMESPACES,
            [*POD, "hostPID"],
            True,
            "backup-schedule has hostPID: true; allowed is false.",
        ),
        (
            workloads.WORKLOAD_NO_HOST_NAMESPACES,
            [*POD, "hostIPC"],
            True,
            "backup-schedule has hostIPC: true; allowed is false.",
        ),
        (
            workloads.WORKLOAD_NOT_PRIVILEGED,
            [*DUMP, "securityContext", "privileged"],
            True,
            "backup-schedule: container dump is privileged; allowed is privileged: false.",
        ),
        (
            workloads.WORKLOAD_NON_ROOT,
            [*UPLOAD, "securityContext", "runAsNonRoot"],
            False,
            "backup-schedule: container upload may run as root; allowed is runAsNonRoot: true.",
        ),
        (
            workloads.WORKLOAD_NON_ROOT,
            [*UPLOAD, "securityContext", "runAsUser"],
            0,
            "backup-schedule: container upload runs as user 0; allowed is any other.",
        ),
        (
            workloads.WORKLOAD_RESTRICTED,
            [*UPLOAD, "securityContext", "allowPrivilegeEscalation"],
            None,
            "backup-schedule: container upload may raise its rights; allowed is allowPrivilegeEscalation: false.",
        ),
        (
            workloads.WORKLOAD_RESTRICTED,
            [*UPLOAD, "securityContext", "capabilities"],
            None,
            "backup-schedule: container upload keeps capabilities; allowed is capabilities.drop: [ALL].",
        ),
        (
            workloads.WORKLOAD_RESTRICTED,
            [*UPLOAD, "securityContext", "capabilities", "drop"],
            ["NET_RAW"],
            "backup-schedule: container upload keeps capabilities; allowed is capabilities.drop: [ALL].",
        ),
        (
            workloads.WORKLOAD_RESTRICTED,
            [*UPLOAD, "securityContext", "capabilities", "drop"],
            -1.0,
            "backup-schedule: container upload keeps capabilities; allowed is capabilities.drop: [ALL].",
        ),
        (
            workloads.WORKLOAD_RESTRICTED,
            [*UPLOAD, "securityContext", "capabilities", "add"],
            ["NET_BIND_SERVICE", "SYS_ADMIN"],
            "backup-schedule: container upload has the capability SYS_ADMIN; allowed is NET_BIND_SERVICE alone.",
        ),
        (
            workloads.WORKLOAD_NO_HOST_PORT,
            [*UPLOAD, "ports"],
            [{"containerPort": 80.0}, {"containerPort": 5432.0, "hostPort": 5432.0}],
            "backup-schedule: container upload opens port 5432 of its machine; allowed is no hostPort.",
        ),
        (
            workloads.WORKLOAD_RESTRICTED,
            [*UPLOAD, "securityContext", "seccompProfile"],
            {"type": "Unconfined"},
            "backup-schedule: container upload has its seccompProfile Unconfined; allowed is RuntimeDefault or Localhost.",
        ),
        (
            workloads.WORKLOAD_NO_HOST_PATH,
            [*POD, "volumes", 0],
            {"name": "backup", "hostPath": {"path": "/srv"}},
            "backup-schedule mounts a folder of its machine (volume backup); allowed is no hostPath.",
        ),
        (
            workloads.WORKLOAD_READ_ONLY_ROOT,
            [*DUMP, "securityContext", "readOnlyRootFilesystem"],
            None,
            "backup-schedule: container dump can write into its image; better is readOnlyRootFilesystem: true.",
        ),
        (
            workloads.WORKLOAD_RESOURCES_SET,
            [*DUMP, "resources"],
            {"requests": {"cpu": "1"}},
            "backup-schedule: container dump has no requests.memory, limits.memory; "
            "all of requests.cpu, requests.memory, limits.memory are needed.",
        ),
        (
            workloads.WORKLOAD_NO_SERVICE_ACCOUNT_TOKEN,
            [*POD, "automountServiceAccountToken"],
            True,
            "backup-schedule is given a token of the Kubernetes API; allowed is automountServiceAccountToken: false.",
        ),
        (
            exact_versions.WORKLOAD_IMAGE_PINNED,
            [*UPLOAD, "image"],
            None,
            "backup-schedule: container upload has no image; allowed is registry/name:version.",
        ),
        (
            exact_versions.WORKLOAD_IMAGE_PINNED,
            [*DUMP, "image"],
            "docker.io/library/postgres:16",
            "backup-schedule: container dump has the image docker.io/library/postgres:16, which has the tag 16, "
            "which moves; allowed is registry/name:version.",
        ),
    ],
)
def test_a_pod_with_too_many_rights(
    policy: ResourcePolicy, path: Path, value: Any, sentence: str, school_plan: list[Planned]
) -> None:
    assert of_plan(policy, with_property(school_plan, SCHEDULE, path, value)) == [sentence]


@pytest.mark.parametrize(
    ("policy", "path"),
    [
        (workloads.WORKLOAD_NO_HOST_NAMESPACES, [*POD, "hostPID"]),
        (workloads.WORKLOAD_NOT_PRIVILEGED, [*DUMP, "securityContext", "privileged"]),
        (workloads.WORKLOAD_NON_ROOT, [*POD, "securityContext", "runAsNonRoot"]),
        (workloads.WORKLOAD_NO_HOST_PORT, [*DUMP, "ports"]),
        (workloads.WORKLOAD_RESTRICTED, [*DUMP, "securityContext", "capabilities", "drop"]),
        (workloads.WORKLOAD_RESTRICTED, [*POD, "securityContext", "seccompProfile", "type"]),
        (workloads.WORKLOAD_NO_HOST_PATH, [*POD, "volumes"]),
        (workloads.WORKLOAD_READ_ONLY_ROOT, [*DUMP, "securityContext", "readOnlyRootFilesystem"]),
        (workloads.WORKLOAD_RESOURCES_SET, [*DUMP, "resources", "limits", "memory"]),
        (workloads.WORKLOAD_NO_SERVICE_ACCOUNT_TOKEN, [*POD, "automountServiceAccountToken"]),
        (exact_versions.WORKLOAD_IMAGE_PINNED, [*DUMP, "image"]),
    ],
)
def test_what_is_not_known_of_a_pod_is_checked_at_up(
    policy: ResourcePolicy, path: Path, school_plan: list[Planned]
) -> None:
    verdict = Judge(policy).of_plan(with_property(school_plan, SCHEDULE, path, UNKNOWN))
    assert not verdict.violations
    where = ".".join(str(step) for step in path)
    assert verdict.checked_at_up[policy.name] == f"{where} of backup-schedule: not known yet, checked at `pulumi up`"


def test_a_container_may_say_for_itself_what_its_pod_does_not() -> None:
    pod = without(GOOD_POD, "securityContext")
    own = pod["containers"][0]["securityContext"]
    pod["containers"][0]["securityContext"] = {**own, **GOOD_POD["securityContext"]}
    job = workload("kubernetes:batch/v1:Job", pod)
    assert not Judge(*TOPIC).of_resource(job).violations


@pytest.mark.parametrize(
    ("reference", "fault"),
    [
        ("ghcr.io/zalando/spilo-17:4.0-p3", None),
        ("registry.opensource.zalan.do/acid/pgbouncer:master-32", None),
        ("localhost:5000/tool:1.0", None),
        ("localhost/tool:1.0", None),
        ("docker.io/library/busybox@sha256:" + "a" * 64, None),
        ("docker.io/library/busybox:latest@sha256:" + "a" * 64, None),
        ("postgres:16.4", "names no registry"),
        ("library/postgres:16.4", "names no registry"),
        ("10.0.145.1:5000/tool", "has no tag"),
        ("ghcr.io/school/web", "has no tag"),
        ("ghcr.io/school/web:", "has no tag"),
        ("ghcr.io/school/web:latest", "has the tag latest, which moves"),
        ("ghcr.io/school/web:v2", "has the tag v2, which moves"),
        ("ghcr.io/school/web:16-alpine", "has the tag 16-alpine, which moves"),
        ("bauer:hunter2@ghcr.io/school/web:1.2.3", "has something before an @ that begins no digest"),
        ("ghcr.io/school/web@latest", "has something before an @ that begins no digest"),
    ],
)
def test_an_exact_image(reference: str, fault: str | None) -> None:
    assert exact_versions.fault_of_image(reference) == fault


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("bauer:hunter2@ghcr.io/school/web:1.2.3", "ghcr.io/school/web:1.2.3"),
        ("https://bauer:hunter2@ghcr.io/school/web", "ghcr.io/school/web"),
        ("bauer:hunter2@web@sha256:" + "a" * 64, "web@sha256:" + "a" * 64),
    ],
)
def test_a_password_in_an_image_is_not_repeated(reference: str, said: str) -> None:
    pod = copy.deepcopy(GOOD_POD)
    pod["containers"][0]["image"] = reference
    (sentence,) = sentences(exact_versions.WORKLOAD_IMAGE_PINNED, workload("kubernetes:batch/v1:Job", pod))
    assert sentence.startswith(f"thing: container web has the image {said}, which has something before an @")
    assert "hunter2" not in sentence


@pytest.mark.parametrize(
    "type_",
    [
        "kubernetes:core/v1:ServicePatch",
        "kubernetes:acid.zalan.do/v1:postgresqlPatch",
        "kubernetes:core/v1:PodList",
        "kubernetes:apps/v1:DeploymentList",
        "kubernetes:yaml:ConfigFile",
        "kubernetes:yaml/v2:ConfigGroup",
        "kubernetes:kustomize:Directory",
        "kubernetes:kustomize/v2:Directory",
        "kubernetes:helm.sh/v4:Chart",
    ],
)
def test_objects_that_policies_do_not_know_are_refused(type_: str) -> None:
    assert sentences(workloads.KUBERNETES_KINDS_KNOWN, planned(type_)) == [
        f"thing is of the type {type_}; allowed are single objects of their own kinds."
    ]
    assert Judge(workloads.KUBERNETES_KINDS_KNOWN).of_resource(planned(type_, spec=UNKNOWN)).mandatory


@pytest.mark.parametrize(
    "type_", [*vocabulary.WORKLOADS, vocabulary.RELEASE, vocabulary.DATABASE, "other:core:PodList"]
)
def test_objects_of_their_own_kind_are_known(type_: str) -> None:
    assert sentences(workloads.KUBERNETES_KINDS_KNOWN, planned(type_)) == []


@pytest.mark.parametrize("value", [0.5, -1.0, True, "text", [None], [{}], {"a": "b"}])
def test_what_has_another_shape_crashes_no_policy(value: Any, school_plan: list[Planned]) -> None:
    judge = Judge(*TOPIC)
    places: Sequence[tuple[str, Any]] = (
        (SCHEDULE, [*DUMP, "securityContext", "capabilities"]),
        (SCHEDULE, [*DUMP, "ports"]),
        (SCHEDULE, [*DUMP, "image"]),
        (SCHEDULE, [*POD, "volumes"]),
        ("k3s", ["serverSettings"]),
        ("k3s", ["serverSettings", "kubelet-arg"]),
        ("gl2", ["roles"]),
        ("postgres-operator-chart", ["values"]),
        ("postgres-cluster", ["spec"]),
    )
    for name, path in places:
        plan = [resource for resource in school_plan if resource.name == name]
        judge.of_plan(with_property(plan, name, path, value))
    sentences(workloads.RBAC_LEAST, planned(vocabulary.ROLES[0], rules=[{"verbs": value}]))
    sentences(workloads.RBAC_LEAST, planned(vocabulary.ROLES[0], rules=value))


@pytest.mark.parametrize(
    ("name", "path", "image", "sentence"),
    [
        (
            "postgres-operator-chart",
            ["values", "configGeneral", "docker_image"],
            "ghcr.io/zalando/spilo-17:latest",
            "postgres-operator-chart: docker_image has the image ghcr.io/zalando/spilo-17:latest, "
            "which has the tag latest, which moves; allowed is registry/name:version.",
        ),
        (
            "postgres-operator-chart",
            ["values", "configConnectionPooler", "connection_pooler_image"],
            "pgbouncer:1.2",
            "postgres-operator-chart: connection_pooler_image has the image pgbouncer:1.2, which names no registry; "
            "allowed is registry/name:version.",
        ),
        (
            "postgres-cluster",
            ["spec", "dockerImage"],
            "ghcr.io/zalando/spilo-17",
            "postgres-cluster: dockerImage has the image ghcr.io/zalando/spilo-17, which has no tag; "
            "allowed is registry/name:version.",
        ),
        ("postgres-operator-chart", ["values", "configGeneral", "docker_image"], None, None),
    ],
)
def test_images_of_the_operator(
    name: str, path: Path, image: str | None, sentence: str | None, school_plan: list[Planned]
) -> None:
    found = of_plan(exact_versions.WORKLOAD_IMAGE_PINNED, with_property(school_plan, name, path, image))
    assert found == ([] if sentence is None else [sentence])


def test_an_image_of_the_operator_that_is_not_known_is_checked_at_up(school_plan: list[Planned]) -> None:
    path = ["values", "configGeneral", "docker_image"]
    unknown = with_property(school_plan, "postgres-operator-chart", path, UNKNOWN)
    verdict = Judge(exact_versions.WORKLOAD_IMAGE_PINNED).of_plan(unknown)
    assert not verdict.violations
    assert list(verdict.checked_at_up) == ["workload-image-pinned"]


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (["resources"], None, "postgres-cluster has no requests.cpu, requests.memory, limits.memory; "),
        (["resources", "limits", "memory"], None, "postgres-cluster has no limits.memory; "),
        (["resources", "requests"], {"memory": "1Gi"}, "postgres-cluster has no requests.cpu; "),
    ],
)
def test_a_database_has_resources(path: list[str], value: Any, sentence: str, school_plan: list[Planned]) -> None:
    changed = with_property(school_plan, "postgres-cluster", ["spec", *path], value)
    end = "all of requests.cpu, requests.memory, limits.memory are needed."
    assert of_plan(workloads.DATABASE_RESOURCES_SET, changed) == [sentence + end]


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("spilo_privileged", "true", "postgres-operator-chart has spilo_privileged: true; allowed is false."),
        ("spilo_runasuser", "0", "postgres-operator-chart has spilo_runasuser 0; allowed is any user but 0."),
        (
            "spilo_allow_privilege_escalation",
            "false",
            "postgres-operator-chart lets members raise their rights; "
            "allowed is spilo_allow_privilege_escalation: false.",
        ),
        ("spilo_privileged", True, "postgres-operator-chart has spilo_privileged: true; allowed is false."),
        ("spilo_runasuser", 0, "postgres-operator-chart has spilo_runasuser 0; allowed is any user but 0."),
        ("spilo_runasuser", None, "postgres-operator-chart has spilo_runasuser unset; allowed is any user but 0."),
        (
            "spilo_allow_privilege_escalation",
            None,
            "postgres-operator-chart lets members raise their rights; "
            "allowed is spilo_allow_privilege_escalation: false.",
        ),
    ],
)
def test_members_run_without_root(key: str, value: Any, sentence: str, school_plan: list[Planned]) -> None:
    path = ["values", "configKubernetes", key]
    changed = with_property(school_plan, "postgres-operator-chart", path, value)
    assert of_plan(workloads.DATABASE_WITHOUT_ROOT, changed) == [sentence]


@pytest.mark.parametrize("key", ["spiloRunAsUser", "spiloRunAsGroup", "spiloFSGroup"])
def test_a_database_does_not_make_its_members_root(key: str, school_plan: list[Planned]) -> None:
    for value in (0.0, "0"):
        changed = with_property(school_plan, "postgres-cluster", ["spec", key], value)
        assert of_plan(workloads.DATABASE_WITHOUT_ROOT, changed) == [
            f"postgres-cluster has {key} 0; allowed is any number but 0."
        ]
    changed = with_property(school_plan, "postgres-cluster", ["spec", key], 101.0)
    assert of_plan(workloads.DATABASE_WITHOUT_ROOT, changed) == []


def test_an_operator_without_values_starts_members_as_root(school_plan: list[Planned]) -> None:
    changed = with_property(school_plan, "postgres-operator-chart", ["values"], None)
    assert len(of_plan(workloads.DATABASE_WITHOUT_ROOT, changed)) == 2
    assert of_plan(workloads.DATABASE_WITHOUT_ROOT, [planned(vocabulary.RELEASE, chart="metallb")]) == []


@pytest.mark.parametrize("version", ["0.15.2", "v1.19.1", "2.0.0-rc.1", "1.15.0+build.7"])
def test_an_exact_chart_version_passes(version: str) -> None:
    assert sentences(exact_versions.CHART_VERSION_EXACT, planned(vocabulary.RELEASE, version=version)) == []


@pytest.mark.parametrize(
    "version", ["^1.15.0", "~1.15", "1.15", "1.x.x", ">=1.15.0", "1.15.0 - 2.0.0", "*", "latest", ""]
)
def test_a_range_is_no_chart_version(version: str) -> None:
    assert sentences(exact_versions.CHART_VERSION_EXACT, planned(vocabulary.RELEASE, version=version)) == [
        f"thing has the version {version}; allowed is one exact version such as 1.15.0."
    ]


def test_a_chart_without_version() -> None:
    assert sentences(exact_versions.CHART_VERSION_EXACT, planned(vocabulary.RELEASE)) == [
        "thing has the version unset; allowed is one exact version such as 1.15.0."
    ]


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        ("v1.36.3+k3s1", None),
        ("stable", "k3s has the version stable; allowed is one exact release such as v1.36.3+k3s1."),
        ("v1.36", "k3s has the version v1.36; allowed is one exact release such as v1.36.3+k3s1."),
        ("v1.36.3", "k3s has the version v1.36.3; allowed is one exact release such as v1.36.3+k3s1."),
        (None, "k3s has the version unset; allowed is one exact release such as v1.36.3+k3s1."),
    ],
)
def test_an_exact_k3s_release(version: str | None, sentence: str | None) -> None:
    control_plane = planned(vocabulary.CONTROL_PLANE_COMPONENT, "k3s", **({"version": version} if version else {}))
    found = sentences(k3s.K3S_VERSION_EXACT, control_plane)
    assert found == ([] if sentence is None else [sentence])


@pytest.mark.parametrize(
    ("disable", "missing"),
    [(["traefik"], ["servicelb"]), (["servicelb"], ["traefik"]), ([], ["servicelb", "traefik"]), (None, None)],
)
def test_parts_of_k3s_that_are_off(disable: Any, missing: list[str] | None, school_plan: list[Planned]) -> None:
    changed = with_property(school_plan, "k3s", ["serverSettings", "disable"], disable)
    assert of_plan(k3s.K3S_BUNDLED_PARTS_OFF, changed) == [
        f"k3s does not disable {part}; allowed is disable: [servicelb, traefik]."
        for part in (missing or k3s.BUNDLED_PARTS)
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nodeport-addresses=127.0.0.0/8"], None),
        (["v=2", "nodeport-addresses=127.0.0.0/8"], None),
        (["nodeport-addresses=10.0.145.0/24"], "10.0.145.0/24"),
        (["nodeport-addresses=127.0.0.0/8,10.0.145.0/24"], "127.0.0.0/8,10.0.145.0/24"),
        (["nodeport-addresses=127.0.0.0/8", "nodeport-addresses=primary"], "127.0.0.0/8, primary"),
        (["metrics-bind-address=127.0.0.1"], "every address"),
        ([], "every address"),
        (None, "every address"),
    ],
)
def test_machines_answer_node_ports_to_themselves_only(arguments: list[str] | None, said: str | None) -> None:
    settings = {} if arguments is None else {"kube-proxy-arg": arguments}
    expected = [] if said is None else [f"k3s answers node ports at {said}; allowed is 127.0.0.0/8."]
    control_plane = planned(vocabulary.CONTROL_PLANE_COMPONENT, "k3s", serverSettings=settings)
    assert sentences(k3s.K3S_NODE_PORTS_CLOSED, control_plane) == expected


@pytest.mark.parametrize(("value", "said"), [(True, "true"), ("true", "true"), ("false", "false"), (1.0, "1")])
def test_network_policies_are_enforced(value: Any, said: str, school_plan: list[Planned]) -> None:
    path = ["serverSettings", "disable-network-policy"]
    assert of_plan(k3s.K3S_NETWORK_POLICIES_KEPT, with_property(school_plan, "k3s", path, value)) == [
        f"k3s has `disable-network-policy` {said}; allowed is false."
    ]
    assert of_plan(k3s.K3S_NETWORK_POLICIES_KEPT, with_property(school_plan, "k3s", path, False)) == []


@pytest.mark.parametrize("setting", ["kube-apiserver-arg", "kubelet-arg"])
@pytest.mark.parametrize(
    ("given", "is_allowed"),
    [
        (["authorization-mode=AlwaysAllow"], False),
        (["v=2", "--authorization-mode=RBAC,AlwaysAllow"], False),
        ("authorization-mode=AlwaysAllow", False),
        (["authorization-mode=Node,RBAC"], True),
        (None, True),
        ([None], True),
    ],
)
def test_everybody_is_asked_for_rights(setting: str, given: Any, is_allowed: bool) -> None:
    settings = {} if given is None else {setting: given}
    control_plane = planned(vocabulary.CONTROL_PLANE_COMPONENT, "k3s", serverSettings=settings)
    expected = f"k3s has authorization-mode=AlwaysAllow in `{setting}`; allowed is Node,RBAC."
    assert sentences(k3s.K3S_RIGHTS_ASKED_FOR, control_plane) == ([] if is_allowed else [expected])


@pytest.mark.parametrize(
    ("names", "was"),
    [
        (["k3s-api", "k3s-api.schule.lan"], "k3s-api, k3s-api.schule.lan"),
        (["10.0.145"], "10.0.145"),
        ([], "no further name"),
        (None, "no further name"),
    ],
)
def test_the_certificate_of_the_api_names_an_address(names: Any, was: str, school_plan: list[Planned]) -> None:
    changed = with_property(school_plan, "k3s", ["serverSettings", "tls-san"], names)
    assert of_plan(k3s.K3S_CERTIFICATE_NAMES_ADDRESS, changed) == [
        f"k3s has a certificate for {was}; allowed is `tls-san` with the address of the balancers."
    ]


@pytest.mark.parametrize(
    ("type_", "properties", "found"),
    [
        (vocabulary.ROLES[1], {"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]}, []),
        (vocabulary.ROLES[1], {}, []),
        (
            vocabulary.ROLES[0],
            {"rules": [{"verbs": ["get"]}, {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]},
            [
                f"thing allows every one of its {field} (rule 2 has *); allowed are names."
                for field in ("verbs", "resources", "apiGroups")
            ],
        ),
        (
            vocabulary.ROLE_BINDINGS[0],
            {"roleRef": {"kind": "ClusterRole", "name": "cluster-admin"}},
            ["thing makes somebody cluster-admin; allowed is a role with exactly the rights that are needed."],
        ),
        (vocabulary.ROLE_BINDINGS[1], {"roleRef": {"kind": "Role", "name": "reader"}}, []),
    ],
)
def test_rights_in_kubernetes(type_: str, properties: dict[str, Any], found: list[str]) -> None:
    assert sentences(workloads.RBAC_LEAST, planned(type_, **properties)) == found


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ({workloads.POD_SECURITY_LABEL: "restricted"}, []),
        ({workloads.POD_SECURITY_LABEL: "baseline"}, []),
        (
            {workloads.POD_SECURITY_LABEL: "privileged"},
            ["thing has the label pod-security.kubernetes.io/enforce privileged; allowed is baseline or restricted."],
        ),
        (
            None,
            ["thing has the label pod-security.kubernetes.io/enforce unset; allowed is baseline or restricted."],
        ),
    ],
)
def test_a_namespace_refuses_privileged_pods(labels: dict[str, str] | None, found: list[str]) -> None:
    namespace = planned(vocabulary.NAMESPACE, metadata={"name": "postgres", **({"labels": labels} if labels else {})})
    assert sentences(workloads.NAMESPACE_POD_SECURITY, namespace) == found


@pytest.mark.parametrize("value", [False, None])
def test_a_machine_without_kubernetes_is_unprivileged(value: bool | None, school_plan: list[Planned]) -> None:
    changed = with_property(school_plan, "gl9-container", ["unprivileged"], value)
    assert of_plan(machine_rights.MACHINE_UNPRIVILEGED, changed) == [
        "gl9 is a privileged container; allowed is unprivileged: true on machines without Kubernetes."
    ]


def test_a_machine_without_tags_runs_no_kubernetes(school_plan: list[Planned]) -> None:
    changed = with_property(school_plan, "gl2-container", ["tags"], None)
    assert len(of_plan(machine_rights.MACHINE_UNPRIVILEGED, changed)) == 1


@pytest.mark.parametrize(
    ("feature", "value"), [("mknod", True), ("fuse", True), ("keyctl", True), ("mounts", ["cifs"])]
)
def test_a_machine_has_no_risky_feature(feature: str, value: Any, school_plan: list[Planned]) -> None:
    changed = with_property(school_plan, "gl8-container", ["features", feature], value)
    assert of_plan(machine_rights.MACHINE_WITHOUT_RISKY_FEATURES, changed) == [
        f"gl8 has the feature {feature}; allowed is nesting alone."
    ]


def test_raw_lines_are_only_for_kubernetes(school_plan: list[Planned]) -> None:
    policy = machine_rights.MACHINE_LXC_LINES_ONLY_FOR_KUBERNETES
    changed = with_property(school_plan, "gl9", ["lxcLines"], ["lxc.apparmor.profile: unconfined", "lxc.cap.drop:"])
    expected = "has {} raw LXC lines without running Kubernetes; allowed are none."
    assert of_plan(policy, changed) == ["gl9 " + expected.format(2)]
    changed = with_property(school_plan, "gl2", ["roles"], None)
    assert of_plan(policy, changed) == ["gl2 " + expected.format(5)]


def test_machines_that_run_kubernetes_do_not_swap(school_plan: list[Planned]) -> None:
    policy = machine_rights.MACHINE_SWAP_OFF
    changed = with_property(school_plan, "gl6-container", ["memory", "swap"], 512)
    assert of_plan(policy, changed) == ["gl6 has 512 MiB of swap; allowed are 0 on machines that run Kubernetes."]
    assert of_plan(policy, with_property(school_plan, "gl6-container", ["memory"], None)) == []
    assert of_plan(policy, with_property(school_plan, "gl8-container", ["memory", "swap"], 512)) == []


@pytest.mark.parametrize(
    ("policy", "name", "path"),
    [
        (machine_rights.MACHINE_UNPRIVILEGED, "gl9-container", ["unprivileged"]),
        (machine_rights.MACHINE_WITHOUT_RISKY_FEATURES, "gl8-container", ["features"]),
        (machine_rights.MACHINE_LXC_LINES_ONLY_FOR_KUBERNETES, "gl9", ["lxcLines"]),
        (machine_rights.MACHINE_SWAP_OFF, "gl2-container", ["memory", "swap"]),
        (exact_versions.CHART_VERSION_EXACT, "metallb-chart", ["version"]),
        (k3s.K3S_VERSION_EXACT, "k3s", ["version"]),
        (k3s.K3S_BUNDLED_PARTS_OFF, "k3s", ["serverSettings", "disable"]),
        (k3s.K3S_NODE_PORTS_CLOSED, "k3s", ["serverSettings", "kube-proxy-arg"]),
        (k3s.K3S_NETWORK_POLICIES_KEPT, "k3s", ["serverSettings", "disable-network-policy"]),
        (k3s.K3S_RIGHTS_ASKED_FOR, "k3s", ["serverSettings", "kube-apiserver-arg"]),
        (workloads.DATABASE_WITHOUT_ROOT, "postgres-cluster", ["spec", "spiloRunAsUser"]),
        (k3s.K3S_CERTIFICATE_NAMES_ADDRESS, "k3s", ["serverSettings", "tls-san"]),
        (workloads.DATABASE_RESOURCES_SET, "postgres-cluster", ["spec", "resources"]),
        (workloads.DATABASE_WITHOUT_ROOT, "postgres-operator-chart", ["values", "configKubernetes"]),
        (workloads.NAMESPACE_POD_SECURITY, "postgres-namespace", ["metadata"]),
    ],
)
def test_what_is_not_known_is_checked_at_up(
    policy: ResourcePolicy, name: str, path: Path, school_plan: list[Planned]
) -> None:
    verdict = Judge(policy).of_plan(with_property(school_plan, name, path, UNKNOWN))
    assert not verdict.violations
    where = ".".join(str(step) for step in path)
    assert verdict.checked_at_up[policy.name] == f"{where} of {name}: not known yet, checked at `pulumi up`"


def test_rights_that_are_not_known_are_checked_at_up() -> None:
    verdict = Judge(workloads.RBAC_LEAST).of_resource(planned(vocabulary.ROLES[0], rules=UNKNOWN))
    assert list(verdict.checked_at_up) == ["rbac-least"]
