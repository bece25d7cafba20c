"""`mixout-export bundle`."""

import re
from pathlib import Path

import click

from mixout_export_cli.command import Command
from mixout_export_cli.following import after_bundle
from mixout_export_cli.options import PATH, RenamedOption, output_options, overwrite_option
from mixout_export_cli.output import Output, human_size

_SERVERS = ("triton", "mlserver", "openvino", "transformers-js", "optimum")


def _name_of(folder: Path) -> str:
    """Make a model name from a folder name. Underscores replace what an address cannot contain."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", folder.resolve().name)
    return name.lstrip("_.-") or "model"


@click.command(cls=Command)
@click.argument("onnx", type=PATH)
@click.argument("out", type=PATH)
@click.option(
    "--server",
    type=click.Choice(_SERVERS),
    required=True,
    metavar="SERVER",
    help=f"Target server or runtime: {', '.join(_SERVERS[:-1])} or {_SERVERS[-1]}.",
)
@click.option(
    "--name",
    metavar="NAME",
    help="Name of the model on the server.  [default: name of the ONNX folder, for "
    "transformers-js name of OUT]",
)
@click.option(
    "--add-precision",
    "also",
    cls=RenamedOption,
    old_name="--also",
    type=PATH,
    multiple=True,
    metavar="ONNX",
    help="ONNX folder of the same checkpoint in another precision, to include as well. Can be "
    "given several times.  [optional]",
)
@click.option(
    "--model-version",
    type=int,
    default=1,
    show_default=True,
    help="Version of the model, for servers that have versions.",
)
@click.option(
    "--max-batch-size",
    type=int,
    default=64,
    show_default=True,
    help="Maximum number of rows in a batch, for servers that have a limit.",
)
@click.option("--bom", is_flag=True, help="Also write a CycloneDX bill of materials.")
@click.option(
    "--sign",
    type=PATH,
    metavar="KEY",
    help="Sign OUT with this private key (PEM file).  [optional]",
)
@overwrite_option
@output_options
def bundle(
    onnx: Path,
    out: Path,
    *,
    server: str,
    name: str | None,
    also: tuple[Path, ...],
    model_version: int,
    max_batch_size: int,
    bom: bool,
    sign: Path | None,
    overwrite: bool,
    output: Output,
) -> None:
    """Turn ONNX, a folder written by `onnx`, into OUT, which a server or runtime can load directly.

    OUT/README.md has the commands to start the server, send a request and verify the model.
    """
    from mixout_export.bundling.plan import BundleOptions
    from mixout_export.stages.bundle import bundle_onnx

    options = BundleOptions(
        server=server,
        # transformers.js finds a model by the name of its folder
        name=name or _name_of(out if server == "transformers-js" else onnx),
        version=model_version,
        max_batch_size=max_batch_size,
    )
    result = bundle_onnx(onnx, out, options, also=also, overwrite=overwrite, bom=bom, sign=sign)
    lines = [f"{out}: for {server}, {human_size(result.bytes)}"]
    lines += [f"  {m['name']:<20} {m['precision']}, {m['path']}" for m in result.models]
    if result.tokenizer_texts:
        lines.append(
            f"  {'tokenizer':<20} same tokens as the original on {result.tokenizer_texts} texts"
        )
    lines.append(f"  {'how to use it':<20} see {out / 'README.md'}, then run the next command")
    following = after_bundle(onnx, out, server=server, name=result.models[0]["name"])
    output.result(result, "\n".join(lines), following=following)
