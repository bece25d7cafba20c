"""Write results to stdout, and everything else to stderr."""

import dataclasses
import json
import logging
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from mixout_export.printable import printable

_NAME = "mixout-export"


class InterruptionError(Exception):
    """Ctrl-C or another signal, with a sentence that says how to continue.

    Args:
        message: The sentence.
        number: The number of the signal; None means Ctrl-C.
    """

    def __init__(self, message: str, number: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = 128 + (number or signal.SIGINT)  # the convention of shells


def abandon_broken_streams() -> None:
    """Discard what is left for a stream whose reader is gone or whose disk is full.

    Otherwise Python reports at exit that the stream could not be flushed.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, stream.fileno())
            os.close(sink)


def human_size(count: int) -> str:
    """Return a number of bytes in a readable unit, as in "90.9 MB"."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def count_of(count: int, noun: str) -> str:
    """Return a count with its noun, as in "1 layer" and "12 layers"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def number(value: float | None, digits: int = 4) -> str:
    """Return a rounded number. `None` gives "-", and an undefined number gives "nan"."""
    return "-" if value is None else f"{value:.{digits}f}"


def last_line(text: str) -> str:
    """Return the last line of a text: of a traceback, what went wrong."""
    return text.strip().rpartition("\n")[2]


def duration(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds: "1:02:03"."""
    return str(timedelta(seconds=round(seconds)))


def _program() -> list[str]:
    """Return how a shell starts this program: by its name, if it is on PATH, else by its path."""
    script = Path(sys.executable).with_name(_NAME)
    if shutil.which(_NAME) is not None:
        return [_NAME]
    return [str(script)] if script.is_file() else [sys.executable, "-m", "mixout_export_cli"]


def next_command(command: str, *arguments: str | Path) -> str:
    """Return the command that the user types next, quoted for a shell.

    Args:
        command: A command of this program, such as "collapse".
        arguments: Its arguments, paths as the user gave them.
    """
    return shlex.join([*_program(), command, *map(str, arguments)])


def recorded_command(command: str) -> str:
    """Return a recorded command line as a shell here starts it.

    Args:
        command: Variables, `mixout-export`, a command and its arguments, quoted for a shell.
    """
    return command.replace(f" {_NAME} ", f" {shlex.join(_program())} ", 1)


def labeled(label: str, text: object) -> str:
    """Return a line with a label, aligned with others of the same command."""
    return f"{label:<13}{text}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return lines with aligned columns: numbers to the right, text to the left."""
    rows = [[" ".join(cell.splitlines()) for cell in row] for row in rows]
    cells = [list(header), *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    right = [all(_looks_numeric(row[i]) for row in rows) for i in range(len(header))]
    lines = []
    for row in [cells[0], ["-" * width for width in widths], *cells[1:]]:
        parts = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def label_table(scores: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of the figures of each label, from the fields of `LabelScores`."""
    counts, shares = ("rows", "predicted"), ("precision", "recall", "f1")
    rows = [
        [one["label"], *(f"{one[n]:,}" for n in counts), *(number(one[n]) for n in shares)]
        for one in scores
    ]
    return table(["label", *counts, *shares], rows)


def _looks_numeric(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] in "-+" or cell in ("", "nan")


def _encodable(text: str) -> str:
    """Return text that stdout can encode, whatever the locale and the bytes of a path.

    Names and labels come from files that anybody may have written, so invisible characters are
    spelled out.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return printable(text).encode(encoding, "backslashreplace").decode(encoding)


def _is_main_process() -> bool:
    """Return whether this process prints. Of those that torchrun started, only the first does."""
    return os.environ.get("RANK", "0") == "0"


class _Warnings(logging.Handler):
    """Keeps the library's warnings until the command has succeeded."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@dataclasses.dataclass
class Output:
    """Writes the output of a command.

    Attributes:
        json: Write one JSON object to stdout, and nothing else there.
        quiet: Write only the result.
    """

    json: bool = False
    quiet: bool = False
    _warnings: _Warnings = dataclasses.field(default_factory=_Warnings, repr=False)

    def __post_init__(self) -> None:
        logger = logging.getLogger("mixout_export")
        logger.propagate = False
        logger.handlers = [self._warnings]

    @property
    def shows_progress(self) -> bool:
        """Whether to show a live display."""
        return not self.quiet and sys.stderr.isatty() and _is_main_process()

    def note(self, text: str) -> None:
        """Write a line to stderr, unless `--quiet` was given."""
        if self.quiet or not _is_main_process():
            return
        try:
            click.echo(printable(text), err=True)
        except OSError:
            self.quiet = True  # a reader that is gone is no reason to stop the work

    def result(self, result: Any, text: str, *, following: str | None = None) -> None:
        """Write the command's result.

        Args:
            result: The JSON object, as a dataclass or dictionary.
            text: The same for people.
            following: The command to type next, from `next_command`. It is the last line for
                people and is left out with `--json` and `--quiet`.
        """
        for line in dict.fromkeys(self._warnings.lines):  # a folder may be opened several times
            self.note(f"warning: {line}")
        self._warnings.lines.clear()
        if not _is_main_process():
            return
        if self.json:
            from mixout_export.files.json_files import as_json

            click.echo(json.dumps(as_json(result), allow_nan=False))
        else:
            click.echo(_encodable(text))
            if following is not None and not self.quiet:
                click.echo(_encodable(f"next: {following}"))
