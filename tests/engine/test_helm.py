"""Helm releases of the Kubernetes stand-in: its arguments, and its ways with a helm that succeeds, fails or is killed."""

from __future__ import annotations

import base64
import gzip
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lab.engine import helm
from lab.engine.kubernetes import KubernetesProvider
from lab.engine.provider import Call, InputError, ProviderError
from tests.engine.kubernetes_api import Api, serve

if TYPE_CHECKING:
    from tests.engine.conftest import Stack

pytestmark = pytest.mark.engine

URN = "urn:pulumi:lab::test::kubernetes:helm.sh/v3:Release::metallb"
OWNER = helm.owner_label(URN)
INPUTS: dict[str, Any] = {"name": "r", "namespace": "n", "chart": "metallb", "version": "0.15.2", "timeout": 60}


def arguments(major: int = 4, **more: Any) -> list[str]:
    """The words for a release with more inputs."""
    return helm.upgrade_arguments({**INPUTS, **more}, major=major, seconds=60, owner="o")


def test_arguments_say_what_the_inputs_say() -> None:
    words = arguments(repositoryOpts={"repo": "http://charts/"}, createNamespace=True, waitForJobs=True, maxHistory=3)
    assert words[:6] == ["upgrade", "--install", "r", "metallb", "--repo", "http://charts/"]
    for expected in (["--version", "0.15.2"], ["--namespace", "n"], ["--timeout", "60s"], ["--history-max", "3"]):
        assert expected[1] == words[words.index(expected[0]) + 1]
    assert {"--wait", "--wait-for-jobs", "--create-namespace"} <= set(words)
    assert words[words.index("--values") + 1] == "-"


def test_arguments_follow_the_version_of_helm() -> None:
    assert "--rollback-on-failure" in arguments(4, atomic=True)
    assert "--atomic" in arguments(3, atomic=True)
    assert "--force" in arguments(3, forceUpdate=True)
    assert "--server-side=false" not in arguments(3)


def test_waiting_can_be_left_out_unless_the_release_is_atomic() -> None:
    assert "--wait" not in arguments(skipAwait=True)
    assert "--wait" in arguments(skipAwait=True, atomic=True)
    assert "--wait" not in helm.uninstall_arguments({"skipAwait": True}, "r", "n", seconds=5)


def test_values_never_appear_in_the_arguments() -> None:
    secret: dict[str, Any] = {
        "values": {"password": "hunter2"},
        "repositoryOpts": {"password": "hunter3", "username": "u"},
    }
    assert "hunter" not in " ".join(arguments(**secret))


def test_files_come_before_values(tmp_path: Path) -> None:
    (tmp_path / "values.yaml").write_text("a: {x: 1, y: 2}\n")
    files = [{"path": str(tmp_path / "values.yaml")}, {"text": "a: {y: 3}\nb: null\n"}]
    assert helm.merged_values({"valueYamlFiles": files, "values": {"a": {"z": 4}}}) == {
        "a": {"x": 1, "y": 3, "z": 4},
        "b": None,
    }
    with pytest.raises(ProviderError, match="is not YAML"):
        helm.merged_values({"valueYamlFiles": [{"text": "a: ["}]})
    with pytest.raises(ProviderError, match="cannot be read"):
        helm.merged_values({"valueYamlFiles": [{"path": str(tmp_path / "none")}]})


def test_names_of_objects_are_grouped_by_kind() -> None:
    manifest = """
apiVersion: v1
kind: ServiceAccount
metadata: {name: b, namespace: n}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: a, namespace: n}
---
# nothing
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: d}
"""
    assert helm.resource_names(manifest) == {"Deployment.apps/apps/v1": ["d"], "ServiceAccount/v1": ["n/a", "n/b"]}


def test_the_reason_is_taken_from_helms_output() -> None:
    output = 'level=WARN msg="noise"\nwarning: more\nError: UPGRADE FAILED: resource x not ready\ncontext deadline exceeded\n'
    assert helm.helm_reason(output) == "UPGRADE FAILED: resource x not ready context deadline exceeded"
    assert helm.helm_reason("") == "no message"


def record(status: str, revision: int, **chart: str) -> str:
    """Helm's record of a release, as its Secret holds it."""
    body = {
        "name": "r",
        "info": {"status": status},
        "chart": {"metadata": {"name": "metallb", "version": "0.15.2", "appVersion": "v0.15.2", **chart}},
        "config": {"a": 1},
        "manifest": "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: n}\n",
        "version": revision,
    }
    return base64.b64encode(base64.b64encode(gzip.compress(json.dumps(body).encode()))).decode()


def store(api: Api, status: str, revision: int, owner: str = "") -> None:
    """Put the record of a revision into the cluster."""
    labels = {"owner": "helm", "name": "r", "status": status, "version": str(revision)}
    labels |= {helm.OWNER_LABEL: owner} if owner else {}
    name = f"sh.helm.release.v1.r.v{revision}"
    api.put("v1", "Secret", "n", name, metadata={"labels": labels}, data={"release": record(status, revision)})


def test_a_broken_record_is_no_traceback() -> None:
    assert helm.decode_record(record("deployed", 1))["config"] == {"a": 1}
    with pytest.raises(ValueError, match="cannot be read"):
        helm.decode_record("bm9uc2Vuc2U=")


@pytest.fixture
def api() -> Iterator[Api]:
    """An empty cluster."""
    made = Api()
    server = serve(made)
    yield made
    server.shutdown()
    server.server_close()


PROGRAM = """
import pulumi_kubernetes as k8s
from pulumi import ResourceOptions

provider = k8s.Provider("cluster", kubeconfig=option("kubeconfig"), cluster_identifier="lab")
release = k8s.helm.v3.Release("metallb", k8s.helm.v3.ReleaseArgs(
    chart="metallb", version="0.15.2", name="r", namespace="n", timeout=5,
    repository_opts=k8s.helm.v3.RepositoryOptsArgs(repo="http://charts/"),
    values={"a": option("a", 1), "password": pulumi.Output.secret("hunter2")},
), opts=ResourceOptions(provider=provider))
pulumi.export("status", release.status)
"""


@pytest.fixture
def helm_program(tmp_path: Path) -> Path:
    """A helm that writes down how it was called and the values it got; it fails when there is a file ``output``."""
    binary = tmp_path / "helm"
    binary.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = version ]; then echo v4.3.1; exit; fi\n'
        f'echo "$*" >> {tmp_path}/calls\n'
        f'if [ "$1" = upgrade ]; then cat > {tmp_path}/values; fi\n'
        f"cat {tmp_path}/output 2>/dev/null\n"
        f"[ ! -e {tmp_path}/output ]\n"
    )
    binary.chmod(0o755)
    return binary


@pytest.fixture
def release_stack(stack: Stack, api: Api, helm_program: Path) -> Stack:
    """A stack with one release, installed by the fake helm."""
    stack.environment["HELM_BINARY"] = str(helm_program)
    stack.options["kubeconfig"] = api.kubeconfig
    stack.write(PROGRAM)
    return stack


def test_a_release_is_installed_left_alone_upgraded_and_removed(release_stack: Stack, api: Api, tmp_path: Path) -> None:
    release_stack.run("preview").expect()
    assert not (tmp_path / "calls").exists()
    release_stack.up().expect_failure()  # this helm leaves no record
    store(api, "deployed", 1, OWNER)
    release_stack.up().expect()
    assert json.loads((tmp_path / "values").read_text()) == {"a": 1, "password": "hunter2"}
    stored = release_stack.resources()["metallb"]
    assert stored["id"] == "n/r"
    assert stored["outputs"]["status"]["revision"] == 1
    assert stored["outputs"]["resourceNames"] == {"Service/v1": ["n/s"]}
    assert "hunter2" not in json.dumps(stored)
    calls = (tmp_path / "calls").read_text()
    assert "hunter2" not in calls
    release_stack.up().expect()
    assert (tmp_path / "calls").read_text() == calls, "nothing changed, helm is not called"
    release_stack.options["a"] = 2
    release_stack.up().expect()
    assert json.loads((tmp_path / "values").read_text())["a"] == 2
    release_stack.destroy().expect()
    assert (tmp_path / "calls").read_text().splitlines()[-1].startswith("uninstall r --namespace n --ignore-not-found")


def test_a_failure_names_the_release_the_reason_and_the_pod(release_stack: Stack, api: Api, tmp_path: Path) -> None:
    (tmp_path / "output").write_text("Error: context deadline exceeded\n")
    store(api, "failed", 1, OWNER)
    waiting = {"reason": "ErrImagePull", "message": "not found"}
    container = {"name": "c", "image": "nope:1", "state": {"waiting": waiting}}
    labels = {"labels": {"app.kubernetes.io/instance": "r"}}
    api.put("v1", "Pod", "n", "p", metadata=labels, spec={"nodeName": "gl6"}, status={"containerStatuses": [container]})
    outcome = release_stack.up().expect_failure()
    assert (
        "Release n/r (chart metallb, 0.15.2) was not brought up: context deadline exceeded. Likely cause: pod p on node gl6: "
        "container c: ErrImagePull: image nope:1 cannot be pulled: not found" in outcome.text
    )
    assert "metallb" in release_stack.resources(), "a failed release stays in the state"
    (tmp_path / "output").unlink()
    store(api, "deployed", 2, OWNER)
    release_stack.up().expect()


# --- without the engine ---------------------------------------------------------------------------------------


class Direct:
    """A release, asked directly."""

    def __init__(self, api: Api) -> None:
        self.provider = KubernetesProvider()
        self.provider.config = {"kubeconfig": api.kubeconfig}
        self.call = Call(self.provider, URN)
        self.resource = self.provider.resource(URN)
        self.inputs = self.resource.check(self.call, {**INPUTS, "timeout": 5}, None)


@pytest.fixture
def fake(helm_program: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the fake helm, which this process uses."""
    monkeypatch.setenv("HELM_BINARY", str(helm_program))
    return helm_program.parent


def test_a_release_of_somebody_else_is_left_alone(api: Api, fake: Path) -> None:
    store(api, "deployed", 3)
    direct = Direct(api)
    with pytest.raises(
        ProviderError, match=r"a release of that name already \(status deployed, chart metallb 0.15.2\)"
    ):
        direct.resource.create(direct.call, direct.inputs)
    assert not (fake / "calls").exists()


def test_what_a_killed_run_left_is_cleared_and_continued(api: Api, fake: Path) -> None:
    store(api, "deployed", 1, OWNER)
    store(api, "pending-upgrade", 2, OWNER)
    direct = Direct(api)
    direct.resource.create(direct.call, direct.inputs)
    removed = [request.path for request in api.changes("DELETE")]
    assert removed == ["/api/v1/namespaces/n/secrets/sh.helm.release.v1.r.v2"]
    assert "upgrade --install r" in (fake / "calls").read_text()


def test_a_release_that_is_gone_is_no_error_and_a_dead_cluster_is(
    api: Api, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = Direct(api)
    assert direct.resource.read(direct.call, "n/r", direct.inputs, {}) is None
    direct.resource.delete(direct.call, "n/r", direct.inputs, {})
    assert not (fake / "calls").exists()
    monkeypatch.setattr(helm, "REACH_TO_DELETE_SECONDS", 0.1)
    monkeypatch.setenv("PULUMI_K8S_DELETE_UNREACHABLE", "true")
    api.port = 9
    dead = Direct(api)
    with pytest.raises(
        ProviderError, match=r"Release n/r cannot be uninstalled: the Kubernetes API at http://127.0.0.1:9 "
    ):
        dead.resource.delete(dead.call, "n/r", dead.inputs, {})


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"chart": ""}, "a release needs a chart"),
        ({"postrender": "sed"}, "does not offer this"),
        ({"repositoryOpts": {"repo": "http://charts", "username": "u"}}, "oci:// charts only"),
    ],
)
def test_what_the_lab_cannot_do_is_refused(api: Api, more: dict[str, Any], sentence: str) -> None:
    direct = Direct(api)
    with pytest.raises(InputError, match=sentence):
        direct.resource.check(direct.call, {**INPUTS, **more}, None)


def test_an_interrupt_ends_helm(api: Api, fake: Path) -> None:
    (fake / "helm").write_text(
        "#!/bin/sh\n[ \"$1\" = version ] && echo v4.3.1 && exit\ntrap 'exit 3' TERM\nwhile :; do sleep 0.05; done\n"
    )
    direct = Direct(api)
    threading.Timer(0.5, direct.provider.cancelled.set).start()
    began = time.monotonic()
    with pytest.raises(ProviderError, match="was interrupted"):
        direct.resource.create(direct.call, direct.inputs)
    assert time.monotonic() - began < 10


def test_a_missing_helm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELM_BINARY", "/nonexistent/helm")
    with pytest.raises(ProviderError, match="/nonexistent/helm is not on this machine"):
        helm.helm_binary()
    monkeypatch.setenv("HELM_BINARY", shutil.which("true") or "true")
    helm.helm_major.cache_clear()
    with pytest.raises(ProviderError, match="does not tell its version"):
        helm.helm_major(helm.helm_binary())
