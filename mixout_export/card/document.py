"""A card: the header that the hub reads, what it is, and sections.

A card travels with the model. What a user writes into one, as a section or into the header, is in
the next step's too; only what a step knows better itself is written again.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

logger = logging.getLogger(__name__)

#: Tells our cards from others'; a comment, which nobody is shown.
MARK = "<!-- Written by mixout-export; what you add is kept by the next step. -->"

#: The pattern of `huggingface_hub.repocard`, whose import would double the start-up of `collapse`.
_HEADER = re.compile(r"^(?:\s*---(?:\r\n|\r|\n))([\S\s]*?)(?:(?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|$))")
_FENCE = re.compile(r" {0,3}(```|~~~)")


@dataclass(frozen=True)
class Section:
    """A part of a card: the heading of the second level, and its text as Markdown."""

    heading: str
    text: str


@dataclass(frozen=True)
class Card:
    """A model card: the header's entries, Markdown before the first section, and the sections."""

    header: Mapping[str, Any] = field(default_factory=dict)
    opening: str = ""
    sections: tuple[Section, ...] = ()

    @property
    def is_ours(self) -> bool:
        """Whether this tool wrote it."""
        return MARK in self.opening

    @property
    def title(self) -> str:
        """The heading of the first level, as Markdown; "" if there is none."""
        found = re.search(r"^# +(.+)$", self.opening, re.MULTILINE)
        return found[1].strip() if found else ""

    def section(self, heading: str) -> str:
        """Return a section's text, "" if there is none."""
        return next((s.text for s in self.sections if s.heading == heading), "")

    def without(self, *headings: str) -> "Card":
        """Return the card without these sections."""
        return replace(self, sections=tuple(s for s in self.sections if s.heading not in headings))

    def ending_with(self, sections: Mapping[str, str]) -> "Card":
        """Return the card with these sections at its end, in place of those of the same name."""
        added = tuple(Section(heading, text) for heading, text in sections.items() if text)
        kept = self.without(*sections)
        return replace(kept, sections=(*kept.sections, *added))

    def to_text(self) -> str:
        """Return the file's text."""
        header = {key: value for key, value in self.header.items() if value not in (None, [], {})}
        shown = yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=1000)
        parts = [f"---\n{shown}---" if header else "", self.opening.strip()]
        parts += [f"## {section.heading}\n\n{section.text.strip()}" for section in self.sections]
        return "\n\n".join(part for part in parts if part) + "\n"


def opening(title: str, lead: str) -> str:
    """Return the beginning of a card of ours; `lead` says in a sentence what the model is."""
    return f"{MARK}\n\n# {title}\n\n{lead}"


def _lines_outside_code(lines: list[str]) -> Iterator[tuple[int, str]]:
    fence = ""
    for number, line in enumerate(lines):
        found = _FENCE.match(line)
        if found and fence in ("", found[1]):
            fence = "" if fence else found[1]
        elif not fence:
            yield number, line


def _parts(body: str) -> tuple[str, tuple[Section, ...]]:
    lines = body.splitlines()
    starts = [n for n, line in _lines_outside_code(lines) if line.startswith("## ")]
    ends = [*starts, len(lines)][1:]
    sections = tuple(
        Section(lines[start][3:].strip(), "\n".join(lines[start + 1 : end]).strip())
        for start, end in zip(starts, ends, strict=True)
    )
    return "\n".join(lines[: starts[0] if starts else None]).strip(), sections


def _header(text: str, path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # a 13th month is a ValueError
        logger.warning("%s: its header is not YAML and is left out of the next card", path)
        return {}
    return found if isinstance(found, dict) else {}


def read_card(path: Path) -> Card:
    """Read a card, ours or not; what is not there or cannot be read is empty."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return Card()
    found = _HEADER.match(text)
    header = _header(found[1], path) if found else {}
    return Card(header, *_parts(text[found.end() :] if found else text))


def write_card(card: Card, path: Path) -> None:
    """Write a card."""
    path.write_text(card.to_text(), encoding="utf-8", newline="\n")
