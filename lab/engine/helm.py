"""Helm releases by the ``helm`` command line (Helm 4, or 3), for the Kubernetes stand-in.

What a release is like is read from Helm's own record in the cluster, a Secret a revision; only changes run the command.
Values and credentials reach it by standard input and private files, never by its arguments.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
import gzip
import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, cast

import yaml

from lab.engine import kubernetes_awaits as awaits
from lab.engine import kubernetes_objects as objects
from lab.engine.kubernetes_client import ApiError, Cluster, ClusterError, UnreachableError, private_file
from lab.engine.provider import (
    UNKNOWN,
    Call,
    Diff,
    InputError,
    PartialError,
    ProviderError,
    Resource,
    Values,
    contains_unknown,
    structural_diff,
)

TOKEN: Final = "kubernetes:helm.sh/v3:Release"
DEFAULT_TIMEOUT_SECONDS: Final = 300
REACH_SECONDS: Final = 30.0
REACH_TO_DELETE_SECONDS: Final = 5.0
GRACE_SECONDS: Final = 20.0
"""How long helm may take beyond its own timeout, and after an interrupt, before it is ended."""
OWNER_LABEL: Final = "pulumi-resource"
_STATUS_EVERY_SECONDS: Final = 5.0
_PURE_OUTPUTS: Final = ("status", "resourceNames")
_NO_DIFF: Final = frozenset({"resourceNames", "checksum", "manifest", "status", "allowNullValues", "compat"})
_ASSET_SIGNATURE: Final = "4dabf18193072939515e22adb298388d"


class HelmHost(Protocol):
    """What a release needs from the provider it belongs to."""

    config: Values

    def kubeconfig(self) -> str:
        """Content of the kubeconfig."""

    def default_namespace(self) -> str:
        """Where releases go that name no namespace."""

    def reach(self, call: Call, seconds: float) -> Cluster:
        """The cluster, after it has answered."""


def _host(call: Call) -> HelmHost:
    return cast(HelmHost, call.provider)


# --- Helm's record of a release -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """The newest revision of a release, as Helm has stored it."""

    status: str
    revision: int
    secret_name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def is_pending(self) -> bool:
        """Whether a helm that never finished holds the release."""
        return self.status.startswith("pending-")

    @property
    def chart(self) -> Mapping[str, Any]:
        """The chart's metadata: name, version, appVersion."""
        return (self.body.get("chart") or {}).get("metadata") or {}

    @property
    def reason(self) -> str:
        """Helm's own words on how the last operation ended."""
        return str((self.body.get("info") or {}).get("description") or "")


def decode_record(data: str) -> dict[str, Any]:
    """The release in the ``release`` key of Helm's Secret. Raises :class:`ValueError`."""
    try:
        packed = base64.b64decode(base64.b64decode(data))
        found = json.loads(gzip.decompress(packed) if packed[:2] == b"\x1f\x8b" else packed)
    except (binascii.Error, OSError, EOFError, ValueError) as error:
        raise ValueError("Helm's record of the release cannot be read") from error
    if not isinstance(found, dict):
        raise ValueError("Helm's record of the release has no content")
    return found


def find_record(cluster: Cluster, namespace: str, name: str) -> Record | None:
    """The newest revision of a release; ``None`` when there is none. Raises :class:`ClusterError`."""
    path = f"/api/v1/namespaces/{urllib.parse.quote(namespace)}/secrets"
    revisions = cluster.items(path, labelSelector=f"owner=helm,name={name}")
    if not revisions:
        return None
    newest = max(revisions, key=lambda entry: int((entry["metadata"].get("labels") or {}).get("version") or 0))
    labels = newest["metadata"].get("labels") or {}
    try:
        body = decode_record(str((newest.get("data") or {}).get("release") or ""))
    except ValueError as error:
        raise ClusterError(f"Secret {namespace}/{newest['metadata']['name']}: {error}") from error
    return Record(
        status=str(labels.get("status", "")),
        revision=int(labels.get("version") or 0),
        secret_name=str(newest["metadata"]["name"]),
        labels=labels,
        body=body,
    )


def resource_names(manifest: str) -> dict[str, list[str]]:
    """Names of the objects in a rendered chart, by "Kind.group/apiVersion", as the provider reports them."""
    found: dict[str, list[str]] = {}
    for document in yaml.safe_load_all(manifest):
        if not isinstance(document, Mapping) or not document.get("kind"):
            continue
        items = document["items"] if str(document["kind"]).endswith("List") and "items" in document else [document]
        for item in items:
            names = item.get("metadata") or {}
            place = names.get("namespace") or ""
            api_version = str(item.get("apiVersion", ""))
            group = objects.api_group(api_version)
            key = f"{item.get('kind')}{'.' if group else ''}{group}/{api_version}"
            found.setdefault(key, []).append(f"{place}/{names.get('name')}" if place else str(names.get("name")))
    return {key: sorted(names) for key, names in sorted(found.items())}


# --- the command line -----------------------------------------------------------------------------------------


def helm_binary() -> str:
    """The helm program: ``$HELM_BINARY``, else the one on PATH. Raises :class:`ProviderError`."""
    chosen = os.environ.get("HELM_BINARY") or "helm"
    found = shutil.which(chosen)
    if found is None:
        raise ProviderError(
            f"the program {chosen} is not on this machine; `school lab up` builds it, or set HELM_BINARY"
        )
    return found


@functools.lru_cache(maxsize=4)
def helm_major(binary: str) -> int:
    """Major version of a helm program. Raises :class:`ProviderError`."""
    done = subprocess.run(
        [binary, "version", "--template", "{{.Version}}"], capture_output=True, text=True, check=False
    )
    digits = done.stdout.strip().removeprefix("v").partition(".")[0]
    if done.returncode or not digits.isdigit():
        raise ProviderError(f"{binary} does not tell its version: {(done.stderr or done.stdout).strip()[-300:]}")
    return int(digits)


def is_oci(inputs: Mapping[str, Any]) -> bool:
    """Whether the chart comes from an OCI registry."""
    return str(inputs.get("chart", "")).startswith("oci://")


def chart_arguments(inputs: Mapping[str, Any]) -> list[str]:
    """Chart, repository, version and how to check them, as helm's arguments. Never credentials."""
    repository = inputs.get("repositoryOpts") or {}
    words = [str(inputs["chart"])]
    if repository.get("repo"):
        words += ["--repo", str(repository["repo"])]
    for key, option in (("caFile", "--ca-file"), ("certFile", "--cert-file"), ("keyFile", "--key-file")):
        if repository.get(key):
            words += [option, str(repository[key])]
    if inputs.get("version"):
        words += ["--version", str(inputs["version"])]
    elif inputs.get("devel"):
        words.append("--devel")
    if inputs.get("verify"):
        words.append("--verify")
    if inputs.get("keyring"):
        words += ["--keyring", str(inputs["keyring"])]
    return words


def upgrade_arguments(inputs: Mapping[str, Any], *, major: int, seconds: float, owner: str) -> list[str]:
    """The words of ``helm upgrade --install`` for a release; its values come by standard input.

    :param major: helm's major version, 3 or 4.
    :param seconds: helm's own time limit.
    :param owner: label by which a later run recognises its own release.
    """
    words = ["upgrade", "--install", str(inputs["name"]), *chart_arguments(inputs)]
    words += ["--namespace", str(inputs["namespace"]), "--timeout", f"{round(seconds)}s", "--values", "-"]
    words += ["--labels", f"{OWNER_LABEL}={owner}", "--hide-notes"]
    atomic = inputs.get("atomic") is True
    if not inputs.get("skipAwait") or atomic:
        words.append("--wait")
        if inputs.get("waitForJobs"):
            words.append("--wait-for-jobs")
    if atomic:
        words.append("--rollback-on-failure" if major >= 4 else "--atomic")
    if major >= 4:
        words.append("--server-side=false")  # the provider's Helm 3 merges on its own side
    switches = {
        "createNamespace": "--create-namespace",
        "cleanupOnFail": "--cleanup-on-fail",
        "dependencyUpdate": "--dependency-update",
        "disableOpenapiValidation": "--disable-openapi-validation",
        "disableWebhooks": "--no-hooks",
        "disableCRDHooks": "--no-hooks",
        "forceUpdate": "--force-replace" if major >= 4 else "--force",
        "renderSubchartNotes": "--render-subchart-notes",
        "resetValues": "--reset-values",
        "reuseValues": "--reuse-values",
        "skipCrds": "--skip-crds",
        "takeOwnership": "--take-ownership",
    }
    words += list(dict.fromkeys(option for key, option in switches.items() if inputs.get(key) is True))
    words += ["--history-max", str(inputs.get("maxHistory") or 0)]
    if inputs.get("description"):
        words += ["--description", str(inputs["description"])]
    return words


def uninstall_arguments(inputs: Mapping[str, Any], name: str, namespace: str, *, seconds: float) -> list[str]:
    """The words of ``helm uninstall`` for a release; one that is gone is no error."""
    words = ["uninstall", name, "--namespace", namespace, "--ignore-not-found", "--timeout", f"{round(seconds)}s"]
    if not inputs.get("skipAwait") or inputs.get("atomic"):
        words.append("--wait")
    if inputs.get("disableWebhooks"):
        words.append("--no-hooks")
    return words


def merged_values(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The chart's values: those of ``valueYamlFiles`` in their order, then ``values``. Raises :class:`ProviderError`."""
    found: dict[str, Any] = {}
    for asset in inputs.get("valueYamlFiles") or []:
        text = asset_text(asset)
        try:
            part = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ProviderError("a file of valueYamlFiles is not YAML") from error
        if part is not None and not isinstance(part, Mapping):
            raise ProviderError("a file of valueYamlFiles does not hold a map of values")
        found = objects.merged(found, part or {})
    merged = objects.merged(found, inputs.get("values") or {})
    return dict(merged)


def asset_text(asset: Any) -> str:
    """The content of an asset, as the engine sends assets. Raises :class:`ProviderError`."""
    if isinstance(asset, Mapping):
        if isinstance(asset.get("text"), str) and asset["text"]:
            return str(asset["text"])
        if isinstance(asset.get("path"), str) and asset["path"]:
            try:
                return Path(asset["path"]).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ProviderError(f"{asset['path']}, named in valueYamlFiles, cannot be read: {error}") from error
        if _ASSET_SIGNATURE in asset:
            return ""  # an empty text
    raise ProviderError("valueYamlFiles takes text and file assets only in the lab")


def owner_label(urn: str) -> str:
    """The label value that marks releases of the resource ``urn``."""
    return hashlib.sha256(urn.encode()).hexdigest()[:24]


def helm_reason(output: str) -> str:
    """Helm's error in one line: its last "Error:" line without the noise before it."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    starts = [position for position, line in enumerate(lines) if line.startswith("Error:")]
    told = lines[starts[-1] :] if starts else lines[-1:]
    text = " ".join(told).removeprefix("Error:").strip() or "no message"
    return text if len(text) <= 900 else text[:897] + "..."


class Helm:
    """The command line against one cluster, with private settings for the time of one operation."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._host = _host(call)
        self.binary = helm_binary()
        self.major = helm_major(self.binary)

    @contextlib.contextmanager
    def _settings(self) -> Iterator[tuple[list[str], dict[str, str]]]:
        """Options and environment that lead helm to the cluster."""
        settings = self._host.config.get("helmReleaseSettings") or {}
        foreign = ("HELM_NAMESPACE", "HELM_KUBE", "HELM_DRIVER", "KUBECONFIG")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
        names = {
            "pluginsPath": "HELM_PLUGINS",
            "registryConfigPath": "HELM_REGISTRY_CONFIG",
            "repositoryCache": "HELM_REPOSITORY_CACHE",
            "repositoryConfigPath": "HELM_REPOSITORY_CONFIG",
        }
        environment |= {variable: str(settings[key]) for key, variable in names.items() if settings.get(key)}
        environment.setdefault("HOME", "/root")
        with private_file(self._host.kubeconfig()) as kubeconfig:
            options = ["--kubeconfig", str(kubeconfig)]
            if self._host.config.get("context"):
                options += ["--kube-context", str(self._host.config["context"])]
            yield options, environment

    def run(
        self,
        words: Sequence[str],
        *,
        seconds: float,
        input_text: str = "",
        progress: Callable[[], str] | None = None,
        login: Mapping[str, Any] | None = None,
        chart: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Run helm; ``progress`` gives the line shown to the user every few seconds. Raises :class:`ProviderError`."""
        with contextlib.ExitStack() as stack:
            options, environment = stack.enter_context(self._settings())
            if login and login.get("username"):
                environment["HELM_REGISTRY_CONFIG"] = str(stack.enter_context(private_file("{}")))
                self._log_in(environment, login, chart)
            command = [self.binary, *words, *options]
            setpriv = shutil.which("setpriv")
            if setpriv:  # helm must not work on when this process was killed: its successor would meet it half-way
                command = [setpriv, "--pdeathsig", "KILL", "--", *command]
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=environment,
                start_new_session=True,
            )
            return self._attend(process, command, seconds, input_text, progress)

    def _attend(
        self,
        process: subprocess.Popen[str],
        command: Sequence[str],
        seconds: float,
        input_text: str,
        progress: Callable[[], str] | None,
    ) -> subprocess.CompletedProcess[str]:
        output: list[str] = []
        reader = threading.Thread(target=lambda: output.append(process.communicate(input_text)[0]), daemon=True)
        reader.start()
        deadline = time.monotonic() + seconds + GRACE_SECONDS
        told, interrupted = time.monotonic(), False
        while reader.is_alive():
            reader.join(0.1)
            now = time.monotonic()
            if not interrupted and (self._call.cancelled.is_set() or now > deadline):
                interrupted, deadline = True, now + GRACE_SECONDS
                _signal(process, signal.SIGTERM)
            elif interrupted and now > deadline:
                _signal(process, signal.SIGKILL)
            if progress and now - told >= _STATUS_EVERY_SECONDS:
                told = now
                self._call.status(progress())
        return subprocess.CompletedProcess(list(command), process.returncode, "".join(output), "")

    def _log_in(self, environment: dict[str, str], login: Mapping[str, Any], chart: str) -> None:
        """Log in to the chart's registry, with the password on standard input."""
        host = chart.removeprefix("oci://").partition("/")[0]
        command = [self.binary, "registry", "login", host, "--username", str(login["username"]), "--password-stdin"]
        text = str(login.get("password") or "")
        done = subprocess.run(command, input=text, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise ProviderError(f"the registry {host} refused the login: {helm_reason(done.stderr)}")


def _signal(process: subprocess.Popen[str], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.kill(process.pid, number)


# --- the resource ---------------------------------------------------------------------------------------------


class Release(Resource):
    """A Helm release, ``kubernetes:helm.sh/v3:Release``."""

    inputs_class = "pulumi_kubernetes.helm.v3:ReleaseArgs"

    def check(self, call: Call, inputs: Values, old_inputs: Values | None) -> Values:
        """Give the release its name, namespace and timeout; refuse what the lab cannot do."""
        checked = {key: value for key, value in inputs.items() if key not in ("resourceNames", "compat")}
        if not checked.get("chart"):
            raise InputError(
                "chart", "a release needs a chart: a name in repositoryOpts.repo, a path, or an oci:// address"
            )
        for name in ("postrender", "recreatePods", "lint", "manifest"):
            if checked.get(name):
                raise InputError(name, "the lab's Helm does not offer this; leave it out")
        if (checked.get("repositoryOpts") or {}).get("username") and not is_oci(checked):
            reason = "a login is offered for oci:// charts only in the lab; use a repository that needs none"
            raise InputError("repositoryOpts.username", reason)
        old_name = (old_inputs or {}).get("name")
        if not checked.get("name"):
            checked["name"] = old_name or f"{call.name.lower()}-{secrets.token_hex(4)}"
        if not checked.get("namespace"):
            checked["namespace"] = _host(call).default_namespace()
        if not checked.get("skipAwait"):
            checked.setdefault("timeout", DEFAULT_TIMEOUT_SECONDS)
        driver = (_host(call).config.get("helmReleaseSettings") or {}).get("driver")
        if driver not in (None, "", "secret", "secrets", UNKNOWN):
            reason = f"helmReleaseSettings.driver is {driver!r}; the lab's Helm keeps its records in secrets only"
            raise InputError("chart", reason)
        if not contains_unknown(checked.get("valueYamlFiles")) and not contains_unknown(checked.get("values")):
            merged_values(checked)
        return checked

    def diff(self, call: Call, resource_id: str, old_inputs: Values, old_state: Values, inputs: Values) -> Diff:
        """A changed name or namespace replaces the release; anything else upgrades it."""
        before = {key: value for key, value in old_inputs.items() if key not in _NO_DIFF}
        after = {key: value for key, value in inputs.items() if key not in _NO_DIFF}
        changes = {
            path: kind for path, kind in structural_diff(before, after).items() if not str(path[0]).startswith("__")
        }
        return Diff(changes, {path for path in changes if path[0] in ("name", "namespace")})

    def planned(self, call: Call, inputs: Values, old_state: Values | None) -> Values:
        """What Helm reports is not known before it has run."""
        return inputs | dict.fromkeys(_PURE_OUTPUTS, UNKNOWN)

    def extra_secret_outputs(self, inputs: Values, secrets: frozenset[tuple[str | int, ...]]) -> Sequence[str]:
        """All values are secret as soon as one is: Helm hands them back merged."""
        return ("values",) if any(path[0] in ("values", "valueYamlFiles") for path in secrets) else ()

    def create(self, call: Call, inputs: Values) -> tuple[str, Values]:
        """Install the release. What an earlier, killed run of the same resource left behind is taken over."""
        cluster = self._reach(call, inputs)
        record = self._record(cluster, inputs)
        if record is not None and record.status != "uninstalled":
            ours = record.labels.get(OWNER_LABEL) == owner_label(call.urn)
            if not ours and not inputs.get("replace"):
                raise ProviderError(
                    f"{_title(inputs)} was not installed: there is a release of that name already (status {record.status}, "
                    f"chart {record.chart.get('name')} {record.chart.get('version')}); import it, uninstall it, or choose "
                    "another name"
                )
            call.status(f"continuing the release that an earlier run left in status {record.status}")
        return _id(inputs), self._upgrade(call, cluster, inputs, record)

    def update(self, call: Call, resource_id: str, old_inputs: Values, old_state: Values, inputs: Values) -> Values:
        """Upgrade the release; one that somebody uninstalled is installed again."""
        cluster = self._reach(call, inputs)
        return self._upgrade(call, cluster, inputs, self._record(cluster, inputs))

    def _reach(self, call: Call, inputs: Values) -> Cluster:
        try:
            return _host(call).reach(call, REACH_SECONDS)
        except UnreachableError as error:
            raise ProviderError(f"{_title(inputs)} was not changed: {error}") from error

    @staticmethod
    def _record(cluster: Cluster, inputs: Values) -> Record | None:
        try:
            return find_record(cluster, str(inputs["namespace"]), str(inputs["name"]))
        except ClusterError as error:
            raise ProviderError(f"{_title(inputs)} cannot be looked up: {error}") from error

    def _upgrade(self, call: Call, cluster: Cluster, inputs: Values, record: Record | None) -> Values:
        helm = Helm(call)
        seconds = _seconds(call, inputs)
        if record is not None:
            self._release_lock(call, helm, cluster, inputs, record, seconds)
        words = upgrade_arguments(inputs, major=helm.major, seconds=seconds, owner=owner_label(call.urn))
        started = time.monotonic()
        done = helm.run(
            words,
            seconds=seconds,
            input_text=json.dumps(merged_values(inputs)),
            progress=lambda: _progress(cluster, inputs, time.monotonic() - started),
            login=inputs.get("repositoryOpts"),
            chart=str(inputs["chart"]),
        )
        now = self._record(cluster, inputs)
        if done.returncode == 0 and now is not None:
            call.status("")
            return release_outputs(inputs, now)
        message = self._failure(call, cluster, inputs, helm_reason(done.stdout), time.monotonic() - started, seconds)
        if now is None:
            raise ProviderError(message)
        raise PartialError(message, _id(inputs), release_outputs(inputs, now))

    @staticmethod
    def _release_lock(call: Call, helm: Helm, cluster: Cluster, inputs: Values, record: Record, seconds: float) -> None:
        """Clear what a killed helm left: an unfinished revision blocks every further one.

        Only Helm's record of that revision goes; the objects stay and are adopted by the next one.
        """
        namespace = str(inputs["namespace"])
        if record.is_pending:
            call.status(
                f"clearing the unfinished revision {record.revision} ({record.status}) of a run that was cut off"
            )
            path = f"/api/v1/namespaces/{urllib.parse.quote(namespace)}/secrets/{record.secret_name}"
            try:
                cluster.request("DELETE", path)
            except ApiError as error:
                if error.status != 404:
                    raise ProviderError(
                        f"{_title(inputs)}: its unfinished revision cannot be cleared: {error}"
                    ) from error
            except ClusterError as error:
                raise ProviderError(f"{_title(inputs)}: its unfinished revision cannot be cleared: {error}") from error
        elif record.status == "uninstalling":
            helm.run(uninstall_arguments(inputs, str(inputs["name"]), namespace, seconds=seconds), seconds=seconds)

    @staticmethod
    def _failure(call: Call, cluster: Cluster, inputs: Values, reason: str, took: float, seconds: float) -> str:
        what = "was interrupted" if call.cancelled.is_set() else "was not brought up"
        if took >= seconds and not call.cancelled.is_set():
            what = f"was not brought up within {awaits.duration(seconds)}"
        cause = pods_of_release(cluster, inputs)
        return f"{_title(inputs)} {what}: {reason}" + (f". Likely cause: {cause}" if cause else "")

    def read(self, call: Call, resource_id: str, inputs: Values, state: Values) -> tuple[Values, Values] | None:
        """The release as Helm's record has it; ``None`` when it is gone."""
        namespace, name = objects.split_identifier(resource_id)
        try:
            cluster = _host(call).reach(call, REACH_TO_DELETE_SECONDS)
            record = find_record(cluster, namespace, name)
        except ClusterError as error:
            raise ProviderError(f"Release {resource_id} cannot be read: {error}") from error
        if record is None or record.status == "uninstalled":
            return None
        known = inputs or {
            "name": name,
            "namespace": namespace,
            "chart": record.chart.get("name"),
            "version": record.chart.get("version"),
            "values": record.body.get("config") or {},
        }
        return known, release_outputs(known, record)

    def delete(self, call: Call, resource_id: str, inputs: Values, state: Values) -> None:
        """Uninstall the release; one that is gone already is fine. A cluster that does not answer is an error."""
        namespace, name = objects.split_identifier(resource_id)
        known = state or inputs
        title = f"Release {resource_id}"
        try:
            cluster = _host(call).reach(call, REACH_TO_DELETE_SECONDS)
            if find_record(cluster, namespace, name) is None:
                return
        except UnreachableError as error:
            raise ProviderError(
                f"{title} cannot be uninstalled: {error}. If the cluster is gone for good, remove it from the state with "
                f"`pulumi state delete`"
            ) from error
        except ClusterError as error:
            raise ProviderError(f"{title} cannot be looked up: {error}") from error
        helm = Helm(call)
        seconds = _seconds(call, known)
        done = helm.run(
            uninstall_arguments(known, name, namespace, seconds=seconds),
            seconds=seconds,
            progress=lambda: "waiting for the release's objects to be gone",
        )
        if done.returncode:
            raise ProviderError(f"{title} was not uninstalled: {helm_reason(done.stdout)}")


def _id(inputs: Mapping[str, Any]) -> str:
    return f"{inputs['namespace']}/{inputs['name']}"


def _title(inputs: Mapping[str, Any]) -> str:
    return f"Release {_id(inputs)} (chart {inputs.get('chart')}, {inputs.get('version') or 'newest version'})"


def _seconds(call: Call, inputs: Mapping[str, Any]) -> float:
    return float(inputs.get("timeout") or call.timeout_seconds or DEFAULT_TIMEOUT_SECONDS)


def release_outputs(inputs: Values, record: Record) -> Values:
    """The stored form of a release: its inputs, and what Helm says of it."""
    namespace = str(inputs.get("namespace") or "")
    return {
        **inputs,
        "values": objects.merged(inputs.get("values") or {}, record.body.get("config") or {}),
        "version": str(record.chart.get("version") or inputs.get("version") or ""),
        "resourceNames": resource_names(str(record.body.get("manifest") or "")),
        "status": {
            "status": record.status,
            "name": str(inputs.get("name") or ""),
            "namespace": namespace,
            "revision": record.revision,
            "chart": str(record.chart.get("name") or ""),
            "version": str(record.chart.get("version") or ""),
            "appVersion": str(record.chart.get("appVersion") or ""),
        },
    }


def pods_of_release(cluster: Cluster, inputs: Mapping[str, Any]) -> str:
    """What is wrong with the pods of a release, in one line; empty when nothing is seen."""
    namespace = str(inputs["namespace"])
    try:
        pods = cluster.pods(namespace, f"app.kubernetes.io/instance={inputs['name']}") or cluster.pods(namespace)
        return awaits.pods_cause(cluster, pods)
    except ClusterError as error:
        return str(error)


def _progress(cluster: Cluster, inputs: Mapping[str, Any], seconds: float) -> str:
    cause = pods_of_release(cluster, inputs)
    return f"helm is working ({awaits.duration(seconds)})" + (f"; {cause}" if cause else "")
