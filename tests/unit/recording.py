"""Runs the program without an engine and records every request it makes, so that a test can look at all of it."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pulumi
import pulumi.runtime.mocks
import yaml
from google.protobuf import json_format
from pulumi.runtime.settings import get_root_resource
from pulumi.runtime.stack import Stack

ROOT = Path(__file__).resolve().parents[2]
SECRET_SIGNATURE = "4dabf18193072939515e22adb298388d"
SECRET_MARK = "1b47061264138c4ac30d75fd1eb44270"
UNKNOWN = pulumi.runtime.rpc.UNKNOWN

API_TOKEN = "school@pve!pulumi=11111111-2222-3333-4444-555555555555"
"""The Proxmox token that the recorded runs are given."""

COMMAND = "command:remote:Command"
CONTAINER = "proxmoxve:index/containerLegacy:ContainerLegacy"
DOWNLOAD = "proxmoxve:download/file:File"
PASSWORD = "random:index/randomPassword:RandomPassword"

_ASSIGNMENT = re.compile(r"([a-z][a-z0-9_]*)='((?:[^']|'\\'')*)'\n")


class ProgramMocks(pulumi.runtime.Mocks):
    """Gives every resource an id and the outputs that others use."""

    def __init__(self, *, scripts_known: bool) -> None:
        self._scripts_known = scripts_known

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str, dict[str, Any]]:
        outputs = dict(args.inputs)
        if args.typ == PASSWORD:
            outputs["result"] = secret_of(args.name)
        if args.typ == COMMAND:
            outputs["stdout"] = stdout_of(args.name) if self._scripts_known else UNKNOWN
        return f"{args.name}-id", outputs

    def call(self, args: pulumi.runtime.MockCallArgs) -> tuple[dict[str, Any], list[tuple[str, str]] | None]:
        raise AssertionError(f"the program called {args.token}; it should need no function of a provider")


def secret_of(name: str) -> str:
    """The password that the random resource of this name makes."""
    return f"secret-of-{name}"


def stdout_of(name: str) -> str:
    """What the script of the command of this name prints."""
    return f"stdout-of-{name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Registered:
    """One resource as the program asked for it."""

    urn: str
    type: str
    name: str
    custom: bool
    inputs: Mapping[str, Any]
    """Inputs as they travel: a secret is wrapped (see :func:`is_secret`), a number is a float."""
    request: Any = field(repr=False)
    """The request itself, for the resource options."""

    @property
    def clear(self) -> Any:
        """The inputs with every secret unwrapped."""
        return unwrapped(self.inputs)

    @property
    def plain(self) -> Any:
        """The inputs with every secret left out: what state, logs and previews show to everybody."""
        return unwrapped(self.inputs, secrets=False)

    @property
    def timeouts(self) -> Mapping[str, str]:
        """The custom timeouts that were set: operation to duration."""
        limits = self.request.customTimeouts
        return {kind: getattr(limits, kind) for kind in ("create", "update", "delete") if getattr(limits, kind)}

    @property
    def variables(self) -> dict[str, str]:
        """The shell variables in front of a command's script."""
        return variables_of(str(self.clear["stdin"]))

    @property
    def script(self) -> str:
        """File name of a command's script in ``components/hosts``."""
        return str(self.clear["create"]).split()[-2] + ".sh"


class RecordingMonitor(pulumi.runtime.mocks.MockMonitor):
    """A mock engine that keeps every request."""

    def __init__(self, mocks: pulumi.runtime.Mocks) -> None:
        super().__init__(mocks)
        self._recorded: dict[str, Registered] = {}
        self.registered_outputs: dict[str, Any] = {}
        """URN to the outputs that were registered, secrets still wrapped."""

    def RegisterResource(self, request: Any) -> Any:
        response = super().RegisterResource(request)  # type: ignore[no-untyped-call]
        if response.urn in self._recorded:
            raise AssertionError(f"{request.type} {request.name} is registered twice")
        self._recorded[response.urn] = Registered(
            urn=response.urn,
            type=request.type,
            name=request.name,
            custom=request.custom,
            inputs=json_format.MessageToDict(request.object),
            request=request,
        )
        return response

    def RegisterResourceOutputs(self, request: Any) -> Any:
        if self.registered_outputs.get(request.urn):
            raise AssertionError(f"the outputs of {request.urn} are registered twice")
        self.registered_outputs[request.urn] = json_format.MessageToDict(request.outputs)
        return super().RegisterResourceOutputs(request)  # type: ignore[no-untyped-call]

    def registered(self) -> list[Registered]:
        """Everything that was registered, the stack itself left out."""
        return [resource for resource in self._recorded.values() if resource.type != "pulumi:pulumi:Stack"]

    def of_type(self, type_: str) -> list[Registered]:
        """All resources of one type token; at least one, so that no test passes because there is nothing to look at."""
        found = [resource for resource in self.registered() if resource.type == type_]
        assert found, f"the program makes no {type_}"
        return found

    def named(self, name: str) -> Registered:
        """The one resource of this name."""
        (found,) = [resource for resource in self.registered() if resource.name == name]
        return found

    def by_urn(self, urn: str) -> Registered:
        """The resource of this URN."""
        return self._recorded[urn]

    def parent(self, resource: Registered) -> Registered:
        """The parent of a resource; for one without, the stack."""
        return self._recorded[resource.request.parent]

    def lineage(self, resource: Registered) -> Iterator[Registered]:
        """The resource, its parent and so on, without the stack."""
        while resource.type != "pulumi:pulumi:Stack":
            yield resource
            resource = self.parent(resource)

    def deleted_with(self, resource: Registered) -> Registered | None:
        """What a resource goes with; the engine lets children inherit it from their parents."""
        for ancestor in self.lineage(resource):
            if ancestor.request.deletedWith:
                return self.by_urn(ancestor.request.deletedWith)
        return None

    def waits_for(self, resource: Registered, other: Registered) -> bool:
        """Whether ``resource`` is made only after ``other``, directly or through others."""
        seen: set[str] = set()
        todo = list(resource.request.dependencies)
        while todo:
            urn = todo.pop()
            if urn not in seen:
                seen.add(urn)
                todo += self._recorded[urn].request.dependencies
        return other.urn in seen

    def outputs_of_stack(self) -> Mapping[str, Any]:
        """What the program exports."""
        (outputs,) = [outputs for urn, outputs in self.registered_outputs.items() if "::pulumi:pulumi:Stack::" in urn]
        found: Mapping[str, Any] = outputs
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
    mocks = ProgramMocks(scripts_known=not preview)
    monitor = RecordingMonitor(mocks)
    pulumi.runtime.set_mocks(mocks, project="school-postgres", stack=stack, preview=preview, monitor=monitor)
    secrets = ["school-postgres:sshPrivateKey", "school-postgres:proxmoxApiToken"]

    spec = importlib.util.spec_from_file_location("school_program", ROOT / "__main__.py")
    assert spec is not None
    assert spec.loader is not None
    loader, module = spec.loader, importlib.util.module_from_spec(spec)

    @pulumi.runtime.test  # type: ignore[untyped-decorator]
    def program() -> None:
        loader.exec_module(module)
        # The engine's own host does this at the end of a run; the stack of the mocks was finished before it began.
        root = get_root_resource()
        assert isinstance(root, Stack)
        root.register_outputs(root.outputs)

    pulumi.runtime.set_all_config(dict(configuration), secret_keys=secrets)
    try:
        program()
    finally:
        pulumi.runtime.set_all_config({})
    return monitor


def is_secret(value: Any) -> bool:
    """Whether a recorded value travels as a secret."""
    return isinstance(value, Mapping) and value.get(SECRET_SIGNATURE) == SECRET_MARK


def unwrapped(value: Any, *, secrets: bool = True) -> Any:
    """A recorded value without the wrapping of secrets; ``secrets=False`` puts nothing in their place."""
    if is_secret(value):
        return unwrapped(value.get("value")) if secrets else None
    if isinstance(value, Mapping):
        return {key: unwrapped(item, secrets=secrets) for key, item in value.items()}
    if isinstance(value, list):
        return [unwrapped(item, secrets=secrets) for item in value]
    return value


def texts(value: Any) -> Iterator[str]:
    """Every text in a recorded value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)


def variables_of(stdin: str) -> dict[str, str]:
    """The assignments that stand in front of a composed script."""
    found: dict[str, str] = {}
    position = 0
    while match := _ASSIGNMENT.match(stdin, position):
        found[match[1]] = match[2].replace("'\\''", "'")
        position = match.end()
    assert stdin.startswith("{\n", position), "behind the variables the script must begin"
    return found
