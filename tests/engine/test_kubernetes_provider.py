"""The Kubernetes stand-in under the real engine, against an API on loopback."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lab.engine.kubernetes import KubernetesProvider, inputs_class_of
from lab.engine.provider import UNKNOWN, Call, InputError, ProviderError, Values
from tests.engine.kubernetes_api import Api, Object, Refusal, serve

if TYPE_CHECKING:
    from tests.engine.conftest import Stack

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


def test_properties_the_package_does_not_know_are_refused(stack: Stack, api: Api) -> None:
    stack.options["kubeconfig"] = api.kubeconfig
    stack.write(
        START
        + """
k8s.core.v1.Service("web", spec={"ports": [{"port": 80, "prot": "TCP"}]}, opts=opts())
"""
    )
    outcome = stack.run("preview").expect_failure()
    assert "spec.ports[0].prot" in outcome.text
    assert "known are appProtocol, name, nodePort" in outcome.text


# --- without the engine ---------------------------------------------------------------------------------------


class Direct:
    """The resource Thing, asked directly."""

    def __init__(self, api: Api, **config: Any) -> None:
        self.provider = KubernetesProvider()
        self.provider.config = {"kubeconfig": api.kubeconfig, **config}
        self.call = Call(self.provider, "urn:pulumi:lab::test::kubernetes:example.org/v1:Thing::thing")
        self.resource = self.provider.resource(self.call.urn)

    def inputs(self, **notes: str) -> Values:
        """Checked inputs of a Thing with annotations."""
        names = {"name": "thing", "namespace": "school", "annotations": notes}
        return self.resource.check(self.call, {"metadata": names, "spec": {"size": 1}}, None)

    def create(self, **notes: str) -> tuple[str, Values]:
        """Make it."""
        return self.resource.create(self.call, self.inputs(**notes))


@pytest.fixture
def school(api: Api) -> Object:
    """The namespace the Thing is in."""
    live: Object = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "school"}}
    api.objects["/api/v1/namespaces/school"] = live
    return live


def test_an_object_of_the_same_name_is_taken_over_only_when_asked(api: Api, school: Object) -> None:
    foreign = api.put("example.org/v1", "Thing", "school", "thing", spec={"size": 9})
    with pytest.raises(ProviderError, match=r'things "thing" already exists.*pulumi.com/patchForce') as caught:
        Direct(api).create()
    assert str(caught.value).startswith("Thing school/thing was not applied: ")
    assert foreign["spec"]["size"] == 9
    Direct(api).create(**{"pulumi.com/patchForce": "true"})
    assert api.objects[THING]["spec"]["size"] == 1
    foreign = api.put("example.org/v1", "Thing", "school", "thing", spec={"size": 9})
    Direct(api, upsertExistingObjects=True).create()
    assert api.objects[THING]["spec"]["size"] == 1
    assert {request.query["force"] for request in api.changes("PATCH")} == {"true"}


def test_a_kind_a_namespace_or_a_webhook_that_comes_a_moment_later_is_waited_for(api: Api) -> None:
    api.kinds["example.org/v1"] = {}
    direct, met = Direct(api), []

    def appear() -> None:
        api.kinds["example.org/v1"] = {"Thing": ("things", True)}
        api.objects["/api/v1/namespaces/school"] = {"kind": "Namespace"}

    def refuse_once(path: str, live: Object) -> None:
        met.append(path)
        if len(met) == 1:
            raise Refusal(500, "InternalError", 'failed calling webhook "t": connection refused')

    api.on_apply = refuse_once
    timer = threading.Timer(0.3, appear)
    timer.start()
    direct.create()
    timer.join()
    assert met == [THING, THING]


def test_a_kind_that_never_comes_says_what_is_missing(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.engine.kubernetes.NEW_KIND_SECONDS", 0.1)
    api.kinds["example.org/v1"] = {}
    with pytest.raises(
        ProviderError, match=r'no matches for kind "Thing" in version "example.org/v1"\. Its CustomResourceDef'
    ):
        Direct(api).create()


def test_a_conflict_says_who_and_what_to_do(api: Api, school: Object) -> None:
    def conflict(path: str, live: Object) -> None:
        raise Refusal(409, "Conflict", 'Apply failed with 1 conflict: conflict with "operator": .spec.size')

    api.on_apply = conflict
    with pytest.raises(
        ProviderError, match=r'conflict with "operator": .spec.size. Another program manages these fields'
    ):
        Direct(api).create()


def test_a_dead_cluster_fails_clearly_unless_its_objects_are_given_up(
    api: Api, school: Object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.engine.kubernetes.REACH_TO_DELETE_SECONDS", 0.1)
    monkeypatch.setattr("lab.engine.kubernetes.REACH_SECONDS", 0.1)
    resource_id, state = Direct(api).create()
    api.port = 9
    dead = Direct(api)
    sentence = "the Kubernetes API at http://127.0.0.1:9 does not answer: connection refused"
    assert dead.resource.planned(dead.call, dead.inputs(), None), "a preview asks nobody"
    with pytest.raises(ProviderError, match=f"Thing school/thing was not applied: {sentence}"):
        dead.create()
    with pytest.raises(ProviderError, match=f"cannot be read: {sentence}"):
        dead.resource.read(dead.call, resource_id, dead.inputs(), state)
    with pytest.raises(ProviderError, match=f"cannot be deleted: {sentence}.*PULUMI_K8S_DELETE_UNREACHABLE"):
        dead.resource.delete(dead.call, resource_id, dead.inputs(), state)
    monkeypatch.setenv("PULUMI_K8S_DELETE_UNREACHABLE", "true")
    dead.resource.delete(dead.call, resource_id, dead.inputs(), state)
    assert dead.resource.read(dead.call, resource_id, dead.inputs(), state) is None


def test_an_object_whose_kind_is_gone_is_gone_too(api: Api, school: Object) -> None:
    resource_id, state = Direct(api).create()
    api.kinds["example.org/v1"] = {}
    later = Direct(api)
    assert later.resource.read(later.call, resource_id, {}, state) is None
    later.resource.delete(later.call, resource_id, {}, state)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"status": {}}, "a custom resource has no property 'status'"),
        ({"metadata": {"generateName": "a-"}}, "leave the name out"),
        ({"metadata": {"annotations": {"pulumi.com/waitFor": "ready"}}}, "must start with 'jsonpath=' or 'condition='"),
    ],
)
def test_what_can_never_work_is_refused_before_anything_is_done(api: Api, values: Values, sentence: str) -> None:
    direct = Direct(api)
    with pytest.raises(InputError, match=re.escape(sentence)):
        direct.resource.check(direct.call, values, None)


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
