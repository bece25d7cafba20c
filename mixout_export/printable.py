"""Make text from files and servers safe to show: no hidden or control characters."""

import re

#: Control characters, characters that change the direction of text, lone surrogates, and those that
#: XML does not allow.
_HIDDEN = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)

#: Largest number of characters that `one_line` keeps.
_LONGEST = 300


def printable(text: str) -> str:
    """Replace each character that is invisible or cannot be encoded by its name: ⟨U+202E⟩."""
    return _HIDDEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def one_line(text: object) -> str:
    """Return a text that fits into a sentence: printable, on one line, at most 300 characters."""
    line = printable(" ".join(str(text)[: 4 * _LONGEST].split()))
    return line if len(line) <= _LONGEST else line[:_LONGEST] + "…"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, without its final full stop."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if "StrictDataclassError" in names and error.__cause__ is not None:
        error = error.__cause__  # its own first line only announces the reason
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
