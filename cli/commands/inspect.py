"""`mixout-export inspect`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mixout_export_cli.options import PATH, output_options
from mixout_export_cli.output import Output, human_size, table

if TYPE_CHECKING:
    from mixout_export.stages.inspection import Inspection

_KINDS = {
    "huggingface": "plain Hugging Face checkpoint",
    "mixout": "mixout checkpoint",
    "onnx": "ONNX graph",
}


def _facts(inspection: "Inspection") -> list[str]:
    dtypes = ", ".join(f"{count} {name}" for name, count in inspection.dtypes.items())
    lines = [
        f"{inspection.path}: {_KINDS[inspection.kind]}",
        f"  architecture  {inspection.architecture or 'unknown'}",
        f"  task          {inspection.task or 'none, it has no head'}",
    ]
    if inspection.labels:
        lines.append(f"  labels        {', '.join(inspection.labels)}")
    lines.append(f"  weights       {inspection.parameters:,} in {dtypes} tensors")
    for key, value in inspection.provenance.items():
        if value not in (None, [], {}) and key not in ("labels", "task", "config_changes"):
            lines.append(f"  {key:<13} {_inline(value)}")
    for change in inspection.provenance.get("config_changes", []):
        lines.append(f"  changed       {change['key']}: {change['before']} -> {change['after']}")
    lines += [f"  {human_size(size):>12}  {name}" for name, size in inspection.files.items()]
    return lines


def _inline(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_inline(v)}" for k, v in value.items() if v not in (None, [], ()))
    if isinstance(value, (list, tuple)):
        return ", ".join(str(inner) for inner in value)
    return str(value)


@click.command()
@click.argument("path", type=PATH)
@click.option("--plot", type=PATH, metavar="FILE", help="Draw the distances (png, svg, pdf).")
@output_options
def inspect(path: Path, *, plot: Path | None, output: Output) -> None:
    """Say what PATH is, where it comes from, and how far its mixed layers have moved.

    Exit code 3 if its manifest does not match its files.
    """
    from mixout_export.stages.inspection import inspect_path, plot_distances

    inspection = inspect_path(path)
    if plot is not None:
        plot_distances(inspection, plot)
    lines = _facts(inspection)
    if inspection.layers:
        rows = [
            [layer.name, "x".join(map(str, layer.shape)), f"{layer.relative:.5f}"]
            for layer in inspection.layers
        ]
        lines += ["", table(["mixed layer", "shape", "|w-u|/|u|"], rows)]
        lines.append(f"over all mixed layers |w-u| = {inspection.distance:.4f}")
    output.result(inspection, "\n".join(lines))
