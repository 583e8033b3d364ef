"""What a teacher may write into ``Pulumi.<stack>.yaml``, and what is said about everything else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pulumi
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from pydantic import BaseModel, ValidationError

import settings
from settings import AddressRange, MachineSettings, Role, SettingsError
from settings.__main__ import contents
from settings.base import inner_type
from settings.reference import rewritten
from tests.configurations.files import FOLDER, INVALID, REPOSITORY, changed, parsed, read, school

pytestmark = pytest.mark.unit

SECRET = "root@pam!pulumi=8d3f8a52-0b0c-4f0e-9a53-0d6a7d9c0b11"
CONTENTS = contents()


def faults_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    try:
        settings.load(config)
    except SettingsError as error:
        return error.faults
    return ()


@pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in INVALID])
def test_a_refused_configuration_is_explained_in_full(case: dict[str, Any]) -> None:
    assert list(faults_of(changed(school(), case["change"]))) == case["sentences"]


def test_every_sentence_starts_with_a_place_and_ends_with_what_to_do() -> None:
    topics = "|".join(str(field.alias) for field in settings.Settings.model_fields.values())
    for case in INVALID:
        for sentence in case["sentences"]:
            assert re.match(rf"({topics})\b|\w+ is not a known key", sentence), sentence
            assert re.search(r"; allowed is .+: .+\.$|; did you mean \w+\?$", sentence), sentence


def test_no_sentence_speaks_of_the_machinery() -> None:
    jargon = re.compile(r"pydantic|validation error|value_error|type=|ctx|input_value|None|Traceback|str\b|dict\b")
    for case in INVALID:
        for sentence in case["sentences"]:
            assert not jargon.search(sentence), sentence


def test_the_names_of_the_cases_are_unique_sentences() -> None:
    names = [case["name"] for case in INVALID]
    assert len(set(names)) == len(names) >= 250
    assert all(name[0].isupper() and " " in name for name in names)


def test_the_text_of_the_error_lists_every_fault_on_a_line_of_its_own() -> None:
    with pytest.raises(SettingsError) as caught:
        settings.load(changed(school(), {"backup.keepDays": 0, "machines[0].cores": 0}))
    lines = str(caught.value).splitlines()
    assert lines[0] == "The configuration of school-postgres has 2 faults; nothing has been changed:"
    assert lines[1:] == [f"  - {fault}" for fault in caught.value.faults]


def test_a_key_that_a_map_has_twice_is_no_valid_file() -> None:
    with pytest.raises(yaml.YAMLError, match="the key keepDays is there twice"):
        parsed("backup: {keepDays: 14, share: backup, keepDays: 7}")


def test_the_error_ends_a_program_without_a_traceback() -> None:
    assert issubclass(SettingsError, pulumi.RunError)


# --- valid configurations


def test_the_schools_configuration_is_valid_as_it_stands() -> None:
    loaded = settings.load(school())
    assert [machine.name for machine in loaded.machines] == ["gl2", "gl3", "gl6", "gl8", "gl9", "gl10"]
    assert [machine.name for machine in loaded.k3s_machines] == ["gl2", "gl3", "gl6"]
    assert [machine.name for machine in loaded.machines_with(Role.API_LOAD_BALANCER)] == ["gl9", "gl10"]
    for role in (Role.DATASTORE, Role.FILE_SHARE):
        assert [machine.name for machine in loaded.machines_with(role)] == ["gl8"]
    assert loaded.postgres.application_database == ("firmendaten", "bauer")
    assert loaded.network.prefix_length == 24
    assert loaded.warnings() == ()


def test_no_two_machines_of_one_role_share_a_proxmox_host_in_the_school() -> None:
    loaded = settings.load(school())
    for role in Role:
        hosts = [machine.proxmox_host for machine in loaded.machines_with(role)]
        assert len(set(hosts)) == len(hosts), role


def test_the_least_configuration_is_valid_and_takes_the_defaults() -> None:
    loaded = settings.load(read(FOLDER / "minimal.yaml"))
    assert loaded.backup == settings.BackupSettings()
    assert loaded.postgres.pooler == settings.PoolerSettings()
    assert loaded.network.dhcp_range is None
    assert loaded.kubernetes.helm_repository is None
    assert dict(loaded.kubernetes.registry_mirrors) == {}
    assert loaded.protect_data is True
    assert loaded.policy_waivers == ()


def test_a_configuration_with_every_key_set_is_valid() -> None:
    loaded = settings.load(read(FOLDER / "complete.yaml"))
    assert loaded.network.service_pool == AddressRange.parse("172.20.1.0-172.20.1.255")
    assert dict(loaded.postgres.parameters) == {
        "max_connections": "400",
        "shared_buffers": "2GB",
        "jit": "off",
        "random_page_cost": "1.1",
        "auto_explain.log_min_duration": "1s",
    }
    assert loaded.postgres.application_database == ("firmendaten", "bauer")
    assert loaded.protect_data is False
    assert [(waiver.resource, waiver.until.isoformat()) for waiver in loaded.policy_waivers] == [
        ("stack", "2027-04-30"),
        ("s1-container", "2028-02-29"),
        ("*", "2027-12-31"),
    ]


def test_a_waiver_that_is_over_is_no_fault_of_the_configuration() -> None:
    waiver = {
        "policy": "lxc-unprivileged",
        "resource": "stack",
        "reason": "It was needed only once.",
        "until": "2001-01-01",
    }
    assert faults_of({**school(), "policyWaivers": [waiver]}) == ()


def keys_of(model: type[BaseModel], value: Any) -> Iterator[tuple[str, Any]]:
    """Every field of the model and those inside it, with what the file has for it."""
    for name, field in model.model_fields.items():
        content = value.get(field.alias) if isinstance(value, dict) else None
        yield f"{model.__name__}.{name}", content
        inner = inner_type(field.annotation)
        inner = next((item for item in getattr(inner, "__args__", ()) if isinstance(item, type)), inner)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            for item in content if isinstance(content, list) else [content]:
                yield from keys_of(inner, item)


def test_the_complete_configuration_leaves_no_key_out() -> None:
    unset = [key for key, value in keys_of(settings.Settings, read(FOLDER / "complete.yaml")) if value is None]
    assert unset == []


def test_settings_cannot_be_changed_after_loading() -> None:
    loaded = settings.load(school())
    with pytest.raises(ValidationError):
        loaded.protect_data = False


def test_everything_on_one_proxmox_host_is_allowed_with_a_warning() -> None:
    loaded = settings.load(changed(school(), {f"machines[{index}].proxmoxHost": "pve1" for index in range(6)}))
    assert [warning.split(" are on")[0] for warning in loaded.warnings()] == [
        "All K3s servers",
        "All API balancers",
        "All K3s machines",
    ]


def test_an_unchecked_certificate_is_allowed_with_a_warning() -> None:
    (warning,) = settings.load(changed(school(), {"proxmox.insecureTls": True})).warnings()
    assert warning.startswith("proxmox.insecureTls is true, so that anybody in the network can pretend to be Proxmox")


def test_the_example_keys_of_the_repository_are_named_as_such() -> None:
    sentences = settings.load(school()).placeholders()
    assert [sentence.split(" is still")[0] for sentence in sentences] == [
        "proxmox.hosts[0].sshHostKey (pve1)",
        "proxmox.hosts[1].sshHostKey (pve2)",
        "proxmox.hosts[2].sshHostKey (pve3)",
    ]
    assert settings.load(read(FOLDER / "minimal.yaml")).placeholders() == ()


@pytest.mark.parametrize(
    "schedule",
    [
        "0 2 * * *",
        "*/5 * * * *",
        "0 0-23/2 1,15 JAN-mar 1-5",
        "59 23 31 12 6",
        "0 2 29 * *",
        "0 2 31 2,3 *",
        "0 2 20/10 2 */1",
        # With a day of the week, the day of the month need not come.
        "0 2 31 2 mon",
        "0 2 31 2 */2",
    ],
)
def test_schedules_that_come_every_year_are_accepted(schedule: str) -> None:
    assert faults_of(changed(school(), {"backup.schedule": schedule})) == ()


# --- secrets


@pytest.mark.parametrize("path", [key for key, _ in [*school().items()]])
def test_a_secret_in_the_place_of_a_topic_is_never_shown(path: str) -> None:
    faults = faults_of(changed(school(), {path: SECRET}))
    assert faults
    assert all("8d3f8a52" not in fault for fault in faults)
    assert any(fault.startswith(path) for fault in faults)


def leaves(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}[{index}]")
    else:
        yield path


@pytest.mark.parametrize("path", list(leaves(school())))
def test_a_secret_in_the_place_of_any_value_is_refused_by_its_place_and_never_shown(path: str) -> None:
    faults = faults_of(changed(school(), {path: SECRET}))
    if path.startswith("postgres.parameters"):
        assert faults
    assert any(fault.startswith(path.split("[")[0]) for fault in faults), faults
    assert all("8d3f8a52" not in fault for fault in faults)


def test_the_machinerys_own_error_hides_what_was_written() -> None:
    with pytest.raises(ValidationError) as caught:
        MachineSettings.model_validate({"name": SECRET, "vmId": SECRET})
    assert "8d3f8a52" not in str(caught.value)


def private_key(encryption: KeySerializationEncryption | None = None) -> str:
    key = Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, encryption or NoEncryption()).decode()


def test_secrets_of_the_right_form_are_accepted() -> None:
    assert settings.check_secrets({"proxmoxApiToken": SECRET, "sshPrivateKey": private_key()}) == ()


def test_a_private_key_without_its_last_line_break_is_accepted() -> None:
    assert settings.check_secrets({"proxmoxApiToken": SECRET, "sshPrivateKey": private_key().rstrip()}) == ()


def test_missing_secrets_are_answered_with_the_command_that_sets_them() -> None:
    token, key = settings.check_secrets({})
    assert token == (
        "proxmoxApiToken is missing; allowed is an API token of the form user@realm!id=uuid: make one in Proxmox "
        "(Datacenter, Permissions, API Tokens) and set it with `pulumi config set --secret proxmoxApiToken`."
    )
    assert key == (
        "sshPrivateKey is missing; allowed is a private key in OpenSSH form without passphrase: make one with "
        "`ssh-keygen -t ed25519 -N '' -f school` and set it with `pulumi config set --secret sshPrivateKey < school`."
    )


def public_key() -> str:
    public = Ed25519PrivateKey.generate().public_key()
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def in_pem() -> str:
    key = Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(public_key(), id="public key"),
        pytest.param("\n".join(private_key().splitlines()[:-2]), id="without its end"),
        pytest.param("\n".join(private_key().splitlines()[1:]), id="without its first line"),
        pytest.param(in_pem(), id="of another form"),
        pytest.param("~/.ssh/school", id="path of a file"),
        pytest.param(private_key().replace("\n", " "), id="on one line"),
    ],
)
def test_a_private_key_that_cannot_be_read_is_refused_without_showing_it(key: str) -> None:
    (fault,) = settings.check_secrets({"proxmoxApiToken": SECRET, "sshPrivateKey": key})
    assert fault.startswith("sshPrivateKey cannot be used (it is not shown); allowed is a private key in OpenSSH form")
    assert all(line not in fault for line in key.splitlines() if line != "~/.ssh/school")


@pytest.mark.parametrize(
    "token",
    [
        pytest.param(SECRET[:-1], id="without its last digit"),
        pytest.param(SECRET.partition("=")[2], id="the secret alone"),
        pytest.param(SECRET.partition("=")[0], id="the name alone"),
        pytest.param(f"PVEAPIToken={SECRET}", id="as a header of HTTP"),
        pytest.param(SECRET.replace("!", ":"), id="with another separator"),
    ],
)
def test_an_api_token_that_cannot_be_one_is_refused_without_showing_it(token: str) -> None:
    (fault,) = settings.check_secrets({"proxmoxApiToken": token, "sshPrivateKey": private_key()})
    assert fault.startswith("proxmoxApiToken cannot be used (it is not shown); allowed is an API token of the form")
    assert token not in fault


def test_secrets_that_cannot_be_used_are_refused_without_showing_them() -> None:
    encrypted = private_key(BestAvailableEncryption(b"geheim"))
    faults = settings.check_secrets({"proxmoxApiToken": "hunter2-hunter2", "sshPrivateKey": encrypted})
    assert [fault.split(";")[0] for fault in faults] == [
        "proxmoxApiToken cannot be used (it is not shown)",
        "sshPrivateKey cannot be used (it is not shown)",
    ]
    assert "hunter2" not in "".join(faults)
    assert encrypted.splitlines()[1] not in "".join(faults)


# --- as the program reads it


def as_pulumi(config: Mapping[str, Any]) -> dict[str, str]:
    """The configuration as the engine hands it to the program: every value a text."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in config.items()}
    return {f"school-postgres:{key}": value for key, value in texts.items()}


@pytest.fixture
def run_with(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Sets the configuration of a program run; ``preview`` says which kind of run it is."""
    before = pulumi.runtime.config.CONFIG.get()

    def start(config: Mapping[str, Any], *, preview: bool = True) -> pulumi.Config:
        monkeypatch.setattr(pulumi.runtime, "is_dry_run", lambda: preview)
        pulumi.runtime.set_all_config(as_pulumi(config), ["school-postgres:proxmoxApiToken"])
        return pulumi.Config("school-postgres")

    yield start
    pulumi.runtime.set_all_config(before)


def with_secrets(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**config, "proxmoxApiToken": SECRET, "sshPrivateKey": private_key()}


def test_the_program_reads_the_same_settings_that_the_file_has(run_with: Any) -> None:
    assert settings.from_pulumi(run_with(with_secrets(school()))) == settings.load(school())


def test_the_program_refuses_a_misspelt_topic(run_with: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        settings.from_pulumi(run_with(with_secrets({**school(), "backups": {}})))
    assert caught.value.faults == ("backups is not a known key; did you mean backup?",)


def test_the_program_refuses_a_text_where_a_map_belongs(run_with: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        settings.from_pulumi(run_with(with_secrets({**school(), "backup": "every night"})))
    assert caught.value.faults == (
        'backup is "every night"; allowed is a map with the keys schedule, timeZone, keepDays, share: '
        "see docs/configuration.md.",
    )


def test_the_program_lists_faults_of_secrets_with_all_others(run_with: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        settings.from_pulumi(run_with(changed(school(), {"backup.keepDays": 0})))
    assert [fault.split(" ")[0] for fault in caught.value.faults] == [
        "backup.keepDays",
        "proxmoxApiToken",
        "sshPrivateKey",
    ]


def test_example_values_are_enough_for_a_preview_and_not_for_more(run_with: Any) -> None:
    settings.from_pulumi(run_with(with_secrets(school())))
    with pytest.raises(SettingsError) as caught:
        settings.from_pulumi(run_with(with_secrets(school()), preview=False))
    assert all("is still the example of this repository" in fault for fault in caught.value.faults)


# --- address ranges


def test_an_address_range_knows_its_members() -> None:
    span = AddressRange.parse("10.0.145.130-10.0.145.149")
    assert IPv4Address("10.0.145.130") in span
    assert IPv4Address("10.0.145.149") in span
    assert IPv4Address("10.0.145.150") not in span
    assert str(span) == "10.0.145.130-10.0.145.149"


@pytest.mark.parametrize(
    ("other", "overlap"),
    [("10.0.0.1-10.0.0.9", False), ("10.0.0.1-10.0.0.10", True), ("10.0.0.20-10.0.0.30", True)],
)
def test_address_ranges_overlap_when_they_share_an_address(other: str, overlap: bool) -> None:
    assert AddressRange.parse("10.0.0.10-10.0.0.20").overlaps(AddressRange.parse(other)) is overlap


# --- what is written elsewhere


def test_pulumi_yaml_declares_every_key_and_marks_the_secrets() -> None:
    declared = read(REPOSITORY / "Pulumi.yaml")["config"]
    topics = [str(field.alias) for field in settings.Settings.model_fields.values()]
    assert list(declared) == [*topics, *settings.SECRET_KEYS]
    assert [key for key, entry in declared.items() if entry.get("secret")] == list(settings.SECRET_KEYS)
    assert all(entry["type"] in ("object", "array", "boolean", "string") for entry in declared.values())
    assert all(entry["description"] for entry in declared.values())


def test_the_defaults_of_pulumi_yaml_are_those_of_the_settings() -> None:
    declared = read(REPOSITORY / "Pulumi.yaml")["config"]
    assert settings.BackupSettings.model_validate(declared["backup"]["default"]) == settings.BackupSettings()
    assert declared["protectData"]["default"] is settings.Settings.model_fields["protect_data"].default
    assert tuple(declared["policyWaivers"]["default"]) == settings.Settings.model_fields["policy_waivers"].default
    optional = [str(field.alias) for field in settings.Settings.model_fields.values() if not field.is_required()]
    assert [key for key, entry in declared.items() if "default" in entry] == optional


@pytest.mark.parametrize("file", CONTENTS, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_what_is_made_from_the_fields_is_up_to_date(file: Path) -> None:
    assert file.read_text(encoding="utf-8") == CONTENTS[file], "run `python -m settings`"


def test_a_row_of_the_reference_that_is_out_of_date_is_replaced() -> None:
    page = (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8")
    row = settings.reference()["backup"][0]
    assert rewritten(page.replace(row, "| `schedule` | anything |")) == page
    assert rewritten(page.replace(f"{row}\n", "")) == page


def test_a_table_without_its_heading_is_an_error() -> None:
    page = (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="backups belongs to no key"):
        rewritten(page.replace("`backup`\n\nThe five", "`backups`\n\nThe five"))
    with pytest.raises(ValueError, match=r"no table for policyWaivers\[\]"):
        rewritten(page.partition("## Each waiver")[0])
