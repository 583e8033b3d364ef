"""The common base of the lab's resource providers: a provider plugin of the engine, written as plain Python.

A stand-in defines one :class:`Resource` subclass per type and starts with::

    class ConfigMap(Resource):
        inputs_class = "pulumi_kubernetes.core.v1:ConfigMapInitArgs"
        replace_on = ("metadata.name",)
        computed_outputs = ("status",)

        def create(self, call: Call, inputs: Values) -> tuple[str, Values]: ...

    class Kubernetes(Provider):
        def configure(self, config: Values) -> None: ...

    def main() -> None:
        serve(Kubernetes("kubernetes", {"kubernetes:core/v1:ConfigMap": ConfigMap()}, package="pulumi_kubernetes"))

The plugin's executable runs ``main`` (:mod:`lab.engine.launchers`), in a fork of a process that is warm already
(:mod:`lab.engine.warm`); a module's ``SDK_MODULES`` are loaded before.

What a resource sees are plain Python values (dict, list, str, float, bool, None) under their wire names (camelCase):
secrets are taken off before and put back after a call (an output is secret where the input at the same path was, where
``secret_outputs`` names it, or where :meth:`Resource.extra_secret_outputs` does). Whole numbers arrive as ``int``. In a
preview, and only there, a value can be :data:`UNKNOWN`.

To fail, raise :class:`ProviderError` with one sentence; the user sees exactly that sentence.
"""

from __future__ import annotations

import abc
import contextlib
import importlib
import json
import math
import os
import signal
import sys
import threading
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

import grpc
from google.protobuf import any_pb2, empty_pb2, struct_pb2
from pulumi._types import input_type_types, is_input_type
from pulumi.runtime.proto import engine_pb2, engine_pb2_grpc, plugin_pb2, provider_pb2, provider_pb2_grpc, status_pb2

Values = dict[str, Any]
"""A resource's properties: wire name to plain value."""
Path = tuple[str | int, ...]
"""Where a value lies inside :data:`Values`: keys and list positions."""
ChangeKind = Literal["add", "update", "delete"]

SIGNATURE_KEY: Final = "4dabf18193072939515e22adb298388d"
SECRET_SIGNATURE: Final = "1b47061264138c4ac30d75fd1eb44270"
OUTPUT_SIGNATURE: Final = "d0e6a833031e9bbcd3f4e8bde6ca49a4"
UNKNOWN_STRINGS: Final = frozenset(
    {
        "1c4a061d-8072-4f0a-a4cb-0ff528b18fe7",  # bool
        "3eeb2bf0-c639-47a8-9e75-3b44932eb421",  # number
        "04da6b54-80e4-46f7-96ec-b56ff0331ba9",  # string, and of any type
        "6a19a0b0-7e62-4c92-b797-7f8e31da9cc2",  # array
        "030794c1-ac77-496b-92df-f27374a8bd58",  # asset
        "e48ece36-62e2-4504-bad9-02848725956a",  # archive
        "dd056dcd-154b-4c76-9bd3-c8f88648b5ff",  # object
    }
)
UNKNOWN_STRING: Final = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
MAX_MESSAGE_BYTES: Final = 400 << 20
MAX_CONCURRENT_CALLS: Final = 256
PARENT_POLL_SECONDS: Final = 0.5
_ENGINE_KEYS: Final = frozenset({"version", "pluginDownloadURL", "pluginChecksums", "__internal", "__defaults"})
_DEFAULTS_KEY: Final = "__defaults"


class Unknown:
    """Type of :data:`UNKNOWN`, a value that is known only after something else has been created."""

    _instance: Unknown | None = None

    def __new__(cls) -> Unknown:
        if cls._instance is None:
            cls._instance = super().__new__(cls)
        return cls._instance

    def __repr__(self) -> str:
        return "UNKNOWN"

    def __deepcopy__(self, memo: object) -> Unknown:
        return self


UNKNOWN: Final = Unknown()
"""The one value that stands for "not known during this preview"."""


class ProviderError(Exception):
    """An operation failed; the message is one sentence for the user."""


class InputError(ProviderError):
    """An input is wrong. Raised from ``check``; shown with the property's name, never with its value."""

    def __init__(self, property_name: str, reason: str) -> None:
        super().__init__(f"{property_name}: {reason}")
        self.property_name = property_name
        self.reason = reason


class PartialError(ProviderError):
    """The resource exists but its create or update did not finish.

    The engine stores it with ``outputs`` (and ``inputs``, if given) and repeats the operation with the next update.
    """

    def __init__(self, message: str, resource_id: str, outputs: Values, inputs: Values | None = None) -> None:
        super().__init__(message)
        self.resource_id = resource_id
        self.outputs = outputs
        self.inputs = inputs


# --- values on the wire -------------------------------------------------------------------------------------


def contains_unknown(value: Any) -> bool:
    """Whether ``value`` is, or has somewhere inside, :data:`UNKNOWN`."""
    if isinstance(value, Mapping):
        return any(contains_unknown(item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(contains_unknown(item) for item in value)
    return value is UNKNOWN


def decode(properties: struct_pb2.Struct) -> tuple[Values, frozenset[Path]]:
    """The plain values of a message, and the paths of those that are secret."""
    secrets: set[Path] = set()
    values = {key: _decode_value(item, (key,), secrets) for key, item in properties.fields.items()}
    return values, frozenset(secrets)


def _decode_value(value: struct_pb2.Value, path: Path, secrets: set[Path]) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        number = value.number_value
        return int(number) if math.isfinite(number) and number == int(number) else number
    if kind == "string_value":
        return UNKNOWN if value.string_value in UNKNOWN_STRINGS else value.string_value
    if kind == "bool_value":
        return value.bool_value
    if kind == "list_value":
        return [_decode_value(item, (*path, index), secrets) for index, item in enumerate(value.list_value.values)]
    if kind == "struct_value":
        fields = value.struct_value.fields
        signature = fields[SIGNATURE_KEY].string_value if SIGNATURE_KEY in fields else ""
        if signature == SECRET_SIGNATURE:
            secrets.add(path)
            return _decode_value(fields["value"], path, secrets)
        if signature == OUTPUT_SIGNATURE:
            if "secret" in fields and fields["secret"].bool_value:
                secrets.add(path)
            return _decode_value(fields["value"], path, secrets) if "value" in fields else UNKNOWN
        return {key: _decode_value(item, (*path, key), secrets) for key, item in fields.items()}
    return None


def encode(values: Mapping[str, Any], secrets: frozenset[Path] = frozenset()) -> struct_pb2.Struct:
    """The message of plain ``values``; what lies at one of the paths ``secrets`` goes out as a secret."""
    message = struct_pb2.Struct()
    for key, value in values.items():
        message.fields[key].CopyFrom(_encode_value(value, (key,), secrets))
    return message


def _encode_value(value: Any, path: Path, secrets: frozenset[Path], *, wrapped: bool = False) -> struct_pb2.Value:
    if path in secrets and not wrapped:
        inner = struct_pb2.Struct()
        inner.fields[SIGNATURE_KEY].string_value = SECRET_SIGNATURE
        inner.fields["value"].CopyFrom(_encode_value(value, path, secrets, wrapped=True))
        return struct_pb2.Value(struct_value=inner)
    if value is None:
        return struct_pb2.Value(null_value=struct_pb2.NULL_VALUE)
    if value is UNKNOWN:
        return struct_pb2.Value(string_value=UNKNOWN_STRING)
    if isinstance(value, bool):
        return struct_pb2.Value(bool_value=value)
    if isinstance(value, int | float):
        return struct_pb2.Value(number_value=value)
    if isinstance(value, str):
        return struct_pb2.Value(string_value=value)
    if isinstance(value, Mapping):
        message = struct_pb2.Struct()
        for key, item in value.items():
            message.fields[str(key)].CopyFrom(_encode_value(item, (*path, str(key)), secrets))
        return struct_pb2.Value(struct_value=message)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        items = [_encode_value(item, (*path, index), secrets) for index, item in enumerate(value)]
        return struct_pb2.Value(list_value=struct_pb2.ListValue(values=items))
    raise TypeError(f"a property of type {type(value).__name__} cannot be sent to the engine")


def lookup(values: Any, path: Path | str, default: Any = None) -> Any:
    """What lies at ``path`` (a tuple, or dotted names) inside ``values``; ``default`` where nothing does."""
    for part in path.split(".") if isinstance(path, str) else path:
        is_item = isinstance(values, list) and isinstance(part, int) and 0 <= part < len(values)
        if is_item or (isinstance(values, Mapping) and part in values):
            values = values[part]
        else:
            return default
    return values


_MISSING: Final = object()


def _present(values: Values, path: Path) -> bool:
    return lookup(values, path, _MISSING) is not _MISSING


# --- differences --------------------------------------------------------------------------------------------


def format_path(path: Path) -> str:
    """``path`` as the engine writes property paths: ``a.b[0]["c.d"]``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part and part.replace("_", "a").replace("-", "a").replace("$", "a").isalnum():
            text += f".{part}" if text else part
        else:
            text += f"[{json.dumps(part)}]"
    return text


def structural_diff(old: Any, new: Any, path: Path = ()) -> dict[Path, ChangeKind]:
    """Every leaf that differs between two plain values. ``None`` counts as absent, UNKNOWN as changed."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found: dict[Path, ChangeKind] = {}
        for key in [*old, *(key for key in new if key not in old)]:
            found |= structural_diff(old.get(key), new.get(key), (*path, key))
        return found
    if isinstance(old, list) and isinstance(new, list):
        found = {}
        for index in range(max(len(old), len(new))):
            before = old[index] if index < len(old) else None
            after = new[index] if index < len(new) else None
            found |= structural_diff(before, after, (*path, index))
        return found
    if old is None and new is None:
        return {}
    if old is None:
        return {path: "add"}
    if new is None:
        return {path: "delete"}
    return {path: "update"} if new is UNKNOWN or old is UNKNOWN or old != new else {}


def names_path(pattern: str, path: Path) -> bool:
    """Whether dotted ``pattern`` names ``path``, something above it, or a part of it.

    A list position in the path is matched by ``*`` or by nothing at all: ``mountPoints.*.size`` and
    ``mountPoints.size`` mean the same.
    """
    wanted = [part for part in pattern.split(".") if part != "*"]
    names = [part for part in path if not isinstance(part, int)]
    return names[: len(wanted)] == wanted or wanted[: len(names)] == names


@dataclass
class Diff:
    """What an update would change."""

    changes: dict[Path, ChangeKind] = field(default_factory=dict)
    """The leaves that differ. Empty: nothing to do."""
    replaces: set[Path] = field(default_factory=set)
    """Those of ``changes`` that cannot be made in place."""
    delete_before_replace: bool = False
    """Delete the old one first, whatever the program says."""

    def message(self) -> provider_pb2.DiffResponse:
        """The engine's form of this difference."""
        kinds = provider_pb2.PropertyDiff
        plain = {"add": kinds.ADD, "update": kinds.UPDATE, "delete": kinds.DELETE}
        replacing = {"add": kinds.ADD_REPLACE, "update": kinds.UPDATE_REPLACE, "delete": kinds.DELETE_REPLACE}
        detailed = {
            format_path(path): provider_pb2.PropertyDiff(
                kind=(replacing if path in self.replaces else plain)[kind], inputDiff=True
            )
            for path, kind in self.changes.items()
        }
        some = provider_pb2.DiffResponse.DIFF_SOME if self.changes else provider_pb2.DiffResponse.DIFF_NONE
        return provider_pb2.DiffResponse(
            changes=some,
            diffs=sorted({str(path[0]) for path in self.changes if path}),
            replaces=sorted({format_path(path) for path in self.replaces}),
            detailedDiff=detailed,
            hasDetailedDiff=True,
            deleteBeforeReplace=self.delete_before_replace,
        )


# --- what the provider's Python package knows ---------------------------------------------------------------


def load_class(reference: str) -> type:
    """The class named ``package.module:Class``."""
    module, _, name = reference.partition(":")
    found = getattr(importlib.import_module(module), name)
    if not isinstance(found, type):
        raise TypeError(f"{reference} is not a class")
    return found


def unknown_properties(values: Any, inputs_class: type, path: Path = ()) -> Iterator[tuple[Path, Sequence[str]]]:
    """Paths in ``values`` that ``inputs_class`` (an ``...Args`` class) does not know, each with the names known there.

    Nested ``...Args`` are followed; free-form maps and values of any type are accepted as they are.
    """
    if not isinstance(values, Mapping):
        return
    known = input_type_types(inputs_class)
    for key, value in values.items():
        if key in _ENGINE_KEYS and not path:
            continue
        if key not in known:
            yield (*path, key), sorted(known)
            continue
        for nested, item, place in _nested_inputs(known[key], value, (*path, key)):
            yield from unknown_properties(item, nested, place)


def _nested_inputs(declared: Any, value: Any, path: Path) -> Iterator[tuple[type, Any, Path]]:
    """The ``...Args`` classes inside a declared type, each with the part of ``value`` it describes."""
    origin, arguments = typing.get_origin(declared), typing.get_args(declared)
    if isinstance(declared, type) and origin is None:
        if is_input_type(declared):
            yield declared, value, path
        return
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if isinstance(value, Mapping) and len(arguments) == 2:
            for key, item in value.items():
                yield from _nested_inputs(arguments[1], item, (*path, key))
        return
    if isinstance(origin, type) and issubclass(origin, Sequence):
        if isinstance(value, list) and arguments:
            for index, item in enumerate(value):
                yield from _nested_inputs(arguments[0], item, (*path, index))
        return
    candidates = [found for argument in arguments for found in _nested_inputs(argument, value, path)]
    # A union such as Input[XArgs] or Input[XArgsDict] names the same class once; several classes are not told apart.
    yield from candidates[:1]


# --- resources ----------------------------------------------------------------------------------------------


class Call:
    """One operation the engine asked for: what it is about, and the way to report on it."""

    def __init__(self, provider: Provider, urn: str, *, preview: bool = False, timeout_seconds: float = 0.0) -> None:
        self.provider = provider
        """The provider; its ``configure`` has run."""
        self.urn = urn
        """Full name of the resource inside the stack."""
        self.preview = preview
        """Whether this is only a look ahead: change nothing."""
        self.timeout_seconds = timeout_seconds or None
        """The program's ``custom_timeouts`` for this operation in seconds; ``None`` where it has none."""

    @property
    def type(self) -> str:
        """Type token of the resource, ``command:remote:Command``."""
        return self.urn.split("::")[2].split("$")[-1] if self.urn.count("::") >= 3 else ""

    @property
    def name(self) -> str:
        """The resource's name in the program."""
        return self.urn.split("::", 3)[3] if self.urn.count("::") >= 3 else self.urn

    @property
    def cancelled(self) -> threading.Event:
        """Set when the user has interrupted the engine: stop soon and raise :class:`ProviderError`."""
        return self.provider.cancelled

    def sleep(self, seconds: float) -> None:
        """Wait ``seconds``; raises :class:`ProviderError` at once when the user interrupts."""
        if self.cancelled.wait(seconds):
            raise ProviderError("interrupted")

    def info(self, message: str) -> None:
        """A line in the engine's output below this resource."""
        self.provider.log(engine_pb2.INFO, message, self.urn)

    def debug(self, message: str) -> None:
        """A line shown only with ``--debug``."""
        self.provider.log(engine_pb2.DEBUG, message, self.urn)

    def warn(self, message: str) -> None:
        """A warning below this resource."""
        self.provider.log(engine_pb2.WARNING, message, self.urn)

    def status(self, message: str) -> None:
        """A passing remark in the engine's live display; it is not kept."""
        self.provider.log(engine_pb2.INFO, message, self.urn, ephemeral=True)


class Resource(abc.ABC):
    """One resource type. Subclasses override what their type needs; all values are plain and under wire names."""

    inputs_class: str = ""
    """``package.module:ClassArgs`` whose properties are the only ones accepted; empty accepts everything."""
    replace_on: Sequence[str] = ()
    """Dotted wire names of inputs whose change replaces the resource (``disk.datastoreId`` names its parts too)."""
    ignore_in_diff: Sequence[str] = ()
    """Dotted wire names of inputs whose change alone is no difference."""
    delete_before_replace: bool = False
    """Whether a replacement deletes the old one first even if the program does not ask for it."""
    computed_outputs: Sequence[str] = ()
    """Outputs that are not inputs; unknown while a preview creates the resource."""
    secret_outputs: Sequence[str] = ()
    """Outputs that are always secret."""

    def check(self, call: Call, inputs: Values, old_inputs: Values | None) -> Values:
        """Inputs as they are stored: validated, with defaults. Raises :class:`InputError`."""
        return inputs

    def diff(self, call: Call, resource_id: str, old_inputs: Values, old_state: Values, inputs: Values) -> Diff:
        """What differs between the stored inputs and the new ones."""
        changes = {
            path: kind
            for path, kind in structural_diff(old_inputs, inputs).items()
            if path[0] != _DEFAULTS_KEY and not any(names_path(pattern, path) for pattern in self.ignore_in_diff)
        }
        replaces = {path for path in changes if any(names_path(pattern, path) for pattern in self.replace_on)}
        return Diff(changes, replaces, self.delete_before_replace and bool(replaces))

    def planned(self, call: Call, inputs: Values, old_state: Values | None) -> Values:
        """Outputs of a previewed create (``old_state`` is ``None``) or update."""
        computed = {name: UNKNOWN if old_state is None else old_state.get(name) for name in self.computed_outputs}
        return inputs | computed

    def extra_secret_outputs(self, inputs: Values, secrets: frozenset[Path]) -> Sequence[str]:
        """Names of further secret outputs, given which inputs are secret."""
        return ()

    @abc.abstractmethod
    def create(self, call: Call, inputs: Values) -> tuple[str, Values]:
        """Make the resource; returns its id and all outputs. Raises :class:`ProviderError`."""

    def read(self, call: Call, resource_id: str, inputs: Values, state: Values) -> tuple[Values, Values] | None:
        """Present ``(inputs, outputs)`` of the resource, or ``None`` if it is gone. Default: as stored."""
        return inputs, state

    def update(self, call: Call, resource_id: str, old_inputs: Values, old_state: Values, inputs: Values) -> Values:
        """Change the resource in place; returns all outputs. Raises :class:`ProviderError`.

        Default: refuse, for types all of whose inputs replace.
        """
        raise ProviderError(f"{type(self).__name__} {resource_id} cannot be changed in place")

    def delete(self, call: Call, resource_id: str, inputs: Values, state: Values) -> None:
        """Remove the resource; a resource that is gone already is no error. Default: only forget it."""
        return


Response = TypeVar("Response")


class Provider(provider_pb2_grpc.ResourceProviderServicer):
    """A provider plugin: answers the engine's calls by handing them to its resources.

    :param name: the package's name, ``kubernetes``.
    :param resources: type token to resource; a pattern ending in ``*`` is tried where no token fits (longest first).
    :param package: the provider's Python package; its version is reported, and ``package:ProviderArgs`` (or
        ``package.provider:ProviderArgs``) says which configuration is known.
    """

    def __init__(self, name: str, resources: Mapping[str, Resource], *, package: str) -> None:
        self.name = name
        self.resources = dict(resources)
        self.package = package
        self.config: Values = {}
        """Configuration as given by the program; set before ``configure`` runs."""
        self.cancelled = threading.Event()
        """Set when the user interrupts the engine."""
        self._engine: engine_pb2_grpc.EngineStub | None = None
        self._lock = threading.Lock()

    # What a subclass may override.

    config_replace_on: Sequence[str] = ()
    """Dotted names of configuration whose change replaces every resource of the provider."""

    def check_config(self, config: Values) -> Values:
        """The configuration as it is stored. Raises :class:`InputError`."""
        return config

    def diff_config(self, old: Values, new: Values) -> Diff:
        """What a changed configuration means; default: no replacement except for ``config_replace_on``."""
        changes = structural_diff(old, new)
        replaces = {path for path in changes if any(names_path(name, path) for name in self.config_replace_on)}
        return Diff(changes, replaces)

    def configure(self, config: Values) -> None:
        """Called once before any resource. Raises :class:`ProviderError`."""

    def invoke(self, token: str, arguments: Values) -> Values:
        """A function call of the program. Raises :class:`ProviderError`."""
        raise ProviderError(f"the lab's {self.name} provider does not offer the function {token}")

    # Help for subclasses.

    def version(self) -> str:
        """Version of the provider's Python package."""
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version(self.package.partition(".")[0].replace("_", "-"))
        except PackageNotFoundError as error:
            raise ProviderError(
                f"the Python package {self.package} is not installed in {sys.prefix}; install the lab's requirements"
            ) from error

    def attach(self, address: str) -> None:
        """Remember where the engine listens, for messages to the user."""
        if address:
            options = [("grpc.max_send_message_length", MAX_MESSAGE_BYTES)]
            self._engine = engine_pb2_grpc.EngineStub(grpc.insecure_channel(address, options=options))

    def log(self, severity: Any, message: str, urn: str = "", *, ephemeral: bool = False) -> None:
        """Send a message to the user. An engine that has gone away is no error."""
        if self._engine is None:
            return
        request = engine_pb2.LogRequest(severity=severity, message=message, urn=urn, ephemeral=ephemeral)
        with contextlib.suppress(grpc.RpcError):  # nobody is left to read it
            self._engine.Log(request, timeout=10)

    def resource(self, urn: str, type_token: str = "") -> Resource:
        """The resource type of ``urn``. Raises :class:`ProviderError` for a type the lab does not have."""
        token = type_token or Call(self, urn).type
        if token in self.resources:
            return self.resources[token]
        for pattern in sorted((key for key in self.resources if key.endswith("*")), key=len, reverse=True):
            if token.startswith(pattern[:-1]):
                return self.resources[pattern]
        raise ProviderError(
            f"the lab's {self.name} provider does not offer the type {token}; "
            f"it offers {', '.join(sorted(self.resources))}"
        )

    def config_class(self) -> type | None:
        """The ``ProviderArgs`` class of the Python package."""
        for reference in (f"{self.package}:ProviderArgs", f"{self.package}.provider:ProviderArgs"):
            with contextlib.suppress(AttributeError, ModuleNotFoundError):
                return load_class(reference)
        return None

    # The engine's calls.

    def Handshake(self, request: Any, context: Any) -> provider_pb2.ProviderHandshakeResponse:
        self.attach(request.engine_address)
        return provider_pb2.ProviderHandshakeResponse(accept_secrets=True)

    def Attach(self, request: Any, context: Any) -> empty_pb2.Empty:
        self.attach(request.address)
        return empty_pb2.Empty()

    def GetPluginInfo(self, request: Any, context: Any) -> plugin_pb2.PluginInfo:
        return self._answer(context, lambda: plugin_pb2.PluginInfo(version=self.version()))

    def GetSchema(self, request: Any, context: Any) -> provider_pb2.GetSchemaResponse:
        schema = {"name": self.name, "version": self.version(), "resources": {token: {} for token in self.resources}}
        return provider_pb2.GetSchemaResponse(schema=json.dumps(schema))

    def CheckConfig(self, request: Any, context: Any) -> provider_pb2.CheckResponse:
        def run() -> provider_pb2.CheckResponse:
            raw, secrets = decode(request.news)
            known = self.config_class()
            config = self._typed_config(raw, known)
            failures = self._unknown_failures(config, known, f"provider {self.name}")
            if not failures:
                try:
                    self.check_config(_without_engine_keys(config))
                except InputError as error:
                    failures = [_failure(error.property_name, error.reason)]
            return provider_pb2.CheckResponse(inputs=encode(raw, secrets), failures=failures)

        return self._answer(context, run)

    def DiffConfig(self, request: Any, context: Any) -> provider_pb2.DiffResponse:
        def run() -> provider_pb2.DiffResponse:
            known = self.config_class()
            old = self._typed_config(decode(request.old_inputs or request.olds)[0], known)
            new = self._typed_config(decode(request.news)[0], known)
            return self.diff_config(_without_engine_keys(old), _without_engine_keys(new)).message()

        return self._answer(context, run)

    def Configure(self, request: Any, context: Any) -> provider_pb2.ConfigureResponse:
        def run() -> provider_pb2.ConfigureResponse:
            self.config = _without_engine_keys(self._typed_config(decode(request.args)[0], self.config_class()))
            self.configure(self.config)
            return provider_pb2.ConfigureResponse(acceptSecrets=True, supportsPreview=True)

        return self._answer(context, run)

    def Check(self, request: Any, context: Any) -> provider_pb2.CheckResponse:
        def run() -> provider_pb2.CheckResponse:
            resource = self.resource(request.urn, request.type)
            inputs, secrets = decode(request.news)
            old = decode(request.olds)[0] or None
            known = load_class(resource.inputs_class) if resource.inputs_class else None
            call = Call(self, request.urn)
            failures = self._unknown_failures(inputs, known, call.type)
            if not failures:
                try:
                    inputs = resource.check(call, inputs, old)
                except InputError as error:
                    failures = [_failure(error.property_name, error.reason)]
            return provider_pb2.CheckResponse(inputs=encode(inputs, secrets), failures=failures)

        return self._answer(context, run)

    def Diff(self, request: Any, context: Any) -> provider_pb2.DiffResponse:
        def run() -> provider_pb2.DiffResponse:
            resource = self.resource(request.urn, request.type)
            state = decode(request.olds)[0]
            old_inputs = decode(request.old_inputs)[0]
            return resource.diff(
                Call(self, request.urn), request.id, old_inputs, state, decode(request.news)[0]
            ).message()

        return self._answer(context, run)

    def Create(self, request: Any, context: Any) -> provider_pb2.CreateResponse:
        def run() -> provider_pb2.CreateResponse:
            resource = self.resource(request.urn, request.type)
            inputs, secrets = decode(request.properties)
            call = Call(self, request.urn, preview=request.preview, timeout_seconds=request.timeout)
            if request.preview:
                resource_id, outputs = "", resource.planned(call, inputs, None)
            else:
                try:
                    resource_id, outputs = resource.create(call, inputs)
                except PartialError as error:
                    self._fail_partially(context, error, resource, inputs, secrets)
            return provider_pb2.CreateResponse(
                id=resource_id, properties=_outputs_message(resource, inputs, secrets, outputs)
            )

        return self._answer(context, run)

    def Read(self, request: Any, context: Any) -> provider_pb2.ReadResponse:
        def run() -> provider_pb2.ReadResponse:
            resource = self.resource(request.urn, request.type)
            inputs, input_secrets = decode(request.inputs)
            state, state_secrets = decode(request.properties)
            found = resource.read(Call(self, request.urn, timeout_seconds=request.timeout), request.id, inputs, state)
            if found is None:
                return provider_pb2.ReadResponse(id="")
            new_inputs, outputs = found
            secrets = input_secrets | state_secrets
            return provider_pb2.ReadResponse(
                id=request.id,
                inputs=encode(new_inputs, frozenset(path for path in input_secrets if _present(new_inputs, path))),
                properties=_outputs_message(resource, new_inputs, secrets, outputs),
            )

        return self._answer(context, run)

    def Update(self, request: Any, context: Any) -> provider_pb2.UpdateResponse:
        def run() -> provider_pb2.UpdateResponse:
            resource = self.resource(request.urn, request.type)
            inputs, secrets = decode(request.news)
            old_inputs, state = decode(request.old_inputs)[0], decode(request.olds)[0]
            call = Call(self, request.urn, preview=request.preview, timeout_seconds=request.timeout)
            if request.preview:
                outputs = resource.planned(call, inputs, state)
            else:
                try:
                    outputs = resource.update(call, request.id, old_inputs, state, inputs)
                except PartialError as error:
                    self._fail_partially(context, error, resource, inputs, secrets)
            return provider_pb2.UpdateResponse(properties=_outputs_message(resource, inputs, secrets, outputs))

        return self._answer(context, run)

    def Delete(self, request: Any, context: Any) -> empty_pb2.Empty:
        def run() -> empty_pb2.Empty:
            resource = self.resource(request.urn, request.type)
            inputs, state = decode(request.old_inputs)[0], decode(request.properties)[0]
            resource.delete(Call(self, request.urn, timeout_seconds=request.timeout), request.id, inputs, state)
            return empty_pb2.Empty()

        return self._answer(context, run)

    def Invoke(self, request: Any, context: Any) -> provider_pb2.InvokeResponse:
        def run() -> provider_pb2.InvokeResponse:
            arguments, secrets = decode(request.args)
            result = self.invoke(request.tok, arguments)
            response = provider_pb2.InvokeResponse()
            hidden: frozenset[Path] = frozenset((key,) for key in result) if secrets else frozenset()
            getattr(response, "return").CopyFrom(encode(result, hidden))
            return response

        return self._answer(context, run)

    def Cancel(self, request: Any, context: Any) -> empty_pb2.Empty:
        self.cancelled.set()
        return empty_pb2.Empty()

    # Inner workings.

    def _answer(self, context: Any, run: Callable[[], Response]) -> Response:
        """Run one call; every failure leaves as a status with one sentence."""
        try:
            return run()
        except ProviderError as error:
            context.abort(grpc.StatusCode.UNKNOWN, str(error))
        except Exception as error:
            if not context.is_active() or type(error) is Exception:  # context.abort raises a bare Exception
                raise
            self.log(engine_pb2.DEBUG, traceback.format_exc())
            context.abort(
                grpc.StatusCode.UNKNOWN,
                f"the lab's {self.name} provider met an unexpected {type(error).__name__}: {error} "
                f"({_where(error)}; run with --debug for the details)",
            )
        raise AssertionError("context.abort returned")

    def _fail_partially(
        self, context: Any, error: PartialError, resource: Resource, inputs: Values, secrets: frozenset[Path]
    ) -> typing.NoReturn:
        detail = any_pb2.Any()
        detail.Pack(
            provider_pb2.ErrorResourceInitFailed(
                id=error.resource_id,
                properties=_outputs_message(resource, inputs, secrets, error.outputs),
                reasons=[str(error)],
                inputs=encode(inputs if error.inputs is None else error.inputs, secrets),
            )
        )
        status = status_pb2.Status(code=grpc.StatusCode.UNKNOWN.value[0], message=str(error), details=[detail])
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(grpc.StatusCode.UNKNOWN, str(error))
        raise AssertionError("context.abort returned")

    @staticmethod
    def _typed_config(config: Values, known: type | None) -> Values:
        """Configuration with the JSON texts decoded in which the engine carries everything that is no text."""
        if known is None:
            return config
        types = input_type_types(known)
        decoded = dict(config)
        for key, value in config.items():
            if isinstance(value, str) and key in types and not _holds_text(types[key]):
                with contextlib.suppress(json.JSONDecodeError):  # then it is a plain text after all
                    decoded[key] = json.loads(value)
        return decoded

    @staticmethod
    def _unknown_failures(values: Values, known: type | None, owner: str) -> list[provider_pb2.CheckFailure]:
        if known is None:
            return []
        return [
            _failure(format_path(path), f"{owner} has no property {path[-1]!r} here; known are {', '.join(names)}")
            for path, names in unknown_properties(values, known)
        ]


def _failure(property_name: str, reason: str) -> provider_pb2.CheckFailure:
    # Not as the failure's property: the engine would print that property's value, secret or not.
    return provider_pb2.CheckFailure(reason=f"{property_name}: {reason}" if property_name else reason)


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else "unknown place"


def _without_engine_keys(values: Values) -> Values:
    return {key: value for key, value in values.items() if key not in _ENGINE_KEYS}


def _holds_text(declared: Any) -> bool:
    """Whether a declared property type is a text, alone or wrapped in Input/Optional."""
    arguments = typing.get_args(declared)
    if not arguments:
        return declared is str
    origin = typing.get_origin(declared)
    if isinstance(origin, type) and issubclass(origin, Mapping | Sequence):
        return False
    return any(_holds_text(argument) for argument in arguments)


def _outputs_message(
    resource: Resource, inputs: Values, secrets: frozenset[Path], outputs: Values
) -> struct_pb2.Struct:
    names = {*resource.secret_outputs, *resource.extra_secret_outputs(inputs, secrets)}
    paths = {path for path in secrets if _present(outputs, path)} | {(name,) for name in names if name in outputs}
    return encode(outputs, frozenset(paths))


# --- the process --------------------------------------------------------------------------------------------


def watch_parent(stop: Callable[[], None]) -> None:
    """Call ``stop`` in a thread when the process that started this one is gone."""
    parent = os.getppid()

    def watch() -> None:
        pause = threading.Event()
        while os.getppid() == parent:
            pause.wait(PARENT_POLL_SECONDS)
        stop()

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def serve(provider: Provider, arguments: Sequence[str] | None = None) -> None:
    """Serve ``provider`` until the engine ends it: print the port on stdout, as every plugin does.

    :param arguments: the command line; its first word that is no option is the engine's address (absent when the
        engine attaches to a running provider). Default: ``sys.argv[1:]``.

    Ends on SIGINT (with which the engine ends its plugins; they have a process group of their own, so that the user's
    interrupt does not reach them) and SIGTERM, and by itself when the engine's process is gone.
    """
    words = sys.argv[1:] if arguments is None else arguments
    provider.attach(next((word for word in words if not word.startswith("-")), ""))
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=MAX_CONCURRENT_CALLS),
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),
        ],
    )
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(provider, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    # Calls may be in the middle of something that cannot be interrupted; nobody waits for them any more.
    for end in (signal.SIGINT, signal.SIGTERM):
        signal.signal(end, lambda *_: os._exit(0))
    watch_parent(lambda: os._exit(0))
    print(port, flush=True)
    server.wait_for_termination()
