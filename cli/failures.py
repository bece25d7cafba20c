"""End the program after a failure: one sentence on stderr, and an exit code."""

import os
import sys
import traceback
from typing import NoReturn

import click

from mixout_export.errors import MixoutError
from mixout_export.printable import printable
from mixout_export_cli.output import InterruptionError, abandon_broken_streams


def _fail(message: str, code: int) -> NoReturn:
    """Exit with one sentence on stderr."""
    try:
        click.echo(printable(f"mixout-export: {' '.join(message.split())}"), err=True)
    except OSError:
        abandon_broken_streams()
    sys.exit(code)


def leave(error: Exception, *, hint: str) -> NoReturn:
    """Print what went wrong and exit.

    Args:
        error: The error that a command raised.
        hint: How to see the traceback of an unexpected error.

    Raises:
        SystemExit: Always.
    """
    if isinstance(error, click.UsageError):
        error.show()
        sys.exit(2)
    if isinstance(error, click.ClickException):
        _fail(error.format_message(), 1)
    if isinstance(error, MixoutError):
        _fail(str(error), error.exit_code)
    if isinstance(error, InterruptionError):
        _fail(str(error), error.exit_code)
    if isinstance(error, BrokenPipeError):
        abandon_broken_streams()
        sys.exit(1)
    if isinstance(error, OSError):
        abandon_broken_streams()
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", 1)
    if isinstance(error, MemoryError):
        _fail("not enough memory; choose a smaller batch or model", 1)
    last = traceback.extract_tb(error.__traceback__)[-1]
    _fail(
        f"internal error, {type(error).__name__} in {os.path.basename(last.filename)}:"
        f"{last.lineno}: {str(error)[:300]}; {hint}, and please report it",
        1,
    )
