"""The project's pages for users: their code blocks, code spans and links."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = (
    README,
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "examples").rglob("README.md")),
)

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_NOT_RUN = re.compile(r"<!-- not run: .+ -->\n\Z")


@dataclass(frozen=True)
class Block:
    """A code block of a page.

    Attributes:
        language: What stands after its fence.
        text: Its lines.
        skipped: Whether the line above it is `<!-- not run: REASON -->`.
        output: The block of language `text` that follows it, None without one.
    """

    language: str
    text: str
    skipped: bool
    output: str | None


def blocks(page: Path) -> Iterator[Block]:
    """Yield the code blocks of a page, except those that show output."""
    text = page.read_text("utf-8")
    fences = list(_FENCE.finditer(text))
    for fence, following in zip_longest(fences, fences[1:]):
        language, code = fence.groups()
        if language == "text":
            continue
        output = None
        if following is not None and following[1] == "text":
            between = text[fence.end() : following.start()]
            output = following[2] if not between.strip() else None
        skipped = _NOT_RUN.search(text[: fence.start()]) is not None
        yield Block(language, code, skipped, output)


def code(page: Path) -> list[str]:
    """Return the lines of a page's code blocks, continued lines joined, and its code spans."""
    text = page.read_text("utf-8")
    rest = _FENCE.sub("", text)
    lines = [
        line for block in blocks(page) for line in block.text.replace("\\\n", " ").splitlines()
    ]
    return [*lines, *re.findall(r"`([^`]+)`", rest)]


def links(page: Path) -> list[str]:
    """Return the targets of a page's links."""
    return re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", page.read_text("utf-8")))


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    text = _FENCE.sub("", page.read_text("utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
