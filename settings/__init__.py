"""The one configuration boundary: what ``Pulumi.<stack>.yaml`` says, typed and checked as a whole.

Every field carries its meaning (the text under it), what is allowed and what to do about a value that is not; the
sentences a teacher reads, ``docs/configuration.md`` and the schema for editors all come from there, and
``python -m settings`` writes the two files. Nothing else in here registers a resource, opens a connection or reads a file.
The secrets (``proxmoxApiToken``, ``sshPrivateKey``) are no part of the settings: the program reads them with
``require_secret``, and here only their form is checked.
"""

from __future__ import annotations

from settings.faults import NAMESPACE, SettingsError
from settings.loading import SECRET_KEYS, check_secrets, from_pulumi, load
from settings.models import (
    ApiLoadBalancerSettings,
    BackupSettings,
    KubernetesSettings,
    MachineSettings,
    NetworkSettings,
    PolicyWaiverSettings,
    ProxmoxHostSettings,
    ProxmoxSettings,
    Role,
    Settings,
    TemplateSettings,
)
from settings.postgres import Operator, PoolerSettings, PoolMode, PostgresSettings
from settings.reference import reference
from settings.schema import schema
from settings.values import AddressRange

__all__ = [
    "NAMESPACE",
    "SECRET_KEYS",
    "AddressRange",
    "ApiLoadBalancerSettings",
    "BackupSettings",
    "KubernetesSettings",
    "MachineSettings",
    "NetworkSettings",
    "Operator",
    "PolicyWaiverSettings",
    "PoolMode",
    "PoolerSettings",
    "PostgresSettings",
    "ProxmoxHostSettings",
    "ProxmoxSettings",
    "Role",
    "Settings",
    "SettingsError",
    "TemplateSettings",
    "check_secrets",
    "from_pulumi",
    "load",
    "reference",
    "schema",
]
