"""The Kubernetes stand-in under the real engine, against an API on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from kubernetes_api import Api, Object, Refusal, serve

from lab.engine.kubernetes import KubernetesProvider, inputs_class_of
from lab.engine.provider import UNKNOWN, InputError

if TYPE_CHECKING:
    from conftest import Stack

pytestmark = pytest.mark.engine

START = """
import pulumi_kubernetes as k8s
from pulumi import ResourceOptions

provider = k8s.Provider("cluster", **{"kubeconfig": option("kubeconfig"), "cluster_identifier": "lab", **option("provider", {})})


def opts(**more):
    return ResourceOptions(provider=provider, **more)


"""

PROGRAM = (
    START
    + """
namespace = k8s.core.v1.Namespace("school", metadata={"name": "school"}, opts=opts())
inside = {"namespace": namespace.metadata["name"]}
password = k8s.core.v1.Secret("password", metadata=inside, string_data={"p": option("password", "hunter2")}, opts=opts())
settings = k8s.core.v1.ConfigMap("settings", metadata={**inside, "name": "settings"}, data={"a": option("a", "1")}, opts=opts())
thing = k8s.apiextensions.CustomResource("thing", api_version="example.org/v1", kind="Thing", metadata={
    **inside, "name": "thing", "annotations": {"pulumi.com/waitFor": "jsonpath={.status.phase}=Running", **option("notes", {})},
}, spec={"size": option("size", 1)}, opts=opts())
"""
)
THING = "/apis/example.org/v1/namespaces/school/things/thing"
SETTINGS = "/api/v1/namespaces/school/configmaps/settings"


def _running(path: str, live: Object) -> None:
    if path == THING:
        live["status"] = {"phase": "Running"}


@pytest.fixture
def api() -> Iterator[Api]:
    """An empty cluster that knows the kind Thing, whose objects run at once."""
    made = Api(on_apply=_running)
    made.kinds["example.org/v1"] = {"Thing": ("things", True)}
    server = serve(made)
    yield made
    server.shutdown()
    server.server_close()


@pytest.fixture
def cluster_stack(stack: Stack, api: Api) -> Stack:
    """A stack with the program above."""
    stack.options["kubeconfig"] = api.kubeconfig
    stack.write(PROGRAM)
    return stack


def test_objects_are_made_changed_replaced_and_removed(cluster_stack: Stack, api: Api) -> None:
    cluster_stack.run("preview").expect()
    assert not api.requests, "a preview changes nothing"
    cluster_stack.up().expect()
    stored = cluster_stack.resources()
    assert stored["settings"]["id"] == "school/settings"
    assert stored["password"]["id"].startswith("school/password-")
    assert "hunter2" not in json.dumps(stored)
    assert "aHVudGVyMg" not in json.dumps(stored)
    secret = next(live for path, live in api.objects.items() if "/secrets/" in path)
    assert secret["data"] == {"p": "aHVudGVyMg=="}
    managers = {request.query["fieldManager"] for request in api.changes("PATCH")}
    assert len(managers) == 4, "every object has a field manager of its own"
    assert all(manager.startswith("pulumi-kubernetes-") for manager in managers)

    api.requests.clear()
    outcome = cluster_stack.up().expect()
    assert "5 unchanged" not in outcome.text or not api.requests
    assert not api.requests, "nothing changed, nothing is sent"

    cluster_stack.options |= {"a": "2", "size": 2}
    cluster_stack.up().expect()
    assert [(request.method, request.path) for request in api.requests if "configmaps" in request.path] == [
        ("DELETE", SETTINGS),
        ("PATCH", SETTINGS),
    ], "a named ConfigMap with new data is deleted before it is made again"
    assert api.objects[THING]["spec"] == {"size": 2}
    changed = [request for request in api.changes("PATCH") if request.path == THING]
    assert {request.query["fieldManager"] for request in changed} <= managers

    cluster_stack.destroy().expect()
    assert not api.objects


def test_a_refresh_finds_what_somebody_else_changed_or_removed(cluster_stack: Stack, api: Api) -> None:
    cluster_stack.up().expect()
    api.objects[THING]["spec"]["size"] = 7
    del api.objects[SETTINGS]
    cluster_stack.run("refresh", "--yes", "--skip-preview").expect()
    assert "settings" not in cluster_stack.resources()
    cluster_stack.up().expect()
    assert api.objects[THING]["spec"]["size"] == 1
    assert SETTINGS in api.objects


def test_an_object_of_the_same_name_is_not_taken_over_unless_asked(cluster_stack: Stack, api: Api) -> None:
    foreign = api.put("example.org/v1", "Thing", "school", "thing", spec={"size": 9})
    outcome = cluster_stack.up().expect_failure()
    assert 'things "thing" already exists' in outcome.text
    assert "pulumi.com/patchForce" in outcome.text
    assert foreign["spec"]["size"] == 9
    cluster_stack.options["notes"] = {"pulumi.com/patchForce": "true"}
    cluster_stack.up().expect()
    assert api.objects[THING]["spec"]["size"] == 1


def test_a_provider_may_be_told_to_take_over_every_object(cluster_stack: Stack, api: Api) -> None:
    api.put("example.org/v1", "Thing", "school", "thing", spec={"size": 9})
    cluster_stack.options["provider"] = {"upsert_existing_objects": True}
    cluster_stack.up().expect()
    assert api.objects[THING]["spec"]["size"] == 1


def test_an_object_that_does_not_get_ready_stays_and_is_continued(cluster_stack: Stack, api: Api) -> None:
    api.on_apply = lambda path, live: None
    cluster_stack.options["notes"] = {"pulumi.com/timeoutSeconds": "1"}
    outcome = cluster_stack.up().expect_failure()
    assert (
        "Thing school/thing was not ready within 1 s, waiting for jsonpath={.status.phase}=Running (now: not there yet)"
        in outcome.text
    )
    assert "thing" in cluster_stack.resources()
    api.on_apply = _running
    api.requests.clear()
    cluster_stack.up().expect()
    assert [request.path for request in api.requests] == [THING], "only the unfinished object is sent again"


def test_a_kind_a_namespace_or_a_webhook_that_comes_a_moment_later_is_waited_for(
    cluster_stack: Stack, api: Api
) -> None:
    failures: list[str] = []

    def refuse_first(path: str, live: Object) -> None:
        if path == THING and len(failures) < 2:
            failures.append(path)
            api.kinds["example.org/v1"] = {} if len(failures) == 1 else {"Thing": ("things", True)}
            raise Refusal(500, "InternalError", 'failed calling webhook "t": connection refused')
        _running(path, live)

    def appear(path: str, live: Object) -> None:
        api.kinds["example.org/v1"] = {"Thing": ("things", True)}

    api.on_apply, api.on_get = refuse_first, appear
    outcome = cluster_stack.up().expect()
    assert failures
    assert outcome.seconds < 20


def test_a_conflict_and_an_unknown_kind_say_what_to_do(cluster_stack: Stack, api: Api) -> None:
    def conflict(path: str, live: Object) -> None:
        if path == THING:
            raise Refusal(409, "Conflict", 'Apply failed with 1 conflict: conflict with "operator": .spec.size')

    api.on_apply = conflict
    outcome = cluster_stack.up().expect_failure()
    assert (
        'Thing school/thing was not applied: Apply failed with 1 conflict: conflict with "operator": .spec.size'
        in outcome.text
    )


def test_properties_the_package_does_not_know_are_refused(stack: Stack, api: Api) -> None:
    stack.options["kubeconfig"] = api.kubeconfig
    stack.write(
        START
        + """
k8s.core.v1.Service("web", spec={"ports": [{"port": 80, "prot": "TCP"}]}, opts=opts())
k8s.apiextensions.CustomResource("thing", api_version="example.org/v1", kind="Thing",
                                 metadata={"annotations": {"pulumi.com/waitFor": "ready"}}, opts=opts())
"""
    )
    outcome = stack.run("preview").expect_failure()
    assert "spec.ports[0].prot" in outcome.text or "must start with 'jsonpath=' or 'condition='" in outcome.text


def test_a_dead_cluster_fails_clearly_unless_its_objects_are_given_up(cluster_stack: Stack, api: Api) -> None:
    cluster_stack.up().expect()
    dead = json.loads(api.kubeconfig)
    dead["clusters"][0]["cluster"]["server"] = "http://127.0.0.1:9"
    cluster_stack.options["kubeconfig"] = json.dumps(dead)
    preview = cluster_stack.run("preview").expect()
    assert "replace" not in preview.text, "with a constant cluster identifier a new kubeconfig replaces nothing"
    cluster_stack.up().expect()  # only the provider changes
    outcome = cluster_stack.destroy().expect_failure()
    assert (
        "cannot be deleted: the Kubernetes API at http://127.0.0.1:9 does not answer: connection refused"
        in outcome.text
    )
    outcome = cluster_stack.run("destroy", "--yes", "--skip-preview", PULUMI_K8S_DELETE_UNREACHABLE="true").expect()
    assert (
        "is taken for deleted: the Kubernetes API at http://127.0.0.1:9 does not answer: connection refused"
        in outcome.text
    )
    assert not cluster_stack.resources()


def diff(old: dict[str, Any], new: dict[str, Any]) -> tuple[bool, bool]:
    """Whether a configuration change is one, and whether it replaces."""
    found = KubernetesProvider().diff_config(old, new)
    return bool(found.changes), bool(found.replaces)


def test_only_another_cluster_replaces_and_never_with_a_constant_identifier() -> None:
    one, login, other = (
        Api(port=port).kubeconfig.replace("test", token) for port, token in ((1, "a"), (1, "b"), (2, "a"))
    )
    assert diff({"kubeconfig": one}, {"kubeconfig": one}) == (False, False)
    assert diff({"kubeconfig": one}, {"kubeconfig": login}) == (True, False)
    assert diff({"kubeconfig": one}, {"kubeconfig": other}) == (True, True)
    assert diff({"kubeconfig": one}, {"kubeconfig": UNKNOWN}) == (True, True)
    named = {"clusterIdentifier": "lab"}
    assert diff({"kubeconfig": one, **named}, {"kubeconfig": other, **named}) == (True, False)
    assert diff({"kubeconfig": one, **named}, {"kubeconfig": UNKNOWN, **named}) == (True, False)
    assert diff({"kubeconfig": one, **named}, {"kubeconfig": one, "clusterIdentifier": "new"}) == (True, True)
    assert diff({"kubeconfig": one}, {"kubeconfig": one, **named}) == (True, False)


def test_a_kubeconfig_that_cannot_be_used_is_refused_and_an_unknown_one_is_not(tmp_path: Path) -> None:
    provider = KubernetesProvider()
    provider.check_config({"kubeconfig": UNKNOWN})
    with pytest.raises(InputError, match="cannot be read"):
        provider.check_config({"kubeconfig": str(tmp_path / "none")})
    (tmp_path / "config").write_text(Api(port=1).kubeconfig)
    provider.check_config({"kubeconfig": str(tmp_path / "config")})


@pytest.mark.parametrize(
    ("token", "known"),
    [
        ("kubernetes:core/v1:Secret", "pulumi_kubernetes.core.v1:SecretInitArgs"),
        ("kubernetes:networking.k8s.io/v1:NetworkPolicy", "pulumi_kubernetes.networking.v1:NetworkPolicyInitArgs"),
        ("kubernetes:acid.zalan.do/v1:postgresql", ""),
        ("kubernetes:metallb.io/v1beta1:IPAddressPool", ""),
        ("kubernetes:core.example.org/v1:Secret", ""),
    ],
)
def test_types_are_found_in_the_package(token: str, known: str) -> None:
    assert inputs_class_of(token) == known
