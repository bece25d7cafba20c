"""`mixout-export collapse`."""

from pathlib import Path
from typing import Any

import click

from mixout_export_cli.command import Command
from mixout_export_cli.following import after_model
from mixout_export_cli.options import PATH, option, output_options, overwrite_option
from mixout_export_cli.output import Output, human_size


@click.command(cls=Command)
@click.argument("trained", type=PATH)
@click.argument("out", type=PATH)
@option(
    "--interpolate",
    default=1.0,
    metavar="ALPHA",
    help="Interpolate toward the base: (1 - ALPHA) x pretrained + ALPHA x trained, with ALPHA in "
    "[0, 1]. 1 keeps the trained weights, 0 gives the base back.",
)
@option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16", "float64"]),
    help="Convert the weights to this dtype.  [default: unchanged]",
)
@overwrite_option
@output_options
def collapse(trained: Path, out: Path, *, output: Output, **options: Any) -> None:
    """Turn TRAINED, a Mixout checkpoint, into OUT, a plain Hugging Face folder.

    OUT loads where this tool is not installed. Without --interpolate and --dtype, the weights do
    not change by a single bit.
    """
    from mixout_export.stages.collapse import collapse_checkpoint

    result = collapse_checkpoint(trained, out, **options)
    how = "weights unchanged, bit for bit"
    if result.interpolated:
        how = f"{result.interpolated} of them interpolated with ALPHA {result.interpolate:g}"
    if result.dtype is not None:
        how = f"converted to {result.dtype}" + (f", {how}" if result.interpolated else "")
    text = f"{out}: plain checkpoint, {result.tensors} tensors, {human_size(result.bytes)}, {how}"
    output.result(result, text, following=after_model(out))
