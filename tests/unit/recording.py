"""Runs the program without an engine and records every request it makes, so that a test can look at all of it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pulumi
import pulumi.runtime.mocks
import yaml
from google.protobuf import json_format

ROOT = Path(__file__).resolve().parents[2]
SECRET_SIGNATURE = "4dabf18193072939515e22adb298388d"
SECRET_MARK = "1b47061264138c4ac30d75fd1eb44270"
MACHINE_STDOUT = "stdout of a script"


class ProgramMocks(pulumi.runtime.Mocks):
    """Gives every resource an id and the outputs that others use."""

    def __init__(self, unknown_types: frozenset[str] = frozenset()) -> None:
        self._unknown_types = unknown_types

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str, dict[str, Any]]:
        outputs = dict(args.inputs)
        if args.typ == "random:index/randomPassword:RandomPassword":
            outputs["result"] = f"secret-of-{args.name}"
        if args.typ == "command:remote:Command":
            unknown = args.typ in self._unknown_types
            outputs["stdout"] = pulumi.runtime.rpc.UNKNOWN if unknown else MACHINE_STDOUT
        return f"{args.name}-id", outputs

    def call(self, args: pulumi.runtime.MockCallArgs) -> dict[str, Any]:
        raise AssertionError(f"the program called {args.token}; it should need no function of a provider")


@dataclass(frozen=True, kw_only=True, slots=True)
class Registered:
    """One resource as the program asked for it."""

    type: str
    name: str
    custom: bool
    inputs: Mapping[str, Any]
    request: Any = field(repr=False)

    @property
    def parent_type(self) -> str:
        """Type of the parent, empty when the parent is the stack."""
        return str(self.request.parent).split("::")[-2].split("$")[-1] if self.request.parent else ""


class RecordingMonitor(pulumi.runtime.mocks.MockMonitor):
    """A mock engine that keeps every request."""

    def __init__(self, mocks: pulumi.runtime.Mocks) -> None:
        super().__init__(mocks)
        self.requests: list[Any] = []
        self.registered_outputs: dict[str, Any] = {}

    def RegisterResource(self, request: Any) -> Any:
        self.requests.append(request)
        return super().RegisterResource(request)

    def RegisterResourceOutputs(self, request: Any) -> Any:
        self.registered_outputs[request.urn] = json_format.MessageToDict(request.outputs)
        return super().RegisterResourceOutputs(request)

    def registered(self) -> list[Registered]:
        """Everything that was registered, the stack itself left out."""
        return [
            Registered(
                type=request.type,
                name=request.name,
                custom=request.custom,
                inputs=json_format.MessageToDict(request.object),
                request=request,
            )
            for request in self.requests
            if request.type != "pulumi:pulumi:Stack"
        ]

    def of_type(self, type_: str) -> list[Registered]:
        """All resources of one type token."""
        return [resource for resource in self.registered() if resource.type == type_]

    def named(self, name: str) -> Registered:
        """The one resource of this name."""
        (found,) = [resource for resource in self.registered() if resource.name == name]
        return found


def stack_configuration(file: Path, **topics: Any) -> dict[str, str]:
    """The configuration of a stack file as the engine hands it to the program; ``topics`` replace whole keys."""
    configuration = dict(yaml.safe_load(file.read_text(encoding="utf-8"))["config"])
    configuration |= {f"school-postgres:{key}": value for key, value in topics.items()}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in configuration.items()}


def run_program(configuration: Mapping[str, str], *, preview: bool = False, stack: str = "school") -> RecordingMonitor:
    """Run ``__main__.py`` against a recording engine and give back what it recorded.

    ``preview`` makes the output of every script unknown, as it is before the first ``up``.
    """
    unknown = frozenset({"command:remote:Command"}) if preview else frozenset()
    mocks = ProgramMocks(unknown)
    monitor = RecordingMonitor(mocks)
    pulumi.runtime.set_mocks(mocks, project="school-postgres", stack=stack, preview=preview, monitor=monitor)
    pulumi.runtime.set_all_config(dict(configuration), secret_keys=["school-postgres:sshPrivateKey", "school-postgres:proxmoxApiToken"])

    spec = importlib.util.spec_from_file_location("school_program", ROOT / "__main__.py")
    assert spec is not None
    assert spec.loader is not None
    loader, module = spec.loader, importlib.util.module_from_spec(spec)

    @pulumi.runtime.test
    def program() -> None:
        loader.exec_module(module)

    program()
    return monitor


def secrets_of(value: Any) -> Iterator[Any]:
    """Every value below ``value`` that travels as a secret."""
    if isinstance(value, Mapping):
        if value.get(SECRET_SIGNATURE) == SECRET_MARK:
            yield value.get("value")
            return
        for item in value.values():
            yield from secrets_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from secrets_of(item)


def is_secret(value: Any) -> bool:
    """Whether a recorded value travels as a secret."""
    return isinstance(value, Mapping) and value.get(SECRET_SIGNATURE) == SECRET_MARK
