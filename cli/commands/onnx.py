"""`mixout-export onnx`."""

from pathlib import Path

import click

from mixout_export_cli.command import Command
from mixout_export_cli.imports import quick_imports
from mixout_export_cli.options import PATH, output_options, overwrite_option
from mixout_export_cli.output import Output, human_size


@click.command(cls=Command)
@click.argument("source", type=PATH)
@click.argument("out", type=PATH)
@click.option(
    "--opset",
    type=int,
    default=20,
    show_default=True,
    help="Version of the ONNX operators, 18 to 23.",
)
@click.option(
    "--no-cache",
    is_flag=True,
    help="Of a causal language model, write no second graph with a key/value cache.",
)
@click.option("--no-verify", is_flag=True, help="Do not compare the graph with PyTorch.")
@overwrite_option
@output_options
def onnx(
    source: Path,
    out: Path,
    *,
    opset: int,
    no_cache: bool,
    no_verify: bool,
    overwrite: bool,
    output: Output,
) -> None:
    """Export SOURCE, a collapsed or a mixout checkpoint, to OUT, an ONNX folder.

    The graph is compared with PyTorch before OUT appears; a difference above tolerance is exit
    code 3 and leaves nothing at OUT.
    """
    with quick_imports():
        from mixout_export.stages.onnx_export import export_onnx

    result = export_onnx(
        source, out, opset=opset, cache=not no_cache, verify=not no_verify, overwrite=overwrite
    )
    text = f"{out}: opset {result.opset}, {result.nodes} nodes, {human_size(result.bytes)}"
    if result.parity is None:
        text += ", not compared with PyTorch"
    else:
        text += f", within {result.parity.max_abs:.1e} of PyTorch"
    if result.parity is not None and result.parity.generation is not None:
        generation = result.parity.generation
        how = "with and without a cache" if result.cached_graph is not None else "without a cache"
        text += f"\n{generation.tokens} tokens generated {how}, as PyTorch does"
    output.result(result, text)
