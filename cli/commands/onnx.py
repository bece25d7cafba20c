"""`mixout-export onnx`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mixout_export_cli.command import Command
from mixout_export_cli.imports import quick_imports
from mixout_export_cli.options import PATH, output_options, overwrite_option
from mixout_export_cli.output import Output, human_size

if TYPE_CHECKING:
    from mixout_export.stages.onnx_export import OnnxResult


def _describe(result: "OnnxResult") -> str:
    kind = result.precision + (", optimised" if result.optimized else "")
    text = f"{result.path}: {kind}, opset {result.opset}, {result.nodes} nodes, "
    text += human_size(result.bytes)
    parity = result.parity
    if parity is None:
        return text + ", not compared with PyTorch"
    text += f", within {parity.max_abs:.1e} of PyTorch"
    for output in parity.outputs:
        if result.precision != "fp32" and output.judged is not None:
            judged, where = output.judged, "on the data" if output.on_data else "that are sure"
            if not judged.decisions:
                text += (
                    f"\n{output.name}: sure of none of {output.decisions} decisions; it differs by "
                    f"{output.relative_l2:.2g} of its norm"
                )
                continue
            text += (
                f"\n{output.name}: {judged.agreement:.2%} of {judged.decisions} decisions {where} "
                f"are PyTorch's, probabilities moved by {judged.mean_shift:.2g} in the mean"
            )
    for output in () if parity.generation is None else parity.generation.outputs:
        how = output.name.removeprefix("logits ")
        equal = output.decisions - output.flips
        text += f"\n{equal} of {output.decisions} tokens generated {how} are PyTorch's"
    return text


@click.command(cls=Command)
@click.argument("source", type=PATH)
@click.argument("out", type=PATH)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="Of the weights; int8 rounds activations too, by each batch's own range.",
)
@click.option(
    "--optimize",
    is_flag=True,
    help="Apply onnxruntime's graph optimisations, where parity holds with them.",
)
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
@click.option(
    "--calibration-data",
    type=PATH,
    metavar="FILE",
    help="Of int8, find activations' range on these texts, once and for all.  [default: none]",
)
@click.option(
    "--calibration-examples",
    type=int,
    default=256,
    show_default=True,
    help="Rows of --calibration-data to run.",
)
@click.option(
    "--reduce-range",
    is_flag=True,
    help="Of int8, use 7 bits for weights: for x86 processors without VNNI.",
)
@click.option(
    "--data",
    type=PATH,
    metavar="FILE",
    help="Compare on the texts of this file too, and judge decisions by them: csv, tsv, jsonl, "
    "parquet, or .gz.  [default: none]",
)
@click.option("--max-examples", type=int, help="Rows of --data to run.  [default: all]")
@click.option(
    "--text-column",
    metavar="NAME",
    help="Column of the text in these files.  [default: found by the usual names]",
)
@click.option(
    "--text-pair-column",
    metavar="NAME",
    help="Column of the second text in these files.  [default: found by the usual names]",
)
@click.option(
    "--min-agreement",
    type=float,
    help="Least share of decisions that are PyTorch's.  [default: by precision, int8 0.97]",
)
@click.option("--no-verify", is_flag=True, help="Do not compare the graph with PyTorch.")
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

    The graph is compared with PyTorch before OUT appears; a difference above tolerance, or too few
    of the same decisions, is exit code 3 and leaves nothing at OUT.
    """
    with quick_imports():
        from mixout_export.export.precision import Conversion
        from mixout_export.stages.onnx_export import ExportData, export_onnx
        from mixout_export.training.columns import ColumnNames

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
    output.result(result, _describe(result))
