"""Texts that came from a server, which may hold anything."""

import re

_LONGEST = 300


def shown(text: object) -> str:
    """Return a text as a sentence can hold it: on one line, not too long, nothing hidden in it."""
    line = " ".join(str(text)[: 4 * _LONGEST].split())
    visible = "".join(character if character.isprintable() else "�" for character in line)
    return visible if len(visible) <= _LONGEST else visible[:_LONGEST] + "…"


def natural(text: str) -> int | None:
    """Return the number that a text is, of at most 15 digits; None if it is none."""
    return int(text) if re.fullmatch(r"[0-9]{1,15}", text) else None
