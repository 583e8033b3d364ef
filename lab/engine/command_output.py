"""What a command wrote, and how its failure is told, on this machine or over SSH."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Output:
    """What a command wrote."""

    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    both: bytearray = field(default_factory=bytearray)
    """Both streams in the order of arrival."""


def failure_text(reason: str, command: str, both: bytes | bytearray) -> str:
    """Text of a failed command, local or remote."""
    return f"{reason}: running {go_quote(command)}:\n{bytes(both).decode(errors='replace')}"


def go_quote(text: str) -> str:
    """``text`` in double quotes as Go's %q writes it."""
    escapes = {"\n": "\\n", "\t": "\\t", "\r": "\\r", '"': '\\"', "\\": "\\\\", "\a": "\\a", "\b": "\\b", "\f": "\\f"}
    escapes["\v"] = "\\v"
    return '"' + "".join(escapes.get(c) or (c if c.isprintable() else f"\\x{ord(c):02x}") for c in text) + '"'
