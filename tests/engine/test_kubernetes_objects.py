"""What the Kubernetes stand-in knows about objects without a cluster."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lab.engine import kubernetes_objects as objects
from lab.engine.kubernetes_client import KubeconfigError, parse_kubeconfig
from lab.engine.kubernetes_jsonpath import ExpressionError, compile_path, parse_wait

pytestmark = pytest.mark.engine

STATUS: dict[str, Any] = {
    "status": {
        "phase": "Running",
        "ready": True,
        "count": 2,
        "a.b": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}],
        "conditions": [
            {"type": "Ready", "status": "False", "reason": "Starting", "message": "soon"},
            {"type": "Seen", "status": "True"},
        ],
    }
}


def test_a_name_is_generated_once_and_kept() -> None:
    first = objects.with_name({"metadata": {"namespace": "n"}}, None, "Web")
    assert re.fullmatch(r"web-[0-9a-f]{8}", first["metadata"]["name"])
    assert first["metadata"]["annotations"] == {objects.AUTONAMED: "true"}
    again = objects.with_name({"metadata": {"namespace": "n"}}, first, "Web")
    assert again == first
    assert objects.with_name({"metadata": {"name": "given"}}, first, "Web") == {"metadata": {"name": "given"}}
    named_before = objects.with_name({}, {"metadata": {"name": "given"}}, "web")
    assert named_before["metadata"]["name"] != "given", "a name the program gave is not a generated one"


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("1024Mi", "1Gi", True),
        ("1", "1000m", True),
        ("0.5", "500m", True),
        (1, "1", True),
        ("1Gi", "1G", False),
        (True, 1, False),
        ("a", "b", False),
        ("1.2.3", "1.2.3", True),
        ("1.2.3", "1.2", False),
    ],
)
def test_quantities_are_compared_by_what_they_mean(left: Any, right: Any, same: bool) -> None:
    assert objects.same_value(left, right) is same


def test_live_inputs_show_what_somebody_changed_and_nothing_the_cluster_added() -> None:
    wanted = {
        "kind": "Deployment",
        "metadata": {"name": "a", "labels": {"x": "1"}, "annotations": {}},
        "spec": {"replicas": 2, "paused": False, "template": {"memory": "1024Mi", "args": ["a"]}},
    }
    live = {
        "kind": "Deployment",
        "metadata": {"name": "a", "uid": "u", "labels": {"x": "1", "y": "2"}},
        "spec": {"replicas": 2, "strategy": {}, "template": {"memory": "1Gi", "args": ["a"], "policy": "Always"}},
        "status": {},
    }
    assert objects.live_inputs(live, wanted) == wanted
    live["spec"] = {"replicas": 5, "template": {"memory": "2Gi", "args": ["a", "b"]}}
    changed = objects.live_inputs(live, wanted)
    assert changed["spec"] == {"replicas": 5, "paused": False, "template": {"memory": "2Gi", "args": ["a", "b"]}}


def test_string_data_of_a_secret_is_sent_encoded_and_read_back() -> None:
    inputs = {"kind": "Secret", "stringData": {"p": "hunter2"}, "data": {"k": "YQ=="}, "type": None}
    body = objects.request_body(inputs)
    assert body == {"kind": "Secret", "data": {"k": "YQ==", "p": "aHVudGVyMg=="}}
    assert objects.live_inputs(
        {"kind": "Secret", "data": body["data"]}, {"kind": "Secret", "stringData": {"p": "x"}}
    ) == {
        "kind": "Secret",
        "stringData": {"p": "hunter2"},
    }


def test_schemas_of_definitions_are_written_with_dashes_and_stored_with_underscores() -> None:
    stored = {"kind": "CustomResourceDefinition", "spec": {"s": {"x_kubernetes_int_or_string": True}, "l": [1]}}
    sent = objects.request_body(stored)
    assert sent["spec"] == {"s": {"x-kubernetes-int-or-string": True}, "l": [1]}
    assert objects.with_underscores(sent) == stored


def test_what_cannot_change_in_place_depends_on_the_kind() -> None:
    secret = {"apiVersion": "v1", "kind": "Secret"}
    assert "data" in objects.replaced_by(secret)
    assert "data" not in objects.replaced_by(secret, secret_mutable=True)
    assert "data" in objects.replaced_by({**secret, "immutable": True}, secret_mutable=True)
    assert "spec.template" in objects.replaced_by({"apiVersion": "batch/v1", "kind": "Job"})
    assert "spec.template" not in objects.replaced_by({"apiVersion": "example.org/v1", "kind": "Job"})
    assert "spec.selector" not in objects.replaced_by({"apiVersion": "apps/v1", "kind": "Deployment"}, patch=True)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (".status.phase", ["Running"]),
        ("$.status['phase']", ["Running"]),
        (".status['a.b'][0].ip", ["10.0.0.1"]),
        (".status['a.b'][-1].ip", ["10.0.0.2"]),
        (".status['a.b'][*].ip", ["10.0.0.1", "10.0.0.2"]),
        ('.status.conditions[?(@.type=="Ready")].status', ["False"]),
        (".status.conditions[?@.type != 'Ready'].status", ["True"]),
        (".status.conditions[?(@.reason)].type", ["Ready"]),
        (".status.nothing[3].there", []),
    ],
)
def test_paths_find_values(path: str, found: list[Any]) -> None:
    assert compile_path(path)(STATUS) == found


@pytest.mark.parametrize("path", ["status", "..status", ".status[", ".status[x]", ".a[?(@.b==c)]", ".a[?(1)]", ".1"])
def test_paths_that_are_not_understood_are_named(path: str) -> None:
    with pytest.raises(ExpressionError, match=re.escape(repr(path))):
        compile_path(path)


@pytest.mark.parametrize(
    ("text", "met", "present"),
    [
        ("jsonpath={.status.phase}=Running", True, "Running"),
        ("jsonpath={.status.phase}='Running'", True, "Running"),
        ("jsonpath={.status.phase}=Done", False, "Running"),
        ("jsonpath={.status.phase}", True, "Running"),
        ("jsonpath={.status.nothing}", False, "not there yet"),
        ("jsonpath={.status.ready}=true", True, "true"),
        ("jsonpath={.status.count}=2", True, "2"),
        ("condition=Seen", True, "True"),
        ("condition=Ready", False, "False (Starting soon)"),
        ("condition=Ready=False", True, "False (Starting soon)"),
        ("condition=Other", False, "not there yet"),
    ],
)
def test_waits_are_understood(text: str, met: bool, present: str) -> None:
    wait = parse_wait(text)
    assert wait.met(STATUS) is met
    assert wait.present(STATUS) == present


@pytest.mark.parametrize(
    "text", ["ready", "jsonpath=.status", "jsonpath={.a}=", "jsonpath={.a}b", "condition=", "condition=A="]
)
def test_waits_that_are_not_understood_are_refused(text: str) -> None:
    with pytest.raises(ExpressionError):
        parse_wait(text)


def test_a_waiting_annotation_may_hold_several_expressions() -> None:
    assert objects.parse_waits('["condition=A", "condition=B"]') == ["condition=A", "condition=B"]
    assert objects.parse_waits("condition=A") == ["condition=A"]
    for wrong in ("[", "[]", "[1]"):
        with pytest.raises(ValueError, match="JSON array"):
            objects.parse_waits(wrong)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [", "is not YAML"),
        ("hello", "holds no settings"),
        ("apiVersion: v1", "no current-context"),
        ("{current-context: a, contexts: []}", "no context named 'a'"),
        ("{current-context: a, contexts: [{name: a, context: {cluster: b}}]}", "no cluster named 'b'"),
    ],
)
def test_a_broken_kubeconfig_is_explained(text: str, sentence: str) -> None:
    with pytest.raises(KubeconfigError, match=sentence):
        parse_kubeconfig(text)
