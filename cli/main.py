"""The program `mixout-export`: its commands, and how each failure leaves."""

import os
import sys
import traceback

import click

from mixout_export.errors import MixoutError
from mixout_export.version import __version__
from mixout_export_cli.commands.collapse import collapse
from mixout_export_cli.commands.demo import demo
from mixout_export_cli.commands.inspect import inspect
from mixout_export_cli.commands.onnx import onnx
from mixout_export_cli.commands.prepare import prepare
from mixout_export_cli.commands.train import train
from mixout_export_cli.commands.verify import verify

_DEBUG = "MIXOUT_EXPORT_DEBUG"


class _InOrder(click.Group):
    """A group that lists its commands in the order of a checkpoint's way."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mixout-export")
def cli() -> None:
    r"""Finetune with Mixout, collapse to a plain model, export it, and prove it stayed the same.

    \b
    prepare -> train -> collapse -> onnx        verify, inspect, demo

    Exit codes: 0 done; 1 could not be done; 2 wrong usage; 3 parity does not hold.
    """


for command in (prepare, train, collapse, onnx, verify, inspect, demo):
    cli.add_command(command)


def _silence_libraries() -> None:
    """Keep libraries from talking on stderr before anything of them is imported."""
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("HF_HUB_DISABLE_TELEMETRY", "1"),
        ("TOKENIZERS_PARALLELISM", "true"),
    ):
        os.environ.setdefault(name, value)


def _fail(message: str, code: int) -> None:
    click.echo(f"mixout-export: {message}", err=True)
    sys.exit(code)


def _run() -> None:
    try:
        code = cli.main(standalone_mode=False)
    except click.UsageError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message(), 1)
    except MixoutError as error:
        _fail(" ".join(str(error).split()), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted; what was there before is untouched", 130)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (the reader left; nothing more to say)
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", 1)
    except MemoryError:
        _fail("not enough memory; choose a smaller batch or model", 1)
    else:
        sys.exit(code if isinstance(code, int) else 0)


def main() -> None:
    """Run the program and exit."""
    _silence_libraries()
    if os.environ.get(_DEBUG):
        cli.main()
        return
    try:
        _run()
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = " ".join(str(error).split())[:300]
        _fail(
            f"internal error, {type(error).__name__} in {os.path.basename(last.filename)}:"
            f"{last.lineno}: {text}; set {_DEBUG}=1 to see where, and report it",
            1,
        )
