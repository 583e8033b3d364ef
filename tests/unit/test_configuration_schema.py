"""What an editor that knows docs/configuration.schema.json says about a stack file."""

from __future__ import annotations

import json
import re
import zoneinfo
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jsonschema import Draft7Validator

import settings
from settings.base import alias
from settings.reference import models_in
from tests.configurations.files import FOLDER, INVALID, REPOSITORY, changed, read, school

pytestmark = pytest.mark.unit

SCHEMA: dict[str, Any] = json.loads((REPOSITORY / "docs" / "configuration.schema.json").read_text(encoding="utf-8"))
VALIDATOR = Draft7Validator(SCHEMA)
SECURE = {"secure": "v1:AbCdEf0123456789:abcdefghijklmnop"}


def stack(topics: Mapping[str, Any], **top: Any) -> Any:
    """A stack file with the topics, as an editor reads it: a day is text, and so is every key."""
    content = {"config": {f"{settings.NAMESPACE}:{key}": value for key, value in topics.items()}, **top}
    return json.loads(json.dumps(content, default=str))


def marked(content: Any) -> list[str]:
    """Where the schema finds something wrong."""
    return sorted(error.json_path for error in VALIDATOR.iter_errors(content))


def test_the_schema_is_one() -> None:
    Draft7Validator.check_schema(SCHEMA)


def test_the_schools_stack_file_names_the_schema_and_is_valid() -> None:
    text = (REPOSITORY / "Pulumi.school.yaml").read_text(encoding="utf-8")
    named = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", text.splitlines()[0])
    assert named is not None
    assert json.loads((REPOSITORY / named[1]).read_text(encoding="utf-8")) == SCHEMA
    assert marked(read(REPOSITORY / "Pulumi.school.yaml")) == []


@pytest.mark.parametrize("name", ["complete.yaml", "minimal.yaml"])
def test_configurations_that_the_program_accepts_are_valid(name: str) -> None:
    assert marked(stack(read(FOLDER / name))) == []


@pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in INVALID])
def test_an_editor_marks_what_the_program_refuses(case: dict[str, Any]) -> None:
    assert bool(marked(stack(changed(school(), case["change"])))) is (case.get("editor") != "cannot tell")


def test_an_editor_marks_three_of_four_faults() -> None:
    told = [case["name"] for case in INVALID if "editor" not in case]
    assert len(told) >= 215
    assert len(told) / len(INVALID) > 0.75


def test_every_fault_of_a_file_is_marked_where_it_is() -> None:
    content = stack(changed(school(), {"machines[2].memoryMiB": "4GiB", "postgres.storage.size": 1, "backups": {}}))
    assert marked(content) == [
        "$.config",
        "$.config['school-postgres:machines'][2].memoryMiB",
        "$.config['school-postgres:postgres'].storage",
    ]


# --- the file around the topics


def test_what_pulumi_writes_itself_is_valid() -> None:
    secrets = dict.fromkeys(settings.SECRET_KEYS, SECURE)
    content = stack({**school(), **secrets, "protectData": "true"}, encryptionsalt="v1:abc=:v1:def:ghi==")
    assert marked(content) == []
    assert marked({**content, "secretsprovider": "passphrase", "encryptedkey": "abc", "environment": ["school"]}) == []


def test_keys_of_other_namespaces_are_left_to_their_providers() -> None:
    content = stack(school())
    content["config"] |= {"proxmoxve:endpoint": "x", "pulumi:disable-default-providers": ["*"], "other:a": SECURE}
    assert marked(content) == []


def test_a_key_of_our_namespace_that_does_not_exist_is_marked() -> None:
    for key in ("networks", "Network", "sshKey", "protectdata", "network "):
        assert marked(stack({**school(), key: {}})) == ["$.config"]


def test_a_key_without_a_namespace_is_marked() -> None:
    content = stack(school())
    content["config"]["network"] = content["config"].pop("school-postgres:network")
    assert marked(content) == ["$.config", "$.config"]


def test_a_secret_that_is_not_encrypted_is_marked() -> None:
    for key in settings.SECRET_KEYS:
        assert marked(stack({**school(), key: "in plain sight"})) == [f"$.config['school-postgres:{key}']"]
        assert marked(stack({**school(), key: {"secure": ""}})) == [f"$.config['school-postgres:{key}'].secure"]


def test_a_misspelt_key_around_the_topics_is_marked() -> None:
    assert marked({"Config": {}}) == ["$", "$"]


# --- what an editor shows


def nodes(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema of a value inside this one, with its path."""
    for key, node in schema.get("properties", {}).items():
        yield f"{path}.{key}", node
        yield from nodes(node, f"{path}.{key}")
    for inner in ("items", "additionalProperties"):
        if isinstance(schema.get(inner), dict):
            yield f"{path}.{inner}", schema[inner]
            yield from nodes(schema[inner], f"{path}.{inner}")


TOPICS: dict[str, Any] = SCHEMA["properties"]["config"]["properties"]
VALUES = dict(nodes({"properties": TOPICS}))


def test_every_field_has_a_title_and_says_what_it_means_and_what_is_allowed() -> None:
    for path, model in models_in(settings.Settings):
        for name, field in model.model_fields.items():
            key = f"{path}.{alias(name)}" if path else f"{settings.NAMESPACE}:{alias(name)}"
            (node,) = (node for node in VALUES.values() if node.get("title") == key)
            assert node["description"].startswith(field.description), key
    for path, node in VALUES.items():
        assert node["description"], path
        if "properties" not in node and not path.endswith(".secure"):
            assert node["errorMessage"].startswith("Allowed is "), path


def test_defaults_in_the_schema_are_those_of_the_settings() -> None:
    least = settings.load(read(FOLDER / "minimal.yaml"))
    assert TOPICS["school-postgres:backup"]["default"] == least.backup.model_dump(mode="json", by_alias=True)
    assert TOPICS["school-postgres:protectData"]["default"] is True
    assert TOPICS["school-postgres:policyWaivers"]["default"] == []
    assert VALUES[".school-postgres:postgres.instances"]["default"] == 3
    assert all(node["default"] is not None for node in VALUES.values() if "default" in node)


def test_bounds_and_choices_are_in_the_schema() -> None:
    memory = VALUES[".school-postgres:machines.items.memoryMiB"]
    assert (memory["type"], memory["minimum"], memory["maximum"]) == ("integer", 256, 4 * 1024 * 1024)
    assert VALUES[".school-postgres:machines.items.roles.items"]["enum"] == list(settings.Role)
    assert VALUES[".school-postgres:postgres.version"]["enum"] == ["13", "14", "15", "16", "17"]


def test_every_example_is_valid() -> None:
    examples = [(path, node, example) for path, node in VALUES.items() for example in node.get("examples", ())]
    assert len(examples) >= 40
    for path, node, example in examples:
        assert Draft7Validator(node).is_valid(example), path


def test_every_default_is_valid() -> None:
    for path, node in VALUES.items():
        if "default" in node:
            assert Draft7Validator(node).is_valid(node["default"]), path


# --- a schema that refused what the program accepts would be worse than none


@pytest.mark.parametrize(
    "schedule",
    ["0 2 * * *", "*/5 * * * *", "0 0-23/2 1,15 JAN-mar 1-5", "59 23 31 12 6", "007 02 1-7 */2 sun", " 0  2 * * * "],
)
def test_schedules_that_the_program_accepts_are_valid(schedule: str) -> None:
    topics = changed(school(), {"backup.schedule": schedule})
    settings.load(topics)
    assert marked(stack(topics)) == []


def test_every_time_zone_that_the_program_accepts_is_valid() -> None:
    pattern = VALUES[".school-postgres:backup.timeZone"]["pattern"]
    zones = zoneinfo.available_timezones() - {"localtime", "Factory"}
    assert [zone for zone in sorted(zones) if not re.search(pattern, zone)] == []


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(ed25519.Ed25519PrivateKey.generate(), id="ed25519"),
        pytest.param(ec.generate_private_key(ec.SECP256R1()), id="nistp256"),
        pytest.param(ec.generate_private_key(ec.SECP521R1()), id="nistp521"),
        pytest.param(rsa.generate_private_key(65537, 3072), id="rsa"),
    ],
)
@pytest.mark.parametrize("comment", ["", " root@pve1"])
def test_host_keys_that_the_program_accepts_are_valid(key: Any, comment: str) -> None:
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    topics = changed(school(), {"proxmox.hosts[0].sshHostKey": public + comment})
    settings.load(topics)
    assert marked(stack(topics)) == []
