"""The program `mixout-export`. It imports a command when the command is used."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from mixout_export_cli.command import Group, LazyCommands
from mixout_export_cli.output import InterruptionError

_DEBUG = "MIXOUT_EXPORT_DEBUG"

#: All commands in the order of the workflow, with their summaries.
_COMMANDS = {
    "prepare": "Add Mixout to the layers of a pretrained checkpoint.",
    "train": "Finetune a prepared checkpoint.",
    "collapse": "Turn a Mixout checkpoint into a plain one.",
    "onnx": "Export a checkpoint to ONNX.",
    "bundle": "Turn an ONNX folder into the layout of a server or runtime.",
    "verify": "Check that two models compute the same thing.",
    "predict": "Predict each row of a data file.",
    "inspect": "Describe a model folder or a data file.",
    "study": "Compare finetuning with different options on your data.",
    "push": "Upload a folder to the Hugging Face hub.",
    "demo": "Run the complete workflow on a small real model.",
}


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from mixout_export.version import __version__

    click.echo(f"mixout-export, version {__version__}")
    ctx.exit()


@click.group(
    cls=Group,
    commands=LazyCommands("mixout_export_cli.commands", _COMMANDS),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_show_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Finetune a model with Mixout, collapse it to a plain model, export it, and check each step.

    The workflow: prepare, train, collapse, onnx, bundle.

    Exit codes: 0 success, 1 error, 2 wrong usage, 3 the models differ or a manifest check failed.
    """


def _was_interrupted(error: BaseException | None) -> bool:
    """Return whether a library raised this error while it handled Ctrl-C."""
    while error is not None and not isinstance(error, InterruptionError):
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__context__
    return False


def run(arguments: Sequence[str] | None) -> NoReturn:
    """Run the program and exit; see `main`.

    Raises:
        SystemExit: Always, except after Ctrl-C.
        KeyboardInterrupt: The user pressed Ctrl-C.
    """
    if os.environ.get(_DEBUG):
        sys.exit(cli.main(arguments, prog_name="mixout-export", standalone_mode=False) or 0)
    try:
        code = cli.main(arguments, prog_name="mixout-export", standalone_mode=False)
    except click.Abort as error:
        raise KeyboardInterrupt from error
    except Exception as error:
        if _was_interrupted(error):
            raise KeyboardInterrupt from error
        from mixout_export_cli.failures import leave

        leave(error, hint=f"set {_DEBUG}=1 to see the traceback")
    sys.exit(code if isinstance(code, int) else 0)
