"""Waiting until an object works, and saying why it does not.

Every check is a function of live objects, so that what is waited for, and each sentence a user may read, can be tested
without a cluster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lab.engine import kubernetes_objects as objects
from lab.engine.kubernetes_client import (
    ApiError,
    Cluster,
    ClusterError,
    Object,
    ResourceKind,
    UnreachableError,
    event_time,
)
from lab.engine.kubernetes_jsonpath import Wait, parse_wait
from lab.engine.provider import Call, ProviderError

DEFAULT_SECONDS: Final = 600.0
FIRST_PAUSE_SECONDS: Final = 0.2
LONGEST_PAUSE_SECONDS: Final = 1.5
STATUS_EVERY_SECONDS: Final = 5.0
SILENCE_SECONDS: Final = 30.0
"""How long an API server may not answer while something is deleted (a failover takes less)."""
MOST_PODS_NAMED: Final = 3
_START_TROUBLES: Final = frozenset({"FailedScheduling", "FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox"})


@dataclass(frozen=True)
class State:
    """How far an object is."""

    ready: bool
    waiting_for: str = ""
    """What is missing, as the end of a sentence that starts "waiting for"."""
    failed: str = ""
    """Why it will never be ready; empty while there is hope."""


READY: Final = State(ready=True)
StateCheck = Callable[[Cluster, Object], State]


def seconds_for(call_seconds: float | None, inputs: Mapping[str, Any]) -> float:
    """How long to wait: the program's custom timeout, else the annotation, else 10 minutes."""
    if call_seconds:
        return call_seconds
    text = objects.annotation(inputs, objects.TIMEOUT_SECONDS)
    try:
        return float(text) if text else DEFAULT_SECONDS
    except ValueError as error:
        raise ProviderError(
            f"the annotation {objects.TIMEOUT_SECONDS} must be a number of seconds, not {text!r}"
        ) from error


def duration(seconds: float) -> str:
    """``seconds`` for a reader: "45 s", "10 min", "1 min 30 s"."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    return " ".join(
        part for part in (f"{minutes} min" if minutes else "", f"{rest} s" if rest or not minutes else "") if part
    )


def title(live: Mapping[str, Any]) -> str:
    """An object for a reader: ``Deployment metallb-system/controller``."""
    return f"{live.get('kind', 'object')} {objects.identifier(live)}"


# --- when objects are ready -----------------------------------------------------------------------------------


def _generation_seen(live: Object) -> bool:
    return int((live.get("status") or {}).get("observedGeneration") or 0) >= int(
        objects.metadata(live).get("generation") or 0
    )


def _condition(live: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    conditions = (live.get("status") or {}).get("conditions") or []
    return next((entry for entry in conditions if entry.get("type") == name), {})


def _deployment(_cluster: Cluster, live: Object) -> State:
    status, wanted = live.get("status") or {}, int((live.get("spec") or {}).get("replicas", 1))
    if not _generation_seen(live):
        return State(False, "the controller manager to notice the change")
    progressing = _condition(live, "Progressing")
    if progressing.get("reason") == "ProgressDeadlineExceeded":
        return State(False, "its pods", f"its rollout made no progress ({progressing.get('message')})")
    updated, total, available = (
        int(status.get(name) or 0) for name in ("updatedReplicas", "replicas", "availableReplicas")
    )
    if updated < wanted:
        return State(False, f"new pods ({updated} of {wanted} made)")
    if total > updated:
        return State(False, f"{total - updated} old pod(s) to end")
    if available < updated:
        return State(False, f"pods to be available ({available} of {wanted})")
    return READY


def _stateful_set(_cluster: Cluster, live: Object) -> State:
    status, spec = live.get("status") or {}, live.get("spec") or {}
    wanted = int(spec.get("replicas", 1))
    if not _generation_seen(live):
        return State(False, "the controller manager to notice the change")
    ready, updated = int(status.get("readyReplicas") or 0), int(status.get("updatedReplicas") or 0)
    if ready < wanted:
        return State(False, f"pods to be ready ({ready} of {wanted})")
    strategy = (spec.get("updateStrategy") or {}).get("type", "RollingUpdate")
    partition = int(((spec.get("updateStrategy") or {}).get("rollingUpdate") or {}).get("partition") or 0)
    if strategy == "RollingUpdate" and not partition:
        if updated < wanted:
            return State(False, f"pods of the new revision ({updated} of {wanted})")
        if status.get("currentRevision") != status.get("updateRevision"):
            return State(False, "the new revision to become the current one")
    return READY


def _daemon_set(_cluster: Cluster, live: Object) -> State:
    status = live.get("status") or {}
    if not _generation_seen(live):
        return State(False, "the controller manager to notice the change")
    wanted = int(status.get("desiredNumberScheduled") or 0)
    strategy = ((live.get("spec") or {}).get("updateStrategy") or {}).get("type", "RollingUpdate")
    updated, available = int(status.get("updatedNumberScheduled") or 0), int(status.get("numberAvailable") or 0)
    if strategy == "RollingUpdate" and updated < wanted:
        return State(False, f"new pods on every node ({updated} of {wanted})")
    if available < wanted:
        return State(False, f"pods to be available on every node ({available} of {wanted})")
    return READY


def _job(_cluster: Cluster, live: Object) -> State:
    failed = _condition(live, "Failed")
    if failed.get("status") == "True":
        return State(False, "its completion", f"it failed: {failed.get('reason')} ({failed.get('message')})")
    if _condition(live, "Complete").get("status") == "True" or (live.get("spec") or {}).get("suspend"):
        return READY
    status = live.get("status") or {}
    wanted = (live.get("spec") or {}).get("completions", 1)
    return State(False, f"its completion ({int(status.get('succeeded') or 0)} of {wanted} pod(s) succeeded)")


def _pod(_cluster: Cluster, live: Object) -> State:
    phase = (live.get("status") or {}).get("phase")
    if phase == "Succeeded" or _condition(live, "Ready").get("status") == "True":
        return READY
    if phase == "Failed":
        return State(False, "it to be ready", "it failed")
    return State(False, f"it to be ready (phase {phase or 'unknown'})")


def _service(cluster: Cluster, live: Object) -> State:
    spec = live.get("spec") or {}
    kind = spec.get("type", "ClusterIP")
    if kind == "ExternalName":
        return READY
    if kind == "LoadBalancer":
        given = ((live.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
        if not any(entry.get("ip") or entry.get("hostname") for entry in given):
            return State(False, "an address from the load balancer")
    if not spec.get("selector"):
        return READY
    names = objects.metadata(live)
    path = f"/apis/discovery.k8s.io/v1/namespaces/{names['namespace']}/endpointslices"
    slices = cluster.items(path, labelSelector=f"kubernetes.io/service-name={names['name']}")
    targets = [target for part in slices for target in part.get("endpoints") or []]
    if any((target.get("conditions") or {}).get("ready") is not False for target in targets):
        return READY
    if spec.get("clusterIP") == "None" and not targets and not spec.get("ports"):
        return READY
    return State(
        False,
        f"a ready pod behind it ({len(targets)} there, none ready)" if targets else "a pod that its selector finds",
    )


def _claim(cluster: Cluster, live: Object) -> State:
    status = live.get("status") or {}
    phase = status.get("phase")
    if phase == "Bound":
        return READY
    if phase == "Lost":
        return State(False, "its volume", "its volume is gone")
    name = (live.get("spec") or {}).get("storageClassName")
    if name:
        path = f"/apis/storage.k8s.io/v1/storageclasses/{name}"
        try:
            storage_class = cluster.request("GET", path)
        except ApiError as error:
            if error.status == 404:
                return State(False, f"a volume; there is no StorageClass {name}")
            raise
        if storage_class.get("volumeBindingMode") == "WaitForFirstConsumer":
            return READY  # bound only when a pod uses it
    return State(False, "a volume to be bound to it")


def _volume(_cluster: Cluster, live: Object) -> State:
    phase = (live.get("status") or {}).get("phase")
    if phase in ("Available", "Bound"):
        return READY
    return State(False, f"it to be available (phase {phase or 'unknown'})")


def _namespace(_cluster: Cluster, live: Object) -> State:
    phase = (live.get("status") or {}).get("phase", "Active")
    if phase == "Terminating":
        return State(False, "the namespace of the same name to finish its deletion")
    return READY


def _ingress(_cluster: Cluster, live: Object) -> State:
    given = ((live.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
    return READY if given else State(False, "an address from the ingress controller")


def _definition(_cluster: Cluster, live: Object) -> State:
    names = _condition(live, "NamesAccepted")
    if names.get("status") == "False":
        return State(False, "its names to be accepted", f"its names are not accepted ({names.get('message')})")
    return READY if _condition(live, "Established").get("status") == "True" else State(False, "it to be established")


_CHECKS: Final[Mapping[tuple[str, str], StateCheck]] = {
    ("apps", "Deployment"): _deployment,
    ("apps", "StatefulSet"): _stateful_set,
    ("apps", "DaemonSet"): _daemon_set,
    ("batch", "Job"): _job,
    ("", "Pod"): _pod,
    ("", "Service"): _service,
    ("", "PersistentVolumeClaim"): _claim,
    ("", "PersistentVolume"): _volume,
    ("", "Namespace"): _namespace,
    ("networking.k8s.io", "Ingress"): _ingress,
    ("apiextensions.k8s.io", "CustomResourceDefinition"): _definition,
}


def _written_waits(waits: Sequence[Wait]) -> StateCheck:
    def check(_cluster: Cluster, live: Object) -> State:
        missing = [f"{wait.text} (now: {wait.present(live)})" for wait in waits if not wait.met(live)]
        return State(False, " and ".join(missing)) if missing else READY

    return check


def waits_of(inputs: Mapping[str, Any]) -> list[Wait]:
    """The conditions an object's annotation asks for. Raises :class:`ValueError`."""
    text = objects.annotation(inputs, objects.WAIT_FOR)
    return [parse_wait(item) for item in objects.parse_waits(text)] if text else []


def check_for(inputs: Mapping[str, Any]) -> StateCheck | None:
    """How to see that an object works; ``None`` where its existence is enough. Raises :class:`ValueError`."""
    if objects.is_true(inputs, objects.SKIP_AWAIT):
        return None
    waits = waits_of(inputs)
    if waits:
        return _written_waits(waits)
    group = objects.api_group(str(inputs.get("apiVersion", "")))
    return _CHECKS.get((group, str(inputs.get("kind", ""))))


# --- waiting --------------------------------------------------------------------------------------------------


class AwaitError(Exception):
    """The object did not become ready; the text says why. ``live`` is its newest state."""

    def __init__(self, message: str, live: Object) -> None:
        super().__init__(message)
        self.live = live


def wait_until_ready(
    call: Call, cluster: Cluster, kind: ResourceKind, live: Object, check: StateCheck, seconds: float
) -> Object:
    """Wait until ``check`` is satisfied; returns the live object then. Raises :class:`AwaitError`."""
    names = objects.metadata(live)
    namespace, name = str(names.get("namespace") or ""), str(names["name"])
    deadline = time.monotonic() + seconds
    pause, told, last_status = FIRST_PAUSE_SECONDS, time.monotonic(), ""
    while True:
        try:
            state = check(cluster, live)
        except UnreachableError as error:
            state = State(False, f"the cluster to answer again ({error.reason})")
        if state.ready:
            if last_status:
                call.status("")
            return live
        remaining = deadline - time.monotonic()
        if state.failed or remaining <= 0:
            after = f"was not ready within {duration(seconds)}, waiting for {state.waiting_for}"
            what = f": {state.failed}" if state.failed else f" {after}"
            raise AwaitError(_sentence(title(live) + what, likely_cause(cluster, live)), live)
        if time.monotonic() - told >= STATUS_EVERY_SECONDS or not last_status:
            told = time.monotonic()
            last_status = _status(cluster, live, state, first=not last_status)
            call.status(last_status)
        if call.cancelled.wait(min(pause, max(remaining, 0.05))):
            raise AwaitError(f"interrupted while waiting for {title(live)}: {state.waiting_for}", live)
        pause = min(pause * 1.4, LONGEST_PAUSE_SECONDS)
        try:
            found = cluster.get(kind, namespace, name)
        except UnreachableError:
            continue
        if found is None:
            raise AwaitError(f"{title(live)} was deleted by somebody else while it was waited for", live)
        live = found


def _sentence(what: str, cause: str) -> str:
    return what + (f". Likely cause: {cause}" if cause else "")


def _status(cluster: Cluster, live: Object, state: State, *, first: bool) -> str:
    text = f"waiting for {state.waiting_for}"
    if first:
        return text
    try:
        newest = newest_event(cluster, live)
    except ClusterError:
        return text  # the wait itself tells of a cluster that does not answer
    return f"{text}; newest event: {newest}" if newest else text


def newest_event(cluster: Cluster, live: Object) -> str:
    """The newest event about an object or its pods, as one line; empty when there is none."""
    names = objects.metadata(live)
    namespace = str(names.get("namespace") or "")
    events = cluster.events(namespace, str(live.get("kind", "")), str(names["name"]))
    for pod in pods_of(cluster, live)[:MOST_PODS_NAMED]:
        events += cluster.events(namespace, "Pod", str(objects.metadata(pod)["name"]))
    if not events:
        return ""
    newest = max(events, key=event_time)
    target = newest.get("involvedObject") or {}
    return f"{target.get('kind')} {target.get('name')}: {newest.get('reason')}: {_one_line(newest.get('message'))}"


# --- why something is not ready -------------------------------------------------------------------------------


def _one_line(text: Any, limit: int = 400) -> str:
    line = " ".join(str(text or "").split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def selector_text(selector: Mapping[str, Any]) -> str:
    """A label selector in the form of the API's query parameter."""
    parts = [f"{key}={value}" for key, value in (selector.get("matchLabels") or {}).items()]
    for rule in selector.get("matchExpressions") or []:
        operator, values = rule.get("operator"), ",".join(rule.get("values") or [])
        if operator in ("In", "NotIn"):
            parts.append(f"{rule['key']} {operator.lower()} ({values})")
        else:
            parts.append(rule["key"] if operator == "Exists" else f"!{rule['key']}")
    return ",".join(parts)


def pods_of(cluster: Cluster, live: Object) -> list[Object]:
    """The pods that serve an object: by its selector, else those that carry its name in a label."""
    names, spec = objects.metadata(live), live.get("spec") or {}
    namespace, kind = names.get("namespace"), live.get("kind")
    if not namespace or kind in ("PersistentVolumeClaim", "Secret", "ConfigMap"):
        return []
    if kind == "Pod":
        return [live]
    selector = spec.get("selector") if isinstance(spec, Mapping) else None
    if kind == "Service":
        return cluster.pods(namespace, selector_text({"matchLabels": selector})) if selector else []
    if isinstance(selector, Mapping) and ("matchLabels" in selector or "matchExpressions" in selector):
        return cluster.pods(namespace, selector_text(selector))
    named = str(names["name"])
    return [pod for pod in cluster.pods(namespace) if named in (objects.metadata(pod).get("labels") or {}).values()]


def likely_cause(cluster: Cluster, live: Object) -> str:
    """Why an object is not ready, from its pods and events; empty when nothing can be seen."""
    try:
        return pods_cause(cluster, pods_of(cluster, live)) or _warning_about(cluster, live)
    except ClusterError as error:
        return str(error)


def pods_cause(cluster: Cluster, pods: Sequence[Object]) -> str:
    """What is wrong with those of ``pods`` that are not ready, one clause a pod; empty when none is."""
    found: dict[str, str] = {}
    for pod in pods:
        names = objects.metadata(pod)
        if not pod_is_ready(pod):
            events = cluster.events(str(names.get("namespace") or ""), "Pod", str(names["name"]))
            found[str(names["name"])] = pod_problem(pod, events)
    texts = list(found.values())
    more = f"; and {len(texts) - MOST_PODS_NAMED} more" if len(texts) > MOST_PODS_NAMED else ""
    return "; ".join(texts[:MOST_PODS_NAMED]) + more


def _warning_about(cluster: Cluster, live: Object) -> str:
    names = objects.metadata(live)
    events = cluster.events(str(names.get("namespace") or ""), str(live.get("kind", "")), str(names["name"]))
    warnings = [event for event in events if event.get("type") == "Warning"] or events
    if warnings:
        return f"{warnings[-1].get('reason')}: {_one_line(warnings[-1].get('message'))}"
    return ""


def pod_is_ready(pod: Mapping[str, Any]) -> bool:
    """Whether a pod does its work or has done it."""
    phase = (pod.get("status") or {}).get("phase")
    gone = bool(objects.metadata(pod).get("deletionTimestamp"))
    return phase == "Succeeded" or (not gone and _condition(pod, "Ready").get("status") == "True")


def pod_problem(pod: Mapping[str, Any], events: Sequence[Mapping[str, Any]] = ()) -> str:
    """One clause on what keeps a pod from being ready: where it is, which container, the reason and its message."""
    status, spec = pod.get("status") or {}, pod.get("spec") or {}
    name = f"pod {objects.metadata(pod).get('name')}"
    node = spec.get("nodeName")
    place = f"{name} on node {node}" if node else name
    if objects.metadata(pod).get("deletionTimestamp"):
        return f"{place} is being deleted"
    scheduled = _condition(pod, "PodScheduled")
    if not node and scheduled.get("status") == "False":
        return f"{name} cannot be placed on a node: {_one_line(scheduled.get('message'))}"
    if not node:
        return f"{name} has no node yet (is the scheduler running?)"
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        problem = _container_problem(container, events)
        if problem:
            return f"{place}: container {container.get('name')}: {problem}"
    warnings = [event for event in events if event.get("type") == "Warning"]
    if status.get("phase") == "Running":  # what kept it from starting is over
        warnings = [event for event in warnings if event.get("reason") not in _START_TROUBLES]
    if warnings:
        return f"{place}: {warnings[-1].get('reason')}: {_one_line(warnings[-1].get('message'))}"
    if status.get("phase") == "Failed":
        return (
            f"{place} failed: {status.get('reason') or 'no reason given'} {_one_line(status.get('message'))}".rstrip()
        )
    ready = _condition(pod, "Ready")
    phase = status.get("phase") or "unknown"
    return f"{place} is not ready (phase {phase}): {_one_line(ready.get('message')) or 'still starting'}"


def _container_problem(container: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> str:
    state = container.get("state") or {}
    waiting = state.get("waiting") or {}
    reason = str(waiting.get("reason") or "")
    ended = state.get("terminated") or {}
    if reason in ("ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull"):
        return f"{reason}: image {container.get('image')} cannot be pulled: {_pull_message(waiting, events)}"
    if reason == "CrashLoopBackOff":
        last = (container.get("lastState") or {}).get("terminated") or {}
        return f"CrashLoopBackOff: it ended {container.get('restartCount', 0)} times{_exit(last)}"
    if reason and reason not in ("ContainerCreating", "PodInitializing"):
        return f"{reason}: {_one_line(waiting.get('message')) or 'no message'}"
    if ended and ended.get("exitCode"):
        return f"it ended{_exit(ended)}"
    return ""


def _pull_message(waiting: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> str:
    """Why a pull failed: the event of the failed pull says more than "Back-off pulling image"."""
    failures = [event for event in events if event.get("reason") == "Failed" and "pull" in str(event.get("message"))]
    message = failures[-1].get("message") if failures else waiting.get("message")
    return _one_line(message) or "no message"


def _exit(ended: Mapping[str, Any]) -> str:
    if not ended:
        return ""
    words = [f"exit code {ended.get('exitCode')}", str(ended.get("reason") or ""), _one_line(ended.get("message"), 200)]
    return f", last with {', '.join(word for word in words if word)}"


# --- deletion -------------------------------------------------------------------------------------------------


def wait_until_gone(
    call: Call, cluster: Cluster, kind: ResourceKind, namespace: str, name: str, seconds: float
) -> None:
    """Wait until an object that is being deleted is gone (or another one has its name). Raises :class:`ProviderError`."""
    deadline = time.monotonic() + seconds
    pause, first, told, heard = FIRST_PAUSE_SECONDS / 2, "", time.monotonic(), time.monotonic()
    while True:
        try:
            live = cluster.get(kind, namespace, name)
        except UnreachableError:
            if time.monotonic() >= min(deadline, heard + SILENCE_SECONDS):
                raise
            call.sleep(pause)
            continue
        heard = time.monotonic()
        uid = str(objects.metadata(live or {}).get("uid") or "")
        if live is None or (first and uid != first):
            return
        first = uid
        if time.monotonic() >= deadline:
            raise ProviderError(
                f"{kind.kind} {objects.identifier(live)} is not gone {duration(seconds)} after its deletion was asked for: "
                f"{deletion_obstacle(live)}"
            )
        if time.monotonic() - told >= STATUS_EVERY_SECONDS:
            told = time.monotonic()
            call.status(f"waiting for it to be gone: {deletion_obstacle(live)}")
        call.sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)


def deletion_obstacle(live: Mapping[str, Any]) -> str:
    """What keeps an object that is being deleted."""
    conditions = (live.get("status") or {}).get("conditions") or []
    remaining = [
        _one_line(entry.get("message"), 250)
        for entry in conditions
        if str(entry.get("type", "")).startswith("Namespace") and entry.get("status") == "True"
    ]
    if live.get("kind") == "Namespace" and remaining:
        return "; ".join(remaining)
    finalizers = objects.metadata(live).get("finalizers") or []
    if "foregroundDeletion" in finalizers:
        return "what it owns is not gone yet (the controller manager removes that; is it running?)"
    if finalizers:
        return f"the finalizer(s) {', '.join(finalizers)} still have work to do; the controller behind them may be gone"
    if live.get("kind") == "Namespace":
        return "the namespace controller is still removing what is inside (is the controller manager running?)"
    return "the cluster has not removed it yet"
