"""What must not reach a comment: names under which secrets are kept, and secrets inside a text that somebody else wrote."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

from policy.secret_texts import names_a_secret

HIDDEN: Final = "(not shown)"

_MORE_ENDINGS: Final = ("key-data", "signature")
"""Of names, beyond those that the policy pack refuses in clear text: what kubeconfigs and signed addresses hold."""

_FORMS: Final[Sequence[tuple[re.Pattern[str], str]]] = (
    (re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(-----END [A-Z ]{0,40}PRIVATE KEY-----|$)", re.S), HIDDEN),
    # Everything up to the last @: a password may hold one itself.
    (re.compile(r"(\b[a-z][a-z0-9+.-]{0,20}://[^\s:/@]{0,256}:)\S{1,1000}(?=@)", re.I), rf"\1{HIDDEN}"),
    (re.compile(r"([\w.+-]{1,64}@[\w.-]{1,64}![\w.-]{1,64}=)[0-9a-fA-F-]{8,}"), rf"\1{HIDDEN}"),
    (re.compile(r"\bK10\w{1,128}::\S+"), HIDDEN),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]+(\.[\w-]+)?"), HIDDEN),
    (re.compile(r"\b(gl[a-z]{1,8}-|gh[a-z]_|github_pat_|pul-|xox[a-z]-)[\w-]{16,}"), HIDDEN),
    (re.compile(r"\bAKIA[0-9A-Z]{16}\b"), HIDDEN),
    # What PostgreSQL and Linux keep instead of a password; whoever has it can try passwords in peace.
    (re.compile(r"\bSCRAM-SHA-256\$\S+"), HIDDEN),
    (re.compile(r"\bmd5[0-9a-f]{32}\b"), HIDDEN),
    (re.compile(r"\$\w{1,8}\$\S{16,}"), HIDDEN),
    # A line of PostgreSQL's password file: host:port:database:user:password.
    (re.compile(r"([\w.*-]{1,256}:(?:5432|6432|\*):[^\s:]{1,64}:[^\s:]{1,64}:)\S+"), rf"\1{HIDDEN}"),
    # "-----BEGIN" in base64.
    (re.compile(r"LS0tLS1CRUdJTi[\w+/=]+"), HIDDEN),
    (
        re.compile(
            r"(\b(?:authorization|(?:set-)?cookie)\\{0,4}[\"']?\s{0,8}[:=]\s{0,8})\S[^\r\n]*|(\bbearer\s{1,8})[\w.~+/=-]{8,}",
            re.I,
        ),
        rf"\1\2{HIDDEN}",
    ),
)

_QUOTED: Final = r"(?:\"(?:\\.|[^\"])*(?:\"|\Z)|'(?:\\.|[^'])*(?:'|\Z))"
_VALUE: Final = re.compile(
    rf"{re.escape(HIDDEN)}\S*"
    # the indented lines of a YAML block
    r"|[|>][+\-0-9]{0,2}[ \t]*\n(?:[ \t]+[^\n]*(?:\n|\Z)|\n)+"
    # quotes that are escaped themselves, in JSON inside JSON
    r"|(?P<escapes>\\{1,8})(?P<quote>[\"']).*?(?:(?<!\\)(?P=escapes)(?P=quote)|\Z)"
    rf"|[bBuUrR$]?{_QUOTED}(?:{_QUOTED}|[^\s\"',;:)}}\]])*"
    r"|\S+",
    re.S,
)
"""A value as shells, JSON, YAML and Python write it; a text that was cut off ends it too."""

_MARK: Final = r"(?:\\{0,4}[\"'])"
_NEXT_WORD: Final = rf"(?:=|\s{{1,8}}|{_MARK}\s{{0,8}},\s{{0,8}}(?={_MARK}))"
"""Between an argument and its value, on a command line or in a list."""
_IS: Final = r"\s{0,8}(?:=>|[:=]{1,2})\s{0,8}"


def is_secret_name(name: str) -> bool:
    """Whether what is kept under this name is taken for a secret, e.g. ``PGPASSWORD``, ``client-key-data``, ``adminPwd``."""
    return names_a_secret(name) or name.lower().endswith(_MORE_ENDINGS)


def _named(found: re.Match[str]) -> bool:
    return is_secret_name(found[1])


def _assigned(found: re.Match[str]) -> bool:
    # Kubernetes has many a `key: Required value` in its messages, and none of them is a secret.
    return is_secret_name(found[1]) and (found[1].lower() != "key" or "=" in found[0])


def _always(_: re.Match[str]) -> bool:
    return True


_OPENINGS: Final[Sequence[tuple[re.Pattern[str], Callable[[re.Match[str]], bool]]]] = (
    (re.compile(rf"(?<![\w-])([\w-]{{1,256}}){_MARK}?\]?{_IS}"), _assigned),
    (re.compile(rf"(?<![\w-])(--?[\w-]{{1,256}}){_NEXT_WORD}"), _named),
    (re.compile(r"<([\w-]{1,256})>"), _named),
    (
        re.compile(
            rf"\bname{_MARK}?{_IS}{_MARK}?([\w.-]{{1,256}}){_MARK}?[,\s]{{1,64}}{_MARK}?value{_MARK}?{_IS}", re.I
        ),
        _named,
    ),
    (re.compile(rf"(?<![\w-])(?:password|passwd|passphrase)\s{{1,8}}(?={_MARK})", re.I), _always),
    (re.compile(r"\bsshpass\s{1,8}-p\s{0,8}"), _always),
    (
        re.compile(
            rf"(?<![^\s\"'])(?:-[uU]|--(?:proxy-)?user)(?:{_NEXT_WORD}|(?=\w))(?={_MARK}?[^\s:%\"'\\]{{0,256}}[:%])"
        ),
        _always,
    ),
)
"""What stands before a value that may be secret, and when it is one."""


def redacted(text: str) -> str:
    """A text that somebody else wrote, without what looks like a password, a token or a private key.

    When in doubt it leaves out too much: the job's log has the whole text.
    """
    for pattern, replacement in _FORMS:
        text = pattern.sub(replacement, text)
    for opening, is_secret in _OPENINGS:
        text = _without_values(text, opening, is_secret)
    return text


def _without_values(text: str, opening: re.Pattern[str], is_secret: Callable[[re.Match[str]], bool]) -> str:
    parts: list[str] = []
    position = 0
    # Only what stands before a value is searched: inside a harmless value there may be a secret.
    for found in opening.finditer(text):
        if found.start() >= position and is_secret(found) and (value := _VALUE.match(text, found.end())):
            parts += [text[position : found.end()], HIDDEN]
            position = value.end()
    return "".join([*parts, text[position:]])
