"""Text that somebody else wrote, made harmless for GitLab's Markdown."""

from __future__ import annotations

import re
from typing import Final

_ENTITIES: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_SPECIAL = re.compile(r"([\\`*_{}\[\]#!|~@$%^]|:(?=//|[\w+-]+:))")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]+")


def escaped(text: str, longest: int = 0) -> str:
    """One line of plain text: no markup, no HTML, no mention of a person, an issue or a label, no emoji.

    ``longest`` cuts the text to so many characters before it is escaped; 0 leaves it whole.
    """
    line = " ".join(_CONTROL.sub(" ", text).split())
    if longest and len(line) > longest:
        line = f"{line[: max(longest - 4, 0)]} ..."
    line = "".join(_ENTITIES.get(character, character) for character in line)
    # Not the ampersands and semicolons of the entities; everything else that GitLab gives a meaning.
    return _SPECIAL.sub(r"\\\1", line)


def details(summary: str, content: str) -> str:
    """A folded part of a comment. ``summary`` is shown as it stands, ``content`` is Markdown."""
    return f"<details>\n<summary>{summary}</summary>\n\n{content}\n\n</details>"


def plural(number: int, one: str, many: str = "") -> str:
    """``1 machine``, ``2 machines``."""
    return f"{number} {one if number == 1 else many or one + 's'}"
