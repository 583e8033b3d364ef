"""The Markdown of a merge request's comment: the same plan always gives the same text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from operations.preview import policies
from operations.preview.changes import Change
from operations.preview.data_loss import DataLoss
from operations.preview.failures import Cause
from operations.preview.interruptions import Basis, Interruption
from operations.preview.log import Action
from operations.preview.markdown import details, escaped, plural
from operations.preview.policies import Finding, Group
from operations.preview.report import Report, Verdict

LARGEST_LIMIT: Final = 990_000
"""GitLab accepts 1,000,000 characters in one note; the rest is for what is added when it is published."""
DEFAULT_LIMIT: Final = 60_000
"""Characters of a comment; more nobody reads."""
SMALLEST_LIMIT: Final = 6_000
"""Room for the shortest form that still says everything that matters."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Room:
    """How much of everything is told."""

    items: int
    words: int
    characters: int
    """Of one sentence."""
    picture: bool


_ROOMS: Final = (
    _Room(items=1000, words=100, characters=1500, picture=True),
    _Room(items=200, words=30, characters=800, picture=True),
    _Room(items=100, words=15, characters=500, picture=True),
    _Room(items=50, words=10, characters=400, picture=False),
    _Room(items=20, words=5, characters=300, picture=False),
    _Room(items=10, words=3, characters=200, picture=False),
    _Room(items=5, words=2, characters=160, picture=False),
    _Room(items=2, words=1, characters=120, picture=False),
    _Room(items=1, words=0, characters=80, picture=False),
)
"""From everything to the least; the first that fits is taken."""

_HEADINGS: Final = {
    Action.DELETE: "Deleted",
    Action.REPLACE: "Deleted and made anew",
    Action.UPDATE: "Changed",
    Action.CREATE: "Made",
}
_GROUPS: Final = {
    Group.REFUSED: "Refused: `pulumi up` will not run before this is put right",
    Group.EXPIRED_WAIVER: "Waivers that do not hold",
    Group.ADVICE: "Advice",
    Group.CHECKED_LATER: "Can only be checked at `pulumi up`",
    Group.WAIVER: "Waivers in force",
}


def marker(stack: str) -> str:
    """The invisible line by which a comment is found again and replaced."""
    return f"<!-- school-postgres preview: {_name(stack)} -->"


def comment(report: Report, limit: int = DEFAULT_LIMIT) -> str:
    """The comment, at most ``limit`` characters long (:data:`SMALLEST_LIMIT` to :data:`LARGEST_LIMIT`).

    What does not fit is counted and said. Raises ``ValueError`` for a limit outside its bounds.
    """
    if not SMALLEST_LIMIT <= limit <= LARGEST_LIMIT:
        raise ValueError(
            f"the limit of a comment is {limit}; allowed are {SMALLEST_LIMIT} to {LARGEST_LIMIT} characters."
        )
    texts = (_written(report, room) for room in _ROOMS)
    return next((text for text in texts if len(text) <= limit), None) or _least(report)


def _written(report: Report, room: _Room) -> str:
    parts = [marker(report.stack), *_opening(report)]
    parts += _failure(report.causes, room)
    parts += _data_loss(report, room)
    parts += _unprotected(report, room)
    parts += _interruptions(report, room)
    parts += _policies(report.policies, room)
    parts += _changes(report.changes, room)
    parts += _warnings(report.warnings, room)
    parts += _picture(report, room)
    parts.append(_closing(report))
    return "\n\n".join(parts) + "\n"


def _least(report: Report) -> str:
    """What is left when nothing fits, since what others wrote is longer when it is escaped."""
    counts = (
        (len(report.data_loss), "thing that loses data", "things that lose data"),
        (len(report.interruptions), "interruption", ""),
        (len(report.policies), "finding of policies", "findings of policies"),
        (len(report.causes), "cause of the failure", "causes of the failure"),
    )
    told = ", ".join(plural(count, one, many) for count, one, many in counts if count)
    more = f"The details do not fit here: {told or 'the names are too long'}. `school preview-comment` shows all of it."
    return "\n\n".join([marker(report.stack), *_opening(report), more, _closing(report)]) + "\n"


def _name(stack: str) -> str:
    return "".join(character if character.isalnum() or character in "._-" else "?" for character in stack[:100])


def _opening(report: Report) -> list[str]:
    stack = f"`{_name(report.stack)}`"
    if report.verdict is Verdict.FAILED:
        heading = f"## The preview of stack {stack} failed"
        if report.is_refused:
            heading = f"## Policies refuse the plan for stack {stack}"
        unknown = f"What `{report.command}` would do is **not known**."
        if report.changes:
            unknown = (
                f"`{report.command}` would **not run**. What is told below was planned until then and may not be all."
            )
        return [heading, unknown]
    if report.verdict is Verdict.UNCHANGED:
        stays = f"All {plural(report.resources, 'resource')} are as the program wants them."
        if report.unprotected:
            return [f"## Nothing of stack {stack} changes but its protection", stays]
        return [f"## Stack {stack} is up to date: nothing changes", stays]
    counts = {action: sum(len(one.things) for one in report.changes if one.action is action) for action in _HEADINGS}
    told = ", ".join(f"**{count} {_HEADINGS[action].lower()}**" for action, count in counts.items() if count)
    return [f"## What `{report.command}` would do to stack {stack}", f"{told}. {_verdict(report)}"]


def _verdict(report: Report) -> str:
    if report.data_loss:
        return "**Data would be lost, see below.**"
    if report.interruptions:
        return "No data is lost; something is interrupted."
    return "No data is lost and nothing is interrupted."


def _limited(items: Sequence[T], most: int, write: Callable[[T], str], rest: str) -> list[str]:
    """Every item as a line, or the first of them and how many more there are."""
    lines = [write(item) for item in items[:most]]
    if len(items) > most:
        lines.append(f"- ... and {len(items) - most} more {rest}")
    return lines


def _failure(causes: Sequence[Cause], room: _Room) -> list[str]:
    parts = []
    for cause in causes:
        lines = [f"**{cause.title}.**" + (f" {cause.remedy}" if cause.remedy else "")]
        if cause.messages:
            lines.append("")
            lines += _limited(cause.messages, min(room.items, 5), lambda text: _said(text, room), "like these")
        parts.append("\n".join(lines))
    return parts


def _said(message: str, room: _Room) -> str:
    first, *more = message.splitlines() or [""]
    lines = [f"- {escaped(first, room.characters)}"]
    lines += _limited(
        more, max(room.words, 1), lambda line: f"  - {escaped(line.removeprefix('- '), room.characters)}", "lines"
    )
    return "\n".join(lines)


def _data_loss(report: Report, room: _Room) -> list[str]:
    if not report.data_loss:
        return []
    heading = "### Data that would be lost"

    def line(one: DataLoss) -> str:
        verb = "deleted" if one.action is Action.DELETE else "deleted and made anew"
        why = f" ({escaped(one.why, room.characters)})" if one.why else ""
        title = escaped(one.title, 100)
        lost = escaped(one.lost, max(room.characters, 160))
        return f"- **{title}**: {verb}{why}. {lost} See [{one.see}]({one.see})."

    return [heading, "\n".join(_limited(report.data_loss, room.items, line, "that lose data"))]


def _unprotected(report: Report, room: _Room) -> list[str]:
    if not report.unprotected:
        return []
    lines = _limited(report.unprotected, room.items, lambda title: f"- {escaped(title, 100)}", "without protection")
    return [
        "### Protection that would be lifted",
        "The next run could delete these, with their data:",
        "\n".join(lines),
    ]


def _interruptions(report: Report, room: _Room) -> list[str]:
    if not report.interruptions:
        if report.verdict is Verdict.CHANGES:
            return ["### Expected interruption", "None: nothing exists yet." if report.is_first else "None."]
        return []

    def row(one: Interruption) -> str:
        cells = (escaped(one.what, 100), escaped(one.effect, max(room.characters, 120)), escaped(one.duration, 100))
        return f"| {' | '.join(cells)} | {one.basis} |"

    rows = [row(one) for one in report.interruptions[: room.items]]
    table = "\n".join(["| Who | What | How long | Known from |", "|---|---|---|---|", *rows])
    more = len(report.interruptions) - len(rows)
    notes = [f"... and {more} more."] if more else []
    if any(one.basis is not Basis.CERTAIN for one in report.interruptions):
        notes.append(
            "*measured*: in single runs on one machine ([how it works](docs/how-it-works.md)), yours differs; *estimate*: nobody "
            "has measured just this."
        )
    return ["### Expected interruption", table, *notes]


def _policies(found: Sequence[Finding], room: _Room) -> list[str]:
    if not found:
        return []
    parts = ["### Policies"]

    def line(one: Finding) -> str:
        about = f"{escaped(one.title, 100)}: " if one.title else ""
        rank = ", ".join(word for word in (one.severity, one.enforcement) if word)
        return (
            f"- **{escaped(one.policy, 80)}** ({escaped(rank, 40)}): {about}{escaped(one.message, max(room.characters, 200))} "
            f"See [{escaped(one.see, 120)}]({_target(one.see)})."
        )

    for group, listed in policies.by_group(found).items():
        lines = "\n".join(_limited(listed, room.items, line, "findings"))
        title = f"{_GROUPS[group]} ({len(listed)})"
        open_at_once = group in (Group.REFUSED, Group.EXPIRED_WAIVER, Group.WAIVER)
        parts.append(f"**{title}**\n\n{lines}" if open_at_once else details(title.replace("`", ""), lines))
    return parts


def _target(see: str) -> str:
    """A link that cannot leave the place it stands in."""
    page, _, part = see.partition("#")
    return "#".join(
        "".join(character if character.isalnum() or character in "._/-" else "-" for character in text)
        for text in (page, part)
    )


def _changes(changes: Sequence[Change], room: _Room) -> list[str]:
    if not changes:
        return []
    parts = ["### What changes"]
    for action, heading in _HEADINGS.items():
        listed = [change for change in changes if change.action is action]
        if listed:
            count = sum(len(change.things) for change in listed)
            lines = _limited(listed, room.items, lambda change: _change(change, room), "things")
            parts.append(f"**{heading} ({count})**\n\n" + "\n".join(lines))
    return parts


def _change(change: Change, room: _Room) -> str:
    titles = [escaped(thing.title, 100) for thing in change.things]
    named = ", ".join(titles[: room.items]) + (
        f" and {len(titles) - room.items} more" if len(titles) > room.items else ""
    )
    if change.action is Action.CREATE:
        described = "; ".join(escaped(word, room.characters) for word in change.words[: room.words])
        return f"- **{named}**" + (f": {described}" if described else "") + _parts(change)
    lines = _limited(change.words, room.words, lambda word: f"  - {escaped(word, room.characters)}", "changes")
    lines = [line.replace("- ...", "  - ...", 1) if line.startswith("- ...") else line for line in lines]
    return "\n".join([f"- **{named}**" + ("" if change.words else _parts(change)), *lines])


def _parts(change: Change) -> str:
    return f" ({plural(change.parts, 'resource')})" if change.parts > 1 else ""


def _warnings(warnings: Sequence[str], room: _Room) -> list[str]:
    if not warnings:
        return []
    lines = _limited(warnings, room.items, lambda text: f"- {escaped(text, max(room.characters, 200))}", "warnings")
    return ["### Warnings of the program", "\n".join(lines)]


def _picture(report: Report, room: _Room) -> list[str]:
    if not report.picture.mermaid:
        return []
    if not room.picture:
        return ["(The picture does not fit.)"]
    more = f"\n\n... and {report.picture.left_out} more." if report.picture.left_out else ""
    legend = (
        "Red: deleted or made anew; yellow: changed; green: made; grey: stays, and stands on something that changes."
    )
    return [details("Picture of what is touched", f"```mermaid\n{report.picture.mermaid}\n```\n\n{legend}{more}")]


def _closing(report: Report) -> str:
    counted = (
        ""
        if report.verdict is Verdict.FAILED
        else f"{report.unchanged} of {plural(report.resources, 'resource')} stay as they are. "
    )
    packs = f"Policy packs: {escaped(', '.join(report.packs), 200)}." if report.packs else "No policy pack ran."
    return counted + packs
