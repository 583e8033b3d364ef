"""The building blocks of the program: one component a module, joined in ``__main__.py``."""

from __future__ import annotations

from components.api_load_balancer import ApiLoadBalancer, ApiLoadBalancerArgs
from components.certificate_authority import (
    Certificate,
    CertificateArgs,
    CertificateAuthority,
    CertificateAuthorityArgs,
    CertificateFiles,
    CertificateUsage,
)
from components.file_share import FileShare, FileShareArgs
from components.k3s_control_plane import K3sControlPlane, K3sControlPlaneArgs
from components.k3s_datastore import K3sDatastore, K3sDatastoreArgs
from components.metallb_pool import MetalLbPool, MetalLbPoolArgs
from components.operators.interface import DatabaseRequest
from components.postgres_cluster import OperatorKind, PostgresCluster, PostgresClusterArgs
from components.proxmox_host import ProxmoxHost, ProxmoxHostArgs
from components.proxmox_lxc_node import ProxmoxLxcNode, ProxmoxLxcNodeArgs
from components.remote import Host
from components.smb_backup import SmbBackup, SmbBackupArgs

__all__ = [
    "ApiLoadBalancer",
    "ApiLoadBalancerArgs",
    "Certificate",
    "CertificateArgs",
    "CertificateAuthority",
    "CertificateAuthorityArgs",
    "CertificateFiles",
    "CertificateUsage",
    "DatabaseRequest",
    "FileShare",
    "FileShareArgs",
    "Host",
    "K3sControlPlane",
    "K3sControlPlaneArgs",
    "K3sDatastore",
    "K3sDatastoreArgs",
    "MetalLbPool",
    "MetalLbPoolArgs",
    "OperatorKind",
    "PostgresCluster",
    "PostgresClusterArgs",
    "ProxmoxHost",
    "ProxmoxHostArgs",
    "ProxmoxLxcNode",
    "ProxmoxLxcNodeArgs",
    "SmbBackup",
    "SmbBackupArgs",
]
