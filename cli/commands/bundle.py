"""`mixout-export bundle`."""

import re
from pathlib import Path
from typing import Any

import click

from mixout_export_cli.command import Command
from mixout_export_cli.following import PORTS, after_bundle
from mixout_export_cli.options import (
    PATH,
    RenamedOption,
    flag,
    option,
    output_options,
    overwrite_option,
    take,
)
from mixout_export_cli.output import Output, count_of, human_size

_SERVERS = ("triton", "mlserver", "openvino", "transformers-js", "optimum")


def _name_of(folder: Path) -> str:
    """Make a model name from a folder name. Underscores replace what an address cannot contain."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", folder.resolve().name)
    return name.lstrip("_.-") or "model"


@click.command(cls=Command)
@click.argument("onnx", type=PATH)
@click.argument("out", type=PATH)
@option(
    "--server",
    type=click.Choice(_SERVERS),
    required=True,
    metavar="SERVER",
    help=f"Target server or runtime: {', '.join(_SERVERS[:-1])} or {_SERVERS[-1]}.",
)
@option(
    "--name",
    metavar="NAME",
    help="Name of the model on the server.  [default: the name of the ONNX folder; for "
    "transformers-js, the name of OUT]",
)
@option(
    "--add-precision",
    "also",
    cls=RenamedOption,
    old_name="--also",
    type=PATH,
    multiple=True,
    metavar="ONNX",
    help="Also include this ONNX folder, the same checkpoint in another precision. Can be "
    "repeated.  [optional]",
)
@option(
    "--model-version",
    "version",
    default=1,
    help="Version of the model, for servers that have versions.",
)
@option(
    "--max-batch-size",
    default=64,
    help="Maximum number of rows in a batch, for servers that have a limit.",
)
@flag("--bom", help="Also write a CycloneDX bill of materials.")
@option(
    "--sign",
    type=PATH,
    metavar="KEY",
    help="Sign OUT with this private key (PEM file).  [optional]",
)
@overwrite_option
@output_options
def bundle(onnx: Path, out: Path, *, output: Output, **given: Any) -> None:
    """Turn ONNX, a folder written by `onnx`, into OUT, which a server or runtime can load directly.

    OUT/README.md has the commands to start the server, send a request and verify the model.
    """
    from mixout_export.bundling.plan import BundleOptions
    from mixout_export.stages.bundle import bundle_onnx

    # transformers.js finds a model by the name of its folder
    given["name"] = given["name"] or _name_of(out if given["server"] == "transformers-js" else onnx)
    options = take(BundleOptions, given)
    result = bundle_onnx(onnx, out, options, **given)
    lines = [f"{out}: for {result.server}, {human_size(result.bytes)}"]
    lines += [f"  {m['name']:<20} {m['precision']}, {m['path']}" for m in result.models]
    if result.tokenizer_texts:
        texts = count_of(result.tokenizer_texts, "text")
        lines.append(f"  {'tokenizer':<20} gives the same tokens as the ONNX folder's on {texts}")
    if result.tokenizer_note:
        lines.append(f"  {'note':<20} {result.tokenizer_note}")
    following = after_bundle(onnx, out, server=result.server, name=result.models[0]["name"])
    page = out / "README.md"
    is_network = result.server in PORTS
    how = f"start the server as {page} says, then run:" if is_network else f"see {page}"
    lines.append(f"  {'how to use it':<20} {how}")
    output.result(result, "\n".join(lines), following=following)
