"""Stand-in for the engine's Kubernetes provider: typed resources, custom resources and Helm releases on a real cluster.

Run as ``python -m lab.engine.kubernetes``; the engine calls it ``pulumi-resource-kubernetes``. It accepts what the Python
package ``pulumi_kubernetes`` knows and does what the provider of that version does: server-side apply with a field manager
of its own for each object, waiting until an object works, replacement of what cannot change in place.
"""

from __future__ import annotations

import importlib
import os
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from lab.engine import kubernetes_awaits as awaits
from lab.engine import kubernetes_objects as objects
from lab.engine.helm import TOKEN as HELM_TOKEN
from lab.engine.helm import Release
from lab.engine.kubernetes_client import (
    ApiError,
    Cluster,
    ClusterError,
    KubeconfigError,
    NoKindError,
    Object,
    ResourceKind,
    UnreachableError,
    kubeconfig_text,
    parse_kubeconfig,
    with_patience,
)
from lab.engine.provider import (
    UNKNOWN,
    Call,
    Diff,
    InputError,
    PartialError,
    Path,
    Provider,
    ProviderError,
    Resource,
    Values,
    contains_unknown,
    serve,
    structural_diff,
)

SDK_MODULES: Final = ("pulumi_kubernetes.batch.v1", "pulumi_kubernetes.core.v1", "pulumi_kubernetes.helm.v3")
"""Where the properties of the commonest types are described; worth having before the first object comes."""
NEW_KIND_SECONDS: Final = 45.0
"""How long a create waits for a kind, a namespace or a webhook that another resource has only just installed."""
REACH_SECONDS: Final = 30.0
"""How long a change waits for an API server that does not answer (a failover takes less)."""
REACH_TO_DELETE_SECONDS: Final = 5.0
"""The same for reading and deleting."""
PROBE_SECONDS: Final = 5.0
"""Longest wait for one answer to the question whether the API server is there."""
DEAD_FOR_SECONDS: Final = 60.0
"""How long an API server that did not answer is taken for dead without asking again."""
_CONNECTION_KEYS: Final = ("kubeconfig", "context", "cluster")
_CUSTOM_RESOURCE_KEYS: Final = frozenset({"apiVersion", "kind", "metadata", "spec"})


class KubernetesProvider(Provider):
    """The provider: its settings, and the connection to the cluster, made when the first object needs it."""

    def __init__(self) -> None:
        super().__init__("kubernetes", {HELM_TOKEN: Release()}, package="pulumi_kubernetes")
        self._connection: Cluster | None = None
        self._connecting = threading.Lock()
        self._dead_until = 0.0
        self._dead_reason: UnreachableError | None = None
        self._warned: set[str] = set()

    # Configuration.

    def check_config(self, config: Values) -> Values:
        """Refuse a kubeconfig that cannot be used. An unknown one is fine; so is one whose cluster does not answer."""
        text: Any = config.get("kubeconfig")
        if text is not None and text is not UNKNOWN and not any(config.get(key) is UNKNOWN for key in _CONNECTION_KEYS):
            try:
                self._address(config)
            except KubeconfigError as error:
                raise InputError("kubeconfig", str(error)) from error
        if config.get("enableServerSideApply") is False:
            raise InputError("enableServerSideApply", "the lab applies on the server's side only; leave it out or true")
        if config.get("renderYamlToDirectory"):
            raise InputError("renderYamlToDirectory", "the lab always works on a cluster and renders nothing")
        return config

    def diff_config(self, old: Values, new: Values) -> Diff:
        """With an unchanged clusterIdentifier nothing is ever replaced; without one, another cluster replaces all."""
        changes = structural_diff(old, new)
        before, after = old.get("clusterIdentifier"), new.get("clusterIdentifier")
        replaces: set[Path] = set()
        if before is not None and after is not None and before != after:
            replaces.add(("clusterIdentifier",))
        if after is None or after is UNKNOWN or before != after:
            unknown = {(key,) for key in _CONNECTION_KEYS if new.get(key) is UNKNOWN and (key,) in changes}
            if unknown:
                replaces |= unknown
            elif self._other_cluster(old, new):
                replaces |= {(key,) for key in _CONNECTION_KEYS if (key,) in changes}
        return Diff(changes, replaces & set(changes))

    def _other_cluster(self, old: Values, new: Values) -> bool:
        """Whether two configurations name clusters that differ in more than the way to log in."""
        try:
            before, after = self._address(old), self._address(new)
        except KubeconfigError:
            return True
        identity = ("server", "authority_pem", "server_name", "skip_verification")
        return any(getattr(before, name) != getattr(after, name) for name in identity)

    @staticmethod
    def _address(config: Mapping[str, Any]) -> Any:
        return parse_kubeconfig(
            kubeconfig_text(config.get("kubeconfig")),
            context=config.get("context") or "",
            cluster=config.get("cluster") or "",
            namespace=config.get("namespace") or "",
        )

    def setting(self, name: str, variable: str = "") -> bool:
        """A switch of the configuration, or of the environment ``variable`` where the configuration is silent."""
        value = self.config.get(name)
        if value is None and variable:
            value = os.environ.get(variable, "")
        return value is True or str(value).lower() == "true"

    def take_for_dead(self, error: UnreachableError) -> None:
        """Remember that the cluster did not answer, so that the next object does not wait for it as long."""
        self._dead_until, self._dead_reason = time.monotonic() + DEAD_FOR_SECONDS, error

    @property
    def delete_unreachable(self) -> bool:
        """Whether objects of a cluster that does not answer are taken for gone."""
        return self.setting("deleteUnreachable", "PULUMI_K8S_DELETE_UNREACHABLE")

    # The cluster.

    def kubeconfig(self) -> str:
        """The content of the kubeconfig. Raises :class:`ProviderError`."""
        if self.config.get("kubeconfig") is UNKNOWN:
            raise ProviderError("the kubeconfig is not known yet")
        try:
            return kubeconfig_text(self.config.get("kubeconfig"))
        except KubeconfigError as error:
            raise ProviderError(str(error)) from error

    def cluster(self) -> Cluster:
        """The connection to the cluster (nothing is sent yet). Raises :class:`ProviderError`."""
        with self._connecting:
            if self._connection is None:
                self.kubeconfig()
                client = self.config.get("kubeClientSettings") or {}
                try:
                    self._connection = Cluster(
                        self._address(self.config),
                        request_seconds=float(client.get("timeout") or 32),
                        on_warning=self._warn_once,
                    )
                except KubeconfigError as error:
                    raise ProviderError(str(error)) from error
            return self._connection

    def default_namespace(self) -> str:
        """Where objects go that name no namespace."""
        return str(self.config.get("namespace") or "default")

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            from pulumi.runtime.proto import engine_pb2

            self.log(engine_pb2.WARNING, f"Kubernetes: {text}")

    def reach(self, call: Call, seconds: float) -> Cluster:
        """The cluster, after it has answered. Raises :class:`UnreachableError` when it does not within ``seconds``.

        A cluster that did not answer is taken for dead for a minute, so that a hundred objects do not each wait.
        """
        cluster = self.cluster()
        if self._dead_reason is not None and time.monotonic() < self._dead_until:
            raise self._dead_reason
        try:
            with_patience(
                lambda: cluster.request("GET", "/version", seconds=PROBE_SECONDS),
                seconds=seconds,
                is_transient=lambda error: isinstance(error, UnreachableError),
                pause=call.sleep,
                on_retry=lambda reason: call.status(f"waiting for the cluster: {reason}"),
            )
        except UnreachableError as error:
            self.take_for_dead(error)
            raise
        self._dead_reason = None
        return cluster

    def resource(self, urn: str, type_token: str = "") -> Resource:
        """The resource of a type token; every group, version and kind has one."""
        token = type_token or Call(self, urn).type
        if token not in self.resources:
            if token.count(":") != 2 or token.startswith("kubernetes:helm.sh/") or token.startswith("kubernetes:yaml/"):
                raise ProviderError(
                    f"the lab's kubernetes provider does not offer {token}; use kubernetes.helm.v3.Release, "
                    "CustomResource and the typed resources"
                )
            self.resources[token] = KubernetesResource(token)
        return self.resources[token]


def inputs_class_of(token: str) -> str:
    """``package.module:Class`` of the arguments of a typed resource; empty for a custom resource."""
    _, version, kind = token.split(":", 2)
    group, _, number = version.rpartition("/")
    if not group or ("." in group and not group.endswith(".k8s.io")):
        return ""
    module = f"pulumi_kubernetes.{group.partition('.')[0]}.{number}"
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError:
        return ""
    for name in (f"{kind}InitArgs", f"{kind}PatchArgs", f"{kind}Args"):
        if hasattr(found, name):
            return f"{module}:{name}"
    return ""


class KubernetesResource(Resource):
    """Any object of a cluster.

    :param token: the type token, ``kubernetes:<group>/<version>:<Kind>``.
    """

    def __init__(self, token: str) -> None:
        self.token = token
        known = inputs_class_of(token)
        api_version, kind = objects.split_token(token)
        self.is_patch = kind.endswith("Patch") and bool(known)
        # Schemas inside a definition may spell x-kubernetes-... either way, so its properties are left to the API.
        self.inputs_class = "" if kind == objects.DEFINITION else known
        self.api_version, self.kind = api_version, kind.removesuffix("Patch") if self.is_patch else kind
        self.is_custom = not known
        self.secret_outputs = ("data", "stringData") if (api_version, self.kind) == ("v1", "Secret") else ()

    # Looking ahead.

    def check(self, call: Call, inputs: Values, old_inputs: Values | None) -> Values:
        """Give the object its apiVersion, kind and name; refuse what can never work."""
        checked: Values = {"apiVersion": self.api_version, "kind": self.kind} | inputs
        if self.kind == objects.DEFINITION:
            checked = objects.with_underscores(checked)
        if self.is_custom:
            for name in sorted(set(checked) - _CUSTOM_RESOURCE_KEYS - {"version", "__defaults"}):
                raise InputError(
                    name, f"a custom resource has no property {name!r}; known are apiVersion, kind, metadata, spec"
                )
        if objects.metadata(checked).get("generateName"):
            raise InputError(
                "metadata.generateName", "it cannot be used with server-side apply; leave the name out instead"
            )
        if self.is_patch and not objects.metadata(checked).get("name") and checked.get("metadata") is not UNKNOWN:
            raise InputError("metadata.name", "a Patch resource must name the object it changes")
        try:
            awaits.waits_of(checked)
        except ValueError as error:
            raise InputError("metadata.annotations", f"{objects.WAIT_FOR}: {error}") from error
        awaits.seconds_for(None, checked)
        default = call.provider.config.get("namespace")
        if (
            default
            and isinstance(default, str)
            and not self._clusterwide()
            and not objects.metadata(checked).get("namespace")
        ):
            checked["metadata"] = {**objects.metadata(checked), "namespace": default}
        return checked if self.is_patch else objects.with_name(checked, old_inputs, call.name)

    def _clusterwide(self) -> bool:
        return self.kind in (
            "Namespace",
            "Node",
            "PersistentVolume",
            "StorageClass",
            "ClusterRole",
            "ClusterRoleBinding",
            "CustomResourceDefinition",
            "PriorityClass",
            "IngressClass",
            "RuntimeClass",
            "CSIDriver",
            "APIService",
            "ValidatingWebhookConfiguration",
            "MutatingWebhookConfiguration",
        )

    def diff(self, call: Call, resource_id: str, old_inputs: Values, old_state: Values, inputs: Values) -> Diff:
        """Compare inputs; what the API does not let change in place replaces the object."""
        before, after = self._comparable(call, old_inputs), self._comparable(call, inputs)
        changes = {
            path: kind for path, kind in structural_diff(before, after).items() if not str(path[0]).startswith("__")
        }
        fixed = objects.replaced_by(
            inputs,
            secret_mutable=_setting(call, "enableSecretMutable"),
            config_map_mutable=_setting(call, "enableConfigMapMutable"),
            patch=self.is_patch,
        )
        replaces = {path for path in changes if any(_under(path, name) for name in fixed)}
        names = objects.metadata(inputs)
        same_name = names.get("name") == objects.metadata(old_state or old_inputs).get("name")
        same_place = ("metadata", "namespace") not in changes
        generated = objects.is_true(inputs, objects.AUTONAMED)
        return Diff(changes, replaces, bool(replaces) and same_name and same_place and not generated)

    def _comparable(self, call: Call, inputs: Values) -> Values:
        """Inputs with the namespace spelled out, so that "default" and nothing are the same."""
        names = inputs.get("metadata")
        if not isinstance(names, dict) or self._clusterwide() or names.get("namespace"):
            return inputs
        provider = call.provider
        default = provider.default_namespace() if isinstance(provider, KubernetesProvider) else "default"
        return {**inputs, "metadata": {**names, "namespace": default}}

    def planned(self, call: Call, inputs: Values, old_state: Values | None) -> Values:
        """A previewed create shows the inputs; an update shows them over the object as it is."""
        if old_state is None:
            return inputs
        planned = objects.merged(old_state, inputs)
        assert isinstance(planned, dict)
        return planned

    # Doing it.

    def create(self, call: Call, inputs: Values) -> tuple[str, Values]:
        """Make the object and wait until it works."""
        manager = objects.annotation(inputs, objects.PATCH_MANAGER) or objects.new_manager()
        force = _forced(call, inputs)
        adopt = force or self.is_patch or _setting(call, "upsertExistingObjects")
        live = self._apply(call, inputs, manager, force=force or adopt, adopt=adopt)
        return self._finish(call, inputs, manager, live)

    def update(self, call: Call, resource_id: str, old_inputs: Values, old_state: Values, inputs: Values) -> Values:
        """Change the object in place and wait until it works."""
        manager = objects.annotation(inputs, objects.PATCH_MANAGER) or str(
            old_state.get("__fieldManager") or objects.new_manager()
        )
        live = self._apply(call, inputs, manager, force=_forced(call, inputs), adopt=True)
        return self._finish(call, inputs, manager, live)[1]

    def _apply(self, call: Call, inputs: Values, manager: str, *, force: bool, adopt: bool) -> Object:
        body = objects.request_body(inputs)
        if contains_unknown(body):
            raise ProviderError(
                f"{self._title(body)} has values that are not known; this is an error of the engine or the lab"
            )
        try:
            cluster = _provider(call).reach(call, REACH_SECONDS)
            return with_patience(
                lambda: self._apply_once(call, cluster, body, manager, force=force, adopt=adopt),
                seconds=min(NEW_KIND_SECONDS, awaits.seconds_for(call.timeout_seconds, inputs)),
                is_transient=_may_pass,
                pause=call.sleep,
                on_retry=lambda reason: call.status(f"trying again: {reason}"),
            )
        except ClusterError as error:
            raise ProviderError(self._failure("was not applied", body, error)) from error

    def _apply_once(
        self, call: Call, cluster: Cluster, body: Object, manager: str, *, force: bool, adopt: bool
    ) -> Object:
        kind, namespace = self._place(call, cluster, body)
        if kind.namespaced:
            body = {**body, "metadata": {**body["metadata"], "namespace": namespace}}
        name = str(body["metadata"]["name"])
        if not adopt and cluster.get(kind, namespace, name) is not None:
            raise ApiError(409, "AlreadyExists", f'{kind.plural} "{name}" already exists')
        if self.is_patch and cluster.get(kind, namespace, name) is None:
            raise ApiError(404, "NotFound", f'{kind.plural} "{name}" not found, so that it cannot be patched')
        return cluster.apply(kind, namespace, body, manager=manager, force=force)

    def _place(self, call: Call, cluster: Cluster, values: Mapping[str, Any]) -> tuple[ResourceKind, str]:
        kind = cluster.kind(str(values.get("apiVersion") or self.api_version), str(values.get("kind") or self.kind))
        namespace = str(objects.metadata(values).get("namespace") or _provider(call).default_namespace())
        return kind, namespace if kind.namespaced else ""

    def _finish(self, call: Call, inputs: Values, manager: str, live: Object) -> tuple[str, Values]:
        check = None if self.is_patch else awaits.check_for(inputs)
        if check is not None:
            cluster = _provider(call).cluster()
            seconds = awaits.seconds_for(call.timeout_seconds, inputs)
            kind, _ = self._place(call, cluster, live)
            try:
                live = awaits.wait_until_ready(call, cluster, kind, live, check, seconds)
            except awaits.AwaitError as error:
                state = objects.outputs(error.live, inputs, manager)
                raise PartialError(str(error), objects.identifier(error.live), state) from error
            except ClusterError as error:
                state = objects.outputs(live, inputs, manager)
                message = self._failure("was applied, but its state cannot be read", live, error)
                raise PartialError(message, objects.identifier(live), state) from error
        return objects.identifier(live), objects.outputs(live, inputs, manager)

    def read(self, call: Call, resource_id: str, inputs: Values, state: Values) -> tuple[Values, Values] | None:
        """The object as it is now; ``None`` when it is gone."""
        namespace, name = objects.split_identifier(resource_id)
        provider = _provider(call)
        wanted = {"apiVersion": self.api_version, "kind": self.kind} | inputs
        try:
            cluster = provider.reach(call, REACH_TO_DELETE_SECONDS)
            kind = cluster.kind(str(wanted["apiVersion"]), str(wanted["kind"]))
            live = cluster.get(kind, namespace or provider.default_namespace(), name)
        except NoKindError:
            return None
        except UnreachableError as error:
            provider.take_for_dead(error)
            if provider.delete_unreachable:
                call.warn(f"{self.kind} {resource_id} is dropped from the state: {error}")
                return None
            raise ProviderError(
                f"{self.kind} {resource_id} cannot be read: {error}. If the cluster is gone for good, run once with "
                "PULUMI_K8S_DELETE_UNREACHABLE=true to drop its objects from the state"
            ) from error
        except ClusterError as error:
            raise ProviderError(f"{self.kind} {resource_id} cannot be read: {error}") from error
        if live is None:
            return None
        manager = str(state.get("__fieldManager") or objects.new_manager())
        found = objects.live_inputs(live, wanted) if inputs else _import_inputs(live)
        return found, objects.outputs(live, found, manager)

    def delete(self, call: Call, resource_id: str, inputs: Values, state: Values) -> None:
        """Delete the object and wait until it is gone; a Patch resource only gives its fields back."""
        namespace, name = objects.split_identifier(resource_id)
        provider = _provider(call)
        known = state or inputs
        if objects.is_true(known, objects.RETAIN):
            return
        seconds = awaits.seconds_for(call.timeout_seconds, inputs or state)
        try:
            cluster = provider.reach(call, REACH_TO_DELETE_SECONDS)
            kind = cluster.kind(str(known.get("apiVersion") or self.api_version), self.kind)
            if self.is_patch:
                self._give_back(cluster, kind, namespace, name, str(state.get("__fieldManager") or ""))
                return
            if cluster.delete(kind, namespace, name, propagation=_propagation(known)):
                self._wait_gone(call, cluster, kind, namespace, name, seconds, known)
        except NoKindError:
            return  # its definition is gone, and every object with it
        except UnreachableError as error:
            provider.take_for_dead(error)
            if provider.delete_unreachable:
                call.warn(f"{self.kind} {resource_id} is taken for deleted: {error}")
                return
            raise ProviderError(
                f"{self.kind} {resource_id} cannot be deleted: {error}. If the cluster is gone for good, run once with "
                "PULUMI_K8S_DELETE_UNREACHABLE=true, which takes its objects for deleted"
            ) from error
        except ClusterError as error:
            raise ProviderError(f"{self.kind} {resource_id} was not deleted: {error}") from error

    @staticmethod
    def _wait_gone(
        call: Call, cluster: Cluster, kind: ResourceKind, namespace: str, name: str, seconds: float, known: Values
    ) -> None:
        if not objects.is_true(known, objects.SKIP_AWAIT) or kind.kind == "Namespace":
            awaits.wait_until_gone(call, cluster, kind, namespace, name, seconds)

    @staticmethod
    def _give_back(cluster: Cluster, kind: ResourceKind, namespace: str, name: str, manager: str) -> None:
        if manager and cluster.get(kind, namespace, name) is not None:
            names = {"name": name} | ({"namespace": namespace} if kind.namespaced else {})
            empty = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": names}
            cluster.apply(kind, namespace, empty, manager=manager, force=False)

    # Words.

    def _title(self, values: Mapping[str, Any]) -> str:
        return awaits.title({"kind": self.kind, "metadata": {"name": "?"} | objects.metadata(values)})

    def _failure(self, what: str, body: Mapping[str, Any], error: ClusterError) -> str:
        """One sentence on a failed request: the object, the API's words, and what to do where that is known."""
        return f"{self._title(body)} {what}: {error}{_remedy(error)}"


def _remedy(error: ClusterError) -> str:
    if isinstance(error, NoKindError):
        return ". Its CustomResourceDefinition is not there: install the chart that brings it first (depends_on)"
    if not isinstance(error, ApiError):
        return ""
    if error.reason == "AlreadyExists":
        return (
            f". It belongs to somebody else or to an interrupted run: import it (`pulumi import`), delete it, or set the "
            f'annotation {objects.PATCH_FORCE}: "true" on it to take it over'
        )
    if error.status == 409 and "conflict" in error.message.lower():
        return f'. Another program manages these fields: leave them out, or set the annotation {objects.PATCH_FORCE}: "true"'
    if error.webhook_down:
        return (
            ". The program that checks these objects is not serving yet: look at its pods, then run `pulumi up` again"
        )
    return ""


def _may_pass(error: ClusterError) -> bool:
    """Whether a failed apply may work in a moment: something another resource installs is not there yet."""
    if isinstance(error, NoKindError | UnreachableError):
        return True
    return isinstance(error, ApiError) and (
        error.webhook_down or (error.status == 404 and "namespaces" in error.message)
    )


def _propagation(known: Values) -> str:
    text = (objects.annotation(known, objects.PROPAGATION) or "foreground").capitalize()
    if text not in ("Foreground", "Background", "Orphan"):
        raise ProviderError(
            f"the annotation {objects.PROPAGATION} must be foreground, background or orphan, not {text!r}"
        )
    return text


def _import_inputs(live: Object) -> Values:
    """Inputs of an object that is read without any: all of it that a program would write."""
    names = objects.metadata(live)
    kept = {key: names[key] for key in ("name", "namespace", "labels", "annotations") if names.get(key)}
    return {key: value for key, value in live.items() if key not in ("metadata", "status")} | {"metadata": kept}


def _under(path: Path, dotted: str) -> bool:
    """Whether ``path`` is the property ``dotted``, a part of it, or something above it."""
    wanted = dotted.split(".")
    names = [part for part in path if not isinstance(part, int)]
    return names[: len(wanted)] == wanted or wanted[: len(names)] == names


def _provider(call: Call) -> KubernetesProvider:
    provider = call.provider
    if not isinstance(provider, KubernetesProvider):
        raise TypeError("a Kubernetes resource belongs to the Kubernetes provider")
    return provider


def _setting(call: Call, name: str) -> bool:
    return call.provider.config.get(name) is True


def _forced(call: Call, inputs: Values) -> bool:
    return objects.is_true(inputs, objects.PATCH_FORCE) or _setting(call, "enablePatchForce")


def main() -> None:
    """Serve the provider until the engine ends it."""
    serve(KubernetesProvider())


if __name__ == "__main__":
    main()
