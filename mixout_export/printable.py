"""Text that anybody may have written, as people are shown it."""

import re

#: Control characters, and those that turn the direction of what follows them.
_HIDDEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

#: Most characters of a text within a sentence.
_LONGEST = 300


def printable(text: str) -> str:
    """Return text in which characters that cannot be seen, or encoded, are named: ⟨U+202E⟩."""
    return _HIDDEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def one_line(text: object) -> str:
    """Return a text as a sentence can hold it: on one line, not too long, nothing hidden in it."""
    line = printable(" ".join(str(text)[: 4 * _LONGEST].split()))
    return line if len(line) <= _LONGEST else line[:_LONGEST] + "…"
