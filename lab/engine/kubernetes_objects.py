"""What is true of Kubernetes objects without asking a cluster: names, immutable fields, comparison, secrets."""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from lab.engine.provider import UNKNOWN, Values

DEFINITION: Final = "CustomResourceDefinition"
AUTONAMED: Final = "pulumi.com/autonamed"
PATCH_FORCE: Final = "pulumi.com/patchForce"
PATCH_MANAGER: Final = "pulumi.com/patchFieldManager"
PROPAGATION: Final = "pulumi.com/deletionPropagationPolicy"
SKIP_AWAIT: Final = "pulumi.com/skipAwait"
TIMEOUT_SECONDS: Final = "pulumi.com/timeoutSeconds"
WAIT_FOR: Final = "pulumi.com/waitFor"
RETAIN: Final = "pulumi.com/retainOnDelete"


def _words(text: str) -> list[str]:
    return text.split()


_POD_PARTS: Final = _words(
    "affinity automountServiceAccountToken containers dnsConfig dnsPolicy enableServiceLinks hostAliases hostIPC hostNetwork "
    "hostPID hostname imagePullSecrets initContainers nodeName nodeSelector overhead preemptionPolicy priority "
    "priorityClassName readinessGates restartPolicy runtimeClassName schedulerName securityContext serviceAccount "
    "serviceAccountName shareProcessNamespace subdomain terminationGracePeriodSeconds volumes"
)
_VOLUME_PARTS: Final = _words(
    "awsElasticBlockStore azureDisk azureFile cephfs cinder csi fc flexVolume flocker gcePersistentDisk glusterfs hostPath "
    "iscsi local nfs photonPersistentDisk portworxVolume quobyte rbd scaleIO storageos vsphereVolume"
)

_REPLACED_BY: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ("apps", "StatefulSet"): (
        "spec.podManagementPolicy",
        "spec.revisionHistoryLimit",
        "spec.selector",
        "spec.serviceName",
        "spec.volumeClaimTemplates",
    ),
    ("apps", "Deployment"): ("spec.selector",),
    ("apps", "DaemonSet"): ("spec.selector",),
    ("batch", "Job"): ("spec.completions", "spec.parallelism", "spec.selector", "spec.template"),
    ("", "PersistentVolume"): tuple(f"spec.{part}" for part in _VOLUME_PARTS),
    ("", "PersistentVolumeClaim"): (
        "spec.accessModes",
        "spec.selector",
        "spec.storageClassName",
        "spec.volumeName",
    ),
    ("", "Pod"): tuple(f"spec.{part}" for part in _POD_PARTS),
    ("", "ResourceQuota"): ("spec.scopes",),
    ("", "Service"): ("spec.clusterIP",),
    ("rbac.authorization.k8s.io", "RoleBinding"): ("roleRef",),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"): ("roleRef",),
    ("storage.k8s.io", "StorageClass"): ("parameters", "provisioner"),
}


def replaced_by(
    values: Values, *, secret_mutable: bool = False, config_map_mutable: bool = False, patch: bool = False
) -> tuple[str, ...]:
    """Dotted names of the properties of an object that cannot change in place.

    :param secret_mutable: whether the provider was told that a Secret's data may change in place.
    :param config_map_mutable: the same for a ConfigMap.
    :param patch: whether this is a ``...Patch`` resource, of which only the identity is fixed.
    """
    identity = ("apiVersion", "kind", "metadata.name", "metadata.namespace")
    if patch:
        return identity
    kind = str(values.get("kind", ""))
    fixed = values.get("immutable") is True
    if kind == "Secret" and values.get("apiVersion") == "v1":
        return (*identity, "type", *(() if secret_mutable and not fixed else ("data", "stringData")))
    if kind == "ConfigMap" and values.get("apiVersion") == "v1":
        return (*identity, *(() if config_map_mutable and not fixed else ("data", "binaryData")))
    return identity + _REPLACED_BY.get((api_group(str(values.get("apiVersion", ""))), kind), ())


def api_group(api_version: str) -> str:
    """The group of an apiVersion; empty for the core group."""
    return api_version.rpartition("/")[0]


def split_token(token: str) -> tuple[str, str]:
    """``(apiVersion, kind)`` of a type token: ``kubernetes:core/v1:Secret`` is ``("v1", "Secret")``."""
    _, version, kind = token.split(":", 2)
    return version.removeprefix("core/"), kind


def metadata(values: Mapping[str, Any]) -> dict[str, Any]:
    """The object's ``metadata``; empty while it is absent or unknown."""
    found = values.get("metadata")
    return found if isinstance(found, dict) else {}


def annotation(values: Mapping[str, Any], name: str) -> str | None:
    """The text of an annotation, or ``None``."""
    found = metadata(values).get("annotations")
    value = found.get(name) if isinstance(found, dict) else None
    return None if value is None or value is UNKNOWN else str(value)


def is_true(values: Mapping[str, Any], name: str) -> bool:
    """Whether annotation ``name`` says "true"."""
    return (annotation(values, name) or "").lower() == "true"


def with_name(values: Values, old: Values | None, resource_name: str) -> Values:
    """``values`` with a name: the given one, else the generated one of ``old``, else ``<resource_name>-<8 hex digits>``."""
    given = values.get("metadata")
    if given is UNKNOWN or metadata(values).get("name") or metadata(values).get("generateName"):
        return values
    generated = ""
    if old and is_true(old, AUTONAMED):
        generated = str(metadata(old).get("name") or "")
    name = generated or f"{resource_name.lower()}-{secrets.token_hex(4)}"
    annotations = metadata(values).get("annotations")
    if annotations is not UNKNOWN:
        annotations = {**(annotations or {}), AUTONAMED: "true"}
    return {**values, "metadata": {**metadata(values), "name": name, "annotations": annotations}}


def identifier(live: Mapping[str, Any]) -> str:
    """The id of an object: ``namespace/name``, or ``name`` outside of namespaces."""
    names = metadata(live)
    return f"{names['namespace']}/{names['name']}" if names.get("namespace") else str(names["name"])


def split_identifier(resource_id: str) -> tuple[str, str]:
    """``(namespace, name)`` of an id."""
    namespace, _, name = resource_id.rpartition("/")
    return namespace, name


def request_body(inputs: Values) -> dict[str, Any]:
    """What is sent to the API for ``inputs``: without absent values; a Secret's ``stringData`` as ``data``."""
    given = {key: value for key, value in inputs.items() if not key.startswith("__")}
    body: dict[str, Any] = _without_absent(with_dashes(given) if given.get("kind") == DEFINITION else given)
    if body.get("kind") == "Secret" and "stringData" in body:
        texts = body.pop("stringData")
        encoded = {key: base64.b64encode(str(text).encode()).decode() for key, text in texts.items()}
        body["data"] = {**body.get("data", {}), **encoded}
    return body


def with_underscores(definition: Mapping[str, Any]) -> dict[str, Any]:
    """A CustomResourceDefinition with ``x_kubernetes_...`` in its schemas, as programs and the state have it."""
    return dict(_renamed(definition, "x-kubernetes-", "-", "_"))


def with_dashes(definition: Mapping[str, Any]) -> dict[str, Any]:
    """A CustomResourceDefinition with ``x-kubernetes-...`` in its schemas, as the API wants it."""
    return dict(_renamed(definition, "x_kubernetes_", "_", "-"))


def _renamed(value: Any, prefix: str, old: str, new: str) -> Any:
    """``value`` with ``old`` for ``new`` in every key that starts with ``prefix``."""
    if isinstance(value, Mapping):
        return {
            key.replace(old, new) if key.startswith(prefix) else key: _renamed(item, prefix, old, new)
            for key, item in value.items()
        }
    return [_renamed(item, prefix, old, new) for item in value] if isinstance(value, list) else value


def _without_absent(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_absent(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_absent(item) for item in value]
    return value


def outputs(live: Mapping[str, Any], inputs: Values, manager: str) -> Values:
    """The stored form of a live object: as the API shows it, less the bookkeeping of field managers."""
    found = {key: value for key, value in live.items() if key != "metadata"}
    if found.get("kind") == DEFINITION:
        found = with_underscores(found)
    found["metadata"] = {key: value for key, value in metadata(live).items() if key != "managedFields"}
    return found | {"__fieldManager": manager, "__initialApiVersion": str(inputs.get("apiVersion", ""))}


def live_inputs(live: Mapping[str, Any], inputs: Values) -> Values:
    """Those properties of the live object that ``inputs`` sets: equal to ``inputs`` unless somebody changed the object."""
    actual = with_underscores(live) if live.get("kind") == DEFINITION else dict(live)
    if inputs.get("kind") == "Secret" and isinstance(inputs.get("stringData"), Mapping):
        actual["stringData"] = {
            key: base64.b64decode(text).decode("utf-8", "replace")
            for key, text in (live.get("data") or {}).items()
            if key in inputs["stringData"]
        }
    shaped = _shaped(actual, inputs)
    assert isinstance(shaped, dict)
    return shaped


def _shaped(live: Any, wanted: Any) -> Any:
    if isinstance(live, Mapping) and isinstance(wanted, Mapping):
        return {
            key: _shaped(live[key], item) if key in live else item
            for key, item in wanted.items()
            if key in live or key.startswith("__") or _is_empty(item)
        }
    if isinstance(live, list) and isinstance(wanted, list) and len(live) == len(wanted):
        return [_shaped(item, wish) for item, wish in zip(live, wanted, strict=True)]
    return wanted if same_value(live, wanted) else live


def _is_empty(value: Any) -> bool:
    """Whether the API drops a value because it says nothing."""
    return value is None or value is False or value in ("", 0) or (isinstance(value, Mapping | list) and not value)


_QUANTITY: Final = re.compile(r"([+-]?[0-9.]+)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?")
_FACTORS: Final = {"m": Decimal("0.001"), "": Decimal(1)} | {
    suffix: Decimal(base) ** power
    for power, letter in enumerate("kMGTPE", 1)
    for suffix, base in ((letter, 1000), (("K" if letter == "k" else letter) + "i", 1024))
}


def quantity(value: Any) -> Decimal | None:
    """The number a Kubernetes quantity (``250m``, ``1Gi``) stands for, or ``None`` if it is none."""
    found = _QUANTITY.fullmatch(str(value)) if isinstance(value, str | int | float) else None
    if found is None or found.group(1).count(".") > 1 or not any(letter.isdigit() for letter in found.group(1)):
        return None
    return Decimal(found.group(1)) * _FACTORS[found.group(2) or ""]


def same_value(live: Any, wanted: Any) -> bool:
    """Whether two plain values mean the same to the API (``1024Mi`` and ``1Gi`` do)."""
    if live == wanted and isinstance(live, bool) == isinstance(wanted, bool):
        return True
    if isinstance(live, bool) or isinstance(wanted, bool):
        return False
    left, right = quantity(live), quantity(wanted)
    return left is not None and left == right


def merged(old: Any, new: Any) -> Any:
    """``old`` with everything that ``new`` says in its place."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return {**old, **{key: merged(old.get(key), item) for key, item in new.items()}}
    return new


def new_manager() -> str:
    """A field manager name for one object; every object has its own."""
    return f"pulumi-kubernetes-{secrets.token_hex(4)}"


def parse_waits(text: str) -> list[str]:
    """The expressions of a waitFor annotation: one, or a JSON array of several. Raises :class:`ValueError`."""
    if not text.lstrip().startswith("["):
        return [text.strip()]
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"the annotation {WAIT_FOR} starts like a JSON array but is none") from error
    if not isinstance(found, list) or not found or not all(isinstance(item, str) for item in found):
        raise ValueError(f"the annotation {WAIT_FOR} must be one expression or a JSON array of expressions")
    return found
