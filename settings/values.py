"""Single values of the configuration: addresses, ranges, names, URLs, keys, times and releases, and how they are read."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import zoneinfo
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from ipaddress import IPv4Address, IPv4Network
from typing import Annotated

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from pydantic import BeforeValidator, WithJsonSchema

from settings.base import Refused, whole
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
HOST_NAME = re.compile(rf"(?=[0-9-]*[a-z]){LABEL.pattern}")
"""A label with a letter in it: a name of digits alone would be read as an address."""
SUBDOMAIN = re.compile(rf"{LABEL.pattern}(\.{LABEL.pattern})*")
"""What Kubernetes takes as the name of most of its objects, up to 253 characters."""
DOMAIN = re.compile(rf"({LABEL.pattern}\.)*{HOST_NAME.pattern}")
"""A DNS name, up to 253 characters; its last label has a letter, or it would be an address."""


def is_subdomain(value: str) -> bool:
    """Whether the value is lower-case labels joined by dots, as names in Kubernetes are."""
    return len(value) <= 253 and SUBDOMAIN.fullmatch(value) is not None


def is_domain(value: str) -> bool:
    """Whether the value is a DNS name of lower-case labels; an address is none."""
    return len(value) <= 253 and DOMAIN.fullmatch(value) is not None


_HOST = r"([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])"
_PORT = r":([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_PATH = r"/[A-Za-z0-9._~:/%+,;@!$()*-]*"
WEB_URL = rf"https?://{_HOST}({_PORT})?({_PATH})?(\?[A-Za-z0-9._~:/?&=%+,;@!$()*-]*)?"
API_ENDPOINT = rf"https://{_HOST}{_PORT}/?"
PROXY = rf"http://{_HOST}{_PORT}/?"
TEMPLATE = (
    rf"https?://{_HOST}({_PORT})?({_PATH})?"
    r"/debian-(12|13)-[a-z0-9]+_[0-9][0-9.]*-[0-9]+_amd64\.tar\.(zst|gz|xz)"
)
"""The address of a Debian template; what is behind its last slash becomes the file's name."""
REGISTRY = rf"\*|[a-z0-9][a-z0-9.-]*({_PORT})?"
"""The name of an image registry as it stands in front of an image's."""
BINARY_URL = rf"(?!.*/(latest|stable|testing|channels?)(/|$)){WEB_URL}"
"""The address of one release of a program; one behind a channel is another program tomorrow."""


def check_binary_url(value: str) -> str:
    """Accept the address of one release."""
    if not re.fullmatch(WEB_URL, value):
        raise ValueError("not an address")
    if not re.fullmatch(BINARY_URL, value):
        raise Refused(
            "the address of one release; what is behind latest, stable, testing or a channel changes by itself",
            "write the address of the release that kubernetes.version names",
        )
    return value


OF_NOTHING = (hashlib.sha256().hexdigest(), hashlib.sha512().hexdigest())
"""Checksums of an empty file."""


def check_checksum(value: str) -> str:
    """Accept a checksum unless it is that of an empty file, which is what a failed download leaves behind."""
    if value in OF_NOTHING:
        raise Refused(
            "the checksum of the file; this one is that of an empty file", "read it where the file is published"
        )
    return value


_HOST_KEY_TYPES = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")
HOST_KEY = (
    r"(ssh-ed25519 +AAAAC3NzaC1lZDI1NTE5AAAAI[A-Za-z0-9+/]{43}|ssh-rsa +AAAAB3NzaC1yc2EA[A-Za-z0-9+/]+={0,2}|"
    r"ecdsa-sha2-nistp(256|384|521) +AAAAE2VjZHNhLXNoYTItbmlzdHA[A-Za-z0-9+/]+={0,2})( +[^ ]+)?"
)
"""What a public key looks like to an editor, which cannot decode it."""

EXAMPLE_KEY = b"EXAMPLE-replace-with-key-of-"
"""What the example keys in Pulumi.school.yaml say when they are decoded; nobody has the private half."""


def is_host_key(value: str) -> bool:
    """Whether the value is ``<type> <base64>``, perhaps with a comment, and the encoded key is a whole one of that type."""
    words = value.split()
    if len(words) not in (2, 3) or words[0] not in _HOST_KEY_TYPES:
        return False
    try:
        base64.b64decode(words[1], validate=True)
        load_ssh_public_key(" ".join(words[:2]).encode())
    except (binascii.Error, ValueError, UnsupportedAlgorithm):
        return False
    return True


_OCTET = r"(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_QUAD = rf"{_OCTET}(\.{_OCTET}){{3}}"
_COMPUTER = rf"(?!(0|127|22[4-9]|2[345][0-9])\.){_QUAD}"
NETWORK_OF_A_SCHOOL = rf"{_QUAD}/([89]|1[0-9]|2[0-9])"
"""What :mod:`settings.rules` allows as the network that all machines are in."""
NETWORK_OF_KNOWN_COMPUTERS = rf"{_QUAD}/([89]|[12][0-9]|3[0-2])"
"""What may be a source: :data:`settings.postgres.LARGEST_SOURCE` or smaller."""


def _address(value: object) -> object:
    """Dotted quad to address; a bare number is no address in this file."""
    if isinstance(value, IPv4Address):
        return value
    if not isinstance(value, str):
        raise ValueError("not an address")
    address = IPv4Address(value)
    if re.fullmatch(_COMPUTER, value) is None:
        raise Refused(
            "an address at which others reach one computer; those that begin with 0, 127, or 224 to 255 are none",
            "write the address that the computer has in the network",
        )
    return address


def _network(value: object) -> object:
    if isinstance(value, IPv4Network):
        return value
    if not isinstance(value, str) or not re.fullmatch(r"[0-9.]+/[0-9]{1,2}", value):
        raise ValueError("not a network")
    return IPv4Network(value)


def _range(value: object) -> object:
    if isinstance(value, AddressRange):
        return value
    if not isinstance(value, str):
        raise ValueError("not a range")
    return AddressRange.parse(value)


DAY = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})( 00:00:00 \+0000 UTC)?")
"""A day; the second half is what Pulumi appends, also in the file, to one that is written without quotes."""

_DAY_OF_A_MONTH = (
    r"[0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|[12][0-9]))"
    r"( 00:00:00 \+0000 UTC)?"
)
"""A day as an editor sees it, which does not know leap years."""


def _day(value: object) -> object:
    """A day as text, or as the date that a YAML reader makes of one without quotes; a time of day is none."""
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    found = DAY.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError("not a day")
    return date.fromisoformat(found[1])


def _text(pattern: str | re.Pattern[str]) -> WithJsonSchema:
    """What an editor is told about a value that is written as text and read as something else."""
    return WithJsonSchema({"type": "string", "pattern": whole(pattern)})


Address = Annotated[IPv4Address, BeforeValidator(_address), _text(_COMPUTER)]
Network = Annotated[IPv4Network, BeforeValidator(_network), _text(rf"{_QUAD}/([12]?[0-9]|3[0-2])")]
Range = Annotated[AddressRange, BeforeValidator(_range), _text(rf" *{_QUAD} *- *{_QUAD} *")]
Day = Annotated[date, BeforeValidator(_day), _text(_DAY_OF_A_MONTH)]

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_CRON_FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of week", 0, 6, _WEEKDAYS),
)


def _cron_pattern(lowest: int, highest: int, names: tuple[str, ...]) -> str:
    """Pattern of one field, which cannot see that a range runs backwards."""
    numbers = "|".join(str(number) for number in range(highest, lowest - 1, -1))
    one = f"(0*({numbers})" + ("|[A-Za-z]{3})" if names else ")")
    item = rf"(\*|{one}(-{one})?)(/[0-9]*[1-9][0-9]*)?"
    return f"{item}(,{item})*"


SCHEDULE = " *" + " +".join(_cron_pattern(low, high, names) for _, low, high, names in _CRON_FIELDS) + " *"
"""What a schedule looks like to an editor, which cannot count in it."""

CRON_EXAMPLE = 'write for example "0 2 * * *" for 02:00 every night'


def _cron_number(text: str, lowest: int, names: tuple[str, ...]) -> int:
    if text.lower() in names:
        return names.index(text.lower()) + lowest
    if not re.fullmatch(r"[0-9]{1,4}", text):
        raise ValueError(f"{text} is not a number")
    return int(text)


def _cron_part(part: str, lowest: int, highest: int, names: tuple[str, ...]) -> Iterable[int]:
    """The numbers that one item of a list stands for; raises ValueError when it stands for none."""
    span, has_step, step = part.partition("/")
    if has_step and not (re.fullmatch(r"[1-9][0-9]{0,3}", step) and int(step) <= highest):
        raise ValueError(f"{step} is no step")
    if span == "*":
        begin, end = lowest, highest
    else:
        first, has_end, last = span.partition("-")
        begin = _cron_number(first, lowest, names)
        end = _cron_number(last, lowest, names) if has_end else highest if has_step else begin
    if not lowest <= begin <= end <= highest:
        raise ValueError(f"{span} is outside {lowest} to {highest}")
    return range(begin, end + 1, int(step) if has_step else 1)


def _cron_values(text: str, lowest: int, highest: int, names: tuple[str, ...]) -> set[int]:
    """Every number that a field stands for; raises ValueError when it cannot be read."""
    return {value for part in text.split(",") for value in _cron_part(part, lowest, highest, names)}


_SURE_DAYS = {2: 28, 4: 30, 6: 30, 9: 30, 11: 30}
"""Days that the shorter months have every year."""


def check_schedule(value: str) -> str:
    """Accept five fields of numbers, names, ranges, lists and steps that name a time which comes every year.

    Kubernetes would accept 31 February as well, and never make a backup. With a day of the week beside the day of the
    month, either is enough.
    """
    fields = value.split()
    if len(fields) != len(_CRON_FIELDS):
        raise Refused(
            f"a time of five fields: minute, hour, day of month, month, day of week (it has {len(fields)})",
            CRON_EXAMPLE,
        )
    values: dict[str, set[int]] = {}
    for text, (name, lowest, highest, names) in zip(fields, _CRON_FIELDS, strict=True):
        try:
            values[name] = _cron_values(text, lowest, highest, names)
        except ValueError:
            sunday = " (Sunday is 0)" if name == "day of week" else ""
            raise Refused(
                f"for the {name} a number from {lowest} to {highest}{sunday}, *, a range, a list or a step, "
                f"not {shown(text)}",
                CRON_EXAMPLE,
            ) from None
    first_day, on_any_weekday = min(values["day of month"]), {"*", "*/1"} & set(fields[4].split(","))
    if on_any_weekday and not any(first_day <= _SURE_DAYS.get(month, 31) for month in values["month"]):
        raise Refused("a day of the month that one of its months has every year", CRON_EXAMPLE)
    return value


def is_time_zone(value: str) -> bool:
    """Whether the value names a zone of the tz database."""
    return value in zoneinfo.available_timezones() and value not in ("localtime", "Factory")


REASON = r"\s*\S+(\s+\S+){2,}\s*"
"""What a reason looks like to an editor: three words."""


def is_reason(value: str) -> bool:
    """Whether the value is a sentence rather than a filler: 20 characters in three words or more."""
    words = value.split()
    return len(" ".join(words)) >= 20 and sum(re.search(r"[^\W\d_]{2}", word) is not None for word in words) >= 3


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
