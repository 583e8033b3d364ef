"""Reading a configuration: every fault of every topic is found before anything is said."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

import pulumi
from pydantic import TypeAdapter, ValidationError

import credentials
from settings.base import Rule, alias, rule_of
from settings.explain import explain
from settings.faults import Fault, SettingsError, unknown_key
from settings.models import Settings
from settings.rules import CROSS_RULES, Topics

_KEY_FRAME = ("-----BEGIN OPENSSH PRIVATE KEY-----", "-----END OPENSSH PRIVATE KEY-----")
_UNKNOWN_KEY = "extra_forbidden"

SECRET_KEYS = (credentials.PROXMOX_API_TOKEN, credentials.PRIVATE_KEY)
"""Keys that are read with ``require_secret`` by the program and never enter :class:`Settings`."""


def load(config: Mapping[str, object]) -> Settings:
    """Check the plain objects of all topics (key without namespace -> value) and return the settings.

    Keys of secrets may be present; their values are not looked at. Raises :class:`SettingsError` with one
    sentence for every fault found.
    """
    faults: list[str] = []
    keys = {alias(name): name for name in Settings.model_fields}
    for key in config:
        if key not in keys and key not in SECRET_KEYS:
            faults.append(unknown_key(key, key, [*keys, *SECRET_KEYS]))
    valid: dict[str, Any] = {}
    for key, name in keys.items():
        field = Settings.model_fields[name]
        if config.get(key) is None:
            if field.is_required():
                faults.append(f"{key} is missing; allowed is {rule_of(field).allowed}: {rule_of(field).do}.")
            else:
                valid[name] = field.get_default()
            continue
        try:
            topic: TypeAdapter[Any] = TypeAdapter(field.rebuild_annotation())
            valid[name] = topic.validate_python(config[key], by_alias=True, by_name=False)
        except ValidationError as error:
            faults += explain(key, field, config[key], error)
            if all(item["type"] == _UNKNOWN_KEY for item in error.errors(include_url=False, include_input=False)):
                # Its other keys are right by themselves and may still contradict other topics.
                known = _without_unknown_keys(config[key], error)
                valid[name] = topic.validate_python(known, by_alias=True, by_name=False)
    topics = Topics(**valid)
    for rule in CROSS_RULES:
        faults += [str(fault) for fault in rule(topics)]
    if faults:
        raise SettingsError(faults)
    return Settings(**valid)


def _without_unknown_keys(value: object, error: ValidationError) -> object:
    """A copy of the value without the keys that were refused because nobody knows them."""
    result = copy.deepcopy(value)
    for item in error.errors(include_url=False, include_input=False):
        owner: Any = result
        for part in item["loc"][:-1]:
            owner = owner[part]
        del owner[item["loc"][-1]]
    return result


def check_secrets(values: Mapping[str, str | None]) -> tuple[str, ...]:
    """One sentence for every secret that is missing or cannot be one; no part of a value is in them."""
    faults: list[str] = []
    for key, (is_valid, rule) in _SECRETS.items():
        value = values.get(key)
        if not value or not is_valid(value):
            was = "cannot be used (it is not shown)" if value else "is missing"
            faults.append(str(Fault(key, was, rule.allowed, rule.do)))
    return tuple(faults)


def from_pulumi(config: pulumi.Config) -> Settings:
    """Read every topic of the stack's configuration and check it; raises :class:`SettingsError`.

    Keys that no topic has are refused as well. Of the secrets only the form is checked. Outside a preview the example
    values of this repository are refused too, because nothing can be made with them.
    """
    prefix = f"{config.name}:"
    topics: dict[str, object] = {
        key.removeprefix(prefix): None for key in pulumi.runtime.config.CONFIG.get() if key.startswith(prefix)
    }
    for name in Settings.model_fields:
        key = alias(name)
        try:
            topics[key] = config.get_object(key)
        except pulumi.ConfigTypeError:
            topics[key] = config.get(key)
    faults = check_secrets({key: config.get(key) for key in SECRET_KEYS})
    try:
        settings = load(topics)
    except SettingsError as error:
        raise SettingsError([*error.faults, *faults]) from None
    if not pulumi.runtime.is_dry_run():
        faults += settings.placeholders()
    if faults:
        raise SettingsError(faults)
    return settings


def _is_private_key(value: str) -> bool:
    lines = [line.strip() for line in value.strip().splitlines()]
    if not lines or (lines[0], lines[-1]) != _KEY_FRAME:
        # Python would read a key whose line breaks were lost; the SSH client of the providers would not.
        return False
    try:
        credentials.ssh_public_key(value)
    except pulumi.RunError:
        return False
    return True


def _is_api_token(value: str) -> bool:
    return (
        re.fullmatch(r"[^\s@!:=/]+@[A-Za-z0-9._-]+![A-Za-z][A-Za-z0-9._-]+=[0-9a-fA-F-]{36}", value.strip()) is not None
    )


_SECRETS: Mapping[str, tuple[Callable[[str], bool], Rule]] = {
    credentials.PROXMOX_API_TOKEN: (
        _is_api_token,
        Rule(
            "an API token of the form user@realm!id=uuid",
            "make one in Proxmox (Datacenter, Permissions, API Tokens) and set it with "
            "`pulumi config set --secret proxmoxApiToken`",
        ),
    ),
    credentials.PRIVATE_KEY: (
        _is_private_key,
        Rule(
            "a private key in OpenSSH form without passphrase",
            "make one with `ssh-keygen -t ed25519 -N '' -f school` and set it with "
            "`pulumi config set --secret sshPrivateKey < school`",
        ),
    ),
}

SECRET_RULES: Mapping[str, Rule] = {key: rule for key, (_, rule) in _SECRETS.items()}
"""What each secret must be, in words."""
