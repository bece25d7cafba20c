"""Text that any name may stand in without becoming markup."""

import re
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~&$])")


def inline(text: object) -> str:
    """Return text for one line of Markdown, shown as it is: no markup, no line breaks."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table; its cells are shown as they are."""
    lines = [header, ["---"] * len(header), *([inline(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def python(code: str) -> str:
    """Return a block of Python."""
    return f"```python\n{code.strip()}\n```"
