"""`mixout-export onnx`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mixout_export_cli.command import Command
from mixout_export_cli.following import after_graph
from mixout_export_cli.imports import quick_imports
from mixout_export_cli.options import PATH, output_options, overwrite_option
from mixout_export_cli.output import Output, human_size, next_command

if TYPE_CHECKING:
    from mixout_export.stages.onnx_export import OnnxResult


def _describe(result: "OnnxResult") -> str:
    kind = result.precision + (", optimized" if result.optimized else "")
    text = f"{result.path}: {kind}, opset {result.opset}, {result.nodes} nodes, "
    text += human_size(result.bytes)
    parity = result.parity
    if parity is None:
        return text + ", not compared with PyTorch"
    text += f", outputs within {parity.max_abs:.1e} of PyTorch's"
    for output in parity.outputs:
        if result.precision != "fp32" and output.judged is not None:
            judged, which = output.judged, "" if output.on_data else "clear "
            if not judged.decisions:
                text += (
                    f"\n{output.name}: none of {output.decisions} decisions is clear enough to be "
                    f"judged; the output differs by {output.relative_l2:.2g} of its norm"
                )
                continue
            text += (
                f"\n{output.name}: {judged.agreement:.2%} of {judged.decisions} {which}decisions "
                f"equal PyTorch's, and probabilities differ by {judged.mean_shift:.2g} on average"
            )
    for output in () if parity.generation is None else parity.generation.outputs:
        how = output.name.removeprefix("logits ")
        equal = output.decisions - output.flips
        text += f"\n{equal} of {output.decisions} tokens generated {how} equal PyTorch's"
    return text


@click.command(cls=Command)
@click.argument("source", type=PATH)
@click.argument("out", type=PATH)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="Precision of the weights. int8 also quantizes activations: by the range of each batch, "
    "or by fixed ranges with --calibration-data.",
)
@click.option(
    "--optimize",
    is_flag=True,
    help="Apply onnxruntime's graph optimizations, if the outputs stay within tolerance.",
)
@click.option(
    "--opset",
    type=int,
    default=20,
    show_default=True,
    help="Version of the ONNX operator set, 18 to 23.",
)
@click.option(
    "--no-cache",
    is_flag=True,
    help="For causal language models: do not write the second graph, which has a key/value cache.",
)
@click.option(
    "--calibration-data",
    type=PATH,
    metavar="FILE",
    help="Calibrate int8 activations on this file (static quantization). Without it, quantization "
    "is dynamic.  [optional]",
)
@click.option(
    "--calibration-examples",
    type=int,
    default=256,
    show_default=True,
    help="Number of rows of --calibration-data to use.",
)
@click.option(
    "--reduce-range",
    is_flag=True,
    help="Use 7 instead of 8 bits for int8 weights. Use this for x86 processors without VNNI.",
)
@click.option(
    "--data",
    type=PATH,
    metavar="FILE",
    help="Also compare on the texts of this file, and judge decisions by them: csv, tsv, jsonl or "
    "parquet, optionally with .gz.  [optional]",
)
@click.option("--max-examples", type=int, help="Number of rows of --data to use.  [default: all]")
@click.option(
    "--text-column",
    metavar="NAME",
    help="Column with the text in these files.  [default: detected by name]",
)
@click.option(
    "--text-pair-column",
    metavar="NAME",
    help="Column with the second text in these files.  [default: detected by name]",
)
@click.option(
    "--min-agreement",
    type=float,
    help="Minimum share of decisions that must equal PyTorch's, in [0, 1].  [default: 0.97 for "
    "int8; fp32 and fp16 are judged by tolerance]",
)
@click.option("--no-verify", is_flag=True, help="Skip the comparison with PyTorch.")
@overwrite_option
@output_options
def onnx(
    source: Path,
    out: Path,
    *,
    precision: str,
    optimize: bool,
    opset: int,
    no_cache: bool,
    calibration_data: Path | None,
    calibration_examples: int,
    reduce_range: bool,
    data: Path | None,
    max_examples: int | None,
    text_column: str | None,
    text_pair_column: str | None,
    min_agreement: float | None,
    no_verify: bool,
    overwrite: bool,
    output: Output,
) -> None:
    """Export SOURCE, a collapsed or a mixout checkpoint, to OUT, an ONNX folder.

    The graph is compared with PyTorch before OUT appears. If they differ by more than the
    tolerance, or decide differently too often, the exit code is 3 and OUT is not written.
    """
    with quick_imports():
        from mixout_export.data.columns import ColumnNames
        from mixout_export.export.precision import Conversion
        from mixout_export.stages.onnx_export import ExportData, export_onnx

    result = export_onnx(
        source,
        out,
        opset=opset,
        cache=not no_cache,
        verify=not no_verify,
        overwrite=overwrite,
        conversion=Conversion(precision, optimize=optimize, reduce_range=reduce_range),
        data=ExportData(
            data=data,
            max_examples=max_examples,
            calibration=calibration_data,
            calibration_examples=calibration_examples,
            columns=ColumnNames(text=text_column, text_pair=text_pair_column),
        ),
        min_agreement=min_agreement,
    )
    unverified = next_command("verify", source, out)
    following = unverified if result.parity is None else after_graph(out)
    output.result(result, _describe(result), following=following)
