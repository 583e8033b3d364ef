"""Single values of the configuration: addresses, ranges, names, URLs, keys, times and releases, and how they are read."""

from __future__ import annotations

import base64
import binascii
import re
import struct
import zoneinfo
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BeforeValidator

from settings.base import Refused
from settings.faults import shown


@dataclass(frozen=True, slots=True)
class AddressRange:
    """IPv4 addresses from ``first`` to ``last``, both included; written ``10.0.145.130-10.0.145.149``."""

    first: IPv4Address
    last: IPv4Address

    @classmethod
    def parse(cls, text: str) -> AddressRange:
        """Read ``first-last``; raises ValueError when it is not two IPv4 addresses in ascending order."""
        first, separator, last = text.partition("-")
        if not separator:
            raise ValueError(f"{text} is not of the form first-last")
        found = cls(IPv4Address(first.strip()), IPv4Address(last.strip()))
        if found.first > found.last:
            raise ValueError(f"{text} ends before it begins")
        return found

    def __contains__(self, address: object) -> bool:
        return isinstance(address, IPv4Address) and self.first <= address <= self.last

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    def overlaps(self, other: AddressRange) -> bool:
        """Whether at least one address is in both ranges."""
        return self.first <= other.last and other.first <= self.last


LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def is_domain(value: str) -> bool:
    """Whether the value is a DNS name of lower-case labels."""
    return len(value) <= 253 and all(LABEL.fullmatch(label) for label in value.split("."))


def _is_url(value: str, *schemes: str) -> bool:
    """Whether the value is an absolute URL of one of the schemes, with a host and without user or password."""
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        return False
    return parts.scheme in schemes and bool(parts.hostname) and parts.username is None and port != 0


def is_web_url(value: str) -> bool:
    """Whether the value is an absolute http or https URL without user and password."""
    return _is_url(value, "http", "https")


def is_api_endpoint(value: str) -> bool:
    """Whether the value is ``https://host:port/`` and nothing more."""
    if not _is_url(value, "https"):
        return False
    parts = urlsplit(value)
    return parts.port is not None and parts.path in ("", "/") and not parts.query and not parts.fragment


def is_proxy(value: str) -> bool:
    """Whether the value is ``http://host:port`` and nothing more."""
    return _is_url(value, "http") and urlsplit(value).port is not None and urlsplit(value).path in ("", "/")


_TEMPLATE_FILE = re.compile(r"debian-(12|13)-[a-z0-9]+_[0-9][0-9.]*-[0-9]+_amd64\.tar\.(zst|gz|xz)")


def is_template(value: str) -> bool:
    """Whether the URL ends in the name of a Debian template; what is behind its last slash becomes the file's name."""
    return is_web_url(value) and _TEMPLATE_FILE.fullmatch(value.rsplit("/", 1)[-1]) is not None


_HOST_KEY_TYPES = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")

EXAMPLE_KEY = b"EXAMPLE-replace-with-key-of-"
"""What the example keys in Pulumi.school.yaml say when they are decoded; nobody has the private half."""


def is_host_key(value: str) -> bool:
    """Whether the value is ``<type> <base64>`` and the encoded key says that it is of that type."""
    words = value.split()
    if len(words) not in (2, 3) or words[0] not in _HOST_KEY_TYPES:
        return False
    try:
        blob = base64.b64decode(words[1], validate=True)
    except (binascii.Error, ValueError):
        return False
    name = words[0].encode()
    return len(blob) > 4 + len(name) + 32 and blob[: 4 + len(name)] == struct.pack(">I", len(name)) + name


def _address(value: object) -> object:
    """Dotted quad to address; a bare number is no address in this file."""
    if isinstance(value, IPv4Address):
        return value
    if not isinstance(value, str):
        raise ValueError("not an address")
    return IPv4Address(value)


def _network(value: object) -> object:
    if isinstance(value, IPv4Network):
        return value
    if not isinstance(value, str) or "/" not in value:
        raise ValueError("not a network")
    return IPv4Network(value)


def _range(value: object) -> object:
    if isinstance(value, AddressRange):
        return value
    if not isinstance(value, str):
        raise ValueError("not a range")
    return AddressRange.parse(value)


Address = Annotated[IPv4Address, BeforeValidator(_address)]
Network = Annotated[IPv4Network, BeforeValidator(_network)]
Range = Annotated[AddressRange, BeforeValidator(_range)]

_CRON_FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of month", 1, 31, ()),
    ("month", 1, 12, ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")),
    ("day of week", 0, 6, ("sun", "mon", "tue", "wed", "thu", "fri", "sat")),
)

CRON_EXAMPLE = 'write for example "0 2 * * *" for 02:00 every night'


def _cron_number(text: str, lowest: int, names: tuple[str, ...]) -> int:
    if text.lower() in names:
        return names.index(text.lower()) + lowest
    if not re.fullmatch(r"[0-9]{1,4}", text):
        raise ValueError(f"{text} is not a number")
    return int(text)


def _cron_part_is_valid(part: str, lowest: int, highest: int, names: tuple[str, ...]) -> bool:
    span, has_step, step = part.partition("/")
    if has_step and not re.fullmatch(r"[1-9][0-9]{0,3}", step):
        return False
    if span == "*":
        return True
    first, has_end, last = span.partition("-")
    try:
        begin = _cron_number(first, lowest, names)
        end = _cron_number(last, lowest, names) if has_end else begin
    except ValueError:
        return False
    return lowest <= begin <= end <= highest


def check_schedule(value: str) -> str:
    """Accept what a Kubernetes CronJob accepts: five fields of numbers, names, ranges, lists and steps."""
    fields = value.split()
    if len(fields) != len(_CRON_FIELDS):
        raise Refused(
            f"a time of five fields: minute, hour, day of month, month, day of week (it has {len(fields)})",
            CRON_EXAMPLE,
        )
    for text, (name, lowest, highest, names) in zip(fields, _CRON_FIELDS, strict=True):
        if not all(_cron_part_is_valid(part, lowest, highest, names) for part in text.split(",")):
            sunday = " (Sunday is 0)" if name == "day of week" else ""
            raise Refused(
                f"for the {name} a number from {lowest} to {highest}{sunday}, *, a range, a list or a step, "
                f"not {shown(text)}",
                CRON_EXAMPLE,
            )
    return value


def is_time_zone(value: str) -> bool:
    """Whether the value names a zone of the tz database."""
    return value in zoneinfo.available_timezones() and value not in ("localtime", "Factory")


DO_ADDRESS = "write an address such as 10.0.145.110"
NEWEST_KUBERNETES_MINOR = 36
OLDEST_KUBERNETES_MINOR = 34
K3S_VERSION = re.compile(r"v1\.(?P<minor>[0-9]+)\.[0-9]+\+k3s[0-9]+")


def check_k3s_version(value: str) -> str:
    """Accept an exact release of the minor versions this project is made for."""
    found = K3S_VERSION.fullmatch(value)
    if found is None:
        raise ValueError("not an exact release")
    if not OLDEST_KUBERNETES_MINOR <= int(found["minor"]) <= NEWEST_KUBERNETES_MINOR:
        raise Refused(
            f"a release from 1.{OLDEST_KUBERNETES_MINOR} to 1.{NEWEST_KUBERNETES_MINOR}, which the providers and the "
            "operator of this project are made for",
            f"use a v1.{NEWEST_KUBERNETES_MINOR} release",
        )
    return value
