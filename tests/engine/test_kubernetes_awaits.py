"""Waiting for objects, and the sentences that say why they do not work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from lab.engine import kubernetes_awaits as awaits
from lab.engine.kubernetes_client import Cluster, Object, parse_kubeconfig
from lab.engine.provider import Call, Provider, ProviderError
from tests.engine.kubernetes_api import Api, serve

pytestmark = pytest.mark.engine


@pytest.fixture
def api() -> Iterator[Api]:
    """An empty cluster."""
    made = Api()
    server = serve(made)
    yield made
    server.shutdown()
    server.server_close()


@pytest.fixture
def cluster(api: Api) -> Cluster:
    """A connection to it."""
    return Cluster(parse_kubeconfig(api.kubeconfig))


@pytest.fixture
def call() -> Call:
    """An operation without an engine."""
    return Call(
        Provider("kubernetes", {}, package="pulumi_kubernetes"), "urn:pulumi:s::p::kubernetes:apps/v1:Deployment::d"
    )


def deployment(**status: Any) -> dict[str, Any]:
    """A Deployment of two pods."""
    return {
        "kind": "Deployment",
        "apiVersion": "apps/v1",
        "metadata": {"name": "web", "namespace": "school", "generation": 2},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}},
        "status": {"observedGeneration": 2, **status},
    }


@pytest.mark.parametrize(
    ("status", "text"),
    [
        ({"observedGeneration": 1}, "notice the change"),
        ({}, "new pods (0 of 2 made)"),
        ({"updatedReplicas": 2, "replicas": 3}, "1 old pod(s) to end"),
        ({"updatedReplicas": 2, "replicas": 2, "availableReplicas": 1}, "available (1 of 2)"),
        ({"updatedReplicas": 2, "replicas": 2, "availableReplicas": 2}, ""),
    ],
)
def test_a_deployment_is_ready_when_its_new_pods_are_available(cluster: Cluster, status: Any, text: str) -> None:
    check = awaits.check_for(deployment())
    assert check is not None
    state = check(cluster, deployment(**status))
    assert state.ready is (not text)
    assert text in state.waiting_for


def test_a_service_waits_for_its_address_and_for_a_ready_pod(api: Api, cluster: Cluster) -> None:
    service: dict[str, Any] = {
        "kind": "Service",
        "apiVersion": "v1",
        "metadata": {"name": "db", "namespace": "school"},
        "spec": {"type": "LoadBalancer", "selector": {"a": "b"}, "ports": [{"port": 5432}]},
    }
    check = awaits.check_for(service)
    assert check is not None
    assert check(cluster, service).waiting_for == "an address from the load balancer"
    service["status"] = {"loadBalancer": {"ingress": [{"ip": "10.0.145.130"}]}}
    assert check(cluster, service).waiting_for == "a pod that its selector finds"
    labels = {"labels": {"kubernetes.io/service-name": "db"}}
    part = api.put("discovery.k8s.io/v1", "EndpointSlice", "school", "db-1", metadata=labels)
    part["endpoints"] = [{"addresses": ["10.42.0.3"], "conditions": {"ready": False}}]
    assert "1 there, none ready" in check(cluster, service).waiting_for
    part["endpoints"][0]["conditions"]["ready"] = True
    assert check(cluster, service).ready
    assert awaits.check_for({**service, "metadata": {"annotations": {"pulumi.com/skipAwait": "true"}}}) is None


def test_a_failed_job_is_not_waited_for(cluster: Cluster) -> None:
    job = {"kind": "Job", "apiVersion": "batch/v1", "metadata": {"name": "j", "namespace": "n"}}
    check = awaits.check_for(job)
    assert check is not None
    failed = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "too often"}
    assert (
        check(cluster, {**job, "status": {"conditions": [failed]}}).failed
        == "it failed: BackoffLimitExceeded (too often)"
    )
    assert check(cluster, {**job, "status": {"conditions": [{"type": "Complete", "status": "True"}]}}).ready


def pod(waiting: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A pod on node gl6 whose container waits."""
    container = {
        "name": "c",
        "image": "nope:1",
        "state": {"waiting": waiting} if waiting else {},
        "restartCount": 4,
        **more,
    }
    return {
        "metadata": {"name": "web-1", "namespace": "school", "labels": {"app": "web"}},
        "spec": {"nodeName": "gl6"},
        "status": {"phase": "Pending", "containerStatuses": [container]},
    }


@pytest.mark.parametrize(
    ("value", "events", "sentence"),
    [
        (
            pod({"reason": "ImagePullBackOff", "message": 'Back-off pulling image "nope:1"'}),
            [{"reason": "Failed", "message": 'Failed to pull image "nope:1": not found'}],
            "pod web-1 on node gl6: container c: ImagePullBackOff: image nope:1 cannot be pulled: "
            'Failed to pull image "nope:1": not found',
        ),
        (
            pod({"reason": "CrashLoopBackOff"}, lastState={"terminated": {"exitCode": 1, "reason": "Error"}}),
            [],
            "pod web-1 on node gl6: container c: CrashLoopBackOff: it ended 4 times, last with exit code 1, Error",
        ),
        (
            pod({"reason": "CreateContainerConfigError", "message": 'secret "pw" not found'}),
            [],
            'pod web-1 on node gl6: container c: CreateContainerConfigError: secret "pw" not found',
        ),
        (
            pod({"reason": "ContainerCreating"}),
            [{"type": "Warning", "reason": "FailedMount", "message": "no such\nvolume"}],
            "pod web-1 on node gl6: FailedMount: no such volume",
        ),
        (
            {
                "metadata": {"name": "web-2"},
                "status": {"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes"}]},
            },
            [],
            "pod web-2 cannot be placed on a node: 0/3 nodes",
        ),
    ],
)
def test_a_pod_that_is_not_ready_is_explained(value: Any, events: Any, sentence: str) -> None:
    assert awaits.pod_problem(value, events) == sentence


def test_a_wait_that_takes_too_long_names_the_object_the_time_and_the_cause(
    api: Api, cluster: Cluster, call: Call
) -> None:
    live = api.put("apps/v1", "Deployment", "school", "web", **{k: deployment()[k] for k in ("spec", "status")})
    pulling = pod({"reason": "ErrImagePull", "message": "no host"})
    api.put(
        "v1", "Pod", "school", "web-1", spec=pulling["spec"], status=pulling["status"], metadata=pulling["metadata"]
    )
    check = awaits.check_for(live)
    assert check is not None
    with pytest.raises(awaits.AwaitError) as caught:
        awaits.wait_until_ready(call, cluster, cluster.kind("apps/v1", "Deployment"), live, check, 0.5)
    assert str(caught.value) == (
        "Deployment school/web was not ready within 0 s, waiting for new pods (0 of 2 made). Likely cause: pod web-1 on node "
        "gl6: container c: ErrImagePull: image nope:1 cannot be pulled: no host"
    )


def test_an_interrupt_ends_a_wait_at_once(api: Api, cluster: Cluster, call: Call) -> None:
    live = api.put("apps/v1", "Deployment", "school", "web", **{k: deployment()[k] for k in ("spec", "status")})
    call.cancelled.set()
    check = awaits.check_for(live)
    assert check is not None
    with pytest.raises(awaits.AwaitError, match="interrupted while waiting for Deployment school/web"):
        awaits.wait_until_ready(call, cluster, cluster.kind("apps/v1", "Deployment"), live, check, 60)


def test_an_object_that_does_not_go_is_explained(api: Api, cluster: Cluster, call: Call) -> None:
    api.put("v1", "ConfigMap", "school", "c", metadata={"finalizers": ["example.org/guard"]})
    kind = cluster.kind("v1", "ConfigMap")
    with pytest.raises(ProviderError, match=r"ConfigMap school/c is not gone 0 s after .*example.org/guard"):
        awaits.wait_until_gone(call, cluster, kind, "school", "c", 0.2)


def test_another_object_of_the_same_name_counts_as_gone(api: Api, cluster: Cluster, call: Call) -> None:
    api.put("v1", "ConfigMap", "school", "c", metadata={"uid": "first"})
    looks: list[str] = []

    def replace_after_the_first_look(path: str, live: Object) -> None:
        if looks:
            live["metadata"]["uid"] = "second"
        looks.append(path)

    api.on_get = replace_after_the_first_look
    awaits.wait_until_gone(call, cluster, cluster.kind("v1", "ConfigMap"), "school", "c", 5)
    assert len(looks) == 2


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (45, "45 s"), (60, "1 min"), (90, "1 min 30 s"), (600, "10 min")]
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert awaits.duration(seconds) == text


def test_the_time_to_wait_comes_from_the_program_first() -> None:
    inputs = {"metadata": {"annotations": {"pulumi.com/timeoutSeconds": "30"}}}
    assert awaits.seconds_for(12, inputs) == 12
    assert awaits.seconds_for(None, inputs) == 30
    assert awaits.seconds_for(None, {}) == 600
    with pytest.raises(ProviderError, match="number of seconds"):
        awaits.seconds_for(None, {"metadata": {"annotations": {"pulumi.com/timeoutSeconds": "soon"}}})
