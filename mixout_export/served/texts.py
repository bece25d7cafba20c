"""Parse text from a server, which may contain anything."""

import re


def parse_uint(text: str) -> int | None:
    """Return a text of 1 to 15 digits as a number; None for any other text."""
    return int(text) if re.fullmatch(r"[0-9]{1,15}", text) else None
