"""The page: sections with what is to be done, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

LEVELS = {
    "now": "Wrong with this release",
    "look": "To look at",
    "then": "To keep up",
}


@dataclass(frozen=True)
class Todo:
    """Something that a maintainer has to do.

    Attributes:
        level: Key of :data:`LEVELS`.
        text: What, and where: file, table, rule or command; Markdown.
    """

    level: str
    text: str


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: Heading.
        lines: Lines of Markdown.
        todo: What is to be done.
        unasked: Why this part could not be asked; empty: it was.
    """

    title: str
    lines: Sequence[str]
    todo: Sequence[Todo] = ()
    unasked: str = ""


@dataclass
class Page:
    """The whole page.

    Attributes:
        title: Heading.
        head: Lines above the sections.
        sections: Sections in their order.
    """

    title: str
    head: Sequence[str]
    sections: list[Section] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every part could be asked."""
        return not any(s.unasked for s in self.sections)

    def markdown(self) -> str:
        """Return the text of the page."""
        lines = [f"# {self.title}", "", *self.head, "", "## What to do", ""]
        todo = [(s.title, t) for s in self.sections for t in s.todo]
        for level, words in LEVELS.items():
            chosen = [(title, t) for title, t in todo if t.level == level]
            lines += [f"**{words}** ({len(chosen)}):", ""]
            lines += [f"- [ ] {_ended(t.text)} ({title})" for title, t in chosen] or ["Nothing."]
            lines.append("")
        for section in self.sections:
            lines += [f"## {section.title}", ""]
            if section.unasked:
                lines += [f"**Not known**: {code(section.unasked, 300)}", ""]
            lines += [*section.lines, ""]
        text = "\n".join(lines)
        while "\n\n\n" in text:
            text = text.replace("\n\n\n", "\n\n")
        return text.rstrip() + "\n"


def _ended(text: str) -> str:
    return text if text.endswith((".", "?")) else f"{text}."


def code(text: str, most: int = 240) -> str:
    """Return a text as code, which may stand in a cell."""
    line = " ".join(str(text).split()).replace("`", "'")
    line = line if len(line) <= most else f"{line[: most - 1]}…"
    return f"`{line.replace('|', chr(92) + '|')}`" if line else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table."""
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def listed(names: Sequence[str], most: int = 40) -> str:
    """Return names as code, with commas between."""
    shown = ", ".join(code(n) for n in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
