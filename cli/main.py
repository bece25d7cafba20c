"""The program `mixout-export`: its commands, and how each failure leaves."""

import _thread
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import NoReturn

import click

from mixout_export.errors import MixoutError
from mixout_export.version import __version__
from mixout_export_cli.command import Group
from mixout_export_cli.commands.collapse import collapse
from mixout_export_cli.commands.demo import demo
from mixout_export_cli.commands.inspect import inspect
from mixout_export_cli.commands.onnx import onnx
from mixout_export_cli.commands.prepare import prepare
from mixout_export_cli.commands.train import train
from mixout_export_cli.commands.verify import verify
from mixout_export_cli.output import InterruptionError, abandon_broken_streams

_DEBUG = "MIXOUT_EXPORT_DEBUG"


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mixout-export")
def cli() -> None:
    """Finetune with Mixout, collapse to a plain model, export it, and prove it stayed the same.

    A checkpoint's way: prepare, train, collapse, onnx.

    Exit codes: 0 done; 1 could not be done; 2 wrong usage; 3 parity, or a manifest, does not hold.
    """


for command in (prepare, train, collapse, onnx, verify, inspect, demo):
    cli.add_command(command)


def _silence_libraries() -> None:
    """Keep libraries from talking on stderr, before any of them is imported."""
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1"),
        ("DATASETS_VERBOSITY", "error"),
        ("HF_DATASETS_DISABLE_PROGRESS_BARS", "1"),
        ("HF_HUB_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("HF_HUB_DISABLE_TELEMETRY", "1"),
        ("TORCH_CPP_LOG_LEVEL", "ERROR"),
        ("TOKENIZERS_PARALLELISM", "true"),
    ):
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    sys.unraisablehook = _on_unraisable
    root = logging.getLogger()
    if not root.handlers:  # else Python prints what libraries log without a handler
        root.addHandler(logging.NullHandler())


def _on_unraisable(event: "sys.UnraisableHookArgs") -> None:
    """Swallow what a destructor raises, but Ctrl-C that happens to arrive in one: pass that on."""
    if isinstance(event.exc_value, KeyboardInterrupt):
        _thread.interrupt_main()


def _fail(message: str, code: int) -> NoReturn:
    """Leave with one sentence on stderr."""
    try:
        click.echo(f"mixout-export: {' '.join(message.split())}", err=True)
    except OSError:
        abandon_broken_streams()
    sys.exit(code)


def _run(arguments: Sequence[str] | None) -> None:
    try:
        code = cli.main(arguments, prog_name="mixout-export", standalone_mode=False)
    except click.UsageError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message(), 1)
    except MixoutError as error:
        _fail(str(error), error.exit_code)
    except InterruptionError as error:
        _fail(str(error), 130)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted; what was there before is untouched", 130)
    except BrokenPipeError:
        abandon_broken_streams()
        sys.exit(1)
    except OSError as error:
        abandon_broken_streams()
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", 1)
    except MemoryError:
        _fail("not enough memory; choose a smaller batch or model", 1)
    else:
        sys.exit(code if isinstance(code, int) else 0)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the program and exit.

    Args:
        arguments: What follows the program's name; None takes it from the command line.

    Raises:
        SystemExit: Always.
    """
    if os.environ.get(_DEBUG):
        sys.exit(cli.main(arguments, prog_name="mixout-export", standalone_mode=False) or 0)
    _silence_libraries()
    try:
        _run(arguments)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        _fail(
            f"internal error, {type(error).__name__} in {os.path.basename(last.filename)}:"
            f"{last.lineno}: {str(error)[:300]}; set {_DEBUG}=1 to see where, and report it",
            1,
        )
    sys.exit(0)
