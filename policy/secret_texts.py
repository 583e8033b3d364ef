"""Recognising a secret: by the name it is given, and by what it looks like. A secret that is found is never repeated."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

_SECRET_WORD: Final = re.compile(
    r"\w*(PASSWORD|PASSWORT|KENNWORT|PASSWD|PASSPHRASE|PWD|TOKEN|SECRET|CREDENTIALS?|APIKEY|PSK)|(DB|PG|SMB|SMTP)?PASS|CREDS?|KEY"
)
_COUNTERS: Final = frozenset({"VALUE", "BASE64", "OLD", "NEW"})
"""Words that may come after the one that says what it is: ``DB_PASSWORD_OLD``."""
_HARMLESS_KEYS: Final = frozenset({"PUBLIC", "PRIMARY", "FOREIGN", "SORT", "PARTITION", "CACHE"})
"""What stands before ``KEY`` where it opens nothing."""
_HARMLESS_VALUE: Final = re.compile(r"\d{1,5}(\.\d{1,5})?|true|false|yes|no|on|off|(/[\w.-]+){2,}", re.I)
"""A small number, yes or no, or where a file is. A longer number may be a password that somebody made up."""

_LAST_WORD: Final = (
    r"(?:password|passwort|kennwort|passwd|passphrase|token|secret|api[_-]?key|access[_-]?key|private[_-]?key"
    r"|(?<![a-z])(?:pass|psk|creds?)|(?<=_)pwd)"
)
# What is put in by a shell, a template or Kubernetes is no secret yet.
_LITERAL: Final = r"['\"]?[^\s'\"`$%<>{}()*-]"
# Every repetition has an end, so that a long text takes no longer than its length.
_FORMS: Final[Mapping[str, re.Pattern[str]]] = {
    "a private key": re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----"),
    "an address with a password": re.compile(
        r"\b[a-z][a-z0-9+.-]{0,20}://[^\s/:@'\"]{0,64}:[^\s/@'\"$%<>{}()*][^\s/@'\"]{0,256}@", re.I
    ),
    "a K3s token": re.compile(r"\bK10[0-9A-Za-z]{1,128}::\S"),
    "a Proxmox API token": re.compile(r"\b[\w.-]{1,64}@[\w-]{1,64}![\w.-]{1,64}=[0-9A-Fa-f]{8}-"),
    "an authorization header": re.compile(rf"authorization:\s{{0,8}}\w{{1,32}}[ =]\s{{0,8}}{_LITERAL}", re.I),
    "a password as an argument": re.compile(
        rf"(?:--(?:\w{{1,32}}-){{0,4}}{_LAST_WORD}(?:=|\s{{1,8}})|\bsshpass\s{{1,8}}-p\s{{0,8}}){_LITERAL}", re.I
    ),
    "a password that is assigned": re.compile(rf"\b\w{{0,64}}{_LAST_WORD}=(?!=){_LITERAL}", re.I),
}
_IN_A_FILE: Final = re.compile(
    rf"^[ \t]{{0,64}}['\"]?[\w.-]{{0,64}}{_LAST_WORD}['\"]?[ \t]{{0,8}}[:=](?!=)[ \t]{{0,8}}{_LITERAL}", re.I | re.M
)


def names_a_secret(name: str) -> bool:
    """Whether a variable or key is called as a secret is, e.g. ``PGPASSWORD``, ``api-token`` or ``sshKey``."""
    words = re.findall(r"[A-Z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper())
    while words and (words[-1] in _COUNTERS or words[-1].isdecimal()):
        words.pop()
    # The last word says what it is: TOKEN_EXPIRY is a time, PASSWORD_FILE a place.
    if not words or _SECRET_WORD.fullmatch(words[-1].rstrip("0123456789")) is None:
        return False
    return not (words[-1] == "KEY" and _HARMLESS_KEYS.intersection(words))


def may_be_secret(value: Any) -> bool:
    """Whether a value may be the secret that its name speaks of.

    Small numbers, yes and no, and paths are none; ``$(NAME)`` takes another variable's value, and the secret stands there.
    """
    text = "" if value is None else str(value).removesuffix(".0")
    return bool(text) and not _HARMLESS_VALUE.fullmatch(text) and not re.fullmatch(r"\$\(\w+\)", text)


def secrets_in(value: Any) -> Iterator[str]:
    """What kind of secret a text, or each text in a list or a map, looks like. Raises for what is not known yet."""
    if isinstance(value, str):
        yield from [kind for kind, form in _FORMS.items() if form.search(value)][:1]
    elif isinstance(value, Mapping):
        yield from (kind for key in value for kind in secrets_in(value[key]))
    elif isinstance(value, Sequence):
        yield from (kind for item in value for kind in secrets_in(item))


def secrets_in_file(text: str) -> Iterator[str]:
    """The same for the content of a file, where ``password: ...`` is a setting and no sentence."""
    found = list(secrets_in(text))
    yield from found
    if not found and _IN_A_FILE.search(text):
        yield "a password that is assigned"
