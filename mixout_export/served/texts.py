"""Texts that came from a server, which may hold anything."""

import re


def parse_uint(text: str) -> int | None:
    """Return the number that a text is, of at most 15 digits; None if it is none."""
    return int(text) if re.fullmatch(r"[0-9]{1,15}", text) else None
