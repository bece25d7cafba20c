"""`mixout-export onnx`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mixout_export_cli.command import Command
from mixout_export_cli.following import after_graph
from mixout_export_cli.imports import quick_imports
from mixout_export_cli.options import (
    PATH,
    column_option,
    field_options,
    flag,
    length_option,
    option,
    output_options,
    overwrite_option,
    take,
)
from mixout_export_cli.output import Output, human_size, next_command

if TYPE_CHECKING:
    from mixout_export.stages.onnx_export import OnnxResult


def _describe(result: "OnnxResult") -> str:
    kind = result.precision + (", optimized" if result.optimized else "")
    text = f"{result.path}: {kind}, opset {result.opset}, {result.nodes} nodes, "
    text += human_size(result.bytes)
    return text + _describe_parity(result) + _describe_padding(result)


def _describe_padding(result: "OnnxResult") -> str:
    if result.padding is None:
        return ""
    lines = [f"padding: {count}" for count in result.padding.counts]
    moved = lines and any(effect.moves for effect in result.padding.effects)
    if moved and not result.static:
        lines.append(
            "padding matters because activations are quantized by the range of each batch; "
            "--calibration-data FILE fixes their ranges"
        )
    return "".join(f"\n{line}" for line in lines)


def _describe_parity(result: "OnnxResult") -> str:
    from mixout_export.rounding import difference, share

    parity = result.parity
    if parity is None:
        return ", not compared with PyTorch"
    text = f", outputs within {difference(parity.max_abs)} of PyTorch's"
    for output in parity.outputs:
        counted = parity.counted(output)
        if result.precision == "fp32" or counted is None:
            continue
        only_clear = parity.limits.agreement is not None and not output.on_data
        if not counted.decisions:
            text += (
                f"\n{output.name}: none of {output.decisions} predictions is clear enough to "
                f"be judged; the output differs by {output.relative_l2:.2g} of its norm"
            )
            continue
        text += (
            f"\n{output.name}: {share(counted.agreement)} of {counted.decisions} "
            f"{'clear ' if only_clear else ''}predictions equal PyTorch's, and probabilities "
            f"differ by {counted.mean_shift:.2g} on average"
        )
    for output in () if parity.generation is None else parity.generation.outputs:
        how = output.name.removeprefix("logits ")
        equal = output.decisions - output.flips
        text += f"\n{equal} of {output.decisions} tokens generated {how} equal PyTorch's"
    return text


@click.command(cls=Command)
@click.argument("source", type=PATH)
@click.argument("out", type=PATH)
@option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    help="Precision of the weights. int8 also quantizes activations: by the range of each batch, "
    "or by fixed ranges with --calibration-data.",
)
@flag(
    "--optimize",
    help="Apply onnxruntime's graph optimizations, if the outputs stay within tolerance.",
)
@option(
    "--opset",
    default=20,
    help="Highest version of the ONNX operator set to use, 17 to 23. The graph declares the lowest "
    "version that its operators need.",
)
@flag(
    "--no-cache",
    help="For causal language models: do not write the second graph, which has a key/value cache.",
)
@option(
    "--calibration-data",
    "calibration",
    type=PATH,
    metavar="FILE",
    help="For int8: calibrate activations on this file (static quantization). Without it, "
    "quantization is dynamic. For fp16: also look here for values that are too large.  [optional]",
)
@option(
    "--calibration-examples",
    type=int,
    help="Number of rows of --calibration-data to use.  [default: 256 for int8, all for fp16]",
)
@flag(
    "--reduce-range",
    help="Use 7 instead of 8 bits for int8 weights. Use this for x86 processors without VNNI.",
)
@option(
    "--data",
    type=PATH,
    metavar="FILE",
    help="Also compare on the texts or images of this file or folder, and count equal predicted "
    "labels on them: csv, tsv, jsonl or parquet, optionally with .gz, or a folder of images.  "
    "[optional]",
)
@option("--max-examples", type=int, help="Number of rows of --data to use.  [default: all]")
@length_option
@column_option("--text-column", "the text in these files")
@column_option("--text-pair-column", "the second text in these files")
@column_option("--image-column", "the path of the image in these files")
@field_options
@option(
    "--min-agreement",
    type=float,
    help="Minimum share of predicted labels that must equal PyTorch's, in [0, 1]. For int8, a "
    "share below 0.97 also lifts the limit for probabilities.  [default: 0.97 for int8; fp32 and "
    "fp16 must be within tolerance instead]",
)
@flag("--no-verify", help="Skip the comparison with PyTorch.")
@overwrite_option
@output_options
def onnx(source: Path, out: Path, *, output: Output, **given: Any) -> None:
    """Export SOURCE, a collapsed or a Mixout checkpoint, to OUT, an ONNX folder.

    The graph is compared with PyTorch before OUT appears. If they differ by more than the
    tolerance, or too few predicted labels are equal, the exit code is 3 and OUT is not written.
    """
    with quick_imports():
        from mixout_export.data.columns import ColumnNames
        from mixout_export.data.separated import FieldFormat
        from mixout_export.export.precision import Conversion
        from mixout_export.stages.onnx_export import ExportData, export_onnx

    names = ("text", "text_pair", "image")
    given["columns"] = ColumnNames.named(**{name: given.pop(f"{name}_column") for name in names})
    given["fields"] = FieldFormat(given.pop("delimiter"), given.pop("quoting"))
    result = export_onnx(
        source,
        out,
        cache=not given.pop("no_cache"),
        verify=not given.pop("no_verify"),
        conversion=take(Conversion, given),
        data=take(ExportData, given),
        **given,
    )
    unverified = next_command("verify", source, out)
    following = unverified if result.parity is None else after_graph(out)
    output.result(result, _describe(result), following=following)
