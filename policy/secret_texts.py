"""Recognising a secret: by the name it is given, and by what it looks like. A secret that is found is never repeated."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

_SECRET_WORD: Final = re.compile(r"\w*(PASSWORD|PASSWD|PASSPHRASE|TOKEN|SECRET|CREDENTIALS?|APIKEY)|PASS|KEY")
_HARMLESS_WORDS: Final = frozenset({"FILE", "PATH", "DIR", "NAME", "LENGTH", "TTL", "PUBLIC"})
"""With one of these, a name speaks of where the secret is, or of something about it."""

_LAST_WORD: Final = r"(?:password|passwd|passphrase|token|secret|api[_-]?key|access[_-]?key|private[_-]?key)"
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
    words = re.split(r"[^A-Z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper())
    return _HARMLESS_WORDS.isdisjoint(words) and any(_SECRET_WORD.fullmatch(word) for word in words)


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
