"""From bare Proxmox hosts to a PostgreSQL that survives the loss of any one machine.

Reads like a table of contents: settings, providers, components, outputs. What one component gives, the next one takes.
"""

from __future__ import annotations

import pulumi
import pulumi_kubernetes as kubernetes
import pulumi_proxmoxve as proxmoxve

import credentials
import settings as configuration
from components import (
    ApiLoadBalancer,
    ApiLoadBalancerArgs,
    CertificateAuthority,
    CertificateAuthorityArgs,
    DatabaseRequest,
    FileShare,
    FileShareArgs,
    K3sControlPlane,
    K3sControlPlaneArgs,
    K3sDatastore,
    K3sDatastoreArgs,
    MetalLbPool,
    MetalLbPoolArgs,
    OperatorKind,
    PostgresCluster,
    PostgresClusterArgs,
    ProxmoxHost,
    ProxmoxHostArgs,
    ProxmoxLxcNode,
    ProxmoxLxcNodeArgs,
    SmbBackup,
    SmbBackupArgs,
)
from settings import Role

START_ORDER = {Role.DATASTORE: 1, Role.FILE_SHARE: 1, Role.API_LOAD_BALANCER: 2, Role.K3S_SERVER: 3, Role.K3S_WORKER: 4}
"""After a power cut Proxmox starts first what the others wait for."""


def main() -> None:
    """Declare everything."""
    stack = pulumi.get_stack()
    config = pulumi.Config()
    settings = configuration.from_pulumi(config)
    for warning in settings.warnings():
        pulumi.log.warn(warning)
    ssh_private_key = config.require_secret(credentials.PRIVATE_KEY)
    # Read in the clear only to derive what is public from it.
    ssh_public_key = credentials.ssh_public_key(config.require(credentials.PRIVATE_KEY))

    # --- Proxmox hosts and machines
    proxmox_provider = proxmoxve.Provider(
        "proxmox",
        endpoint=settings.proxmox.endpoint,
        api_token=config.require_secret(credentials.PROXMOX_API_TOKEN),
        insecure=settings.proxmox.insecure_tls,
    )
    on_proxmox = pulumi.ResourceOptions(provider=proxmox_provider)
    hosts = {
        host.name: ProxmoxHost(
            host.name,
            ProxmoxHostArgs(
                node_name=host.name,
                address=str(host.address),
                ssh_private_key=ssh_private_key,
                ssh_host_key=host.ssh_host_key,
                owner=stack,
                template_url=settings.template.url,
                template_sha512=settings.template.sha512,
                template_storage=settings.proxmox.template_storage,
            ),
            opts=on_proxmox,
        )
        for host in settings.proxmox.hosts
        if any(machine.proxmox_host == host.name for machine in settings.machines)
    }
    domain = settings.network.search_domain
    names = [(str(machine.address), machine.name) for machine in settings.machines]
    names.append((str(settings.api_load_balancer.virtual_address), "k3s-api"))
    nodes = {
        machine.name: ProxmoxLxcNode(
            machine.name,
            ProxmoxLxcNodeArgs(
                proxmox=hosts[machine.proxmox_host],
                vm_id=machine.vm_id,
                machine_name=machine.name,
                address=str(machine.address),
                prefix_length=settings.network.prefix_length,
                gateway=str(settings.network.gateway),
                dns_servers=[str(server) for server in settings.network.dns_servers],
                search_domain=domain,
                bridge=settings.network.bridge,
                cores=machine.cores,
                memory_mib=machine.memory_mib,
                disk_gib=machine.disk_gib,
                disk_storage=settings.proxmox.disk_storage,
                tags=[role.value for role in machine.roles],
                owner_tag=f"school-postgres-{stack}".lower(),
                start_order=min(START_ORDER[role] for role in machine.roles),
                runs_kubernetes=machine.runs_k3s,
                hosts_entries="\n".join(f"{address} {name} {name}.{domain}" for address, name in names),
                apt_proxy=settings.network.apt_proxy,
                ssh_public_key=ssh_public_key,
                ssh_private_key=ssh_private_key,
                holds_data=any(role is not Role.API_LOAD_BALANCER for role in machine.roles),
                protect_data=settings.protect_data,
            ),
            opts=on_proxmox,
        )
        for machine in settings.machines
    }

    def with_role(role: Role) -> list[ProxmoxLxcNode]:
        return [nodes[machine.name] for machine in settings.machines_with(role)]

    servers, workers = with_role(Role.K3S_SERVER), with_role(Role.K3S_WORKER)
    server_addresses = [node.address for node in servers]

    # --- what the cluster stands on
    datastore_machine = with_role(Role.DATASTORE)[0]
    authority = CertificateAuthority(
        "datastore-ca",
        CertificateAuthorityArgs(host=datastore_machine.host, common_name=f"school-postgres {stack} datastore"),
    )
    datastore = K3sDatastore(
        "datastore",
        K3sDatastoreArgs(host=datastore_machine.host, authority=authority, client_addresses=server_addresses),
    )
    api_load_balancer = ApiLoadBalancer(
        "api",
        ApiLoadBalancerArgs(
            hosts=[node.host for node in with_role(Role.API_LOAD_BALANCER)],
            server_addresses=server_addresses,
            virtual_address=str(settings.api_load_balancer.virtual_address),
            prefix_length=settings.network.prefix_length,
            virtual_router_id=settings.api_load_balancer.virtual_router_id,
        ),
    )
    share = FileShare(
        "backup-share",
        FileShareArgs(
            host=with_role(Role.FILE_SHARE)[0].host,
            share=settings.backup.share,
            allowed_network=str(settings.network.cidr),
        ),
    )

    # --- Kubernetes
    control_plane = K3sControlPlane(
        "k3s",
        K3sControlPlaneArgs(
            servers=[node.host for node in servers],
            workers=[node.host for node in workers],
            datastore=datastore,
            load_balancer=api_load_balancer,
            version=settings.kubernetes.version,
            binary_url=settings.kubernetes.binary_url,
            binary_sha256=settings.kubernetes.binary_sha256,
            tls_names=[
                str(settings.api_load_balancer.virtual_address),
                "k3s-api",
                f"k3s-api.{domain}",
                *settings.kubernetes.tls_names,
            ],
            registry_mirrors=settings.kubernetes.registry_mirrors,
            protect_data=settings.protect_data,
        ),
    )
    kubernetes_provider = kubernetes.Provider(
        "kubernetes",
        kubeconfig=control_plane.kubeconfig,
        # Constant: without it a renewed kubeconfig would look like another cluster, and replace everything in it.
        cluster_identifier=f"{stack}-k3s",
        # A run that was killed between making an object and noting it is continued: the object is taken over.
        upsert_existing_objects=True,
    )
    # What lives in the cluster goes with it, so that destroy ends even when the cluster does not answer.
    in_cluster = pulumi.ResourceOptions(provider=kubernetes_provider, deleted_with=control_plane)

    # --- the database
    pool = MetalLbPool(
        "metallb",
        MetalLbPoolArgs(
            addresses=str(settings.network.service_pool), helm_repository=settings.kubernetes.helm_repository
        ),
        opts=in_cluster,
    )
    postgres = settings.postgres
    database = PostgresCluster(
        "postgres",
        PostgresClusterArgs(
            operator=OperatorKind(postgres.operator.value),
            request=DatabaseRequest(
                cluster_name=postgres.name,
                team=postgres.team,
                version=postgres.version,
                instances=postgres.instances,
                storage_gib=postgres.storage.size_gib,
                storage_class=postgres.storage.storage_class,
                cpu_request_millicores=postgres.resources.cpu_request_millicores,
                memory_request_mib=postgres.resources.memory_request_mib,
                memory_limit_mib=postgres.resources.memory_limit_mib,
                users=postgres.users,
                databases=postgres.databases,
                parameters=postgres.parameters,
                pooler_instances=postgres.pooler.instances,
                pooler_mode=postgres.pooler.mode.value,
                pooler_max_database_connections=postgres.pooler.max_database_connections,
                allowed_sources=[str(source) for source in postgres.allowed_sources],
                primary_address=str(postgres.addresses.primary),
                replica_address=str(postgres.addresses.replica),
                pooler_address=str(postgres.addresses.pooler),
                address_pool=pool.pool_name,
                helm_repository=settings.kubernetes.helm_repository,
                protect_data=settings.protect_data,
            ),
        ),
        opts=in_cluster,
    )
    backup = SmbBackup(
        "backup",
        SmbBackupArgs(
            cluster_name=postgres.name,
            namespace=database.namespace,
            database=database.database,
            database_names=list(postgres.databases),
            share=share,
            schedule=settings.backup.schedule,
            time_zone=settings.backup.time_zone,
            keep_days=settings.backup.keep_days,
        ),
        opts=in_cluster,
    )

    # --- what the stack gives its users
    pulumi.export("database_url", database.database_url)
    pulumi.export("database_read_only_url", database.database_read_only_url)
    pulumi.export("database_pooler_url", database.database_pooler_url)
    pulumi.export("kubeconfig", control_plane.kubeconfig)
    pulumi.export("api_endpoint", api_load_balancer.endpoint)
    pulumi.export("service_addresses", dict(database.service_addresses))
    pulumi.export("backup_location", backup.location)


main()
