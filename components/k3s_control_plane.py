"""K3s: servers on an external datastore, workers that join through the API balancer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jinja2
import pulumi
import pulumi_random as random
import yaml

from components.api_load_balancer import ApiLoadBalancer
from components.certificate_authority import Certificate, CertificateArgs, CertificateFiles, CertificateUsage
from components.k3s_datastore import CERTIFICATE_FOLDER, ROLE, K3sDatastore
from components.remote import Host, read_host_file, run_script

POD_NETWORK: Final = "10.42.0.0/16"
SERVICE_NETWORK: Final = "10.43.0.0/16"

READY_SECONDS: Final = 300
"""How long a node may take; measured 10 to 30 s, plus the first pull of images over a slow line."""

CONTROLLER_MANAGER_ARGUMENTS: Final = ("node-monitor-period=2s", "node-monitor-grace-period=16s")
"""A silent node is given up after 16 s instead of 50 s: it decides how long a dead database node is still sent
connections. Cost: a node that hangs for 16 s loses its place."""

KUBELET_CONFIGURATION: Final = """\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
nodeStatusUpdateFrequency: 4s
nodeLeaseDurationSeconds: 16"""
"""A kubelet renews its lease four times in its duration, so every 4 s: three may be missed before the 16 s above are
over. With the default duration of 40 s a single missed one would be enough."""

KUBE_PROXY_ARGUMENTS: Final = ("nodeport-addresses=127.0.0.0/8",)
"""Every service address also gets a port on all nodes, which knows nothing of the service's source ranges, and which hides
a pod that comes through it from network policies. Nothing here uses it: nodes answer it to themselves only."""

API_SERVER_ARGUMENTS: Final = ("default-not-ready-toleration-seconds=30", "default-unreachable-toleration-seconds=30")
"""Pods without a state of their own start elsewhere 30 s after their node is given up, not after 5 minutes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class K3sControlPlaneArgs:
    """Inputs of :class:`K3sControlPlane`."""

    servers: Sequence[Host]
    """Machines that run the control plane, and pods as well. The first bootstraps the datastore."""
    workers: Sequence[Host]
    """Machines that run pods only."""
    datastore: K3sDatastore
    """Where the servers keep their objects."""
    load_balancer: ApiLoadBalancer
    """Where everybody reaches the API."""
    version: str
    """Exact K3s release, e.g. ``v1.36.3+k3s1``; a channel name is no version."""
    binary_url: str
    """Where the machines download the K3s binary from."""
    binary_sha256: str
    """SHA-256 of the binary in hex; another file is not installed."""
    tls_names: Sequence[str]
    """Names and addresses in the API's certificate; the virtual address must be among them."""
    registry_mirrors: Mapping[str, Sequence[str]]
    """Image registry (``*`` for any) to the URLs it is pulled from instead. Empty: straight from the registries."""
    protect_data: bool
    """Whether the tokens may neither be deleted nor replaced: without them nothing in the datastore can be read."""


DATASTORE_CLIENT: Final = CertificateFiles(CERTIFICATE_FOLDER, "client")
"""The certificate with which a server proves itself to the datastore."""


def server_settings(args: K3sControlPlaneArgs) -> dict[str, Any]:
    """What ``config.yaml`` says on every server alike. Nothing in it is secret: policies read it from the plan."""
    return {
        "datastore-endpoint": args.datastore.endpoint,
        "datastore-cafile": DATASTORE_CLIENT.authority,
        "datastore-certfile": DATASTORE_CLIENT.certificate,
        "datastore-keyfile": DATASTORE_CLIENT.key,
        "tls-san": list(args.tls_names),
        "cluster-cidr": POD_NETWORK,
        "service-cidr": SERVICE_NETWORK,
        # MetalLB hands out the addresses; two would write to the same field.
        "disable": ["servicelb", "traefik"],
        # Only possible when the cluster is made.
        "secrets-encryption": True,
        "write-kubeconfig-mode": "0600",
        "kube-apiserver-arg": list(API_SERVER_ARGUMENTS),
        "kube-controller-manager-arg": list(CONTROLLER_MANAGER_ARGUMENTS),
        "kube-proxy-arg": list(KUBE_PROXY_ARGUMENTS),
    }


def server_configuration(host: Host, args: K3sControlPlaneArgs, token: str, agent_token: str) -> str:
    """``config.yaml`` of a server. What must be equal on all servers is equal here because it is written here only."""
    own = {"token": token, "agent-token": agent_token, "node-name": host.name, "node-ip": host.address}
    return yaml.safe_dump({**own, **server_settings(args)}, sort_keys=False)


def worker_configuration(host: Host, endpoint: str, ca_hash: str, agent_token: str) -> str:
    """``config.yaml`` of a worker. The hash in the token lets it recognise the cluster before it trusts it."""
    return yaml.safe_dump(
        {
            "server": endpoint,
            "token": f"K10{ca_hash}::node:{agent_token}",
            "node-name": host.name,
            "node-ip": host.address,
            "kube-proxy-arg": list(KUBE_PROXY_ARGUMENTS),
        },
        sort_keys=False,
    )


def registries_configuration(mirrors: Mapping[str, Sequence[str]]) -> str:
    """``registries.yaml``: where images come from."""
    return yaml.safe_dump(
        {"mirrors": {registry: {"endpoint": list(urls)} for registry, urls in mirrors.items()}}, sort_keys=False
    )


class K3sControlPlane(pulumi.ComponentResource):
    """A K3s cluster: every server and worker installed from one pinned binary.

    The first server starts alone, since it writes the cluster's certificates into the datastore; then all others at once.
    Ready means that every node is Ready, seen through the balancer. Does not upgrade a running cluster node by node.
    """

    kubeconfig: pulumi.Output[str]
    """Kubeconfig of the cluster's admin, pointing at the virtual address. Secret."""
    node_names: Sequence[str]
    """Names of all nodes."""
    server_addresses: Sequence[str]
    """IPv4 addresses of the nodes that run the control plane."""
    worker_addresses: Sequence[str]
    """IPv4 addresses of the nodes that run pods only."""

    def __init__(self, name: str, args: K3sControlPlaneArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        summary = {"version": args.version, "serverSettings": server_settings(args)}
        super().__init__("school:index:K3sControlPlane", name, summary, opts)
        self.node_names = [host.name for host in (*args.servers, *args.workers)]
        self.server_addresses = [host.address for host in args.servers]
        self.worker_addresses = [host.address for host in args.workers]
        self._name, self._args = name, args
        token = self._secret("token", 48, protect=args.protect_data)
        agent_token = self._secret("agent-token", 48, protect=args.protect_data)
        first, *others = args.servers

        first_started = self._start_server(first, token, agent_token, after=[args.datastore, args.load_balancer])
        ca_hash = run_script(f"{name}-ca-hash", first, "k3s-ca-hash.sh", parent=self, depends_on=[first_started])
        started = [first_started]
        started += [self._start_server(host, token, agent_token, after=[first_started]) for host in others]
        started += [self._start_worker(host, ca_hash.stdout, agent_token) for host in args.workers]

        ready = run_script(
            f"{name}-ready",
            first,
            "k3s-cluster-ready.sh",
            parent=self,
            variables={
                "endpoint": args.load_balancer.endpoint,
                "nodes": " ".join(self.node_names),
                "ready_seconds": str(READY_SECONDS),
            },
            timeout_seconds=READY_SECONDS + 60,
            # No value carries it: a node's readiness is not something its installation returns.
            depends_on=started,
        )
        kubeconfig = run_script(
            f"{name}-kubeconfig",
            first,
            "k3s-kubeconfig.sh",
            parent=self,
            variables={"endpoint": args.load_balancer.endpoint},
            secret_output=True,
            # Whoever has the kubeconfig may use the cluster, so it comes when the cluster is ready.
            depends_on=[ready],
        )
        self.kubeconfig = pulumi.Output.secret(kubeconfig.stdout)
        self.register_outputs(
            {
                "kubeconfig": self.kubeconfig,
                "node_names": self.node_names,
                "server_addresses": self.server_addresses,
                "worker_addresses": self.worker_addresses,
            }
        )

    def _secret(self, suffix: str, length: int, *, protect: bool = False) -> pulumi.Output[str]:
        made = random.RandomPassword(
            f"{self._name}-{suffix}",
            length=length,
            special=False,
            opts=pulumi.ResourceOptions(parent=self, protect=protect),
        )
        return pulumi.Output.secret(made.result)

    def _start_server(
        self,
        host: Host,
        token: pulumi.Output[str],
        agent_token: pulumi.Output[str],
        after: Sequence[pulumi.Resource],
    ) -> pulumi.Resource:
        certificate = Certificate(
            f"{self._name}-{host.name}-datastore-client",
            CertificateArgs(
                authority=self._args.datastore.authority,
                host=host,
                common_name=ROLE,
                usage=CertificateUsage.CLIENT,
                alternative_names=(),
                files=DATASTORE_CLIENT,
            ),
            opts=pulumi.ResourceOptions(parent=self),
        )
        configuration = pulumi.Output.all(token, agent_token).apply(
            lambda values: server_configuration(host, self._args, values[0], values[1])
        )
        return self._install(host, "server", configuration, certificate.fingerprint, after)

    def _start_worker(
        self,
        host: Host,
        ca_hash: pulumi.Output[str],
        agent_token: pulumi.Output[str],
    ) -> pulumi.Resource:
        configuration = pulumi.Output.all(ca_hash, agent_token).apply(
            lambda values: worker_configuration(host, self._args.load_balancer.endpoint, values[0], values[1])
        )
        return self._install(host, "agent", configuration, "", ())

    def _install(
        self,
        host: Host,
        mode: str,
        configuration: pulumi.Output[str],
        certificate_fingerprint: pulumi.Input[str],
        after: Sequence[pulumi.Resource],
    ) -> pulumi.Resource:
        return run_script(
            f"{self._name}-{host.name}",
            host,
            "k3s-node.sh",
            parent=self,
            variables={
                "mode": mode,
                "version": self._args.version,
                "binary_url": self._args.binary_url,
                "binary_sha256": self._args.binary_sha256,
                "configuration": configuration,
                "registries": registries_configuration(self._args.registry_mirrors),
                "unit": jinja2.Template(read_host_file("k3s.service.j2"), undefined=jinja2.StrictUndefined).render(
                    mode=mode
                ),
                "kubelet_configuration": KUBELET_CONFIGURATION,
                "ready_seconds": str(READY_SECONDS),
                "certificate_fingerprint": certificate_fingerprint,
                # The cluster knows a machine by it. Kept here, a machine that is made anew is known again.
                "node_password": self._secret(f"{host.name}-node-password", 32),
            },
            timeout_seconds=2 * READY_SECONDS + 600,
            depends_on=after,
        )
